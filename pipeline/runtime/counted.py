"""Around what stages do: results are counted, and what comes after its source has gone is left out.

    NetOutput -> Counted(FindPoses, Tracker) -> Poses          Poses -> give_present -> sink

Knows nothing of threads and queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.messages import NetOutput, Poses
from pipeline.runtime.source_set import Departed
from pipeline.runtime.stats import Stats


@dataclass(frozen=True)
class Counted:
    """FindPoses, then the tracker if there is one; the results are counted."""

    find_poses: Callable[[NetOutput], Iterator[Poses]]
    tracker: Callable[[Poses], Poses] | None
    stats: Stats
    departed: Departed
    privacy: bool
    """Pixels end here: no sink gets any, whatever it is."""

    def __call__(self, output: NetOutput) -> Iterator[Poses]:
        for found in self.find_poses(output):
            if self.departed.had(found.frame):
                continue
            poses = found if self.tracker is None else self.tracker(found)
            _count(poses, self.stats)
            yield poses.without_pixels() if self.privacy else poses


@dataclass(frozen=True)
class CountedSink:
    """A sink that counts what arrives, for a process in which poses are not made."""

    sink: Callable[[Poses], None]
    stats: Stats

    def __call__(self, poses: Poses) -> None:
        _count(poses, self.stats)
        self.sink(poses)


def give_present(sink: Callable[[Poses], None], departed: Departed, poses: Poses) -> None:
    """Give a sink what is not of a source that it was told to forget."""
    if not departed.had(poses.frame):
        sink(poses)


def _count(poses: Poses, stats: Stats) -> None:
    stats.finished(poses.frame.source, latency_ms=poses.latency_ms, people=len(poses.scores))
