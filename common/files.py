"""Files that appear whole or not at all, however the writer ends."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

_ORDINARY_MODE = 0o666  # less what the user's umask takes away


def write_atomically(
    path: Path,
    content: bytes | Callable[[IO[bytes]], object],
    *,
    mode: int = _ORDINARY_MODE,
    durable: bool = False,
    only_writer: bool = False,
) -> None:
    """Write beside the path, then rename: readers see the old file or the whole new one.

    What was written is removed where that fails. Nothing is left behind but by a killed process.

    Args:
        content: the bytes, or a function that writes them into the open file.
        mode: permissions from the first moment on; the umask is applied to them.
        durable: wait until the disk has it, so that it survives a power cut as well.
        only_writer: nobody else writes this file. What a killed process left behind is then
            overwritten, and does not add up.

    Raises:
        OSError: the file cannot be written.
    """
    unique = "" if only_writer else f".{secrets.token_hex(4)}"
    unfinished = path.with_name(f"{path.name}{unique}.part")
    if only_writer:
        unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make sure that the new name is there after a power cut, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
