"""Where sinks may write: paths are checked before any work is done, sources get their own files.

Knows nothing of what is written.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection
from itertools import chain, count
from pathlib import Path


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
