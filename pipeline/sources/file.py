"""Sources with an end: a video file, also one on a web server.

    file:clip.mp4   http://web/clip.mp4    ->  Picture, Picture, ...  ->  the end

A part is never taken for the whole: a file that is cut off gives what is there, then an error.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
from av.stream import Disposition

from common.redaction import redact
from pipeline.gpu.nvdec import opening_on
from pipeline.sources.source import NumberedSource, SourceError, SourceSettings, decoded_where
from pipeline.sources.video_reader import (
    BACKEND_ERRORS,
    NETWORK_ONLY,
    Picture,
    VideoReader,
    decodable,
    naming_lost_hosts,
    reason_of,
)

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_KEPT_SECONDS = 50.0  # web servers close connections that nobody reads after a minute
_END_OF_JPEG = b"\xff\xd9"
_BOUNDARY_BYTES = 200  # behind the last picture of a multipart MJPEG


class VideoFile(NumberedSource):
    """A video file, also a remote one (http). Read to its end, however early that comes."""

    def __init__(self, name: str, url: str, settings: SourceSettings) -> None:
        self._shown = redact(url)
        self._remote = "://" in url
        self._once = url == "-"
        # The prefix keeps FFmpeg from reading a colon in a file's name as a protocol.
        self._url = url if self._remote else f"file:{url}"
        container = self._open(settings, device=None)
        reader = self._reader(container, settings, device=None)
        num_frames, fps = reader.num_frames, reader.fps
        # What was looked at on the network is read on, rather than downloaded twice.
        keeps = self._once or (self._remote and settings.device is None)
        self._looked_at = (container, time.monotonic()) if keeps else None
        if not keeps:
            container.close()
        super().__init__(name, settings, num_frames=num_frames, fps=fps)
        self._has_times = True  # of their own, or by number and nominal rate
        self._is_first_pass = True

    def _open(self, settings: SourceSettings, *, device: int | None) -> av.container.InputContainer:
        timeouts = (settings.open_timeout_seconds, settings.read_timeout_seconds)
        try:
            with naming_lost_hosts(self._url), opening_on(device) as hwaccel:
                container: av.container.InputContainer = av.open(
                    self._input(),
                    options=dict(settings.options) | (NETWORK_ONLY if self._remote else {}),
                    timeout=timeouts if self._remote else None,
                    metadata_errors="replace",  # titles in Latin-1, or damaged
                    hwaccel=hwaccel,
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
        if not decodable(container):
            what = _what_is_there(container)
            container.close()
            raise SourceError(f"{self._shown}: holds {what}")
        return container

    def _pictures(self) -> Generator[Picture, None, None]:
        delivered = 0
        problem = ""
        device = self._settings.device
        with self._container(device) as container:
            reader = self._reader(container, self._settings, device=device)
            try:
                for picture in reader.pictures(self._stopped):
                    self._note_first(picture)
                    delivered += 1
                    yield picture
            except BACKEND_ERRORS as error:
                if not self._is_end_of_multipart(error, reader):
                    problem = f" ({reason_of(error)})"
            cut_off = problem or reader.is_cut_off or self._ends_in_a_picture(reader)
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

    def _input(self) -> Any:
        """What av.open reads: an address, or an object with read()."""
        return self._url

    def _container(self, device: int | None) -> av.container.InputContainer:
        """Opened; a connection that has waited for long may have been closed by its server."""
        looked_at, self._looked_at = self._looked_at, None
        if looked_at is not None:
            container, since = looked_at
            if self._once or time.monotonic() - since < _KEPT_SECONDS:
                return container
            container.close()
        return self._open(self._settings, device=device)

    def _reader(
        self,
        container: av.container.InputContainer,
        settings: SourceSettings,
        *,
        device: int | None,
    ) -> VideoReader:
        try:
            return VideoReader(
                container, threads="AUTO", device=device, video_stream=settings.video_stream,
                deinterlace=settings.deinterlace == "auto",
            )  # fmt: skip
        except OSError as error:  # no such stream
            container.close()
            raise SourceError(f"{self._shown}: {error}") from None

    def _is_end_of_multipart(self, error: Exception, reader: VideoReader) -> bool:
        """FFmpeg takes the end of a saved multipart MJPEG for a part that is damaged."""
        left = self._bytes_behind(reader)
        is_end = left is not None and left < _BOUNDARY_BYTES
        return is_end and isinstance(error, av.error.InvalidDataError)

    def _ends_in_a_picture(self, reader: VideoReader) -> bool:
        """Whether a saved multipart MJPEG was cut off: FFmpeg takes half a picture for a whole."""
        if self._bytes_behind(reader) != 0:
            return False
        with self._path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read() != _END_OF_JPEG

    def _bytes_behind(self, reader: VideoReader) -> int | None:
        """Of a saved multipart MJPEG: behind its last picture."""
        if self._remote or self._once or reader.format_name != "mpjpeg":
            return None
        return self._path.stat().st_size - reader.end_position

    @property
    def _path(self) -> Path:
        return Path(self._url.removeprefix("file:"))

    def _note_first(self, picture: Picture) -> None:
        if self._is_first_pass and self._settings.device is not None:
            _logger.info("%s: a video%s", self.name, decoded_where(picture, self._settings))
        self._is_first_pass = False


class StandardInput(VideoFile):
    """A video that another program writes into this one: ffmpeg ... - | run_stream.py -"""

    def __init__(self, name: str, settings: SourceSettings) -> None:
        if settings.loop:
            raise SourceError("-: standard input cannot be read again; leave loop out")
        super().__init__(name, "-", settings)

    def _input(self) -> Any:
        return _Pipe(self._is_stopped)

    def _is_stopped(self) -> bool:
        return hasattr(self, "_stopped") and self._stopped.is_set()


class _Pipe:
    """Standard input for PyAV: a read ends when the source is stopped, also while nothing comes."""

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped = is_stopped

    def read(self, size: int) -> bytes:
        while not self._is_stopped():
            if select.select([0], [], [], _POLL_SECONDS)[0]:
                return os.read(0, size)
        return b""


def _what_is_there(container: av.container.InputContainer) -> str:
    streams = container.streams.video
    if not streams:
        return "no video"
    if all(stream.disposition & Disposition.attached_pic for stream in streams):
        return "no video but a cover picture"
    return "video of an unknown coding"
