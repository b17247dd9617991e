"""A whole stream over many frames: none is lost, nothing is left behind, latency does not grow.

The clip is tiny and played over and over; its one painted person stands elsewhere in each frame, so
poses tell which frame they were made from, whatever number they carry.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import pytest

from pipeline import queues
from pipeline.config import StreamConfig, load_config
from pipeline.messages import Poses
from pipeline.poses import FindPoses
from pipeline.stream import Stream
from tests.painted import grid_people, paint, painted_model

SIZE = (192, 128)
CLIP_FRAMES = 30
CLIP_FPS = 50
STEP_PX = 1.5
TOLERANCE_PX = 1.5
SLACK = 3
"""Queues are now fuller, now emptier. What leaks once a pass over the clip leaks ten and more."""

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc/self/fd"),
]


def person_at(index: int) -> np.ndarray:
    """(1, K, 2): the painted person of a frame of the clip, also when it is played again."""
    return grid_people(1, origin=(20 + STEP_PX * (index % CLIP_FRAMES), 30))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options={"crf": "4", "g": "10"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(CLIP_FRAMES):
            picture = paint(SIZE, person_at(index))
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def looped(clip: Path, num_frames: int, jsonl: Path, *, pace: bool = False) -> StreamConfig:
    return load_config(
        sources=[str(clip)],
        every_source={"loop": True, "max_frames": num_frames, "pace": pace},
        settings={
            "inference.engine": "torch",
            "preprocess.input_size": min(SIZE),
            "poses.refine": "off",
            "recorder.jsonl": str(jsonl),
        },
    )


def read_messages(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def what_is_held() -> dict[str, int]:
    """What a leak would make grow."""
    return {
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "system threads": len(os.listdir("/proc/self/task")),
        "handles in queues": len(queues._handles),
    }


def left_behind(before: dict[str, int]) -> dict[str, int]:
    """What is held now beyond that; a few seconds are given to let go of it."""
    deadline = time.monotonic() + 5
    while True:
        more = {what: n - before[what] for what, n in what_is_held().items() if n > before[what]}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.1)


def watch(stream: Stream) -> list[dict[str, int]]:
    """What is held at every result, from now on."""
    held: list[dict[str, int]] = []
    finished = stream.stats.finished

    def finished_and_noted(source: str, *, latency_ms: float, people: int) -> None:
        held.append(what_is_held())
        finished(source, latency_ms=latency_ms, people=people)

    stream.stats.finished = finished_and_noted  # type: ignore[method-assign]
    return held


def test_all_frames_arrive_in_order_and_nothing_grows(clip: Path, tmp_path: Path) -> None:
    num_frames = 600
    jsonl = tmp_path / "poses.jsonl"
    assert Stream(looped(clip, 60, jsonl), model=painted_model()).run() == 0  # opens what stays
    time.sleep(0.5)  # ZeroMQ closes sockets in the background
    before = what_is_held()
    stream = Stream(looped(clip, num_frames, jsonl), model=painted_model())
    held = watch(stream)
    assert stream.run() == 0

    messages = read_messages(jsonl)
    assert [message["frame"] for message in messages] == list(range(num_frames))
    for message in messages:
        (person,) = message["people"]
        truth = person_at(message["frame"])[0]
        np.testing.assert_allclose(
            np.array(person["keypoints"])[:, :2], truth, atol=TOLERANCE_PX, err_msg=str(message)
        )
    assert stream.stats.snapshot()["sources"]["clip"]["dropped"] == {}

    early, late = held[CLIP_FRAMES : num_frames // 2], held[num_frames // 2 :]
    for what in before:
        most = max(now[what] for now in late)
        assert most <= max(now[what] for now in early) + SLACK, f"{what} grow"
    assert left_behind(before) == {}


def test_an_overloaded_live_stream_keeps_up_by_dropping(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_frames = 150
    find_poses = FindPoses.__call__

    def slow(self: FindPoses, output: Any) -> Iterator[Poses]:
        time.sleep(3 / CLIP_FPS)  # so the source is three times too fast
        return find_poses(self, output)

    monkeypatch.setattr(FindPoses, "__call__", slow)
    jsonl = tmp_path / "poses.jsonl"
    stream = Stream(looped(clip, num_frames, jsonl, pace=True), model=painted_model())
    assert stream.run() == 0

    source = stream.stats.snapshot()["sources"]["clip"]
    dropped = source["dropped_at"].get("decoder:clip", {})
    assert set(dropped) == {"newer"}
    assert source["results"] + dropped["newer"] == num_frames
    assert num_frames / 10 < source["results"] < num_frames / 2

    messages = read_messages(jsonl)
    frames = [message["frame"] for message in messages]
    assert frames == sorted(set(frames))
    assert frames[-1] == num_frames - 1, "the newest frame always arrives"
    # Were frames queued, the last third would wait five times as long as the first.
    latencies = [message["latency_ms"] for message in messages]
    third = len(latencies) // 3
    assert median(latencies[-third:]) < 2 * median(latencies[:third])
