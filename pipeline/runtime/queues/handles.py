"""Objects on their way through an inproc queue: a handle of 8 bytes crosses instead of each."""

from __future__ import annotations

import itertools
import threading

from pipeline.runtime.queues.credit import Message


class Handles:
    """Objects by their handle, from send() until they are received. Used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._objects: dict[bytes, Message] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, message: Message) -> bytes:
        """A handle for this object."""
        with self._lock:
            key = next(self._keys).to_bytes(8, "big")
            self._objects[key] = message
        return key

    def swap(self, key: bytes, message: Message) -> Message | None:
        """Another object in its place; the former one, or None where it was taken before."""
        with self._lock:
            former = self._objects.get(key)
            if former is not None:
                self._objects[key] = message
            return former

    def take(self, key: bytes) -> Message | None:
        """The object; None where it was taken before, or its sender has aborted."""
        with self._lock:
            return self._objects.pop(key, None)


in_transit = Handles()
"""Of all inproc queues of this process."""
