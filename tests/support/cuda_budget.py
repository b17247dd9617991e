"""Registers, shared memory and spills of every CUDA kernel on every architecture, without a GPU.

NVRTC compiles each kernels/*.cu as the product does, and the assembler's log is read. Threads are
those of __launch_bounds__; "blocks" is how many of them fit into a multiprocessor by registers,
shared memory and threads, which is the kernel's occupancy where memory does not bind first.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from kernels.nvrtc import compile_cuda, cuda_source
from tests.support.places import ROOT

KERNELS = ROOT / "kernels"
ARCHITECTURES = (75, 80, 86, 89, 90, 120)
"""T4; A100; A10 and RTX 30; L4 and RTX 40; H100; RTX 50 and RTX PRO Blackwell."""
MAX_STATIC_SHARED_BYTES = 48 << 10
REGISTERS = 65536  # of a multiprocessor, on all of them
_THREADS = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 120: 1536}
_SHARED_KIB = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 120: 100}
_MOST_BLOCKS = {75: 16, 80: 32, 86: 16, 89: 24, 90: 32, 120: 24}
_RESERVED_SHARED = 1024  # bytes of each block, from sm_80 on
_REGISTER_UNIT = 256  # a warp's registers are rounded up to it

_BOUNDS = re.compile(
    r'extern\s+"C"\s+__global__\s+(?:void\s+)?__launch_bounds__\s*\(\s*([^),]+)[^)]*\)\s*'
    r"(?:void\s+)?(\w+)\s*\("
)


class Budget(NamedTuple):
    """What one kernel takes on one architecture."""

    file: str
    kernel: str
    architecture: int
    threads: int
    registers: int
    shared_bytes: int
    """Static; what a launch adds is not in it."""
    stack_bytes: int
    spill_bytes: int
    blocks: int
    """Per multiprocessor."""


def cuda_files() -> list[str]:
    """All .cu files of kernels/."""
    return sorted(path.name for path in KERNELS.glob("*.cu"))


def budgets(file: str, architecture: int) -> Iterator[Budget]:
    """Compile one file and read the log; every kernel in it is told."""
    log = compile_cuda(file, architecture=architecture).log
    threads = _launch_bounds(file)
    for name, entry in _entries(log).items():
        if name not in threads:
            raise ValueError(f"{file}: kernel {name} has no __launch_bounds__; give it one")
        registers = _number(r"Used (\d+) registers", entry)
        shared = _number(r"(\d+) bytes smem", entry)
        yield Budget(
            file,
            name,
            architecture,
            threads[name],
            registers,
            shared,
            _number(r"(\d+) bytes stack frame", entry),
            _number(r"(\d+) bytes spill stores", entry)
            + _number(r"(\d+) bytes spill loads", entry),
            _blocks(architecture, threads[name], registers, shared),
        )


def _entries(log: str) -> dict[str, str]:
    """The log's part about each kernel."""
    parts = re.split(r"Compiling entry function '(\w+)'", log)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _launch_bounds(file: str) -> dict[str, int]:
    """Kernel names and their most threads; a bound may be a constant of the same text."""
    text = cuda_source(file)
    constants = dict(re.findall(r"constexpr\s+(?:unsigned|int)\s+(\w+)\s*=\s*(\d+)\s*;", text))
    constants |= dict(re.findall(r"#define\s+(\w+)\s+(\d+)\s*$", text, re.MULTILINE))
    bounds = {}
    for bound, name in _BOUNDS.findall(text):
        value = constants.get(bound.strip(), bound.strip())
        if not value.isdigit():
            raise ValueError(f"{file}: __launch_bounds__({bound}) of {name} is no plain constant")
        bounds[name] = int(value)
    return bounds


def _blocks(architecture: int, threads: int, registers: int, shared_bytes: int) -> int:
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    reserved = _RESERVED_SHARED if architecture >= 80 else 0
    return min(
        _MOST_BLOCKS[architecture],
        _THREADS[architecture] // (warps * 32),
        REGISTERS // max(1, of_warp * warps),
        _SHARED_KIB[architecture] * 1024 // max(1, shared_bytes + reserved),
    )
