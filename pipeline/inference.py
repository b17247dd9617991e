"""Network input (a batch over all sources) -> heatmaps and tags. Knows nothing of people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from nets.aggregation import Maps, flip_test
from pipeline.messages import NetInput, NetOutput

if TYPE_CHECKING:
    from pipeline.gpu.stream_slots import StreamSlot

RunNetwork = Callable[[torch.Tensor], Maps]
_Outputs = tuple[tuple[Any, ...], Any]  # levels and tags, as in NetOutput


class Inference:
    """Runs an engine on each batch, with the papers' flip test if asked.

    Args:
        engine: of nets.engines.load, or anything else that makes Maps of pictures.
        flip_order: the keypoint that takes each place when mirrored; asks for the flip test.
    """

    def __init__(self, engine: RunNetwork, *, flip_order: tuple[int, ...] | None = None) -> None:
        self._engine = engine
        self._flip_order = flip_order

    def __call__(self, batch: NetInput) -> Iterator[NetOutput]:
        started = time.perf_counter()
        if batch.held_slot is None:
            levels, tags = self._on_cpu(torch.from_numpy(batch.images))
        else:
            levels, tags = self._on_gpu(batch.images, batch.held_slot.stream_slot)
        height, width = batch.images.shape[2:]
        yield NetOutput(
            frames=batch.frames,
            levels=levels,
            tags=tags,
            net_size=(height, width),
            image_from_net=batch.image_from_net,
            held_slot=batch.held_slot,
            stage_ms={**batch.stage_ms, "inference": (time.perf_counter() - started) * 1e3},
        )

    def _on_cpu(self, images: torch.Tensor) -> _Outputs:
        if self._flip_order is None:
            maps = self._engine(images)
        else:
            maps = flip_test(self._engine, images, flip_order=self._flip_order)
        return tuple(level.numpy() for level in maps.levels), maps.tags.numpy()

    def _on_gpu(self, images: torch.Tensor, stream_slot: StreamSlot) -> _Outputs:
        """Queued on the stream slot, not waited for. With the flip test both passes as they are:
        the decode averages them where it reads."""
        with stream_slot.current():
            if self._flip_order is not None:
                images = torch.cat([images, images.flip(-1)])
            return self._engine(images)
