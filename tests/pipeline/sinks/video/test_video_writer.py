"""Video files: times, colours, sizes, and what a kill leaves."""

from __future__ import annotations

import itertools
import logging
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.sinks.video.video_writer import VideoWriter
from tests.support.clips import kill_once_written
from tests.support.people import poses_of


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond it (EFBIG; Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times_of(path: Path) -> list[float]:
    return [float(frame.pts * frame.time_base) for frame in frames_of(path)]  # type: ignore[operator]


NOBODY = np.zeros((0, 17, 3))


def write(path: Path, images: list[np.ndarray], **times: list) -> None:  # type: ignore[type-arg]
    writer = VideoWriter(path)
    for i, image in enumerate(images):
        moment = {name: values[i] for name, values in times.items()}
        frame = poses_of(NOBODY, index=i, **{"pts_seconds": i / 25, **moment}).frame
        writer.write(image, frame)
    writer.close()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_keep_their_times_and_dropped_ones_leave_a_pause(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"clip{suffix}"
    pts = [7.0, 7.04, 7.08, 7.2, 7.24, 8.9, 8.94]
    write(path, [grey(64, 96)] * len(pts), pts_seconds=pts)
    expected = [t - 7 for t in pts]
    assert times_of(path) == pytest.approx(expected, abs=0.0011 if suffix == ".mkv" else 1e-4)


def test_times_that_repeat_or_are_swapped_increase_strictly_and_recover(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    pts = [0.0, 0.04, 0.04, 0.04, 0.03, 0.2, 0.24]
    write(path, [grey(64, 96)] * len(pts), pts_seconds=pts)
    times = times_of(path)
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert times[-2:] == pytest.approx([0.2, 0.24], abs=1e-4)


@pytest.mark.parametrize("jump", [-1000.0, 1000.0])
def test_a_live_clock_that_jumps_is_bridged_by_arrival_times(tmp_path: Path, jump: float) -> None:
    path = tmp_path / "clip.mp4"
    arrival = [0.0, 0.04, 0.08, 3.08, 3.12, 3.16]  # the camera was away for three seconds
    pts = [50.0, 50.04, 50.08, 50 + jump, 50.04 + jump, 50.08 + jump]
    write(
        path,
        [grey(64, 96)] * 6,
        pts_seconds=pts,
        captured_ns=[round(t * 1e9) for t in arrival],
        live=[True] * 6,
    )
    assert times_of(path) == pytest.approx(arrival, abs=1e-4)


def test_without_presentation_times_a_camera_uses_arrival_and_a_file_its_rate(
    tmp_path: Path,
) -> None:
    seconds = [0.0, 0.5, 0.6, 2.0]
    captured = [round(t * 1e9) for t in seconds]
    images, none = [grey(64, 96)] * 4, [None] * 4
    write(tmp_path / "a.mp4", images, pts_seconds=none, captured_ns=captured, live=[True] * 4)
    assert times_of(tmp_path / "a.mp4") == pytest.approx(seconds, abs=1e-4)
    write(tmp_path / "b.mp4", images, pts_seconds=none, captured_ns=captured)
    assert times_of(tmp_path / "b.mp4") == pytest.approx([0, 1 / 30, 2 / 30, 3 / 30], abs=1e-4)


def test_still_pictures_are_shown_for_a_second_each(tmp_path: Path) -> None:
    path = tmp_path / "stills.mp4"
    writer = VideoWriter(path)
    for index in (0, 2, 3):  # one between them could not be read
        poses = poses_of(NOBODY, index=index, image_name=f"{index}.jpg")
        writer.write(grey(64, 96), poses.frame)
    writer.close()
    assert times_of(path) == pytest.approx([0.0, 1.0, 2.0])
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(3e6, rel=0.01)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pixels_that_are_not_square_stay_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"wide{suffix}"
    writer = VideoWriter(path)
    for index in range(3):
        writer.write(
            grey(64, 96), replace(poses_of(NOBODY, index=index).frame, pixel_aspect=24 / 11)
        )
    writer.close()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == Fraction(24, 11)
        assert (stream.height, stream.width) == (64, 96)


@pytest.mark.parametrize(("height", "space"), [(360, 6), (720, 1)])
def test_colours_come_back_and_the_tags_tell_how(tmp_path: Path, height: int, space: int) -> None:
    path = tmp_path / "clip.mp4"
    colors = np.array([[30, 40, 220], [40, 190, 40], [220, 60, 30], [128, 128, 128]])  # BGR
    image = np.repeat(np.repeat(colors.astype(np.uint8)[None], height, 0), height // 2, 1)
    write(path, [np.ascontiguousarray(image)] * 3)
    frame = frames_of(path)[1]
    assert (frame.colorspace, frame.color_range) == (space, 1)
    seen = frame.to_ndarray(format="bgr24").astype(int)
    for i, color in enumerate(colors):
        assert np.abs(seen[height // 2, i * height // 2 + height // 4] - color).max() <= 6


def test_odd_sizes_are_made_even_and_keep_every_pixel(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    image = np.full((77, 101, 3), 40, dtype=np.uint8)
    image[20:60, 30:70] = 200
    write(path, [image] * 3)
    seen = frames_of(path)[2].to_ndarray(format="bgr24").astype(int)
    assert seen.shape == (78, 102, 3)
    assert np.abs(seen[:77, :101] - image).mean() < 3


def test_a_picture_of_another_size_is_fitted_in_undistorted(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    tall = np.full((200, 100, 3), 200, dtype=np.uint8)
    write(path, [grey(120, 240), tall, grey(120, 240)])
    bright = frames_of(path)[1].to_ndarray(format="bgr24").mean(axis=-1) > 150
    assert bright.shape == (120, 240)
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert len(rows) == 120
    assert len(columns) == pytest.approx(60, abs=3)
    assert columns.mean() == pytest.approx(119.5, abs=2)


def test_sizes_that_change_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sizes = [(64, 96), (48, 48), (64, 96), (80, 40), (48, 48)]
    write(tmp_path / "folder.mp4", [grey(*size) for size in sizes])
    (line,) = [record.getMessage() for record in caplog.records]
    assert "a picture is 48x48" in line
    assert "fitted into 96x64" in line


def test_slow_cameras_too_get_a_keyframe_every_second(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    pts = [i / 4 for i in range(20)]
    write(path, [grey(64, 96)] * 20, pts_seconds=pts)
    keys = [t for t, frame in zip(pts, frames_of(path), strict=True) if frame.key_frame]
    assert keys == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])


def boxes_of(path: Path) -> list[str]:
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += size or len(data)
    return names


KILLED = """
import sys
from pathlib import Path
import numpy as np
from tests.support.people import poses_of
from pipeline.sinks.video.video_writer import VideoWriter

writer = VideoWriter(Path(sys.argv[1]))
nobody = np.zeros((0, 17, 3))
noise = np.random.default_rng(0).integers(0, 255, (160, 220, 3), dtype=np.uint8)
for i in range(300):
    writer.write(np.roll(noise, i, axis=1), poses_of(nobody, index=i, pts_seconds=i / 30).frame)
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_killed_process_leaves_a_readable_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    kill_once_written(KILLED, path)
    assert len(frames_of(path)) >= 269, "more than a second of ten is lost"


def test_a_closed_file_is_a_plain_mp4(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, [grey(64, 96)] * 70)
    assert "moov" in boxes_of(path)
    assert "moof" not in boxes_of(path)
    assert len(frames_of(path)) == 70


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("limit", [2_000, 300_000, 480_000])
def test_after_a_failed_write_what_is_whole_is_saved(
    tmp_path: Path, suffix: str, limit: int
) -> None:
    """The file's size is limited, as on FAT32: really, by the kernel."""
    path = tmp_path / f"clip{suffix}"
    writer = VideoWriter(path)
    noise = np.random.default_rng(0).integers(0, 255, (160, 220, 3), dtype=np.uint8)

    def write_all() -> None:
        for i in range(300):
            writer.write(noise, poses_of(np.zeros((0, 17, 3)), index=i, pts_seconds=i / 10).frame)
        writer.close()

    with file_size_limit(limit), pytest.raises(OSError, match="File too large"):
        write_all()
    num_saved = writer.salvage()
    assert writer.salvage() == 0
    if limit < 10_000:
        assert num_saved == 0
        assert not path.exists(), "a file without a picture was left behind"
    else:
        assert 0.5 * writer.num_pictures < num_saved < writer.num_pictures
        assert len(frames_of(path)) == num_saved, "the file ends in the middle of something"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_failure_at_the_very_end_costs_a_second_at_most(tmp_path: Path, suffix: str) -> None:
    def write_all(writer: VideoWriter) -> None:
        for i in range(45):
            nobody = np.zeros((0, 17, 3))
            writer.write(grey(64, 96), poses_of(nobody, index=i, pts_seconds=i / 15).frame)
        writer.close()

    whole = tmp_path / f"whole{suffix}"
    write_all(VideoWriter(whole))
    for missing in (20, 100, 200, 600):  # random ids in mkv vary by a byte or two
        path = tmp_path / f"clip{missing}{suffix}"
        writer = VideoWriter(path)
        too_small = file_size_limit(whole.stat().st_size - missing)
        with too_small, pytest.raises(OSError, match="File too large"):
            write_all(writer)
        num_saved = writer.salvage()
        assert num_saved == 30
        assert len(frames_of(path)) == num_saved
