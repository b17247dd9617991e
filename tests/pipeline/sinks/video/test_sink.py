"""The sink of videos: which file of which source gets what, and what bad paths cost."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.messages import Poses
from pipeline.sinks.overlay import drawn_picture, picture
from pipeline.sinks.video.segment_index import read_index
from pipeline.sinks.video.sink import VideoSink
from tests.support.people import poses_of, standing_person

GREY = 90


def grey(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def one() -> np.ndarray:
    return standing_person(80, 10, 100)[None]


def poses_at(seconds: float, image: np.ndarray, *, source: str, index: int) -> Poses:
    return poses_of(
        one(),
        image=image,
        source=source,
        index=index,
        pts_seconds=seconds,
        captured_ns=round(seconds * 1e9),
    )


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere/clip.mp4", "does not exist"),
        ("clip.avi", "must end in .mkv or .mp4"),
        ("clip", "must end in"),
        ("folder.mp4", "is a folder"),
        ("/proc/clip.mp4", "cannot be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, name: str, complaint: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match=complaint) as refusal:
        VideoSink(tmp_path / name, drawn_picture)
    assert "\n" not in str(refusal.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.mp4"]


def test_checking_the_path_leaves_an_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    sink = VideoSink(path, drawn_picture)
    sink.close()
    sink.close()
    assert path.read_bytes() == b"old"


def test_two_streams_cannot_write_one_video(tmp_path: Path) -> None:
    first = VideoSink(tmp_path / "clip.mp4", drawn_picture)
    with pytest.raises(ValueError, match="is being written by another stream"):
        VideoSink(tmp_path / "clip.mp4", drawn_picture)
    first.close()
    VideoSink(tmp_path / "clip.mp4", drawn_picture).close()
    assert not list(tmp_path.iterdir())


def test_every_source_gets_its_own_video_of_drawn_pictures(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "poses.mp4", drawn_picture, per_source=True)
    for i in range(4):
        for source in ("cam1", "cam/2"):
            image = grey()
            sink(poses_of(one(), image=image, source=source, index=i, pts_seconds=i / 25))
            assert (image == GREY).all(), "the frame's own pixels were drawn upon"
    sink.close()
    sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["poses-cam1.mp4", "poses-cam_2.mp4"]
    for path in tmp_path.iterdir():
        frames = frames_of(path)
        assert len(frames) == 4
        assert frames[0].std() > 5


def test_a_clean_video_shows_the_pictures_as_they_came(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "clean.mkv", picture)
    for i in range(4):
        sink(poses_of(one(), image=grey(), index=i, pts_seconds=i / 25))
    sink.close()
    assert all(np.abs(f.astype(int) - GREY).max() <= 4 for f in frames_of(tmp_path / "clean.mkv"))


def test_a_single_source_gets_the_path_itself_and_a_late_one_its_name(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "poses.mkv", drawn_picture)
    for source in ("front", "back"):
        sink(poses_of(one(), image=grey(), source=source))
    sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["poses-back.mkv", "poses.mkv"]


def test_names_that_would_share_a_file_are_refused(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "poses.mp4", drawn_picture, per_source=True)
    sink(poses_of(one(), image=grey(), source="cam 1"))
    with pytest.raises(ValueError, match="would both write"):
        sink(poses_of(one(), image=grey(), source="cam?1"))
    sink.close()


def test_on_black_needs_no_pixel_of_the_frame(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "poses.mp4", lambda poses: drawn_picture(poses, on_black=True))
    sink(poses_of(one(), size=(120, 160)))
    sink.close()
    image = frames_of(tmp_path / "poses.mp4")[0]
    assert np.median(image) < 5
    assert image.max() > 150


def test_segments_of_all_sources_stand_in_one_index_that_later_runs_go_on_with(
    tmp_path: Path,
) -> None:
    for run in range(2):
        sink = VideoSink(tmp_path / "poses.mp4", drawn_picture, per_source=True, segment_s=1)
        for i in range(5):
            for source in ("cam1", "cam2"):
                sink(poses_at(100 * run + i / 2, grey(), source=source, index=i))
        sink.close()
    segments = list(read_index(tmp_path / "poses.mp4.jsonl").values())
    assert len(segments) == 2 * 2 * 3
    files = {path.name for path in tmp_path.glob("*.mp4")}
    assert {segment.file for segment in segments} == files
    for segment in segments:
        assert segment.file.startswith(f"poses-{segment.stream}-20261121T22")
        assert segment.pictures == len(frames_of(tmp_path / segment.file))
        assert segment.bytes == (tmp_path / segment.file).stat().st_size


def test_keep_gb_counts_all_sources_together(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    keep_bytes = 40_000
    sink = VideoSink(
        tmp_path / "poses.mp4", picture, per_source=True, segment_s=1, keep_gb=keep_bytes / 1e9
    )
    for i in range(40):
        for source in ("cam1", "cam2"):
            sink(poses_at(i / 4, noise, source=source, index=i))
    sink.close()
    files = list(tmp_path.glob("*.mp4"))
    sizes = [path.stat().st_size for path in files]
    assert keep_bytes / 2 < sum(sizes) < keep_bytes + 3 * max(sizes)
    assert {name.name.split("-")[1] for name in files} == {"cam1", "cam2"}
    assert {path.name for path in files} == set(read_index(tmp_path / "poses.mp4.jsonl"))
