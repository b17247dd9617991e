"""Which frames are left before they cost a network pass."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.messages import Frame, NetInput
from pipeline.runtime.load.shedding import Shedding
from pipeline.runtime.stats import Stats


def frame(index: int = 0, *, source: str = "cam", age_ms: float = 0.0, live: bool = True) -> Frame:
    return Frame(
        source=source, index=index, pts_seconds=None, size=(2, 2), planes=(), live=live,
        captured_ns=time.monotonic_ns() - round(age_ms * 1e6), captured_unix_s=time.time(),
    )  # fmt: skip


def batch(*frames: Frame) -> NetInput:
    images = np.zeros((len(frames), 3, 2, 2), np.float32)
    return NetInput(frames=frames, images=images, image_from_net=np.zeros((len(frames), 2, 3)))


def drops(stats: Stats) -> dict[str, dict[str, dict[str, int]]]:
    return {name: s["dropped_at"] for name, s in stats.snapshot()["sources"].items()}


def test_old_frames_of_live_sources_are_left_and_counted() -> None:
    stats = Stats()
    shedding = Shedding(stats=stats, max_age_ms=1000.0)
    young, old = frame(1), frame(0, age_ms=1100.0)
    of_a_file = frame(0, source="file", age_ms=1e6, live=False)
    assert shedding.admit([old, young, of_a_file]) == [young, of_a_file]
    assert drops(stats) == {"cam": {"preprocess": {"too_old": 1}}}


def test_without_a_limit_no_frame_is_too_old() -> None:
    old = frame(age_ms=1e6)
    assert Shedding(stats=Stats()).admit([old]) == [old]
    waiting = batch(old)
    assert Shedding(stats=Stats()).admit_batches([waiting]) == [waiting]


def test_a_batch_is_left_when_all_of_it_has_grown_too_old() -> None:
    stats = Stats()
    shedding = Shedding(stats=stats, max_age_ms=1000.0)
    old = batch(frame(source="a", age_ms=1100.0), frame(source="b", age_ms=1200.0))
    mixed = batch(frame(source="a", age_ms=1100.0), frame(source="b"))
    assert shedding.admit_batches([old, mixed]) == [mixed]
    once = {"inference": {"too_old": 1}}
    assert drops(stats) == {"a": once, "b": once}


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms * 1_000_000


def _at(captured_ms: int, source: str, *, live: bool = True) -> Frame:
    return replace(
        frame(captured_ms // 500, source=source, live=live), captured_ns=captured_ms * 1_000_000
    )


def _first_wins(shedding: Shedding, clock: Clock, *, until_ms: int) -> None:
    """Every 500 ms a frame of a, and one of b 100 ms later; work on a's lasts 400 ms."""
    for start_ms in range(0, until_ms, 500):
        clock.now_ms = start_ms
        of_a = _at(start_ms, "a")
        assert shedding.admit([of_a]) == [of_a]
        clock.now_ms = start_ms + 400
        assert shedding.admit([_at(start_ms + 100, "b")]) == []


def test_a_frame_is_left_and_counted_for_a_source_that_always_comes_too_late() -> None:
    stats, clock = Stats(), Clock()
    shedding = Shedding(stats=stats, max_age_ms=200.0, clock=clock)
    _first_wins(shedding, clock, until_ms=1500)  # then the pace of b is known
    clock.now_ms = 1500
    assert shedding.admit([_at(1500, "a")]) == []
    clock.now_ms = 1600
    of_b = _at(1600, "b")
    assert shedding.admit([of_b]) == [of_b]
    assert drops(stats) == {
        "a": {"preprocess": {"out_of_turn": 1}}, "b": {"preprocess": {"too_old": 3}}
    }  # fmt: skip
    assert shedding.waited_ms() == pytest.approx(100.0)


def test_no_frame_is_left_for_a_source_that_is_forgotten_nor_beside_a_file() -> None:
    for forgotten in (True, False):
        clock = Clock()
        shedding = Shedding(stats=Stats(), max_age_ms=200.0, clock=clock)
        _first_wins(shedding, clock, until_ms=1500)
        clock.now_ms = 1500
        frames = [_at(1500, "a")]
        if forgotten:
            shedding.forget_source("b")
        else:
            frames.append(_at(0, "file", live=False))
        assert shedding.admit(frames) == frames


def test_a_frame_that_is_left_out_of_turn_is_not_reckoned_in_the_rate() -> None:
    stats, clock = Stats(), Clock()
    shedding = Shedding(stats=stats, max_age_ms=200.0, max_fps=2.0, clock=clock)
    _first_wins(shedding, clock, until_ms=1500)
    for now_ms in (1500, 1700):  # the second comes before its time, but none has had its place
        clock.now_ms = now_ms
        assert shedding.admit([_at(now_ms, "a")]) == []
    assert drops(stats)["a"] == {"preprocess": {"out_of_turn": 2}}


def _captured(index: int, *, fps: float, source: str = "cam", live: bool = True) -> Frame:
    """The last of them was captured just now."""
    return frame(index, source=source, age_ms=1e3 * (1000 - index) / fps, live=live)


@pytest.mark.parametrize(("offered", "most"), [(30.0, 10.0), (25.0, 10.0), (30.0, 29.0)])
def test_each_live_source_keeps_its_rate_and_no_more(offered: float, most: float) -> None:
    stats = Stats()
    shedding = Shedding(stats=stats, max_fps=most)
    kept = {"a": 0, "b": 0, "file": 0}
    numbers = range(1000 - int(20 * offered), 1000)
    for index in numbers:
        frames = [_captured(index, fps=offered, source=name, live=name != "file") for name in kept]
        for admitted in shedding.admit(frames):
            kept[admitted.source] += 1
    assert kept["file"] == len(numbers)
    assert kept["a"] == kept["b"]
    assert kept["a"] == pytest.approx(20 * most, rel=0.02)
    assert drops(stats)["a"] == {"preprocess": {"over_rate": len(numbers) - kept["a"]}}


def test_the_rate_can_be_changed_on_the_way() -> None:
    shedding = Shedding(stats=Stats(), max_fps=30.0)
    assert (
        len([f for i in range(700, 850) if (f := shedding.admit([_captured(i, fps=30.0)]))]) > 145
    )
    shedding.limit(5.0)
    kept = sum(len(shedding.admit([_captured(i, fps=30.0)])) for i in range(850, 1000))
    assert kept == pytest.approx(25, abs=1)


def test_what_is_offered_is_read_from_the_numbers_of_the_frames_taken() -> None:
    shedding = Shedding(stats=Stats(), max_fps=1.0)
    for index in range(900, 1001, 7):  # the others were dropped on the way
        shedding.admit([_captured(index, fps=25.0, source="a")])
    for index in range(940, 1001, 60):  # a turn every few seconds
        shedding.admit([_captured(index, fps=15.0, source="b")])
    shedding.admit([_captured(1000, fps=15.0, source="new")])
    shedding.admit([_captured(1000, fps=15.0, source="file", live=False)])
    offered = shedding.offered_fps()
    assert offered == {
        "a": pytest.approx(25.0, rel=1e-3), "b": pytest.approx(15.0, rel=1e-3), "new": 0.0
    }  # fmt: skip


def test_a_source_that_is_silent_or_forgotten_offers_nothing() -> None:
    shedding = Shedding(stats=Stats())
    for index in range(800, 920):  # the last one 3.2 s ago
        shedding.admit([_captured(index, fps=25.0)])
    assert shedding.offered_fps() == {"cam": 0.0}
    shedding.forget_source("cam")
    assert shedding.offered_fps() == {}


def test_a_source_that_counts_anew_is_measured_anew() -> None:
    shedding = Shedding(stats=Stats())
    shedding.admit([_captured(index, fps=10.0) for index in range(900, 980)])
    # Numbers 0 to 19, captured in the last second; making them takes time, too.
    shedding.admit([frame(i, age_ms=1e3 * (21 - i) / 20) for i in range(22)])
    assert shedding.offered_fps() == {"cam": pytest.approx(20.0, rel=0.05)}
