"""A Stream that runs in a thread while a test looks at it, and a network that sees nobody."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from nets.aggregation import Maps
from pipeline.stream import Stream
from tests.support.waiting import PATIENCE_SECONDS


class Zeros(NamedTuple):
    """Maps in which nobody is."""

    heatmaps: tuple[Tensor, Tensor]
    tags: Tensor


class SeesNobody(nn.Module):
    """Takes so many seconds for a batch, and finds nobody.

    Args:
        seconds: of images (B, 3, H, W).
    """

    def __init__(self, seconds: Callable[[Tensor], float]) -> None:
        super().__init__()
        self._seconds = seconds

    def forward(self, images: Tensor) -> Zeros:
        time.sleep(self._seconds(images))
        batch, _, height, width = images.shape
        low, high = (images.new_zeros(batch, 17, height // n, width // n) for n in (4, 2))
        return Zeros((low, high), low)

    def maps(self, output: Zeros) -> Maps:
        return Maps(output.heatmaps, output.tags[..., None])


@contextmanager
def running(stream: Stream) -> Iterator[Stream]:
    """The stream runs inside; at the end of the block its sources are stopped, and it must
    end."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(stream.run()))
    thread.start()
    try:
        yield stream
    finally:
        stream.sources.stop()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert codes == [0]
