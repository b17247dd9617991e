"""A whole stream on painted people: what goes in is known, so is what must come out."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from common.settings import ConfigError
from pipeline.config import StreamConfig, load_config
from pipeline.stream import Stream, run
from tests.support.painted import grid_people, paint, painted_model

SIZE = (256, 384)
"""Of every painted picture; the paint reader's input size, so only padding moves coordinates."""
TOLERANCE_PX = 1.5


def moving_people(index: int, *, count: int = 2) -> np.ndarray:
    """Where the painted people of a clip's frame stand: (P, K, 2)."""
    return grid_people(count) + (0.5 * index, 0.25 * index)


def write_clip(path: Path, num_frames: int, *, rotation: int = 0, fps: int = 25) -> None:
    """An H.264 clip of painted people, as good as lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4", "g": "10"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            picture = paint(SIZE, moving_people(index))
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def settings(source: str | Path, **others: Any) -> StreamConfig:
    return load_config(
        sources=[str(source)],
        settings={"inference.engine": "torch", "poses.refine": "off", **others},
    )


def run_painted(config: StreamConfig) -> int:
    return Stream(config, model=painted_model()).run()


def read_messages(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_people_are(message: dict[str, Any], expected: np.ndarray) -> None:
    """The message holds exactly these people, in any order, every keypoint in its place."""
    assert len(message["people"]) == len(expected)
    found = sorted((person["keypoints"] for person in message["people"]), key=lambda k: k[0][0])
    for keypoints, truth in zip(np.array(found), expected, strict=True):
        np.testing.assert_allclose(keypoints[:, :2], truth, atol=TOLERANCE_PX)
        assert (keypoints[:, 2] > 0.1).all()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_clip(path, 30)
    return path


def test_a_clip_becomes_poses_video_and_files(clip: Path, tmp_path: Path) -> None:
    outputs = {
        "recorder.jsonl": tmp_path / "poses.jsonl",
        "recorder.openpose": tmp_path / "openpose",
        "recorder.coco": tmp_path / "coco.json",
        "video.path": tmp_path / "overlay.mp4",
    }
    assert run_painted(settings(clip, **{name: str(path) for name, path in outputs.items()})) == 0

    messages = read_messages(outputs["recorder.jsonl"])
    assert [message["frame"] for message in messages] == list(range(30))
    assert [message["seq"] for message in messages] == list(range(30))
    for message in messages:
        assert message["pts_seconds"] == pytest.approx(message["frame"] / 25)
        assert message["size"] == list(SIZE)
        assert_people_are(message, moving_people(message["frame"]))

    assert len(list((tmp_path / "openpose").iterdir())) == 30
    assert len(json.loads(outputs["recorder.coco"].read_text())) == 60
    with av.open(str(outputs["video.path"])) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(frames) == 30
    assert frames[0].shape == (*SIZE, 3)
    plain = paint(SIZE, moving_people(0)).astype(int)
    assert np.abs(frames[0] - plain).max() > 100, "nothing was drawn over the picture"


def test_people_keep_their_ids_and_raw_keypoints_stand_beside_smoothed_ones(
    clip: Path, tmp_path: Path
) -> None:
    jsonl = tmp_path / "poses.jsonl"
    assert run_painted(settings(clip, **{"recorder.jsonl": str(jsonl)})) == 0
    messages = read_messages(jsonl)
    for message in messages:
        people = sorted(message["people"], key=lambda person: person["keypoints"][0][0])
        ids = [person["id"] for person in people]
        assert set(ids) == {None} if message["frame"] < 2 else sorted(ids) == [1, 2]
        if message["frame"] >= 2:
            assert ids == [p["id"] for p in sorted(messages[2]["people"], key=_first_x)]
        for person in people:
            raw = np.array(person["keypoints"])[:, :2]
            np.testing.assert_allclose(person["smoothed"], raw, atol=2 * TOLERANCE_PX)


def _first_x(person: dict[str, Any]) -> float:
    return float(person["keypoints"][0][0])


@pytest.mark.parametrize(
    ("switch", "has_ids"), [("tracker.enabled", False), ("smooth.enabled", True)]
)
def test_tracker_and_filter_can_be_switched_off(
    clip: Path, tmp_path: Path, switch: str, has_ids: bool
) -> None:
    jsonl = tmp_path / "poses.jsonl"
    assert run_painted(settings(clip, **{"recorder.jsonl": str(jsonl), switch: "off"})) == 0
    people = [person for message in read_messages(jsonl) for person in message["people"]]
    assert all(person["smoothed"] is None for person in people)
    assert any(person["id"] is not None for person in people) is has_ids


def test_a_folder_of_images_of_changing_size_and_an_empty_picture(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    people = grid_people(1)
    cv2.imwrite(str(folder / "a.png"), paint(SIZE, people))
    cv2.imwrite(str(folder / "b.png"), paint((320, 256), people))
    cv2.imwrite(str(folder / "c.png"), np.zeros((300, 256, 3), np.uint8))
    jsonl = tmp_path / "poses.jsonl"
    assert run_painted(settings(folder, **{"recorder.jsonl": str(jsonl)})) == 0
    wide, high, empty = read_messages(jsonl)
    assert_people_are(wide, people)
    assert_people_are(high, people)
    assert empty["people"] == []


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_metadata_is_applied(tmp_path: Path, rotation: int) -> None:
    path = tmp_path / "turned.mp4"
    write_clip(path, 3, rotation=rotation)
    jsonl = tmp_path / "poses.jsonl"
    assert run_painted(settings(path, **{"recorder.jsonl": str(jsonl)})) == 0
    message = read_messages(jsonl)[0]

    capture = cv2.VideoCapture(str(path))  # turns pictures itself: the independent definition
    upright = capture.read()[1]
    capture.release()
    assert message["size"] == list(upright.shape[:2])
    height, width = SIZE
    x, y = moving_people(0)[..., 0], moving_people(0)[..., 1]
    truth = {
        90: np.stack([y, width - 1 - x], axis=-1),  # counterclockwise, as FFmpeg counts
        180: np.stack([width - 1 - x, height - 1 - y], axis=-1),
        -90: np.stack([height - 1 - y, x], axis=-1),
    }[rotation]
    truth = truth[np.argsort(truth[:, 0, 0])]
    assert_people_are(message, truth)
    px, py = np.round(truth[0, 0]).astype(int)
    assert upright[py, px].max() > 200, "the truth itself is wrong: no paint there"


def test_several_sources_share_the_network(clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    write_clip(other, 12)
    jsonl, overlay = tmp_path / "poses.jsonl", tmp_path / "overlay.mp4"
    config = load_config(
        sources=[str(clip), str(other), str(clip)],
        settings={
            "inference.engine": "torch",
            "poses.refine": "off",
            "recorder.jsonl": str(jsonl),
            "video.path": str(overlay),
        },
    )
    assert run_painted(config) == 0
    messages = read_messages(jsonl)
    for name, num_frames in (("clip", 30), ("other", 12), ("clip-2", 30)):
        own = [message for message in messages if message["stream"] == name]
        assert [message["frame"] for message in own] == list(range(num_frames))
        assert [message["seq"] for message in own] == list(range(num_frames))
        for message in own:
            assert_people_are(message, moving_people(message["frame"]))
        assert (tmp_path / f"overlay-{name}.mp4").exists()


def test_a_paced_source_is_live_and_may_lose_frames_but_never_order(
    clip: Path, tmp_path: Path
) -> None:
    jsonl = tmp_path / "poses.jsonl"
    config = load_config(
        sources=[str(clip)],
        every_source={"pace": True},
        settings={"inference.engine": "torch", "recorder.jsonl": str(jsonl)},
    )
    stream = Stream(config, model=painted_model())
    assert stream.run() == 0
    frames = [message["frame"] for message in read_messages(jsonl)]
    assert frames == sorted(set(frames))
    assert frames[-1] == 29, "the last frame always arrives"
    source = stream.stats.snapshot()["sources"]["clip"]
    assert source["results"] + sum(source["dropped_at"].get("decoder:clip", {}).values()) == 30


def test_a_truncated_video_gives_what_it_has_and_exit_code_2(clip: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    with av.open(str(clip)) as source, av.open(str(whole), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    jsonl = tmp_path / "poses.jsonl"
    assert run_painted(settings(cut, **{"recorder.jsonl": str(jsonl)})) == 2
    frames = [message["frame"] for message in read_messages(jsonl)]
    assert 3 < len(frames) < 30
    assert frames == list(range(len(frames)))


def test_a_stage_that_fails_stops_the_stream_and_files_are_finished(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.poses import FindPoses

    def failing(self: FindPoses, output: Any) -> Iterator[Any]:
        if output.frames[0].index == 7:
            raise RuntimeError("a bug")
        yield from find_poses(self, output)

    find_poses = FindPoses.__call__
    monkeypatch.setattr(FindPoses, "__call__", failing)
    jsonl, overlay = tmp_path / "poses.jsonl", tmp_path / "overlay.mp4"
    config = settings(clip, **{"recorder.jsonl": str(jsonl), "video.path": str(overlay)})
    assert run_painted(config) == 1
    num_messages = len(read_messages(jsonl))
    assert 5 <= num_messages <= 7
    with av.open(str(overlay)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 5


def test_the_log_says_what_can_be_subscribed_to(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(
        sources=[str(clip), str(clip)],
        every_source={"max_frames": 1},
        settings={"inference.engine": "torch", "publisher.endpoint": "tcp://127.0.0.1:*"},
    )
    with caplog.at_level(logging.INFO):
        assert run_painted(config) == 0
    assert "topics: pose/<stream>/ and status/<stream>/ of clip, clip-2" in caplog.messages


def test_no_thread_is_left(clip: Path) -> None:
    before = threading.active_count()
    assert run_painted(settings(clip)) == 0
    assert threading.active_count() == before


def test_without_a_source_the_user_is_told_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"no source given; try: run_stream.py demo"):
        run(load_config(), quiet=True)


def test_bad_weights_cost_nobody_a_file(clip: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "poses.jsonl"
    jsonl.write_text("yesterday\n")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"not weights")
    config = settings(clip, **{"recorder.jsonl": str(jsonl), "weights": str(weights)})
    with pytest.raises(ValueError, match=r"weights\.pth"):
        Stream(config)
    assert jsonl.read_text() == "yesterday\n"
