"""Peaks -> people: matching by tag, adjustment, scores, and refine of missing keypoints; one image.

    peaks --match--> slots (P, K) --assemble--> keypoints (P, K, 3), scores (P,), mean tags (P, T)
                                                   |
    maps ------------------------------------------+--refine--> the same, missing keypoints filled

Associative embedding: peaks of one person carry similar tags. Keypoints are handed out in a fixed
order; each time the peaks of one keypoint are assigned to the people so far by the classical
Munkres algorithm, in the very order of its published implementation, for ties between rounded costs
are common and decide who gets what. This file knows nothing of files, networks or skeletons' names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import njit
from kernels.peaks import (
    CEILING_SLACK,
    Axis,
    FloatArray,
    Grid,
    Maps,
    Peaks,
    quarter_offset,
    raised_tag,
    raised_value,
)

IntArray = NDArray[np.int64]

_ZERO = np.float32(0.0)
_INFINITY = np.float32(np.inf)
_NOBODY = 1e10
"""Cost of giving a peak to no person so far: the column that is added for it."""


class People(NamedTuple):
    """The people of one image, in the order in which the matching began them."""

    keypoints: FloatArray
    """(P, K, 3) float32: x, y in network-input pixels, score; all zero where one is missing."""
    scores: FloatArray
    """(P,) float32: mean score over all K keypoints before refine, missing ones counting as 0."""
    filled: NDArray[np.bool_]
    """(P, K) bool: True where refine filled a keypoint that no peak had given."""
    tags: FloatArray
    """(P, T) float32: mean tag of the person's own peaks."""


def group_people(
    peaks: Peaks,
    *,
    matching_order: Sequence[int],
    tag_threshold: float = 1.0,
    max_people: int = 30,
    adjust: bool = True,
    refine_on: Maps | None = None,
    refine_step: tuple[float, float] = (1.0, 1.0),
) -> People:
    """Assign peaks to people by their tags, then fill what is missing from the maps.

    The meaning is that of the published HigherHRNet evaluation code (from Newell et al. 2017,
    Associative Embedding); _match and _refine below state it step by step.

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
        _refine(refine_on, slots, step, people)
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
    """Peak m of keypoint k begins a person, or begins an old one of equal key anew.

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


# ---- the assignment problem --------------------------------------------------------------------


@njit
def munkres(cost: NDArray[np.float64]) -> IntArray:
    """Column of every row in an assignment of least total cost; cost (n, n) is overwritten.

    The classical algorithm with starred and primed zeros (Munkres 1957). Among assignments of equal
    cost the order of the scans decides, and it is that of the munkres package before 2.0, which the
    published decode calls. A zero is exactly 0.0.
    """
    n = len(cost)
    star_of_row, star_of_column = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    prime_of_row = np.full(n, -1, np.int64)
    row_covered, column_covered = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    _subtract_row_minima(cost)
    _star_first_zeros(cost, star_of_row, star_of_column)
    while True:
        row_covered[:] = False
        prime_of_row[:] = -1
        for column in range(n):
            column_covered[column] = star_of_column[column] >= 0
        if column_covered.all():
            return star_of_row
        row, column = 0, 0
        while True:
            row, column = _find_zero(cost, row_covered, column_covered, row, column)
            if row < 0:
                _make_zero(cost, row_covered, column_covered)
                row, column = 0, 0
                continue
            prime_of_row[row] = column
            if star_of_row[row] < 0:
                break
            column = star_of_row[row]
            row_covered[row] = True
            column_covered[column] = False
        _augment(row, star_of_row, star_of_column, prime_of_row)


@njit
def _subtract_row_minima(cost: NDArray[np.float64]) -> None:
    for row in range(len(cost)):
        cost[row] -= cost[row].min()


@njit
def _star_first_zeros(
    cost: NDArray[np.float64], star_of_row: IntArray, star_of_column: IntArray
) -> None:
    """Star the first zero of every row whose column has no star yet."""
    for row in range(len(cost)):
        for column in range(len(cost)):
            if cost[row, column] == 0.0 and star_of_column[column] < 0:
                star_of_row[row] = column
                star_of_column[column] = row
                break


@njit
def _find_zero(
    cost: NDArray[np.float64],
    row_covered: NDArray[np.bool_],
    column_covered: NDArray[np.bool_],
    start_row: int,
    start_column: int,
) -> tuple[int, int]:
    """An uncovered zero, or (-1, -1).

    Rows are scanned cyclically from start_row; in the first that has one, the last met going
    cyclically from start_column is taken.
    """
    n = len(cost)
    for i in range(n):
        row = (start_row + i) % n
        if row_covered[row]:
            continue
        for j in range(n - 1, -1, -1):
            column = (start_column + j) % n
            if cost[row, column] == 0.0 and not column_covered[column]:
                return row, column
    return -1, -1


@njit
def _make_zero(
    cost: NDArray[np.float64], row_covered: NDArray[np.bool_], column_covered: NDArray[np.bool_]
) -> None:
    """Add the least uncovered cost to covered rows, then subtract it from uncovered columns."""
    n = len(cost)
    least = np.inf
    for row in range(n):
        for column in range(n):
            if not (row_covered[row] or column_covered[column]):
                least = min(least, cost[row, column])
    for row in range(n):
        for column in range(n):
            if row_covered[row]:
                cost[row, column] += least
            if not column_covered[column]:
                cost[row, column] -= least


@njit
def _augment(
    row: int, star_of_row: IntArray, star_of_column: IntArray, prime_of_row: IntArray
) -> None:
    """From a primed zero without a star in its row, swap primes and stars along their path."""
    while row >= 0:
        column = prime_of_row[row]
        next_row = star_of_column[column]
        star_of_row[row] = column
        star_of_column[column] = row
        row = next_row


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


# ---- refine ------------------------------------------------------------------------------------


class _Bounds(NamedTuple):
    """Of one keypoint's map, for every tile (i, j) of it."""

    ceiling: FloatArray
    """(I, J): no heat in the tile is higher."""
    least: FloatArray
    """(I, J): no rounded distance in the tile, to the tag that is looked for, is smaller."""


class _Place(NamedTuple):
    merit: np.float32
    x: int
    y: int


@njit
def _refine(
    maps: Maps, slots: IntArray, step: tuple[np.float32, np.float32], people: People
) -> None:
    """Fill every missing keypoint with the place of greatest merit, where the heat there is > 0.

    The merit of a pixel is its heat minus the rounded L2 distance between its tag and the person's
    mean tag, in float32; of equal merits the first in row-major order wins. By bound and search: no
    pixel of a tile has more merit than the tile's ceiling minus its least rounded distance, so only
    tiles that can still win are evaluated, the most promising first.
    """
    tiles, num_numbers = maps.tiles.ceiling.shape[1:], maps.tags.shape[3]
    bounds = _Bounds(np.empty(tiles, np.float32), np.empty(tiles, np.float32))
    lowest = np.empty((num_numbers, *tiles), np.float32)
    highest = np.empty((num_numbers, *tiles), np.float32)
    for k in range(slots.shape[1]):
        plane, grid = maps.heat[k], maps.heat_grid
        measured = False
        for p in range(len(slots)):
            if slots[p, k] >= 0:
                continue
            if not measured:
                bounds.ceiling[:] = maps.tiles.ceiling[k]
                _tag_ranges(maps, k, lowest, highest)
                measured = True
            _least_distances(lowest, highest, people.tags[p], bounds.least)
            x, y = _search(maps, k, people.tags[p], bounds)
            heat = raised_value(plane, grid, x, y)
            if heat > _ZERO:
                offset_x, offset_y = quarter_offset(plane, grid, x, y)
                people.keypoints[p, k, 0] = (np.float32(x) + offset_x) * step[0]
                people.keypoints[p, k, 1] = (np.float32(y) + offset_y) * step[1]
                people.keypoints[p, k, 2] = heat
                people.filled[p, k] = True


@njit
def _search(maps: Maps, k: int, mean_tag: FloatArray, bounds: _Bounds) -> tuple[int, int]:
    """(x, y) of the greatest merit. Evaluated tiles get exact ceilings, for the next person."""
    rows, columns = maps.heat_grid.rows.nearest_from, maps.heat_grid.columns.nearest_from
    side = maps.tiles.side
    first = _most_promising(bounds)
    best = _search_tile(maps, (k, first), mean_tag, bounds, _Place(-_INFINITY, 0, 0))
    for i in range(bounds.ceiling.shape[0]):
        for j in range(bounds.ceiling.shape[1]):
            bound = bounds.ceiling[i, j] - bounds.least[i, j]
            if bound < best.merit or (i, j) == first:
                continue
            top, start = rows[side * i], columns[side * j]
            if bound > best.merit or top < best.y or (top == best.y and start < best.x):
                best = _search_tile(maps, (k, (i, j)), mean_tag, bounds, best)
    return best.x, best.y


@njit
def _most_promising(bounds: _Bounds) -> tuple[int, int]:
    best, at = -_INFINITY, (0, 0)
    for i in range(bounds.ceiling.shape[0]):
        for j in range(bounds.ceiling.shape[1]):
            bound = bounds.ceiling[i, j] - bounds.least[i, j]
            if bound > best:
                best, at = bound, (i, j)
    return at


@njit
def _search_tile(
    maps: Maps,
    map_and_tile: tuple[int, tuple[int, int]],
    mean_tag: FloatArray,
    bounds: _Bounds,
    best: _Place,
) -> _Place:
    """The better of best and the tile's best pixel."""
    k, (i, j) = map_and_tile
    plane, grid, side = maps.heat[k], maps.heat_grid, maps.tiles.side
    rows, columns = grid.rows.nearest_from, grid.columns.nearest_from
    highest = -_INFINITY
    for y in range(rows[side * i], rows[min(side * (i + 1), plane.shape[0])]):
        for x in range(columns[side * j], columns[min(side * (j + 1), plane.shape[1])]):
            heat = raised_value(plane, grid, x, y)
            highest = max(highest, heat)
            if heat - bounds.least[i, j] < best.merit:
                continue
            merit = heat - _rounded_distance(maps.tags[k], maps.tag_grids, x, y, mean_tag)
            earlier = y < best.y or (y == best.y and x < best.x)
            if merit > best.merit or (merit == best.merit and earlier):
                best = _Place(merit, x, y)
    bounds.ceiling[i, j] = highest
    return best


@njit
def _rounded_distance(
    tags: FloatArray, grids: tuple[Grid, Grid], x: int, y: int, mean_tag: FloatArray
) -> np.float32:
    total = _ZERO
    for t in range(len(mean_tag)):
        difference = raised_tag(tags, grids, x, y, t) - mean_tag[t]
        total += difference * difference
    return np.float32(np.rint(np.sqrt(total)))


@njit
def _least_distances(
    lowest: FloatArray, highest: FloatArray, mean_tag: FloatArray, least: FloatArray
) -> None:
    """least[i, j]: no pixel of the tile has a smaller rounded tag distance.

    The same operations in the same order as in _rounded_distance, each of which is monotone, so the
    bound holds after rounding too.
    """
    least[:] = _ZERO
    total = least.ravel()
    for t in range(len(mean_tag)):
        low, high, mean = lowest[t].ravel(), highest[t].ravel(), mean_tag[t]
        for tile in range(len(total)):
            gap = max(low[tile] - mean, mean - high[tile], _ZERO)
            total[tile] += gap * gap
    for tile in range(len(total)):
        total[tile] = np.rint(np.sqrt(total[tile]))


@njit
def _tag_ranges(maps: Maps, k: int, lowest: FloatArray, highest: FloatArray) -> None:
    """lowest and highest (T, i, j): every raised tag of the tile's pixels lies between them."""
    height, width, num_numbers = maps.tags.shape[1:]
    tags = maps.tags[k].reshape(height, width * num_numbers)
    (inner, outer), side = maps.tag_grids, maps.tiles.side
    slack = np.float32(2.0) * CEILING_SLACK  # tags are raised twice
    low, high = np.empty(tags.shape[1], np.float32), np.empty(tags.shape[1], np.float32)
    for i in range(lowest.shape[1]):
        top, bottom = _reach(maps.heat_grid.rows, inner.rows, outer.rows, side * i, side)
        low[:], high[:] = tags[top], tags[top]
        for y in range(top + 1, bottom + 1):
            row = tags[y]
            for x in range(len(row)):
                low[x] = row[x] if row[x] < low[x] else low[x]
                high[x] = row[x] if row[x] > high[x] else high[x]
        for j in range(lowest.shape[2]):
            start, end = _reach(
                maps.heat_grid.columns, inner.columns, outer.columns, side * j, side
            )
            for t in range(num_numbers):
                least, most = np.float32(np.inf), np.float32(-np.inf)
                for x in range(start * num_numbers + t, (end + 1) * num_numbers, num_numbers):
                    least, most = min(least, low[x]), max(most, high[x])
                spare = max(abs(least), abs(most)) * slack
                lowest[t, i, j], highest[t, i, j] = least - spare, most + spare


@njit
def _reach(heat: Axis, inner: Axis, outer: Axis, first: int, side: int) -> tuple[int, int]:
    """First and last pixel, on one axis of the tag map, that a tile of side pixels depends on."""
    count = len(heat.nearest_from) - 1
    start, end = heat.nearest_from[first], heat.nearest_from[min(first + side, count)] - 1
    return int(inner.first[outer.first[start]]), int(inner.second[outer.second[end]])
