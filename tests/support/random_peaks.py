"""Random inputs of the grouping in which ties are frequent: assignment costs and peaks."""

import numpy as np
from numpy.typing import NDArray

from kernels.peaks import Peaks


def tied_costs(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """As the matching makes them: few rounded distances, one score a row, added columns."""
    people = rng.integers(1, n + 1)
    peaks = n if people < n else rng.integers(1, n + 1)
    cost = np.zeros((n, n))
    cost[:peaks] = rng.integers(0, 4, (peaks, n)) * 100.0 - rng.random((peaks, 1))
    cost[:peaks, people:] = 1e10
    return cost


def random_peaks(
    rng: np.random.Generator, *, num_people: int, max_peaks: int, num_tags: int, jitter: float
) -> Peaks:
    """Peaks of so many people with tags near whole numbers; jitter 0 makes equal keys and ties."""
    num_keypoints = 17
    score = np.zeros((num_keypoints, max_peaks), np.float32)
    tags = np.zeros((num_keypoints, max_peaks, num_tags), np.float32)
    for k in range(num_keypoints):
        count = rng.integers(0, max_peaks + 1)
        score[k, :count] = -np.sort(-rng.uniform(0.1, 1, count))
        own = rng.integers(0, max(num_people, 1), (count, 1)) * 0.8
        tags[k, :count] = own + rng.normal(0, jitter, (count, num_tags))
    xy = rng.integers(0, 512, (num_keypoints, max_peaks, 2)).astype(np.float32)
    offset = rng.choice([0.25, 0.75], xy.shape).astype(np.float32)
    return Peaks(xy, score, tags, offset)


def sparse_peaks(rng: np.random.Generator, num_keypoints: int, num_tags: int) -> Peaks:
    """Two people with one keypoint each, so that all others must be refined."""
    score = np.zeros((num_keypoints, 2), np.float32)
    score[0] = 0.9, 0.8
    tags = np.zeros((num_keypoints, 2, num_tags), np.float32)
    tags[0] = rng.integers(-512, 512, (2, num_tags)) / 256
    tags[0, 1] += 3
    xy = np.zeros((num_keypoints, 2, 2), np.float32)
    return Peaks(xy, score, tags, np.zeros_like(xy))
