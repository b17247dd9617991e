"""Network input (a batch over all sources) -> heatmaps and tags. Knows nothing of people."""

import time
from collections.abc import Callable, Iterator

import torch

from nets.aggregation import Maps, flip_test
from pipeline.messages import NetInput, NetOutput

Engine = Callable[[torch.Tensor], Maps]


class Inference:
    """Runs an engine on each batch, with the papers' flip test if asked."""

    def __init__(self, engine: Engine, *, flip_order: tuple[int, ...] | None = None) -> None:
        """Take an engine of nets.engines; a flip_order (nets.skeletons) asks for the flip test."""
        self._engine = engine
        self._flip_order = flip_order

    def __call__(self, batch: NetInput) -> Iterator[NetOutput]:
        started = time.perf_counter()
        images = torch.from_numpy(batch.images)
        if self._flip_order is None:
            maps = self._engine(images)
        else:
            maps = flip_test(self._engine, images, flip_order=self._flip_order)
        height, width = batch.images.shape[2:]
        yield NetOutput(
            frames=batch.frames,
            levels=tuple(level.numpy() for level in maps.levels),
            tags=maps.tags.numpy(),
            net_size=(height, width),
            image_from_net=batch.image_from_net,
            stage_ms={**batch.stage_ms, "inference": (time.perf_counter() - started) * 1e3},
        )
