"""Where this program keeps what took long to make: compiled kernels, converted networks.

    $XDG_CACHE_HOME/posestream  ->  ~/.cache/posestream  ->  <temporary folder>/posestream-<user>

The first folder that can be written is taken; where none can be, nothing is kept. Services and
containers often have no home, or one that is not theirs: that costs time at every start, and one
warning says so. Libraries with caches of their own are sent there too, where theirs would fail.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PROBE = bytes(4096)  # one block: a full disk refuses it

_LIBRARIES = (
    ("CUPY_CACHE_DIR", "~/.cupy/kernel_cache", "cupy"),
    ("MPLCONFIGDIR", "~/.config/matplotlib", "matplotlib"),
    ("CUDA_CACHE_PATH", "~/.nv/ComputeCache", "nv"),
)
"""Variable, the library's own choice without it, and the folder in ours."""

_problems: list[str] = []
"""Not logged yet."""
_log = logging.getLogger(__name__)


def cache_folder(kind: str) -> Path | None:
    """The folder for one kind of things, made if it is not there; None: nothing can be kept.

    It does not log; call log_problems() when the cache is used, for logging is set up by then.

    Args:
        kind: `engines`, `numba/<version>`, ...: a path inside the cache folder.
    """
    root = _root()
    return root and _usable(root / kind)


def note_problem(problem: str) -> None:
    """Have something else logged, too, that keeps things from being kept; equal ones once."""
    if problem not in _problems:
        _problems.append(problem)


def log_problems() -> None:
    """Log what is wrong with the cache, each thing once."""
    while _problems:
        _log.warning("cache folder: %s", _problems.pop(0))


def redirect_libraries() -> None:
    """Send the caches of CuPy, matplotlib and CUDA to ours where their own would fail.

    Call it before the library is imported. A variable that is set is left as it is.
    """
    root = _root()
    for variable, own, ours in _LIBRARIES:
        if variable in os.environ or _may_write(Path(own).expanduser() if _home() else None):
            continue
        if root is not None:
            os.environ[variable] = str(root / ours)
        elif variable == "CUPY_CACHE_DIR":
            # CuPy makes its folder when it is imported, even where it keeps all in memory.
            os.environ |= {variable: "/", "CUPY_CACHE_IN_MEMORY": "1"}


def _root() -> Path | None:
    return _first_of(tuple(_candidates()))


def _candidates() -> Iterator[Path]:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # others are to be ignored, says the XDG specification
        yield Path(base) / "posestream"
    home = _home()
    if home is not None:
        yield home / ".cache" / "posestream"


def _home() -> Path | None:
    """None: neither $HOME nor the system's list of users tells."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


@cache
def _first_of(candidates: tuple[Path, ...]) -> Path | None:
    """Looks at the disk, so each answer is kept for the whole process."""
    reasons: list[str] = []
    for folder in candidates:
        reason = _why_not(folder)
        if reason is None:
            if reasons:
                note_problem(f"{'; '.join(reasons)}; {folder} is used instead")
            return folder
        reasons.append(f"{folder}: {reason}")
    temporary, reason = _temporary_folder()
    complaint = "; ".join(reasons) or "this user has no home folder"
    consequence = (
        f"{temporary} is used until it is cleared"
        if temporary is not None
        else f"{reason}; every start compiles again"
    )
    remedy = "set XDG_CACHE_HOME to a folder that can be written"
    note_problem(f"{complaint}; {consequence}; {remedy}")
    return temporary


@cache
def _usable(folder: Path) -> Path | None:
    reason = _why_not(folder)
    if reason is not None:
        note_problem(f"{folder}: {reason}; what belongs there is not kept")
    return None if reason is not None else folder


def _temporary_folder() -> tuple[Path | None, str]:
    """A folder of this user's alone, or why there is none."""
    try:
        folder = Path(tempfile.gettempdir()) / f"posestream-{os.geteuid()}"
    except OSError as error:  # none of /tmp, /var/tmp, ... can be written
        return None, f"no temporary folder: {error.strerror}"
    reason = _why_not(folder)
    if reason is None:
        # What is kept is executed later, and everybody may make folders there.
        status = folder.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if not is_ours or status.st_mode & 0o022:
            reason = "others can write there"
    return (folder, "") if reason is None else (None, f"{folder}: {reason}")


def _why_not(folder: Path) -> str | None:
    """Make the folder and write into it; the reason where that fails."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_PROBE)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _may_write(folder: Path | None) -> bool:
    """Whether the folder is there to write into or can be made; looks only."""
    while folder is not None and not os.path.exists(folder):  # False also where none may look
        folder = folder.parent
    return folder is not None and os.access(folder, os.W_OK | os.X_OK)
