"""Matching, Munkres and refine against plain definitions, on peaks and maps made to tie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from kernels.averaging import average_levels
from kernels.grouping import _sum_in_numpy_order, group_people
from kernels.munkres import munkres
from kernels.peaks import Peaks
from kernels.people import People
from tests.support.random_peaks import random_peaks, sparse_peaks, tied_costs
from tests.support.reference_decode import (
    PlainPeaks,
    full_size_heat,
    full_size_tags,
    match_plain,
    munkres_plain,
    raise_with_numpy,
    refine_plain,
)

FloatArray = NDArray[np.float32]


@pytest.mark.parametrize("seed", range(40))
def test_munkres_takes_the_classical_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n in (1, 2, 3, 5, 8, 13, 30):
        cost = tied_costs(rng, n)
        columns = munkres(cost.copy())
        assert [column for _, column in munkres_plain(cost.tolist())] == columns.tolist()
        rows, best = linear_sum_assignment(cost)
        assert cost[np.arange(n), columns].sum() == pytest.approx(cost[rows, best].sum())


def test_munkres_finds_the_unique_optimum() -> None:
    for seed in range(20):
        cost = np.random.default_rng(seed).random((20, 20))
        np.testing.assert_array_equal(munkres(cost.copy()), linear_sum_assignment(cost)[1])


@pytest.mark.parametrize("count", [*range(1, 26), 64, 127])
def test_sums_round_as_numpy_rounds_them(count: int) -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=count).astype(np.float32)
        assert _sum_in_numpy_order(values) == values.sum()


@settings(max_examples=60, deadline=None)
@given(
    num_people=st.integers(0, 40),
    max_peaks=st.sampled_from([1, 5, 12, 30]),
    num_tags=st.integers(1, 2),
    jitter=st.sampled_from([0.0, 0.05, 0.5]),
    max_people=st.sampled_from([2, 30]),
    seed=st.integers(0, 2**16),
)
def test_matching_equals_the_plain_definition(
    *, num_people: int, max_peaks: int, num_tags: int, jitter: float, max_people: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    peaks = random_peaks(
        rng, num_people=num_people, max_peaks=max_peaks, num_tags=num_tags, jitter=jitter
    )
    order = rng.permutation(17).tolist()
    plain = match_plain(
        PlainPeaks(peaks.xy.astype(np.int64), peaks.score, peaks.tags), order, max_people=max_people
    )
    people = group_people(peaks, matching_order=order, max_people=max_people, adjust=False)
    expected = np.array(plain, np.float32).reshape(-1, 17, 3 + num_tags)
    np.testing.assert_array_equal(people.keypoints, expected[:, :, :3])
    for person, rows in enumerate(expected):
        assert people.scores[person] == rows[:, 2].mean()
        own = rows[rows[:, 2] > 0]
        np.testing.assert_array_equal(people.tags[person], np.mean(list(own[:, 3:]), axis=0))


def test_adjustment_adds_the_offset_to_found_keypoints_only() -> None:
    rng = np.random.default_rng(0)
    peaks = random_peaks(rng, num_people=4, max_peaks=5, num_tags=1, jitter=0.1)
    raw = group_people(peaks, matching_order=range(17), adjust=False).keypoints
    adjusted = group_people(peaks, matching_order=range(17)).keypoints
    found = raw[:, :, 2] > 0
    assert found.any()
    assert not found.all()
    assert set(np.unique((adjusted - raw)[found][:, :2])) == {0.25, 0.75}
    np.testing.assert_array_equal(adjusted[~found], 0)


def test_a_second_peak_with_the_same_first_tag_replaces_the_first() -> None:
    """Equal keys are one person: the later peak's keypoint stays, its tags begin anew."""
    score = np.array([[0.9, 0.8]], np.float32)
    tags = np.full((1, 2, 1), 2.5, np.float32)
    xy = np.array([[[1, 1], [5, 5]]], np.float32)
    people = group_people(
        Peaks(xy, score, tags, np.zeros_like(xy)), matching_order=(0,), adjust=False
    )
    np.testing.assert_array_equal(people.keypoints, np.array([[[5, 5, 0.8]]], np.float32))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -3e38])
def test_broken_tags_begin_people_and_the_matching_ends(broken: float) -> None:
    peaks = random_peaks(
        np.random.default_rng(0), num_people=4, max_peaks=5, num_tags=1, jitter=0.1
    )
    peaks.tags[::2] = broken
    people = group_people(peaks, matching_order=range(17))
    assert len(people.scores) > 0
    assert (people.scores > 0).all()


def test_the_matching_order_must_name_every_keypoint() -> None:
    peaks = random_peaks(
        np.random.default_rng(0), num_people=1, max_peaks=1, num_tags=1, jitter=0.0
    )
    with pytest.raises(ValueError, match="each of the 17 keypoints once"):
        group_people(peaks, matching_order=range(16))


def assert_refined(people: People, peaks: Peaks, heat: FloatArray, tags: FloatArray) -> None:
    for person in range(len(people.scores)):
        expected = np.zeros((len(heat), 3), np.float32)
        expected[0] = *peaks.xy[0, person], peaks.score[0, person]
        refine_plain(expected, people.tags[person], heat, tags)
        np.testing.assert_array_equal(people.keypoints[person], expected)
        np.testing.assert_array_equal(people.filled[person, 1:], expected[1:, 2] > 0)


@settings(max_examples=60, deadline=None)
@given(
    low=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    doublings=st.tuples(st.integers(0, 1), st.integers(0, 2)),
    num_tags=st.integers(1, 2),
    distinct=st.sampled_from([3, 20, 256]),
    tag_step=st.sampled_from([1 / 256, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_refine_finds_what_searching_whole_maps_finds(
    *,
    low: tuple[int, int],
    doublings: tuple[int, int],
    num_tags: int,
    distinct: int,
    tag_step: float,
    seed: int,
) -> None:
    """Few distinct values: equal merits abound, half-way distances too, and some maps are <= 0."""
    rng = np.random.default_rng(seed)
    high = (low[0] << doublings[0], low[1] << doublings[0])
    size = (high[0] << doublings[1], high[1] << doublings[1])
    top = rng.integers(-distinct, distinct, (4, 1, 1)).clip(1 - distinct)
    levels = [
        (np.minimum(rng.integers(-distinct, distinct, (4, *s)), top) / 256).astype(np.float32)
        for s in (low, high)
    ]
    tags = (rng.integers(-8, 8, (4, *low, num_tags)) * tag_step).astype(np.float32)
    peaks = sparse_peaks(rng, 4, num_tags)
    people = group_people(
        peaks, matching_order=range(4), refine_on=average_levels(levels, tags, size)
    )
    assert_refined(
        people,
        peaks,
        full_size_heat(levels, size, raise_with_numpy, one_step=False),
        full_size_tags(tags, high, size, raise_with_numpy),
    )


@settings(max_examples=25, deadline=None)
@given(
    low=st.tuples(st.integers(2, 16), st.integers(2, 16)),
    more=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    scale=st.sampled_from([0.1, 1.0, 1000.0]),
    seed=st.integers(0, 2**16),
)
def test_refine_is_exact_for_any_numbers_and_sizes(
    low: tuple[int, int], more: tuple[int, int], scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size = (low[0] + more[0], low[1] + more[1])
    level = rng.normal(0, scale, (3, *low)).astype(np.float32)
    tags = rng.normal(0, 2, (3, *low, 2)).astype(np.float32)
    peaks = sparse_peaks(rng, 3, 2)
    people = group_people(
        peaks, matching_order=range(3), refine_on=average_levels([level], tags, size)
    )
    full_tags = full_size_tags(tags, low, size, raise_with_numpy)
    assert_refined(people, peaks, raise_with_numpy(level, size), full_tags)
