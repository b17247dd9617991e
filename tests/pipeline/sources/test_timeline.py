"""Times that rise whatever a camera says, and evenly fewer frames."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.timeline import EvenRate, RisingTime

_any_pts = st.none() | st.floats(-1e6, 1e6)


@given(pts=st.lists(_any_pts, max_size=40), steps=st.lists(st.floats(0, 100), max_size=40))
@pytest.mark.parametrize("live", [True, False])
def test_times_always_rise(live: bool, pts: list[float | None], steps: list[float]) -> None:
    time = RisingTime(live=live)
    times = [time.next(value, elapsed=elapsed) for value, elapsed in zip(pts, steps, strict=False)]
    assert all(later > earlier for earlier, later in pairwise(times))


@given(first=st.floats(0, 1e5), steps=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40))
@pytest.mark.parametrize("live", [True, False])
def test_times_in_order_are_the_sources_own(live: bool, first: float, steps: list[float]) -> None:
    pts = first + np.cumsum(steps)
    time = RisingTime(live=live)
    assert [time.next(value, elapsed=0.04) for value in pts] == list(pts)


@pytest.mark.parametrize(
    ("pts", "expected"),
    [
        ([None, 0.04, 0.08], [0.0, 0.04, 0.08]),  # RTSP: the first has none
        ([5.0, 5.0, 5.04], [5.0, 5.04, 5.08]),  # a repetition
        ([5.0, 5.04, 0.0, 0.04], [5.0, 5.04, 5.08, 5.12]),  # the camera was restarted
        ([5.0, 5.04, 5.02, 5.06], [5.0, 5.04, 5.08, 5.12]),
        ([5.0, None, 5.08], [5.0, 5.04, 5.08]),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_what_is_missing_or_goes_back_follows_arrival(
    live: bool, pts: list[float | None], expected: list[float]
) -> None:
    time = RisingTime(live=live)
    assert [time.next(value, elapsed=0.04) for value in pts] == pytest.approx(expected)


def test_a_cameras_clock_counts_from_where_it_is_first_heard() -> None:
    time = RisingTime(live=True)
    times = [time.next(pts, elapsed=0.04) for pts in (None, 9000.04, 9000.08)]
    assert times == pytest.approx([0.0, 0.04, 0.08])


def test_only_a_file_may_leap_ahead() -> None:
    """A file may show a picture for an hour; a camera cannot have filmed an hour in 40 ms."""
    for live, expected in ((True, 0.04), (False, 3600.0)):
        time = RisingTime(live=live)
        time.next(0.0, elapsed=0.0)
        assert time.next(3600.0, elapsed=0.04) == pytest.approx(expected)


@given(
    fps=st.floats(1, 120),
    max_fps=st.floats(0.5, 60),
    jitter=st.floats(0, 0.05),
    seed=st.integers(0, 99),
)
def test_no_more_than_asked_and_no_fewer_than_there_are(
    fps: float, max_fps: float, jitter: float, seed: int
) -> None:
    dice = np.random.default_rng(seed)
    seconds = (np.arange(200) + dice.uniform(-jitter, jitter, 200)) / fps
    even = EvenRate(max_fps)
    kept = np.array([moment for moment in seconds if even.keeps(float(moment))])
    span = seconds[-1] - seconds[0]
    assert len(kept) <= span * max_fps + 1.2
    assert len(kept) >= min(span * max_fps, 199) * 0.9 - 1 if fps >= max_fps else len(kept) == 200
    if len(kept) > 1:
        frame = (1 + 2 * jitter) / fps  # how far a frame may lie beside its due time
        assert np.diff(kept).min() >= 0.9 / max_fps - frame - 1e-9
        assert np.diff(kept).max() <= max(1 / max_fps, 1 / fps) + frame + 0.1 / max_fps + 1e-9


def test_a_third_is_every_third() -> None:
    even = EvenRate(10.0)
    assert [i for i in range(30) if even.keeps(i / 30)] == list(range(0, 30, 3))


def test_without_a_limit_or_a_time_everything_is_kept() -> None:
    assert all(EvenRate(None).keeps(moment) for moment in (0.0, 0.0, 5.0))
    assert all(EvenRate(1.0).keeps(None) for _ in range(5))


def test_after_a_gap_the_beat_begins_anew() -> None:
    even = EvenRate(10.0)
    kept = [moment for moment in (0.0, 0.1, 7.03, 7.08, 7.13, 7.18) if even.keeps(moment)]
    assert kept == [0.0, 0.1, 7.03, 7.13]
