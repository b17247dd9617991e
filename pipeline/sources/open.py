"""What a user typed -> a source. The door to all kinds of sources.

    open_source("clip.mp4")  ->  source.frames()  ->  Frame, Frame, Frame, ...

    source.py          what all kinds share: settings, numbers, times, region, rotation
    file.py            video files, which end
    stills.py          image files, folders of them, animations
    live.py            cameras and streams from the network, which reconnect
    drawn.py           the demo and the test pattern

This file knows neither queues nor what becomes of a frame.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from common.redaction import redact
from pipeline.sources import demo
from pipeline.sources.drawn import DrawnSource, TestPattern, parse_test_pattern
from pipeline.sources.file import VideoFile
from pipeline.sources.live import LiveSource
from pipeline.sources.source import Source, SourceError, SourceSettings
from pipeline.sources.stills import IMAGE_SUFFIXES, open_folder, open_still

_VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
_URL_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "http", "https"}


def open_source(
    text: str, *, name: str | None = None, settings: SourceSettings | None = None
) -> Source:
    """Make a source of what a user typed. Files are looked into; live sources connect later.

    Args:
        text: a video or image file; a folder of images; a camera index ("0") or /dev/video0;
            an rtsp, rtsps, rtmp, rtmps, http or https URL; "demo"; "testsrc" or
            "testsrc=1280x720@30" (width x height @ frames a second).
        name: word for it; by default the file's stem, the URL's host, camera0, demo or testsrc.
    Raises:
        SourceError: there is nothing to read: says what and why.
    """
    settings = settings or SourceSettings()
    if text == "demo":
        num_frames = settings.max_frames or demo.NUM_FRAMES
        return DrawnSource(
            name or "demo", settings, demo.picture, fps=demo.FPS, num_frames=num_frames
        )
    if re.fullmatch(r"testsrc(=.*)?", text):
        size, fps = parse_test_pattern(text)
        draw = TestPattern(size).picture
        return DrawnSource(name or "testsrc", settings, draw, fps=fps, num_frames=None)
    if _is_camera(text):
        return _open_camera(text, name, settings)
    if _is_url(text):
        return _open_url(text, name, settings)
    return _open_path(Path(text), name, settings)


def is_live(text: str, *, pace: bool = False) -> bool:
    """What Source.live will be, told from the text alone: nothing is opened or looked for."""
    return pace or _is_camera(text) or (_is_url(text) and not _is_remote_file(text))


def _is_camera(text: str) -> bool:
    return text.isdecimal() or re.fullmatch(r"/dev/video\d+", text) is not None


def _is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][\w+.-]+://", text) is not None


def _is_remote_file(url: str) -> bool:
    """A video on a web server: it has an end, unlike a camera that answers over HTTP."""
    path = url.partition("?")[0].lower()
    return path.startswith("http") and Path(path).suffix in _VIDEO_SUFFIXES


def _open_camera(text: str, name: str | None, settings: SourceSettings) -> Source:
    index = text.removeprefix("/dev/video")
    device = f"/dev/video{index}"
    if sys.platform != "linux":
        raise SourceError(f"camera {index}: cameras are read through Linux V4L2; give a URL here")
    if not Path(device).exists():
        others = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise SourceError(f"camera {index}: there is no {device}; cameras found: {others}")
    return LiveSource(name or f"camera{index}", device, settings, format_name="v4l2")


def _open_url(url: str, name: str | None, settings: SourceSettings) -> Source:
    problem = _why_no_url(url)
    if problem is not None:
        raise SourceError(f"{_without_secrets(url)} is not a URL: {problem}")
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme.lower() not in _URL_SCHEMES:
        known = ", ".join(sorted(_URL_SCHEMES))
        raise SourceError(f"{redact(url)}: unknown scheme {parts.scheme}://; known: {known}")
    name = name or re.sub(r"[^\w.-]+", "-", host)
    if _is_remote_file(url):
        return VideoFile(name, url, settings)
    return LiveSource(name, url, settings)


def _why_no_url(url: str) -> str | None:
    """What is wrong with it, and what to do; None: nothing."""
    address = url.partition("://")[2]
    authority = re.split(r"[/?#]", address, maxsplit=1)[0]
    rest = address[len(authority) :]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port  # a port that is none raises
        is_broken = port == 0
    except ValueError:
        host, is_broken = None, True
    # An @ may stand in a path, and in what follows one; else it ends a password.
    is_password = "@" in rest and (is_broken or (":" in authority and rest.startswith("#")))
    if is_password or re.search(r"\s", url):
        return (
            "inside a user or password write # as %23, ? as %3F, / as %2F, @ as %40 and a space "
            "as %20"
        )
    if is_broken:
        return "the port must be a number from 1 to 65535 (a user and password end with an @)"
    return None if host else "there is no host in it"


def _without_secrets(broken_url: str) -> str:
    """What stands behind the : may be a password whose @ is missing, or one with a space in it."""
    if re.search(r"\s", broken_url):
        return broken_url.partition("://")[0] + "://***"
    return re.sub(r"(://[^/:]*:).*?(?=/|$)", r"\1***", redact(broken_url))


def _open_path(path: Path, name: str | None, settings: SourceSettings) -> Source:
    if path.is_dir():
        return open_folder(path, name or path.resolve().name, settings)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return open_still(path, name or path.stem, settings)
    return VideoFile(name or path.stem, str(path), settings)
