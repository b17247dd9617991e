"""A queue between two stages: what both ends agree on, and what it promises.

The receiver grants one message at a time, ahead of its need, and the sender answers with its next
message (policy `wait`: nothing is lost, files) or with its newest (`drop_oldest`: live). Memory is
bounded by one message in flight, and so is the age of what arrives. Neither PUSH/PULL nor CONFLATE
can do this: a full PUSH keeps the oldest message, and CONFLATE destroys multipart messages.

The endpoint alone decides how a message crosses:

    inproc://name     a handle to the object itself; any type; nothing is copied
    ipc://path        Frame and Poses; large arrays through slots of shared memory (slots.py)
    tcp://host:port   Frame and Poses; everything through the socket; capture times are moved to
                      the receiver's clock. No encryption, no login: for networks you trust.

When an end goes away (ipc and tcp; either end may start first, and both log what they see):

- The receiver died: the sender keeps the message in flight until the receiver has taken it, and a
  new receiver gets it (or, with `drop_oldest`, the newest). So at most the message that the dead
  one was working on is lost; if it died within the instant of taking it, that one comes twice.
- A second receiver at the same endpoint takes over, and the first gets a QueueError.
- The sender died: the message in flight may be lost. The receiver waits for a new sender, for
  ever or for `patience_seconds`, then raises QueueError.
- The connection broke: the same two go on without loss when it is back.
A sender looks at its socket only inside send() and close(); a Sender with `drop_oldest` has a
thread of its own for that.

Messages are shared, not copied: nobody writes into one that came through a queue.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import get_args

from pipeline.runtime.queues.connection import scheme_of
from pipeline.runtime.queues.credit import OnDrop, Policy
from pipeline.runtime.queues.receiver import Receiver
from pipeline.runtime.queues.sender import Sender


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue on paper: what both ends agree on. Each stage makes its end in its own thread."""

    endpoint: str
    """inproc://name, ipc://path or tcp://host:port; the sender binds, the receiver connects."""
    policy: Policy = "wait"
    """wait: send() blocks until the receiver is ready. drop_oldest: never; the newest wins."""
    pixels: bool = True
    """False: over ipc and tcp the pixels of a frame stay behind."""
    ahead: bool = True
    """True: the next message is asked for when one is taken, and so is there when needed. False:
    it is asked for in receive(), one round trip later, and so is the newest possible. (Inproc,
    drop_oldest finds the newest either way.)"""
    slots: int = 6
    """ipc: frames that the receiver's process may hold at a time; with all held, none comes."""
    patience_seconds: float | None = None
    """ipc and tcp: QueueError when no sender has been there for so long; None waits for ever."""

    def __post_init__(self) -> None:
        scheme_of(self.endpoint)
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy must be wait or drop_oldest, got {self.policy!r}")
        if self.slots < 2:
            raise ValueError(f"slots must be 2 or more (one comes, one is read), got {self.slots}")

    def sender(
        self, *, stop: threading.Event | None = None, on_drop: OnDrop | None = None
    ) -> Sender:
        """This queue's sending end; the calling thread owns it."""
        return Sender(
            self.endpoint, policy=self.policy, pixels=self.pixels, stop=stop, on_drop=on_drop
        )

    def receiver(self, *, stop: threading.Event | None = None) -> Receiver:
        """This queue's receiving end; the calling thread owns it."""
        return Receiver(
            self.endpoint,
            ahead=self.ahead,
            slots=self.slots,
            patience_seconds=self.patience_seconds,
            stop=stop,
        )
