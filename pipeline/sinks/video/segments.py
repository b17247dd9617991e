"""One source's video as one file after another, for as long as the source lives.

    pictures -> Recording -> VideoWriter -> poses-cam1-20261122T035707.123Z.mp4
                    |  after segment_s, another picture size, or a full disk: the next file
                    '--> SegmentIndex (segment_index.py): which file shows what time

A disk that is full, or gone, is a state of the recording and no error: pictures are counted as
not written, with the reason, until files can be written again. Knows nothing of people.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.messages import Frame
from pipeline.sinks.outputs import holds_something, timed_path
from pipeline.sinks.unwritten import CALM_SECONDS, reason_of
from pipeline.sinks.video.segment_index import SegmentIndex
from pipeline.sinks.video.video_writer import VideoWriter, even_size

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0  # from opening one file to opening the next, where files fail
_LONGEST_LIVE_S = 3600.0  # an mp4 that is written takes 72 bytes of memory for every picture
_ROOM_BYTES = 32_000_000  # free on a disk that was full before it is tried again


class Recording:
    """Pictures of one source, as one file or, with an index, as segments."""

    def __init__(
        self,
        path: Path,
        *,
        segment_s: float | None = None,
        index: SegmentIndex | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            path: the file. With segment_s, for what follows a failure or the first hour of a live
                source, and where a live source would replace a file, the UTC time of the first
                picture is put before the suffix.
            segment_s: seconds after which a new file begins; None: all in one file, or in one an
                hour if the source is live.
            index: where segments are listed.
            now: the clock, in seconds; tests give their own.
        """
        self.unwritten: Counter[str] = Counter()
        """Pictures that are in no file, by reason: disk_full, file_too_large, cannot_write."""
        self._path = path
        self._segment_s = segment_s
        self._index = index
        self._now = now
        self._writer: VideoWriter | None = None
        self._has_begun = False
        self._tried_at = 0.0  # by `now`: to begin a file
        self._retry_at: float | None = None  # while the last file is one that failed
        self._newest_unix_s = 0.0
        self._newest_is_live = False
        self._reason = ""  # why pictures are not written, or were not until lately
        self._failed_at = 0.0

    def write(self, image_bgr: np.ndarray, frame: Frame) -> None:
        """Append a picture of (height, width, 3) uint8, or count it as not written."""
        if self._writer is not None and self._is_over(self._writer, image_bgr, frame):
            self.close()
        self._newest_unix_s, self._newest_is_live = frame.captured_unix_s, frame.live
        if self._writer is None and not self._may_begin():
            self.unwritten[self._reason] += 1
            return
        try:
            if self._writer is None:
                self._writer = self._begin(frame)
            self._writer.write(image_bgr, frame)
        except OSError as error:
            self._fail(error)
        else:
            self._note_recovery()

    def close_if_silent(self) -> None:
        """Finish the file of a live source that was over long ago, had another picture come."""
        longest = self._segment_s or _LONGEST_LIVE_S
        if self._newest_is_live and self._now() >= self._tried_at + longest + CALM_SECONDS:
            self.close()

    def close(self) -> None:
        """Finish the file; may be called again, and written to again."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._fail(error)
        else:
            self._list_end(self._writer, self._writer.num_pictures)
            self._writer = None

    def _is_over(self, writer: VideoWriter, image_bgr: np.ndarray, frame: Frame) -> bool:
        seconds = writer.seconds_at(frame)
        if self._segment_s is None:
            return frame.live and seconds >= _LONGEST_LIVE_S
        return seconds >= self._segment_s or writer.size != even_size(image_bgr)

    def _may_begin(self) -> bool:
        """Whether to open a file: after a failure only now and then, and where there is room."""
        if self._retry_at is None:
            return True
        if self._now() < self._retry_at:
            return False
        self._retry_at = self._now() + _RETRY_SECONDS
        return self._reason != "disk_full" or _free_bytes(self._path.parent) >= _ROOM_BYTES

    def _begin(self, frame: Frame) -> VideoWriter:
        self._tried_at = self._now()
        start_unix_s = frame.captured_unix_s
        as_given = self._segment_s is None and not self._has_begun
        if as_given and frame.live and holds_something(self._path):
            as_given = False  # what a camera showed before cannot be recorded again
            _log.info("%s is there and is kept; the new video has its time in the name", self._path)
        path = self._path if as_given else timed_path(self._path, start_unix_s)
        self._has_begun = True
        if self._index is not None:
            self._index.begin(path, stream=frame.source, start_unix_s=start_unix_s)
        self._retry_at = None
        return VideoWriter(path)

    def _fail(self, error: OSError) -> None:
        """The file is cut to what is whole; the rest of its pictures is counted."""
        reason = reason_of(error)
        writer, self._writer = self._writer, None
        if writer is None:  # not even a name could be found for the file
            self.unwritten[reason] += 1
        else:
            num_saved = writer.salvage()
            self.unwritten[reason] += writer.num_pictures - num_saved
            self._list_end(writer, num_saved)
        if not self._reason:
            _log.warning(
                "%s: cannot be written: %s; the stream goes on, pictures are not recorded until "
                "this is over",
                self._path if writer is None else writer.path,
                error.strerror or error,
            )
        self._reason = reason
        self._failed_at = self._now()
        self._retry_at = self._tried_at + _RETRY_SECONDS

    def _note_recovery(self) -> None:
        if self._reason and self._now() >= self._failed_at + CALM_SECONDS:
            assert self._writer is not None
            _log.warning(
                "%s: can be written again; %d pictures of the stream so far are not recorded",
                self._writer.path,
                self.unwritten.total(),
            )
            self._reason = ""

    def _list_end(self, writer: VideoWriter, num_pictures: int) -> None:
        if self._index is not None:
            self._index.end(writer.path, num_pictures=num_pictures, end_unix_s=self._newest_unix_s)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
