"""The stages between a frame and its poses, one after the other, without queues.

    frames -> preprocess -> inference -> poses -> Poses, in the order of the frames

A stream runs these very stages in threads (stream.py). Whoever has pictures and waits for their
poses calls them here: the Python API, evaluation, validation during a training, the selftest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import StreamConfig
from pipeline.gpu.placement import Placement, cuda_devices
from pipeline.messages import Frame, NetInput, NetOutput, PixelFormat, Poses
from pipeline.network import make_network

if TYPE_CHECKING:
    from nets.checkpoints import Model

PreprocessStage = Callable[[Sequence[Frame]], Iterator[NetInput]]
InferenceStage = Callable[[NetInput], Iterator[NetOutput]]
PosesStage = Callable[[NetOutput], Iterator[Poses]]


class Estimator:
    """Frames in, poses out, in the caller's thread; one thread at a time.

    Args:
        preprocess, inference, find_poses: the stages, as network.py makes them for a stream.
        max_batch: frames in one pass of the network, where their network inputs have one size.
    """

    def __init__(
        self,
        preprocess: PreprocessStage,
        inference: InferenceStage,
        find_poses: PosesStage,
        *,
        max_batch: int = 1,
    ) -> None:
        self._preprocess = preprocess
        self._inference = inference
        self._find_poses = find_poses
        self._max_batch = max_batch

    def __call__(self, frames: Sequence[Frame]) -> list[Poses]:
        """The poses of each frame, in the order of the frames."""
        found: dict[int, Poses] = {}
        for start in range(0, len(frames), self._max_batch):
            for net_input in self._preprocess(frames[start : start + self._max_batch]):
                for net_output in self._inference(net_input):
                    found.update((id(p.frame), p) for p in self._find_poses(net_output))
        return [found[id(frame)] for frame in frames]


def make_estimator(config: StreamConfig, model: Model | None = None) -> Estimator:
    """Load weights, engine and kernels, as a stream with this configuration would.

    Args:
        model: in place of the configured weights.
    Raises:
        ValueError: weights, engine, device or precision that cannot be used, or several devices;
            one line.
    """
    placement = Placement(cuda_devices(config.inference))
    network = make_network(config, model, stop=threading.Event(), placement=placement)
    if len(network.inferences) > 1:
        raise ValueError(
            f"one device at a time, got device {config.inference.device!r}; "
            "several GPUs are for streams"
        )
    return Estimator(
        network.preprocess, network.inferences[0], network.find_poses, max_batch=network.max_batch
    )


def frame_of_picture(
    picture: np.ndarray,
    *,
    source: str,
    index: int = 0,
    pixel_format: PixelFormat = "bgr24",
    image_name: str = "",
) -> Frame:
    """A frame of its own for one picture, (height, width, 3) uint8; the picture is not copied."""
    height, width = picture.shape[:2]
    return Frame(
        source=source,
        index=index,
        pts_seconds=None,
        captured_ns=time.monotonic_ns(),
        captured_unix_s=time.time(),
        size=(height, width),
        planes=(picture,),
        pixel_format=pixel_format,
        image_name=image_name,
    )
