"""What a user types becomes a source, or one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.sources.open import is_live, open_source
from pipeline.sources.source import SourceError
from tests.support.clips import open_with, written


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
        ("demo", False),
        ("testsrc=640x480", False),
    ],
)
def test_is_live_tells_from_the_text_alone(text: str, live: bool) -> None:
    assert is_live(text) is live
    assert is_live(text, pace=True)


def test_is_live_agrees_with_the_source(clip: Path) -> None:
    for text in ("demo", "testsrc", str(clip), "rtsp://cam/stream.mp4", "http://cam/video"):
        assert is_live(text) is open_with(text).live


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
