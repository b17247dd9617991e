"""How a user says that it is enough: Ctrl-C, SIGTERM, ask(), the viewer's window. Twice: at once.

Knows nothing of what is stopped.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self


class StopRequest:
    """Ctrl-C, SIGTERM and the viewer's window, in a `with` block of the main thread.

    Outside the main thread (tests) signals are left alone.

    Args:
        parent_repeats: a parent process passes on what was said to it, and service managers say it
            to both: the same signal again means nothing then, and a different one means at once.
    """

    def __init__(self, *, parent_repeats: bool = False) -> None:
        self.event = threading.Event()
        """Set by the first request."""
        self._parent_repeats = parent_repeats
        self._since: float | None = None
        self._signals: list[int] = []
        self._num_asked = 0
        self._former: dict[int, Any] = {}

    @property
    def seconds(self) -> float | None:
        """Since the first request; None before it."""
        if self._since is None and self.event.is_set():
            self._since = time.monotonic()
        return None if self._since is None else time.monotonic() - self._since

    @property
    def is_urgent(self) -> bool:
        """Whether it was said twice."""
        said = set(self._signals) if self._parent_repeats else self._signals
        return len(said) + self._num_asked > 1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def ask(self) -> None:
        """As a signal does; from any thread. A second time means at once."""
        self._num_asked += 1
        self.event.set()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self.event.set()
