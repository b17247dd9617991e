"""A sender's socket, and what it knows of its receiver: the credit and the message in flight."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from common.rare_log import RareLog
from pipeline.runtime.queues import handles, wire
from pipeline.runtime.queues.connection import Context, Link, bind, scheme_of, set_heartbeat
from pipeline.runtime.queues.credit import (
    BYE,
    ENVELOPE,
    IDENTITY_BYTES,
    KIND_END,
    KIND_MESSAGE,
    KIND_REPLACED,
    NO_CREDIT,
    POLL_MS,
    STATE,
    Message,
    OnDrop,
    raise_if_set,
)
from pipeline.runtime.queues.slots import SlotWriter

_log = logging.getLogger(__name__)


class Drops:
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
    """None for END; and for inproc, where it is kept only until it is taken (see handles.py)."""
    parts: list[Any] | None
    """As it crosses; None: to be packed; again for another receiver."""


class Outlet:
    """The sender's socket and what it knows of the receiver. Belongs to the thread that makes it.

    `newer`, where given, yields a message that should replace one whose receiver went away.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        pixels: bool,
        context: Context,
        drops: Drops,
        newer: Callable[[], Message | None] | None = None,
    ) -> None:
        self._scheme = scheme_of(endpoint)
        self.endpoint = endpoint
        self._pixels = pixels
        self._drops = drops
        self._newer = newer
        self._rare_log = RareLog(_log)
        self._peer: bytes | None = None
        self._retired: set[bytes] = set()
        self._epoch = 0
        self._taken = 0  # by the receiver
        self._credit: int | None = None  # the slot to write into
        self._in_flight: _InFlight | None = None
        self._slots = SlotWriter() if self._scheme == "ipc" else None
        self._absent_since = time.monotonic()  # for inproc, which has no monitor
        self._link: Link | None = None
        self._socket = context.socket(zmq.ROUTER)
        try:
            self._socket.router_mandatory = True  # a receiver that is gone is an error, not silence
            self._socket.router_handover = True  # a new connection replaces the broken one
            if self._scheme != "inproc":
                set_heartbeat(self._socket)
                self._link = Link(self._socket, endpoint, other_end="receiver")
            self.endpoint = bind(self._socket, endpoint)
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
        """Wait for the receiver's state and act on it."""
        if not self._poller.poll(timeout_ms):
            return
        while True:
            try:
                identity, *rest = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if len(rest) != 1 or len(rest[0]) != STATE.size:
                self._rare_log.warning(
                    f"{self.endpoint}: ignored a peer that is no receiver of ours"
                )
            elif len(identity) == IDENTITY_BYTES:
                self._update_state(identity, *STATE.unpack(rest[0]))
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
            raise_if_set(stop)
            if min(self.absent_seconds(), time.monotonic() - started) > timeout_seconds:
                _log.warning(
                    "%s: closed, but nobody was there to take the end of the stream within %g s",
                    self.endpoint,
                    timeout_seconds,
                )
                return
            self.service(POLL_MS)

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

    def _update_state(self, identity: bytes, epoch: int, taken: int, slot: int) -> None:
        if identity in self._retired:
            self._post(identity, KIND_REPLACED, epoch, taken, [])
            return
        if identity != self._peer:
            self._welcome(identity, taken)
        elif epoch < self._epoch:
            return  # late, from a connection that is no more
        self._epoch, self._taken = epoch, taken
        flight = self._in_flight
        if flight is not None and flight.number < taken:
            flight = self._in_flight = None  # confirmed
        if slot == BYE:
            self._peer = self._credit = None
            self._absent_since = time.monotonic()
            return
        self._credit = None if slot == NO_CREDIT else slot
        if flight is not None and (flight.is_end or self._credit is not None):
            self._send_again(flight)

    def _welcome(self, identity: bytes, taken: int) -> None:
        if self._peer is not None:
            self._retired.add(self._peer)
            self._post(self._peer, KIND_REPLACED, self._epoch, self._taken, [])
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
        kind = KIND_END if flight.is_end else KIND_MESSAGE
        if flight.parts is None:
            flight.parts = self._pack(flight.message)
            if self._scheme == "inproc":
                flight.message = None
        self._credit = None
        self._post(self._peer, kind, self._epoch, flight.number, flight.parts)

    def _drop(self, flight: _InFlight, reason: str) -> None:
        message = flight.message
        if self._scheme == "inproc" and flight.parts:
            message = handles.in_transit.take(flight.parts[0])
        if message is not None:
            self._drops.add(message, reason)

    def _pack(self, message: Message) -> list[Any]:
        if self._scheme == "inproc":
            return [handles.in_transit.put(message)]
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
        envelope = ENVELOPE.pack(kind, epoch, number, time.monotonic_ns())
        try:
            self._socket.send_multipart([identity, envelope, *parts], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            _log.debug("%s: the receiver left before its message", self.endpoint)
