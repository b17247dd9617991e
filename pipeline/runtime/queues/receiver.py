"""The receiving end of a queue, and how to wait for several at once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal, Self

import zmq

from pipeline.runtime.queues import handles, wire
from pipeline.runtime.queues.connection import (
    Context,
    Link,
    process_context,
    scheme_of,
    set_heartbeat,
)
from pipeline.runtime.queues.credit import (
    BYE,
    END,
    ENVELOPE,
    IDENTITY_BYTES,
    KIND_END,
    KIND_REPLACED,
    NO_CREDIT,
    POLL_MS,
    STATE,
    End,
    Message,
    QueueError,
    raise_if_set,
)
from pipeline.runtime.queues.slots import SlotReader

_STARVED_POLL_MS = 2  # how soon a freed slot is noticed

_log = logging.getLogger(__name__)


class Receiver:
    """The receiving end. Made, used and closed in one thread. See Queue for the arguments.

    Raises:
        ValueError: the endpoint is malformed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        ahead: bool = True,
        slots: int = 6,
        patience_seconds: float | None = None,
        stop: threading.Event | None = None,
        context: Context | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._scheme = scheme_of(endpoint)
        self._ahead = ahead
        self._patience_seconds = patience_seconds
        self._stop = stop or threading.Event()
        self._epoch = 0
        self._taken = 0  # messages; the number of the next one
        self._granted_slot: int | None = None  # None: no credit is out
        self._granted_ns = 0
        self._ended = False
        self._slots = SlotReader(slots) if self._scheme == "ipc" else None
        self._clock = wire.ClockOffset()
        self._socket = (context or process_context()).socket(zmq.DEALER)
        self._link: Link | None = None
        try:
            # The name outlives a broken connection, so the sender knows who comes back.
            self._socket.routing_id = b"r" + os.urandom(IDENTITY_BYTES - 1)
            if self._scheme != "inproc":
                set_heartbeat(self._socket)
                self._link = Link(self._socket, endpoint, other_end="sender")
            self._connect()
            if self._scheme == "inproc":
                self._say_hello()  # ZeroMQ keeps it until the sender binds
        except BaseException:
            self.close()
            raise

    @property
    def connected(self) -> bool:
        """Whether a sender is there, as far as known; always True for inproc."""
        return self._link is None or self._link.absent_since is None

    @property
    def met(self) -> bool:
        """Whether a sender was ever there, as far as noticed; always True for inproc."""
        return self._link is None or self._link.was_there

    def receive(self, *, timeout_seconds: float | None = None) -> Message | Literal[End.END]:
        """The next message, or END once the sender has closed (and ever after).

        Raises:
            Stopped: the stop event is set.
            TimeoutError: nothing came in time.
            QueueError: the sender stayed away, another receiver took over, or it is no sender of
                this program's version.
        """
        receivers = [self]
        result = receive_any(receivers, 1, timeout_seconds=timeout_seconds)
        return END if result is END else result[0]

    def close(self) -> None:
        """Release everything; the sender learns that nobody takes its messages any more."""
        if self._socket.closed:
            return
        if not self._ended and (self._link is None or self.connected):
            self._send_state(BYE)
        if self._link:
            self._link.close()
        self._socket.close(linger=1000)  # for the receipt of END; in the background

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise ValueError(f"cannot connect to {self.endpoint}: {error.strerror}") from None

    def _try_receive(self) -> Message | Literal[End.END] | None:
        """What can be done without waiting; None when nothing has come."""
        if self._ended:
            return END
        result = self._read()
        if result is None and self._link is not None and self._link.update():
            # Messages of the old connection have been read by now; what is still under way on it
            # will come again on this one, and counts only there.
            self._epoch += 1
            self._clock = wire.ClockOffset()  # it may be another sender's machine
            self._say_hello()
        elif result is None and self._granted_slot is None:
            self._grant()
        return result

    def _read(self) -> Message | Literal[End.END] | None:
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            result = self._take([part.buffer for part in parts])
            if result is not None:
                return result

    def _take(self, parts: Sequence[memoryview]) -> Message | Literal[End.END] | None:
        if len(parts[0]) != ENVELOPE.size:
            raise QueueError(f"{self.endpoint}: what answers there is no sender of this program")
        kind, epoch, number, sent_ns = ENVELOPE.unpack(parts[0])
        if kind == KIND_REPLACED:
            raise QueueError(f"{self.endpoint}: another receiver has taken this queue over")
        if (epoch, number) != (self._epoch, self._taken):
            return None
        if kind == KIND_END:
            self._ended = True
            self._taken += 1
            self._send_state(NO_CREDIT)
            return END
        message = self._load(parts[1:], sent_ns)
        if message is None and self._scheme != "inproc":
            return None  # its number stays open: a new sender will use it
        self._taken += 1
        if self._slots is not None and self._granted_slot is not None:
            self._slots.give_back(self._granted_slot)
        self._granted_slot = None
        if not (self._ahead and self._grant()):
            self._send_state(NO_CREDIT)
        return message

    def _load(self, parts: Sequence[memoryview], sent_ns: int) -> Message | None:
        if self._scheme == "inproc":
            return handles.in_transit.take(bytes(parts[0]))
        try:
            message = wire.unpack(parts, open_segment=self._open_segment)
        except FileNotFoundError:
            _log.warning("%s: a message died with its sender", self.endpoint)
            return None
        except wire.WireError as error:
            raise QueueError(f"{self.endpoint}: {error}") from error
        if self._scheme == "tcp":
            shift_ns = self._clock.update(self._granted_ns, sent_ns, time.monotonic_ns())
            message = message.aged(shift_ns)
        return message

    def _open_segment(self, name: str) -> Any:
        assert self._slots is not None
        assert self._granted_slot is not None
        memory = self._slots.open(self._granted_slot, name)
        self._granted_slot = None  # leased now: comes back when the last array into it is gone
        return memory

    def _say_hello(self) -> None:
        """Tell a sender that may be new, or may have missed the last state, where this end is."""
        if self._granted_slot is not None:
            self._send_state(self._granted_slot)
        elif not (self._ahead and self._grant()):
            self._send_state(NO_CREDIT)

    def _grant(self) -> bool:
        if not self.connected:
            return False
        slot = self._slots.reserve() if self._slots is not None else 0
        if slot is None:
            return False
        self._granted_slot = slot
        self._send_state(slot)
        return True

    def _send_state(self, slot: int) -> None:
        self._granted_ns = time.monotonic_ns()
        try:
            self._socket.send(STATE.pack(self._epoch, self._taken, slot), zmq.NOBLOCK)
        except zmq.Again:
            _log.debug("%s: the sender of this process has closed", self.endpoint)

    def _wait_ms(self) -> int:
        is_starved = self.connected and self._granted_slot is None
        return _STARVED_POLL_MS if is_starved else POLL_MS

    def _raise_if_over(self) -> None:
        raise_if_set(self._stop)
        if self._patience_seconds is None or self._link is None or self.connected:
            return
        if self._link.absent_seconds() > self._patience_seconds:
            seconds = f"{self._patience_seconds:g} s"
            raise QueueError(f"{self.endpoint}: no sender for {seconds}; has its process died?")

    def _register(self, poller: zmq.Poller) -> None:
        poller.register(self._socket, zmq.POLLIN)
        if self._link is not None:
            poller.register(self._link.monitor, zmq.POLLIN)


def receive_any(
    receivers: list[Receiver], max_messages: int, *, timeout_seconds: float | None = None
) -> list[Message] | Literal[End.END]:
    """Wait until any of the queues has a message, then take at most one from each that is ready.

    The list is kept in the order of who is next: those served go to its end, so with more queues
    than `max_messages` each gets its turn; those that ended leave it.

    Args:
        receivers: changed in place, as said; all of this thread.
    Returns:
        1 to max_messages messages, or END when every queue has ended.

    Raises:
        Stopped, TimeoutError, QueueError: as Receiver.receive.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while receivers:
        messages = _take_turns(receivers, max_messages)
        if messages:
            return messages
        if not receivers:
            break
        if deadline is not None and time.monotonic() >= deadline:
            names = ", ".join(receiver.endpoint for receiver in receivers)
            raise TimeoutError(f"no message from {names} within {timeout_seconds:g} s")
        poller = zmq.Poller()
        for receiver in receivers:
            receiver._register(poller)
        wait_ms = min(receiver._wait_ms() for receiver in receivers)
        if deadline is not None:
            wait_ms = min(wait_ms, max(0, round((deadline - time.monotonic()) * 1e3)))
        poller.poll(wait_ms)
    return END


def _take_turns(receivers: list[Receiver], max_messages: int) -> list[Message]:
    messages: list[Message] = []
    for receiver in list(receivers):
        receiver._raise_if_over()
        if len(messages) == max_messages:
            break
        result = receiver._try_receive()
        if result is None:
            continue
        receivers.remove(receiver)
        if result is not END:
            messages.append(result)
            receivers.append(receiver)
    return messages
