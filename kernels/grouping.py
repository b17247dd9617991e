"""Peaks -> people: matching by tag, adjustment, scores, and refine of missing keypoints; one image.

    peaks --match--> slots (P, K) --assemble--> keypoints (P, K, 3), scores (P,), mean tags (P, T)
                                                   |
    maps ------------------------------------------+--refine--> the same, missing keypoints filled

Associative embedding: peaks of one person carry similar tags. Keypoints are handed out in a fixed
order. Each time the peaks of one keypoint are assigned to the people so far by the classical
Munkres algorithm (munkres.py); refine.py fills what is missing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.averaging import MeanMaps
from kernels.jit import njit
from kernels.munkres import munkres
from kernels.peaks import Peaks
from kernels.people import People
from kernels.refine import refine
from kernels.sampling import FloatArray

IntArray = NDArray[np.int64]

_ZERO = np.float32(0.0)
_NOBODY = 1e10
"""Cost of giving a peak to no person so far: the column that is added for it."""


def group_people(
    peaks: Peaks,
    *,
    matching_order: Sequence[int],
    tag_threshold: float = 1.0,
    max_people: int = 30,
    adjust: bool = True,
    refine_on: MeanMaps | None = None,
    refine_step: tuple[float, float] = (1.0, 1.0),
) -> People:
    """Assign peaks to people by their tags, then fill what is missing from the maps.

    The meaning is that of the published HigherHRNet evaluation code (from Newell et al. 2017,
    Associative Embedding); _match and refine state it step by step.

    Args:
        peaks: of one image; slots with score 0 are unused.
        matching_order: every keypoint once, trunk first.
        tag_threshold: a peak joins a person whose mean tag is nearer than this.
        max_people: only the first so many people can win further peaks; the rest still count.
        adjust: add each peak's offset to its place. Refine always adds it to what it fills.
        refine_on: the maps to search for missing keypoints; None leaves them missing.
        refine_step: network-input pixels per pixel of refine_on's grid, (x, y).

    Raises:
        ValueError: matching_order does not name every keypoint of peaks once.
    """
    num_keypoints, num_tags = peaks.tags.shape[0], peaks.tags.shape[2]
    if sorted(matching_order) != list(range(num_keypoints)):
        raise ValueError(
            f"matching_order must name each of the {num_keypoints} keypoints once, "
            f"got {tuple(matching_order)}"
        )
    order = np.array(matching_order, np.int64)
    slots = _match(peaks.score, peaks.tags, order, float(tag_threshold), max_people)
    num_people = len(slots)
    people = People(
        keypoints=np.zeros((num_people, num_keypoints, 3), np.float32),
        scores=np.zeros(num_people, np.float32),
        filled=np.zeros((num_people, num_keypoints), np.bool_),
        tags=np.zeros((num_people, num_tags), np.float32),
    )
    _assemble(peaks, slots, adjust, people)
    if refine_on is not None and num_people > 0:
        step = (np.float32(refine_step[0]), np.float32(refine_step[1]))
        refine(refine_on, slots, step, people)
    return people


# ---- matching ----------------------------------------------------------------------------------


class _Crowd(NamedTuple):
    """People while they are being matched; person p is a row of every array."""

    slots: IntArray
    """(P, K): which peak is the person's keypoint k, -1 where none."""
    key: FloatArray
    """(P,): first tag number of the peak that began the person; equal keys are one person."""
    tags: FloatArray
    """(P, K, T): tags of the peaks since the person was begun, in the order they came."""
    num_tags: IntArray
    """(P,): how many of them."""


@njit
def _match(
    score: FloatArray, tags: FloatArray, order: IntArray, tag_threshold: float, max_people: int
) -> IntArray:
    """Hand out the peaks keypoint by keypoint; returns slots (P, K), the peak's slot or -1.

    The peaks of one keypoint against the first max_people people: cost is the tag distance, rounded
    and times 100, minus the peak's score. Whoever is assigned a person whose unrounded distance is
    below tag_threshold joins it; any other peak begins a person.
    """
    num_keypoints, num_peaks, num_numbers = tags.shape
    capacity = num_keypoints * num_peaks
    crowd = _Crowd(
        np.full((capacity, num_keypoints), -1, np.int64),
        np.empty(capacity, np.float32),
        np.empty((capacity, num_keypoints, num_numbers), np.float32),
        np.zeros(capacity, np.int64),
    )
    side = max(num_peaks, max_people)
    distance = np.empty((num_peaks, max_people), np.float64)
    cost = np.empty((side, side), np.float64)
    mean = np.empty((max_people, num_numbers), np.float32)
    num_people = 0
    for k in order:
        n = 0
        while n < num_peaks and score[k, n] > _ZERO:
            n += 1
        p = min(num_people, max_people)
        for person in range(p):
            _mean_tag(crowd.tags[person], crowd.num_tags[person], mean[person])
        _distances(tags[k, :n], mean[:p], distance)
        if n > 0 and p > 0:
            assigned = _assign(distance, score[k], n, p, cost)
        else:
            assigned = np.full(n, p, np.int64)
        for m in range(n):
            person = assigned[m]
            if person < p and distance[m, person] < tag_threshold:
                crowd.slots[person, k] = m
                crowd.tags[person, crowd.num_tags[person]] = tags[k, m]
                crowd.num_tags[person] += 1
            else:
                num_people = _begin_person(crowd, num_people, k, m, tags[k, m])
    return crowd.slots[:num_people].copy()


@njit
def _begin_person(crowd: _Crowd, num_people: int, k: int, m: int, tag: FloatArray) -> int:
    """Peak m of keypoint k begins a person, or restarts an old one of equal key.

    The old one keeps its other keypoints but forgets their tags. Returns the number of people.
    """
    person = 0
    while person < num_people and crowd.key[person] != tag[0]:
        person += 1
    crowd.key[person] = tag[0]
    crowd.slots[person, k] = m
    crowd.tags[person, 0] = tag
    crowd.num_tags[person] = 1
    return max(num_people, person + 1)


@njit
def _distances(tags: FloatArray, mean: FloatArray, distance: NDArray[np.float64]) -> None:
    """distance[m, p] = L2 norm of tags (n, T) minus mean (p, T), in float64."""
    for m in range(len(tags)):
        for p in range(len(mean)):
            total = 0.0
            for t in range(tags.shape[1]):
                difference = np.float64(tags[m, t]) - np.float64(mean[p, t])
                total += difference * difference
            distance[m, p] = np.sqrt(total)


@njit
def _mean_tag(tags: FloatArray, count: int, mean: FloatArray) -> None:
    """mean (T,) of the first count tags (n, T), in float32 and in the order NumPy adds."""
    if tags.shape[1] == 1:
        mean[0] = _sum_in_numpy_order(tags[:count, 0]) / np.float32(count)
        return
    for t in range(tags.shape[1]):
        total = _ZERO
        for i in range(count):
            total += tags[i, t]
        mean[t] = total / np.float32(count)


@njit
def _sum_in_numpy_order(values: FloatArray) -> np.float32:
    """Sum of up to 128 float32 numbers as NumPy adds one axis: from eight on, in eight strands."""
    n = len(values)
    strands = n - n % 8
    total = _ZERO
    if strands > 0:
        s = values[:8].copy()
        for i in range(8, strands):
            s[i % 8] += values[i]
        total = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
    for i in range(strands, n):
        total += values[i]
    return total


@njit
def _assign(
    distance: NDArray[np.float64], score: FloatArray, n: int, p: int, cost: NDArray[np.float64]
) -> IntArray:
    """Person of each of n peaks among p people; p or more for a peak that gets none.

    A distance that is not finite (a broken network's tags) costs as much as having nobody.
    """
    side = max(n, p)
    for m in range(side):
        for person in range(side):
            if m >= n:
                cost[m, person] = 0.0
            elif person < p and np.isfinite(distance[m, person]):
                cost[m, person] = np.rint(distance[m, person]) * 100.0 - np.float64(score[m])
            else:
                cost[m, person] = _NOBODY
    return munkres(cost[:side, :side])[:n]


# ---- people ------------------------------------------------------------------------------------


@njit
def _assemble(peaks: Peaks, slots: IntArray, adjust: bool, people: People) -> None:
    """Fill keypoints, scores and tags of people from the peaks in their slots (P, K)."""
    keypoints, scores, _, tags = people
    num_keypoints = slots.shape[1]
    own = np.empty((num_keypoints, tags.shape[1]), np.float32)
    for p in range(len(slots)):
        count = 0
        for k in range(num_keypoints):
            m = slots[p, k]
            if m >= 0:
                keypoints[p, k, 0] = peaks.xy[k, m, 0]
                keypoints[p, k, 1] = peaks.xy[k, m, 1]
                if adjust:
                    keypoints[p, k, 0] += peaks.offset[k, m, 0]
                    keypoints[p, k, 1] += peaks.offset[k, m, 1]
                keypoints[p, k, 2] = peaks.score[k, m]
                own[count] = peaks.tags[k, m]
                count += 1
        scores[p] = _sum_in_numpy_order(keypoints[p, :, 2]) / np.float32(num_keypoints)
        _mean_tag(own, count, tags[p])
