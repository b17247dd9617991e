"""Log lines that may come by the thousand: a few in a minute are written, the others counted."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

_MINUTE_SECONDS = 60.0
_KINDS_KNOWN = 64
_OTHERS = ""
"""The kind of all lines that come while so many kinds are known."""


class RareLog:
    """Writes some lines of each kind in a minute, however many are due. For any thread.

    Args:
        logger: that of the module whose lines these are.
        lines_a_minute: of one kind. Three report an outage, its end and the next; one is enough
            for what goes on and on.
        now: the clock, in seconds; tests give their own.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        lines_a_minute: int = 3,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._lines_a_minute = lines_a_minute
        self._now = now
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}

    def warning(self, line: str, *, kind: str | None = None) -> None:
        """As log() with the level of a warning."""
        self.log(logging.WARNING, line, kind=kind)

    def log(self, level: int, line: str, *, kind: str | None = None) -> None:
        """Write the line, with how many of its kind were held back before it; or hold it back.

        Args:
            kind: lines of one kind are counted together; by default, equal lines.
        """
        with self._lock:
            text = self._known(line if kind is None else kind).pass_on(level, line, self._now())
        if text is not None:
            self._logger.log(level, "%s", text)

    def sum_up(self) -> None:
        """Write how many were held back, where a minute is over and no line of the kind came."""
        with self._lock:
            now = self._now()
            due = [(kind.level, kind.sum_up(now)) for kind in self._kinds.values()]
        for level, text in due:
            if text is not None:
                self._logger.log(level, "%s", text)

    def _known(self, name: str) -> _Kind:
        if name not in self._kinds and len(self._kinds) >= _KINDS_KNOWN:
            now = self._now()
            self._kinds = {k: kind for k, kind in self._kinds.items() if not kind.is_over(now)}
            if len(self._kinds) >= _KINDS_KNOWN:
                name = _OTHERS
        return self._kinds.setdefault(name, _Kind(self._lines_a_minute))


class _Kind:
    """Lines of one kind: when the newest were written, and how many were not."""

    def __init__(self, lines_a_minute: int) -> None:
        self.level = logging.WARNING
        self._written: deque[float] = deque(maxlen=lines_a_minute)
        self._held_back = 0
        self._line = ""

    def pass_on(self, level: int, line: str, now: float) -> str | None:
        """The line as it is to be written; None: not now."""
        self.level, self._line = level, line
        if len(self._written) == self._written.maxlen and now - self._written[0] < _MINUTE_SECONDS:
            self._held_back += 1
            return None
        return self._write(now)

    def sum_up(self, now: float) -> str | None:
        """What is to be written of those held back; None: nothing, or not yet."""
        is_due = self._held_back and now - self._written[-1] >= _MINUTE_SECONDS
        return self._write(now) if is_due else None

    def is_over(self, now: float) -> bool:
        """Whether nothing has to be remembered of this kind."""
        return not self._held_back and now - self._written[-1] >= _MINUTE_SECONDS

    def _write(self, now: float) -> str:
        self._written.append(now)
        times, self._held_back = self._held_back, 0
        return f"{self._line} (and {times} times more of late)" if times else self._line
