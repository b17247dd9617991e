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
from urllib.parse import unquote, urlsplit

import av
import av.error

from common.redaction import redact
from pipeline.config import SourceConfig
from pipeline.sources import demo
from pipeline.sources.drawn import DrawnSource, TestPattern, parse_test_pattern
from pipeline.sources.file import StandardInput, VideoFile
from pipeline.sources.live import LiveSource
from pipeline.sources.source import Source, SourceError, SourceSettings
from pipeline.sources.stills import IMAGE_SUFFIXES, open_folder, open_pattern, open_still
from pipeline.sources.web import Answer, ask, is_web

_VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
_WEB_SCHEMES = {"http", "https"}
_LISTENING_SCHEMES = {"udp", "rtp", "srt", "rist"}  # which may wait for a sender: no host needed
_URL_SCHEMES = _WEB_SCHEMES | _LISTENING_SCHEMES | {"rtsp", "rtsps", "rtmp", "rtmps", "tcp"}
_VIDEO_PAGES = ("youtube.com", "youtu.be", "twitch.tv", "vimeo.com", "tiktok.com")


def open_source(
    text: str, *, name: str | None = None, settings: SourceSettings | None = None
) -> Source:
    """Make a source of what a user typed. Files are looked into; live sources connect later.

    Args:
        text: a video or image file, also as a file:// URL; a folder of images, or a pattern such
            as "shots/*.jpg"; "-" for standard input; a camera index ("0") or /dev/video0; a URL
            (rtsp, rtmp, http, srt, udp, rtp, ...) or an .sdp file; "demo"; "testsrc" or
            "testsrc=1280x720@30" (width x height @ frames a second).
        name: word for it; by default the file's stem, the URL's host, camera0, demo or testsrc.
    Raises:
        SourceError: there is nothing to read: says what and why.
    """
    settings = settings or SourceSettings()
    if not text.strip():
        raise SourceError("the source is empty; give a file, a URL, a camera index or demo")
    if re.fullmatch(r"demo|testsrc(=.*)?", text):
        return _open_drawn(text, name, settings)
    if text == "-":
        return StandardInput(name or "stdin", settings)
    if _is_camera(text):
        return _open_camera(text, name, settings)
    path = _path_of(text)
    if path is None:
        return _open_url(text, name, settings)
    return _open_path(path, name, settings)


def _open_drawn(text: str, name: str | None, settings: SourceSettings) -> Source:
    if text == "demo":
        num_frames = settings.max_frames or demo.NUM_FRAMES
        return DrawnSource(
            name or "demo", settings, demo.picture, fps=demo.FPS, num_frames=num_frames
        )
    size, fps = parse_test_pattern(text)
    draw = TestPattern(size).picture
    return DrawnSource(name or "testsrc", settings, draw, fps=fps, num_frames=None)


def is_live(text: str, settings: SourceSettings) -> bool:
    """What Source.live will be. A web server is asked; what has not answered is a camera that is
    down. Nothing else is opened or looked for."""
    if settings.pace or settings.live is not None:
        return settings.pace or bool(settings.live)
    path = _path_of(text)
    if path is not None:
        return _is_camera(text) or path.suffix.lower() == ".sdp"
    if not is_web(text) or _why_no_url(text) is not None:
        return True
    answer = ask(
        text,
        options=settings.options,
        timeout_seconds=settings.open_timeout_seconds,
        variant=settings.video_stream,
    )
    return not _has_end(text, answer)


def settings_of(config: SourceConfig) -> SourceSettings:
    """Of a configured source, but for the GPU that decodes."""
    return SourceSettings(**config.model_dump(exclude={"input", "name", "decode"}))


def _path_of(text: str) -> Path | None:
    """Of a file, also a file:// URL; None for other URLs."""
    if text.lower().startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return None if _is_url(text) else Path(text)


def _is_camera(text: str) -> bool:
    return text.isdecimal() or re.fullmatch(r"/dev/video\d+", text) is not None


def _is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][\w+.-]+://", text) is not None


def _has_end(url: str, answer: Answer | None) -> bool:
    """What the server says; where it says nothing, what the name looks like."""
    if answer is not None and answer.is_live is not None:
        return not answer.is_live
    return Path(url.partition("?")[0].lower()).suffix in _VIDEO_SUFFIXES


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
    if any(host == page or host.endswith(f".{page}") for page in _VIDEO_PAGES):
        raise SourceError(
            f"{redact(url)}: this is a page that plays a video, not the video itself; give the "
            f'address that yt-dlp finds: run_stream.py "$(yt-dlp -g URL)"'
        )
    name = name or re.sub(r"[^\w.-]+", "-", host) or f"{parts.scheme}-{parts.port}"
    if parts.scheme.lower() not in _WEB_SCHEMES:
        _check_protocol(url, parts.scheme)
        return LiveSource(name, url, settings)
    return _open_web(url, name, settings)


def _open_web(url: str, name: str, settings: SourceSettings) -> Source:
    answer = ask(
        url,
        options=settings.options,
        timeout_seconds=settings.open_timeout_seconds,
        variant=settings.video_stream,
    )
    if answer is not None and answer.problem:
        raise SourceError(f"{redact(url)}: {answer.problem}")
    has_end = _has_end(url, answer) if settings.live is None else not settings.live
    if has_end:
        return VideoFile(name, url if answer is None else answer.url, settings)
    return LiveSource(name, url, settings)


def _check_protocol(url: str, scheme: str) -> None:
    """SourceError where this FFmpeg was built without the protocol; nothing is connected to."""
    if scheme.lower() not in ("srt", "rist"):
        return
    try:
        av.open(f"{scheme}://127.0.0.1:1", timeout=(0.01, 0.01)).close()
    except av.error.ProtocolNotFoundError:
        raise SourceError(
            f"{redact(url)}: this FFmpeg (of PyAV's wheel) has no {scheme}; use an FFmpeg that has "
            f"it: ffmpeg -i URL -c copy -f mpegts - | run_stream.py -"
        ) from None
    except (av.error.FFmpegError, OSError):
        return


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
    may_listen = parts.scheme.lower() in _LISTENING_SCHEMES and port is not None
    return None if host or may_listen else "there is no host in it"


def _without_secrets(broken_url: str) -> str:
    """What stands behind the : may be a password whose @ is missing, or one with a space in it."""
    if re.search(r"\s", broken_url):
        return broken_url.partition("://")[0] + "://***"
    return re.sub(r"(://[^/:]*:).*?(?=/|$)", r"\1***", redact(broken_url))


def _open_path(path: Path, name: str | None, settings: SourceSettings) -> Source:
    if path.is_dir():
        return open_folder(path, name or path.resolve().name, settings)
    if not path.exists() and any(sign in path.name for sign in "*?["):
        return open_pattern(path, name, settings)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".sdp" and path.exists():
        return LiveSource(name or path.stem, str(path), settings, format_name="sdp")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return open_still(path, name or path.stem, settings)
    return VideoFile(name or path.stem, str(path), settings)
