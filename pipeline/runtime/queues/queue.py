"""Queues between stages: two ZeroMQ sockets and credit. Inside, only this file imports zmq.

    Sender (ROUTER, binds)                               Receiver (DEALER, connects)
      <----------- "I have taken 41 messages; the next may come (into slot 2)" ---- credit
      ----------- message 41: a handle | header + shared memory | header + buffers ---->
      <----------- "I have taken 42; ..." ------------------- is also the receipt of 41

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
This file knows nothing of stages, and of messages only what wire.py knows.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket as sockets
import stat
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import zmq
from zmq.utils.monitor import recv_monitor_message

from common.addresses import why_not_here
from pipeline.runtime.queues import wire
from pipeline.runtime.queues.slots import SlotReader, SlotWriter

Policy = Literal["wait", "drop_oldest"]
Message: TypeAlias = Any
"""inproc: any object but None; ipc and tcp: Frame or Poses."""
OnDrop = Callable[[Message, str], None]
"""Called with a message that will not arrive, and the reason: newer, lost or undelivered."""


class End(Enum):
    """The type of END, the message after the last one."""

    END = "end of stream"


END: Final = End.END


class Stopped(Exception):  # noqa: N818 (not an error: it is how a stage hears that all is over)
    """The stream's stop event was set while (or before) a queue waited."""


class QueueError(Exception):
    """The other end of a queue is gone for good, or is not one of ours."""


_POLL_MS = 50  # how soon a stop is noticed; data wakes a socket at once
_STARVED_POLL_MS = 2  # how soon a freed slot is noticed
_CLOSE_SECONDS = 5.0
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 2000, 10000  # a frozen or unplugged peer is noticed
_BIND_SECONDS = 0.5  # ZeroMQ releases the address of a closed socket a moment later

# sender -> receiver: kind, epoch, number, sent_ns. receiver -> sender: epoch, taken, slot.
# An epoch is one connection of one receiver; number counts the messages that receiver has taken.
_ENVELOPE = struct.Struct("!cQQQ")
_STATE = struct.Struct("!QQq")
_MESSAGE, _END, _REPLACED = b"M", b"E", b"R"
_NO_CREDIT, _BYE = -1, -2  # in the place of a slot
_IDENTITY_BYTES = 9  # of a receiver; those that ZeroMQ gives by itself have 5

_log = logging.getLogger(__name__)


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
        _scheme(self.endpoint)
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


class Sender:
    """The sending end. Made, used and closed in one thread.

    In a `with` block, leaving normally is close() and leaving by an exception is abort().

    Args:
        endpoint: where to bind; a free tcp port is `tcp://127.0.0.1:*`, see `self.endpoint`.
        policy: `wait` or `drop_oldest`.
        pixels: False sends frames without their pixels over ipc and tcp.
        stop: ends every wait with Stopped; share one event among all stages of a stream.
        on_drop: told of every message that will not arrive. Called by the thread that sends, or
            by the sender's own.
        context: another ZeroMQ context than the process's.

    Raises:
        ValueError: the endpoint is malformed or in use.
    """

    endpoint: str
    """Where it is bound."""

    def __init__(
        self,
        endpoint: str,
        *,
        policy: Policy = "wait",
        pixels: bool = True,
        stop: threading.Event | None = None,
        on_drop: OnDrop | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._stop = stop or threading.Event()
        self._drops = _Drops(on_drop)
        self._closed = False
        self._outlet: _Outlet | None = None
        self._pump: _Pump | None = None
        context = context or process_context()
        if policy == "drop_oldest":
            self._pump = _Pump(
                endpoint, pixels=pixels, context=context, drops=self._drops, stop=self._stop
            )
            self.endpoint = self._pump.open()
        elif policy == "wait":
            self._outlet = _Outlet(endpoint, pixels=pixels, context=context, drops=self._drops)
            self.endpoint = self._outlet.endpoint
        else:
            raise ValueError(f"policy must be wait or drop_oldest, got {policy!r}")

    @property
    def met(self) -> bool:
        """Whether a receiver was ever there, as far as noticed; always True for inproc."""
        outlet = self._pump.outlet if self._pump else self._outlet
        return outlet is None or outlet.met

    @property
    def dropped(self) -> int:
        """Messages that will not arrive, so far."""
        return self._drops.count

    @property
    def depth(self) -> int:
        """Messages waiting (0 or 1) and in flight (0 or 1)."""
        if self._pump:
            return self._pump.depth
        return self._outlet.depth if self._outlet else 0

    def send(self, message: Message) -> None:
        """Hand a message over: blocks until the receiver wants one (wait) or never (drop_oldest).

        Raises:
            Stopped: the stop event is set.
            ValueError: the message cannot cross to another process.
        """
        if self._closed:
            raise ValueError(f"{self.endpoint}: send() after close()")
        _raise_if_set(self._stop)
        if self._pump:
            self._pump.put(message)
            return
        self.wait_until_wanted()
        assert self._outlet is not None
        self._outlet.deliver(message)

    def wait_until_wanted(self) -> None:
        """Block until a message could leave at once (wait), or not at all (drop_oldest).

        Raises:
            Stopped: the stop event is set.
        """
        while self._outlet is not None and not self._outlet.has_credit:
            _raise_if_set(self._stop)
            self._outlet.service(_POLL_MS)

    def close(self, *, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """Deliver the last message and END, then release everything.

        Waits as long as a receiver is there, and at most `timeout_seconds` while none is.

        Raises:
            Stopped: the stop event was set first; everything is released all the same.
        """
        if self._closed:
            return
        self._closed = True
        if self._pump:
            self._pump.finish(timeout_seconds)
            return
        assert self._outlet is not None
        try:
            self._outlet.finish(self._stop, timeout_seconds)
        finally:
            self._outlet.close()

    def abort(self) -> None:
        """Release everything at once, without END. After close() there is nothing left to do."""
        if self._closed:
            return
        self._closed = True
        if self._pump:
            self._pump.abort()
        if self._outlet:
            self._outlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
        else:
            self.abort()


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
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._scheme = _scheme(endpoint)
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
        self._link: _Link | None = None
        try:
            # The name outlives a broken connection, so the sender knows who comes back.
            self._socket.routing_id = b"r" + os.urandom(_IDENTITY_BYTES - 1)
            if self._scheme != "inproc":
                _set_heartbeat(self._socket)
                self._link = _Link(self._socket, endpoint, other_end="sender")
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
        """Release everything; tells the sender that nobody takes its messages any more."""
        if self._socket.closed:
            return
        if not self._ended and (self._link is None or self.connected):
            self._tell(_BYE)
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
        if len(parts[0]) != _ENVELOPE.size:
            raise QueueError(f"{self.endpoint}: what answers there is no sender of this program")
        kind, epoch, number, sent_ns = _ENVELOPE.unpack(parts[0])
        if kind == _REPLACED:
            raise QueueError(f"{self.endpoint}: another receiver has taken this queue over")
        if (epoch, number) != (self._epoch, self._taken):
            return None
        if kind == _END:
            self._ended = True
            self._taken += 1
            self._tell(_NO_CREDIT)
            return END
        message = self._load(parts[1:], sent_ns)
        if message is None and self._scheme != "inproc":
            return None  # its number stays open: a new sender will use it
        self._taken += 1
        if self._slots is not None and self._granted_slot is not None:
            self._slots.give_back(self._granted_slot)
        self._granted_slot = None
        if not (self._ahead and self._grant()):
            self._tell(_NO_CREDIT)
        return message

    def _load(self, parts: Sequence[memoryview], sent_ns: int) -> Message | None:
        if self._scheme == "inproc":
            return _handles.take(bytes(parts[0]))
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
            self._tell(self._granted_slot)
        elif not (self._ahead and self._grant()):
            self._tell(_NO_CREDIT)

    def _grant(self) -> bool:
        if not self.connected:
            return False
        slot = self._slots.reserve() if self._slots is not None else 0
        if slot is None:
            return False
        self._granted_slot = slot
        self._tell(slot)
        return True

    def _tell(self, slot: int) -> None:
        self._granted_ns = time.monotonic_ns()
        try:
            self._socket.send(_STATE.pack(self._epoch, self._taken, slot), zmq.NOBLOCK)
        except zmq.Again:
            _log.debug("%s: the sender of this process has closed", self.endpoint)

    def _wait_ms(self) -> int:
        is_starved = self.connected and self._granted_slot is None
        return _STARVED_POLL_MS if is_starved else _POLL_MS

    def _raise_if_over(self) -> None:
        _raise_if_set(self._stop)
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


class _Drops:
    """Counts what will not arrive."""

    def __init__(self, on_drop: OnDrop | None) -> None:
        self.count = 0
        self._on_drop = on_drop
        self._lock = threading.Lock()

    def add(self, message: Message, reason: str) -> None:
        with self._lock:
            self.count += 1
        if self._on_drop:
            self._on_drop(message, reason)


@dataclass(slots=True)
class _InFlight:
    """What the receiver has not yet confirmed."""

    number: int
    is_end: bool
    message: Message | None
    """None for END; and for inproc, where it is kept only until it is taken (see _Handles)."""
    parts: list[Any] | None
    """As it crosses; None: to be packed, anew for another receiver."""


class _Outlet:
    """The sender's socket and what it knows of the receiver. Belongs to the thread that makes it.

    `newer`, where given, yields a message that should replace one whose receiver went away.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        pixels: bool,
        context: zmq.Context[zmq.Socket[bytes]],
        drops: _Drops,
        newer: Callable[[], Message | None] | None = None,
    ) -> None:
        self._scheme = _scheme(endpoint)
        self.endpoint = endpoint
        self._pixels = pixels
        self._drops = drops
        self._newer = newer
        self._peer: bytes | None = None
        self._retired: set[bytes] = set()
        self._epoch = 0
        self._taken = 0  # by the receiver
        self._credit: int | None = None  # the slot to write into
        self._in_flight: _InFlight | None = None
        self._slots = SlotWriter() if self._scheme == "ipc" else None
        self._absent_since = time.monotonic()  # for inproc, where no monitor tells
        self._link: _Link | None = None
        self._socket = context.socket(zmq.ROUTER)
        try:
            self._socket.router_mandatory = True  # a receiver that is gone is an error, not silence
            self._socket.router_handover = True  # a connection made anew replaces the broken one
            if self._scheme != "inproc":
                _set_heartbeat(self._socket)
                self._link = _Link(self._socket, endpoint, other_end="receiver")
            self.endpoint = _bind(self._socket, endpoint)
        except BaseException:
            self.close()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        if self._link is not None:
            self._poller.register(self._link.monitor, zmq.POLLIN)

    @property
    def has_credit(self) -> bool:
        return self._credit is not None

    @property
    def depth(self) -> int:
        return int(self._in_flight is not None)

    @property
    def met(self) -> bool:
        return self._link is None or self._link.was_there

    def absent_seconds(self) -> float:
        """How long no receiver has been there; 0 while one is."""
        if self._link is not None:
            return self._link.absent_seconds()
        return 0.0 if self._peer is not None else time.monotonic() - self._absent_since

    def service(self, timeout_ms: int) -> None:
        """Wait for the receiver's word and act on it."""
        if not self._poller.poll(timeout_ms):
            return
        while True:
            try:
                identity, *rest = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if len(rest) != 1 or len(rest[0]) != _STATE.size:
                _log.warning("%s: ignored a peer that is no receiver of ours", self.endpoint)
            elif len(identity) == _IDENTITY_BYTES:
                self._heed(identity, *_STATE.unpack(rest[0]))
            # Else it is the rest of a broken connection, which ZeroMQ renames when the receiver
            # comes back; what it said there, it has said again.
        if self._link is not None:
            self._link.update()

    @property
    def handle(self) -> bytes | None:
        """Of the message in flight, where the queue is inproc."""
        flight = self._in_flight
        if self._scheme != "inproc" or flight is None or not flight.parts:
            return None
        return bytes(flight.parts[0])

    def deliver(self, message: Message) -> None:
        """Use the credit for this message."""
        assert self._credit is not None
        self._in_flight = _InFlight(self._taken, False, message, None)
        self._send_in_flight()

    def finish(self, stop: threading.Event, timeout_seconds: float) -> None:
        """See the last message and END safely to the receiver."""
        started = time.monotonic()
        end_sent = False
        while True:
            if self._in_flight is None:
                if end_sent:
                    return
                if self._peer is not None:
                    if self._link is not None:
                        self._link.is_over = True
                    self._in_flight = _InFlight(self._taken, True, None, [])
                    self._send_in_flight()  # END needs no credit: it needs no room
                    end_sent = True
            _raise_if_set(stop)
            if min(self.absent_seconds(), time.monotonic() - started) > timeout_seconds:
                _log.warning(
                    "%s: closed, but nobody was there to take the end of the stream within %g s",
                    self.endpoint,
                    timeout_seconds,
                )
                return
            self.service(_POLL_MS)

    def close(self) -> None:
        if self._in_flight is not None:
            self._drop(self._in_flight, "undelivered")
            self._in_flight = None
        if self._link is not None:
            self._link.close()
        if self._scheme == "inproc" and not self._socket.closed:
            # At once: closing alone leaves it to a thread of ZeroMQ, and a receiver that connects
            # to the next sender of this name would find the old one.
            with contextlib.suppress(zmq.ZMQError):
                self._socket.unbind(self.endpoint)
        self._socket.close(linger=0)
        if self._slots is not None:
            self._slots.close()

    def _heed(self, identity: bytes, epoch: int, taken: int, slot: int) -> None:
        if identity in self._retired:
            self._post(identity, _REPLACED, epoch, taken, [])
            return
        if identity != self._peer:
            self._welcome(identity, taken)
        elif epoch < self._epoch:
            return  # late, from a connection that is no more
        self._epoch, self._taken = epoch, taken
        flight = self._in_flight
        if flight is not None and flight.number < taken:
            flight = self._in_flight = None  # confirmed
        if slot == _BYE:
            self._peer = self._credit = None
            self._absent_since = time.monotonic()
            return
        self._credit = None if slot == _NO_CREDIT else slot
        if flight is not None and (flight.is_end or self._credit is not None):
            self._send_again(flight)

    def _welcome(self, identity: bytes, taken: int) -> None:
        if self._peer is not None:
            self._retired.add(self._peer)
            self._post(self._peer, _REPLACED, self._epoch, self._taken, [])
            _log.info("%s: a new receiver takes over", self.endpoint)
        self._peer = identity
        self._credit = None
        if self._in_flight is not None:
            self._in_flight.number = taken
            if self._in_flight.message is not None:
                self._in_flight.parts = None
        if self._slots is not None:
            self._slots.close()  # the old receiver may still look into them: new ones

    def _send_again(self, flight: _InFlight) -> None:
        newer = self._newer() if self._newer and not flight.is_end else None
        if newer is not None:
            self._drop(flight, "lost")
            flight.message, flight.parts = newer, None
        self._send_in_flight()

    def _send_in_flight(self) -> None:
        flight = self._in_flight
        assert flight is not None
        assert self._peer is not None
        kind = _END if flight.is_end else _MESSAGE
        if flight.parts is None:
            flight.parts = self._pack(flight.message)
            if self._scheme == "inproc":
                flight.message = None
        self._credit = None
        self._post(self._peer, kind, self._epoch, flight.number, flight.parts)

    def _drop(self, flight: _InFlight, reason: str) -> None:
        message = flight.message
        if self._scheme == "inproc" and flight.parts:
            message = _handles.take(flight.parts[0])
        if message is not None:
            self._drops.add(message, reason)

    def _pack(self, message: Message) -> list[Any]:
        if self._scheme == "inproc":
            return [_handles.put(message)]
        if not self._pixels:
            message = message.without_pixels()
        if self._slots is None:
            return wire.pack(message)
        slots, slot = self._slots, self._credit
        assert slot is not None
        return wire.pack(message, write=lambda arrays: slots.write(slot, arrays))

    def _post(
        self, identity: bytes, kind: bytes, epoch: int, number: int, parts: Sequence[Any]
    ) -> None:
        envelope = _ENVELOPE.pack(kind, epoch, number, time.monotonic_ns())
        try:
            self._socket.send_multipart([identity, envelope, *parts], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            _log.debug("%s: the receiver left before its message", self.endpoint)


class _Pump(threading.Thread):
    """The thread of a `drop_oldest` sender: owns the socket, and a mailbox for one message.

    It waits for the credit and then for a message, one after the other: both are needed, and the
    newest is taken only when it can leave at once. Inproc, where a handle travels, a newer message
    still takes the place behind it until the receiver has it, so that every turn finds the newest.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        pixels: bool,
        context: zmq.Context[zmq.Socket[bytes]],
        drops: _Drops,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"sender {endpoint}", daemon=True)
        self._endpoint = endpoint
        self._pixels = pixels
        self._context = context
        self._drops = drops
        self._stop_event = stop
        self._change = threading.Condition()
        self._mailbox: Message | None = None
        self._handle: bytes | None = None  # of the message in flight, inproc
        self._closing_since: float | None = None
        self._timeout_seconds = 0.0
        self._aborted = False
        self._opened = threading.Event()
        self.outlet: _Outlet | None = None
        """None until open()."""
        self._error: BaseException | None = None

    @property
    def depth(self) -> int:
        return int(self._mailbox is not None) + (self.outlet.depth if self.outlet else 0)

    def open(self) -> str:
        """Start; the endpoint that it bound."""
        self.start()
        self._opened.wait()
        if self.outlet is None:
            assert self._error is not None
            raise self._error
        return self.outlet.endpoint

    def put(self, message: Message) -> None:
        """The newest message, in place of one that nobody has asked for yet."""
        if self._error is not None:
            raise self._error
        with self._change:
            replaced, self._mailbox = self._mailbox, message
            overtaken = self._overtake()
            self._change.notify()
        for older in (replaced, overtaken):
            if older is not None:
                self._drops.add(older, "newer")

    def finish(self, timeout_seconds: float) -> None:
        with self._change:
            self._timeout_seconds = timeout_seconds
            self._closing_since = time.monotonic()
            self._change.notify()
        self.join()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        with self._change:
            self._aborted = True
            self._change.notify()
        self.join()

    def run(self) -> None:
        try:
            outlet = self.outlet = _Outlet(
                self._endpoint,
                pixels=self._pixels,
                context=self._context,
                drops=self._drops,
                newer=self._take_mail,
            )
        except Exception as error:
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            self._serve(outlet)
        except Exception as error:
            self._error = error
        finally:
            outlet.close()
            undelivered = self._take_mail()
            if undelivered is not None:
                self._drops.add(undelivered, "undelivered")

    def _serve(self, outlet: _Outlet) -> None:
        while True:
            while not outlet.has_credit and not self._is_over(outlet):
                outlet.service(_POLL_MS)
            with self._change:
                while self._mailbox is None and not self._is_over(outlet):
                    self._change.wait(_POLL_MS / 1e3)
            outlet.service(0)  # the receiver may have left while no message came
            if outlet.has_credit:
                message = self._take_mail()
                if message is not None:
                    outlet.deliver(message)
                    self._note_handle(outlet)
            if self._is_over(outlet):
                outlet.finish(self._stop_event, self._timeout_seconds)
                return

    def _note_handle(self, outlet: _Outlet) -> None:
        with self._change:
            self._handle = outlet.handle
            overtaken = self._overtake()  # mail may have come since
        if overtaken is not None:
            self._drops.add(overtaken, "newer")

    def _overtake(self) -> Message | None:
        """Put the mail behind the handle in flight; what was there, or None if that was taken."""
        if self._handle is None or self._mailbox is None:
            return None
        overtaken = _handles.swap(self._handle, self._mailbox)
        if overtaken is None:
            self._handle = None
        else:
            self._mailbox = None
        return overtaken

    def _is_over(self, outlet: _Outlet) -> bool:
        """Whether close() was called, and what was left to deliver is gone or undeliverable."""
        _raise_if_set(self._stop_event)
        if self._aborted:
            raise Stopped
        if self._closing_since is None:
            return False
        closing_seconds = time.monotonic() - self._closing_since
        nobody = min(closing_seconds, outlet.absent_seconds()) > self._timeout_seconds
        return self._mailbox is None or nobody

    def _take_mail(self) -> Message | None:
        with self._change:
            message, self._mailbox = self._mailbox, None
            return message


class _Link:
    """Whether anybody is at the other end of an ipc or tcp socket, as its monitor tells."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, *, other_end: str) -> None:
        came = zmq.EVENT_CONNECTED | zmq.EVENT_ACCEPTED
        self._socket = socket
        self._endpoint = endpoint
        self._other_end = other_end
        self._connections: set[int] = set()  # file descriptors
        self.was_there = False
        self.is_over = False
        """Set after END: from now on the other end may leave without a word."""
        self.monitor = socket.get_monitor_socket(came | zmq.EVENT_DISCONNECTED)
        self.absent_since: float | None = time.monotonic()

    def absent_seconds(self) -> float:
        return 0.0 if self.absent_since is None else time.monotonic() - self.absent_since

    def update(self) -> bool:
        """Read the news; whether there is a new connection."""
        is_new = False
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._connections.discard(event["value"])
            else:
                self._connections.add(event["value"])
                is_new = True
        if self._connections and self.absent_since is not None:
            self.absent_since = None
            if self.was_there:
                _log.info("%s: a %s is there again", self._endpoint, self._other_end)
            self.was_there = True
        elif not self._connections and self.absent_since is None:
            self.absent_since = time.monotonic()
            if not self.is_over:
                _log.warning("%s: the %s went away", self._endpoint, self._other_end)
        return is_new and bool(self._connections)

    def close(self) -> None:
        self._socket.disable_monitor()
        self.monitor.close(linger=0)


class _Handles:
    """Objects of this process on their way through an inproc queue: 8 bytes stand for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._objects: dict[bytes, Message] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, message: Message) -> bytes:
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


_handles = _Handles()
_context: zmq.Context[zmq.Socket[bytes]] | None = None
_context_pid = 0
_context_lock = threading.Lock()


def process_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The one ZeroMQ context of this process; inproc endpoints are known within it."""
    global _context, _context_pid
    with _context_lock:
        if _context is None or _context_pid != os.getpid():  # a fork must not use its parent's
            _context, _context_pid = zmq.Context(), os.getpid()
        return _context


def _scheme(endpoint: str) -> str:
    scheme, separator, address = endpoint.partition("://")
    if scheme not in ("inproc", "ipc", "tcp") or not separator or not address:
        raise ValueError(
            f"an endpoint must be inproc://name, ipc://path or tcp://host:port, got {endpoint!r}"
        )
    return scheme


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    deadline = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            if endpoint.startswith("ipc://"):
                _check_path(endpoint.removeprefix("ipc://"))
            socket.bind(endpoint)
            return socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except OSError as error:  # zmq.ZMQError is not one
            raise ValueError(f"cannot bind {endpoint}: {error.strerror}") from None
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                reason = why_not_here(error.errno, error.strerror)
                raise ValueError(f"cannot bind {endpoint}: {reason}") from None
        time.sleep(0.02)


def check_bind(endpoint: str) -> None:
    """ValueError where a sender could not bind at this moment; the address stays free."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        _bind(socket, endpoint)
    # Leaving the context waits until ZeroMQ has let the address go.


def _check_path(path: str) -> None:
    """Refuse a path that ZeroMQ would take away without a word: it unlinks before it binds."""
    if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is no socket is there")
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect("\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            return  # nobody listens
    raise zmq.ZMQError(zmq.EADDRINUSE)


def _set_heartbeat(socket: zmq.Socket[bytes]) -> None:
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS


def _raise_if_set(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("the stream was stopped")
