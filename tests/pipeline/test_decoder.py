"""Sources on real files, a real RTSP server and a real HTTP server."""

from __future__ import annotations

import http.server
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import demo
from pipeline.av_video import redact
from pipeline.decoder import (
    LiveSource,
    Source,
    SourceError,
    SourceSettings,
    is_live,
    open_source,
)
from pipeline.messages import Frame
from tests.rtsp_server import RtspServer, why_unavailable

_SIZE = (96, 128)
_PATIENCE_SECONDS = 30.0

needs_rtsp_server = pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())


def _grey(index: int, size: tuple[int, int] = _SIZE) -> np.ndarray:
    """A picture that tells its number, up to 30, by its brightness."""
    return np.full((*size, 3), 20 + 7 * index, np.uint8)


def _number_of(frame: Frame) -> int:
    return round((float(frame.to_host().mean()) - 20) / 7)


def _patches(size: tuple[int, int] = _SIZE) -> np.ndarray:
    """Four corners of different colours: shows turns, mirroring and wrong colour matrices."""
    height, width = size
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (40, 50, 200)
    picture[: height // 2, width // 2 :] = (60, 190, 50)
    picture[height // 2 :, : width // 2] = (200, 80, 60)
    picture[height // 2 :, width // 2 :] = (230, 230, 230)
    return picture


def _write_clip(
    path: Path,
    pictures: list[np.ndarray],
    *,
    fps: int = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
) -> Path:
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "crf": "12", "g": "10", "bf": "0"}
        if rotation:
            stream.set_display_rotation(rotation)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return _write_clip(tmp_path / "walk.mp4", [_grey(i) for i in range(30)])


def _read(text: object, **settings: Any) -> list[Frame]:
    return list(_open(text, **settings).frames())


def _open(text: object, **settings: Any) -> Source:
    return open_source(str(text), settings=SourceSettings(**settings))


# --- files ---------------------------------------------------------------------------------------


def test_a_file_gives_every_frame_once_in_order(clip: Path) -> None:
    source = _open(clip)
    assert (source.name, source.live, source.num_frames, source.fps) == ("walk", False, 30, 25.0)
    states: list[str] = [source.state]
    before = time.monotonic_ns()
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(30))
    assert [_number_of(frame) for frame in frames] == list(range(30))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(30) / 25)
    captured = [frame.captured_ns for frame in frames]
    assert captured == sorted(captured)
    assert before <= captured[0] <= captured[-1] <= time.monotonic_ns()
    assert frames[0].captured_unix_s == pytest.approx(time.time(), abs=60)
    assert {(frame.source, frame.size, frame.live) for frame in frames} == {("walk", _SIZE, False)}
    assert [*states, source.state] == ["idle", "ended"]


def test_a_files_name_may_hold_anything(clip: Path) -> None:
    odd = clip.rename(clip.with_name("door: 12%03d @night #2.mp4"))
    source = _open(odd)
    assert source.name == "door: 12%03d @night #2"
    assert len(list(source.frames())) == 30


def test_planes_are_views_that_outlive_the_container(clip: Path) -> None:
    frames = _read(clip)
    kept = [plane.copy() for plane in frames[3].planes]
    _read(clip)  # others use the decoder's memory meanwhile
    for plane, was in zip(frames[3].planes, kept, strict=True):
        assert plane.base is not None
        np.testing.assert_array_equal(plane, was)


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_rotation_stands_upright_as_opencv_turns_it(tmp_path: Path, turn: int) -> None:
    path = _write_clip(tmp_path / "phone.mp4", [_patches()] * 3, rotation=turn)
    frame = _read(path)[0]
    captured, upright = cv2.VideoCapture(str(path)).read()
    assert captured
    assert frame.size == upright.shape[:2]
    assert frame.rotation != 0
    assert np.abs(frame.to_host().astype(int) - upright).mean() < 4


def test_a_crooked_rotation_is_taken_for_the_nearest_quarter_turn(tmp_path: Path) -> None:
    path = _write_clip(tmp_path / "crooked.mp4", [_patches()], rotation=-80)
    assert _read(path)[0].rotation == 90


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
    _write_clip(path, [_patches()] * 2, codec=codec, pixel_format=pixel_format)
    frames = _read(path)
    assert len(frames) == 2
    assert frames[1].pixel_format == carried
    if carried == "yuv420p":
        assert frames[1].full_range == pixel_format.startswith("yuvj")
    difference = np.abs(frames[1].to_host().astype(int) - _patches())
    assert difference.mean() < 3


def test_grey_video_keeps_its_brightness(tmp_path: Path) -> None:
    path = tmp_path / "grey.nut"
    _write_clip(path, [_grey(0), _grey(30)], codec="rawvideo", pixel_format="gray")
    assert [_number_of(frame) for frame in _read(path)] == [0, 30]


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
    path = _write_clip(tmp_path / "tagged.mp4", [_patches(size)], tags=tags)
    (frame,) = _read(path)
    assert (frame.color_space, frame.full_range) == (color_space, full_range)


def test_odd_sizes_keep_their_last_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "odd.nut"
    _write_clip(path, [_patches((31, 45))], codec="rawvideo")
    (frame,) = _read(path)
    assert [plane.shape for plane in frame.planes] == [(31, 45), (16, 23), (16, 23)]
    assert frame.size == (31, 45)


def test_frames_may_change_size_within_a_file(tmp_path: Path) -> None:
    small = _write_clip(tmp_path / "small.ts", [_grey(0)] * 12)
    large = _write_clip(tmp_path / "large.ts", [_grey(0, (144, 192))] * 12)
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    sizes = [frame.size for frame in _read(tmp_path / "both.ts")]
    assert sizes == sorted(sizes)
    assert set(sizes) == {(96, 128), (144, 192)}
    assert all(plane.shape for frame in _read(tmp_path / "both.ts") for plane in frame.planes)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("mp4", {"movflags": "faststart"}), ("mkv", {}), ("avi", {})],
)
def test_a_cut_off_file_gives_what_is_there_and_then_an_error(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, *_SIZE, 3), np.uint8)
    whole = _write_clip(tmp_path / f"whole.{suffix}", list(noise), container_options=options)
    assert len(_read(whole)) == 50
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert 25 <= len(_read_cut_off(cut)) <= 35


def test_damaged_packets_are_skipped_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_clip(tmp_path / "bad.mov", [_patches()] * 20, codec="png", pixel_format="rgb24")
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 4] == b"\x89PNG"]
    assert len(starts) == 20
    for start in (starts[4], starts[11]):
        data[start : start + 4] = bytes(4)
    path.write_bytes(data)
    frames = _read(path)
    assert [frame.index for frame in frames] == list(range(18))
    assert [record.getMessage() for record in caplog.records] == [
        "bad: 2 damaged packets were skipped"
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nope.mp4", "no such file or folder"),
        (lambda folder: folder, "no images in this folder"),
        (lambda folder: _written(folder / "notes.txt", b"hello\n" * 200), "text, not a video"),
        (lambda folder: _written(folder / "empty.mp4", b""), "not a video that can be read"),
        (
            lambda folder: _written(folder / "zeros.mp4", bytes(5000)),
            "not a video that can be read",
        ),
        (lambda folder: "foo://host/x", "unknown scheme foo://"),
        (lambda folder: "rtsp://me:pa/ss@host/x", "is not a URL"),
        (lambda folder: "987", "there is no /dev/video987"),
        (lambda folder: "/dev/video987", "there is no /dev/video987"),
        (lambda folder: "testsrc=1280", "write testsrc"),
        (lambda folder: "testsrc=8x8", "at least 48x48"),
    ],
)
def test_what_cannot_be_a_source_is_one_clear_line(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    with pytest.raises(SourceError) as raised:
        open_source(str(make(tmp_path)))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "pa/ss" not in str(raised.value)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_video_without_its_index_or_without_pictures_is_an_error(
    tmp_path: Path, clip: Path
) -> None:
    cut = _written(tmp_path / "cut.mp4", clip.read_bytes()[: clip.stat().st_size // 2])
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
    path = _write_clip(tmp_path / "all.avi", [_grey(1)] * 3, codec="png", pixel_format="rgb24")
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", bytes(4)))
    with pytest.raises(SourceError, match="not one picture"):
        _read(path)


# --- pace, repetition, the end -------------------------------------------------------------------


@pytest.mark.timeout(30)
def test_pace_plays_at_the_files_own_speed_as_if_live(clip: Path) -> None:
    source = _open(clip, pace=True, max_frames=12)
    assert source.live
    frames = list(source.frames())
    seconds = np.array([frame.captured_ns for frame in frames]) / 1e9
    due = np.array([frame.pts_seconds for frame in frames])
    assert all(frame.live for frame in frames)
    # Never early; late only by what the machine makes of a sleep.
    assert np.all((seconds - seconds[0]) - (due - due[0]) > -0.005)


@pytest.mark.timeout(60)
def test_stop_from_another_thread_ends_a_long_wait() -> None:
    source = _open("testsrc=64x48@0.001", pace=True)  # the second picture is due in 1000 seconds
    with _reading(source) as numbers:
        _wait_until(lambda: source.state == "running")
    assert numbers == [0]


def test_loop_repeats_with_rising_times_until_max_frames(clip: Path) -> None:
    source = _open(clip, loop=True, max_frames=75)
    assert source.num_frames == 75
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(75))
    assert [_number_of(frame) for frame in frames] == [i % 30 for i in range(75)]
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(75) / 25)
    assert _open(clip, loop=True).num_frames is None


def test_max_frames_ends_a_source(clip: Path) -> None:
    source = _open(clip, max_frames=7)
    assert source.num_frames == 7
    assert len(list(source.frames())) == 7
    assert _open(clip, max_frames=99).num_frames == 30


def test_a_stopped_source_gives_nothing_and_no_error(clip: Path) -> None:
    source = _open(clip)
    source.close()
    assert list(source.frames()) == []
    assert source.state == "ended"


def test_leaving_the_loop_closes_the_file(clip: Path) -> None:
    frames = _open(clip).frames()
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
    [{"max_frames": 0}, {"transport": "pigeon"}, {"read_timeout_seconds": 0.0}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        SourceSettings(**wrong)


# --- images, pattern, demo -----------------------------------------------------------------------


def test_a_folder_of_images_in_order_of_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, name in enumerate(["b.png", "a.JPG", "c.bmp"]):
        cv2.imwrite(str(folder / name), _grey(number))
    _written(folder / "broken.jpg", b"not a picture")
    _written(folder / "notes.txt", b"not looked at")
    source = _open(folder)
    assert (source.name, source.num_frames, source.fps) == ("holiday", 4, None)
    frames = list(source.frames())
    assert [frame.image_name for frame in frames] == ["a.JPG", "b.png", "c.bmp"]
    assert [_number_of(frame) for frame in frames] == [1, 0, 2]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert "broken.jpg cannot be read" in caplog.text
    assert "1 of 4 images" in caplog.text
    assert "notes.txt" not in caplog.text


def test_only_unreadable_images_are_an_error(tmp_path: Path) -> None:
    _written(tmp_path / "broken.png", b"not a picture")
    with pytest.raises(SourceError, match="cannot be read as an image"):
        _read(tmp_path)


def test_an_image_is_read_as_stored_whatever_exif_says(tmp_path: Path) -> None:
    coded = cv2.imencode(".jpg", _patches(), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
    exif = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = _written(tmp_path / "turned.jpg", coded[:2] + segment + coded[2:])
    turned = np.asarray(cv2.imread(str(path)))
    assert turned.shape[:2] == (128, 96)  # the tag is there, and OpenCV obeys it
    (frame,) = _read(path)
    assert (frame.source, frame.image_name, frame.size) == ("turned", "turned.jpg", _SIZE)
    assert np.abs(frame.planes[0].astype(int) - _patches()).mean() < 3
    with pytest.raises(SourceError, match="leave pace out"):
        _open(path, pace=True)


def test_the_test_pattern_moves_and_spells_its_number() -> None:
    source = _open("testsrc=320x240@50", max_frames=40)
    assert (source.name, source.live, source.num_frames, source.fps) == ("testsrc", False, 40, 50.0)
    frames = list(source.frames())
    assert {frame.size for frame in frames} == {(240, 320)}
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(40) / 50)
    cell = 320 // 24
    for frame in frames:
        bits = frame.planes[0][5, cell // 2 : 24 * cell : cell, 0] > 127
        assert int(bits @ (1 << np.arange(24))) == frame.index
    assert np.any(frames[0].planes[0][40:] != frames[1].planes[0][40:])
    again = _read("testsrc=320x240@50", max_frames=40)
    np.testing.assert_array_equal(again[39].planes[0], frames[39].planes[0])
    assert _open("testsrc").num_frames is None


def test_the_demo_is_a_source() -> None:
    source = _open("demo")
    assert (source.name, source.live, source.num_frames, source.fps) == ("demo", False, 300, 30.0)
    frames = _read("demo", max_frames=3)
    assert [frame.size for frame in frames] == [(720, 1280)] * 3
    np.testing.assert_array_equal(frames[2].to_host(), demo.picture(2))
    assert _open("demo", max_frames=500).num_frames == 500


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("0", True),
        ("/dev/video2", True),
        ("rtsp://cam/stream.mp4", True),
        ("http://cam/video.mjpg?file=a.mp4", True),
        ("https://web/clips/walk.MP4?user=me", False),
        ("walk.mp4", False),
        ("demo", False),
        ("testsrc=640x480", False),
    ],
)
def test_is_live_tells_from_the_text_alone(text: str, live: bool) -> None:
    assert is_live(text) is live
    assert is_live(text, pace=True)


def test_is_live_agrees_with_the_source(clip: Path) -> None:
    for text in ("demo", "testsrc", str(clip), "rtsp://cam/stream.mp4", "http://cam/video"):
        assert is_live(text) is _open(text).live


# --- URLs, names, passwords ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://me:geheim@cam.example.org:554/stream1", "cam.example.org"),
        ("http://10.0.0.7/video?user=me&password=geheim", "10.0.0.7"),
        ("rtsp://[::1]:8554/live", "--1"),
    ],
)
def test_names_of_urls_hold_the_host_only(url: str, name: str) -> None:
    source = open_source(url)
    assert source.name.strip("-") == name.strip("-")
    assert source.live
    assert open_source(url, name="door").name == "door"


_visible = st.characters(exclude_categories=["Z", "C"])


@given(user=st.from_regex(r"[\w.-]{0,8}", fullmatch=True), password=st.text(_visible, max_size=12))
def test_redact_leaves_no_password(user: str, password: str) -> None:
    secret = f"pw{password}pw"
    shown = redact(f"cannot open 'rtsp://{user}:{secret}@10.0.0.7:554/live': refused")
    assert shown == "cannot open 'rtsp://***@10.0.0.7:554/live': refused"
    secret = re.sub(r"[&/'\"]", "", secret)  # what a parameter in a URL cannot hold
    shown = redact(f"http://cam/video?user={user}&password={secret}&channel=1")
    assert secret not in shown


def test_redact_leaves_other_text_alone() -> None:
    text = "rtsp://10.0.0.7:554/live?channel=1: connection refused, tell ops@example.org"
    assert redact(text) == text
    assert redact("http://cam/?pwd=geheim&channel=1") == "http://cam/?pwd=***&channel=1"


@pytest.mark.timeout(60)
def test_a_refused_connection_is_an_error_without_reconnect() -> None:
    with pytest.raises(SourceError) as raised:
        _read("rtsp://me:geheim@127.0.0.1:1/live", reconnect=False)
    assert "connection refused" in str(raised.value)
    assert "geheim" not in str(raised.value)


@pytest.mark.timeout(60)
def test_a_server_that_hangs_up_is_tried_again_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = _open(f"rtsp://me:geheim@127.0.0.1:{listener.getsockname()[1]}/live")
        with _reading(source):
            for _ in range(3):
                listener.accept()[0].close()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "trying again" in caplog.text
    assert "geheim" not in caplog.text


def _read_cut_off(text: object) -> list[Frame]:
    """All frames of a file that ends too early, which must be said."""
    frames: list[Frame] = []
    with pytest.raises(SourceError, match="the video is cut off"):
        frames.extend(open_source(str(text)).frames())
    return frames


@contextmanager
def _reading(source: Source) -> Iterator[list[int]]:
    """Read the source in a thread of its own; stop it at the end of the block, and it must stop."""
    numbers: list[int] = []
    reader = threading.Thread(target=lambda: numbers.extend(f.index for f in source.frames()))
    reader.start()
    try:
        yield numbers
    finally:
        source.stop()
        reader.join(timeout=_PATIENCE_SECONDS)
    assert not reader.is_alive()
    assert source.state == "ended"


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


# --- RTSP ----------------------------------------------------------------------------------------


@needs_rtsp_server
@pytest.mark.timeout(90)
def test_rtsp_goes_on_after_a_kill_and_after_a_freeze(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RtspServer(clip) as server:
        source = _open(server.url, read_timeout_seconds=0.5)
        assert source.live
        numbers = []
        for frame in source.frames():
            numbers.append(frame.index)
            assert frame.size == _SIZE
            assert frame.live
            if frame.index == 10:
                server.kill()
                threading.Timer(1.0, server.start).start()
            if frame.index == 50:
                server.freeze()
                threading.Timer(2.0, server.thaw).start()
            if frame.index == 80:
                source.stop()
    assert numbers == list(range(81))
    assert source.fps == 25.0
    lines = [record.getMessage() for record in caplog.records]
    assert "connected, 128x96" in lines[0]
    assert "the stream ended" in caplog.text
    assert "no data for 0.5 seconds" in caplog.text
    assert caplog.text.count("connected again after") >= 2


@needs_rtsp_server
@pytest.mark.timeout(60)
def test_rtsp_passwords_open_the_stream_and_stay_secret(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RtspServer(clip, user="me", password="geheim") as server:
        right, wrong = (server.url.replace("//", f"//me:{word}@") for word in ("geheim", "falsch"))
        assert len(_read(right, max_frames=5)) == 5
        with pytest.raises(SourceError, match="401") as raised:
            _read(wrong, reconnect=False)
        with pytest.raises(SourceError, match="404"):
            _read(right.replace("live", "nothing"), reconnect=False)
        source = _open(wrong)
        # It waits half a minute before it tries again (a camera would lock it out), yet stops now.
        with _reading(source):
            _wait_until(lambda: source.state == "waiting")
    for text in (str(raised.value), caplog.text, source.name):
        assert "geheim" not in text
        assert "falsch" not in text


@needs_rtsp_server
@pytest.mark.timeout(60)
def test_rtsp_pictures_may_change_size_and_be_damaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (12, *_SIZE, 3), np.uint8)
    small = _write_clip(tmp_path / "small.mp4", list(noise))
    large = _write_clip(tmp_path / "large.mp4", [_grey(0, (144, 192))] * 12)
    with RtspServer(small, large, corrupt=0.2) as server:
        frames = _read(server.url, max_frames=60)
    assert {frame.size for frame in frames} == {_SIZE, (144, 192)}
    assert all(frame.planes[0].shape == frame.size for frame in frames)


@needs_rtsp_server
@pytest.mark.timeout(60)
def test_rtsp_over_udp(clip: Path) -> None:
    with RtspServer(clip) as server:
        assert len(_read(server.url, transport="udp", max_frames=10)) == 10


@needs_rtsp_server
@pytest.mark.timeout(60)
def test_stop_ends_a_silent_stream(clip: Path) -> None:
    with RtspServer(clip) as server:
        source = _open(server.url, read_timeout_seconds=0.5)
        with _reading(source):
            _wait_until(lambda: source.state == "running")
            server.freeze()


# --- cameras -------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_camera_is_read_through_its_input_device() -> None:
    """FFmpeg's synthetic input device stands in for a camera, which no test machine has."""
    pattern = "testsrc2=size=128x96:rate=30"
    settings = SourceSettings(max_frames=5)
    source = LiveSource("camera0", pattern, settings, format_name="lavfi")
    frames = list(source.frames())
    assert [frame.size for frame in frames] == [_SIZE] * 5
    assert source.live
    assert source.fps == 30.0


@pytest.mark.timeout(60)
def test_a_camera_that_cannot_be_opened_is_an_error_even_with_reconnect(tmp_path: Path) -> None:
    no_device = _written(tmp_path / "video0", b"")
    source = LiveSource("camera0", str(no_device), SourceSettings(), format_name="v4l2")
    with pytest.raises(SourceError, match="cannot be read"):
        list(source.frames())


# --- HTTP ----------------------------------------------------------------------------------------


@pytest.fixture
def web(clip: Path) -> Iterator[str]:
    """A web server: /camera is a motion-JPEG camera that hangs up after 8 pictures; /whole.mp4 a
    video, /cut.mp4 the same, but the connection breaks at its half."""
    faststart = clip.with_name("faststart.mp4")
    noise = np.random.default_rng(2).integers(0, 255, (30, *_SIZE, 3), np.uint8)
    _write_clip(faststart, list(noise), container_options={"movflags": "faststart"})
    video = faststart.read_bytes()
    jpegs = [cv2.imencode(".jpg", _grey(i))[1].tobytes() for i in range(8)]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/camera":
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for jpeg in jpegs:
                    length = f"Content-Length: {len(jpeg)}\r\n\r\n".encode()
                    self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n" + length)
                    self.wfile.write(jpeg + b"\r\n")
                return
            self.send_header("Content-Length", str(len(video)))
            self.end_headers()
            self.wfile.write(video if self.path == "/whole.mp4" else video[: len(video) // 2])

        def log_message(self, format: str, *args: object) -> None:
            """Silence on standard error."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may hang up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.timeout(60)
def test_a_motion_jpeg_camera_is_live_and_comes_back(web: str) -> None:
    source = _open(f"{web}/camera", max_frames=12)
    assert source.live
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(12))
    assert all(frame.full_range for frame in frames)
    assert [_number_of(frame) for frame in frames] == [*range(8), *range(4)]


@pytest.mark.timeout(60)
def test_a_video_on_a_web_server_is_a_file(web: str, tmp_path: Path) -> None:
    source = _open(f"{web}/whole.mp4")
    assert not source.live
    assert source.num_frames == 30
    assert len(list(source.frames())) == 30
    half = (tmp_path / "faststart.mp4").read_bytes()
    half = half[: len(half) // 2]
    local = _read_cut_off(_written(tmp_path / "half.mp4", half))
    remote = _read_cut_off(f"{web}/cut.mp4")
    # The broken connection is an error while reading: what the decoder still holds comes out too.
    assert len(remote) in (len(local) - 1, len(local))
