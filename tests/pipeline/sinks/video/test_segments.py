"""One file after another: when a new one begins, and what happens when none can be written."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.messages import Frame
from pipeline.sinks.video.segment_index import SegmentIndex, read_index
from pipeline.sinks.video.segments import Recording
from pipeline.sinks.video.video_writer import VideoWriter
from tests.support.clips import kill_once_written
from tests.support.people import poses_of
from tests.support.places import ROOT
from tests.support.waiting import PATIENCE_SECONDS

START_UNIX_S = 1_795_300_000.1234  # of poses_of


def grey(height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def frame_at(seconds: float, *, index: int = 0, live: bool = True, pts: bool = True) -> Frame:
    return poses_of(
        np.zeros((0, 17, 3)),
        index=index,
        captured_ns=round(seconds * 1e9),
        pts_seconds=seconds if pts else None,
        live=live,
    ).frame


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def seconds_of(path: Path) -> float:
    with av.open(str(path)) as container:
        assert container.duration is not None
        return container.duration / 1e6


def videos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mp4"))


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def record(recording: Recording, times: Sequence[float], image: np.ndarray | None = None) -> None:
    for i, seconds in enumerate(times):
        recording.write(grey() if image is None else image, frame_at(seconds, index=i))


def test_ten_minutes_with_drops_and_a_silence_play_ten_minutes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept = np.flatnonzero(rng.random(3000) < 0.5) / 5  # a 5 fps camera; every other frame drops
    times = [0.0, *(t for t in kept if 0 < t < 590 and not 200 < t < 217), 600.0]
    index = SegmentIndex(tmp_path / "index.jsonl")
    recording = Recording(tmp_path / "cam.mp4", segment_s=60, index=index)
    record(recording, times)
    recording.close()
    assert 9 <= len(videos(tmp_path)) <= 10
    starts, ends = zip(
        *((s.start_unix_s, s.end_unix_s) for s in read_index(tmp_path / "index.jsonl").values()),
        strict=True,
    )
    assert starts[0] == pytest.approx(START_UNIX_S)
    assert ends[-1] - starts[0] == pytest.approx(600)
    for path, start, end in zip(videos(tmp_path), starts, ends, strict=True):
        assert seconds_of(path) == pytest.approx(end - start, abs=1.5), "its last picture stays"
    assert sum(map(num_frames, videos(tmp_path))) == len(times)

    whole = Recording(tmp_path / "whole.mp4")
    record(whole, times)
    whole.close()
    assert seconds_of(tmp_path / "whole.mp4") == pytest.approx(600, abs=1.5)


def test_a_segment_is_never_longer_than_asked_even_after_a_silence(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "cam.mp4", segment_s=10)
    record(recording, [0, 4, 8, 3600, 3605, 3609.9, 3610])
    recording.close()
    assert [num_frames(path) for path in videos(tmp_path)] == [3, 3, 1]
    assert all(seconds_of(path) < 20 for path in videos(tmp_path))


def test_another_picture_size_begins_a_new_segment_but_not_a_new_single_file(
    tmp_path: Path,
) -> None:
    sizes = [(48, 64), (48, 64), (64, 48), (64, 48), (63, 47), (48, 64)]
    for segment_s, name in ((60, "segments.mp4"), (None, "single.mp4")):
        recording = Recording(tmp_path / name, segment_s=segment_s)
        for i, size in enumerate(sizes):
            recording.write(grey(*size), frame_at(i / 10, index=i))
        recording.close()
    # 63x47 is made even, and so is the same.
    assert [num_frames(path) for path in sorted(tmp_path.glob("segments-*.mp4"))] == [2, 3, 1]
    assert num_frames(tmp_path / "single.mp4") == 6


def test_a_live_source_gets_a_new_file_every_hour_and_a_video_does_not(tmp_path: Path) -> None:
    for live in (True, False):
        recording = Recording(tmp_path / f"live-{live}.mp4")
        for i, seconds in enumerate((0, 1800, 3599, 3600, 5400)):
            recording.write(grey(), frame_at(seconds, index=i, live=live))
        recording.close()
    files = [path.name for path in videos(tmp_path)]
    assert files == ["live-False.mp4", "live-True-20261121T232640.123Z.mp4", "live-True.mp4"]
    assert [num_frames(tmp_path / name) for name in files] == [5, 2, 3]


@pytest.mark.parametrize("live", [True, False])
def test_the_file_of_a_camera_that_is_gone_is_finished(tmp_path: Path, live: bool) -> None:
    clock, index = Clock(), SegmentIndex(tmp_path / "index.jsonl")
    recording = Recording(tmp_path / "cam.mp4", segment_s=60, index=index, now=clock)
    recording.write(grey(), frame_at(0, live=live))
    for _ in range(60):
        clock.seconds += 1
        recording.close_if_silent()
    assert [s.pictures for s in read_index(tmp_path / "index.jsonl").values()] == [None]
    clock.seconds += 15
    recording.close_if_silent()
    recording.close_if_silent()
    finished = [s.pictures for s in read_index(tmp_path / "index.jsonl").values()]
    assert finished == ([1] if live else [None]), "a slow network must not cut a file up"
    recording.write(grey(), frame_at(75, index=1, live=live))
    recording.close()
    assert sum(map(num_frames, videos(tmp_path))) == 2


@pytest.mark.parametrize("live", [True, False])
def test_a_live_source_replaces_no_video_of_an_earlier_run(tmp_path: Path, live: bool) -> None:
    path = tmp_path / "cam.mp4"
    for _ in range(2):
        recording = Recording(path)
        recording.write(grey(), frame_at(0, live=live))
        recording.close()
    assert [num_frames(video) for video in videos(tmp_path)] == ([1, 1] if live else [1])


# A disk that is full


def test_a_full_disk_is_said_once_counted_and_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """/dev/full is the real thing: the kernel says that no space is left."""
    path, clock = tmp_path / "cam.mp4", Clock()
    path.symlink_to("/dev/full")
    caplog.set_level(logging.INFO)
    recording = Recording(path, now=clock)
    for i in range(200):  # 20 s, the room is there again all the time: found after 5 s
        recording.write(grey(), frame_at(i / 10, index=i))
        clock.seconds += 0.1
    recording.close()
    assert set(recording.unwritten) == {"disk_full"}
    (file,) = videos(tmp_path)
    assert re.fullmatch(r"cam-20261\d{3}T\d{6}\.\d{3}Z\.mp4", file.name)
    assert num_frames(file) + recording.unwritten.total() == 200
    assert 49 <= recording.unwritten.total() <= 60
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "No space left on device; the stream goes on" in warnings[0]
    assert f"{recording.unwritten.total()} pictures" in warnings[1]


def test_a_full_disk_is_not_tried_before_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "cam.mp4", Clock()
    path.symlink_to("/dev/full")
    free = [0]
    monkeypatch.setattr("pipeline.sinks.video.segments._free_bytes", lambda _: free[0])
    recording = Recording(path, now=clock)
    for i in range(600):
        recording.write(grey(), frame_at(i / 10, index=i))
        clock.seconds += 0.1
        assert i < 50 or videos(tmp_path) == []
    assert len(caplog.records) == 1
    lost = recording.unwritten.total()
    assert lost >= 590  # those in the encoder are counted at the latest when it is given up
    free[0] = 100_000_000
    for i in range(600, 700):
        recording.write(grey(), frame_at(i / 10, index=i))
        clock.seconds += 0.1
    recording.close()
    assert recording.unwritten.total() == 700 - num_frames(videos(tmp_path)[0])
    assert recording.unwritten.total() <= lost + 60


def test_a_file_that_may_not_grow_is_followed_by_the_next(tmp_path: Path) -> None:
    """4 GB on FAT32: what is whole stays, and the next file begins at once."""
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unwritten = json.loads(done.stdout)
    assert set(unwritten) == {"file_too_large"}
    files = videos(tmp_path)
    assert len(files) >= 3
    assert all(path.stat().st_size <= 300_000 for path in files)
    assert sum(map(num_frames, files)) + unwritten["file_too_large"] == 300
    assert unwritten["file_too_large"] < 25 * len(files), "more than a second or two a file"
    listed = read_index(tmp_path / "index.jsonl")
    assert {name: s.pictures for name, s in listed.items()} == {
        path.name: num_frames(path) for path in files
    }


LIMITED = """
import json, resource, sys
from pathlib import Path
import numpy as np
from tests.support.people import poses_of
from pipeline.sinks.video.segment_index import SegmentIndex
from pipeline.sinks.video.segments import Recording

resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
folder, seconds = Path(sys.argv[1]), [0.0]
index = SegmentIndex(folder / "index.jsonl")
recording = Recording(folder / "cam.mp4", segment_s=3600, index=index, now=lambda: seconds[0])
rng = np.random.default_rng(0)
for i in range(300):
    seconds[0] = i / 10
    image = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    frame = poses_of(
        np.zeros((0, 17, 3)), index=i, pts_seconds=i / 10, captured_ns=i * 10**8, live=True
    ).frame
    recording.write(image, frame)
recording.close()
print(json.dumps(recording.unwritten))
"""


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_any_trouble_of_the_disk_leaves_the_stream_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    clock, broken = Clock(), [False]
    write = VideoWriter.write

    def on_a_broken_disk(self: VideoWriter, image: np.ndarray, frame: Frame) -> None:
        write(self, image, frame)
        if broken[0]:
            raise OSError(code, "broken")

    monkeypatch.setattr(VideoWriter, "write", on_a_broken_disk)
    recording = Recording(tmp_path / "cam.mp4", segment_s=30, now=clock)
    for i in range(600):
        broken[0] = 200 <= i < 400
        recording.write(grey(), frame_at(i / 10, index=i))
        clock.seconds += 0.1
    recording.close()
    assert set(recording.unwritten) == {"cannot_write"}
    assert 190 <= recording.unwritten["cannot_write"] <= 270
    assert sum(map(num_frames, videos(tmp_path))) == 600 - recording.unwritten["cannot_write"]


def test_a_disk_that_does_not_even_answer_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    clock = Clock()
    recording = Recording(tmp_path / "cam.mp4", segment_s=30, now=clock)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", broken)
        for i in range(100):
            recording.write(grey(), frame_at(i / 10, index=i))
            clock.seconds += 0.1
    assert recording.unwritten == {"cannot_write": 100}
    clock.seconds += 5
    recording.write(grey(), frame_at(15, index=100))
    recording.close()
    assert [num_frames(path) for path in videos(tmp_path)] == [1]


def test_a_folder_that_vanishes_and_returns(tmp_path: Path) -> None:
    folder, clock = tmp_path / "usb", Clock()
    folder.mkdir()
    recording = Recording(
        folder / "cam.mp4", segment_s=2, index=SegmentIndex(folder / "i.jsonl"), now=clock
    )
    for i in range(300):
        if i == 100:
            folder.rename(tmp_path / "unplugged")
        if i == 200:
            (tmp_path / "unplugged").rename(folder)
        recording.write(grey(), frame_at(i / 10, index=i))
        clock.seconds += 0.1
    recording.close()
    assert 100 <= recording.unwritten["cannot_write"] <= 170
    listed = {name: s.pictures for name, s in read_index(folder / "i.jsonl").items()}
    assert listed == {name: num_frames(folder / name) for name in listed}
    assert sum(count or 0 for count in listed.values()) == 300 - recording.unwritten.total()


# A process that is killed

KILLED = """
import sys
from pathlib import Path
import numpy as np
from tests.support.people import poses_of
from pipeline.sinks.overlay import picture
from pipeline.sinks.video.sink import VideoSink

sink = VideoSink(Path(sys.argv[1]), picture, segment_s=4)
noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
for i in range(300):
    image = np.ascontiguousarray(np.roll(noise, i, axis=1))
    moment = {"index": i, "pts_seconds": i / 30, "captured_ns": i * 10**9 // 30}
    sink(poses_of(np.zeros((0, 17, 3)), image=image, live=True, **moment))
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_segments_and_their_index_survive_a_kill(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cam{suffix}"
    kill_once_written(KILLED, path)
    segments = list(read_index(tmp_path / f"cam{suffix}.jsonl").values())
    counts = [num_frames(tmp_path / segment.file) for segment in segments]
    assert counts[:2] == [120, 120] == [segment.pictures for segment in segments[:2]]
    assert segments[2].pictures is None
    assert len(counts) == 3
    assert sum(counts) >= 269, "more than a second of ten is lost"
    starts = [segment.start_unix_s - START_UNIX_S for segment in segments]
    assert starts == pytest.approx([0, 4, 8], abs=0.001)
    for earlier, later in itertools.pairwise(segments):
        assert earlier.end_unix_s == pytest.approx(later.start_unix_s, abs=0.04)
