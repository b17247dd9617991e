"""A batch's way over an NVIDIA GPU: what goes up is pictures, what comes back is people.

    host    planes -copy-> pinned                                       People
                             | upload                                      ^ the one copy
    GPU                   planes -preprocess.cu-> images -engine-> maps --'
                                                                 peaks.cu, grouping.cu

All of it is queued on one CUDA stream, that of the slot. The host waits once, for the people.
There are two stream slots: while the network works on one batch, the next is uploaded on the other.
Preprocess takes a stream slot. It is free again when its batch has gone, whatever became of it.
This file knows nothing of threads, queues and sources.
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

from kernels.arrays import Gpu, from_torch, host_memory, to_gpu
from kernels.decode import DecodeSettings
from kernels.gpu_decode import GpuDecoder
from kernels.gpu_preprocess import GpuPicture, GpuPreprocess
from kernels.people import People
from nets.skeletons import Skeleton
from pipeline.gpu.placement import Placement

STREAM_SLOTS = 2
"""Batches on a GPU at a time."""

_ALIGNMENT = 16
"""Bytes; rows of planes begin at multiples of it, so that the kernel can read whole words."""
_SETTINGS_KEPT = 4
"""Decoders of a stream slot: a stream under load switches refine off and on again."""


class GpuSettings(NamedTuple):
    """What all stream slots of a GPU are made for."""

    skeleton: Skeleton
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prefilter: bool
    flip_order: tuple[int, ...] | None
    """Not None: batches hold every picture twice, the second time mirrored."""


class StreamSlot:
    """One CUDA stream, and the memory of the batch that is on it.

    Args:
        gpu: the GPU.
        stream: a torch.cuda.Stream of that GPU; None where gpu is the CPU, in tests.
    """

    def __init__(self, gpu: Gpu, settings: GpuSettings, stream: Any) -> None:
        self._gpu, self._stream, self._settings = gpu, stream, settings
        self._preprocess = GpuPreprocess(
            gpu, mean=settings.mean, std=settings.std, prefilter=settings.prefilter
        )
        self._decoder = lru_cache(maxsize=_SETTINGS_KEPT)(self._new_decoder)
        self._pinned: Any = host_memory(gpu, 0)
        self._planes: Any = gpu.xp.empty(0, np.uint8)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Work that is begun inside is queued on this stream slot."""
        with torch.cuda.stream(self._stream):  # None: changes nothing
            yield

    def images(self, pictures: Sequence[GpuPicture], net_size: tuple[int, int]) -> torch.Tensor:
        """Upload pictures and make the network's input of them; does not wait.

        Args:
            pictures: their planes in host memory, or on this GPU already.
            net_size: (H, W).
        Returns:
            (B, 3, H, W) float32 on the GPU.
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
        """The people of every picture, in network-input pixels; waits for all work of the slot.

        Args:
            levels, tags: as kernels.gpu_decode.GpuDecoder.enqueue takes them, on the GPU.
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
        """Until nothing of an earlier batch reads this stream slot's memory."""
        if self._stream is not None:
            self._stream.synchronize()

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self._stream is None else self._stream.device

    def _new_decoder(self, settings: DecodeSettings) -> GpuDecoder:
        made_for = self._settings
        return GpuDecoder(self._gpu, made_for.skeleton, settings, flip_order=made_for.flip_order)

    def _uploaded(self, pictures: Sequence[GpuPicture]) -> list[GpuPicture]:
        """The pictures with planes on the GPU; all that came from the host in one transfer."""
        here = [plane for p in pictures for plane in p.planes if isinstance(plane, np.ndarray)]
        if not here:  # NVDEC decoded them all
            return list(pictures)
        places, size = _laid_out(here)
        if size > len(self._pinned):
            self._pinned = host_memory(self._gpu, size)
            self._planes = self._gpu.xp.empty(size, np.uint8)
        for plane, place in zip(here, places, strict=True):
            _view(np, self._pinned, place)[...] = plane
        to_gpu(self._pinned[:size], self._planes[:size])
        views = iter([_view(self._gpu.xp, self._planes, place) for place in places])

        def on_gpu(plane: Any) -> Any:
            return next(views) if isinstance(plane, np.ndarray) else plane

        return [p._replace(planes=[on_gpu(plane) for plane in p.planes]) for p in pictures]


class StreamSlots:
    """The stream slots of one GPU.

    Args:
        stream_slots: at least one; each belongs to this object alone.
        give_up: raises when there is no use in waiting for a stream slot any more.
    """

    def __init__(self, stream_slots: Sequence[StreamSlot], *, give_up: Callable[[], None]) -> None:
        self._free: queue.SimpleQueue[StreamSlot] = queue.SimpleQueue()
        self._give_up = give_up
        for stream_slot in stream_slots:
            self._free.put(stream_slot)

    def take(self) -> HeldSlot:
        """A stream slot whose memory nothing reads; waits for one."""
        while True:
            try:
                stream_slot = self._free.get(timeout=0.1)
            except queue.Empty:
                self._give_up()
                continue
            stream_slot.wait()
            held_slot = HeldSlot(stream_slot)
            weakref.finalize(held_slot, self._free.put, stream_slot)
            return held_slot


class HeldSlot:
    """The right to use a stream slot, held with a batch. The last holder frees the slot.

    Batches end in many ways (poses, too old, a source removed, a failure), and messages are let go
    in all of them; so this follows the message, and no way out can forget it.
    """

    __slots__ = ("__weakref__", "stream_slot")

    def __init__(self, stream_slot: StreamSlot) -> None:
        self.stream_slot = stream_slot


class Gpus:
    """All GPUs of a stream.

    Args:
        stream_slots: those of each GPU.
        placement: which source is on which of them.
    """

    def __init__(
        self, stream_slots: Sequence[StreamSlots], placement: Placement | None = None
    ) -> None:
        self._stream_slots = stream_slots
        self._placement = placement or Placement(range(len(stream_slots)))

    def gpu_of(self, source: str, device: int | None) -> int:
        """The GPU that is to work on a frame: where its planes are, else that of its source.

        They differ for a moment at most, when a source is removed and another takes its name.

        Args:
            device: CUDA's number of the GPU that holds the planes; None: host memory.
        """
        if device is not None:
            return self._placement.gpu_with(device)
        return self._placement.gpu_of(source)

    def take(self, gpu: int) -> HeldSlot:
        """A stream slot of that GPU; see StreamSlots.take."""
        return self._stream_slots[gpu].take()


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
