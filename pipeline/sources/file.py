"""Sources with an end: a video file, also one on a web server.

    file:clip.mp4   http://web/clip.mp4    ->  Picture, Picture, ...  ->  the end

A part is never taken for the whole: a file that is cut off gives what is there, then an error.
"""

from __future__ import annotations

import logging
from collections.abc import Generator

import av
import av.container
import av.error

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


class VideoFile(NumberedSource):
    """A video file, also a remote one (http). Read to its end, however early that comes."""

    def __init__(self, name: str, url: str, settings: SourceSettings) -> None:
        self._shown = redact(url)
        self._remote = "://" in url
        # The prefix keeps FFmpeg from reading a colon in a file's name as a protocol.
        self._url = url if self._remote else f"file:{url}"
        with self._open(settings, device=None) as container:  # it is only looked at
            reader = VideoReader(container, threads="AUTO")
            num_frames, fps = reader.num_frames, reader.fps
        super().__init__(name, settings, num_frames=num_frames, fps=fps)
        self._has_times = True  # of their own, or by number and nominal rate
        self._is_first_pass = True

    def _open(self, settings: SourceSettings, *, device: int | None) -> av.container.InputContainer:
        timeouts = (settings.open_timeout_seconds, settings.read_timeout_seconds)
        try:
            with naming_lost_hosts(self._url), opening_on(device) as hwaccel:
                container = av.open(
                    self._url,
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
            what = "video of an unknown coding" if container.streams.video else "no video"
            container.close()
            raise SourceError(f"{self._shown}: holds {what}")
        return container

    def _pictures(self) -> Generator[Picture, None, None]:
        delivered = 0
        problem = ""
        device = self._settings.device
        with self._open(self._settings, device=device) as container:
            reader = VideoReader(container, threads="AUTO", device=device)
            try:
                for picture in reader.pictures(self._stopped):
                    self._note_first(picture)
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

    def _note_first(self, picture: Picture) -> None:
        if self._is_first_pass and self._settings.device is not None:
            _logger.info("%s: a video%s", self.name, decoded_where(picture, self._settings))
        self._is_first_pass = False
