"""What a user types becomes a source, or one clear line."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import cv2
import pytest

from pipeline.sources.open import is_live, open_source
from pipeline.sources.source import SourceError, SourceSettings
from tests.support.clips import grey, open_with, read, write_clip, written
from tests.support.places import ROOT


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nope.mp4", "no such file or folder"),
        (lambda folder: folder, "no images in this folder"),
        (lambda folder: written(folder / "notes.txt", b"hello\n" * 200), "text, not a video"),
        (lambda folder: written(folder / "empty.mp4", b""), "not a video that can be read"),
        (
            lambda folder: written(folder / "zeros.mp4", bytes(5000)),
            "not a video that can be read",
        ),
        (lambda folder: "foo://host/x", "unknown scheme foo://"),
        (lambda folder: "rtsp://me:pa/ss@host/x", "is not a URL"),
        (lambda folder: "987", "there is no /dev/video987"),
        (lambda folder: "/dev/video987", "there is no /dev/video987"),
        (lambda folder: "testsrc=1280", "write testsrc"),
        (lambda folder: "testsrc=8x8", "at least 48x48"),
        (lambda folder: "", "the source is empty"),
        (lambda folder: "  ", "the source is empty"),
        (lambda folder: folder / "shots" / "*.jpg", "no image fits this pattern"),
        (lambda folder: folder / "none.sdp", "no such file"),
        (lambda folder: "srt://host:9000", "this FFmpeg (of PyAV's wheel) has no srt"),
        (lambda folder: "rist://host:9000", "this FFmpeg (of PyAV's wheel) has no rist"),
        (lambda folder: "https://www.youtube.com/watch?v=1", "$(yt-dlp -g URL)"),
        (lambda folder: "https://youtu.be/1", "$(yt-dlp -g URL)"),
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


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rtsp://me:geh#eim@host/x", "write # as %23"),
        ("rtsp://me:12#eim@host/x", "write # as %23"),
        ("rtsp://me:geh?eim@host/x", "? as %3F"),
        ("rtsp://me:geh/eim@host/x", "/ as %2F"),
        ("rtsp://me:geh eim@host/x", "and a space as %20"),
        ("rtsp://me:geh /eim@host/x", "and a space as %20"),
        ("rtsp://me:geheim@host:abc/x", "the port must be a number from 1 to 65535"),
        ("rtsp://host:70000/x", "the port must be a number from 1 to 65535"),
        ("rtsp://me:geheim/x", "the port must be a number from 1 to 65535"),
        ("rtsp://me:geheim@/x", "there is no host in it"),
        ("rtsp:///x", "there is no host in it"),
    ],
)
def test_a_broken_url_gets_the_advice_that_helps_and_shows_no_password(
    url: str, words: str
) -> None:
    with pytest.raises(SourceError) as raised:
        open_source(url)
    assert "is not a URL: " in str(raised.value)
    assert words in str(raised.value)
    for secret in ("geh", "eim", "12"):
        assert secret not in str(raised.value)


def test_an_at_sign_behind_the_path_is_no_password() -> None:
    assert open_source("rtsp://host:554/live?owner=a@b#c").name == "host"


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("0", True),
        ("/dev/video2", True),
        ("rtsp://cam/stream.mp4", True),
        ("http://cam/video.mjpg?file=a.mp4", True),
        ("https://web/clips/walk.MP4?user=me", False),
        ("walk.mp4", False),
        ("file:///clips/walk.mp4", False),
        ("-", False),
        ("shots/*.jpg", False),
        ("door.sdp", True),
        ("udp://@239.0.0.1:1234", True),
        ("demo", False),
        ("testsrc=640x480", False),
    ],
)
def test_who_does_not_answer_is_told_by_name(text: str, live: bool) -> None:
    text = text.replace("//cam", "//127.0.0.1:1").replace("//web", "//127.0.0.1:1")
    assert is_live(text, SourceSettings()) is live
    assert is_live(text, SourceSettings(pace=True))
    assert is_live(text, SourceSettings(live=True))
    assert not is_live(text, SourceSettings(live=False))


@pytest.mark.parametrize("live", [None, True, False])
def test_is_live_agrees_with_the_source(clip: Path, live: bool | None) -> None:
    settings = SourceSettings(live=live)
    texts = ("demo", "testsrc", str(clip), "rtsp://127.0.0.1:1/a", "http://127.0.0.1:1/video")
    for text in texts[: 5 if live is not False else 4]:  # a file must be there
        assert is_live(text, settings) is open_source(text, settings=settings).live


def test_a_file_may_be_given_as_a_url(clip: Path) -> None:
    odd = clip.rename(clip.with_name("door: 12%03d.mp4"))
    assert len(read(odd.as_uri())) == 30


def test_a_pattern_that_no_shell_has_expanded(tmp_path: Path) -> None:
    for number, name in enumerate(["f10.png", "f9.png", "g1.png"]):
        cv2.imwrite(str(tmp_path / name), grey(number))
    frames = read(tmp_path / "f*.png")
    assert [frame.image_name for frame in frames] == ["f9.png", "f10.png"]
    assert {frame.source for frame in frames} == {tmp_path.name}


_READ_STANDARD_INPUT = """
import sys
from pipeline.sources.open import open_source
source = open_source("-")
if sys.argv[1] == "stop":
    frames = source.frames()
    print(next(frames).index, flush=True)
    source.stop()
    print(len(list(frames)))
else:
    print([frame.index for frame in source.frames()])
"""


@pytest.mark.timeout(120)
def test_standard_input_is_a_file_that_is_read_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.ts", [grey(i) for i in range(20)])
    command = [sys.executable, "-c", _READ_STANDARD_INPUT, "read"]
    done = subprocess.run(
        command, input=path.read_bytes(), cwd=ROOT, capture_output=True, check=True, timeout=100
    )
    assert done.stdout.decode() == f"{list(range(20))}\n"
    with pytest.raises(SourceError, match="cannot be read again"):
        open_with("-", loop=True)


@pytest.mark.timeout(120)
def test_standard_input_that_falls_silent_can_be_stopped(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.ts", [grey(i % 30) for i in range(200)])
    command = [sys.executable, "-c", _READ_STANDARD_INPUT, "stop"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        writer = threading.Thread(target=_write, args=(process.stdin, path.read_bytes()))
        writer.start()  # and leaves it open
        assert process.stdout.readline() == b"0\n"
        assert process.stdout.readline()
        assert process.wait(60) == 0
        writer.join()


def _write(pipe: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError):
        pipe.write(data)
        pipe.flush()


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
