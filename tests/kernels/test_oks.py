"""OKS of many people at once, against its definition written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.oks import oks_matrix


def people(count: int, seed: int, keypoints: int = 17) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    return chance.uniform(0, 60, (count, keypoints, 2)), chance.random((count, keypoints)) < 0.7


@pytest.mark.parametrize(("number", "others"), [(3, 5), (1, 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("slack", [0.0, 4.0])
def test_every_pair_is_the_definition(number: int, others: int, slack: float) -> None:
    (a, a_known), (b, b_known) = people(number, 1), people(others, 2)
    variances = np.random.default_rng(3).uniform(50, 900, (number, 17))
    result = oks_matrix(a, a_known, b, b_known, variances=variances, slack=slack)
    assert result.shape == (number, others)
    for n in range(number):
        for p in range(others):
            common = [k for k in range(17) if a_known[n, k] and b_known[p, k]]
            worth = [
                math.exp(-(math.dist(a[n, k], b[p, k]) ** 2) / (2 * variances[n, k]))
                for k in common
            ]
            assert result[n, p] == pytest.approx(
                sum(worth) / (len(common) + slack), rel=1e-12, abs=1e-20
            )


def test_the_same_person_is_one_and_somebody_far_away_is_zero() -> None:
    body, known = people(1, 4)
    known[:] = True
    variances = np.full((1, 17), 100.0)
    assert oks_matrix(body, known, body, known, variances=variances) == pytest.approx(1)
    assert oks_matrix(body, known, body + 1e4, known, variances=variances) == 0


def test_without_a_common_keypoint_it_is_zero() -> None:
    body, known = people(1, 5)
    known[:] = np.arange(17) < 8
    assert oks_matrix(body, known, body, ~known, variances=np.ones((1, 17))) == 0


def test_what_is_not_there_does_not_count() -> None:
    (a, a_known), (b, b_known) = people(2, 6), people(3, 7)
    variances = np.full((2, 17), 200.0)
    plain = oks_matrix(a, a_known, b, b_known, variances=variances)
    a[~a_known] = np.nan
    b[~b_known] = 1e9
    np.testing.assert_array_equal(oks_matrix(a, a_known, b, b_known, variances=variances), plain)


def test_shapes_that_do_not_fit_are_refused() -> None:
    body, known = people(2, 8)
    with pytest.raises(ValueError, match=r"variances \(N, K\)"):
        oks_matrix(body, known, body, known, variances=np.ones(17))
