"""Poses published over ZeroMQ, for any number of subscribers that come and go.

    stage's thread              |  publisher's thread
    Poses -> message -> outbox ---> XPUB socket -> subscribers
                                |     ^ once a second: status of every stream
                                |     <- a subscription: the last status again

One frame a message: `pose/<stream>/`, a NUL byte, the message (docs/schema.md). The socket belongs
to a thread of its own, so subscribers are greeted and told the status also while no pose comes.
Nobody waits for a subscriber: whoever is too slow misses messages and sees it in `seq`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

import zmq

from pipeline.messages import Poses
from pipeline.schema import (
    Message,
    StreamStatus,
    encode_json,
    encode_msgpack,
    new_session,
    pose_message,
    status_message,
    topic,
)

logger = logging.getLogger(__name__)

_STATUS_SECONDS = 1.0
_OUTBOX = 256  # messages; the publisher's thread empties it at once, so a full one means trouble
_LINGER_MS = 1000  # what subscribers have to take the last messages in
# A subscriber's queue must take the messages and statuses of all streams at once. ZeroMQ hears of
# free places only when half the queue has been read, hence twice that; and some for a hiccup. More
# would only make what slow subscribers get older, as would a larger send buffer.
_QUEUED_MESSAGES = 8
_QUEUED_MESSAGES_PER_STREAM = 4
_SEND_BUFFER_BYTES = 16384
_LONGEST_SUBSCRIPTION = 4096  # bytes; a peer that sends more is no subscriber and is cut off
_GREETINGS = 16  # at once; a crowd of subscribers does not keep the poses waiting
_MAX_PORT = 65535


class Publisher:
    """The sink of `--publish`: messages of every source, and each one's status once a second."""

    def __init__(
        self,
        endpoint: str,
        *,
        format: Literal["json", "msgpack"] = "json",
        session: str | None = None,
        status: Callable[[], Mapping[str, StreamStatus]] | None = None,
        num_streams: int = 1,
    ) -> None:
        """Bind, so that an endpoint that cannot be used is known at once.

        Args:
            endpoint: `tcp://127.0.0.1:5556`, `ipc:///run/poses`, or only a port (of this
                machine's loopback); `*` for the port takes a free one.
            format: of the messages.
            session: shared with other sinks of this run; by default a new one.
            status: how each stream is doing, by name; called from another thread, once a second
                and at the end. None publishes no status.
            num_streams: how many sources will publish at about the same moment.
        Raises:
            ValueError: the endpoint cannot be bound.
        """
        endpoint = checked_endpoint(endpoint)
        self._encode = {"json": encode_json, "msgpack": encode_msgpack}[format]
        self._session = session or new_session()
        self._status = status
        self._num_messages: Counter[bytes] = Counter()  # by topic
        self._last_status: dict[str, bytes] = {}
        self._outbox: deque[bytes] = deque(maxlen=_OUTBOX)
        self._num_overflows = 0
        self._failure: Exception | None = None
        self._closing = False
        self._queued_messages = _QUEUED_MESSAGES + _QUEUED_MESSAGES_PER_STREAM * num_streams
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)

        bound: Future[str] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(endpoint, bound), name="publisher", daemon=True
        )
        self._thread.start()
        try:
            self.endpoint = bound.result()
        except ValueError:
            self.close()
            raise
        logger.info("publishing poses at %s", self.endpoint)

    @property
    def num_overflows(self) -> int:
        """How often a message found a subscriber's queue full.

        A lower bound of what subscribers missed: until a full queue has room again the socket
        leaves that subscriber out without a word. Exact is the gap in `seq` at the subscriber.
        """
        return self._num_overflows

    def __call__(self, poses: Poses) -> None:
        if self._failure is not None:
            raise RuntimeError("the publisher's thread failed") from self._failure
        name = topic("pose", poses.frame.source)
        message = pose_message(poses, session=self._session, seq=self._num_messages[name])
        self._num_messages[name] += 1
        self._outbox.append(self._frame(name, message))
        self._wake()

    def close(self) -> None:
        """Send what is left and the last status; waits a second at most for slow subscribers."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join()
        self._wake_reader.close()
        self._wake_writer.close()

    def _frame(self, name: bytes, message: Message) -> bytes:
        return name + b"\0" + self._encode(message)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wakes: it will look
            self._wake_writer.send(b"\0")

    # From here on: the publisher's thread.

    def _run(self, endpoint: str, bound: Future[str]) -> None:
        # Its own context: term() waits until the last messages are out, or have lingered.
        context = zmq.Context()
        try:
            xpub = _bound_socket(context, endpoint, queued_messages=self._queued_messages)
        except ValueError as error:
            context.term()
            bound.set_exception(error)
            return
        bound.set_result(xpub.getsockopt_string(zmq.LAST_ENDPOINT))
        try:
            self._serve(xpub)
        except Exception as error:
            logger.exception("the publisher's thread failed")
            self._failure = error  # the next call raises it where the stream can see it
        finally:
            xpub.close(linger=_LINGER_MS)
            context.term()

    def _serve(self, xpub: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(xpub, zmq.POLLIN)
        poller.register(self._wake_reader, zmq.POLLIN)
        status_due = time.monotonic()
        while not self._closing:
            wait_seconds = max(0.0, status_due - time.monotonic())
            poller.poll(round(1000 * wait_seconds) + 1)
            self._clear_wake()
            self._send_outbox(xpub)
            if time.monotonic() >= status_due:
                status_due = time.monotonic() + _STATUS_SECONDS
                self._send_status(xpub)
            self._greet(xpub)
        self._send_outbox(xpub)
        self._send_status(xpub)

    def _clear_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # woken by a subscriber or by the clock
            self._wake_reader.recv(4096)

    def _send_outbox(self, xpub: zmq.Socket[bytes]) -> None:
        while self._outbox:
            self._send(xpub, self._outbox.popleft())

    def _send_status(self, xpub: zmq.Socket[bytes]) -> None:
        for stream, status in self._status().items() if self._status else ():
            name = topic("status", stream)
            message = status_message(
                stream,
                status,
                session=self._session,
                seq=self._num_messages[name],
                unix_s=time.time(),
                overflows=self._num_overflows,
            )
            self._num_messages[name] += 1
            self._last_status[stream] = self._frame(name, message)
            self._send(xpub, self._last_status[stream])

    def _greet(self, xpub: zmq.Socket[bytes]) -> None:
        """Send a new subscriber the last status of what it asked for, rather than a second later.

        Others who asked for it get it again; they see the same `seq`.
        """
        for _ in range(_GREETINGS):
            try:
                request = xpub.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if request[:1] == b"\x01":  # a subscription; the rest is the beginning of a topic
                for frame in self._last_status.values():
                    if frame.startswith(request[1:]):
                        self._send(xpub, frame)

    def _send(self, xpub: zmq.Socket[bytes], frame: bytes) -> None:
        """To every subscriber that has room; never waits."""
        try:
            xpub.send(frame, zmq.NOBLOCK)
        except zmq.Again:  # somebody has none (XPUB_NODROP says so), and nobody got it yet
            if self._num_overflows == 0:
                logger.warning("a subscriber cannot keep up; it will see gaps in seq")
            self._num_overflows += 1
            xpub.setsockopt(zmq.XPUB_NODROP, 0)
            xpub.send(frame, zmq.NOBLOCK)
            xpub.setsockopt(zmq.XPUB_NODROP, 1)


def _bound_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, queued_messages: int
) -> zmq.Socket[bytes]:
    """An XPUB socket at the endpoint; ValueError where it cannot be bound."""
    xpub = context.socket(zmq.XPUB)
    xpub.setsockopt(zmq.XPUB_VERBOSE, 1)  # every subscription is reported, also a second alike
    xpub.setsockopt(zmq.XPUB_NODROP, 1)
    xpub.setsockopt(zmq.SNDHWM, queued_messages)
    xpub.setsockopt(zmq.SNDBUF, _SEND_BUFFER_BYTES)
    xpub.setsockopt(zmq.MAXMSGSIZE, _LONGEST_SUBSCRIPTION)
    xpub.setsockopt(zmq.IPV6, int("[" in endpoint))
    # A peer whose cable was pulled is forgotten; one that is merely busy for a while is not.
    xpub.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    xpub.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
    try:
        xpub.bind(endpoint)
    except zmq.ZMQError as error:
        xpub.close(linger=0)
        reason = zmq.strerror(error.errno) if error.errno else str(error)
        raise ValueError(f"cannot publish at {endpoint}: {reason.lower()}") from None
    return xpub


def checked_endpoint(endpoint: str) -> str:
    """The endpoint in ZeroMQ's spelling; loud where others than this machine can connect.

    Raises:
        ValueError: it is not `tcp://host:port`, `ipc://path` or a port, or the path is in use.
            (ZeroMQ itself takes port 99999 for 34463, and deletes a file where a socket is to be.)
    """
    if endpoint.startswith("ipc://") and endpoint != "ipc://":
        _check_ipc_path(endpoint.removeprefix("ipc://"))
        return endpoint
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not colon and not endpoint.startswith("tcp://"):
        host = "127.0.0.1"
    known_port = port == "*" or (port.isdecimal() and int(port) <= _MAX_PORT)
    if not host or not known_port or "//" in host:
        raise ValueError(
            f"cannot publish at {endpoint!r}; expected tcp://host:port, ipc://path or a port"
        )
    if not _is_loopback(host):
        logger.warning(
            "publishing at %s: whoever reaches this machine can see every pose, for nothing is "
            "encrypted and nobody is asked for a key; use tcp://127.0.0.1:%s to keep it local",
            endpoint,
            port,
        )
    return f"tcp://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("localhost", "lo")


def _check_ipc_path(path: str) -> None:
    if path.startswith("@") or not Path(path).exists():  # @: a name without a file (Linux)
        return
    if not Path(path).is_socket():
        raise ValueError(f"cannot publish at ipc://{path}: a file of that name is in the way")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise ValueError(f"cannot publish at ipc://{path}: address already in use")
