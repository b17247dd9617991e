"""Sources: a file, a folder of images, a camera, a URL or a made picture -> numbered Frames.

    open_source("clip.mp4")  ->  source.frames()  ->  Frame, Frame, Frame, ...

A source is read by one thread, the one that runs frames(); it alone opens, touches and closes
what lies behind (closing an FFmpeg container under a reader crashes the process). Any other thread
may call stop(). A file ends; a live source reconnects for as long as nobody stops it. This file
knows neither queues nor what becomes of a frame; av_video.py is what it knows of FFmpeg.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import av
import av.container
import av.error
import cv2
import numpy as np

from pipeline import demo
from pipeline.av_video import BACKEND_ERRORS, Picture, VideoReader, reason_of, redact
from pipeline.messages import Frame

_logger = logging.getLogger(__name__)

State = Literal["idle", "connecting", "running", "waiting", "ended"]

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
_URL_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "http", "https"}
_USUAL_FPS = 25.0  # where a container does not say
_RETRY_SECONDS = (0.5, 1.0)
_REFUSED_RETRY_SECONDS = (30.0, 40.0)  # cameras lock out whoever repeats a wrong password fast


class SourceError(ValueError):
    """A source that cannot be read: one line that says which, why and what to do."""


@dataclass(frozen=True)
class SourceSettings:
    """How a source is read. What does not apply to a kind of source is of no effect there."""

    pace: bool = False
    """Play files at their own speed, as if they were live: frames may be dropped from them."""
    loop: bool = False
    """Start a file again when it ends; presentation times go on rising."""
    max_frames: int | None = None
    """End after so many frames."""
    transport: Literal["tcp", "udp"] = "tcp"
    """RTSP transport. tcp loses nothing but lags on a bad network; udp loses packets."""
    reconnect: bool = True
    """Live sources: connect again after a failure, for ever. False: the first one is the end."""
    open_timeout_seconds: float = 5.0
    """Live sources: how long to wait for an answer."""
    read_timeout_seconds: float = 2.0
    """Live sources: silence after which the connection counts as lost (FFmpeg may take twice
    that). It must exceed the time between two frames; with HLS, the length of a segment."""
    options: Mapping[str, str] = field(default_factory=dict)
    """More FFmpeg input options, for example {"video_size": "1280x720"} for a camera."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        if self.transport not in ("tcp", "udp"):
            raise ValueError(f"transport must be tcp or udp, got {self.transport!r}")
        if self.open_timeout_seconds <= 0 or self.read_timeout_seconds <= 0:
            raise ValueError(
                f"timeouts must be positive, got open {self.open_timeout_seconds} "
                f"and read {self.read_timeout_seconds} seconds"
            )


class Source(Protocol):
    """What a stream needs of a source."""

    name: str
    """Word for it in messages, logs and file names; never holds a password."""
    live: bool
    """True where the source runs on its own clock and may be dropped from."""
    num_frames: int | None
    """Frames it will give, by its container's word; None where unknown or endless."""
    fps: float | None
    """Nominal frame rate; None where unknown (live, until connected) or meaningless (images)."""
    state: State
    """idle -> connecting -> running -> ended; live also waiting (for the next try to connect)."""

    def frames(self) -> Iterator[Frame]:
        """Read the source, once. Whatever it holds open is closed when the iterator ends.

        Raises:
            SourceError: nothing could be read, or, after the last frame there was, that a file is
                cut off.
        """

    def stop(self) -> None:
        """Make frames() end soon; callable from any thread. A live source that is silent takes up
        to twice its read timeout."""

    def close(self) -> None:
        """The same; nothing is held open outside frames()."""


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
        return _DrawnSource(
            name or "demo", settings, demo.picture, fps=demo.FPS, num_frames=num_frames
        )
    if re.fullmatch(r"testsrc(=.*)?", text):
        size, fps = _parse_test_pattern(text)
        draw = _TestPattern(size).picture
        return _DrawnSource(name or "testsrc", settings, draw, fps=fps, num_frames=None)
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
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is none raises
    except ValueError:
        host = None
    if not host:
        raise SourceError(
            f"{redact(url)} is not a URL; write a / or @ inside a password as %2F or %40"
        )
    if parts.scheme.lower() not in _URL_SCHEMES:
        known = ", ".join(sorted(_URL_SCHEMES))
        raise SourceError(f"{redact(url)}: unknown scheme {parts.scheme}://; known: {known}")
    name = name or re.sub(r"[^\w.-]+", "-", host)
    if _is_remote_file(url):
        return _VideoFile(name, url, settings)
    return LiveSource(name, url, settings)


def _open_path(path: Path, name: str | None, settings: SourceSettings) -> Source:
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
        if not images:
            kinds = ", ".join(sorted(_IMAGE_SUFFIXES))
            raise SourceError(f"{path}: no images in this folder; looked for {kinds}")
        return _ImageFiles(name or path.resolve().name, images, settings)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    if path.suffix.lower() in _IMAGE_SUFFIXES:
        return _ImageFiles(name or path.stem, [path], settings)
    return _VideoFile(name or path.stem, str(path), settings)


class _NumberedSource:
    """What all sources share: pictures get a number, a name and times; pace, repetition, end.

    A kind of source gives _pictures(), one pass over what it has.
    """

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        *,
        live: bool = False,
        num_frames: int | None = None,
        fps: float | None = None,
    ) -> None:
        self.name = name
        self.live = live or settings.pace
        limits = [None if settings.loop else num_frames, settings.max_frames]
        self.num_frames = min((n for n in limits if n is not None), default=None)
        self.fps = fps
        self.state: State = "idle"
        self._settings = settings
        self._paced = settings.pace and not live
        self._repeats = settings.loop and not live
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self.stop()

    def frames(self) -> Iterator[Frame]:
        started: float | None = None  # when the picture of presentation time 0 was due
        try:
            with closing(self._rounds()) as pictures:
                for index, picture in enumerate(islice(pictures, self._settings.max_frames)):
                    if self._paced:
                        started = self._wait_for_turn(picture, index, started)
                    if self._stopped.is_set():
                        return
                    self.state = "running"
                    yield self._frame(picture, index)
        finally:
            self.state = "ended"

    def _pictures(self) -> Generator[Picture, None, None]:
        raise NotImplementedError

    def _rounds(self) -> Generator[Picture, None, None]:
        """The pictures; if the source repeats, again and again with times that go on rising."""
        shift = 0.0
        while True:
            first = last = None
            with closing(self._pictures()) as pictures:
                for picture in pictures:
                    if picture.pts_seconds is None:
                        yield picture
                        continue
                    first = picture.pts_seconds if first is None else first
                    last = picture.pts_seconds
                    yield picture._replace(pts_seconds=last + shift)
            if not self._repeats or self._stopped.is_set():
                return
            if first is not None and last is not None:
                shift += last - first + 1.0 / self._rate

    def _wait_for_turn(self, picture: Picture, index: int, started: float | None) -> float:
        """Sleep until the picture's presentation time has come; the first one comes at once."""
        seconds = index / self._rate if picture.pts_seconds is None else picture.pts_seconds
        now = time.monotonic()
        started = now - seconds if started is None else started
        self._stopped.wait(max(0.0, started + seconds - now))
        return started

    @property
    def _rate(self) -> float:
        return self.fps or _USUAL_FPS

    def _frame(self, picture: Picture, index: int) -> Frame:
        height, width = picture.planes[0].shape[:2]
        return Frame(
            source=self.name,
            index=index,
            pts_seconds=picture.pts_seconds,
            captured_ns=time.monotonic_ns(),
            captured_unix_s=time.time(),
            size=(height, width) if picture.rotation in (0, 180) else (width, height),
            planes=picture.planes,
            pixel_format=picture.pixel_format,
            color_space=picture.color_space,
            full_range=picture.full_range,
            rotation=picture.rotation,
            image_name=picture.image_name,
            live=self.live,
        )


class _VideoFile(_NumberedSource):
    """A video file, also a remote one (http). Read to its end, however early that comes."""

    def __init__(self, name: str, url: str, settings: SourceSettings) -> None:
        self._shown = redact(url)
        self._remote = "://" in url
        # The prefix keeps FFmpeg from reading a colon in a file's name as a protocol.
        self._url = url if self._remote else f"file:{url}"
        with self._open(settings) as container:
            reader = VideoReader(container, threads="AUTO")
            num_frames, fps = reader.num_frames, reader.fps
        super().__init__(name, settings, num_frames=num_frames, fps=fps)

    def _open(self, settings: SourceSettings) -> av.container.InputContainer:
        timeouts = (settings.open_timeout_seconds, settings.read_timeout_seconds)
        try:
            container = av.open(
                self._url,
                options=dict(settings.options),
                timeout=timeouts if self._remote else None,
            )
        except av.error.InvalidDataError:
            raise SourceError(
                f"{self._shown}: not a video that can be read; it is broken, cut off before its "
                f"index, or something else"
            ) from None
        except BACKEND_ERRORS as error:
            raise SourceError(f"{self._shown}: cannot be read: {reason_of(error)}") from None
        if container.format.name == "tty":  # FFmpeg draws any text file as a terminal would
            container.close()
            raise SourceError(f"{self._shown}: this is text, not a video")
        if not container.streams.video:
            container.close()
            raise SourceError(f"{self._shown}: holds no video")
        return container

    def _pictures(self) -> Generator[Picture, None, None]:
        delivered = 0
        problem = ""
        with self._open(self._settings) as container:
            reader = VideoReader(container, threads="AUTO")
            try:
                for picture in reader.pictures(self._stopped):
                    delivered += 1
                    yield picture
            except BACKEND_ERRORS as error:
                problem = f" ({reason_of(error)})"
            cut_off = problem or reader.is_cut_off
        if self._stopped.is_set():
            return
        if not delivered:
            raise SourceError(f"{self._shown}: not one picture could be decoded; it is broken")
        if reader.num_damaged:
            _logger.warning("%s: %d damaged packets were skipped", self.name, reader.num_damaged)
        if cut_off:  # an error, so that nobody takes a part for the whole; after all it had
            raise SourceError(
                f"{self._shown}: the video is cut off{problem}; it gave {delivered} frames"
            )


class LiveSource(_NumberedSource):
    """A camera or a stream from the network. Loss of the connection is no end: it reconnects."""

    def __init__(
        self, name: str, url: str, settings: SourceSettings, *, format_name: str | None = None
    ) -> None:
        super().__init__(name, settings, live=True)
        self._url = url
        self._format_name = format_name  # FFmpeg's input device; None for the network
        self._delivered = False
        self._lost_at: float | None = None
        self._problem = ""

    def _pictures(self) -> Generator[Picture, None, None]:
        while not self._stopped.is_set():
            self.state = "connecting"
            retry = _RETRY_SECONDS
            try:
                with self._connect() as container:
                    reader = VideoReader(container, threads="NONE")
                    for picture in reader.pictures(self._stopped):
                        if self.state == "connecting":
                            self._note_connected(picture, reader.fps)
                        yield picture
                problem = "the stream ended"  # a server that dies is no error for FFmpeg
            except BACKEND_ERRORS as error:
                problem = self._describe(error)
                if isinstance(error, av.error.HTTPClientError):
                    retry = _REFUSED_RETRY_SECONDS
            if self._stopped.is_set() or not self._tries_again(problem):
                return
            self._note_lost(problem)
            self._stopped.wait(random.uniform(*retry))

    def _connect(self) -> av.container.InputContainer:
        container = av.open(
            self._url,
            format=self._format_name,
            options=self._options() | dict(self._settings.options),
            timeout=(self._settings.open_timeout_seconds, self._settings.read_timeout_seconds),
        )
        if not container.streams.video:
            container.close()
            raise OSError("the stream carries no video")
        return container

    def _options(self) -> dict[str, str]:
        """FFmpeg's options for a quick start.

        Not fflags=nobuffer: it throws away what probing has read, with it the first key frame,
        and the latency afterwards is the same.
        """
        if self._format_name is not None:
            return {}
        if self._url.lower().startswith("rtsp"):
            # The session description says what FFmpeg would otherwise read seconds of video for.
            return {
                "rtsp_transport": self._settings.transport,
                "probesize": "32",
                "analyzeduration": "0",
            }
        return {"analyzeduration": "1000000", "fpsprobesize": "0"}

    def _describe(self, error: Exception) -> str:
        """In words: FFmpeg's own for silence is "immediate exit requested"."""
        if isinstance(error, av.error.ExitError) and self.state == "running":
            return f"no data for {self._settings.read_timeout_seconds:g} seconds"
        if isinstance(error, (av.error.ExitError, av.error.InvalidDataError)):
            return f"no valid answer within {self._settings.open_timeout_seconds:g} seconds"
        return reason_of(error)

    def _tries_again(self, problem: str) -> bool:
        """Without reconnect a failure is the end; a local camera must have worked once."""
        may_come_back = self._settings.reconnect and (self._delivered or not self._format_name)
        if may_come_back:
            return True
        if not self._delivered:
            raise SourceError(f"{redact(self._url)}: cannot be read: {problem}")
        _logger.warning("%s: %s; not reconnecting", self.name, problem)
        return False

    def _note_connected(self, picture: Picture, fps: float | None) -> None:
        height, width = picture.planes[0].shape[:2]
        after = ""
        if self._lost_at is not None:
            after = f" again after {time.monotonic() - self._lost_at:.1f} s"
        _logger.info("%s: connected%s, %dx%d", self.name, after, width, height)
        self.state = "running"
        if fps is not None and 1.0 <= fps <= 240.0:  # some streams state their clock rate instead
            self.fps = fps
        self._delivered, self._lost_at, self._problem = True, None, ""

    def _note_lost(self, problem: str) -> None:
        self.state = "waiting"
        self._lost_at = time.monotonic() if self._lost_at is None else self._lost_at
        if problem != self._problem:
            _logger.warning("%s: %s; trying again until it works", self.name, problem)
        self._problem = problem


class _ImageFiles(_NumberedSource):
    """Images in the order given. They are read as evaluation reads them: EXIF turns nothing."""

    def __init__(self, name: str, paths: list[Path], settings: SourceSettings) -> None:
        if settings.pace:
            raise SourceError(f"{paths[0].parent}: images have no speed to pace; leave pace out")
        super().__init__(name, settings, num_frames=len(paths))
        self._paths = paths

    def _pictures(self) -> Generator[Picture, None, None]:
        unreadable = []
        for path in self._paths:
            bgr = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if bgr is None:
                unreadable.append(path.name)
                _logger.warning("%s: %s cannot be read, skipped", self.name, path.name)
                continue
            yield Picture(planes=(np.asarray(bgr),), image_name=path.name)
        if len(unreadable) == len(self._paths):
            raise SourceError(f"{self._paths[0]}: cannot be read as an image, nor any other given")
        if unreadable:
            _logger.warning(
                "%s: %d of %d images could not be read",
                self.name, len(unreadable), len(self._paths),
            )  # fmt: skip


class _DrawnSource(_NumberedSource):
    """Pictures that a function draws: the demo scene, the test pattern."""

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        draw: Callable[[int], np.ndarray],
        *,
        fps: float,
        num_frames: int | None,
    ) -> None:
        super().__init__(name, settings, num_frames=num_frames, fps=fps)
        self._draw = draw
        self._length = num_frames

    def _pictures(self) -> Generator[Picture, None, None]:
        for index in islice(count(), self._length):
            yield Picture(planes=(self._draw(index),), pts_seconds=index / self._rate)


class _TestPattern:
    """Coloured checks that slide to the left, under a row of cells that spells the frame number.

    Cell i of 24 is white where bit i of the number is set, so that the number can be read back
    from a picture, even one that was compressed.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._height, self._width = size
        cell = max(4, self._height // 9)
        y, x = np.mgrid[: self._height, : 2 * self._width].astype(np.int32)
        x %= self._width  # twice the same picture side by side: any window of it is a rotation
        wave = (255 * x // self._width, 255 * y // self._height, 96 * ((x // cell + y // cell) % 2))
        self._wide = np.stack(wave, axis=-1).astype(np.uint8)

    def picture(self, index: int) -> np.ndarray:
        """A new (height, width, 3) uint8 BGR array."""
        left = 4 * index % self._width
        picture = self._wide[:, left : left + self._width].copy()
        bits = (index >> np.arange(24)) & 1
        row = np.repeat(bits * 255, self._width // 24).astype(np.uint8)
        picture[: self._height // 12, : len(row)] = row[:, None]
        return picture


def _parse_test_pattern(text: str) -> tuple[tuple[int, int], float]:
    """ "testsrc=1280x720@30" -> ((720, 1280), 30.0); both parts may be left out."""
    match = re.fullmatch(r"testsrc(?:=(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?)?", text)
    if not match:
        raise SourceError(f"{text}: write testsrc, testsrc=1280x720 or testsrc=1280x720@30")
    width, height, fps = int(match[1] or 1280), int(match[2] or 720), float(match[3] or 30)
    if width < 48 or height < 48 or fps <= 0:
        raise SourceError(f"{text}: at least 48x48 pixels and more than 0 frames a second")
    return (height, width), fps
