"""Filling the keypoints that people miss: the best place in the maps for each; one image.

refine.cu is the CUDA twin.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.averaging import MeanMaps
from kernels.jit import njit
from kernels.people import People
from kernels.sampling import (
    CEILING_SLACK,
    Axis,
    FloatArray,
    Grid,
    quarter_offset,
    upsampled_tag,
    upsampled_value,
)

IntArray = NDArray[np.int64]

_ZERO = np.float32(0.0)
_INFINITY = np.float32(np.inf)


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
def refine(
    maps: MeanMaps, slots: IntArray, step: tuple[np.float32, np.float32], people: People
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
            heat = upsampled_value(plane, grid, x, y)
            if heat > _ZERO:
                offset_x, offset_y = quarter_offset(plane, grid, x, y)
                people.keypoints[p, k, 0] = (np.float32(x) + offset_x) * step[0]
                people.keypoints[p, k, 1] = (np.float32(y) + offset_y) * step[1]
                people.keypoints[p, k, 2] = heat
                people.filled[p, k] = True


@njit
def _search(maps: MeanMaps, k: int, mean_tag: FloatArray, bounds: _Bounds) -> tuple[int, int]:
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
    maps: MeanMaps,
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
            heat = upsampled_value(plane, grid, x, y)
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
        difference = upsampled_tag(tags, grids, x, y, t) - mean_tag[t]
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
def _tag_ranges(maps: MeanMaps, k: int, lowest: FloatArray, highest: FloatArray) -> None:
    """lowest and highest (T, i, j): every upsampled tag of the tile's pixels lies between them."""
    height, width, num_numbers = maps.tags.shape[1:]
    tags = maps.tags[k].reshape(height, width * num_numbers)
    (inner, outer), side = maps.tag_grids, maps.tiles.side
    slack = np.float32(2.0) * CEILING_SLACK  # tags are upsampled twice
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
