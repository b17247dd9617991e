"""Who looks at the stream while it is soaked: subscribers good, slow and dead, and viewers.

    publisher --> Subscriber       reads everything at once; checks seq, order, schema, notes ages
              --> SlowSubscriber   a message a second, and little room
              --> dead_subscriber  a process that is stopped (SIGSTOP) while connected
    page      --> Viewers          a WebSocket that acknowledges, and a reader of /mjpeg

They run in threads of their own and know only what crosses the sockets.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import jsonschema
import zmq

from tests.support.places import ROOT

_POLL_MS = 100
_VALIDATE_EVERY = 20  # messages; all of them would take half a core
_DEAD_SECONDS = 60.0  # to get its first message in
_VIEW_WIDTH = 320


@dataclass
class Fault:
    """One camera's misfortune."""

    camera: str
    kind: str
    """kill (gone for a while), freeze (silent for a while) or restart (there again at once)."""
    began_s: float
    """Since the start of the soak."""
    down_seconds: float
    """For how long it was meant to last."""
    there_unix_s: float | None = None
    """Wall clock at which the camera could be had again."""
    back_seconds: float | None = None
    """From then until the capture of the first frame that was published; None: not seen."""


class Subscriber(threading.Thread):
    """Takes every message, as it comes."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(name="subscriber", daemon=True)
        self.stop = threading.Event()
        self.ages: list[tuple[float, float]] = []
        """(time.monotonic() of receipt, milliseconds since the capture) of every pose message."""
        self.num_poses: Counter[str] = Counter()
        """Pose messages, by camera."""
        self.last_frame: dict[str, int] = {}
        """Number of each camera's last frame with poses."""
        self.gaps = 0
        """Messages that were missed."""
        self.problems: Counter[str] = Counter()
        """What is wrong with messages, in words."""
        self._endpoint = endpoint
        self._last_seq: dict[str, int] = {}
        self._last_pts_seconds: dict[str, float] = {}
        self._session = ""
        self._awaited: dict[str, Fault] = {}
        schema = json.loads((ROOT / "docs" / "pose-1.schema.json").read_text())
        self._validator = jsonschema.Draft202012Validator(schema)

    def await_camera(self, fault: Fault) -> None:
        """Note in the fault when the first frame comes that was captured from now on."""
        fault.there_unix_s = time.time()
        self._awaited[fault.camera] = fault

    def run(self) -> None:
        for number, body in enumerate(_messages(self._endpoint, self.stop)):
            received, now_unix_s = time.monotonic(), time.time()
            message = json.loads(body)
            if message["schema"] == "pose/1":
                age_ms = 1e3 * (now_unix_s - message["captured_unix_s"])
                self.ages.append((received, age_ms))
                self._check_order(message)
            self._check_seq(message)
            if number % _VALIDATE_EVERY == 0 and not self._validator.is_valid(message):
                self.problems[f"a {message['schema']} message is not what its schema says"] += 1

    def _check_order(self, message: dict[str, Any]) -> None:
        camera, frame, pts_seconds = message["stream"], message["frame"], message["pts_seconds"]
        self.num_poses[camera] += 1
        if frame <= self.last_frame.get(camera, -1):
            self.problems["a frame's number does not rise"] += 1
        if pts_seconds is not None:
            if pts_seconds <= self._last_pts_seconds.get(camera, -1.0):
                self.problems["a frame's pts_seconds does not rise"] += 1
            self._last_pts_seconds[camera] = pts_seconds
        self.last_frame[camera] = frame
        fault = self._awaited.get(camera)
        if fault is not None and message["captured_unix_s"] > (fault.there_unix_s or 0.0):
            fault.back_seconds = message["captured_unix_s"] - (fault.there_unix_s or 0.0)
            del self._awaited[camera]

    def _check_seq(self, message: dict[str, Any]) -> None:
        topic = f"{message['schema']} {message['stream']}"
        missed = message["seq"] - self._last_seq.get(topic, message["seq"] - 1) - 1
        if missed < 0 and message["schema"] == "pose/1":  # a status may come again for newcomers
            self.problems["seq goes back"] += 1
        self.gaps += max(0, missed)
        self._last_seq[topic] = message["seq"]
        self._session = self._session or message["session"]
        if message["session"] != self._session:
            self.problems["the session has changed"] += 1


class SlowSubscriber(threading.Thread):
    """Has room for two messages and takes one a second, until it is told to hurry.

    What it has missed shows only once it has read what waited for it: some forty messages.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(name="slow subscriber", daemon=True)
        self.stop, self.hurry = threading.Event(), threading.Event()
        self.taken = self.gaps = 0
        """Pose messages that it took, and that it missed between them."""
        self._endpoint = endpoint

    def run(self) -> None:
        last_seq: dict[str, int] = {}
        for body in _messages(self._endpoint, self.stop, topics=b"pose/", room=2):
            message = json.loads(body)
            camera, seq = message["stream"], message["seq"]
            self.taken += 1
            self.gaps += seq - last_seq.get(camera, seq - 1) - 1
            last_seq[camera] = seq
            self.hurry.wait(1.0)


def _messages(
    endpoint: str, stop: threading.Event, *, topics: bytes = b"", room: int | None = None
) -> Iterator[bytes]:
    """What is published, without its topic, until stop is set."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, room or 0)  # 0: no limit
        if room is not None:
            socket.setsockopt(zmq.RCVBUF, 16384)
        socket.subscribe(topics)
        socket.connect(endpoint)
        while not stop.is_set():
            if socket.poll(_POLL_MS):
                yield socket.recv().partition(b"\0")[2]


@contextmanager
def dead_subscriber(endpoint: str) -> Iterator[None]:
    """examples/subscriber.py, stopped for good after its first line."""
    command = [sys.executable, str(ROOT / "examples" / "subscriber.py"), endpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        reader = threading.Thread(target=process.stdout.readline, daemon=True)
        reader.start()
        reader.join(_DEAD_SECONDS)
        if reader.is_alive():
            raise RuntimeError(f"nothing was published within {_DEAD_SECONDS:.0f} s")
        process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.kill()
        process.communicate()


class Viewers(threading.Thread):
    """Two that look at the page: all cameras over a WebSocket, one camera as /mjpeg."""

    def __init__(self, page: str, cameras: Sequence[str]) -> None:
        super().__init__(name="viewers", daemon=True)
        self.stop = threading.Event()
        self.pictures: Counter[str] = Counter()
        """Pictures that came, by camera, and by "mjpeg"."""
        self.last_picture: dict[str, float] = {}
        """time.monotonic() of the last of each."""
        self.problems: list[str] = []
        """Connections that ended before the soak did."""
        self._page, self._cameras = page.rstrip("/"), cameras

    def run(self) -> None:
        asyncio.run(self._look())

    async def _look(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:
            tasks = [asyncio.create_task(self._live(session))]
            tasks += [asyncio.create_task(self._mjpeg(session))]
            while not self.stop.is_set():
                await asyncio.sleep(_POLL_MS / 1e3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(self._page + "/live", max_msg_size=0) as connection:
            await connection.send_json({"watch": dict.fromkeys(self._cameras, _VIEW_WIDTH)})
            async for message in connection:
                if message.type is aiohttp.WSMsgType.BINARY:
                    length = int.from_bytes(message.data[:4], "big")
                    camera = json.loads(message.data[4 : 4 + length])["stream"]
                    if message.data[4 + length : 6 + length] == b"\xff\xd8":  # a JPEG begins
                        self._note(camera)
                    with suppress(ConnectionError):  # it ends: the loop above says so
                        await connection.send_json({"seen": camera})
            self._note_end("the WebSocket")

    async def _mjpeg(self, session: aiohttp.ClientSession) -> None:
        path = f"/mjpeg/{self._cameras[0]}?width={_VIEW_WIDTH}"
        async with session.get(self._page + path) as answer:
            with suppress(asyncio.IncompleteReadError, aiohttp.ClientError):
                while True:
                    head = (await answer.content.readuntil(b"\r\n\r\n")).decode()
                    await answer.content.readexactly(int(head.split("Content-Length: ")[1]))
                    self._note("mjpeg")
            self._note_end("/mjpeg")

    def _note(self, what: str) -> None:
        self.pictures[what] += 1
        self.last_picture[what] = time.monotonic()

    def _note_end(self, what: str) -> None:
        if not self.stop.is_set():
            self.problems.append(f"{what} ended early")
