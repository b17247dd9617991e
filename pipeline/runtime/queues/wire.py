"""A message as bytes for another process: a header (msgpack), then its arrays. No pickle.

    [ header | small arrays ... | large arrays ... ]      tcp: every array travels as a part
    [ header | small arrays ... ]  + a slot               ipc: large arrays stay in shared memory

Small arrays always travel as parts, so that whoever keeps a person's keypoints does not keep the
slot that holds the picture. Only Frame and Poses cross (see messages.py). This file knows nothing
of sockets, and of shared memory only that there are two functions for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import numpy as np

from pipeline.messages import Frame, Poses

VERSION = 2
"""Changes with the meaning of the header; both ends of a queue must have the same."""
INLINE_BYTES = 1 << 16
"""Arrays up to this size are copied through the socket."""

Write = Callable[[Sequence[np.ndarray]], tuple[str, list[int]]]
"""Arrays into shared memory -> the segment's name and each array's offset in bytes."""
Open = Callable[[str], np.ndarray]
"""A segment's name -> its memory, (bytes,) uint8."""

_TYPES: dict[str, type[Frame] | type[Poses]] = {"Frame": Frame, "Poses": Poses}


class WireError(Exception):
    """Bytes that are no message of this version: the two ends do not fit together."""


def pack(message: Frame | Poses, *, write: Write | None = None) -> list[bytes | np.ndarray]:
    """The message's parts; large arrays go through `write`, where there is one.

    Raises:
        ValueError: the message is neither Frame nor Poses.
    """
    kind = type(message).__name__
    if kind not in _TYPES:
        known = " and ".join(_TYPES)
        raise ValueError(f"only {known} can cross to another process, got {kind}; cut elsewhere")
    fields, arrays = message.to_parts()
    large = [array for array in arrays if array.nbytes > INLINE_BYTES] if write else []
    segment, offsets = write(large) if write and large else (None, [])
    remaining = iter(offsets)
    places = [
        next(remaining) if segment and array.nbytes > INLINE_BYTES else None for array in arrays
    ]
    header = {
        "version": VERSION,
        "type": kind,
        "fields": fields,
        "arrays": [
            (array.dtype.str, array.shape, place)
            for array, place in zip(arrays, places, strict=True)
        ],
        "segment": segment,
    }
    parts: list[bytes | np.ndarray] = [msgpack.packb(header)]
    for array, place in zip(arrays, places, strict=True):
        if place is None:
            small = array.nbytes <= INLINE_BYTES
            parts.append(array.tobytes() if small else np.ascontiguousarray(array))
    return parts


def unpack(parts: Sequence[memoryview], *, open_segment: Open | None = None) -> Frame | Poses:
    """The message of these parts; its arrays look into the parts or the segment, read-only.

    Raises:
        WireError: not a message, or one of another version.
        FileNotFoundError: the segment has gone, and its sender with it.
    """
    try:
        header = msgpack.unpackb(parts[0])
        version = header["version"]
    except (msgpack.UnpackException, ValueError, KeyError, TypeError, IndexError) as error:
        raise WireError(f"received bytes that are no message of this program: {error!r}") from error
    if version != VERSION:
        raise WireError(f"the other end speaks version {version}, this one {VERSION}; update both")
    memory = open_segment(header["segment"]) if header["segment"] and open_segment else None
    try:
        arrays = _arrays(header["arrays"], parts[1:], memory)
        return _TYPES[header["type"]].from_parts(header["fields"], arrays)
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise WireError(f"received a message that does not fit its header: {error!r}") from error


def _arrays(
    layout: list[Any], parts: Sequence[memoryview], memory: np.ndarray | None
) -> list[np.ndarray]:
    remaining = iter(parts)
    arrays = []
    for name, shape, place in layout:
        dtype = np.dtype(name)
        # NumPy would take bytes for pointers to objects, and read before the buffer's start.
        if dtype.kind not in "biuf" or (place is not None and place < 0):
            raise ValueError(f"dtype {name!r} at {place}")
        if place is None:
            array = np.ndarray(shape, dtype, buffer=next(remaining))
        elif memory is None:
            raise ValueError("it names a place in shared memory, but no segment")
        else:
            array = np.ndarray(shape, dtype, buffer=memory, offset=place)
        array.flags.writeable = False
        arrays.append(array)
    return arrays


class ClockOffset:
    """This machine's monotonic clock minus the sender's, from causality alone.

    A message is sent after its credit was granted and before it is received, so

        granted - sent  <=  offset  <=  received - sent

    and the narrowest bounds of the last messages enclose it: the left one is tight when the
    receiver is the slower end, the right one when the sender is. Plainly taking received - sent
    would hide the time for which a message waited in the receiver's socket.
    """

    def __init__(self) -> None:
        self._lower: deque[int] = deque(maxlen=64)  # few enough that clocks do not drift apart
        self._upper: deque[int] = deque(maxlen=64)

    def update(self, granted_ns: int, sent_ns: int, received_ns: int) -> int:
        """Take one more message into account; the offset in nanoseconds."""
        self._lower.append(granted_ns - sent_ns)
        self._upper.append(received_ns - sent_ns)
        return (max(self._lower) + min(self._upper)) // 2
