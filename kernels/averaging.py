"""Heatmap pyramid -> its mean at the highest level's size, with bounds by tile; one image.

    level 0 (K, h/4, w/4) --upsample--+
                                      +--mean--> heat (K, h/2, w/2), tiles
    level 1 (K, h/2, w/2) ------------+

The mean is the published HigherHRNet evaluation (Cheng et al. 2020 and its code) to the digit.
Every float32 operation is written in its order, because the CUDA twin takes the same steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import njit
from kernels.sampling import CEILING_SLACK, Axis, FloatArray, Grid, grid_between

_ZERO = np.float32(0.0)
_QUARTER = np.float32(0.25)
_HALF = np.float32(0.5)
_THREE_QUARTERS = np.float32(0.75)
_ONE = np.float32(1.0)


class Tiles(NamedTuple):
    """Bounds on the heat of square tiles, so that most of a map need not be looked at."""

    side: int
    """In pixels of the averaged map; a power of two."""
    ceiling: FloatArray
    """(K, I, J) float32: no upsampled value nearest to a pixel of the tile is higher."""
    magnitude: FloatArray
    """(K,) float32: the largest absolute value of each map."""


class MeanMaps(NamedTuple):
    """One image's maps on their own grids, and how these are upsampled to network-input size."""

    heat: FloatArray
    """(K, h, w) float32: mean of all levels at the highest level's size."""
    tags: FloatArray
    """(K, a, b, T) float32, usually at the lowest level's size."""
    heat_grid: Grid
    """From heat to network input."""
    tag_grids: tuple[Grid, Grid]
    """From tags to heat's size and from there to network input, as in the published code. Tags that
    already have the network input's size pass both unchanged."""
    tiles: Tiles
    """Of heat."""


def average_levels(
    levels: Sequence[FloatArray],
    tags: FloatArray,
    size: tuple[int, int],
    *,
    one_step: bool = False,
    tile_side: int = 8,
) -> MeanMaps:
    """The mean of all levels at the highest level's size.

    Args:
        levels: (K, h, w) float32 each, low to high resolution; one or more, none larger than size.
            Several are upsampled to the highest one's size, averaged there, and the mean is
            upsampled to size; a single one is upsampled once, or used as given where it has size.
        tags: (K, a, b, T) float32, upsampled to the highest level's size and from there to size.
        size: (H, W) of the network input.
        one_step: upsample every level straight to size and average there (the text of the papers)
            instead of the published code's way over the highest level's size. Only then a map of
            network-input size is made.
        tile_side: pixels along the side of a tile that has bounds; it decides about speed alone.
    Raises:
        ValueError: shapes or types that do not fit, with what was expected.
    """
    size = (size[0], size[1])
    levels, tags = _checked(levels, tags, size)
    mean_size = size if one_step and len(levels) > 1 else _size_of(levels[-1])
    num_keypoints, heat = len(tags), levels[0]
    shape = [num_keypoints, *(-(-length // tile_side) for length in mean_size)]
    magnitude = np.empty(num_keypoints, np.float32)
    tiles = Tiles(tile_side, np.empty(shape, np.float32), magnitude)
    if len(levels) == 1:
        _measure(heat, tiles)
    else:
        heat = np.empty((num_keypoints, *mean_size), np.float32)
        grids = tuple(grid_between(_size_of(level), mean_size) for level in levels)
        _average(tuple(levels), grids, heat, tiles)
    return MeanMaps(
        heat=heat,
        tags=tags,
        heat_grid=grid_between(mean_size, size),
        tag_grids=tag_grids_between(tags, mean_size, size),
        tiles=tiles,
    )


def tag_grids_between(
    tags: FloatArray, mean_size: tuple[int, int], size: tuple[int, int]
) -> tuple[Grid, Grid]:
    between = size if _size_of(tags) == size else mean_size
    return grid_between(_size_of(tags), between), grid_between(between, size)


def _size_of(array: FloatArray) -> tuple[int, int]:
    return array.shape[1], array.shape[2]


def _checked(
    levels: Sequence[FloatArray], tags: FloatArray, size: tuple[int, int]
) -> tuple[list[FloatArray], FloatArray]:
    """The same maps, contiguous and writable (one compiled variant serves all), or a ValueError."""
    if len(levels) == 0:
        raise ValueError("levels is empty; give at least one (K, h, w) array of heatmaps")
    for level in levels:
        if level.ndim != 3 or level.dtype != np.float32:
            raise ValueError(
                f"levels must be (K, h, w) float32 arrays, got {_described(level)}; pass one image"
            )
        if not (0 < level.shape[1] <= size[0] and 0 < level.shape[2] <= size[1]):
            raise ValueError(
                f"a level of shape {level.shape} does not fit size (H, W) = {tuple(size)}; "
                "heatmaps are at most as large as the network input"
            )
    if tags.ndim != 4 or tags.dtype != np.float32 or tags.shape[3] < 1:
        raise ValueError(f"tags must be a (K, h, w, T) float32 array, got {_described(tags)}")
    if any(len(array) != len(tags) for array in levels):
        counts = [len(level) for level in levels]
        raise ValueError(f"levels have {counts} keypoints, tags {len(tags)}; they must agree")
    return [_plain(level) for level in levels], _plain(tags)


def _plain(array: FloatArray) -> FloatArray:
    return np.require(array, requirements=["C", "A", "W"])


def _described(array: NDArray[Any]) -> str:
    return f"shape {array.shape} of {array.dtype}"


# ---- the CPU twin ------------------------------------------------------------------------------


@njit
def _average(
    levels: tuple[FloatArray, ...], grids: tuple[Grid, ...], heat: FloatArray, tiles: Tiles
) -> None:
    """heat[k] = mean over the levels, each upsampled to heat's size and added low to high.

    Each map is measured while it is still in the cache.
    """
    height, width = heat.shape[1:]
    count = len(levels)
    wide = np.empty((count, height, width), np.float32)  # the levels' maps, upsampled along x
    for k in range(len(heat)):
        for i in range(count):
            if levels[i].shape[2] < width:
                _widen(levels[i][k], grids[i].columns, wide[i])
        for y in range(height):
            total = heat[k, y]
            for i in range(count):
                rows = grids[i].rows
                plane = wide[i] if levels[i].shape[2] < width else levels[i][k]
                upper, lower = plane[rows.first[y]], plane[rows.second[y]]
                if i == 0:
                    _blend(upper, lower, rows.weight[y], total)
                else:
                    _add_blend(upper, lower, rows.weight[y], total)
            if count == 2:  # half of a float32 is exact, and cheaper than a division
                total *= _HALF
            elif count > 2:
                total /= np.float32(count)
        _measure_map(heat, k, tiles)


@njit
def _widen(plane: FloatArray, columns: Axis, wide: FloatArray) -> None:
    """The first rows of wide = plane (h, w) upsampled along x."""
    width_in, width_out = plane.shape[1], len(columns.first)
    twice = width_out == 2 * width_in
    for y in range(len(plane)):
        row, out = plane[y], wide[y]
        if twice:  # the published geometry, in straight loops that compile to vector code
            out[0] = _ONE * row[0] + _ZERO * row[min(1, width_in - 1)]
            for x in range(width_in - 1):
                out[2 * x + 1] = _THREE_QUARTERS * row[x] + _QUARTER * row[x + 1]
                out[2 * x + 2] = _QUARTER * row[x] + _THREE_QUARTERS * row[x + 1]
            out[width_out - 1] = _THREE_QUARTERS * row[width_in - 1] + _QUARTER * row[width_in - 1]
        else:
            for x in range(width_out):
                weight = columns.weight[x]
                left, right = row[columns.first[x]], row[columns.second[x]]
                out[x] = (_ONE - weight) * left + weight * right


@njit
def _blend(upper: FloatArray, lower: FloatArray, weight: np.float32, total: FloatArray) -> None:
    rest = _ONE - weight
    for x in range(len(total)):
        total[x] = rest * upper[x] + weight * lower[x]


@njit
def _add_blend(upper: FloatArray, lower: FloatArray, weight: np.float32, total: FloatArray) -> None:
    rest = _ONE - weight
    for x in range(len(total)):
        total[x] += rest * upper[x] + weight * lower[x]


@njit
def _measure(heat: FloatArray, tiles: Tiles) -> None:
    for k in range(len(heat)):
        _measure_map(heat, k, tiles)


@njit
def _measure_map(heat: FloatArray, k: int, tiles: Tiles) -> None:
    """Fill ceiling[k] and magnitude[k]."""
    height, width = heat.shape[1:]
    side, ceiling = tiles.side, tiles.ceiling[k]
    # Column maxima of a row of tiles, with room for one pixel before and a tile behind the map.
    top = np.empty(1 + side * ceiling.shape[1] + side, np.float32)
    largest = np.zeros(width, np.float32)
    for i in range(len(ceiling)):
        top[:] = -np.inf
        inside = top[1:]
        for y in range(max(side * i - 1, 0), min(side * (i + 1) + 1, height)):
            row = heat[k, y]
            for x in range(width):
                inside[x] = row[x] if row[x] > inside[x] else inside[x]
                largest[x] = abs(row[x]) if abs(row[x]) > largest[x] else largest[x]
        reach = 1
        while reach < side:  # after this, top[x] is the maximum of side pixels from x on
            ahead = top[reach:]
            for x in range(len(ahead)):
                top[x] = ahead[x] if ahead[x] > top[x] else top[x]
            reach *= 2
        for j in range(ceiling.shape[1]):  # two such windows: the tile and a pixel around it
            best = max(top[side * j], top[side * j + 2])
            ceiling[i, j] = best + abs(best) * CEILING_SLACK
    tiles.magnitude[k] = largest.max()
