"""Poses published over ZeroMQ, for any number of subscribers that come and go.

    stage's thread              |  publisher's thread
    Poses -> message -> outbox ---> XPUB socket -> subscribers
                                |     ^ once a second: status of every stream
                                |     <- a subscription: the last status again

One frame a message: `pose/<stream>/`, a NUL byte, the message (docs/schema.md). The socket belongs
to a thread of its own, so subscribers are greeted and told the status also while no pose comes.
Nobody waits for a subscriber: whoever is too slow misses messages and sees it in `seq`.
What stands beside it: overflows.py counts such messages, admission.py and curve.py let in whom they
should.
"""

from __future__ import annotations

import contextlib
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

from common.addresses import parse_address, why_not_here, why_path_taken
from common.rare_log import RareLog
from pipeline.messages import Poses
from pipeline.runtime.status import StreamStatus
from pipeline.sinks.publisher.admission import Admission
from pipeline.sinks.publisher.overflows import Overflows
from pipeline.sinks.schema import (
    JsonObject,
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
_BIND_SECONDS = 2.0


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
        curve_dir: Path | None = None,
    ) -> None:
        """Bind, so that an endpoint that cannot be used is known at once.

        Args:
            endpoint: `tcp://127.0.0.1:5556`, `ipc:///run/poses`, or only a port (of this
                machine's loopback); `*` for the port takes a free one.
            format: of the messages.
            session: shared with other sinks of this run; by default a new one.
            status: how each stream is doing, by name; called from another thread, once a second
                and at the end. None publishes no status.
            num_streams: how many sources will publish at about the same moment, at most. (To
                lengthen the queues of connections that there are crashes libzmq 4.3.5.)
            curve_dir: folder of keys (curve.py): encrypts messages, and only whose key is there
                gets them. Read again when a file changes. None: no keys.
        Raises:
            ValueError: the endpoint cannot be bound, or the keys cannot be used.
        """
        endpoint = checked_endpoint(endpoint, has_keys=curve_dir is not None)
        self._encode = {"json": encode_json, "msgpack": encode_msgpack}[format]
        self._session = session or new_session()
        self._status = status
        self._num_messages: Counter[bytes] = Counter()  # by topic
        self._last_status: dict[str, bytes] = {}
        self._outbox: deque[tuple[bytes, bytes]] = deque(maxlen=_OUTBOX)  # topic, frame
        self._failure: Exception | None = None
        self._closing = False
        self._queued_messages = _QUEUED_MESSAGES + _QUEUED_MESSAGES_PER_STREAM * num_streams
        self._overflows = Overflows(queued_messages=self._queued_messages)
        self._curve_dir = curve_dir
        self._rare_log = RareLog(logger, lines_a_minute=1)
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

    def overflows(self) -> dict[str, int]:
        """How many messages some subscriber could not take, by stream; see overflows.py.

        From any thread.
        """
        return {
            name.decode().split("/")[1]: count
            for name, count in dict(self._overflows.by_topic).items()
            if name.startswith(b"pose/")
        }

    def __call__(self, poses: Poses) -> None:
        if self._failure is not None:
            raise RuntimeError("the publisher's thread failed") from self._failure
        name = topic("pose", poses.frame.source)
        message = pose_message(poses, session=self._session, seq=self._num_messages[name])
        self._num_messages[name] += 1
        self._outbox.append((name, self._frame(name, message)))
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

    def _frame(self, name: bytes, message: JsonObject) -> bytes:
        return name + b"\0" + self._encode(message)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wakes: it will look
            self._wake_writer.send(b"\0")

    # From here on: the publisher's thread.

    def _run(self, endpoint: str, bound: Future[str]) -> None:
        # Its own context: term() waits until the last messages are out, or have lingered, and the
        # ZAP requests of a context all go to one place.
        context = zmq.Context()
        xpub = _new_socket(context, endpoint, queued_messages=self._queued_messages)
        admission: Admission | None = None
        try:
            admission = Admission(context, xpub, curve_dir=self._curve_dir)
            _bind(xpub, endpoint)
        except ValueError as error:
            if admission is not None:
                admission.close()
            xpub.close(linger=0)
            context.term()
            bound.set_exception(error)
            return
        bound.set_result(xpub.getsockopt_string(zmq.LAST_ENDPOINT))
        try:
            self._serve(xpub, admission)
        except Exception as error:
            logger.exception("the publisher's thread failed")
            self._failure = error  # the next call raises it where the stream can see it
        finally:
            admission.close()
            xpub.close(linger=_LINGER_MS)
            context.term()

    def _serve(self, xpub: zmq.Socket[bytes], admission: Admission) -> None:
        poller = zmq.Poller()
        for readable in (xpub, self._wake_reader, *admission.sockets):
            poller.register(readable, zmq.POLLIN)
        status_due = time.monotonic()
        while not self._closing:
            wait_seconds = max(0.0, status_due - time.monotonic())
            poller.poll(round(1000 * wait_seconds) + 1)
            self._clear_wake()
            self._send_outbox(xpub)
            admission.handle()
            if time.monotonic() >= status_due:
                status_due = time.monotonic() + _STATUS_SECONDS
                self._send_status(xpub)
                if admission.every_second():
                    _bind_anew(xpub)
                    admission.forget_connections()
            self._greet(xpub)
        self._send_outbox(xpub)
        self._send_status(xpub)

    def _clear_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # woken by a subscriber or by the clock
            self._wake_reader.recv(4096)

    def _send_outbox(self, xpub: zmq.Socket[bytes]) -> None:
        while self._outbox:
            self._send(xpub, *self._outbox.popleft())

    def _send_status(self, xpub: zmq.Socket[bytes]) -> None:
        overflows = self.overflows()
        statuses = self._status() if self._status else {}
        for gone in self._last_status.keys() - statuses.keys():
            del self._last_status[gone]
        for stream, status in statuses.items():
            name = topic("status", stream)
            message = status_message(
                stream,
                status,
                session=self._session,
                seq=self._num_messages[name],
                unix_s=time.time(),
                overflows=overflows.get(stream, 0),
            )
            self._num_messages[name] += 1
            self._last_status[stream] = self._frame(name, message)
            self._send(xpub, name, self._last_status[stream])

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
                for stream, frame in self._last_status.items():
                    if frame.startswith(request[1:]):
                        self._send(xpub, topic("status", stream), frame)

    def _send(self, xpub: zmq.Socket[bytes], name: bytes, frame: bytes) -> None:
        """To every subscriber that has room; never waits."""
        found_full = False
        try:
            receipt = xpub.send(frame, zmq.NOBLOCK, copy=False, track=True)
        except zmq.Again:  # somebody has none (XPUB_NODROP says so), and nobody got it yet
            found_full = True
            xpub.setsockopt(zmq.XPUB_NODROP, 0)
            receipt = xpub.send(frame, zmq.NOBLOCK, copy=False, track=True)
            xpub.setsockopt(zmq.XPUB_NODROP, 1)
        self._overflows.sent(name, receipt, found_full=found_full)
        if found_full:
            self._rare_log.warning(
                "a subscriber cannot keep up and sees gaps in seq; messages so far that somebody "
                f"could not take: {self._overflows.by_topic.total()}",
                kind="overflow",
            )


def _new_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, queued_messages: int
) -> zmq.Socket[bytes]:
    """An XPUB socket for the endpoint."""
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
    xpub.copy_threshold = 0  # pyzmq has no receipt for what it copies
    return xpub


def _bind(xpub: zmq.Socket[bytes], endpoint: str) -> None:
    """ValueError where it cannot be bound."""
    try:
        xpub.bind(endpoint)
    except zmq.ZMQError as error:
        reason = why_not_here(error.errno, zmq.strerror(error.errno) if error.errno else str(error))
        raise ValueError(f"cannot publish at {endpoint}: {reason}") from None


def _bind_anew(xpub: zmq.Socket[bytes]) -> None:
    """Cut all connections; subscribers come back by themselves, within a moment."""
    endpoint = xpub.getsockopt_string(zmq.LAST_ENDPOINT)
    logger.info("keys have changed: all subscribers must show theirs again")
    xpub.unbind(endpoint)
    deadline = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            return _bind(xpub, endpoint)
        except ValueError:  # libzmq frees the address in its own time
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def checked_endpoint(endpoint: str, *, has_keys: bool = False) -> str:
    """The endpoint in ZeroMQ's spelling; loud where others than this machine can connect.

    Raises:
        ValueError: it is not `tcp://host:port`, `ipc://path` or a port, or the path is in use.
            (ZeroMQ itself takes port 99999 for 34463, and deletes a file where a socket is to be.)
    """
    if endpoint.startswith("ipc://") and endpoint != "ipc://":
        taken = why_path_taken(endpoint.removeprefix("ipc://"))
        if taken is not None:
            raise ValueError(f"cannot publish at {endpoint}: {taken}")
        return endpoint
    try:
        address = parse_address(endpoint.removeprefix("tcp://").replace(":*", ":0"))
    except ValueError:
        raise ValueError(
            f"cannot publish at {endpoint!r}; expected tcp://host:port, ipc://path or a port"
        ) from None
    if not has_keys and not address.is_loopback:
        logger.warning(
            "publishing at %s: whoever reaches this machine can see every pose, for nothing is "
            "encrypted and nobody is asked for a key; use --curve-dir to ask for keys, or "
            "tcp://127.0.0.1:%s to keep it local",
            endpoint,
            address.port,
        )
    return f"tcp://{address}"
