"""Publishing to real subscribers: topics, losses, late comers, endpoints, the example."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import numpy as np
import pytest
import zmq

from pipeline.runtime.status import StreamStatus
from pipeline.sinks.publisher.curve import make_keys
from pipeline.sinks.publisher.publisher import Publisher, checked_endpoint
from pipeline.sinks.schema import pose_message
from tests.support.people import crowd, poses_of
from tests.support.places import ROOT
from tests.support.waiting import PATIENCE_SECONDS

FREE = "tcp://127.0.0.1:*"
SIZE = (720, 1280)
PEOPLE = crowd(3, SIZE)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def subscriber(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *prefixes: str, queue: int = 1000
) -> zmq.Socket[bytes]:
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.RCVHWM, queue)
    if queue < 10:
        sub.setsockopt(zmq.RCVBUF, 16384)
    sub.setsockopt(zmq.RCVTIMEO, 10_000)
    sub.setsockopt(zmq.IPV6, 1)
    for prefix in prefixes:
        sub.subscribe(prefix)
    sub.connect(endpoint)
    return sub


def receive(sub: zmq.Socket[bytes]) -> tuple[str, dict[str, Any]]:
    topic, nul, body = sub.recv().partition(b"\0")
    assert nul
    return topic.decode(), json.loads(body)


def statuses(*streams: str) -> dict[str, StreamStatus]:
    return {stream: StreamStatus("running", 25.0) for stream in streams}


def joined(publisher: Publisher, *subs: zmq.Socket[bytes]) -> None:
    """Publish on a topic that everyone has until everyone has got something."""
    waiting = list(subs)
    while waiting:
        publisher(poses_of(PEOPLE[:0], source="hello"))
        waiting = [sub for sub in waiting if not sub.poll(20)]
    for sub in subs:
        while sub.poll(100):
            assert b"/hello/" in sub.recv()


def test_subscribers_get_every_message_of_what_they_asked_for(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    publisher = Publisher(FREE, session="s")
    one = subscriber(context, publisher.endpoint, "pose/cam1/", "pose/hello/")
    everything = subscriber(context, publisher.endpoint, "pose/")
    joined(publisher, one, everything)
    for index in range(5):
        for source in ("cam1", "cam10", "cam2"):
            publisher(poses_of(PEOPLE[: index % 3], source=source, index=2 * index))
        topics = [receive(everything)[0] for _ in range(3)]
        assert topics == ["pose/cam1/", "pose/cam10/", "pose/cam2/"]
    publisher.close()
    text = (ROOT / "docs" / "pose-1.schema.json").read_text(encoding="utf-8")
    validator = jsonschema.Draft202012Validator(json.loads(text))
    for index in range(5):
        topic, message = receive(one)
        validator.validate(message)
        assert topic == "pose/cam1/"
        assert (message["seq"], message["frame"]) == (index, 2 * index)
        assert len(message["people"]) == index % 3, "frames without people are published too"
    assert not one.poll(200), "cam1 got a message of cam10"
    assert not everything.poll(0)


def test_msgpack_says_the_same(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    publisher = Publisher(FREE, format="msgpack")
    sub = subscriber(context, publisher.endpoint, "pose/")
    joined(publisher, sub)
    publisher(poses_of(PEOPLE, source="cam1"))
    publisher.close()
    topic, _, body = sub.recv().partition(b"\0")
    assert topic == b"pose/cam1/"
    message = msgpack.unpackb(body)
    exact = pose_message(
        poses_of(PEOPLE, source="cam1"), session=message["session"], seq=message["seq"]
    )
    assert message["captured_unix_s"] == exact["captured_unix_s"]
    assert message.keys() == exact.keys()
    for person, other in zip(message["people"], exact["people"], strict=True):
        assert np.abs(np.subtract(person["keypoints"], other["keypoints"])).max() < 1e-4
        assert {**person, "score": 0, "bbox": 0, "keypoints": 0} == {
            **other, "score": 0, "bbox": 0, "keypoints": 0,
        }  # fmt: skip


def test_a_burst_of_sixteen_cameras_reaches_a_fast_subscriber_whole(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    publisher = Publisher(FREE, num_streams=16)
    sub = subscriber(context, publisher.endpoint, "pose/")
    joined(publisher, sub)
    for index in range(10):
        publisher(poses_of(PEOPLE, source="alone", index=index))  # bursts begin anywhere
        for camera in range(16):
            publisher(poses_of(PEOPLE, source=f"cam{camera}", index=index))
        assert [receive(sub)[1]["frame"] for _ in range(17)] == [index] * 17
    publisher.close()
    assert publisher.overflows() == {}


def test_a_slow_subscriber_misses_messages_and_holds_up_nobody(
    context: zmq.Context[zmq.Socket[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    num_messages = 300
    publisher = Publisher(FREE)
    fast = subscriber(context, publisher.endpoint, "pose/")
    slow = subscriber(context, publisher.endpoint, "pose/", queue=2)
    joined(publisher, fast, slow)
    people = crowd(20, SIZE)
    for index in range(num_messages):  # 4 MB; queues and buffers hold a small part of it
        publisher(poses_of(people, source="cam1", index=index))
        assert receive(fast)[1]["seq"] == index
    # The slow one has not read a single message by now, and yet all went on.
    counted = publisher.overflows()["cam1"]
    assert sum("cannot keep up" in record.message for record in caplog.records) == 1
    seen = []
    while slow.poll(300):
        seen.append(receive(slow)[1]["seq"])
    assert 0 < len(seen) < num_messages / 2
    assert seen == sorted(set(seen))
    # The last one may have arrived before it was counted.
    assert counted == pytest.approx(num_messages - len(seen), abs=1), "every loss was counted"
    publisher(poses_of(people, source="cam1"))
    assert receive(slow)[1]["seq"] == num_messages, "once it reads again it is served again"
    publisher.close()


def test_a_late_subscriber_gets_the_last_status_of_what_it_asked_for(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Statuses only at the start and at the end, so that one in between is the greeting.
    monkeypatch.setattr("pipeline.sinks.publisher.publisher._STATUS_SECONDS", 1e6)
    publisher = Publisher(FREE, status=lambda: statuses("cam1", "cam10"))
    first = subscriber(context, publisher.endpoint, "status/")
    assert {receive(first)[0] for _ in range(2)} == {"status/cam1/", "status/cam10/"}
    late = subscriber(context, publisher.endpoint, "status/cam1/")
    topic, message = receive(late)
    assert (topic, message["seq"], message["state"]) == ("status/cam1/", 0, "running")
    assert not late.poll(100)
    assert receive(first)[1]["seq"] == 0, "who was there gets the same status again"
    publisher.close()
    assert receive(late)[1]["seq"] == 1, "the last status comes at the end"


def test_status_comes_by_the_clock_also_while_no_pose_does(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sinks.publisher.publisher._STATUS_SECONDS", 0.05)
    publisher = Publisher(FREE, status=lambda: statuses("cam1"))
    sub = subscriber(context, publisher.endpoint, "status/cam1/")
    first = receive(sub)[1]["seq"]
    seqs = [receive(sub)[1]["seq"] for _ in range(5)]
    assert seqs[-1] >= first + 4
    publisher.close()


def test_the_last_messages_are_delivered_before_close_returns(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sinks.publisher.publisher._STATUS_SECONDS", 0.02)
    asked, go_on = threading.Event(), threading.Event()
    go_on.set()

    def status() -> dict[str, StreamStatus]:
        asked.set()
        go_on.wait(PATIENCE_SECONDS)
        return {}

    publisher = Publisher(FREE, status=status)
    sub = subscriber(context, publisher.endpoint, "pose/")
    joined(publisher, sub)
    # Hold the publisher's thread up, so that it finds messages and the end at the same time.
    go_on.clear()
    asked.clear()
    assert asked.wait(PATIENCE_SECONDS)
    for index in range(5):
        publisher(poses_of(PEOPLE, source="cam1", index=index))
    closer = threading.Thread(target=publisher.close)
    closer.start()
    while not publisher._closing:
        time.sleep(0.001)
    go_on.set()
    closer.join()
    publisher.close()
    assert [receive(sub)[1]["frame"] for _ in range(5)] == list(range(5))


def test_a_broken_status_fails_the_stream_and_not_silently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> dict[str, StreamStatus]:
        raise KeyError("cam1")

    publisher = Publisher(FREE, status=broken)
    publisher._thread.join(PATIENCE_SECONDS)
    with pytest.raises(RuntimeError, match="publisher's thread failed") as failure:
        publisher(poses_of(PEOPLE))
    assert isinstance(failure.value.__cause__, KeyError)
    publisher.close()


def test_a_peer_that_talks_nonsense_is_ignored(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    publisher = Publisher(FREE)
    sub = subscriber(context, publisher.endpoint, "pose/")
    joined(publisher, sub)
    rude = context.socket(zmq.XSUB)
    rude.connect(publisher.endpoint)
    for message in (b"", b"\x07what", b"\x01" + b"x" * 100_000, b"\x00never subscribed"):
        rude.send(message)
    host, port = publisher.endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        publisher(poses_of(PEOPLE, source="cam1"))
        assert receive(sub)[0] == "pose/cam1/"
    publisher.close()


def test_closing_leaves_no_thread_and_frees_the_port() -> None:
    with_receipts = Publisher(FREE)
    with_receipts(poses_of(PEOPLE))
    with_receipts.close()  # pyzmq keeps one thread for the receipts of all sockets
    before = threading.active_count()
    for _ in range(3):
        publisher = Publisher(FREE)
        endpoint = publisher.endpoint
        publisher(poses_of(PEOPLE))
        publisher.close()
        Publisher(endpoint).close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        ("tcp://127.0.0.1", "expected tcp://host:port"),
        ("tcp://127.0.0.1:99999", "expected tcp://host:port"),
        ("tcp://127.0.0.1:80x", "expected tcp://host:port"),
        ("tcp://:5556", "expected tcp://host:port"),
        ("udp://127.0.0.1:5556", "expected tcp://host:port"),
        ("ipc://", "expected tcp://host:port"),
        ("nonsense", "expected tcp://host:port"),
        ("tcp://192.0.2.1:5556", "put this machine's own address there"),
        ("tcp://host.invalid:5556", "put this machine's own address there"),
        ("ipc:///nowhere/poses", "no such file"),
    ],
)
def test_endpoints_that_cannot_be_used_are_refused_in_one_line(
    endpoint: str, complaint: str
) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match=complaint) as refusal:
        Publisher(endpoint)
    assert "\n" not in str(refusal.value)
    assert endpoint in str(refusal.value)
    assert threading.active_count() == before


def test_an_address_in_use_is_refused(tmp_path: Path) -> None:
    for endpoint in (FREE, f"ipc://{tmp_path}/poses"):
        publisher = Publisher(endpoint)
        with pytest.raises(ValueError, match="address already in use; stop what listens there"):
            Publisher(publisher.endpoint)
        publisher.close()


def test_ipc_takes_over_a_dead_socket_but_never_a_file(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    path = tmp_path / "poses"
    with socket.socket(socket.AF_UNIX) as dead:  # what a killed process leaves behind
        dead.bind(str(path))
    publisher = Publisher(f"ipc://{path}")
    joined(publisher, subscriber(context, publisher.endpoint, "pose/"))
    publisher.close()
    path.unlink(missing_ok=True)
    path.write_text("precious")
    with pytest.raises(ValueError, match="a file that is no socket is there"):
        Publisher(f"ipc://{path}")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("endpoint", "address", "loud"),
    [
        ("5556", "tcp://127.0.0.1:5556", False),
        ("tcp://127.0.0.1:5556", "tcp://127.0.0.1:5556", False),
        ("tcp://localhost:5556", "tcp://localhost:5556", False),
        ("tcp://[::1]:5556", "tcp://[::1]:5556", False),
        ("ipc:///run/poses", "ipc:///run/poses", False),
        ("tcp://*:5556", "tcp://*:5556", True),
        ("tcp://0.0.0.0:5556", "tcp://0.0.0.0:5556", True),
        ("tcp://192.0.2.1:5556", "tcp://192.0.2.1:5556", True),
        ("tcp://eth0:5556", "tcp://eth0:5556", True),
    ],
)
def test_loopback_unless_told_and_loud_if_told(
    endpoint: str, address: str, loud: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert checked_endpoint(endpoint) == address
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == loud
    assert all("can see every pose" in warning.getMessage() for warning in warnings)
    caplog.clear()
    assert checked_endpoint(endpoint, has_keys=True) == address
    assert caplog.records == [], "with keys it may be open to all"


NODE_MODULES = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "posestream/node/node_modules"
)
NODE = shutil.which("node") if (NODE_MODULES / "zeromq").is_dir() else None
EXAMPLES = [
    pytest.param([sys.executable, str(ROOT / "examples" / "subscriber.py")], id="python"),
    pytest.param(
        [NODE or "node", str(ROOT / "examples" / "subscriber.js")],
        id="node",
        marks=pytest.mark.skipif(NODE is None, reason="needs Node.js and .ci/node-packages"),
    ),
]


@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("command", EXAMPLES)
def test_the_examples_print_people(command: list[str], with_keys: bool, tmp_path: Path) -> None:
    make_keys(tmp_path, ["alice"])
    publisher = Publisher(FREE, curve_dir=tmp_path if with_keys else None)
    keys = [str(tmp_path / "hand_out" / "alice.key_secret"), str(tmp_path / "server.key")]
    example = subprocess.Popen(
        [*command, publisher.endpoint, "cam1", *(keys if with_keys else [])],
        stdout=subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        text=True,
    )
    assert example.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(
        target=lambda: lines.extend(example.stdout.readline() for _ in range(8))  # type: ignore[union-attr]
    )
    reader.start()
    index = 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while reader.is_alive() and time.monotonic() < deadline:
        for source in ("cam10", "cam1"):
            publisher(poses_of(PEOPLE, source=source, index=index))
        index += 1
        time.sleep(0.02)
    example.kill()
    example.wait()
    reader.join()
    publisher.close()
    assert re.fullmatch(r"cam1 frame \d+: 3 people\n", lines[0])
    assert re.fullmatch(r"  id 0 score 0\.\d+ box \[[\d., ]+\] points 17\n", lines[1])
    assert lines[4].startswith("cam1 frame ")
