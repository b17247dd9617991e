"""Object keypoint similarity (OKS) of everyone in one list of people with everyone in another.

    OKS(n, p) = sum over keypoints k that both have of exp(-d^2 / (2 v)) / (how many, plus slack)

Two people without a common keypoint have 0. This file knows nothing of time, identities or
skeletons' names: what a deviation of v pixels^2 means is the caller's business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.jit import njit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BODY_SHARE_OF_BOX = 0.53
"""Body area as a share of its box, where there is no segmented one (CrowdPose evaluation code)."""
_FAR = 50.0
"""exp(-50) = 2e-22 counts as nothing: most people are far from each other, and exp is dear."""


def oks_matrix(
    expected: Floats,
    expected_known: Bools,
    seen: Floats,
    seen_known: Bools,
    *,
    variances: Floats,
    slack: float = 0.0,
) -> Floats:
    """OKS of every expected person with every seen one, as the COCO keypoint evaluation defines it.

    There v = area (2 sigma)^2. A tracker adds what it does not know of where people went.

    Args:
        expected: (N, K, 2) float64 pixels.
        expected_known: (N, K) bool: which of them are there.
        seen: (P, K, 2) float64 pixels.
        seen_known: (P, K) bool.
        variances: (N, K) float64 pixels^2, positive: how far a keypoint may be off, squared.
        slack: added to the number of common keypoints, so that a single one that happens to fit
            does not count as much as a whole body; 0 is COCO's definition.
    Returns:
        (N, P) float64 in 0..1.
    Raises:
        ValueError: shapes that do not fit together.
    """
    people, keypoints = expected.shape[:2]
    if seen.shape[1:] != (keypoints, 2) or variances.shape != (people, keypoints):
        raise ValueError(
            f"expected must be (N, K, 2), seen (P, K, 2) and variances (N, K), got "
            f"{expected.shape}, {seen.shape} and {variances.shape}"
        )
    oks = np.zeros((people, len(seen)), np.float64)
    common = expected_known[:, None] & seen_known[None]  # (N, P, K)
    _sum_up(expected, seen, common, variances, oks)
    oks /= np.maximum(common.sum(axis=2) + slack, 1)
    return oks


@njit
def _sum_up(expected: Floats, seen: Floats, common: Bools, variances: Floats, oks: Floats) -> None:
    """Add to oks (N, P) what every common keypoint is worth."""
    for n in range(len(expected)):
        for p in range(len(seen)):
            for k in range(expected.shape[1]):
                if common[n, p, k]:
                    dx = expected[n, k, 0] - seen[p, k, 0]
                    dy = expected[n, k, 1] - seen[p, k, 1]
                    off = (dx * dx + dy * dy) / (2 * variances[n, k])
                    if off < _FAR:
                        oks[n, p] += np.exp(-off)


def warm_up() -> None:
    """Compile it, or load it from the cache, as the first call would."""
    nobody, known = np.zeros((1, 2, 2)), np.zeros((1, 2), np.bool_)
    oks_matrix(nobody, known, nobody, known, variances=np.ones((1, 2)))
