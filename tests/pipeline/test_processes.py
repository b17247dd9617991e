"""Which parts share a process, and where the queues of a cut meet."""

import pytest

from pipeline.config import ConfigError, QueuesConfig, load_config
from pipeline.processes import PARTS, Children, Part, endpoint, parts_with


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
