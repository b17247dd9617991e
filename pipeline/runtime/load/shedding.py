"""Which frames are left before they cost anything: too old, more than their share, out of turn.

    taken --> too old? --> over the rate? --> another's turn? --> preprocess --> all too old by now?
              too_old      over_rate          out_of_turn                        too_old

Live sources only: of a file every frame is worked on. Each frame left is counted with its reason
and shows as a gap in Frame.index. What is offered is read from the same numbers: an index counts
every frame of its source, taken or not. This file knows nothing of networks.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from pipeline.messages import Frame, NetInput
from pipeline.runtime.load.turns import Turns
from pipeline.runtime.stats import Stats
from pipeline.sources.timeline import EvenRate

TOO_OLD = "too_old"
"""Reason: older than max_age_ms."""
OVER_RATE = "over_rate"
"""Reason: more frames a second than the source should get."""
OUT_OF_TURN = "out_of_turn"
"""Reason: left so that a source whose frames were always too old has its turn; see turns.py."""

_REMEMBERED = 256  # frames of a source, from which its rate is told
_RATE_SECONDS = 1.0
_SILENT_SECONDS = 2.0  # after which nothing is offered, beside three times what is usual


class Shedding:
    """Chooses what is worked on. admit() and its kin belong to one stage's thread each.

    Args:
        stats: where frames that are left are counted.
        max_age_ms: older ones are left, reckoned from Frame.captured_ns; None: none is too old.
        max_fps: of each live source; None: all that come. See limit().
        clock: as time.monotonic_ns(), by which frames are captured.
    """

    def __init__(
        self,
        *,
        stats: Stats,
        max_age_ms: float | None = None,
        max_fps: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._stats = stats
        self._max_age_ms = max_age_ms
        self._turns = None if max_age_ms is None else Turns(max_age_ms=max_age_ms)
        self._clock = clock
        self._max_fps = max_fps
        self._rates: dict[str, EvenRate] = {}  # by source; of one thread, that of admit()
        self._lock = threading.Lock()  # of _taken
        self._taken: dict[str, deque[tuple[int, int]]] = {}  # captured_ns, index; by source

    def limit(self, max_fps: float) -> None:
        """From now on so many frames a second; in the thread of admit()."""
        self._max_fps = max_fps
        self._rates.clear()

    def admit(self, frames: Sequence[Frame]) -> list[Frame]:
        """Those of the frames just taken that are worked on."""
        now_ns = self._clock()
        kept = []
        for frame in frames:
            self._note(frame, now_ns)
            if self._is_too_old(frame, now_ns):
                self._stats.dropped("preprocess", frame.source, TOO_OLD)
                if self._turns is not None and self._is_due(frame):
                    self._turns.missed(frame.source, now_ns=now_ns)
            elif not self._is_due(frame):
                self._stats.dropped("preprocess", frame.source, OVER_RATE)
            else:
                kept.append(frame)
        return self._in_turn(kept, now_ns)

    def admit_batches(self, batches: Sequence[NetInput]) -> list[NetInput]:
        """Those that the network runs on: with a frame that has not grown too old meanwhile."""
        now_ns = self._clock()
        kept = []
        for batch in batches:
            if not all(self._is_too_old(frame, now_ns) for frame in batch.frames):
                kept.append(batch)
                continue
            for frame in batch.frames:
                self._stats.dropped("inference", frame.source, TOO_OLD)
        return kept

    def offered_fps(self) -> dict[str, float]:
        """Frames a second of each live source at the moment; from any thread."""
        now_ns = self._clock()
        with self._lock:
            return {
                name: 0.0 if _is_silent(taken, now_ns) else _rate(taken)
                for name, taken in self._taken.items()
            }

    def waited_ms(self) -> float:
        """How long the network was kept waiting for a source's turn; from any thread."""
        return 0.0 if self._turns is None else self._turns.waited_ms

    def forget_source(self, name: str) -> None:
        """Another source may come under its name; in the thread of admit()."""
        self._rates.pop(name, None)
        if self._turns is not None:
            self._turns.forget_source(name)
        with self._lock:
            self._taken.pop(name, None)

    def _note(self, frame: Frame, now_ns: int) -> None:
        if not frame.live:
            return
        with self._lock:
            taken = self._taken.setdefault(frame.source, deque(maxlen=_REMEMBERED))
            if taken and frame.index <= taken[-1][1]:
                taken.clear()  # a source that counts anew
            taken.append((frame.captured_ns, frame.index))
        if self._turns is not None:
            fps = _rate(taken)
            self._turns.note(
                frame.source,
                captured_ns=frame.captured_ns,
                interval_ns=1e9 / fps if fps > 0 else math.inf,
                now_ns=now_ns,
            )

    def _is_too_old(self, frame: Frame, now_ns: int) -> bool:
        if self._max_age_ms is None or not frame.live:
            return False
        return now_ns - frame.captured_ns > self._max_age_ms * 1e6

    def _is_due(self, frame: Frame) -> bool:
        """By the rate that its source should get."""
        if self._max_fps is None or not frame.live:
            return True
        rate = self._rates.get(frame.source)
        if rate is None:
            rate = self._rates[frame.source] = EvenRate(self._max_fps)
        return rate.is_due(_seconds(frame))

    def _in_turn(self, frames: list[Frame], now_ns: int) -> list[Frame]:
        """All of the frames, or none where the network should rather wait."""
        live = [frame for frame in frames if frame.live]
        if self._turns is not None and frames:
            names = {frame.source for frame in live}
            if len(live) == len(frames) and self._turns.should_wait(names, now_ns=now_ns):
                for frame in frames:
                    self._stats.dropped("preprocess", frame.source, OUT_OF_TURN)
                return []
            self._turns.worked_on(names, now_ns=now_ns)
        for frame in live:
            if frame.source in self._rates:
                self._rates[frame.source].keeps(_seconds(frame))
        return frames


def _seconds(frame: Frame) -> float:
    """When it arrived: results a second are by this clock."""
    return frame.captured_ns / 1e9


def _is_silent(taken: deque[tuple[int, int]], now_ns: int) -> bool:
    """Under overload a source's turn may come every few seconds; that is no silence."""
    usual_ns = taken[-1][0] - taken[max(0, len(taken) - 2)][0]
    return now_ns - taken[-1][0] > _SILENT_SECONDS * 1e9 + 3 * usual_ns


def _rate(taken: deque[tuple[int, int]]) -> float:
    """Frames a second over the last second, or over the time between the last two taken."""
    newest_ns, newest = taken[-1]
    for captured_ns, index in reversed(taken):
        if newest_ns - captured_ns >= _RATE_SECONDS * 1e9:
            return (newest - index) / ((newest_ns - captured_ns) / 1e9)
    first_ns, first = taken[0]
    if len(taken) == taken.maxlen and newest_ns > first_ns:  # more than so many a second
        return (newest - first) / ((newest_ns - first_ns) / 1e9)
    return 0.0  # it has only just begun
