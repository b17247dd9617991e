"""Presentation times that can be relied on, and fewer frames a second, evenly.

Cameras leave times out, repeat them, go back after a restart, or jump. Stages behind the decoder
(speed of a keypoint, time in a video) want times that rise. This file knows nothing of pictures.
"""

from __future__ import annotations

import math

_SMALLEST_STEP = 0.001  # seconds
_SLACK_SECONDS = 2.0  # by which a live source's clock may run ahead of arrival
_EARLY = 0.1  # of an interval: a camera's times are rounded and shake


class RisingTime:
    """Presentation times in seconds that always rise, and are the source's own where these do.

    Where the source gives no time, or one that does not rise or leaps ahead (a live source only:
    by 2 s more than has passed), the frame comes so long after the last one as `elapsed` says, and
    the source's clock counts on from there. A file that is in order keeps its times exactly.
    """

    def __init__(self, *, live: bool) -> None:
        self._slack = _SLACK_SECONDS if live else math.inf
        self._shift = 0.0  # from the source's clock to the published one
        self._last: float | None = None

    def next(self, pts_seconds: float | None, *, elapsed: float) -> float:
        """The next frame's time.

        Args:
            pts_seconds: by the source's clock; None where it does not say.
            elapsed: seconds since the last frame: by this machine's clock, or the nominal interval.
        """
        if self._last is None:
            time = 0.0 if pts_seconds is None else pts_seconds
        else:
            time = math.nan if pts_seconds is None else pts_seconds + self._shift
            if not self._last < time <= self._last + elapsed + self._slack:
                time = self._last + max(elapsed, _SMALLEST_STEP)
                self._shift = self._shift if pts_seconds is None else time - pts_seconds
        self._last = time
        return time


class EvenRate:
    """Chooses which frames to keep so that no more than so many a second remain, evenly spaced."""

    def __init__(self, max_fps: float | None) -> None:
        self._interval = 0.0 if max_fps is None else 1.0 / max_fps
        self._due = -math.inf

    def is_due(self, seconds: float) -> bool:
        """Whether keeps() would keep a frame of this time."""
        return seconds >= self._due - _EARLY * self._interval

    def keeps(self, seconds: float | None) -> bool:
        """Whether to keep the frame of this time; times rise. Pictures without a time are kept."""
        if seconds is None or not self.is_due(seconds):
            return seconds is None
        on_schedule = seconds < self._due + self._interval
        self._due = (self._due if on_schedule else seconds) + self._interval
        return True
