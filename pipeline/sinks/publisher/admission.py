"""Who is let in at the publisher's socket, and a line in the log for who is not.

    libzmq's I/O thread  -- ZAP request: this key, from there --->  200 or 300   (only with keys)
                         -- monitor: accepted, refused, left ---->  the log, a limit on connections

Used by one thread, the publisher's own, whose sockets these are. A refused subscriber hears nothing
(that is CURVE's way), so the log has to say it: once a minute for each address and reason.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import zmq
from zmq.utils import z85

from common.rare_log import RareLog
from pipeline.sinks.publisher.curve import Keys, fingerprint, is_open_to_others, load_keys

logger = logging.getLogger(__name__)

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by RFC 27 of ZeroMQ, in each context
_ZAP_VERSION = b"1.0"
_DOMAIN = b"posestream"
# "Temporary error": the connection stays silent until the handshake times out, then the subscriber
# tries again. After a 400 libzmq never tries again, and one whose key comes later stays shut out.
_REFUSED = b"300"
_HANDSHAKE_MS = 5_000
# A process has 1024 file descriptors by default; cameras and files need some as well.
_MAX_CONNECTIONS = 256
_AT_ONCE = 256  # requests, events
_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_WATCHED = _FAILURES | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_LOCAL = "this machine"
_GONE = "an unknown address (closed before it could be read)"


class Admission:
    """Lets subscribers in by their keys, or all if there are none; see the module's docstring.

    Args:
        context: that of the publisher, and of no other socket with keys.
        publisher: its socket, not yet bound.
        curve_dir: folder of keys (pipeline/sinks/publisher/curve.py); None lets everybody in.
    Raises:
        ValueError: the keys cannot be used.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        publisher: zmq.Socket[bytes],
        *,
        curve_dir: Path | None,
    ) -> None:
        self._publisher = publisher
        self._curve_dir = curve_dir
        self._fingerprint = fingerprint(curve_dir) if curve_dir else ()
        self._keys = load_keys(curve_dir) if curve_dir else None
        self._zap = context.socket(zmq.ROUTER)
        self._zap.linger = 0
        if self._keys is not None and curve_dir is not None:
            self._zap.bind(_ZAP_ENDPOINT)
            self._use(self._keys)
            if is_open_to_others(curve_dir):
                logger.warning(
                    "curve keys: others on this machine can read the secret key; chmod -R go= %s",
                    curve_dir,
                )
        publisher.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        self._monitor = publisher.get_monitor_socket(_WATCHED)
        self._connections: dict[int, str] = {}  # address by file descriptor, those that are open
        # Of these, who has not shaken hands, oldest first; and whether the log tells why already.
        self._strangers: dict[int, bool] = {}
        self._failed = False  # the connection that closes next could not shake hands
        self._rare_log = RareLog(logger, lines_a_minute=1)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """To poll; call handle() when one has something."""
        return (self._zap, self._monitor)

    def handle(self) -> None:
        """Answer and note all that is waiting."""
        for request in _waiting(self._zap):
            self._zap.send_multipart(self._answer(request))
        for event in _waiting(self._monitor):
            kind, value = struct.unpack("=hi", event[0])
            self._note(kind, value)

    def every_second(self) -> bool:
        """Read keys again that have changed.

        Returns:
            Whether the publisher must bind anew, which makes all subscribers connect and show
            their keys again: a key was taken away, or the publisher has another one.
        """
        self._rare_log.sum_up()
        if self._curve_dir is None or self._keys is None:
            return False
        now = fingerprint(self._curve_dir)
        if now == self._fingerprint:
            return False
        self._fingerprint = now
        former = self._keys
        try:
            self._use(load_keys(self._curve_dir))
        except ValueError as error:
            logger.error("%s (the former keys stay in use)", error)
            return False
        is_stricter = not former.clients.keys() <= self._keys.clients.keys()
        return is_stricter or former.secret != self._keys.secret

    def forget_connections(self) -> None:
        """The publisher has cut all of them, of which the monitor says nothing."""
        self.handle()
        self._connections.clear()
        self._strangers.clear()

    def close(self) -> None:
        self.handle()
        self._publisher.disable_monitor()
        self._monitor.close(linger=0)
        self._zap.close()

    def _use(self, keys: Keys) -> None:
        self._keys = keys
        self._publisher.setsockopt(zmq.CURVE_SERVER, 1)
        self._publisher.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        self._publisher.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        for complaint in keys.unreadable:
            logger.warning("curve keys: %s; this subscriber is not let in", complaint)
        names = ", ".join(keys.clients.values()) or "nobody"
        logger.info("curve keys: encrypted; let in: %s", names)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """ZAP (RFC 27): a reply to peer, empty, version, id, domain, address, ..., credentials."""
        route, _, version, number, domain, address, _, mechanism, *credentials = request
        known = (version, domain, mechanism) == (_ZAP_VERSION, _DOMAIN, b"CURVE")
        key = credentials[0] if credentials else b""
        name = self._keys.clients.get(key) if known and self._keys is not None else None
        if name is None:
            text = z85.encode(key).decode() if len(key) == 32 else "(none)"
            who = address.decode(errors="replace") or _LOCAL
            self._log_refusal(who, f"its key {text} is not in {self._curve_dir}/clients")
            return [route, b"", _ZAP_VERSION, number, _REFUSED, b"unknown key", b"", b""]
        return [route, b"", _ZAP_VERSION, number, b"200", b"OK", name.encode(), b""]

    def _note(self, kind: int, value: int) -> None:
        """One event of the monitor; a failure is followed by the end of its connection."""
        if kind == zmq.EVENT_ACCEPTED:
            self._connections[value] = self._arrived(value)
            self._strangers[value] = False
        elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._strangers.pop(self._oldest_stranger(), None)
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # _answer has told why
            if (stranger := self._oldest_stranger()) >= 0:
                self._strangers[stranger] = True
        elif kind & _FAILURES:
            self._failed = True
        elif kind == zmq.EVENT_DISCONNECTED:
            address = self._connections.pop(value, _GONE)
            is_told = self._strangers.pop(value, not self._failed)
            if not is_told:
                self._log_refusal(address, self._why_no_handshake())
            self._failed = False

    def _log_refusal(self, address: str, reason: str) -> None:
        self._rare_log.warning(f"refused a connection from {address}: {reason}")

    def _oldest_stranger(self) -> int:
        """The events do not say whose handshake it was; mostly there is only one."""
        return next((fd for fd, is_told in self._strangers.items() if not is_told), -1)

    def _why_no_handshake(self) -> str:
        if self._keys is None:
            return "it did not shake hands as a ZeroMQ subscriber without keys does"
        return "it did not shake hands: no subscriber, one without keys or for another publisher"

    def _arrived(self, descriptor: int) -> str:
        """Host of a new connection; one too many is cut."""
        try:
            # A duplicate stays this very connection, whatever libzmq does to its own meanwhile.
            duplicate = os.dup(descriptor)
        except OSError:
            return _GONE
        try:
            connection = socket.socket(fileno=duplicate)
        except OSError:  # its number belongs to a file by now, which no socket object closes
            os.close(duplicate)
            return _GONE
        with connection, contextlib.suppress(OSError):
            if not self._is_ours(connection):
                return _GONE  # its number belongs to another connection by now
            peer = connection.getpeername()
            host = peer[0] if isinstance(peer, tuple) else _LOCAL
            if len(self._connections) >= _MAX_CONNECTIONS:
                connection.shutdown(socket.SHUT_RDWR)
                self._log_refusal(host, f"{_MAX_CONNECTIONS} are connected, as many as may be")
            return str(host)
        return _GONE

    def _is_ours(self, connection: socket.socket) -> bool:
        """Whether it was made to the publisher's address."""
        endpoint = self._publisher.getsockopt_string(zmq.LAST_ENDPOINT)
        if connection.family == socket.AF_UNIX:
            return endpoint.startswith("ipc://")
        return endpoint.endswith(f":{connection.getsockname()[1]}")


def _waiting(source: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    """What has arrived, but not so much that the poses wait."""
    for _ in range(_AT_ONCE):
        try:
            yield source.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
