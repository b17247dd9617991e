"""States of a source: what is told when, and how often a line may repeat."""

from __future__ import annotations

import time

from pipeline.sources.status import SourceHealth, SourceState


class Clock:
    """A clock that stands until told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_source_begins_by_connecting_and_lives_with_its_first_frame() -> None:
    clock = Clock()
    health = SourceHealth(stall_seconds=1.0, now=clock)
    assert (health.status.state, health.status.reason) == (SourceState.CONNECTING, "")
    clock.seconds += 5
    assert health.status.state == "connecting"  # silence is no stall before a frame
    health.saw_frame()
    assert health.status.state == "live"


def test_silence_reads_as_stalled_since_the_last_frame_and_frames_end_it() -> None:
    clock = Clock()
    health = SourceHealth(stall_seconds=1.0, now=clock)
    health.saw_frame()
    clock.seconds += 1.0
    assert health.status.state == "live"
    clock.seconds += 0.5
    before, status, after = time.time(), health.status, time.time()
    assert (status.state, status.reason) == (SourceState.STALLED, "no frame for 1.5 s")
    assert status.since_unix_s is not None
    assert before <= status.since_unix_s + 1.5 <= after
    health.saw_frame()
    assert health.status.state == "live"


def test_a_file_never_stalls() -> None:
    clock = Clock()
    health = SourceHealth(now=clock)
    health.saw_frame()
    clock.seconds += 1e6
    assert health.status.state == "live"


def test_losses_are_counted_by_word_and_a_state_keeps_its_beginning() -> None:
    clock = Clock()
    health = SourceHealth(stall_seconds=1.0, now=clock)
    health.saw_frame(tainted=True)
    health.left_out_frame()
    for reason, word in (("gone", "ended"), ("refused", "connection_refused"), ("gone", "ended")):
        health.lost(SourceState.RECONNECTING, reason=reason, word=word)
        clock.seconds += 10
    before, status, after = time.time(), health.status, time.time()
    assert (status.state, status.reason) == (SourceState.RECONNECTING, "gone")
    assert status.retries == {"ended": 2, "connection_refused": 1}
    assert (status.tainted, status.left_out) == (1, 1)
    assert status.since_unix_s is not None
    assert before <= status.since_unix_s + 30 <= after
    health.ended("enough")
    assert (health.status.state, health.status.reason) == (SourceState.ENDED, "enough")
