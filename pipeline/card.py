"""A batch's way over an NVIDIA card: what goes up is pictures, what comes back is people.

    host    planes -copy-> pinned                                       People
                             | upload                                      ^ the one copy
    card                   planes -preprocess.cu-> images -engine-> maps --'
                                                                 peaks.cu, grouping.cu

All of it is queued on one CUDA stream, the lane's, and the host waits once, for the people. There
are two lanes: while the network works on one batch, the next is uploaded on the other. A lane is
taken by preprocess and free again when its batch has gone, whatever became of it. This file knows
nothing of threads, queues and sources.
"""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.arrays import Gpu, from_torch, host_memory, to_card
from kernels.decode import DecodeSettings
from kernels.gpu_decode import GpuDecoder
from kernels.gpu_preprocess import GpuPreprocess, Picture
from kernels.grouping import People
from nets.skeletons import Skeleton
from pipeline.messages import Frame
from pipeline.placement import Placement

LANES = 2
"""Batches on a card at a time."""

_ALIGNMENT = 16
"""Bytes; rows of planes begin at multiples of it, so that the kernel can read whole words."""
_SETTINGS_KEPT = 4
"""Decoders of a lane: a stream under load switches refine off and on again."""


class CardSettings(NamedTuple):
    """What all lanes of a card are made for."""

    skeleton: Skeleton
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prefilter: bool
    flip_order: tuple[int, ...] | None
    """Not None: batches hold every picture twice, the second time mirrored."""


class Lane:
    """One CUDA stream, and the memory of the batch that is on it.

    Args:
        gpu: the card.
        stream: a torch.cuda.Stream of that card; None where gpu is the CPU, in tests.
    """

    def __init__(self, gpu: Gpu, settings: CardSettings, stream: Any) -> None:
        self._gpu, self._stream, self._settings = gpu, stream, settings
        self._preprocess = GpuPreprocess(
            gpu, mean=settings.mean, std=settings.std, prefilter=settings.prefilter
        )
        self._decoder = lru_cache(maxsize=_SETTINGS_KEPT)(self._new_decoder)
        self._pinned: Any = host_memory(gpu, 0)
        self._planes: Any = gpu.xp.empty(0, np.uint8)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Work that is begun inside is queued on this lane."""
        with torch.cuda.stream(self._stream):  # None: changes nothing
            yield

    def images(self, pictures: Sequence[Picture], net_size: tuple[int, int]) -> torch.Tensor:
        """Upload pictures and make the network's input of them; does not wait.

        Args:
            pictures: their planes in host memory, or on this card already.
            net_size: (H, W).
        Returns:
            (B, 3, H, W) float32 on the card.
        """
        with self.current(), self._gpu.stream():
            images = torch.empty(len(pictures), 3, *net_size, device=self._device)
            uploaded = self._uploaded(pictures)
            self._preprocess(uploaded, net_size=net_size, out=from_torch(images))
        return images

    def people(
        self,
        levels: Sequence[torch.Tensor],
        tags: torch.Tensor,
        net_size: tuple[int, int],
        settings: DecodeSettings,
    ) -> list[People]:
        """The people of every picture, in network-input pixels; waits for all work of the lane.

        Args:
            levels, tags: as kernels.gpu_decode.GpuDecoder.enqueue takes them, on the card.
        """
        decoder = self._decoder(settings)
        with self.current(), self._gpu.stream():
            found = decoder.enqueue(
                [from_torch(level.contiguous()) for level in levels],
                from_torch(tags.contiguous()),
                net_size,
            )
            return decoder.people(found)

    def wait(self) -> None:
        """Until nothing of an earlier batch reads this lane's memory."""
        if self._stream is not None:
            self._stream.synchronize()

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self._stream is None else self._stream.device

    def _new_decoder(self, settings: DecodeSettings) -> GpuDecoder:
        made_for = self._settings
        return GpuDecoder(self._gpu, made_for.skeleton, settings, flip_order=made_for.flip_order)

    def _uploaded(self, pictures: Sequence[Picture]) -> list[Picture]:
        """The pictures with planes on the card; all that came from the host in one transfer."""
        here = [plane for p in pictures for plane in p.planes if isinstance(plane, np.ndarray)]
        if not here:  # NVDEC decoded them all
            return list(pictures)
        places, size = _laid_out(here)
        if size > len(self._pinned):
            self._pinned = host_memory(self._gpu, size)
            self._planes = self._gpu.xp.empty(size, np.uint8)
        for plane, place in zip(here, places, strict=True):
            _view(np, self._pinned, place)[...] = plane
        to_card(self._pinned[:size], self._planes[:size])
        views = iter([_view(self._gpu.xp, self._planes, place) for place in places])

        def on_card(plane: Any) -> Any:
            return next(views) if isinstance(plane, np.ndarray) else plane

        return [p._replace(planes=[on_card(plane) for plane in p.planes]) for p in pictures]


class Lanes:
    """The lanes of one card.

    Args:
        lanes: at least one; each belongs to these Lanes alone.
        give_up: raises when there is no use in waiting for a lane any more.
    """

    def __init__(self, lanes: Sequence[Lane], *, give_up: Callable[[], None]) -> None:
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._give_up = give_up
        for lane in lanes:
            self._free.put(lane)

    def take(self) -> Lease:
        """A lane whose memory nothing reads; waits for one."""
        while True:
            try:
                lane = self._free.get(timeout=0.1)
            except queue.Empty:
                self._give_up()
                continue
            lane.wait()
            lease = Lease(lane)
            weakref.finalize(lease, self._free.put, lane)
            return lease


class Lease:
    """The right to use a lane; whoever holds a batch holds its lease. The last one frees the lane.

    Batches end in many ways (poses, too old, a source removed, a failure), and messages are let go
    in all of them; so this follows the message, and no way out can forget it.
    """

    __slots__ = ("__weakref__", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane


class Cards:
    """All cards of a stream.

    Args:
        lanes: those of each card.
        placement: which source is on which of them.
    """

    def __init__(self, lanes: Sequence[Lanes], placement: Placement | None = None) -> None:
        self._lanes = lanes
        self._placement = placement or Placement(range(len(lanes)))

    def card_of(self, frame: Frame) -> int:
        """The card that is to work on it: where its planes are, else that of its source.

        They differ for a moment at most, when a source is removed and another takes its name.
        """
        if frame.device is not None:
            return self._placement.card_with(frame.device)
        return self._placement.card_of(frame.source)

    def take(self, card: int) -> Lease:
        """A lane of that card; see Lanes.take."""
        return self._lanes[card].take()


class _Place(NamedTuple):
    """Where a plane lies in a run of bytes."""

    start: int
    pitch: int
    shape: tuple[int, ...]


def _laid_out(planes: Sequence[np.ndarray]) -> tuple[list[_Place], int]:
    """Places one after the other, and the bytes they take."""
    places: list[_Place] = []
    size = 0
    for plane in planes:
        pitch = -(-plane[0].size // _ALIGNMENT) * _ALIGNMENT
        places.append(_Place(size, pitch, plane.shape))
        size += pitch * len(plane)
    return places, size


def _view(xp: Any, memory: Any, place: _Place) -> Any:
    """The plane at a place of (n,) uint8 memory of xp, NumPy or CuPy."""
    strides = (place.pitch, *place.shape[2:], 1)[: len(place.shape)]
    return xp.lib.stride_tricks.as_strided(memory[place.start :], place.shape, strides)
