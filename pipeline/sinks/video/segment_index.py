"""Which segments a recording has: a file of JSON lines beside them, and the oldest removed.

    {"file": "poses-cam1-20261122T035707.123Z.mp4", "stream": "cam1", "start_unix_s": ...,
     "end_unix_s": null, "pictures": null, "bytes": null}      when a segment begins
    {... the same with numbers}                                when it is finished

The last line about a file holds. A line is appended in one write, so a kill spoils the last one
at most; the list is read again when the recording goes on later, and only files that are on it
are ever removed. Knows nothing of what is in the files.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.files import write_atomically

_log = logging.getLogger(__name__)

_END_FIELDS = ("end_unix_s", "pictures", "bytes")


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a recording."""

    file: str
    """Its name; it lies beside the index."""
    stream: str
    """Whose pictures it holds."""
    start_unix_s: float
    """Wall clock of its first picture."""
    end_unix_s: float | None = None
    """Wall clock at which it was finished; None while it is written, or if the stream was killed
    (then the file can be read up to about a second before that)."""
    pictures: int | None = None
    bytes: int | None = None


class SegmentIndex:
    """The segments of all sources of one recording. For the sink's thread alone.

    Nothing here raises OSError: a disk that cannot be written is the recording's business, and
    what could not be listed is listed as soon as that is possible.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_gb: float | None = None,
        keep_hours: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the index of an earlier run, if there is one.

        Args:
            path: of the index.
            keep_gb: remove the oldest segments when all together take more (1 GB is 1e9 bytes).
            keep_hours: remove segments whose last picture (of a killed stream: the first) is
                older. Age is counted by a clock that nobody sets: where the wall clock jumps ahead,
                nothing becomes old.
            now: that clock, in seconds; tests give their own.
        """
        self._now = now
        self._began_at: float | None = None  # by that clock, and the wall clock of that moment
        self._began_unix_s = 0.0
        self._ended_at: dict[str, float] = {}  # by that clock; of segments of this run
        self._path = path
        self._keep_bytes = math.inf if keep_gb is None else 1e9 * keep_gb
        self._keep_seconds = math.inf if keep_hours is None else 3600 * keep_hours
        self._segments = read_index(path)  # by file name, in the order in which they began
        self._being_written: set[str] = set()
        self._is_behind = True  # the file does not hold what is here: it is written anew

    def begin(self, path: Path, *, stream: str, start_unix_s: float) -> None:
        """A segment begins; the oldest that are too much or too old make room."""
        if self._began_at is None:
            self._began_at, self._began_unix_s = self._now(), start_unix_s
        self._remove_old()
        self._segments[path.name] = Segment(path.name, stream, start_unix_s)
        self._being_written.add(path.name)
        self._save(path.name)

    def end(self, path: Path, *, num_pictures: int, end_unix_s: float) -> None:
        """A segment is finished; one without pictures has no file and is not listed."""
        self._being_written.discard(path.name)
        if num_pictures == 0:
            del self._segments[path.name]
            self._is_behind = True
            self._save_all()
            return
        segment = self._segments[path.name]
        self._ended_at[path.name] = self._now()
        self._segments[path.name] = replace(
            segment,
            end_unix_s=max(end_unix_s, segment.start_unix_s),  # the wall clock may be set back
            pictures=num_pictures,
            bytes=_num_bytes(path),
        )
        self._save(path.name)

    def _seconds_old(self, segment: Segment) -> float:
        if segment.file in self._ended_at:
            return self._now() - self._ended_at[segment.file]
        assert self._began_at is not None
        now_unix_s = self._began_unix_s + self._now() - self._began_at
        return now_unix_s - (segment.end_unix_s or segment.start_unix_s)

    def _remove_old(self) -> None:
        sizes = {
            name: segment.bytes or _num_bytes(self._path.with_name(name))
            for name, segment in self._segments.items()
        }
        total = sum(sizes.values())
        for name, segment in list(self._segments.items()):
            if name in self._being_written:
                continue
            if total <= self._keep_bytes and self._seconds_old(segment) <= self._keep_seconds:
                continue
            try:
                self._path.with_name(name).unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s: cannot be removed: %s", name, error.strerror)
                continue
            total -= sizes[name]
            del self._segments[name]
            self._is_behind = True

    def _save(self, name: str) -> None:
        """Append what is known of a segment."""
        if self._is_behind:
            self._save_all()
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                line = _lines([self._segments[name]])
                self._is_behind = file.write(line) < len(line)
        except OSError:
            self._is_behind = True

    def _save_all(self) -> None:
        """Replace the file as a whole: whoever reads it meanwhile sees the old or the new one."""
        with suppress(OSError):  # tried again with the next segment
            write_atomically(self._path, _lines(self._segments.values()), only_writer=True)
            self._is_behind = False


def read_index(path: Path) -> dict[str, Segment]:
    """The segments that an index lists and that are still there, by file name, oldest first."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"index {path} cannot be read: {error.strerror}") from None
    segments: dict[str, Segment] = {}
    for line in lines:
        segment = _parse(line)
        if segment is None:
            _log.warning("%s: a line is no segment, and is left out: %.60s", path, line)
        elif path.with_name(segment.file).is_file():
            segments[segment.file] = segment
    return segments


def _parse(line: str) -> Segment | None:
    """A segment, if the line holds one whose file can only lie beside the index."""
    try:
        fields: Any = json.loads(line)
        end_unix_s, pictures, num_bytes = (fields[key] for key in _END_FIELDS)
        segment = Segment(
            file=str(fields["file"]),
            stream=str(fields["stream"]),
            start_unix_s=float(fields["start_unix_s"]),
            end_unix_s=None if end_unix_s is None else float(end_unix_s),
            pictures=None if pictures is None else int(pictures),
            bytes=None if num_bytes is None else int(num_bytes),
        )
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    times = segment.start_unix_s, segment.end_unix_s or 0.0
    is_beside = Path(segment.file).name == segment.file
    return segment if is_beside and all(map(math.isfinite, times)) else None


def _lines(segments: Iterable[Segment]) -> bytes:
    return b"".join(json.dumps(asdict(segment)).encode() + b"\n" for segment in segments)


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
