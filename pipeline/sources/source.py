"""What all sources share: settings, the contract, and how pictures become numbered Frames.

A kind of source (file_source.py, live_source.py, drawn_source.py) gives pictures; NumberedSource
here gives them a number, a name, times, the rotation and region that a user asked for, and thins,
paces, repeats and ends. A source is read by one thread, the one that runs frames(); it alone
touches what lies behind. Any other thread may call stop() and read status.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from common.redaction import redact
from pipeline.messages import Frame, Region
from pipeline.sources.status import SourceHealth, SourceStatus
from pipeline.sources.timeline import EvenRate, RisingTime
from pipeline.sources.video_reader import Picture

_logger = logging.getLogger(__name__)

_USUAL_FPS = 25.0  # where a container does not say
_SMALLEST_REGION = 16  # pixels a side


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
    max_fps: float | None = None
    """Keep no more frames a second than this, evenly spaced; the others are decoded and left."""
    roi: tuple[float, float, float, float] | None = None
    """(x, y, width, height) of the upright picture that the network sees: pixels, or, if no number
    is above 1, fractions. Poses are in pixels of the whole picture all the same."""
    rotation: Literal[0, 90, 180, 270] | None = None
    """Clockwise degrees that turn the picture upright, in place of what the container says."""
    transport: Literal["tcp", "udp"] = "tcp"
    """RTSP transport. tcp loses nothing but lags on a bad network; udp loses packets."""
    live: bool | None = None
    """Whether the input runs on its own clock, has no end and may be dropped from. None: by what
    it is, see open.is_live."""
    video_stream: int | None = None
    """Of an input with several videos, the one to read, from 0; None: FFmpeg's choice."""
    deinterlace: Literal["auto", "off"] = "auto"
    """auto: interlaced video becomes whole pictures (on the CPU), one frame late."""
    reconnect: bool = True
    """Live sources: connect again after a failure, for ever. False: the first one is the end."""
    open_timeout_seconds: float = 5.0
    """Live sources: how long to wait for an answer."""
    read_timeout_seconds: float = 2.0
    """Live sources: silence after which the connection counts as lost (FFmpeg may take twice
    that). It must exceed the time between two frames; for HLS it grows by itself."""
    device: int | None = None
    """The CUDA device that decodes video, and keeps its pictures; None: the CPU."""
    options: Mapping[str, str] = field(default_factory=dict)
    """More FFmpeg input options, for example {"video_size": "1280x720"} for a camera."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        if self.max_fps is not None and self.max_fps <= 0:
            raise ValueError(f"max_fps must be positive, got {self.max_fps}")
        if self.roi is not None and (min(self.roi) < 0 or min(self.roi[2:]) <= 0):
            raise ValueError(f"roi must be x, y, width, height, none negative, got {self.roi}")
        if self.rotation not in (None, 0, 90, 180, 270):
            raise ValueError(f"rotation must be 0, 90, 180 or 270, got {self.rotation}")
        if self.transport not in ("tcp", "udp"):
            raise ValueError(f"transport must be tcp or udp, got {self.transport!r}")
        if self.video_stream is not None and self.video_stream < 0:
            raise ValueError(f"video_stream counts from 0, got {self.video_stream}")
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

    @property
    def status(self) -> SourceStatus:
        """How it is doing; from any thread."""

    def frames(self) -> Iterator[Frame]:
        """Read the source, once. Whatever it holds open is closed when the iterator ends.

        Raises:
            SourceError: nothing could be read, or, after the last frame there was, that a file is
                cut off.
        """

    def stop(self) -> None:
        """Make frames() end soon; callable from any thread. A live source that is silent takes up
        to its read timeout."""

    def close(self) -> None:
        """The same; nothing is held open outside frames()."""


class NumberedSource:
    """Pictures get a number, a name and times. A kind of source gives _pictures(), one pass."""

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
        on_own_clock = live or settings.live is True
        self.live = settings.pace or (live if settings.live is None else settings.live)
        if settings.max_fps is not None and num_frames is not None and fps is not None:
            num_frames = math.ceil(num_frames * min(1.0, settings.max_fps / fps))
        limits = [None if settings.loop else num_frames, settings.max_frames]
        self.num_frames = min((n for n in limits if n is not None), default=None)
        self.fps = fps
        self._settings = settings
        self._on_own_clock = on_own_clock
        self._paced = settings.pace and not live
        self._repeats = settings.loop and not live
        self._stopped = threading.Event()
        self._health = SourceHealth(
            stall_seconds=settings.read_timeout_seconds / 2 if live else None
        )
        self._time = RisingTime(live=on_own_clock)
        self._has_times = live  # images have none
        self._told_of_clock = False
        self._arrived = 0.0  # time.monotonic() of the last picture
        self._even_rate = EvenRate(settings.max_fps)
        self._regions: dict[tuple[int, int], Region | None] = {}  # by picture size

    @property
    def status(self) -> SourceStatus:
        return self._health.status

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self.stop()

    def frames(self) -> Iterator[Frame]:
        reason = ""
        try:
            with closing(self._kept()) as pictures:
                started: float | None = None  # when the picture of presentation time 0 was due
                index = -1
                for count, picture in enumerate(pictures, start=1):
                    index = index + 1 if picture.number is None else picture.number
                    if self._paced:
                        started = self._wait_for_turn(picture, index, started)
                    if self._stopped.is_set():
                        return
                    yield self._frame(picture, index)
                    if count == self._settings.max_frames:
                        return
        except SourceError as error:
            reason = redact(error)
            raise
        finally:
            self._health.ended(reason)

    def _pictures(self) -> Generator[Picture, None, None]:
        raise NotImplementedError

    def _kept(self) -> Generator[Picture, None, None]:
        """The pictures with times that rise, as few as max_fps says; again and again if wanted."""
        while True:
            with closing(self._pictures()) as pictures:
                for picture in pictures:
                    timed = self._with_rising_time(picture)
                    self._health.saw_frame(tainted=picture.tainted)
                    if self._even_rate.keeps(timed.pts_seconds):
                        yield timed
                    else:
                        self._health.left_out_frame()
            if not self._repeats or self._stopped.is_set():
                return

    def _with_rising_time(self, picture: Picture) -> Picture:
        now = time.monotonic()
        elapsed = now - self._arrived if self._on_own_clock else 1.0 / self._rate
        self._arrived = now
        self._has_times = self._has_times or picture.pts_seconds is not None
        if not self._has_times:
            return picture
        seconds = self._time.next(picture.pts_seconds, elapsed=elapsed)
        if self._time.wrong_rate is not None and not self._told_of_clock:
            self._told_of_clock = True
            _logger.warning(
                "%s: its clock runs %.2f s a second; frames are timed by their arrival instead",
                self.name, self._time.wrong_rate,
            )  # fmt: skip
        return picture._replace(pts_seconds=seconds)

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
        rotation = picture.rotation if self._settings.rotation is None else self._settings.rotation
        size, pixel_aspect = (height, width), picture.pixel_aspect
        if rotation in (90, 270):
            size, pixel_aspect = (width, height), 1.0 / pixel_aspect
        return Frame(
            source=self.name,
            index=index,
            pts_seconds=picture.pts_seconds,
            captured_ns=time.monotonic_ns(),
            captured_unix_s=time.time(),
            size=size,
            planes=picture.planes,
            pixel_format=picture.pixel_format,
            color_space=picture.color_space,
            full_range=picture.full_range,
            rotation=rotation,
            roi=self._region(size),
            pixel_aspect=pixel_aspect,
            image_name=picture.image_name,
            live=self.live,
            tainted=picture.tainted,
        )

    def _region(self, size: tuple[int, int]) -> Region | None:
        """The region of interest in pictures of this size; None where there is none."""
        if self._settings.roi is None:
            return None
        if size not in self._regions:
            self._regions.clear()  # a source seldom has two sizes at once
            self._regions[size] = region_of(self._settings.roi, size)
            if self._regions[size] is None:
                _logger.warning(
                    "%s: of roi %s nothing to speak of lies in its picture of %dx%d; the whole "
                    "picture is used", self.name, self._settings.roi, size[1], size[0],
                )  # fmt: skip
        return self._regions[size]


def decoded_where(picture: Picture, settings: SourceSettings) -> str:
    """For a log line: what became of the GPU that was to decode; "" where there was none."""
    if settings.device is None:
        return ""
    luma: Any = picture.planes[0]
    if isinstance(luma, np.ndarray):
        return f", decoded on the CPU: NVDEC of cuda:{settings.device} does not give this kind"
    return f", decoded on cuda:{settings.device}"


def region_of(roi: tuple[float, float, float, float], size: tuple[int, int]) -> Region | None:
    """The part of a picture (height, width) that a region of interest covers, in whole pixels.

    None where less than 16 pixels of it lie in the picture, in either direction.
    """
    height, width = size
    x, y, w, h = roi
    if max(roi) <= 1.0:
        x, y, w, h = x * width, y * height, w * width, h * height
    left, top = round(x), round(y)
    right, bottom = min(round(x + w), width), min(round(y + h), height)
    if min(right - left, bottom - top) < _SMALLEST_REGION:
        return None
    return left, top, right - left, bottom - top
