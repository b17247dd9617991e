"""Video decoded on an NVIDIA GPU: FFmpeg's NVDEC through PyAV. The host never sees the pixels.

    packet -> NVDEC -> surface -DLPack-> view -copy on the GPU-> Y and UV planes -> Frame
                       (few, used again)       (1080p: 3 MB)      (CuPy's pool)

FFmpeg itself decides for each video: what NVDEC does not know (a codec, a size, a pixel format)
comes from its software decoder instead, as pictures in host memory. So whoever reads looks at each
picture's own format (av_video.py), never at what was asked for. This file knows nothing of sources
and containers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import av
from av.codec import Codec
from av.codec.hwaccel import HWAccel
from av.error import FFmpegError

from common.settings import ConfigError
from kernels.arrays import why_no_gpu
from pipeline.config import Decode

_log = logging.getLogger(__name__)


def decoding_device(decode: Decode, network_device: int | None) -> int | None:
    """The CUDA device whose NVDEC is to decode a source; None: FFmpeg in software.

    Args:
        decode: as configured.
        network_device: the GPU that runs the network on the source's frames; None where the
            network runs on none, or in another process.
    Raises:
        ConfigError: `GPU`, and it cannot be.
    """
    if decode == "cpu" or (decode == "auto" and network_device is None):
        return None
    reason: str | None
    if network_device is None:
        reason = why_no_gpu() or "the network does not run on a GPU in the decoder's process"
    else:
        reason = why_no_nvdec(network_device)
    if reason is None:
        return network_device
    if decode == "gpu":
        raise ConfigError(f"decode: GPU is not possible: {reason}; use decode: cpu, or auto")
    return None


@cache
def why_no_nvdec(device: int) -> str | None:
    """Why FFmpeg cannot use this GPU, in one line; None where it can. Found out and logged once.

    By asking FFmpeg for nothing but its context on the GPU. What av.open raises would tell less: a
    camera that refuses raises the same errors.
    """
    reason = why_no_gpu(device)
    if reason is None:
        with current_context(device):
            reason = why_no_context(device)
    where = f"cuda:{device}, by NVDEC" if reason is None else f"the CPU ({reason})"
    _log.info("decode: sources of cuda:%d are decoded on %s", device, where)
    return reason


def why_no_context(device: int) -> str | None:
    """Why FFmpeg makes no context on the GPU; the GPU's CUDA context must be current."""
    try:
        hwaccel_of(device).create(Codec("h264", "r"))
    except (FFmpegError, NotImplementedError) as error:
        return f"FFmpeg has no access to cuda:{device}: {getattr(error, 'strerror', None) or error}"
    return None


@contextmanager
def opening_on(device: int | None) -> Iterator[HWAccel | None]:
    """What av.open inside is given as hwaccel; None where the CPU decodes."""
    if device is None:
        yield None
        return
    with current_context(device):
        yield hwaccel_of(device)


def hwaccel_of(device: int) -> HWAccel:
    """PyAV's description of NVDEC on a GPU; pictures stay there.

    FFmpeg works in the context that is current in the thread that opens. PyAV's usual choice, to
    take the GPU's primary context itself, fails where torch or CuPy had it first ("incompatible
    flags").
    """
    return HWAccel(
        "cuda",
        device=device,
        allow_software_fallback=True,
        options={"primary_ctx": "0", "current_ctx": "1"},
        is_hw_owned=True,
    )


@contextmanager
def current_context(device: int) -> Iterator[None]:
    """The GPU's primary context, that of torch and CuPy, is this thread's current one inside."""
    import cupy

    with cupy.cuda.Device(device):
        cupy.cuda.runtime.free(0)  # makes the context where nothing has used the GPU yet
        yield


def is_on_gpu(frame: av.VideoFrame) -> bool:
    """Whether the picture lies on a GPU, as planes that can stay there.

    messages.Frame carries NV12 and rounds chroma up: of odd sizes PyAV exports half a row or column
    less, and 10-bit video has planes of 16 bits. Those are fetched and converted on the host.
    """
    if frame.format.name != "cuda":
        return False
    inside = frame.sw_format
    return inside is not None and inside.name == "nv12" and not (frame.width | frame.height) % 2


class GpuPlanes:
    """Takes pictures out of NVDEC's surfaces. Belongs to one decoder, and to its thread."""

    def __init__(self, device: int) -> None:
        import cupy

        self._xp = cupy
        self._device = cupy.cuda.Device(device)
        with self._device:
            # FFmpeg works on the default stream, which a stream of this kind (not "non-blocking")
            # waits for.
            self._stream = cupy.cuda.Stream()

    def __call__(self, frame: av.VideoFrame) -> tuple[Any, Any]:
        """Y (h, w) and UV (h / 2, w / 2, 2), uint8 CuPy arrays that any stream may read.

        They are in memory of ours, so that the surface is free again at once.

        Args:
            frame: is_on_gpu(); its surface is read until this returns.
        """
        with self._device, self._stream:
            luma, chroma = copies_of(frame.planes, self._xp)
            self._stream.synchronize()
        return luma, chroma


def copies_of(planes: Sequence[Any], xp: Any) -> list[Any]:
    """Contiguous copies of planes that know DLPack, as arrays of xp (cupy; NumPy on the host)."""
    return [xp.from_dlpack(_Exported(plane)).copy() for plane in planes]


class _Exported:
    """A plane of PyAV as from_dlpack takes it: PyAV refuses the stream that CuPy always names.

    Nothing is lost by leaving it out: GpuPlanes orders its stream behind FFmpeg's itself.
    """

    def __init__(self, plane: Any) -> None:
        self._plane = plane

    def __dlpack__(self, **_: Any) -> Any:
        return self._plane.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._plane.__dlpack_device__()
        return device
