"""CUDA text to machine code: our sources with their headers, compiled by NVRTC, GPU or no GPU.

CuPy could compile the text itself, but it then adds -ftz=true as the last word, which makes 0 of
the smallest float32 numbers; the CPU twins keep them. Here the options are ours alone, the same on
every machine, and tests compile with them for all GPUs without having one. Machine code is kept
in the user's cache folder, where there is one, under a hash of all that it depends on.
"""

import hashlib
import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from common.cache import cache_folder, log_problems
from common.files import write_atomically

COMPILE_OPTIONS = ("--std=c++17", "--fmad=false")
"""For every kernel and GPU. Without fused multiply-add, products and sums are rounded one by one,
as on the CPU; division and square root are IEEE, and subnormal numbers kept, by NVRTC's default."""

_FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)
_OWN_HEADER = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[^\n]*$', re.MULTILINE)


class Compiled(NamedTuple):
    """One .cu file for one architecture."""

    cubin: Path
    """A file with the machine code, as a GPU loads it."""
    log: str
    """What the assembler says: registers, shared memory and spills of every kernel."""


def cuda_source(file: str, *, folder: Path = _FOLDER) -> str:
    """The text of a .cu file with our own headers in place of their #include lines.

    Only `#include "..."` is replaced, each header once; `#include <...>` stays for the compiler.
    #line directives keep messages at the right file and line.

    Raises:
        ValueError: the file, or a header that it names, is not in the folder.
    """
    return f'#line 1 "{file}"\n' + _with_headers(file, folder, set())


def compile_cuda(file: str, *, architecture: int) -> Compiled:
    """Compile kernels/`file`; needs NVRTC (the extra `gpu` or `dev`), but no driver and no GPU.

    Args:
        architecture: a GPU's compute capability without its dot, such as 90.
    Raises:
        ValueError: the text does not compile, or NVRTC knows no such architecture.
    """
    from cuda.bindings import nvrtc
    from cuda.pathfinder import find_nvidia_header_directory

    options = (
        *COMPILE_OPTIONS,
        f"--gpu-architecture=sm_{_compatible(architecture)}",
        f"--include-path={find_nvidia_header_directory('cudart')}",
        "--ptxas-options=-v",
    )
    source = cuda_source(file)
    depends_on = "\0".join((source, *options, repr(nvrtc.nvrtcVersion())))
    key = hashlib.sha256(depends_on.encode()).hexdigest()[:16]
    log_problems()
    folder = cache_folder("cuda")
    kept = folder and folder / f"{Path(file).stem}-sm_{architecture}-{key}.cubin"
    if kept is not None and kept.exists():
        return Compiled(kept, kept.with_suffix(".log").read_text(encoding="utf-8"))
    cubin, log = _compile(file, source, options)
    return Compiled(_keep(kept, cubin, log), log.decode())


def _compile(file: str, source: str, options: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Machine code and log."""
    from cuda.bindings import nvrtc

    program = _asked(nvrtc.nvrtcCreateProgram(source.encode(), file.encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = bytes(_asked(nvrtc.nvrtcGetProgramLogSize(program)))
        _asked(nvrtc.nvrtcGetProgramLog(program, log))
        log = log.rstrip(b"\0")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise ValueError(f"{file} does not compile with {options}:\n{log.decode()}")
        cubin = bytes(_asked(nvrtc.nvrtcGetCUBINSize(program)))
        _asked(nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return cubin, log


def _keep(path: Path | None, cubin: bytes, log: bytes) -> Path:
    """Where a GPU can load the code from: that path, or memory where nothing can be written."""
    if path is not None:
        try:
            write_atomically(path.with_suffix(".log"), log)
            write_atomically(path, cubin)
        except OSError as error:
            _log.warning("compiled kernels are not kept in %s: %s", path.parent, error.strerror)
        else:
            return path
    with open(os.memfd_create("cubin"), "wb", closefd=False) as file:  # for this process's life
        file.write(cubin)
        return Path(f"/proc/self/fd/{file.fileno()}")


@cache
def _compatible(architecture: int) -> int:
    """The newest architecture of the same major number that NVRTC knows: its code runs there."""
    from cuda.bindings import nvrtc

    status, known = nvrtc.nvrtcGetSupportedArchs()
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS
    fitting = [a for a in known if a <= architecture and a // 10 == architecture // 10]
    if not fitting:
        raise ValueError(
            f"NVRTC compiles for {sorted(known)}, not for a GPU of compute capability "
            f"{architecture / 10}; install another nvidia-cuda-nvrtc"
        )
    return int(max(fitting))


def _asked(answer: tuple[Any, ...]) -> Any:
    """The value of an NVRTC call whose failure would be our own error."""
    status, *values = answer
    assert int(status) == 0, status
    return values[0] if values else None


def _with_headers(file: str, folder: Path, seen: set[str]) -> str:
    path = folder / file
    if not path.is_file():
        here = sorted(p.name for p in folder.glob("*.cu*"))
        raise ValueError(f"no CUDA source {file!r} in {folder}; there are {here}")
    text = path.read_text(encoding="utf-8")

    def header(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return ""
        seen.add(name)
        next_line = text.count("\n", 0, match.end()) + 2
        inner = _with_headers(name, folder, seen)
        return f'#line 1 "{name}"\n{inner}\n#line {next_line} "{file}"'

    return _OWN_HEADER.sub(header, text)
