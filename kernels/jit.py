"""How the CPU twins are compiled: numba, one thread, exact floating point, GIL released.

The twins never run in parallel (the cores belong to the engine) and never with fastmath: the order
of every float operation is part of their meaning. Compiled code is cached in the user's cache
folder (a clone may be read-only or shared), under a hash of this package: numba looks for changes
in a function's own file alone, and a kernel calls those of other files.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    sources = sorted(Path(__file__).parent.glob("*.py"))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    return Path(base) / "posestream" / "numba" / version


# numba reads this once, on import, so it must stand before the import below.
os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_folder()))

import numba  # noqa: E402


def njit(function: _F) -> _F:
    """Compile a CPU twin: GIL released, cached on disk, IEEE arithmetic in the written order."""
    compiled: _F = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=False)(function)
    return compiled
