"""Whose turn it is, where frames may not grow old: a source that comes too late is waited for.

    frames     a  b              a  b               a  b                a  b
    network    [a       ]        .  [b       ]      [a       ]          .  [b       ]
                         b too   a                           b too      a
                         old     left                        old        left

Where a frame's work takes so long that the next camera's frame is too old by then, and both come
at one pace, the first would win for ever: it is always there when the network is free. So a source
that missed its turn is owed one. When its next frame is due, frames of sources that were worked on
since its own turn are left, but only those whose work would make it miss again: no camera gives
way to one that it does not harm.

A source that has fallen silent is not waited for, nor one whose frames are too old although the
network was free. This file knows sources by name, and the time only as it is told.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

_MARGIN = 0.25  # of a pass: frames never come on the dot; doubled with each miss in a row
_LATE_NS = 10e9  # not waited for after being late by its own fault; doubled each time
_LATE_MOST_NS = 160e9


@dataclass(slots=True)
class _Source:
    """What is known of one."""

    worked_ns: float = -math.inf
    """When it was worked on last."""
    captured_ns: float = -math.inf
    """Its newest frame that was taken."""
    interval_ns: float = math.inf
    """To the next, usually."""
    delay_ns: float = math.inf
    """From capture until it is here, if nothing is in its way: the least that was seen."""
    misses: int = 0
    """In a row; with any, it is owed a turn."""
    late_ns: float = _LATE_NS
    """How long it is not waited for, when it is late by its own fault the next time."""
    late_until_ns: float = -math.inf
    """Not waited for before."""


class Turns:
    """Says when to wait for a source that is owed a turn. Belongs to one thread.

    Args:
        max_age_ms: age at which a frame is too old.
    """

    def __init__(self, *, max_age_ms: float) -> None:
        self._max_age_ns = max_age_ms * 1e6
        self._sources: dict[str, _Source] = {}
        self._pass_ns = 0.0  # how long the network was taken when a frame was too old
        self._begun_ns = -math.inf  # the last pass of the network
        self._free_ns = math.inf  # since when it is known to be free; inf: perhaps it is not
        self._free_before_ns = math.inf  # since when it was, before that pass
        self._waiting_ns = math.inf  # since when it is kept waiting
        self._waited_ns = 0.0

    @property
    def waited_ms(self) -> float:
        """How long the network was kept waiting, so far; from any thread."""
        return self._waited_ns / 1e6

    def note(self, source: str, *, captured_ns: int, interval_ns: float, now_ns: int) -> None:
        """A frame of a live source was taken, so the network is free."""
        self._free_ns = min(self._free_ns, now_ns)
        known = self._sources.setdefault(source, _Source())
        known.captured_ns, known.interval_ns = captured_ns, interval_ns
        known.delay_ns = min(known.delay_ns, now_ns - captured_ns)

    def missed(self, source: str, *, now_ns: int) -> None:
        """The frame just noted was too old."""
        known = self._sources[source]
        if now_ns < known.late_until_ns:
            return
        if self._was_free(known.captured_ns):  # it is late by its own fault
            known.misses = 0
            known.late_until_ns = now_ns + known.late_ns
            known.late_ns = min(2 * known.late_ns, _LATE_MOST_NS)
        elif self._begun_ns > -math.inf:
            known.misses += 1
            self._pass_ns = self._free_ns - self._begun_ns

    def should_wait(self, sources: Collection[str], *, now_ns: int) -> bool:
        """Whether their frames had better be left, all of them, for a source that is owed a turn.

        Where one of them may go the network is taken, and the others cost nobody a turn.
        """
        owed = [
            known
            for name, known in self._sources.items()
            if name not in sources and self._is_expected(known, now_ns)
        ]
        theirs = [self._sources[name] for name in sources]
        first_ns = min((known.worked_ns for known in owed), default=math.inf)
        should_wait = all(first_ns < known.worked_ns for known in theirs)
        if should_wait:
            self._waiting_ns = min(self._waiting_ns, now_ns)
            for known in theirs:
                known.misses = max(known.misses, 1)  # their turn was given away
        return should_wait

    def worked_on(self, sources: Collection[str], *, now_ns: int) -> None:
        """The network is taken from now on; by frames of these, and perhaps by those of files."""
        self._waited_ns += max(0.0, now_ns - self._waiting_ns)
        self._begun_ns, self._free_before_ns = now_ns, self._free_ns
        self._free_ns = self._waiting_ns = math.inf
        for name in sources:
            known = self._sources[name]
            known.worked_ns, known.misses = now_ns, 0
            known.late_ns, known.late_until_ns = _LATE_NS, -math.inf

    def forget_source(self, name: str) -> None:
        """Nobody waits for it."""
        self._sources.pop(name, None)

    def _is_expected(self, known: _Source, now_ns: float) -> bool:
        """Whether a pass that begins now would make it miss, or it should come any moment."""
        if not known.misses or math.isinf(known.interval_ns):
            return False
        margin_ns = _MARGIN * self._pass_ns * 2.0 ** min(known.misses - 1, 16)
        next_ns = known.captured_ns + known.interval_ns
        first_ns = next_ns + self._max_age_ns - self._pass_ns - margin_ns
        patience_ns = min(known.interval_ns / 2 + known.delay_ns, self._max_age_ns + margin_ns)
        return first_ns < now_ns < next_ns + patience_ns

    def _was_free(self, captured_ns: float) -> bool:
        """Whether the network was free from then on until a frame of that time was too old."""
        if captured_ns >= self._free_ns:
            return True
        until_ns = captured_ns + self._max_age_ns
        return self._free_before_ns <= captured_ns and until_ns <= self._begun_ns
