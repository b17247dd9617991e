"""Who gets messages of a publisher with keys; what strangers on its port can do: nothing."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq
import zmq.auth

from pipeline.runtime.status import StreamStatus
from pipeline.sinks.publisher.admission import Admission
from pipeline.sinks.publisher.curve import make_keys
from pipeline.sinks.publisher.publisher import Publisher
from tests.support.people import crowd, poses_of
from tests.support.waiting import PATIENCE_SECONDS, wait_until

FREE = "tcp://127.0.0.1:*"
PEOPLE = crowd(2, (720, 1280))
GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00"
NULL = b"NULL" + b"\0" * 16 + b"\0" + b"\0" * 31
CURVE = b"CURVE" + b"\0" * 15 + b"\0" + b"\0" * 31

Sub = zmq.Socket[bytes]


@pytest.fixture
def context() -> Iterator[zmq.Context[Sub]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with keys for alice and bob; publishers look for changes all the time."""
    monkeypatch.setattr("pipeline.sinks.publisher.publisher._STATUS_SECONDS", 0.05)
    monkeypatch.setattr(
        "pipeline.sinks.publisher.admission._HANDSHAKE_MS", 300
    )  # whoever is refused tries again
    make_keys(tmp_path / "keys", ["alice", "bob"])
    return tmp_path / "keys"


def subscriber(
    context: zmq.Context[Sub],
    endpoint: str,
    *,
    pair: Path | None = None,
    server: Path | None = None,
) -> Sub:
    sub = context.socket(zmq.SUB)
    if pair is not None and server is not None:
        sub.curve_publickey, sub.curve_secretkey = zmq.auth.load_certificate(pair)
        sub.curve_serverkey = zmq.auth.load_certificate(server)[0]
    sub.subscribe("pose/")
    sub.connect(endpoint)
    return sub


def friend(context: zmq.Context[Sub], publisher: Publisher, keys: Path, name: str) -> Sub:
    pair = keys / "hand_out" / f"{name}.key_secret"
    return subscriber(context, publisher.endpoint, pair=pair, server=keys / "server.key")


def served(publisher: Publisher, sub: Sub, *, seconds: float = PATIENCE_SECONDS) -> bool:
    """Publish until the subscriber gets a message of after this call."""
    after = time.monotonic_ns()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        publisher(poses_of(PEOPLE, index=time.monotonic_ns()))
        while sub.poll(20):
            if json.loads(sub.recv().partition(b"\0")[2])["frame"] > after:
                return True
    return False


def warnings(caplog: pytest.LogCaptureFixture, word: str = "") -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and word in record.getMessage()
    ]


def port_of(publisher: Publisher) -> int:
    return int(publisher.endpoint.rpartition(":")[2])


def test_only_listed_keys_get_messages_and_the_others_are_in_the_log(
    context: zmq.Context[Sub], keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(FREE, curve_dir=keys)
    alice = friend(context, publisher, keys, "alice")
    assert served(publisher, alice)
    assert warnings(caplog) == []
    make_keys(tmp_path / "other", ["eve"])
    eve_pair = tmp_path / "other" / "hand_out" / "eve.key_secret"
    alice_pair = keys / "hand_out" / "alice.key_secret"
    connect = {
        "unlisted key": {"pair": eve_pair, "server": keys / "server.key"},
        "key of another publisher": {"pair": alice_pair, "server": tmp_path / "other/server.key"},
        "no key": {},
    }
    strangers = [subscriber(context, publisher.endpoint, **files) for files in connect.values()]
    wait_until(lambda: len(warnings(caplog, "is not in")) > 0)
    wait_until(lambda: len(warnings(caplog, "did not shake hands")) > 0)
    for _ in range(20):
        assert served(publisher, alice)
    assert [bool(stranger.poll(50)) for stranger in strangers] == [False] * 3
    (unlisted,) = warnings(caplog, "is not in")
    eve_public = zmq.auth.load_certificate(eve_pair)[0].decode()
    assert "from 127.0.0.1" in unlisted
    assert eve_public in unlisted
    # All three try again all the time; an address may be gone before it can be read.
    assert len(warnings(caplog)) <= 3
    publisher.close()


def test_nothing_readable_is_on_the_wire(context: zmq.Context[Sub], keys: Path) -> None:
    publisher = Publisher(FREE, curve_dir=keys)
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = threading.Thread(target=_relay, args=(listener, port_of(publisher), seen))
        relay.start()
        port = listener.getsockname()[1]
        alice = subscriber(
            context, f"tcp://127.0.0.1:{port}",
            pair=keys / "hand_out" / "alice.key_secret", server=keys / "server.key",
        )  # fmt: skip
        for _ in range(5):
            assert served(publisher, alice)
        alice.close(linger=0)
        relay.join(PATIENCE_SECONDS)
        assert not relay.is_alive()
    publisher.close()
    assert len(seen) > 5 * 1000
    assert b"pose/" not in seen
    assert b"keypoints" not in seen


def _relay(listener: socket.socket, port: int, seen: bytearray) -> None:
    near = listener.accept()[0]
    far = socket.create_connection(("127.0.0.1", port))

    def forward(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            seen.extend(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=forward, args=(far, near))
    back.start()
    forward(near, far)
    back.join()
    near.close()
    far.close()


def test_a_new_key_is_let_in_and_a_deleted_one_is_shut_out_at_once(
    context: zmq.Context[Sub], keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(FREE, curve_dir=keys)
    alice, bob = (friend(context, publisher, keys, name) for name in ("alice", "bob"))
    assert served(publisher, alice)
    assert served(publisher, bob)
    make_keys(keys, ["carol"])
    carol = friend(context, publisher, keys, "carol")
    assert served(publisher, carol), "if not at once, for the file was not read yet, then soon"
    num_refused = len(warnings(caplog, "is not in"))
    (keys / "clients" / "bob.key").unlink()
    wait_until(lambda: len(warnings(caplog, "is not in")) > num_refused)
    assert served(publisher, alice), "who is still listed comes back by himself"
    assert served(publisher, carol)
    while bob.poll(100):
        bob.recv()
    assert not served(publisher, bob, seconds=0.5)
    publisher.close()


def test_a_spoilt_file_shuts_its_owner_out_and_nobody_else(
    context: zmq.Context[Sub], keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(FREE, curve_dir=keys)
    bob_file = keys / "clients" / "bob.key"
    text = bob_file.read_text()
    bob_file.write_text(text[:30])
    wait_until(lambda: len(warnings(caplog, "this subscriber is not let in")) > 0)
    alice, bob = (friend(context, publisher, keys, name) for name in ("alice", "bob"))
    assert served(publisher, alice)
    assert not served(publisher, bob, seconds=0.3)
    bob_file.write_text(text)
    assert served(publisher, bob), "it tries again by itself"
    publisher.close()


def test_a_new_pair_of_the_publisher_replaces_the_old_one(
    context: zmq.Context[Sub], keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(FREE, curve_dir=keys)
    former = friend(context, publisher, keys, "alice")
    assert served(publisher, former)
    (keys / "server.key_secret").write_text("spoilt")
    wait_until(lambda: len(warnings(caplog, "former keys stay in use")) > 0)
    assert served(publisher, former)
    (keys / "server.key_secret").unlink()
    make_keys(keys, [])
    wait_until(lambda: len(warnings(caplog, "did not shake hands")) > 0)
    assert served(publisher, friend(context, publisher, keys, "alice"))
    while former.poll(100):
        former.recv()
    assert not served(publisher, former, seconds=0.3)
    publisher.close()


def test_keys_that_cannot_be_used_are_one_line_at_the_start(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="make keys with: python"):
        Publisher(FREE, curve_dir=tmp_path)
    assert threading.active_count() == before


def test_two_publishers_with_keys_in_one_process_do_not_mix_them_up(
    context: zmq.Context[Sub], keys: Path, tmp_path: Path
) -> None:
    make_keys(tmp_path / "other", ["eve"])
    ours = Publisher(FREE, curve_dir=keys)
    theirs = Publisher(FREE, curve_dir=tmp_path / "other")
    assert served(ours, friend(context, ours, keys, "alice"))
    assert served(theirs, friend(context, theirs, tmp_path / "other", "eve"))
    for publisher in (ours, theirs):
        publisher.close()


@pytest.mark.parametrize("with_keys", [True, False])
def test_rubbish_on_the_port_harms_nobody(
    context: zmq.Context[Sub], keys: Path, with_keys: bool, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    publisher = Publisher(FREE, curve_dir=keys if with_keys else None)
    files = {"pair": keys / "hand_out" / "alice.key_secret", "server": keys / "server.key"}
    alice = subscriber(context, publisher.endpoint, **(files if with_keys else {}))
    assert served(publisher, alice)
    process = psutil.Process()
    num_files, num_threads = process.num_fds(), process.num_threads()
    rng = random.Random(0)
    openings = [b"", b"\xff", GREETING[:-3], GREETING + NULL, GREETING + CURVE]
    commands = [b"", b"\x04\x05HELLO" + bytes(198), b"\x04\xc8\x05HELLO" + bytes(194)]
    commands += [b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB", b"\x06" + b"\xff" * 8]
    for round_ in range(60):
        stranger = socket.create_connection(("127.0.0.1", port_of(publisher)))
        stranger.sendall(rng.choice(openings) + rng.choice(commands) + rng.randbytes(round_))
        if round_ % 3:
            stranger.close()
        else:  # never says any more; libzmq gives up on it
            threading.Timer(1.0, stranger.close).start()
        if round_ % 10 == 0:
            assert served(publisher, alice)
    wait_until(lambda: process.num_fds() <= num_files and process.num_threads() <= num_threads)
    assert served(publisher, alice)
    lines = warnings(caplog)
    assert 1 <= len(lines) <= 3, "one for each address and reason"
    assert all("refused a connection from" in line for line in lines)
    publisher.close()


def test_a_connection_whose_number_is_a_file_by_now_leaves_nothing_open(
    context: zmq.Context[Sub],
) -> None:
    """libzmq closed it before its event was read, and an eventfd got its number."""
    publisher = context.socket(zmq.PUB)
    door = Admission(context, publisher, curve_dir=None)
    publisher.bind("tcp://127.0.0.1:*")
    file = os.eventfd(0)
    before = psutil.Process().num_fds()
    for _ in range(10):
        door._note(zmq.EVENT_ACCEPTED, file)
        door._note(zmq.EVENT_DISCONNECTED, file)
    assert psutil.Process().num_fds() == before
    os.close(file)
    door.close()


def test_a_crowd_of_connections_is_cut_short(
    context: zmq.Context[Sub], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sinks.publisher.admission._MAX_CONNECTIONS", 20)
    publisher = Publisher(FREE)
    sub = subscriber(context, publisher.endpoint)
    assert served(publisher, sub)
    crowd_ = [socket.create_connection(("127.0.0.1", port_of(publisher))) for _ in range(100)]

    def num_open() -> int:
        port = port_of(publisher)
        connections = psutil.Process().net_connections("tcp")
        return sum(one.laddr.port == port and one.status == "ESTABLISHED" for one in connections)

    wait_until(lambda: num_open() <= 20)
    assert served(publisher, sub)
    assert len(warnings(caplog, "as many as may be")) == 1
    for stranger in crowd_:
        stranger.close()
    assert served(publisher, subscriber(context, publisher.endpoint)), "there is room again"
    publisher.close()


def test_subscribers_that_come_and_go_are_not_called_strangers(
    context: zmq.Context[Sub], keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for curve_dir in (None, keys):
        publisher = Publisher(FREE, curve_dir=curve_dir, status=lambda: {"a": StreamStatus("x", 1)})
        for _ in range(10):
            pair = (
                subscriber(context, publisher.endpoint)
                if curve_dir is None
                else friend(context, publisher, keys, "alice")
            )
            assert served(publisher, pair)
            pair.close(linger=0)
        publisher.close()
    assert warnings(caplog) == []


def test_ipc_needs_keys_as_well(
    context: zmq.Context[Sub], keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(f"ipc://{tmp_path}/poses", curve_dir=keys)
    stranger = subscriber(context, publisher.endpoint)
    assert served(publisher, friend(context, publisher, keys, "alice"))
    assert not stranger.poll(50)
    wait_until(lambda: len(warnings(caplog, "did not shake hands")) > 0)
    (keys / "clients" / "bob.key").unlink()
    assert served(publisher, friend(context, publisher, keys, "alice"))
    publisher.close()
