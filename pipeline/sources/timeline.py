"""Presentation times that can be relied on, and fewer frames a second, evenly.

Cameras leave times out, repeat them, go back after a restart, jump, or tick at a wrong rate. Stages
behind the decoder (speed of a keypoint, time in a video) need times that rise as time passes. This
file knows nothing of pictures and reads no clock.
"""

from __future__ import annotations

import math

_SMALLEST_STEP = 0.001  # seconds
_SLACK_SECONDS = 2.0  # by which a live source's clock may run ahead of arrival
_WINDOWS_SECONDS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)  # the last finds 1 s in an hour
_FRAMES_OF_A_WINDOW = 3  # at least
_TOLERANCE_SECONDS = 0.3  # of arrival that shakes, at a window's two ends
_LONGEST_WAIT_SECONDS = 1.5  # for a picture; slower streams than that are not paced
_EARLY = 0.1  # of an interval: a camera's times are rounded and shake


class RisingTime:
    """Presentation times in seconds that always rise, and are the source's own where these do.

    Where the source gives no time, or one that does not rise or leaps ahead (a live source only:
    by 2 s more than has passed), the frame comes so long after the last one as `elapsed` says, and
    the source's clock counts on from there. A file that is in order keeps its times exactly.

    The clock of a live source is believed while it ticks as fast as frames arrive. Once it does
    not, times are those of arrival, also for what came before: a clock that was slow is made up for
    at once, one that was fast by half speed until arrival has caught up.
    """

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._slack = _SLACK_SECONDS if live else math.inf
        self._shift = 0.0  # from the source's clock to the published one
        self._own: float | None = None  # last time by the source's clock
        self._last: float | None = None  # last time published
        self._arrived = 0.0  # the same by arrival alone
        self._check = _RateCheck()
        self.wrong_rate: float | None = None
        """How fast the source's clock runs, in seconds a second; None while it is believed."""

    def next(self, pts_seconds: float | None, *, elapsed: float) -> float:
        """The next frame's time.

        Args:
            pts_seconds: by the source's clock; None where it does not say.
            elapsed: seconds since the last frame: by this machine's clock, or the nominal interval.
        """
        if self._last is None or self._own is None:
            self._own = self._last = self._arrived = pts_seconds or 0.0
            return self._last
        before, self._own = self._own, self._own_time(self._own, pts_seconds, elapsed)
        self._arrived += elapsed
        if self._live and self.wrong_rate is None:
            self.wrong_rate = self._check.add(elapsed, ticked=self._own - before)
        if self.wrong_rate is None:
            self._last = self._own
        else:
            least = self._last + max(elapsed / 2, _SMALLEST_STEP)
            self._last = max(self._arrived, least)
        return self._last

    def _own_time(self, last: float, pts_seconds: float | None, elapsed: float) -> float:
        time = math.nan if pts_seconds is None else pts_seconds + self._shift
        if not last < time <= last + elapsed + self._slack:
            time = last + max(elapsed, _SMALLEST_STEP)
            self._shift = self._shift if pts_seconds is None else time - pts_seconds
        return time


class _RateCheck:
    """Finds a clock that ticks too slowly or too fast, and neither a hiccup nor a burst.

    Two windows of time in a row must be wrong by 0.3 s each, both alike. Short windows find a gross
    error soon; long ones find a small one late. A network that stalls and then catches up is wrong
    one way and then the other; a server that first sends what it has buffered is wrong once.
    """

    def __init__(self) -> None:
        self._windows = [_Window(seconds) for seconds in _WINDOWS_SECONDS]

    def add(self, elapsed: float, *, ticked: float) -> float | None:
        """One more frame: seconds passed, and by the clock. The clock's rate if it is wrong."""
        rates = [window.add(elapsed, ticked) for window in self._windows]
        return next((rate for rate in rates if rate is not None), None)


class _Window:
    """Time that passed, and that the clock says, over at least so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._passed = self._ticked = 0.0
        self._num_frames = 0
        self._excess_before = 0.0  # of the clock, a second; 0 where the last window was right

    def add(self, elapsed: float, ticked: float) -> float | None:
        """The clock's rate, if this frame ends a second wrong window in a row."""
        self._passed += elapsed
        self._ticked += ticked
        self._num_frames += 1
        if self._passed < self._seconds or self._num_frames < _FRAMES_OF_A_WINDOW:
            return None
        excess = self._ticked - self._passed
        is_wrong = abs(excess) > _TOLERANCE_SECONDS
        rate, before = self._ticked / self._passed, self._excess_before
        self._excess_before = rate - 1.0 if is_wrong else 0.0
        self._passed = self._ticked = 0.0
        self._num_frames = 0
        # Of one sign and of one size: neither is more than half as large again as the other.
        low, high = sorted((before, self._excess_before), key=abs)
        return rate if low * high > 0 and abs(high) <= 1.5 * abs(low) else None


class Pacer:
    """Spreads what comes in bursts (HLS segments) over the time that it lasts.

    A picture is due when its time by the source's clock has come; the first one at once. One that
    is late is given at once and moves all that follow, so the delay grows only as far as the source
    falls silent. A time that leaps is given at once too, so no wait exceeds a second.
    """

    def __init__(self) -> None:
        self._due_at: float | None = None  # of time 0, by this machine's clock

    def wait_seconds(self, seconds: float, *, now: float) -> float:
        """How long to hold back the picture of that time."""
        ahead = math.inf if self._due_at is None else self._due_at + seconds - now
        if 0.0 <= ahead <= _LONGEST_WAIT_SECONDS:
            return ahead
        self._due_at = now - seconds
        return 0.0


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
