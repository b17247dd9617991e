"""Many sources, one network: fair shares, sources that come and go, the ready-made configurations.

The network is a fake that takes its time and finds nobody; sources are drawn at their own speed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from operator import lt
from pathlib import Path
from typing import Any

import av
import pytest
import zmq
from torch import Tensor

from common.settings import ConfigError
from pipeline.config import SourceConfig, StreamConfig, load_config
from pipeline.messages import Poses
from pipeline.runtime import source_set
from pipeline.runtime.queues import handles
from pipeline.sources.source import SourceError
from pipeline.stream import Stream
from tests.support.painted import painted_model
from tests.support.places import ROOT
from tests.support.running_stream import SeesNobody, running
from tests.support.waiting import PATIENCE_SECONDS, wait_until


def stream_of(
    *sources: dict[str, Any], seconds: float = 0.005, settings: dict[str, Any] | None = None
) -> Stream:
    """A stream of paced sources whose network takes so long for a picture."""
    net = SeesNobody(lambda images: seconds * len(images)).eval()
    config = config_of(*sources, settings=settings)
    return Stream(config, model=replace(painted_model(), net=net))


def config_of(*sources: dict[str, Any], settings: dict[str, Any] | None = None) -> StreamConfig:
    tree: dict[str, Any] = {
        "sources": [{"pace": True, **source} for source in sources],
        "preprocess": {"input_size": 64},
        "inference": {"engine": "torch", **(settings or {}).pop("inference", {})},
        **(settings or {}),
    }
    return StreamConfig.model_validate(tree)


def overloaded(
    *sources: dict[str, Any], settings: dict[str, Any], begun_ns: list[int] | None = None,
    sinks: dict[str, Callable[[Poses], None]] | None = None,
) -> Stream:  # fmt: skip
    """A stream whose network takes until every source has read a frame more.

    Args:
        begun_ns: gets time.monotonic_ns() at the beginning of every pass.
    """

    def num_read() -> list[int]:
        stages = stream.stats.snapshot()["stages"]
        return [
            stages[name]["frames"] if (name := f"decoder:{source['name']}") in stages else 0
            for source in sources
        ]

    def has_ended() -> bool:
        states = {s["state"] for s in stream.stats.snapshot()["sources"].values()}
        return "ended" in states

    def takes(images: Tensor) -> float:
        if begun_ns is not None:
            begun_ns.append(time.monotonic_ns())
        before = num_read()
        wait_until(lambda: all(map(lt, before, num_read())) or has_ended())
        return 0.0

    net = SeesNobody(takes).eval()
    model = replace(painted_model(), net=net)
    stream = Stream(config_of(*sources, settings=settings), model=model, sinks=sinks)
    return stream


def results(stream: Stream) -> dict[str, int]:
    return {name: s["results"] for name, s in stream.stats.snapshot()["sources"].items()}


def wait_for_results(stream: Stream, name: str, count: int = 1) -> None:
    wait_until(lambda: results(stream).get(name, 0) >= count)


WIDE, TALL = "testsrc=128x64@{}", "testsrc=64x128@{}"


@pytest.mark.parametrize(
    ("inputs", "max_batch"),
    [
        pytest.param([WIDE.format(30)] * 6, 1, id="alike"),
        pytest.param([WIDE.format(30)] * 4 + [TALL.format(30)] * 2, 1, id="two sizes"),
        pytest.param([WIDE.format(30)] * 4 + [TALL.format(30)] * 2, 4, id="two sizes in batches"),
        pytest.param([WIDE.format(200), *[WIDE.format(30)] * 4], 1, id="one faster"),
        pytest.param([WIDE.format(200), *[WIDE.format(30)] * 4], 4, id="one faster in batches"),
        pytest.param([WIDE.format(30)] * 10, 8, id="more than a batch"),
    ],
)
def test_no_live_source_gets_less_than_its_share(inputs: list[str], max_batch: int) -> None:
    """More is offered than the network takes: every source has a newer frame at each pass."""
    sources = [{"input": text, "name": f"cam{i}"} for i, text in enumerate(inputs)]
    settings = {"inference": {"max_batch": max_batch}}
    with running(overloaded(*sources, settings=settings)) as stream:
        for source in sources:
            wait_for_results(stream, source["name"], 2)
        before = results(stream)
        wait_until(lambda: sum(results(stream).values()) - sum(before.values()) >= 12 * len(inputs))
        after = results(stream)
    shares = {name: after[name] - before[name] for name in before}
    assert min(shares.values()) >= 0.8 * max(shares.values()), shares


def test_what_comes_next_is_the_newest_frame_of_its_source() -> None:
    """With one frame in a pass the last of six waits for five, but it is not five passes old."""
    sources = [{"input": WIDE.format(30), "name": f"cam{i}"} for i in range(6)]
    begun_ns: list[int] = []  # of every pass
    captured_ns: list[int] = []  # of the frame in it
    stream = overloaded(
        *sources, settings={"inference": {"max_batch": 1}}, begun_ns=begun_ns,
        sinks={"note": lambda poses: captured_ns.append(poses.frame.captured_ns)},
    )  # fmt: skip
    with running(stream):
        for source in sources:
            wait_for_results(stream, source["name"], 4)
    num_left_out = sum(
        sum(source["results_dropped"].values())
        for source in stream.stats.snapshot()["sources"].values()
    )
    assert len(captured_ns) == len(begun_ns) - num_left_out
    ages = [
        sum(captured < begun for begun in begun_ns[: number + 1])
        for number, captured in enumerate(captured_ns)
    ]
    # In passes: at most one ahead of it in the network, and its own; taken late it would be seven.
    assert num_left_out == 0
    assert sorted(ages)[len(ages) // 2] <= 3


def test_the_frames_of_all_cameras_that_are_ready_go_in_one_pass() -> None:
    sources = [{"input": WIDE.format(30), "name": f"cam{i}"} for i in range(4)]
    settings = {"inference": {"max_batch": 8}}
    with running(overloaded(*sources, settings=settings)) as stream:
        for source in sources:
            wait_for_results(stream, source["name"], 20)
        inference = stream.stats.snapshot()["stages"]["inference"]
    assert inference["frames"] >= 3.0 * inference["calls"]


def test_a_source_comes_and_goes_while_the_others_run(tmp_path: Path) -> None:
    """Files are finished when it goes, topics come and end with `ended`, and names are free."""
    settings = {
        "video": {"path": str(tmp_path / "poses.mp4")},
        "recorder": {"jsonl": str(tmp_path / "poses.jsonl"), "coco": str(tmp_path / "coco.json")},
        "publisher": {"endpoint": f"ipc://{tmp_path}/poses"},
    }
    sources = [{"input": WIDE.format(30), "name": name} for name in ("one", "two")]
    new = SourceConfig(input=TALL.format(30), name="three", pace=True)
    with running(stream_of(*sources, settings=settings)) as stream, _subscribed(tmp_path) as heard:
        wait_for_results(stream, "one")
        assert stream.add_source(new) == "three"
        wait_for_results(stream, "three", 10)
        wait_until(lambda: "live" in _states(heard, "three"))
        with pytest.raises(ConfigError, match="'three' is taken"):
            stream.add_source(new)
        stream.remove_source("three")
        with pytest.raises(ConfigError, match="no source named 'three'; known: one, two"):
            stream.remove_source("three")
        with pytest.raises(ConfigError, match="is just being removed"):
            stream.add_source(new)
        wait_until(lambda: "three" not in stream.stats.snapshot()["sources"])
        assert [source.name for source in stream.sources] == ["one", "two"]

        wait_until(lambda: _num_pictures(tmp_path / "poses-three.mp4") >= 10)
        assert stream.add_source(new) == "three"  # the name is free
        wait_for_results(stream, "three", 5)
        seen = results(stream)["one"]
        wait_for_results(stream, "one", seen + 5)

    assert _num_pictures(tmp_path / "poses-three-2.mp4") >= 5
    assert (tmp_path / "coco-three.json").exists()
    assert (tmp_path / "coco-three-2.json").exists()
    assert "ended" in _states(heard, "three")
    sequence = [message["seq"] for message in heard["pose/three/"]]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    first, second = _runs([line["frame"] for line in lines if line["stream"] == "three"])
    assert len(first) >= 10
    assert len(second) >= 5


def _states(heard: dict[str, list[dict[str, Any]]], source: str) -> set[str]:
    return {message["state"] for message in heard.get(f"status/{source}/", [])}


def _num_pictures(path: Path) -> int:
    """Of a finished file; 0 while it is not."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (OSError, av.FFmpegError):
        return 0


def _runs(frames: list[int]) -> list[list[int]]:
    """Cut where numbers begin again."""
    cuts = [i for i in range(1, len(frames)) if frames[i] <= frames[i - 1]]
    edges = [0, *cuts, len(frames)]
    return [frames[a:b] for a, b in pairwise(edges)]


def test_a_subscriber_hears_all_of_the_many_sources_that_the_page_added(tmp_path: Path) -> None:
    settings = {
        "page": {"serve": "127.0.0.1:0"},
        "publisher": {"endpoint": f"ipc://{tmp_path}/poses"},
    }
    names = [f"cam{i}" for i in range(24)]
    first = {"input": WIDE.format(2), "name": names[0]}
    with running(stream_of(first, settings=settings)) as stream, _subscribed(tmp_path) as heard:
        for name in names[1:]:
            stream.add_source(SourceConfig(input=WIDE.format(2), name=name, pace=True))
        wait_until(lambda: all(len(heard.get(f"status/{name}/", ())) >= 5 for name in names))
    for name in names:
        for kind in ("pose", "status"):
            seqs = {message["seq"] for message in heard[f"{kind}/{name}/"]}
            assert len(seqs) == max(seqs) - min(seqs) + 1, f"{kind}/{name}/ has gaps: {seqs}"


@contextmanager
def _subscribed(folder: Path) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All messages by topic."""
    heard: dict[str, list[dict[str, Any]]] = {}
    over = threading.Event()

    def listen() -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.subscribe(b"")
            socket.connect(f"ipc://{folder}/poses")
            while not over.is_set():
                if socket.poll(100):
                    topic, _, body = socket.recv().partition(b"\0")
                    heard.setdefault(topic.decode(), []).append(json.loads(body))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join(PATIENCE_SECONDS)


def test_nothing_is_left_of_sources_that_came_and_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_set, "_LINGER_SECONDS", 0.1)
    with running(stream_of({"input": WIDE.format(30), "name": "stays"})) as stream:

        def come_and_go() -> None:
            stream.add_source(SourceConfig(input=WIDE.format(60), name="guest", pace=True))
            wait_for_results(stream, "guest", 2)
            stream.remove_source("guest")
            wait_until(lambda: "guest" not in stream.stats.snapshot()["sources"])

        def held() -> tuple[int, int]:
            return threading.active_count(), len(os.listdir("/proc/self/fd"))

        come_and_go()
        wait_for_results(stream, "stays", results(stream)["stays"] + 3)
        before = held()
        for _ in range(5):
            come_and_go()
        # ZeroMQ closes sockets in the background.
        wait_until(lambda: held()[0] <= before[0] and held()[1] <= before[1] + 1)
        snapshot = stream.stats.snapshot()
    assert set(snapshot["sources"]) == {"stays"}
    assert [name for name in snapshot["stages"] if name.startswith("decoder:")] == ["decoder:stays"]
    assert len(handles.in_transit) == 0


def test_sources_without_a_name_get_one_that_is_free() -> None:
    with running(stream_of({"input": WIDE.format(30)}, {"input": WIDE.format(30)})) as stream:
        added = stream.add_source(SourceConfig(input=WIDE.format(30), pace=True))
        assert [source.name for source in stream.sources] == ["testsrc", "testsrc-2", added]
        assert added == "testsrc-3"


def test_what_cannot_be_added_or_removed_is_said_clearly() -> None:
    stream = stream_of({"input": WIDE.format(30), "name": "only"})
    with running(stream):
        wait_for_results(stream, "only")
        with pytest.raises(ConfigError, match="'only' is the last source; add another one first"):
            stream.remove_source("only")
        with pytest.raises(ConfigError, match="pace: true"):
            stream.add_source(SourceConfig(input="testsrc"))
        with pytest.raises(SourceError, match="no such file"):
            stream.add_source(SourceConfig(input="absent.mp4", pace=True))
        assert results(stream).keys() == {"only"}
    with pytest.raises(ConfigError, match="the stream has ended"):
        stream.add_source(SourceConfig(input=WIDE.format(30), pace=True))


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="'cam' is taken"):
        stream_of({"input": "testsrc", "name": "cam"}, {"input": "demo", "name": "cam"})


def test_a_cut_stream_says_that_it_cannot(tmp_path: Path) -> None:
    config = StreamConfig.model_validate(
        {"sources": [{"input": "testsrc"}], "queues": {"frames": f"ipc://{tmp_path}/frames"}}
    )
    stream = Stream(config, parts=("sources",))
    with pytest.raises(ConfigError, match="only in a stream that is one process"):
        stream.add_source(SourceConfig(input="testsrc"))
    with pytest.raises(ConfigError, match="only in a stream that is one process"):
        stream.remove_source("testsrc")


def test_sources_may_come_and_go_from_many_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_set, "_LINGER_SECONDS", 0.1)
    with running(stream_of({"input": WIDE.format(30), "name": "stays"})) as stream:
        failures: list[Exception] = []

        def guest(number: int) -> None:
            try:
                config = SourceConfig(input=WIDE.format(30), name=f"guest{number}", pace=True)
                name = stream.add_source(config)
                wait_for_results(stream, name)
                stream.remove_source(name)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=guest, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert failures == []
        wait_until(lambda: results(stream).keys() == {"stays"})


def test_the_configuration_of_ten_cameras() -> None:
    config = load_config(ROOT / "configs" / "ten_cameras.yaml")
    assert len({source.name for source in config.sources}) == 10
    assert all(source.input.startswith(("rtsp://", "rtsps://")) for source in config.sources)
    stream = Stream(config, parts=("sources",))
    assert [source.name for source in stream.sources] == [s.name for s in config.sources]
    assert all(source.live for source in stream.sources)
    assert {source.transport for source in config.sources} == {"tcp", "udp"}
    assert any(source.max_fps for source in config.sources)
    assert any(source.roi for source in config.sources)
    assert {source.rotation for source in config.sources} == {None, 90, 180}


def test_the_systemd_unit_is_one(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "posestream.service").read_text()
    settings = dict(
        line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] not in "#["
    )
    program, *arguments = settings["ExecStart"].split()
    assert program.startswith(settings["WorkingDirectory"])
    assert settings["User"] != "root"
    known = subprocess.run(
        [sys.executable, str(ROOT / "run_stream.py"), "--help"],
        capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS,
    ).stdout  # fmt: skip
    assert all(word in known for word in arguments if word.startswith("--"))
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        return
    # The program and its user are not on this machine, so two of its own stand in for them.
    unit = tmp_path / "posestream.service"
    unit.write_text(
        text.replace(program, "/bin/true").replace("User=posestream", "User=daemon")
        .replace("Group=posestream", "Group=daemon")
    )  # fmt: skip
    done = subprocess.run(
        [verifier, "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "posestream.service" in line]
    assert complaints == []
