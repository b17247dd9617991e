"""The CUDA text as compilers get it, and what NVRTC is told and answers, without a GPU."""

from pathlib import Path

import pytest
from cuda.bindings import nvrtc as cuda_nvrtc

from kernels import nvrtc
from kernels.nvrtc import COMPILE_OPTIONS, compile_cuda, cuda_source
from tests.support.cuda_on_cpu.emulator import CpuRawModule

KERNEL = 'extern "C" __global__ void __launch_bounds__(32) k(float* x) {{ {} }}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of kernels/, and of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "_FOLDER", tmp_path)
    monkeypatch.setattr(nvrtc.cuda_source, "__kwdefaults__", {"folder": tmp_path})
    return tmp_path


def test_headers_take_the_place_of_their_include_lines(folder: Path) -> None:
    (folder / "inner.cuh").write_text("INNER\n")
    (folder / "outer.cuh").write_text('#include "inner.cuh"\nOUTER\n')
    (folder / "all.cu").write_text(
        '#include <cuda_fp16.h>\n  #  include "outer.cuh"  // why\n#include "inner.cuh"\nEND\n'
    )
    assert cuda_source("all.cu").split("\n") == [
        '#line 1 "all.cu"',
        "#include <cuda_fp16.h>",
        '#line 1 "outer.cuh"',
        '#line 1 "inner.cuh"',
        "INNER",
        "",
        '#line 2 "outer.cuh"',
        "OUTER",
        "",
        '#line 3 "all.cu"',
        "",
        "END",
        "",
    ]


def test_messages_name_file_and_line_of_a_header(folder: Path) -> None:
    (folder / "wrong.cuh").write_text("// a line\n__device__ int f() { return nothing; }\n")
    (folder / "wrong.cu").write_text('\n#include "wrong.cuh"\n' + KERNEL.format("x[0] = f();"))
    with pytest.raises(ValueError, match=r"wrong\.cuh\(2\): error"):
        compile_cuda("wrong.cu", architecture=90)
    with pytest.raises(ValueError, match=r"wrong\.cuh:2:\d+: error"):
        CpuRawModule(cuda_source("wrong.cu"))


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "here.cu").write_text('#include "gone.cuh"\n')
    with pytest.raises(ValueError, match=r"no CUDA source 'gone\.cuh' .* there are \['here\.cu'\]"):
        cuda_source("here.cu")


def test_arithmetic_stays_as_written() -> None:
    """No fused multiply-add, no approximate division, no flush of subnormal numbers to zero."""
    text = KERNEL.format("x[0] = x[1] * x[2] + x[3]; x[4] = x[5] / x[6]; x[7] = sqrtf(x[8]);")
    options = [*COMPILE_OPTIONS, "--gpu-architecture=compute_80"]
    _, program = cuda_nvrtc.nvrtcCreateProgram(text.encode(), b"k.cu", 0, [], [])
    cuda_nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    _, size = cuda_nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    cuda_nvrtc.nvrtcGetPTX(program, ptx)
    for instruction in (b"mul.rn.f32", b"add.rn.f32", b"div.rn.f32", b"sqrt.rn.f32"):
        assert instruction in ptx
    assert b"fma" not in ptx
    assert b"ftz" not in ptx


def test_a_gpu_gets_code_that_runs_on_it(folder: Path) -> None:
    (folder / "k.cu").write_text(KERNEL.format("x[0] = 1;"))
    for gpu, compiled_for in ((80, 80), (87, 87), (91, 90), (89, 89)):
        compiled = compile_cuda("k.cu", architecture=gpu)
        assert compiled.cubin.read_bytes()[:4] == b"\x7fELF"
        assert f"for 'sm_{compiled_for}'" in compiled.log
    with pytest.raises(ValueError, match=r"not for a GPU of compute capability 6\.1"):
        compile_cuda("k.cu", architecture=61)


def test_machine_code_is_kept_until_the_text_changes(folder: Path) -> None:
    (folder / "k.cu").write_text(KERNEL.format("x[0] = 1;"))
    first = compile_cuda("k.cu", architecture=90)
    written = first.cubin.stat().st_mtime_ns
    assert compile_cuda("k.cu", architecture=90) == first
    assert first.cubin.stat().st_mtime_ns == written
    assert compile_cuda("k.cu", architecture=80).cubin != first.cubin
    (folder / "k.cu").write_text(KERNEL.format("x[0] = 2;"))
    assert compile_cuda("k.cu", architecture=90).cubin.read_bytes() != first.cubin.read_bytes()
    assert len(list((folder / "cache").rglob("*.cubin"))) == 3
