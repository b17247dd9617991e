"""Devices and arrays where there is no GPU: clear words, no failing import, no copies."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kernels import arrays
from kernels.arrays import CudaGpu, from_torch, why_no_gpu
from kernels.nvrtc import compile_cuda
from tests.support.cuda_on_cpu.emulator import EmulatedGpu
from tests.support.places import ROOT


def python(code: str) -> str:
    """What a new interpreter prints that sees no GPU, whatever this machine has."""
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def test_importing_needs_neither_torch_nor_cupy() -> None:
    heavy = "{'torch', 'cupy', 'cuda', 'numba'} & set(sys.modules)"
    assert python(f"import sys, kernels.arrays; print(sorted({heavy}))") == "[]"


def test_without_a_gpu_one_line_says_so() -> None:
    lines = python(
        "from kernels.arrays import CudaGpu\n"
        "try:\n    CudaGpu(0)\nexcept ValueError as error:\n    print(error)"
    ).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("no NVIDIA GPU 0: CUDA answers cudaError")
    assert lines[0].endswith("; use --device cpu")


def test_without_cupy_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        ValueError, match=r"CuPy cannot be imported .*; install the extra `gpu`; use"
    ):
        CudaGpu(0)


@pytest.mark.parametrize("index", [2, -1])
def test_a_gpu_that_is_not_there(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 2)
    assert why_no_gpu(1) is None
    assert why_no_gpu(index) == "this machine has 2, numbered from 0"


def test_cupy_gets_code_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    capability = SimpleNamespace(compute_capability="90")
    monkeypatch.setattr(cupy.cuda, "Device", lambda index: capability)
    module = arrays._cuda_module.__wrapped__(0, "preprocess.cu")
    assert isinstance(module, cupy.RawModule)  # it loads the file when a function is asked for
    assert module.file_path == str(compile_cuda("preprocess.cu", architecture=90).cubin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
def test_torch_and_arrays_share_memory(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype).reshape(2, 3)
    array = from_torch(tensor)
    assert isinstance(array, np.ndarray)
    array[1, 2] = 9
    assert tensor[1, 2] == 9


def test_strides_and_gradients_are_no_obstacle() -> None:
    tensor = torch.zeros(4, 6, requires_grad=True)
    view = from_torch(tensor[::2, 1:4])
    view[1, 0] = 5
    assert tensor[2, 1] == 5


def test_the_emulated_device_is_a_gpu() -> None:
    gpu: arrays.Gpu = EmulatedGpu()
    with gpu.stream():
        assert gpu.xp.zeros(3).sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(why_no_gpu() is not None, reason="no NVIDIA GPU")
def test_a_gpu_works_on_torchs_stream() -> None:
    gpu = CudaGpu(0)
    tensor = torch.arange(6.0, device="cuda:0")
    mine = torch.cuda.Stream(0)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(mine), gpu.stream():
        assert gpu.xp.cuda.get_current_stream().ptr == mine.cuda_stream
        array = from_torch(tensor)
        array += 1
    mine.synchronize()
    assert array.data.ptr == tensor.data_ptr()
    assert tensor.tolist() == [1, 2, 3, 4, 5, 6]
