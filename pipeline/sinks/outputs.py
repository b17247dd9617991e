"""Where sinks may write: paths are checked before any work is done, sources get their own files.

A file is claimed when the stream is built and changed when the first frame comes: a start that is
refused costs nobody a file. Knows nothing of what is written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import struct
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

_log = logging.getLogger(__name__)

_LOCKED_BYTE = 1 << 62  # far behind all data


def check_output_file(path: Path, *, suffixes: Collection[str] = ()) -> None:
    """Make sure that a file can be written, without touching one that is there.

    Args:
        path: the file.
        suffixes: those accepted, with their dot; empty accepts any.
    Raises:
        ValueError: one line that says what is wrong with the path.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        expected = " or ".join(sorted(suffixes))
        raise ValueError(f"{path}: file name must end in {expected}, got {path.suffix!r}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    check_output_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} exists and cannot be written; choose another name")


def check_output_folder(folder: Path) -> None:
    """Make sure that files can be made in a folder that exists, else ValueError."""
    if not folder.is_dir():
        raise ValueError(f"folder {folder} does not exist; make it first or choose another")
    try:
        # Really making a file is the one test that read-only disks and permissions both fail.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be written: {error.strerror}") from None


class Claim:
    """A file that is this stream's alone to write, from now until close(). Nothing in it changes.

    A new file is made, for only what is there can be locked, and removed if it stays empty. Devices
    and pipes are for everybody. The lock is the kernel's: it ends with the process, killed or not.
    """

    def __init__(self, path: Path) -> None:
        """ValueError where another stream has claimed it."""
        self._path = path
        self._is_new = not path.exists()
        self._fd: int | None = None
        if not self._is_new and not path.is_file():
            return
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}") from None
        if not _lock(self._fd):
            self._release()
            raise ValueError(
                f"{path} is being written by another stream; stop that one or choose another name"
            )

    def close(self) -> None:
        """Let others write it. May be called again."""
        if self._fd is None:
            return
        with suppress(OSError):
            if self._is_new and self._path.stat().st_size == 0:
                self._path.unlink()
        self._release()

    def _release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None


class Claims:
    """The files of a sink whose names are not all known at the start."""

    def __init__(self) -> None:
        self._of_path: dict[Path, Claim] = {}

    def take(self, path: Path) -> None:
        """Claim it, if that is not done already; see Claim."""
        if path not in self._of_path:
            self._of_path[path] = Claim(path)

    def close(self) -> None:
        for claim in self._of_path.values():
            claim.close()


def _lock(fd: int) -> bool:
    """Lock an open file as long as it stays open; False where somebody else has."""
    try:
        if sys.platform == "linux":
            # struct flock. Not flock(), which locks all of the file: a network drive (SMB) would
            # then refuse what comes through any other opening, such as FFmpeg's.
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCKED_BYTE, 1, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a file system without locks: nobody can be kept out
    return True


def holds_something(path: Path) -> bool:
    """Whether there is a file with anything in it."""
    return path.is_file() and path.stat().st_size > 0


def timed_path(path: Path, unix_s: float) -> Path:
    """poses.mp4 -> poses-20261122T035707.123Z.mp4, or with -2, -3, ... where that is taken."""
    moment = datetime.fromtimestamp(unix_s, UTC)
    stem = f"{path.stem}-{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"
    named = path.with_name(f"{stem}{path.suffix}")
    numbered = (path.with_name(f"{stem}-{number}{path.suffix}") for number in count(2))
    return named if not named.exists() else next(p for p in numbered if not p.exists())


def beside(path: Path) -> Path:
    """Where to write, so that what is at the path stays; says so."""
    free = timed_path(path, time.time())
    _log.info("%s holds the poses of an earlier run and is kept; these go to %s", path, free)
    return free


def file_word(source: str) -> str:
    """A source's name as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", source)


class OutputNames:
    """Which source's output goes where.

    One source has the path that the user gave. With several (`per_source`), and for any source
    beyond the first, the source's name is put before the suffix: poses.mp4 -> poses-cam1.mp4.
    A source that has gone and comes back gets another path, poses-cam1-2.mp4.
    """

    def __init__(self, path: Path, *, per_source: bool) -> None:
        self._path = path
        self._per_source = per_source
        self._taken: dict[Path, str | None] = {}  # None: of a source that has gone

    def for_source(self, source: str) -> Path:
        """The path for a source not asked for before; ValueError where two would share one."""
        if self._per_source or self._taken:
            name = f"{self._path.stem}-{file_word(source)}{self._path.suffix}"
            path = self._unused(self._path.with_name(name))
        else:
            path = self._path
        if path in self._taken:
            raise ValueError(
                f"sources {self._taken[path]!r} and {source!r} would both write {path}; "
                "give them names that differ in letters or digits"
            )
        self._taken[path] = source
        return path

    def forget_source(self, source: str) -> None:
        """The source has gone; its output stays, and will not be given to another."""
        for path, owner in self._taken.items():
            if owner == source:
                self._taken[path] = None

    def _unused(self, path: Path) -> Path:
        """The path, or with -2, -3, ... where it is of a source that has gone."""
        numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
        candidates = chain([path], numbered)
        return next(p for p in candidates if self._taken.get(p, "") is not None)
