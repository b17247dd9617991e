"""Video and image files: every frame once, upright, in its colours; and what is broken."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from pipeline.messages import Frame
from pipeline.sources.open import open_source
from pipeline.sources.source import SourceError
from tests.support.clips import (
    SIZE,
    grey,
    number_of,
    open_with,
    patches,
    read,
    read_cut_off,
    write_clip,
    written,
)


def test_a_file_gives_every_frame_once_in_order(clip: Path) -> None:
    source = open_with(clip)
    assert (source.name, source.live, source.num_frames, source.fps) == ("walk", False, 30, 25.0)
    states: list[str] = [source.status.state]
    before, before_unix_s = time.monotonic_ns(), time.time()
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(30))
    assert [number_of(frame) for frame in frames] == list(range(30))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(30) / 25)
    captured = [frame.captured_ns for frame in frames]
    assert captured == sorted(captured)
    assert before <= captured[0] <= captured[-1] <= time.monotonic_ns()
    assert before_unix_s <= frames[0].captured_unix_s <= time.time()
    assert {(frame.source, frame.size, frame.live) for frame in frames} == {("walk", SIZE, False)}
    assert [*states, source.status.state] == ["connecting", "ended"]


def test_a_files_name_may_hold_anything(clip: Path) -> None:
    odd = clip.rename(clip.with_name("door: 12%03d @night #2.mp4"))
    source = open_with(odd)
    assert source.name == "door: 12%03d @night #2"
    assert len(list(source.frames())) == 30


def test_a_title_that_is_no_utf8_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "title.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Tuer"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = SIZE
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(0), format="bgr24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert data.count(b"Tuer") == 1
    latin1 = written(path, data.replace(b"Tuer", "Tür ".encode("latin-1")))
    assert len(read(latin1)) == 1


def test_planes_are_views_that_outlive_the_container(clip: Path) -> None:
    frames = read(clip)
    kept = [plane.copy() for plane in frames[3].planes]
    read(clip)  # others use the decoder's memory meanwhile
    for plane, was in zip(frames[3].planes, kept, strict=True):
        assert plane.base is not None
        np.testing.assert_array_equal(plane, was)


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_rotation_stands_upright_as_opencv_turns_it(tmp_path: Path, turn: int) -> None:
    path = write_clip(tmp_path / "phone.mp4", [patches()] * 3, rotation=turn)
    frame = read(path)[0]
    captured, upright = cv2.VideoCapture(str(path)).read()
    assert captured
    assert frame.size == upright.shape[:2]
    assert frame.rotation != 0
    assert np.abs(frame.to_host().astype(int) - upright).mean() < 4


def test_a_crooked_rotation_is_taken_for_the_nearest_quarter_turn(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "crooked.mp4", [patches()], rotation=-80)
    assert read(path)[0].rotation == 90


@pytest.mark.parametrize(
    ("codec", "pixel_format", "suffix", "carried"),
    [
        ("libx264", "yuv420p", "mp4", "yuv420p"),
        ("libx264", "yuv422p", "mp4", "yuv420p"),
        ("libx264", "yuv444p", "mp4", "yuv420p"),
        ("libx264", "yuv420p10le", "mp4", "yuv420p"),
        ("libx264", "yuvj420p", "mp4", "yuv420p"),
        ("mjpeg", "yuvj420p", "avi", "yuv420p"),
        ("mjpeg", "yuvj422p", "avi", "yuv420p"),
        ("rawvideo", "nv12", "nut", "nv12"),
        ("rawvideo", "bgr24", "nut", "bgr24"),
        ("rawvideo", "rgb24", "nut", "rgb24"),
        ("png", "rgb24", "avi", "rgb24"),
        ("libx264rgb", "bgr24", "mp4", "bgr24"),
    ],
)
def test_every_pixel_format_shows_the_same_colours(
    tmp_path: Path, codec: str, pixel_format: str, suffix: str, carried: str
) -> None:
    path = tmp_path / f"colours.{suffix}"
    write_clip(path, [patches()] * 2, codec=codec, pixel_format=pixel_format)
    frames = read(path)
    assert len(frames) == 2
    assert frames[1].pixel_format == carried
    if carried == "yuv420p":
        assert frames[1].full_range == pixel_format.startswith("yuvj")
    difference = np.abs(frames[1].to_host().astype(int) - patches())
    assert difference.mean() < 3


def test_grey_video_keeps_its_brightness(tmp_path: Path) -> None:
    path = tmp_path / "grey.nut"
    write_clip(path, [grey(0), grey(30)], codec="rawvideo", pixel_format="gray")
    assert [number_of(frame) for frame in read(path)] == [0, 30]


@pytest.mark.parametrize(
    ("size", "tags", "color_space", "full_range"),
    [
        ((96, 128), {}, "bt601", False),
        ((720, 1280), {}, "bt709", False),
        ((96, 128), {"colorspace": 1}, "bt709", False),
        ((720, 1280), {"colorspace": 5}, "bt601", False),
        ((720, 1280), {"colorspace": 6}, "bt601", False),
        ((96, 128), {"colorspace": 9}, "bt709", False),
        ((96, 128), {"color_range": 2}, "bt601", True),
        ((96, 128), {"color_range": 1}, "bt601", False),
    ],
)
def test_colour_tags_are_read_and_untagged_hd_is_bt709(
    tmp_path: Path,
    size: tuple[int, int],
    tags: dict[str, int],
    color_space: str,
    full_range: bool,
) -> None:
    path = write_clip(tmp_path / "tagged.mp4", [patches(size)], tags=tags)
    (frame,) = read(path)
    assert (frame.color_space, frame.full_range) == (color_space, full_range)


def test_odd_sizes_keep_their_last_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "odd.nut"
    write_clip(path, [patches((31, 45))], codec="rawvideo")
    (frame,) = read(path)
    assert [plane.shape for plane in frame.planes] == [(31, 45), (16, 23), (16, 23)]
    assert frame.size == (31, 45)


def test_frames_may_change_size_within_a_file(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "small.ts", [grey(0)] * 12)
    large = write_clip(tmp_path / "large.ts", [grey(0, (144, 192))] * 12)
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    sizes = [frame.size for frame in read(tmp_path / "both.ts")]
    assert sizes == sorted(sizes)
    assert set(sizes) == {(96, 128), (144, 192)}
    assert all(plane.shape for frame in read(tmp_path / "both.ts") for plane in frame.planes)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("mp4", {"movflags": "faststart"}), ("mkv", {}), ("avi", {})],
)
def test_a_cut_off_file_gives_what_is_there_and_then_an_error(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, *SIZE, 3), np.uint8)
    whole = write_clip(tmp_path / f"whole.{suffix}", list(noise), container_options=options)
    assert len(read(whole)) == 50
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert 25 <= len(read_cut_off(cut)) <= 35


def test_damaged_packets_are_skipped_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_clip(tmp_path / "bad.mov", [patches()] * 20, codec="png", pixel_format="rgb24")
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 4] == b"\x89PNG"]
    assert len(starts) == 20
    for start in (starts[4], starts[11]):
        data[start : start + 4] = bytes(4)
    path.write_bytes(data)
    frames = read(path)
    assert [frame.index for frame in frames] == list(range(18))
    assert [record.getMessage() for record in caplog.records] == [
        "bad: 2 damaged packets were skipped"
    ]


def test_a_video_of_an_unknown_coding_is_an_error(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    assert data.count(b"avc1") >= 1
    odd = written(tmp_path / "odd.mp4", data.replace(b"avc1", b"zzzz"))
    with pytest.raises(SourceError, match="holds video of an unknown coding"):
        open_source(str(odd))


def test_a_video_without_its_index_or_without_pictures_is_an_error(
    tmp_path: Path, clip: Path
) -> None:
    cut = written(tmp_path / "cut.mp4", clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(SourceError, match="cut off before its index"):
        open_source(str(cut))
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    with pytest.raises(SourceError, match="holds no video"):
        open_source(str(sound))


def test_a_video_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "all.avi", [grey(1)] * 3, codec="png", pixel_format="rgb24")
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", bytes(4)))
    with pytest.raises(SourceError, match="not one picture"):
        read(path)


# --- time ----------------------------------------------------------------------------------------


def test_a_raw_stream_is_timed_by_its_number_and_its_nominal_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "raw.h264", [grey(i) for i in range(20)], fps=10)
    source = open_with(path)
    assert source.fps == 10.0  # FFmpeg's average is a made-up 25
    assert [frame.pts_seconds for frame in source.frames()] == pytest.approx(np.arange(20) / 10)
    assert len(read(path, max_fps=2)) == 4


def test_matroska_that_does_not_begin_at_zero_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "10"})
        stream.height, stream.width = SIZE
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(patches(), format="bgr24")
            frame.pts, frame.time_base = 50 + i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert [frame.pts_seconds for frame in read(path)] == pytest.approx(2 + np.arange(50) / 25)
    data = path.read_bytes()
    assert 20 <= len(read_cut_off(written(tmp_path / "cut.mkv", data[: len(data) * 7 // 10]))) < 45


# --- geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(24, 11), Fraction(8, 9)])
def test_pixels_that_are_not_square_are_said(tmp_path: Path, suffix: str, aspect: Fraction) -> None:
    path = write_clip(tmp_path / f"wide.{suffix}", [grey(0)] * 2, aspect=aspect)
    (frame, _) = read(path)
    height, width = SIZE
    assert frame.size == SIZE
    assert frame.pixel_aspect == pytest.approx(float(aspect))
    shown = (height, width * aspect) if aspect > 1 else (height / aspect, width)
    assert frame.shown_size == pytest.approx([float(side) for side in shown], abs=1)
    (turned, _) = read(path, rotation=90)
    assert turned.size == SIZE[::-1]
    assert turned.pixel_aspect == pytest.approx(1 / float(aspect))


# --- which video ---------------------------------------------------------------------------------


def _write_streams(path: Path, streams: list[tuple[int, int, int]]) -> Path:
    """Videos of one file: (disposition, width, height) of each; each is as grey as its number."""
    with av.open(str(path), "w") as container:
        videos = []
        for disposition, width, height in streams:
            codec = "mjpeg" if disposition == Disposition.attached_pic else "libx264"
            video = container.add_stream(codec, rate=10)
            assert isinstance(video, av.VideoStream)
            video.width, video.height, video.disposition = width, height, Disposition(disposition)
            video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            videos.append(video)
        for number, (video, (disposition, width, height)) in enumerate(
            zip(videos, streams, strict=True)
        ):
            picture = av.VideoFrame.from_ndarray(grey(number, (height, width)), format="bgr24")
            for _ in range(1 if disposition == Disposition.attached_pic else 8):
                picture.pts = None
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
    return path


_COVER = int(Disposition.attached_pic)
_DEFAULT = int(Disposition.default)


@pytest.mark.parametrize(
    ("streams", "chosen"),
    [
        ([(_COVER, 200, 200), (_DEFAULT, 128, 96)], 1),  # a cover is no video, whatever its size
        ([(0, 64, 48), (0, 128, 96)], 1),
        ([(0, 128, 96), (_DEFAULT, 64, 48)], 1),
        ([(_DEFAULT, 128, 96), (_DEFAULT, 64, 48)], 0),
    ],
)
def test_the_video_is_chosen_as_ffmpeg_chooses(
    tmp_path: Path, streams: list[tuple[int, int, int]], chosen: int
) -> None:
    plain = all(disposition == 0 for disposition, _, _ in streams)  # mp4 would flag the first
    path = _write_streams(tmp_path / f"several.{'ts' if plain else 'mp4'}", streams)
    frames = read(path)
    assert [number_of(frame) for frame in frames] == [chosen] * 8


def test_a_video_may_be_asked_for_by_number(tmp_path: Path) -> None:
    path = _write_streams(tmp_path / "two.mp4", [(_DEFAULT, 128, 96), (0, 64, 48)])
    assert {frame.size for frame in read(path, video_stream=1)} == {(48, 64)}
    with pytest.raises(SourceError, match="no video stream 2; there are 2, from 0"):
        open_with(path, video_stream=2)


def test_a_song_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=10)
        sound = container.add_stream("aac", rate=8000)
        cover.width, cover.height, cover.disposition = 200, 200, Disposition.attached_pic
        cover.pix_fmt = "yuvj420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        picture = av.VideoFrame.from_ndarray(grey(0, (200, 200)), format="bgr24")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        container.mux([*sound.encode(silence), *sound.encode(None)])
    with pytest.raises(SourceError, match="holds no video but a cover picture"):
        open_with(path)


def test_a_saved_multipart_mjpeg_is_whole(tmp_path: Path) -> None:
    jpegs = [cv2.imencode(".jpg", grey(i))[1].tobytes() for i in range(6)]
    head = b"--next\r\nContent-type: image/jpeg\r\nContent-length: %d\r\n\r\n"
    parts = [head % len(jpeg) + jpeg + b"\r\n" for jpeg in jpegs]
    whole = written(tmp_path / "saved.mjpg", b"".join(parts) + b"--next--\r\n")
    frames = read(whole)
    assert [number_of(frame) for frame in frames] == list(range(6))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(6) / 25)
    cut = b"".join(parts)[: -len(jpegs[5]) // 2]
    assert 5 <= len(read_cut_off(written(tmp_path / "cut.mjpg", cut))) <= 6


# --- interlaced ----------------------------------------------------------------------------------


def _write_interlaced(path: Path, *, flagged: bool = True) -> Path:
    """A bar that moves: what the odd lines show is 8 pixels further on."""
    flags = {"flags": "+ilme+ildct", "x264-params": "tff=1"} if flagged else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={**flags, "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for i in range(12):
            picture = np.full((128, 192, 3), 40, np.uint8)
            picture[0::2, 8 * i : 8 * i + 40] = 220
            picture[1::2, 8 * i + 8 : 8 * i + 48] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def _combing(frame: Frame) -> float:
    luma = frame.to_host()[..., 1].astype(float)
    return float(np.abs(2 * luma[1:-1] - luma[:-2] - luma[2:]).mean())


def test_interlaced_video_becomes_whole_pictures(tmp_path: Path) -> None:
    path = _write_interlaced(tmp_path / "dv.ts")
    combed, whole = read(path, deinterlace="off"), read(path)
    assert len(whole) == len(combed) == 12
    assert [frame.pts_seconds for frame in whole] == [frame.pts_seconds for frame in combed]
    for before, after in zip(combed[1:-1], whole[1:-1], strict=True):
        assert _combing(after) < 0.2 * _combing(before)


def test_whole_pictures_are_left_as_they_are(tmp_path: Path) -> None:
    path = _write_interlaced(tmp_path / "whole.ts", flagged=False)
    for one, other in zip(read(path, deinterlace="off"), read(path), strict=True):
        np.testing.assert_array_equal(one.to_host(), other.to_host())
