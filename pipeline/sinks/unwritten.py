"""A disk that cannot be written is a state of a sink, not the end of the stream.

    write -- OSError --> counted by source and reason, a warning once --> written again: a word too

Full, gone or broken: the stream goes on, and what is missing is counted for the summary and the
metrics. Knows nothing of what is written.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

CALM_SECONDS = 10.0  # without a failure, before a file counts as writable again

_REASONS = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.EFBIG: "file_too_large",  # 4 GB on FAT32, or a limit of the process
}

_log = logging.getLogger(__name__)


def reason_of(error: OSError) -> str:
    """In one word: disk_full, file_too_large or cannot_write."""
    return _REASONS.get(error.errno or 0, "cannot_write")


class Unwritten:
    """Counts what one sink could not write; its counts may be read by any thread.

    Args:
        path: as the log names it.
        now: the clock, in seconds; tests give their own.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._counts: dict[str, Counter[str]] = {}  # by source, then reason
        self._failed_at: float | None = None  # until it is reported to work again

    def attempt(self, source: str, write: Callable[[], object], *, num_frames: int = 1) -> None:
        """Write something of a source; where that fails its frames are missing."""
        self.attempt_all({source: num_frames}, write)

    def attempt_all(self, num_frames: dict[str, int], write: Callable[[], object]) -> None:
        """As attempt(), for frames of several sources: how many of each."""
        try:
            write()
        except OSError as error:
            self._fail(num_frames, error)
        else:
            self._note_success()

    def counts(self) -> dict[str, dict[str, int]]:
        """Frames that are in no file, by source and reason."""
        return {source: dict(counts) for source, counts in self._counts.copy().items()}

    def _fail(self, num_frames: dict[str, int], error: OSError) -> None:
        for source, count in num_frames.items():
            self._counts.setdefault(source, Counter())[reason_of(error)] += count
        if self._failed_at is None:
            _log.warning(
                "%s: cannot be written: %s; the stream goes on, frames are missing until this is "
                "over",
                self._path,
                error.strerror or error,
            )
        self._failed_at = self._now()

    def _note_success(self) -> None:
        if self._failed_at is not None and self._now() >= self._failed_at + CALM_SECONDS:
            missing = sum(counts.total() for counts in self._counts.values())
            _log.warning("%s: can be written again; %d frames are missing", self._path, missing)
            self._failed_at = None
