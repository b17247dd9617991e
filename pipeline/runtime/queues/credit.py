"""What the two ends of a queue say to each other, and how a queue ends.

    sender (ROUTER, binds)                                receiver (DEALER, connects)
      <------- State:    "I have taken 41 messages; the next may come, into slot 2" -----
      -------- Envelope: "message 41" and its parts (wire.py, handles.py) -------------->
      <------- State:    "I have taken 42; ..." -------------- is also the receipt of 41

Credit is the permission to send one message. A receiver gives it by naming the slot of shared
memory to write into (slots.py); over tcp and inproc, where there are no slots, that is 0.
An epoch is one connection of one receiver; a number counts the messages that receiver has taken.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

Policy = Literal["wait", "drop_oldest"]
Message: TypeAlias = Any
"""inproc: any object but None; ipc and tcp: Frame or Poses."""
OnDrop = Callable[[Message, str], None]
"""Called with a message that will not arrive, and the reason: newer, lost or undelivered."""


class End(Enum):
    """The type of END, the message after the last one."""

    END = "end of stream"


END: Final = End.END


class Stopped(Exception):  # noqa: N818 (not an error: it is how a stage learns that all is over)
    """The stream's stop event was set while (or before) a queue waited."""


class QueueError(Exception):
    """The other end of a queue is gone for good, or is not one of ours."""


POLL_MS = 50  # how soon a stop is noticed; data wakes a socket at once
IDENTITY_BYTES = 9  # of a receiver; the identities that ZeroMQ gives by itself have 5

ENVELOPE = struct.Struct("!cQQQ")
"""Sender to receiver: kind, epoch, number, sent_ns."""
KIND_MESSAGE, KIND_END, KIND_REPLACED = b"M", b"E", b"R"

STATE = struct.Struct("!QQq")
"""Receiver to sender: epoch, taken, slot."""
NO_CREDIT, BYE = -1, -2  # in the place of a slot


def raise_if_set(stop: threading.Event) -> None:
    """Stopped, if the stop event is set."""
    if stop.is_set():
        raise Stopped("the stream was stopped")
