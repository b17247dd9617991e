"""stream() and Stream: poses of whole sources, in a loop and in sinks of one's own."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import posestream
from common.settings import ConfigError
from pipeline.runtime.stage import StageError
from tests.support.painted import grid_people, paint

SIZE = (256, 384)
PLAIN: dict[str, Any] = {"engine": "torch", "device": "cpu"}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Painted pictures with 1, 2, 3 and no people."""
    images = tmp_path / "images"
    images.mkdir()
    for i, count in enumerate((1, 2, 3)):
        cv2.imwrite(str(images / f"{i}.png"), paint(SIZE, grid_people(count)))
    cv2.imwrite(str(images / "3.png"), np.zeros((*SIZE, 3), np.uint8))
    return images


def test_every_frame_of_a_file_comes_in_order_with_its_picture(folder: Path) -> None:
    found = list(posestream.stream(folder, **PLAIN))
    assert [poses.frame.index for poses in found] == [0, 1, 2, 3]
    assert [len(poses) for poses in found] == [1, 2, 3, 0]
    assert [poses.frame.image_name for poses in found] == ["0.png", "1.png", "2.png", "3.png"]
    np.testing.assert_array_equal(found[1].frame.image, cv2.imread(str(folder / "1.png")))


def test_people_keep_their_ids_and_options_are_those_of_the_command(folder: Path) -> None:
    found = list(posestream.stream("demo", max_frames=5, settings={"weights": None}, **PLAIN))
    assert len(found) == 5
    still = [str(folder / "1.png")] * 4
    ids = [poses.ids.tolist() for poses in posestream.stream(still[0], loop=True, max_frames=5,
                                                             **PLAIN)]  # fmt: skip
    assert ids[0] == [-1, -1]
    assert sorted(ids[-1]) == [1, 2]


def test_several_sources_are_told_apart(folder: Path) -> None:
    found = list(posestream.stream([folder, "testsrc=128x64"], max_frames=3, **PLAIN))
    assert {poses.frame.source for poses in found} == {"images", "testsrc"}


def test_leaving_the_loop_ends_the_stream_in_order(tmp_path: Path) -> None:
    lines = tmp_path / "poses.jsonl"
    before = set(threading.enumerate())
    for poses in posestream.stream("testsrc=128x64", jsonl=str(lines), **PLAIN):
        if poses.frame.index == 3:
            break
    assert set(threading.enumerate()) == before
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(written) >= 4
    assert [message["frame"] for message in written] == list(range(len(written)))


def test_an_error_in_the_loop_ends_the_stream_too() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        fail_in_a_loop()
    assert set(threading.enumerate()) == before


def fail_in_a_loop() -> None:
    poses_of_pattern = posestream.stream("testsrc=128x64", **PLAIN)
    try:
        for poses in poses_of_pattern:
            poses.frame.index // 0
    finally:
        poses_of_pattern.close()  # type: ignore[attr-defined]  # a traceback would keep it alive


def test_a_slow_loop_gets_the_newest_of_a_live_source() -> None:
    """Poses do not wait for the loop: at most one was under way while it slept."""
    ages = []
    for poses in posestream.stream("testsrc=128x64@50", pace=True, max_frames=60, **PLAIN):
        ages.append(time.time() - poses.frame.captured_unix_s)
        threading.Event().wait(0.2)
    frames = len(ages)
    assert 2 <= frames < 30  # of 60: those that came while the loop was busy were dropped


def test_a_source_that_breaks_gives_what_it_had_and_then_its_error(
    clip: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mkv"
    whole = clip.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"broken\.mkv"):
        list(posestream.stream(broken, **PLAIN))


def test_a_stage_that_fails_raises_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr("pipeline.inference.Inference.__call__", fails)
    with pytest.raises(StageError) as error:
        list(posestream.stream("testsrc=128x64", max_frames=2, **PLAIN))
    assert "no more memory" in str(error.value.__cause__)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("nothing.mp4", {}, "no such file"),
        ("testsrc", {"max_frame": 3}, "did you mean 'max_frames'"),
        ("testsrc", {"max_frames": 0}, "max_frames"),
        ("testsrc", {"show": True}, "a window needs the main thread"),
        ("testsrc", {"settings": {"queues.poses": "ipc"}}, "one process"),
        ([], {}, "no source given"),
    ],
)
def test_bad_input_is_told_at_once(source: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        posestream.stream(source, **options)


# --- Stream --------------------------------------------------------------------------------------


class Alarm:
    """A sink with everything that a sink may have."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.closed = False

    def __call__(self, poses: posestream.Poses) -> None:
        self.counts.append(len(poses))

    def close(self) -> None:
        self.closed = True


def test_a_sink_of_ones_own_beside_the_others(folder: Path, tmp_path: Path) -> None:
    alarm = Alarm()
    seen: list[posestream.Poses] = []
    lines = tmp_path / "poses.jsonl"
    stream = posestream.Stream(
        {
            "sources": [str(folder)],
            "inference": {"engine": "torch", "device": "cpu"},
            "recorder.jsonl": str(lines),
        },
        sinks={"alarm": alarm, "mine": seen.append},
    )
    assert stream.run() == 0
    assert (alarm.counts, alarm.closed) == ([1, 2, 3, 0], True)
    assert all(isinstance(poses, posestream.Poses) for poses in seen)
    assert len(lines.read_text().splitlines()) == 4


def test_a_configuration_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(f"sources: [{folder}]\ninference: {{engine: torch, device: cpu}}\n")
    alarm = Alarm()
    assert posestream.Stream(path, sinks={"alarm": alarm}).run() == 0
    assert alarm.counts == [1, 2, 3, 0]


def test_stop_from_another_thread_ends_a_stream() -> None:
    config = {"sources": "testsrc=128x64", "inference": {"engine": "torch", "device": "cpu"}}
    stream = posestream.Stream(config, sinks={"stop": lambda _: stream.stop()})
    assert stream.run() == 0


def test_what_is_no_sink_is_refused() -> None:
    with pytest.raises(ConfigError, match="sink 'mine' must be something to call, got 5"):
        posestream.Stream({"sources": "testsrc"}, sinks={"mine": 5})  # type: ignore[dict-item]
