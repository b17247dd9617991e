"""The sockets below a queue: addresses, one context a process, and who is at the other end."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from common.addresses import IN_USE, why_not_here, why_path_taken

Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]

_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 2000, 10000
_BIND_SECONDS = 0.5  # ZeroMQ releases the address of a closed socket a moment later

_log = logging.getLogger(__name__)


class Link:
    """Whether anybody is at the other end of an ipc or tcp socket, as its monitor reports."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, *, other_end: str) -> None:
        came = zmq.EVENT_CONNECTED | zmq.EVENT_ACCEPTED
        self._socket = socket
        self._endpoint = endpoint
        self._other_end = other_end
        self._connections: set[int] = set()  # file descriptors
        self.was_there = False
        self.is_over = False
        """Set after END: from now on it is no news when the other end leaves."""
        self.monitor = socket.get_monitor_socket(came | zmq.EVENT_DISCONNECTED)
        self.absent_since: float | None = time.monotonic()

    def absent_seconds(self) -> float:
        return 0.0 if self.absent_since is None else time.monotonic() - self.absent_since

    def update(self) -> bool:
        """Read the monitor's events; whether there is a new connection."""
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


_context: Context | None = None
_context_pid = 0
_context_lock = threading.Lock()


def process_context() -> Context:
    """The one ZeroMQ context of this process; inproc endpoints are known within it."""
    global _context, _context_pid
    with _context_lock:
        if _context is None or _context_pid != os.getpid():  # a fork must not use its parent's
            _context, _context_pid = zmq.Context(), os.getpid()
        return _context


def scheme_of(endpoint: str) -> str:
    """inproc, ipc or tcp; ValueError for anything else."""
    scheme, separator, address = endpoint.partition("://")
    if scheme not in ("inproc", "ipc", "tcp") or not separator or not address:
        raise ValueError(
            f"an endpoint must be inproc://name, ipc://path or tcp://host:port, got {endpoint!r}"
        )
    return scheme


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """The endpoint it is bound to (with the port that was free); ValueError if it cannot be."""
    deadline = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            if endpoint.startswith("ipc://"):
                _check_path(endpoint.removeprefix("ipc://"))
            socket.bind(endpoint)
            return socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                reason = why_not_here(error.errno, error.strerror)
                raise ValueError(f"cannot bind {endpoint}: {reason}") from None
        time.sleep(0.02)


def check_bind(endpoint: str) -> None:
    """ValueError where a sender could not bind at this moment; the address stays free."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        bind(socket, endpoint)
    # Leaving the context waits until ZeroMQ has let the address go.


def _check_path(path: str) -> None:
    taken = why_path_taken(path)
    if taken == IN_USE:
        raise zmq.ZMQError(zmq.EADDRINUSE)
    if taken is not None:
        raise ValueError(f"cannot bind ipc://{path}: {taken}")


def set_heartbeat(socket: zmq.Socket[bytes]) -> None:
    """Let ZeroMQ notice a peer that is frozen or unplugged."""
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
