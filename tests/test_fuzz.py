"""Everything hostile at once against one running stream: it answers clearly and goes on.

A camera with a password, a page, encrypted publishing, poses to a file; against it strangers by
hundreds (tests/support/hostile.py), beside it a viewer and a subscriber who behave.
`--fuzz-seconds N` makes it longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import pytest
import zmq
import zmq.auth

from pipeline.sinks.publisher.curve import make_keys
from tests.support import hostile
from tests.support.clips import write_clip
from tests.support.places import ROOT
from tests.support.rtsp_server import RtspServer, why_unavailable
from tests.support.waiting import PATIENCE_SECONDS, wait_until

START_SECONDS = 200.0
SETTLE_SECONDS = 60.0
MOST_WORKERS = (os.cpu_count() or 1) + 4
"""Threads that asyncio.to_thread makes one by one, when more requests come at once than before."""
Attack = Callable[[random.Random, int], str]


@dataclass
class Running:
    """A stream in a process of its own."""

    process: subprocess.Popen[str]
    page_port: int
    zmq_port: int
    jsonl: Path
    keys: Path
    log: Path
    camera_port: int = 0
    complaints: list[str] = field(default_factory=list)

    def num_poses(self) -> int:
        return self.jsonl.read_bytes().count(b"\n") if self.jsonl.exists() else 0

    def held(self) -> tuple[int, int]:
        """File descriptors and threads."""
        process = psutil.Process(self.process.pid)
        return process.num_fds(), process.num_threads()

    def is_visited(self) -> bool:
        """Whether anybody is connected to one of its ports."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        ports = (self.page_port, self.zmq_port)
        return any(c.laddr.port in ports and c.raddr for c in connections)

    def open_files(self) -> Counter[str]:
        """What its file descriptors are; connections by port and state."""
        process = psutil.Process(self.process.pid)
        kinds = Counter(f"{c.laddr.port} {c.status}" for c in process.net_connections("tcp"))
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kinds[str(link.readlink()).partition(":[")[0]] += 1
        return kinds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_more(frames: list[int], than: int, who: str) -> None:
    wait_until(lambda: len(frames) > than, f"the {who} gets no more frames")


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    noise = np.random.default_rng(0).integers(0, 255, (15, 96, 128, 3), np.uint8)
    clip = write_clip(folder / "clip.mp4", list(noise), fps=15)
    make_keys(folder / "keys", ["alice"])
    make_keys(folder / "others", ["eve"])
    page_port, zmq_port = free_port(), free_port()
    with (
        RtspServer(clip, user="me", password=hostile.SECRET) as camera,
        (folder / "log").open("w") as log,
    ):
        config = folder / "stream.yaml"
        url = camera.url.replace("//", f"//me:{hostile.SECRET}@")
        config.write_text(json.dumps({"sources": [{"input": url, "name": "cam"}]}))
        command = [sys.executable, str(ROOT / "run_stream.py"), "--config", str(config)]
        command += ["--serve", f"127.0.0.1:{page_port}", "--jsonl", str(folder / "poses.jsonl")]
        command += ["--publish", f"tcp://127.0.0.1:{zmq_port}", "--curve-dir", str(folder / "keys")]
        command += ["--input-size", "96"]
        process = subprocess.Popen(command, stderr=log, text=True)
        stream = Running(process, page_port, zmq_port, folder / "poses.jsonl", folder / "keys",
                         folder / "log")  # fmt: skip
        try:
            wait_until(lambda: stream.num_poses() > 10, stream.log.read_text)
            yield stream
        finally:
            process.kill()
            process.wait()


# --- those who behave ----------------------------------------------------------------------------


@contextmanager
def in_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def subscribe(stream: Running, frames: list[int], done: threading.Event) -> None:
    """alice, who has a key."""
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        pair = zmq.auth.load_certificate(stream.keys / "hand_out" / "alice.key_secret")
        subscriber.curve_publickey, subscriber.curve_secretkey = pair
        subscriber.curve_serverkey = zmq.auth.load_certificate(stream.keys / "server.key")[0]
        subscriber.subscribe("pose/cam/")
        subscriber.connect(f"tcp://127.0.0.1:{stream.zmq_port}")
        while not done.is_set():
            if subscriber.poll(50):
                frames.append(json.loads(subscriber.recv().partition(b"\0")[2])["frame"])


def look(stream: Running, frames: list[int], done: threading.Event) -> None:
    """A viewer who acknowledges what it gets."""

    async def visit() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{stream.page_port}/live") as connection,
        ):
            await connection.send_json({"watch": {"cam": 320}})
            while not done.is_set():
                try:
                    message = await connection.receive(timeout=0.5)
                except TimeoutError:
                    continue
                assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
                if message.type is aiohttp.WSMsgType.BINARY:
                    length = int.from_bytes(message.data[:4], "big")
                    frames.append(json.loads(message.data[4 : 4 + length])["frame"])
                    await connection.send_json({"seen": "cam"})

    asyncio.run(visit())


# --- those who do not ----------------------------------------------------------------------------


def wrong_key(dice: random.Random, stream: Running) -> str:
    """eve, who has a key that is not listed, or takes somebody else for the publisher."""
    others = stream.keys.with_name("others")
    pair = others / "hand_out" / "eve.key_secret"
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        if dice.random() < 0.8:
            server = dice.choice((stream.keys, others)) / "server.key"
            subscriber.curve_publickey, subscriber.curve_secretkey = zmq.auth.load_certificate(pair)
            subscriber.curve_serverkey = zmq.auth.load_certificate(server)[0]
        subscriber.subscribe("")
        subscriber.connect(f"tcp://127.0.0.1:{stream.zmq_port}")
        return "eve was served" if subscriber.poll(300) else ""


def garbage_source(dice: random.Random, stream: Running) -> str:
    """A camera that answers nonsense is added over the API, tried for a while, and removed."""
    url = f"http://127.0.0.1:{stream.page_port}/api/streams"
    name = f"garbage{dice.randrange(10**6)}"
    camera = f"rtsp://me:{hostile.SECRET}@127.0.0.1:{stream.camera_port}/{name}"

    async def add_and_remove() -> str:
        async with aiohttp.ClientSession() as session:
            async with session.post(url, json={"input": camera, "name": name}) as answer:
                text = await answer.text()
                if answer.status != 201:
                    return f"a camera was not taken: {answer.status} {text}"
            await asyncio.sleep(dice.uniform(0.2, 2.0))
            async with session.get(url) as answer:
                shown = await answer.text()
            async with session.delete(f"{url}/{name}") as answer:
                if answer.status != 200 or hostile.SECRET in shown:
                    return f"{answer.status} {await answer.text()} {shown}"
        return ""

    return asyncio.run(add_and_remove())


def assault(stream: Running, seconds: float, *, seed: int) -> dict[str, int]:
    """Everybody at once for so many seconds; how often each of them came."""
    on_page: list[Attack] = [
        hostile.http_request, hostile.api_request, hostile.websocket, hostile.websocket_frames
    ]  # fmt: skip
    attacks: dict[str, Callable[[random.Random], str]] = {
        **{attack.__name__: lambda dice, a=attack: a(dice, stream.page_port)  # type: ignore[misc]
           for attack in on_page},
        "zmq_garbage": lambda dice: hostile.zmq_garbage(dice, stream.zmq_port),
        "wrong_key": lambda dice: wrong_key(dice, stream),
        "garbage_source": lambda dice: garbage_source(dice, stream),
    }  # fmt: skip
    times = dict.fromkeys(attacks, 0)
    ends = time.monotonic() + seconds

    def repeat(name: str, number: int) -> None:
        dice = random.Random(1000 * seed + number)
        while not times[name] or time.monotonic() < ends:
            complaint = attacks[name](dice)
            times[name] += 1
            if complaint:
                stream.complaints.append(f"{name}: {complaint}")

    threads = [
        threading.Thread(target=repeat, args=(name, number)) for number, name in enumerate(attacks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())
def test_everything_hostile_at_once_gets_clear_answers_and_the_stream_goes_on(
    tmp_path: Path, fuzz_seconds: float
) -> None:
    seen: dict[str, list[int]] = {"viewer": [], "subscriber": []}
    with running(tmp_path) as stream, hostile.garbage_camera() as camera_port:
        stream.camera_port = camera_port
        assault(stream, 1.0, seed=1)  # worker threads, caches: what is made once is made now
        num_files, num_threads = settled(stream)
        before = (num_files, num_threads + MOST_WORKERS)
        open_before = stream.open_files()
        with (
            in_thread(lambda done: look(stream, seen["viewer"], done)),
            in_thread(lambda done: subscribe(stream, seen["subscriber"], done)),
        ):
            for half in (2, 3):
                counts = {who: len(frames) for who, frames in seen.items()}
                poses = stream.num_poses()
                times = assault(stream, fuzz_seconds / 2, seed=half)
                assert min(times.values()) > 0, times
                for who, frames in seen.items():
                    wait_for_more(frames, counts[who] + 3, who)
                assert stream.num_poses() > poses
        after = settled(stream, at_most=before)
        more_open = stream.open_files() - open_before
        assert not stream.complaints, "\n".join(stream.complaints)
        assert stream.process.poll() is None
        stream.process.send_signal(signal.SIGTERM)
        assert stream.process.wait(PATIENCE_SECONDS) == 0
        log = stream.log.read_text()
    assert all(now <= was for now, was in zip(after, before, strict=True)), (
        before,
        after,
        more_open,
    )
    assert "Traceback" not in log
    assert hostile.SECRET not in log + stream.jsonl.read_text()
    assert "refused a connection from 127.0.0.1" in log
    assert len(log.splitlines()) < 200 + 20 * fuzz_seconds, "the log was flooded"
    for frames in seen.values():
        assert frames == sorted(set(frames))


def settled(stream: Running, *, at_most: tuple[int, int] | None = None) -> tuple[int, int]:
    """What the stream holds when connections have timed out and removed sources are forgotten."""
    least = stream.held()
    deadline = time.monotonic() + SETTLE_SECONDS
    quiet_since = time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.2)
        held = stream.held()
        if held < least or held[1] < least[1]:
            least = (min(held[0], least[0]), min(held[1], least[1]))
            quiet_since = time.monotonic()
        if at_most is not None and all(h <= m for h, m in zip(held, at_most, strict=True)):
            return held
        is_quiet = time.monotonic() - quiet_since > 4  # a removed source stays for two
        if at_most is None and is_quiet and not stream.is_visited():
            return least
    return least
