"""Pixels between two processes of one machine: slots of shared memory, written once, read in place.

    sender                                     receiver (owns the list of free slots)
    SlotWriter.write(2, arrays) --- name --->  SlotReader.open(2, name) -> memory, read-only
    slot 2 may be written again <-- credit --  ... as soon as the last view of that memory is gone

A slot is one segment, made by the writer and replaced by a larger one when a message does not fit.
Linux keeps POSIX shared memory as files in /dev/shm, and they are mapped here directly. Python's
multiprocessing.shared_memory would unlink, at its exit, segments that a mere reader had opened
(before Python 3.13), cannot be closed while arrays still look into it, and reserves nothing: with a
full /dev/shm (64 MB in a plain Docker container) it ends in SIGBUS, where this file raises.

This file knows nothing of sockets, credit or messages.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import secrets
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FOLDER = Path("/dev/shm")
_ALIGNMENT = 64  # a cache line, so that rows copied by different cores never share one
_GRANULE = 1 << 16  # segments grow in steps of 64 KiB

_log = logging.getLogger(__name__)


class _Segment(NamedTuple):
    name: str
    memory: mmap.mmap


class SlotWriter:
    """The sender's slots: makes, fills, grows and unlinks segments. For one thread."""

    def __init__(self) -> None:
        if not _FOLDER.is_dir():
            raise ValueError(f"ipc:// keeps pixels in {_FOLDER}, which is not there; use tcp://")
        sweep_leftovers()
        self._segments: dict[int, _Segment] = {}

    def write(self, slot: int, arrays: Sequence[np.ndarray]) -> tuple[str, list[int]]:
        """Copy the arrays, strided or not, into a slot that no reader looks at.

        Returns:
            The segment's name and each array's offset in bytes.

        Raises:
            OSError: /dev/shm has no room.
        """
        offsets = []
        end = 0
        for array in arrays:
            offsets.append(end)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        segment = self._segment(slot, end)
        for offset, array in zip(offsets, arrays, strict=True):
            place = np.ndarray(array.shape, array.dtype, buffer=segment.memory, offset=offset)
            np.copyto(place, array)
        return segment.name, offsets

    def close(self) -> None:
        """Unlink all segments; readers that have them mapped keep them until they let go."""
        for segment in self._segments.values():
            _unlink(segment.name)
        self._segments.clear()

    def _segment(self, slot: int, size: int) -> _Segment:
        segment = self._segments.get(slot)
        if segment is not None and len(segment.memory) >= size:
            return segment
        if segment is not None:
            _unlink(segment.name)
            del self._segments[slot]
        self._segments[slot] = _create(-(-size // _GRANULE) * _GRANULE)
        return self._segments[slot]


class SlotReader:
    """The receiver's end: which slots are free, and the memory of those that are not.

    A slot is free, granted (`reserve`, until `give_back` or `open`) or leased (from `open` until
    the last array that looks into it is garbage-collected, by whichever thread).
    """

    def __init__(self, slots: int) -> None:
        self._free = deque(range(slots))
        self._mapped: dict[int, _Segment] = {}

    def reserve(self) -> int | None:
        """A free slot for the sender to write into; None while all are held."""
        return self._free.popleft() if self._free else None

    def give_back(self, slot: int) -> None:
        """The granted slot was not needed."""
        self._free.append(slot)

    def open(self, slot: int, name: str) -> np.ndarray:
        """The segment that the sender wrote into a granted slot, as (bytes,) uint8, read-only.

        Raises:
            FileNotFoundError: the segment has gone, and its sender with it.
        """
        segment = self._mapped.get(slot)
        if segment is None or segment.name != name:
            segment = self._mapped[slot] = _attach(name)
        owner = np.frombuffer(segment.memory, np.uint8)
        # The callback must know only the list: it runs in any thread, perhaps long after the
        # receiver has closed. deque.append is atomic, so it needs no lock that could be held.
        weakref.finalize(owner, self._free.append, slot).atexit = False
        return owner


def sweep_leftovers() -> None:
    """Unlink segments whose process died without closing (SIGKILL, power of the container cut).

    Names carry the process and its PID namespace: containers may share /dev/shm (`--ipc=host`)
    without sharing process numbers, and what looks dead from here may live there.
    """
    for path in _FOLDER.glob("posestream-*-*-*"):
        _, pid, namespace, _ = path.name.split("-", 3)
        if namespace == _pid_namespace() and pid.isdigit() and not _is_alive(int(pid)):
            _unlink(path.name)
            _log.info("removed %s, left behind by a process that was killed", path)


def _create(size: int) -> _Segment:
    name = f"posestream-{os.getpid()}-{_pid_namespace()}-{secrets.token_hex(6)}"
    file = os.open(_FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(file, 0, size)  # raises now, instead of SIGBUS at the first write
        return _Segment(name, mmap.mmap(file, size))
    except OSError as error:
        _unlink(name)
        if error.errno != errno.ENOSPC:
            raise
        needed = f"{_FOLDER} has no room for another slot of {size / 1e6:.1f} MB"
        remedy = "enlarge it (docker run --shm-size=1g), use fewer slots, or send without pixels"
        raise OSError(errno.ENOSPC, f"{needed}; {remedy}") from error
    finally:
        os.close(file)


def _attach(name: str) -> _Segment:
    if not name.startswith("posestream-") or "/" in name:
        raise ValueError(f"a segment's name must be posestream-..., got {name!r}")
    file = os.open(_FOLDER / name, os.O_RDONLY)
    try:
        return _Segment(name, mmap.mmap(file, 0, prot=mmap.PROT_READ))
    finally:
        os.close(file)


def _unlink(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (_FOLDER / name).unlink()


def _pid_namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
