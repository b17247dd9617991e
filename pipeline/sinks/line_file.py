"""A file of whole lines that grows at its end, readable at every moment.

Each write is one system call, so a kill leaves whole lines; one that finds no room leaves none of
its lines. Knows nothing of what the lines say.
"""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path

from pipeline.sinks.outputs import Claim, check_output_file, holds_something


class LineFile:
    """The file, claimed at once and opened with the first line."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        """
        Args:
            path: the file.
            keep: what is in it stays, and lines are added.
        Raises:
            ValueError: it cannot be written, or is by another stream.
        """
        check_output_file(path)
        self._path = path
        self._keep = keep
        self._claim = Claim(path)
        self._file: FileIO | None = None
        self._size = 0

    def first_line(self) -> bytes:
        """Of what is kept and added to; empty where there is nothing."""
        if not self._keep or not holds_something(self._path):
            return b""
        with self._path.open("rb") as file:
            return file.readline()

    def write(self, lines: bytes) -> None:
        """Write whole lines; OSError: none of them is in the file."""
        file = self._file = self._file or self._open()
        written = file.write(lines)
        if written < len(lines):  # a disk that is nearly full takes a part
            os.truncate(self._path, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def close(self) -> None:
        """May be called again."""
        if self._file is not None:
            self._file.close()
        self._claim.close()

    def _open(self) -> FileIO:
        is_spoilt = self._keep and not _ends_with_a_line(self._path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if self._keep else os.O_TRUNC)
        file = FileIO(os.open(self._path, flags, 0o666), "ab")
        if is_spoilt:
            file.write(b"\n")
        self._size = os.fstat(file.fileno()).st_size
        return file


def _ends_with_a_line(path: Path) -> bool:
    """False where the machine died in the last line of an earlier run."""
    if not holds_something(path):
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
