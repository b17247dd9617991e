"""What all sources share: pace, repetition, the end, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import SourceConfig
from pipeline.messages import Region
from pipeline.sources.source import SourceSettings, region_of
from tests.support.clips import number_of, open_with, patches, read, reading, write_clip
from tests.support.waiting import wait_until


def test_pace_plays_at_the_files_own_speed_as_if_live(clip: Path) -> None:
    source = open_with(clip, pace=True, max_frames=12)
    assert source.live
    frames = list(source.frames())
    seconds = np.array([frame.captured_ns for frame in frames]) / 1e9
    due = np.array([frame.pts_seconds for frame in frames])
    assert all(frame.live for frame in frames)
    # Never early; late only by what the machine makes of a sleep.
    assert np.all((seconds - seconds[0]) - (due - due[0]) > -0.005)


def test_stop_from_another_thread_ends_a_long_wait() -> None:
    source = open_with(
        "testsrc=64x48@0.001", pace=True
    )  # the second picture is due in 1000 seconds
    with reading(source) as numbers:
        wait_until(lambda: source.status.state == "live")
    assert numbers == [0]


def test_loop_repeats_with_rising_times_until_max_frames(clip: Path) -> None:
    source = open_with(clip, loop=True, max_frames=75)
    assert source.num_frames == 75
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(75))
    assert [number_of(frame) for frame in frames] == [i % 30 for i in range(75)]
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(75) / 25)
    assert open_with(clip, loop=True).num_frames is None


def test_max_frames_ends_a_source(clip: Path) -> None:
    source = open_with(clip, max_frames=7)
    assert source.num_frames == 7
    assert len(list(source.frames())) == 7
    assert open_with(clip, max_frames=99).num_frames == 30


def test_a_stopped_source_gives_nothing_and_no_error(clip: Path) -> None:
    source = open_with(clip)
    source.close()
    assert list(source.frames()) == []
    assert source.status.state == "ended"


def test_leaving_the_loop_closes_the_file(clip: Path) -> None:
    frames = open_with(clip).frames()
    next(frames)
    assert str(clip) in _open_files()
    del frames
    assert str(clip) not in _open_files()


def _open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("counting open files needs /proc")
    return {str(link.resolve()) for link in folder.iterdir()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_frames": 0},
        {"max_fps": 0.0},
        {"roi": (0, 0, 0, 1)},
        {"rotation": 45},
        {"transport": "pigeon"},
        {"read_timeout_seconds": 0.0},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        SourceSettings(**wrong)


def test_every_setting_of_a_source_reaches_it() -> None:
    """stream.py hands a source's configuration on, all but what open_source takes by itself."""
    config = SourceConfig(
        input="demo", max_fps=5, roi=(0, 0, 0.5, 1), rotation=90, transport="udp", reconnect=False
    )
    given = config.model_dump(exclude={"input", "name", "decode"})
    settings = SourceSettings(**given)
    assert {name: getattr(settings, name) for name in given} == given
    defaults = SourceConfig(input="demo").model_dump(exclude={"input", "name", "decode"})
    assert SourceSettings(**defaults) == SourceSettings()


# --- fewer frames, a part of the picture, another way up -----------------------------------------


def test_max_fps_keeps_every_nth_frame_and_counts_what_it_left_out(clip: Path) -> None:
    source = open_with(clip, max_fps=5.0)
    assert source.num_frames == 6
    frames = list(source.frames())
    assert [number_of(frame) for frame in frames] == [0, 5, 10, 15, 20, 25]
    assert [frame.index for frame in frames] == list(range(6))  # a gap would be a drop
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(6) / 5)
    assert source.status.left_out == 24
    assert [number_of(f) for f in read(clip, max_fps=5.0, max_frames=2)] == [0, 5]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_can_be_overridden(tmp_path: Path, rotation: int) -> None:
    for turned in (0, 90):  # whatever the container says
        path = write_clip(tmp_path / f"{turned}.mp4", [patches()], rotation=turned)
        (frame,) = read(path, rotation=rotation)
        assert frame.rotation == rotation
        upright = np.rot90(patches(), k=-rotation // 90)
        assert frame.size == upright.shape[:2]
        assert np.abs(frame.to_host().astype(int) - upright).mean() < 4


@pytest.mark.parametrize(
    ("roi", "size", "region"),
    [
        ((0.0, 0.0, 1.0, 1.0), (96, 128), (0, 0, 128, 96)),
        ((0.5, 0.25, 0.5, 0.5), (96, 128), (64, 24, 64, 48)),
        ((10, 20, 50, 40), (96, 128), (10, 20, 50, 40)),
        ((100, 20, 500, 400), (96, 128), (100, 20, 28, 76)),  # cut at the picture's edge
        ((120, 20, 500, 400), (96, 128), None),  # eight pixels are nothing to look at
        ((500, 500, 100, 100), (96, 128), None),
    ],
)
def test_a_region_is_pixels_or_fractions_inside_the_picture(
    roi: tuple[float, float, float, float], size: tuple[int, int], region: Region | None
) -> None:
    assert region_of(roi, size) == region


def test_a_region_outside_of_the_picture_is_said_once_and_the_whole_used(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert {frame.roi for frame in read(clip, roi=(500, 0, 100, 100))} == {None}
    assert [record.getMessage() for record in caplog.records] == [
        "walk: of roi (500, 0, 100, 100) nothing to speak of lies in its picture of 128x96; the "
        "whole picture is used"
    ]


def test_frames_carry_their_region(clip: Path) -> None:
    assert {frame.roi for frame in read(clip, roi=(0.5, 0.5, 0.5, 0.5))} == {(64, 48, 64, 48)}
    assert {frame.roi for frame in read(clip, roi=(0.5, 0.5, 0.5, 0.5), rotation=90)} == {
        (48, 64, 48, 64)
    }
