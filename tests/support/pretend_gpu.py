"""Planes on a GPU that does not exist: they lie in host memory, but answer as CuPy arrays do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from pipeline.gpu.nvdec import copies_of
from pipeline.sources import file as file_source
from pipeline.sources import video_reader as av_video


class GpuArray:
    """A NumPy array that nobody can take for one, as far as planes of pictures need arrays."""

    def __init__(self, array: np.ndarray, device: int) -> None:
        self._array = array
        self.device = SimpleNamespace(id=device)
        self.data = SimpleNamespace(ptr=array.ctypes.data)
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.ndim, self.flags = array.ndim, SimpleNamespace(c_contiguous=array.flags.c_contiguous)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, part: Any) -> "GpuArray":
        return GpuArray(self._array[part], self.device.id)

    def get(self) -> np.ndarray:
        """The download: new memory, as CuPy gives."""
        return self._array.copy()


class PretendGpuPlanes:
    """In the place of gpu_video.GpuPlanes, for pictures that were decoded in software."""

    def __init__(self, device: int) -> None:
        self._device = device

    def __call__(self, frame: av.VideoFrame) -> tuple[GpuArray, GpuArray]:
        luma, chroma = copies_of(frame.reformat(format="nv12").planes, np)
        return GpuArray(luma, self._device), GpuArray(chroma, self._device)


def pretend_nvdec(monkeypatch: pytest.MonkeyPatch, *, every: int = 1) -> None:
    """Of files that are opened on a GPU every n-th picture comes on it, the others on the host."""
    here = threading.local()  # a file is opened and read by one thread

    @contextmanager
    def opening_on(device: int | None) -> Iterator[None]:
        here.has_gpu, here.pictures = device is not None, 0
        yield None

    def is_on_gpu(frame: av.VideoFrame) -> bool:
        here.pictures += 1
        return bool(here.has_gpu and here.pictures % every == 0)

    monkeypatch.setattr(file_source, "opening_on", opening_on)
    monkeypatch.setattr(av_video, "is_on_gpu", is_on_gpu)
    monkeypatch.setattr(av_video, "GpuPlanes", PretendGpuPlanes)
