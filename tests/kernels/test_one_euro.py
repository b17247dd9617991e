"""The filter on arrays against the paper's algorithm for one point; what it must never do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.one_euro import OneEuro, one_euro_step

SETTINGS = {"min_cutoff_hz": 1.0, "beta": 5.0, "d_cutoff_hz": 1.0, "max_gap_s": 0.5}


def filtered(
    measured: np.ndarray,
    seconds: np.ndarray,
    present: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> np.ndarray:
    """(F, N, K, 2) -> what the filter says after every frame."""
    things, points = measured.shape[1:3]
    state = OneEuro.empty(things, points)
    present = np.ones(measured.shape[:3], bool) if present is None else present
    sizes = np.full(things, 100.0) if sizes is None else sizes
    out = []
    for xy, there, now in zip(measured, present, seconds, strict=True):
        state = one_euro_step(state, xy, there, now=float(now), sizes=sizes, **SETTINGS)
        out.append(state.smoothed)
    return np.stack(out)


def one_point(points: np.ndarray, seconds: np.ndarray, size: float) -> np.ndarray:
    """Algorithm 1 of the paper for one (F, 2) point, with our one speed in sizes a second."""
    out = [points[0]]
    velocity = np.zeros(2)
    for point, dt in zip(points[1:], np.diff(seconds), strict=True):

        def alpha(cutoff: float, dt: float = dt) -> float:
            return 1 / (1 + 1 / (2 * math.pi * cutoff * dt))

        a = alpha(SETTINGS["d_cutoff_hz"])
        velocity = a * (point - out[-1]) / dt + (1 - a) * velocity
        cutoff = SETTINGS["min_cutoff_hz"] + SETTINGS["beta"] * math.hypot(*velocity) / size
        b = alpha(cutoff)
        out.append(b * point + (1 - b) * out[-1])
    return np.array(out)


def walk(frames: int, seed: int, shape: tuple[int, ...] = (3, 5, 2)) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return 300 + np.cumsum(chance.normal(0, 3, (frames, *shape)), axis=0)


def test_every_point_is_filtered_as_the_paper_says() -> None:
    measured = walk(60, 1)
    seconds = np.cumsum(np.random.default_rng(2).uniform(0.005, 0.2, 60))
    sizes = np.array([40.0, 100.0, 900.0])
    result = filtered(measured, seconds, sizes=sizes)
    for n in range(3):
        for k in range(5):
            expected = one_point(measured[:, n, k], seconds, sizes[n])
            np.testing.assert_allclose(result[:, n, k], expected, rtol=1e-12)


def test_what_stands_still_stays_and_trembles_less() -> None:
    seconds = np.arange(300) / 30
    still = np.full((300, 1, 1, 2), 50.0)
    np.testing.assert_array_equal(filtered(still, seconds), still)
    trembling = still + np.random.default_rng(3).normal(0, 1, still.shape)
    result = filtered(trembling, seconds)
    assert np.diff(result, axis=0).std() < 0.35 * np.diff(trembling, axis=0).std()


def test_pixels_do_not_matter() -> None:
    measured, seconds = walk(40, 4), np.arange(40) / 25
    small = filtered(measured, seconds, sizes=np.full(3, 50.0))
    large = filtered(6 * measured, seconds, sizes=np.full(3, 300.0))
    np.testing.assert_allclose(large, 6 * small)


def test_a_missing_point_waits_and_begins_anew_after_a_gap() -> None:
    measured, seconds = walk(60, 5, (1, 2, 2)), np.arange(60) / 30
    present = np.ones((60, 1, 2), bool)
    present[10:13, 0, 0] = False  # 0.1 s
    present[30:50, 0, 0] = False  # 0.67 s
    spoilt = np.where(present[..., None], measured, np.nan)
    result = filtered(spoilt, seconds, present)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[12, 0, 0], result[9, 0, 0])
    assert not np.array_equal(result[13, 0, 0], measured[13, 0, 0])
    np.testing.assert_array_equal(result[50, 0, 0], measured[50, 0, 0])
    np.testing.assert_array_equal(result[:, 0, 1], filtered(measured, seconds)[:, 0, 1])


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_time_that_does_not_go_on_changes_nothing(step: float) -> None:
    measured = walk(3, 6)
    result = filtered(measured, np.array([1.0, 1.1, 1.1 + step]))
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[2], result[1])


def test_rows_are_taken_and_joined_with_all_that_they_remember() -> None:
    state = OneEuro(*(np.random.default_rng(7).random(s) for s in ((4, 5, 2), (4, 5, 2), (4, 5))))
    again = state.only(np.array([0, 1])).and_these(state.only(np.array([2, 3])))
    for before, after in zip(state, again, strict=True):
        np.testing.assert_array_equal(before, after)
