"""What a user sees while a training runs: a bar with the time left, or a line now and then."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

_console = Console(stderr=True)


def start_logging(*, quiet: bool) -> None:
    """Log lines go to standard error, above the bar; quiet leaves warnings and errors."""
    handler: logging.Handler
    if _console.is_terminal:
        handler = RichHandler(console=_console, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


class ProgressLine:
    """Shows every step on a terminal; elsewhere it logs a line every `seconds`, while open."""

    def __init__(self, *, total: int, done: int, seconds: float = 30.0) -> None:
        """total, done: steps of the whole training and those done before."""
        self._total = total
        self._first = done
        self._started = self._last_line = time.monotonic()
        self._seconds = seconds
        self._shown = False
        self._bar = Progress(
            TextColumn("step {task.completed} of {task.total}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=_console,
            transient=True,
            disable=True,
            speed_estimate_period=300,
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def open(self, *, shown: bool) -> None:
        self._shown = shown
        self._bar.disable = not (shown and _console.is_terminal)
        self._started = self._last_line = time.monotonic()
        self._bar.start()

    def close(self) -> None:
        self._bar.stop()

    def show(self, step: int, text: str) -> None:
        """Report that `step` steps are done."""
        self._bar.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if self._shown and not _console.is_terminal and now - self._last_line >= self._seconds:
            self._last_line = now
            logger.info("step %d of %d, %s, %s left", step, self._total, text, self._left(step))

    def _left(self, step: int) -> str:
        a_step = (time.monotonic() - self._started) / max(step - self._first, 1)
        minutes = round(a_step * (self._total - step) / 60)
        return f"{minutes // 60}:{minutes % 60:02} h"
