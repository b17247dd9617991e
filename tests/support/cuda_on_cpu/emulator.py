"""Kernels on the CPU: the CUDA text that CuPy would compile, built with g++, run on NumPy arrays.

    EmulatedGpu.function("peaks.cu", "find_peaks")       a Gpu, as kernels/gpu_*.py take it
      -> cuda_source() -> CpuRawModule                   as cupy.RawModule; cached on disk
           -> function(grid, block, args)                checks args against the kernel's parameters

Equal results on several seeds (orders of threads and blocks) are the first test of a kernel. The
second is `assert_clean(call, sanitize="thread")` and `"address"`: `call(gpu)` in a process of its
own under ThreadSanitizer (races) or AddressSanitizer with UBSan (bounds, alignment). The third
plants bugs with `replace=` and sees that one of the two notices. emulator.h and emulator.cpp say
what the emulation can and cannot see.
"""

import ctypes
import hashlib
import importlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.cache import cache_folder
from kernels.arrays import Function
from kernels.nvrtc import cuda_source
from tests.support.places import ROOT

Sanitizer = Literal["thread", "address"]
Replacements = Sequence[tuple[str, str]]

_HERE = Path(__file__).resolve().parent
_FLAGS = ("-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique")
_ARITHMETIC = ("-ffp-contract=off", "-fno-strict-aliasing")  # no fused multiply-add; CUDA's casts
_SANITIZERS: dict[Sanitizer, tuple[str, ...]] = {
    "thread": ("-fsanitize=thread",),
    "address": ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
}
_MAX_ARGUMENT_BYTES = 4096  # of all parameters of a kernel together
_DAYS_KEPT = 14  # libraries of kernels as they were

_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+'
    r"(?:void\s+)?(?:__launch_bounds__\s*\(\s*(?P<threads>[^),]+)[^)]*\)\s*)?(?:void\s+)?"
    r"(?P<name>\w+)\s*\("
)
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\s*\(\d+\)\s*)?"
    r"(?P<type>[\w ]+?)\s+(?P<name>\w+)\s*\[\s*\]\s*;"
)


class EmulatedGpu:
    """A Gpu whose device is the CPU.

    Args:
        seed: the order of threads and blocks: 0 ascending, 1 descending, others shuffled.
        sanitize: built for a sanitizer; only inside `assert_clean` and `sanitizer_report`.
        defines: macros for the kernels, "NAME" or "NAME=value".
        replace: bugs to plant, (old, new) pairs; every old text must stand exactly once in
            kernels/*.cu and *.cuh.

    Raises:
        ValueError: a replacement that fits nowhere, or in several places.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        sanitize: Sanitizer | None = None,
        defines: Sequence[str] = (),
        replace: Replacements = (),
    ) -> None:
        _require_single_places(replace)
        self.xp: Any = _DeviceNumpy()
        self.seed = seed
        self.sanitize = sanitize
        self._options = tuple(f"-D{define}" for define in defines)
        self._replace = tuple(replace)

    def function(self, file: str, name: str) -> Function:
        code = cuda_source(file)
        for old, new in self._replace:
            code = code.replace(old, new)
        module = CpuRawModule(code, self._options, sanitize=self.sanitize)
        return module.get_function(name, seed=self.seed)

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()


class CpuRawModule:
    """What cupy.RawModule is for a GPU: CUDA text in, functions that launch out.

    Args:
        code: CUDA C++ as emulator.h allows; kernels are `extern "C" __global__ void name(...)`.
        options: options of g++, such as -DNAME; with -mfma -ffp-contract=fast products and sums are
            fused as nvcc's default does.
    Raises:
        ValueError: the text does not compile; the compiler's words are in the message.
    """

    def __init__(
        self, code: str, options: Sequence[str] = (), *, sanitize: Sanitizer | None = None
    ) -> None:
        self._library = ctypes.CDLL(str(_build(code, tuple(options), sanitize)))
        self._guard_views = sanitize == "address"

    def get_function(self, name: str, *, seed: int = 0) -> Function:
        """`launch(grid, block, args, *, shared_mem=0)`.

        A launch raises TypeError for arguments that do not fit the kernel's parameters, and
        RuntimeError for what a GPU would refuse or hang on (limits, divergent barriers, wrong
        masks, deadlocks); the message names file and line.
        """
        try:
            parameters = getattr(self._library, f"cuemu_parameters_{name}")
            run = getattr(self._library, f"cuemu_launch_{name}")
        except AttributeError:
            raise ValueError(f'no `extern "C" __global__` function {name} in this text') from None
        parameters.restype = run.restype = ctypes.c_char_p
        wanted = parameters().decode().split(",")[:-1]

        def launch(
            grid: tuple[int, ...],
            block: tuple[int, ...],
            args: Sequence[Any],
            *,
            shared_mem: int = 0,
        ) -> None:
            shape = _Launch(_three(grid), _three(block), shared_mem, seed)
            with _guarded(args) if self._guard_views else nullcontext(args) as arrays:
                cells = _checked_arguments(name, wanted, arrays)
                places = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(c) for c in cells])
                error = run(ctypes.byref(shape), places)
            if error is not None:
                raise RuntimeError(f"{name}: {error.decode()}")

        return launch


class _Launch(ctypes.Structure):
    """cuemu::Launch of emulator.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_bytes", ctypes.c_ulonglong),
        ("seed", ctypes.c_ulonglong),
    )


class _DeviceNumpy:
    """NumPy, but fresh memory holds 0xFF (NaN, -1): on a GPU it holds whatever it held."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, *args: Any, **kwargs: Any) -> np.ndarray:
        array = np.empty(*args, **kwargs)
        _bytes_of(array)[:] = 0xFF
        return array


def _three(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return int(x), int(y), int(z)


# ---- arguments -----------------------------------------------------------------------------------


def _checked_arguments(name: str, wanted: Sequence[str], args: Sequence[Any]) -> list[Any]:
    """ctypes cells that hold the arguments, all of which fit."""
    if len(args) != len(wanted):
        raise TypeError(f"{name} takes {len(wanted)} arguments ({wanted}), got {len(args)}")
    pairs = enumerate(zip(wanted, args, strict=True))
    cells = [_cell(f"{name}, argument {i}", parameter, arg) for i, (parameter, arg) in pairs]
    size = sum(ctypes.sizeof(cell) for cell in cells)
    if size > _MAX_ARGUMENT_BYTES:
        raise TypeError(f"{name}: {size} bytes of arguments, CUDA takes {_MAX_ARGUMENT_BYTES}")
    return cells


@contextmanager
def _guarded(args: Sequence[Any]) -> Iterator[list[Any]]:
    """The arguments, views copied to blocks of exactly their size, so that their ends are guarded.

    Afterwards the bytes that changed go back: two views may lie in one block.
    """
    given = list(args)
    views = [
        i for i, arg in enumerate(args) if isinstance(arg, np.ndarray) and arg.base is not None
    ]
    before = {i: args[i].copy() for i in views}
    for i in views:
        given[i] = args[i].copy()
    yield given
    for i in views:
        after = _bytes_of(given[i])
        changed = after != _bytes_of(before[i])
        if changed.any():
            np.copyto(_bytes_of(args[i]), after, where=changed)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _cell(where: str, wanted: str, arg: Any) -> Any:
    if isinstance(arg, np.ndarray):
        _require_fitting_array(where, wanted, arg)
        return ctypes.c_void_p(arg.ctypes.data)
    if not isinstance(arg, np.generic):
        raise TypeError(
            f"{where}: got {type(arg).__name__}; pass an array of gpu.xp or a NumPy scalar, "
            "such as np.int32(3)"
        )
    if arg.dtype.str[1:] != wanted:
        raise TypeError(f"{where}: the kernel takes {wanted}, got {arg.dtype.str[1:]}")
    return (ctypes.c_char * arg.nbytes).from_buffer_copy(arg.tobytes())


def _require_fitting_array(where: str, wanted: str, array: np.ndarray) -> None:
    if not wanted.startswith("*"):
        raise TypeError(f"{where}: the kernel takes the number {wanted}, got an array")
    element = wanted.removeprefix("*").removeprefix("const ")
    kind, _, count = element.partition(" x")
    if kind not in ("void", array.dtype.str[1:]):
        raise TypeError(
            f"{where}: the kernel takes {wanted}, got an array of {array.dtype.str[1:]}"
        )
    if not array.flags.c_contiguous:
        raise TypeError(f"{where}: the array is not contiguous, strides {array.strides}")
    if not array.flags.writeable and "const" not in wanted:
        raise TypeError(f"{where}: the kernel takes {wanted}, got a read-only array")
    vector_bytes = array.itemsize * int(count or 1)
    if array.ctypes.data % vector_bytes or array.nbytes % vector_bytes:
        raise TypeError(
            f"{where}: not a whole number of {element}, aligned to {vector_bytes} bytes"
        )


# ---- build ---------------------------------------------------------------------------------------


def _build(code: str, options: tuple[str, ...], sanitize: Sanitizer | None) -> Path:
    """The library of this text: from the cache folder, or built now."""
    flags = (*_FLAGS, *_ARITHMETIC, *options)
    text = _with_entries(code)
    scheduler = _scheduler(sanitize, "-DCUEMU_UCONTEXT" in options)
    sanitizer_flags = _SANITIZERS[sanitize] if sanitize else ()
    command = ["g++", *flags, *sanitizer_flags, f"-I{_HERE}", "-shared"]
    return _built(command, text, (str(scheduler),))


@cache
def _scheduler(sanitize: Sanitizer | None, portable: bool) -> Path:
    """emulator.cpp, compiled: never with a sanitizer, which it tells what it does."""
    about = {
        None: (),
        "thread": ("-DCUEMU_THREAD_SANITIZER",),
        "address": ("-DCUEMU_ADDRESS_SANITIZER",),
    }
    switch = ("-DCUEMU_UCONTEXT",) if portable else ()
    command = ["g++", *_FLAGS, *about[sanitize], *switch, f"-I{_HERE}", "-c"]
    return _built(command, (_HERE / "emulator.cpp").read_text(encoding="utf-8"), ())


def _built(command: Sequence[str], text: str, objects: tuple[str, ...]) -> Path:
    header = (_HERE / "emulator.h").read_bytes()
    parts = (platform.machine(), repr(command), text, repr(objects), _compiler_version())
    key = hashlib.sha256(header + "\0".join(parts).encode()).hexdigest()[:24]
    folder = cache_folder("emulator")
    assert folder is not None, "tests need a cache folder that can be written"
    done = folder / f"{key}.{'o' if '-c' in command else 'so'}"
    if done.exists():
        os.utime(done)
        return done
    _forget_old(folder)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source, built = Path(work) / "kernel.cpp", Path(work) / "built"
        source.write_text(text, encoding="utf-8")
        result = subprocess.run(
            [*command, "-o", str(built), str(source), *objects],
            check=False,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise ValueError(f"g++ cannot compile this CUDA text:\n{result.stderr}")
        os.replace(built, done)  # whole at once: two test runs may build the same
    return done


def _with_entries(code: str) -> str:
    """Kernel text as g++ takes it; line numbers stay."""
    kernels = list(_KERNEL.finditer(code))
    code = _DYNAMIC_SHARED.sub(
        lambda m: f"{m['type']}* {m['name']} = static_cast<{m['type']}*>(cuemu::dynamic_shared);",
        code,
    )
    heads = list(_KERNEL.finditer(code))
    for match in reversed(list(re.finditer(r"\b__shared__\b", code))):
        before = [head["name"] for head in heads if head.start() < match.start()]
        if not before:
            raise ValueError("a __shared__ variable above every kernel; declare it in the kernel")
        code = f"{code[: match.start()]}CUEMU_SHARED({before[-1]}){code[match.end() :]}"
    exports = [f"CUEMU_EXPORT({k['name']}, ({k['threads'] or 1024}))" for k in kernels]
    head = '#define CUEMU 1\n#include "emulator.h"\n#line 1 "kernel.cu"\n'
    return "\n".join((head + code, *exports, ""))


def _dynamic_shared_pointer(declaration: re.Match[str]) -> str:
    kind, name = declaration["type"], declaration["name"]
    return f"{kind}* {name} = static_cast<{kind}*>(cuemu::dynamic_shared);"


def _forget_old(folder: Path) -> None:
    for path in folder.glob("*.*o"):
        if time.time() - path.stat().st_mtime > _DAYS_KEPT * 86400:
            path.unlink(missing_ok=True)


@cache
def _compiler_version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


# ---- sanitizers and planted bugs -----------------------------------------------------------------


def assert_clean(
    call: Callable[[EmulatedGpu], None], *, sanitize: Sanitizer, defines: Sequence[str] = ()
) -> None:
    """No complaint from the sanitizer, and none from `call` itself; see `sanitizer_report`."""
    report = sanitizer_report(call, sanitize=sanitize, defines=defines)
    assert not report, report


def sanitizer_report(
    call: Callable[[EmulatedGpu], None],
    *,
    sanitize: Sanitizer,
    defines: Sequence[str] = (),
    replace: Replacements = (),
    timeout_seconds: float = 100,
) -> str:
    """What a sanitizer says about `call(gpu)`, run in a process of its own; empty if nothing.

    Args:
        call: a function at the top level of a test file; the new process imports that file.
        replace: bugs to plant, as for EmulatedGpu.
    """
    _require_single_places(replace)
    job = repr((call.__code__.co_filename, call.__name__, sanitize, list(defines), list(replace)))
    library = {"thread": "libtsan.so", "address": "libasan.so"}[sanitize]
    environment = {
        **os.environ,
        "LD_PRELOAD": _compiler_file(library),
        "OPENBLAS_NUM_THREADS": "1",
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66 report_signal_unsafe=0",
        "ASAN_OPTIONS": "detect_leaks=0 exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1 exitcode=66",
    }
    code = f"from tests.support.cuda_on_cpu.emulator import _run_job; _run_job({job})"
    result = subprocess.run(
        # Old sanitizers need memory to lie where they expect it.
        ["setarch", platform.machine(), "-R", sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )
    return "" if result.returncode == 0 else f"exit {result.returncode}\n{result.stderr[-6000:]}"


def _run_job(job: tuple[str, str, Sanitizer, list[str], list[tuple[str, str]]]) -> None:
    file, name, sanitize, defines, replace = job
    module = ".".join(Path(file).resolve().relative_to(ROOT).with_suffix("").parts)
    call = getattr(importlib.import_module(module), name)
    call(EmulatedGpu(sanitize=sanitize, defines=defines, replace=replace))


def _compiler_file(name: str) -> str:
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found):
        raise RuntimeError(f"g++ has no {name}; install its sanitizers (Debian: libgcc-*-dev)")
    return os.path.realpath(found)


def _require_single_places(replace: Replacements) -> None:
    folder = ROOT / "kernels"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.cu*"))]
    for old, _ in replace:
        places = sum(text.count(old) for text in texts)
        if places != 1:
            raise ValueError(f"{old!r} stands {places} times in kernels/*.cu and *.cuh, not once")
