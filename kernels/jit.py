"""How the CPU twins are compiled: numba, one thread, exact floating point, GIL released.

The twins never run in parallel (the cores belong to the engine) and never with fastmath: the order
of every float operation is part of their meaning. Compiled code is cached in the user's cache
folder (a clone may be read-only or shared), under a hash of this package: numba looks for changes
in a function's own file alone, and a kernel calls those of other files. Where nothing can be kept,
every process compiles for itself.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from common.cache import cache_folder, log_problems, note_problem
from common.rare_log import RareLog

_F = TypeVar("_F", bound=Callable[..., Any])


def _version() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


_FOLDER = cache_folder(f"numba/{_version()}")
if _FOLDER is not None:
    # numba reads this once, on import, so it must stand before the imports below.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(_FOLDER))

import numba  # noqa: E402
from numba.core.caching import FunctionCache  # noqa: E402
from numba.core.config import reload_config  # noqa: E402

reload_config()  # where a notebook has imported numba already

_rare_log = RareLog(logging.getLogger(__name__), lines_a_minute=1)


def njit(function: _F) -> _F:
    """Compile a CPU twin: GIL released, cached on disk, IEEE arithmetic in the written order."""
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath=False)(function)
    if _FOLDER is not None:
        try:
            compiled._cache = _Cache(function)
        except RuntimeError:
            given = os.environ["NUMBA_CACHE_DIR"]
            note_problem(f"NUMBA_CACHE_DIR={given} cannot be written; every start compiles again")
    twin: _F = compiled
    return twin


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's own, except that a damaged file or a full disk costs time and no more.

    numba looks and keeps when a function is first called, long after this module was imported.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        log_problems()
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # unpickling what is damaged raises errors of any kind
            _rare_log.warning(f"compiled kernels in {_FOLDER} are made again: {error}")
            with suppress(OSError):
                self.flush()  # forgets what is there, so that it can be replaced
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _rare_log.warning(f"compiled kernels are not kept in {_FOLDER}: {error.strerror}")
