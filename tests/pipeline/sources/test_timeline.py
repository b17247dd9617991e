"""Times that rise whatever a camera says, and evenly fewer frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.timeline import EvenRate, Pacer, RisingTime

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


def _span(rate: float, fps: float, seconds: float, *, jitter: float = 0.0) -> tuple[float, float]:
    """Of a camera whose clock runs `rate` seconds a second: span published, and span of arrival."""
    dice = np.random.default_rng(0)
    ticks = np.arange(round(fps * seconds) + 1) / fps
    arrived = np.sort(ticks + dice.uniform(0, jitter, len(ticks)))
    time = RisingTime(live=True)
    times = [
        time.next(9000.0 + rate * tick, elapsed=elapsed)
        for tick, elapsed in zip(ticks, np.diff(arrived, prepend=arrived[0]), strict=True)
    ]
    assert all(later > earlier for earlier, later in pairwise(times))
    assert (time.wrong_rate is None) == (times == list(9000.0 + rate * ticks))
    return times[-1] - times[0], float(arrived[-1] - arrived[0])


@pytest.mark.parametrize("jitter", [0.0, 0.05])
@pytest.mark.parametrize(
    ("rate", "fps", "seconds"),
    [
        (10 / 25, 10, 10),  # 10 frames a second, stamped as 25
        (1 / 25, 1, 11),
        (0.11, 25, 5.9),  # RTP clocks of a wrong rate
        (1.98, 25, 5.9),
        (30 / 25, 30, 12),
        (0.97, 25, 60),
        (1.002, 25, 600),
    ],
)
def test_a_clock_of_a_wrong_rate_is_corrected(
    rate: float, fps: float, seconds: float, jitter: float
) -> None:
    published, arrived = _span(rate, fps, seconds, jitter=jitter)
    assert published == pytest.approx(arrived, abs=0.1)


@given(fps=st.floats(1, 60), jitter=st.floats(0, 0.25), error=st.floats(-1e-4, 1e-4))
def test_a_clock_that_is_right_is_believed(fps: float, jitter: float, error: float) -> None:
    published, _ = _span(1.0 + error, fps, 60.0, jitter=jitter)
    assert published == pytest.approx((1.0 + error) * 60.0, abs=1.0 / fps)


@pytest.mark.parametrize(
    "arrived",
    [
        [*np.zeros(50), *np.arange(300) / 25],  # a server that has buffered 2 s
        [*np.arange(100) / 25, *np.full(75, 7.0), *(7 + np.arange(200) / 25)],  # 3 s of silence
        np.repeat(np.arange(80) / 5, 5),  # five at once, five times a second
        np.repeat(np.arange(30) * 0.8, 20),  # 20 at once
    ],
    ids=["burst", "hiccup", "bunches", "big bunches"],
)
def test_a_network_that_shakes_costs_no_trust(arrived: Sequence[float]) -> None:
    time = RisingTime(live=True)
    pts = np.arange(len(arrived)) / 25
    for own, elapsed in zip(pts, np.diff(arrived, prepend=0.0), strict=True):
        assert time.next(own, elapsed=elapsed) == own
    assert time.wrong_rate is None


def test_a_file_ticks_as_it_likes() -> None:
    time = RisingTime(live=False)
    pts = 5.0 * np.arange(100)
    assert [time.next(own, elapsed=0.04) for own in pts] == list(pts)


def test_a_pacer_spreads_bursts_and_follows_what_is_late() -> None:
    pacer, now, given_at = Pacer(), 100.0, []
    for seconds, arrives in [(i / 10, 100.0 + 4 * (i // 40)) for i in range(80)]:
        now = max(now, arrives)
        now += pacer.wait_seconds(7.0 + seconds, now=now)
        given_at.append(now)
    np.testing.assert_allclose(np.diff(given_at), 0.1)
    late = now + 3.0  # nothing came for three seconds
    assert pacer.wait_seconds(7.0 + 8.0, now=late) == 0.0
    assert pacer.wait_seconds(7.0 + 8.1, now=late) == pytest.approx(0.1)
    assert pacer.wait_seconds(500.0, now=late + 0.1) == 0.0  # a leap
    assert pacer.wait_seconds(500.1, now=late + 0.1) == pytest.approx(0.1)


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
