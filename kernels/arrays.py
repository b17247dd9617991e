"""GPUs as launches see them, and torch tensors as arrays of CuPy.

    peaks.cu --nvrtc.py--> CudaGpu: CuPy, a GPU        tests: g++, the CPU
                              |                            |
                              +---------- a Gpu -----------+
                                            |
                             gpu_peaks.py, gpu_grouping.py, ...

The files gpu_*.py take a Gpu and know nothing else about it, so that the tests run the very same
launches on the CPU. This file is the only one of this package that touches torch, and only inside
functions: importing it needs neither torch, nor CuPy, nor a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.cache import redirect_libraries
from kernels.nvrtc import compile_cuda

if TYPE_CHECKING:
    import torch

Function = Callable[..., None]
"""function(grid, block, args, shared_mem=0), as a cupy.RawKernel is called: grid and block are
tuples of int, args arrays of gpu.xp or NumPy scalars such as np.int32(3), never Python numbers."""

_MAX_WORKSPACES = 8
_Workspace = TypeVar("_Workspace")


class Gpu(Protocol):
    """A device, as launches see it: a GPU (CudaGpu), or the CPU in tests."""

    xp: Any
    """cupy, or NumPy on the CPU: arrays for args come from gpu.xp.empty, zeros and asarray."""

    def function(self, file: str, name: str) -> Function:
        """The `extern "C" __global__` function of kernels/`file`, compiled once per device."""

    def stream(self) -> AbstractContextManager[None]:
        """Launches and copies inside run on torch's current stream of this device."""


class CudaGpu:
    """An NVIDIA GPU, over CuPy.

    Raises:
        ValueError: CuPy is missing, or there is no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        reason = why_no_gpu(index)
        if reason is not None:
            raise ValueError(f"no NVIDIA GPU {index}: {reason}; use --device cpu")
        import cupy

        self.index = index
        self.xp: Any = cupy

    def function(self, file: str, name: str) -> Function:
        with self.xp.cuda.Device(self.index):
            function: Function = _cuda_module(self.index, file).get_function(name)
        return function

    @contextmanager
    def stream(self) -> Iterator[None]:
        import torch

        current = torch.cuda.current_stream(self.index)
        with self.xp.cuda.Device(self.index), self.xp.cuda.Stream.from_external(current):
            yield


def why_no_gpu(index: int = 0) -> str | None:
    """Why GPU `index` cannot be used, in one line; None where it can."""
    redirect_libraries()  # CuPy makes its cache folder when it is imported
    try:
        import cupy
    except (ImportError, OSError) as error:  # OSError: a CUPY_CACHE_DIR that cannot be written
        return f"CuPy cannot be imported ({error}); install the extra `gpu`"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except RuntimeError as error:  # CuPy's own errors derive from it: no driver, no GPU
        return f"CUDA answers {str(error).splitlines()[0]}"
    if not 0 <= index < count:
        return f"this machine has {count}, numbered from 0"
    return None


@cache
def _cuda_module(index: int, file: str) -> Any:
    import cupy

    architecture = int(cupy.cuda.Device(index).compute_capability)
    return cupy.RawModule(path=str(compile_cuda(file, architecture=architecture).cubin))


def from_torch(tensor: "torch.Tensor") -> Any:
    """The same memory as an array: CuPy for a tensor on a GPU, NumPy for one on the CPU.

    No copy (DLPack). Inside `gpu.stream()` no synchronisation either: both sides use one stream.
    """
    tensor = tensor.detach()
    if tensor.is_cuda:
        import cupy

        return cupy.from_dlpack(tensor)
    return tensor.numpy()


# ---- workspaces ---------------------------------------------------------------------------------


def remember(kept: dict[object, _Workspace], key: object, workspace: _Workspace) -> None:
    """Keep the latest few; sources whose sizes vary must not fill the device's memory."""
    if len(kept) == _MAX_WORKSPACES:
        del kept[next(iter(kept))]
    kept[key] = workspace


# ---- host and GPU ------------------------------------------------------------------------------


def host_memory(gpu: Gpu, size: int) -> NDArray[np.uint8]:
    """(size,) uint8 on the host, page-locked where gpu is a GPU: copies from it need no wait."""
    return pinned_like(gpu.xp.empty(size, np.uint8))


def pinned_like(array: Any) -> NDArray[Any]:
    """Host memory for a copy of array, page-locked where array is on a GPU."""
    if isinstance(array, np.ndarray):
        return np.empty_like(array)
    import cupyx

    pinned: NDArray[Any] = cupyx.empty_pinned(array.shape, array.dtype)
    return pinned


def to_gpu(host: NDArray[Any], array: Any) -> None:
    """Copy page-locked host memory to a contiguous array, on CuPy's current stream; does not wait:
    host must stay as it is until the stream has got there."""
    if isinstance(array, np.ndarray):
        array[...] = host
    else:
        array.data.copy_from_host_async(host.ctypes.data, host.nbytes)


def to_host(array: Any, host: NDArray[Any]) -> NDArray[Any]:
    """Copy a contiguous array to page-locked host memory in one transfer, and wait for it."""
    if isinstance(array, np.ndarray):
        host[...] = array
    else:
        array.get(out=host)  # on CuPy's current stream, then waits for it
    return host
