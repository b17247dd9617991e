"""Which parts share a process, where the queues of a cut meet, and what ends with a child."""

import time
from pathlib import Path

import psutil
import pytest

from common.settings import ConfigError
from pipeline.config import QueuesConfig, load_config
from pipeline.runtime.processes import PARTS, Children, Part, endpoint, parts_with
from tests.support.stream_process import running, wait_for_lines
from tests.support.waiting import PATIENCE_SECONDS

LIVE = ("testsrc=96x96@5", "--pace", "--quiet", "--set", "queues.poses=ipc")
"""A source that would never end, its sinks in a child process."""


@pytest.mark.parametrize(
    ("frames", "poses", "part", "expected"),
    [
        ("inproc", "inproc", "network", PARTS),
        ("inproc", "inproc", "sinks", PARTS),
        ("ipc", "inproc", "network", ("network", "sinks")),
        ("ipc", "inproc", "sources", ("sources",)),
        ("inproc", "ipc", "network", ("sources", "network")),
        ("inproc", "ipc", "sinks", ("sinks",)),
        ("ipc", "tcp://a:1", "network", ("network",)),
    ],
)
def test_cuts_keep_parts_apart(
    frames: str, poses: str, part: Part, expected: tuple[Part, ...]
) -> None:
    assert parts_with(part, QueuesConfig(frames=frames, poses=poses)) == expected


def test_endpoints_of_a_cut_differ_by_number() -> None:
    assert endpoint("inproc", "frames", 1) == "inproc://frames-1"
    assert endpoint("ipc:///run/x/frames", "frames", 1) == "ipc:///run/x/frames-1"
    assert endpoint("tcp://10.0.0.1:5600", "frames", 1) == "tcp://10.0.0.1:5601"


def test_a_part_started_by_hand_must_know_where_to_meet() -> None:
    config = load_config(settings={"queues.frames": "ipc"})
    with pytest.raises(ConfigError, match="say where the parts meet"):
        Children(config, "network")
    Children(load_config(settings={"queues.frames": "ipc:///run/x/frames"}), "network")


def test_a_live_stream_whose_sinks_cannot_begin_ends_with_their_exit_code(tmp_path: Path) -> None:
    with running(*LIVE, "--jsonl", tmp_path / "missing" / "p.jsonl") as process:
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert "missing does not exist" in errors
    assert len(errors.splitlines()) == 1


def test_a_child_that_is_asked_twice_to_stop_still_writes_what_is_under_way(tmp_path: Path) -> None:
    """As `systemctl stop` does: it signals every process, and the parent passes it on."""
    jsonl = tmp_path / "p.jsonl"
    with running(*LIVE, "--jsonl", jsonl) as process:
        wait_for_lines(jsonl, 3)
        (sinks,) = psutil.Process(process.pid).children()
        for _ in range(2):
            sinks.terminate()
            time.sleep(0.3)
        wait_for_lines(jsonl, jsonl.read_bytes().count(b"\n") + 3)
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors


def test_a_live_stream_does_not_outlive_its_sinks(tmp_path: Path) -> None:
    jsonl = tmp_path / "p.jsonl"
    with running(*LIVE, "--jsonl", jsonl) as process:
        wait_for_lines(jsonl, 3)
        (sinks,) = psutil.Process(process.pid).children()
        sinks.kill()
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "sinks: process" in errors
    assert "was ended by signal 9" in errors
