"""How a source is doing: one of six states, why, since when, and what it has been through.

    connecting --> live <--> stalled          frames come; for a moment none came
        |            |          |
        |            v          v
        |       reconnecting (lost: tried again about every second)
        v            |
     refused  <------'   (wrong password, no such stream: tried again after 30 to 300 s)

                ended    (for good: the end of a file, stop(), or a failure without reconnect)

The reading thread writes, any thread reads. `stalled` is reckoned when somebody reads: the reader
itself hangs in FFmpeg then. This file knows nothing of FFmpeg and opens nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class SourceState(StrEnum):
    """What a source is doing, in one word."""

    CONNECTING = "connecting"
    """No frame yet: not begun, or the camera has not answered so far."""
    LIVE = "live"
    """Frames come; also those of a file."""
    STALLED = "stalled"
    """Connected, but no frame for half the read timeout."""
    RECONNECTING = "reconnecting"
    """Lost; tried again about every second."""
    REFUSED = "refused"
    """The camera says no (401, 403, 404); tried again after 30 to 300 seconds."""
    ENDED = "ended"
    """Nothing more will come."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source is doing at one moment."""

    state: SourceState = SourceState.CONNECTING
    reason: str = ""
    """Why, in words without any password; empty while all is well."""
    since_unix_s: float = 0.0
    """Wall clock at which the state began."""
    retries: Mapping[str, int] = field(default_factory=dict)
    """How often a connection was lost or did not come about, by reason in one word."""
    tainted: int = 0
    """Frames that were damaged, or predicted from damaged ones."""
    left_out: int = 0
    """Frames that max_fps kept back."""


class SourceHealth:
    """Keeps a source's status.

    Args:
        stall_seconds: silence after which `live` reads `stalled`; None: never (files).
        now: the clock, in seconds; tests give their own.
    """

    def __init__(
        self, *, stall_seconds: float | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stall_seconds = stall_seconds
        self._now = now
        self._lock = threading.Lock()
        self._state, self._reason = SourceState.CONNECTING, ""
        self._since = self._last_frame = now()
        self._retries: Counter[str] = Counter()
        self._tainted = self._left_out = 0

    @property
    def status(self) -> SourceStatus:
        with self._lock:
            now = self._now()
            state, reason, since = self._state, self._reason, self._since
            silence = now - self._last_frame
            if state is SourceState.LIVE and silence > (self._stall_seconds or silence):
                state, since = SourceState.STALLED, self._last_frame
                reason = f"no frame for {silence:.1f} s"
            return SourceStatus(
                state=state,
                reason=reason,
                since_unix_s=time.time() - (now - since),
                retries=dict(self._retries),
                tainted=self._tainted,
                left_out=self._left_out,
            )

    def saw_frame(self, *, tainted: bool = False) -> None:
        """A frame has come."""
        with self._lock:
            self._last_frame = self._now()
            self._tainted += tainted
            self._enter(SourceState.LIVE, "")

    def left_out_frame(self) -> None:
        """A frame that came was kept back by max_fps."""
        with self._lock:
            self._left_out += 1

    def lost(self, state: SourceState, *, reason: str, word: str) -> None:
        """A connection was lost or did not come about, and will be tried again.

        Args:
            state: what the source does now.
            reason: in words, for people.
            word: the same in one word, one of few: what it is counted under.
        """
        with self._lock:
            self._retries[word] += 1
            self._enter(state, reason)

    def ended(self, reason: str = "") -> None:
        with self._lock:
            self._enter(SourceState.ENDED, reason)

    def _enter(self, state: SourceState, reason: str) -> None:
        if state is not self._state:
            self._since = self._now()
        self._state, self._reason = state, reason
