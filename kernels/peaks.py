"""Heatmap pyramid and tags -> peaks: average, 5x5 non-maximum suppression, top 30, tags; one image.

    level 0 (K, h/4, w/4) --raise--+
                                   +--mean--> heat (K, h/2, w/2) --raise--> value at (x, y)
    level 1 (K, h/2, w/2) ---------+                                         of the input grid
    tags    (K, h/4, w/4, T) --raise--> (.., h/2, w/2) --raise--> tags at (x, y)

The last step never happens as a whole: the map at network-input size exists only at the places that
are looked at. A bilinear value cannot exceed the pixels it is made of, so most places never are.

What it computes is the published HigherHRNet evaluation (Cheng et al. 2020 and its code) to the
digit. Every float32 operation is written in its order, for the CUDA twin takes the same steps.
This file knows nothing of people.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import njit

FloatArray = NDArray[np.float32]

CEILING_SLACK = np.float32(2**-20)
"""A bilinear value may round to above its highest pixel, by less than 6 roundings of 2^-24."""

_ZERO = np.float32(0.0)
_QUARTER = np.float32(0.25)
_HALF = np.float32(0.5)
_THREE_QUARTERS = np.float32(0.75)
_ONE = np.float32(1.0)

_NOTHING, _HIGHER_NEIGHBOUR, _SLOPE = 0, 1, 2
"""What tells early that no peak lies nearest to a pixel of the averaged map."""

_ROUNDING = np.float32(2**-14)
"""A slope counts in _rule_out_by_slope only above this part of the map's largest magnitude.

A bilinear value is off by at most 6 roundings of 2^-24 of its pixels, and a slope d between pixels
leaves at least 0.026 d between the two values compared; 2^-14 covers that 64 times."""


class Peaks(NamedTuple):
    """The strongest peaks of every keypoint's heatmap, best first; equal ones in row-major order.

    A pixel is a peak when no pixel around it is higher. Slots beyond the last peak are all zero.
    """

    xy: FloatArray
    """(K, M, 2) float32: x, y in network-input pixels."""
    score: FloatArray
    """(K, M) float32: the averaged heatmap there; 0 in unused slots."""
    tags: FloatArray
    """(K, M, T) float32."""
    offset: FloatArray
    """(K, M, 2) float32: what the adjustment adds to xy. At full resolution half a pixel and a
    quarter towards the higher neighbour (published), at half resolution a log-parabola's top."""


class Axis(NamedTuple):
    """How one axis is raised bilinearly (PyTorch, align_corners=False): out[i] from two pixels."""

    first: NDArray[np.uint32]
    """(n_out,) lower pixel; unsigned, so that compiled code need not test for negative indices."""
    second: NDArray[np.uint32]
    """(n_out,) upper pixel; the last pixel repeats at the border."""
    weight: FloatArray
    """(n_out,) float32 weight of the upper pixel; the lower one has 1 - weight."""
    nearest_from: NDArray[np.int64]
    """(n_in + 1,): outputs nearest to input i are nearest_from[i] up to nearest_from[i + 1]."""


class Grid(NamedTuple):
    """How a small map is raised to a larger one."""

    rows: Axis
    columns: Axis


class Tiles(NamedTuple):
    """Bounds on the heat of square tiles, so that most of a map need not be looked at."""

    side: int
    """In pixels of the averaged map; a power of two."""
    ceiling: FloatArray
    """(K, I, J) float32: no raised value nearest to a pixel of the tile is higher."""
    magnitude: FloatArray
    """(K,) float32: the largest absolute value of each map."""


class Maps(NamedTuple):
    """One image's maps on their own grids, and how these are raised to network-input size."""

    heat: FloatArray
    """(K, h, w) float32: mean of all levels at the highest level's size."""
    tags: FloatArray
    """(K, a, b, T) float32, usually at the lowest level's size."""
    heat_grid: Grid
    """From heat to network input."""
    tag_grids: tuple[Grid, Grid]
    """From tags to heat's size and from there to network input, as the published code raises them;
    tags that already have the network input's size pass both unchanged."""
    tiles: Tiles
    """Of heat."""


class _Rule(NamedTuple):
    """What makes a peak."""

    radius: int
    """No pixel within this many is higher."""
    min_score: np.float32
    """The score is above this."""
    test: int
    """_SLOPE, _HIGHER_NEIGHBOUR or _NOTHING: what tells early that a pixel holds no peak."""


class _Slots(NamedTuple):
    """The best peaks of one map so far."""

    xy: FloatArray  # (M, 2)
    score: FloatArray  # (M,)
    used: NDArray[np.int64]  # (1,)


class _Place(NamedTuple):
    value: np.float32
    x: int
    y: int


def find_peaks(
    levels: Sequence[FloatArray],
    tags: FloatArray,
    size: tuple[int, int],
    *,
    max_peaks: int = 30,
    nms_kernel: int = 5,
    min_score: float = 0.1,
    one_step: bool = False,
    at: Literal["full", "half"] = "full",
) -> Peaks:
    """Keep the strongest local maxima of every keypoint's averaged heatmap, with their tags.

    A pixel is a peak when its score is above min_score (strictly) and no pixel of the
    nms_kernel x nms_kernel window around it is higher; of a plateau every pixel is one. Values that
    are not finite are never peaks.

    Args:
        levels: (K, h, w) float32 each, low to high resolution; one or more, none larger than size.
            Several are raised to the highest one's size, averaged there, and the mean is raised to
            size; a single one is raised once, or used as given where it already has that size.
        tags: (K, a, b, T) float32, raised to the highest level's size and from there to size.
        size: (H, W) of the network input.
        max_peaks: M, peaks kept for each keypoint.
        nms_kernel: odd side of the window, in network-input pixels.
        min_score: a peak is above it; at least 0.
        one_step: raise every level straight to size and average there (the text of the papers)
            instead of the published code's way over the highest level's size.
        at: "full" looks for peaks at network-input size; "half" at the highest level's own size,
            with a window half as wide and sub-pixel offsets: cheaper, not the published numbers.

    Raises:
        ValueError: shapes, types or settings that do not fit, with what was expected.
    """
    maps = average_levels(levels, tags, size, one_step=one_step)
    return peaks_of_maps(
        maps, max_peaks=max_peaks, nms_kernel=nms_kernel, min_score=min_score, at=at
    )


def average_levels(
    levels: Sequence[FloatArray],
    tags: FloatArray,
    size: tuple[int, int],
    *,
    one_step: bool = False,
    tile_side: int = 8,
) -> Maps:
    """The mean of all levels at the highest level's size; arguments as in find_peaks.

    With one_step the mean is taken at network-input size, the only case in which a map of that size
    is made. tile_side is a matter of speed only: bounds are kept for squares of so many pixels.
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
    return Maps(
        heat=heat,
        tags=tags,
        heat_grid=grid_between(mean_size, size),
        tag_grids=_tag_grids(tags, mean_size, size),
        tiles=tiles,
    )


def peaks_of_maps(
    maps: Maps,
    *,
    max_peaks: int,
    nms_kernel: int,
    min_score: float,
    at: Literal["full", "half"],
) -> Peaks:
    """find_peaks of maps that are averaged already."""
    if nms_kernel < 1 or nms_kernel % 2 == 0:
        raise ValueError(f"nms_kernel must be odd and at least 1, got {nms_kernel}")
    if max_peaks < 1:
        raise ValueError(f"max_peaks must be at least 1, got {max_peaks}")
    if not min_score >= 0:
        raise ValueError(f"min_score must be at least 0, got {min_score}")
    if at not in ("full", "half"):
        raise ValueError(f"at must be full or half, got {at!r}")
    num_keypoints, height, width = maps.heat.shape
    peaks = Peaks(
        xy=np.zeros((num_keypoints, max_peaks, 2), np.float32),
        score=np.zeros((num_keypoints, max_peaks), np.float32),
        tags=np.zeros((num_keypoints, max_peaks, maps.tags.shape[3]), np.float32),
        offset=np.zeros((num_keypoints, max_peaks, 2), np.float32),
    )
    size = len(maps.heat_grid.rows.first), len(maps.heat_grid.columns.first)
    radius, floor = nms_kernel // 2, float32_at_most(min_score)
    if at == "full":
        rule = _Rule(radius, floor, _what_rules_out((height, width), size, radius))
        _find(maps, maps.heat_grid, maps.tag_grids, rule, peaks)
        _adjust_full(maps.heat, maps.heat_grid, peaks)
    else:
        radius = min(radius, max(1, radius * height // size[0]))
        own_size = height, width
        rule = _Rule(radius, floor, _what_rules_out(own_size, own_size, radius))
        tag_grids = _tag_grids(maps.tags, own_size, own_size)
        _find(maps, grid_between(own_size, own_size), tag_grids, rule, peaks)
        _adjust_half(maps.heat, np.float32(size[1] / width), np.float32(size[0] / height), peaks)
    return peaks


def grid_between(size_in: tuple[int, int], size_out: tuple[int, int]) -> Grid:
    """The tables that raise a map of size_in (h, w) to size_out (H, W)."""
    return Grid(_axis(size_in[0], size_out[0]), _axis(size_in[1], size_out[1]))


@lru_cache(maxsize=256)
def _axis(length_in: int, length_out: int) -> Axis:
    """Where PyTorch's bilinear interpolation reads, computed as it does: in float32."""
    scale = np.float32(length_in) / np.float32(length_out)
    centre = np.arange(length_out, dtype=np.float32) + _HALF
    source = np.maximum(scale * centre - _HALF, _ZERO)
    first = np.minimum(source.astype(np.uint32), np.uint32(length_in - 1))
    second = np.minimum(first + np.uint32(1), np.uint32(length_in - 1))
    weight = np.clip(source - first.astype(np.float32), _ZERO, _ONE)
    nearest = np.where(weight >= _HALF, second, first)
    nearest_from = np.searchsorted(nearest, np.arange(length_in + 1))
    return Axis(first, second, weight, nearest_from.astype(np.int64))


def _tag_grids(
    tags: FloatArray, mean_size: tuple[int, int], size: tuple[int, int]
) -> tuple[Grid, Grid]:
    between = size if _size_of(tags) == size else mean_size
    return grid_between(_size_of(tags), between), grid_between(between, size)


def _what_rules_out(size_in: tuple[int, int], size_out: tuple[int, int], radius: int) -> int:
    """The strongest test that is valid where a map of size_in is raised to size_out."""
    (height_in, width_in), (height_out, width_out) = size_in, size_out
    if radius == 0:
        return _NOTHING
    if size_in == size_out:
        return _HIGHER_NEIGHBOUR
    exact = height_out / height_in in (2, 4) and width_out / width_in in (2, 4)
    return _SLOPE if exact and radius >= 2 else _NOTHING


def float32_at_most(value: float) -> np.float32:
    """The largest float32 not above value: score > it exactly where float(score) > value."""
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))


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
def raised_value(plane: FloatArray, grid: Grid, x: int, y: int) -> np.float32:
    """plane (h, w) raised by grid, at (x, y): blended along x first, then along y."""
    y0, y1, wy = grid.rows.first[y], grid.rows.second[y], grid.rows.weight[y]
    x0, x1, wx = grid.columns.first[x], grid.columns.second[x], grid.columns.weight[x]
    upper = (_ONE - wx) * plane[y0, x0] + wx * plane[y0, x1]
    lower = (_ONE - wx) * plane[y1, x0] + wx * plane[y1, x1]
    return np.float32((_ONE - wy) * upper + wy * lower)


@njit
def raised_tag(tags: FloatArray, grids: tuple[Grid, Grid], x: int, y: int, t: int) -> np.float32:
    """Tag number t of tags (a, b, T), raised by the first grid and then the second, at (x, y)."""
    inner, outer = grids
    plane = tags[:, :, t]
    y0, y1, wy = outer.rows.first[y], outer.rows.second[y], outer.rows.weight[y]
    x0, x1, wx = outer.columns.first[x], outer.columns.second[x], outer.columns.weight[x]
    upper_left, upper_right = raised_value(plane, inner, x0, y0), raised_value(plane, inner, x1, y0)
    lower_left, lower_right = raised_value(plane, inner, x0, y1), raised_value(plane, inner, x1, y1)
    upper = (_ONE - wx) * upper_left + wx * upper_right
    lower = (_ONE - wx) * lower_left + wx * lower_right
    return np.float32((_ONE - wy) * upper + wy * lower)


@njit
def _average(
    levels: tuple[FloatArray, ...], grids: tuple[Grid, ...], heat: FloatArray, tiles: Tiles
) -> None:
    """heat[k] = mean over the levels, each raised to heat's size and added low to high.

    Each map is measured while it is still in the cache.
    """
    height, width = heat.shape[1:]
    count = len(levels)
    wide = np.empty((count, height, width), np.float32)  # the levels' maps, raised along x
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
    """The first rows of wide = plane (h, w) raised along x."""
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


@njit
def _find(maps: Maps, grid: Grid, tag_grids: tuple[Grid, Grid], rule: _Rule, peaks: Peaks) -> None:
    """Fill xy and score of peaks, in pixels of the grid, and their tags."""
    used = np.zeros(len(maps.heat), np.int64)
    for k in range(len(maps.heat)):
        slots = _Slots(peaks.xy[k], peaks.score[k], used[k : k + 1])
        _find_in_map(maps, k, grid, rule, slots)
        for m in range(used[k]):
            x, y = int(slots.xy[m, 0]), int(slots.xy[m, 1])
            for t in range(maps.tags.shape[3]):
                peaks.tags[k, m, t] = raised_tag(maps.tags[k], tag_grids, x, y, t)


@njit
def _find_in_map(maps: Maps, k: int, grid: Grid, rule: _Rule, slots: _Slots) -> None:
    """Fill slots with one map's peaks, looking only where a ceiling allows one to take a slot."""
    plane, ceiling, side = maps.heat[k], maps.tiles.ceiling[k], maps.tiles.side
    tolerance = maps.tiles.magnitude[k] * _ROUNDING
    height, width = plane.shape
    may_hold = np.empty(width, np.uint8)
    limit = rule.min_score  # a peak must be above it to take a slot
    for i in range(len(ceiling)):
        first = _first_above(ceiling[i], limit)
        if first == ceiling.shape[1]:
            continue
        for v in range(side * i, min(side * (i + 1), height)):
            may_hold[side * first :] = 1
            if rule.test == _SLOPE:
                _rule_out_by_slope(plane, v, side * first, tolerance, may_hold)
            elif rule.test == _HIGHER_NEIGHBOUR:
                _rule_out_by_neighbour(plane, v, side * first, may_hold)
            for j in range(first, ceiling.shape[1]):
                if not ceiling[i, j] > limit:
                    continue
                for u in range(side * j, min(side * (j + 1), width)):
                    if may_hold[u] != 0 and _ceiling_at(plane, u, v) > limit:
                        limit = _keep_peaks_near(plane, grid, (u, v), rule, slots)


@njit
def _ceiling_at(plane: FloatArray, u: int, v: int) -> np.float32:
    """No raised value nearest to pixel (u, v) is higher."""
    height, width = plane.shape
    highest = plane[v, u]
    for y in range(max(v - 1, 0), min(v + 2, height)):
        for x in range(max(u - 1, 0), min(u + 2, width)):
            highest = max(highest, plane[y, x])
    return np.float32(highest + abs(highest) * CEILING_SLACK)


@njit
def _keep_peaks_near(
    plane: FloatArray, grid: Grid, pixel: tuple[int, int], rule: _Rule, slots: _Slots
) -> np.float32:
    """Insert the peaks among the raised values nearest to a pixel (u, v) of plane.

    Returns what a later peak must be above: once all slots are taken, the last one's score less the
    least step, for a peak of equal score may still come earlier in row-major order.
    """
    u, v = pixel
    rows, columns = grid.rows.nearest_from, grid.columns.nearest_from
    for y in range(rows[v], rows[v + 1]):
        for x in range(columns[u], columns[u + 1]):
            place = _Place(raised_value(plane, grid, x, y), x, y)
            wanted = place.value > rule.min_score and _has_slot(place, slots)
            if wanted and _is_highest(plane, grid, x, y, rule.radius):
                _insert(place, slots)
    if slots.used[0] < len(slots.score):
        return rule.min_score
    return np.float32(np.nextafter(slots.score[-1], _ZERO))


@njit
def _first_above(values: FloatArray, limit: np.float32) -> int:
    for i in range(len(values)):
        if values[i] > limit:
            return i
    return len(values)


@njit
def _rule_out_by_neighbour(
    plane: FloatArray, v: int, start: int, may_hold: NDArray[np.uint8]
) -> None:
    """may_hold[u] = 0 where pixel (u, v), u >= start, has a higher neighbour; nothing is raised."""
    height, width = plane.shape
    start = max(start, 1)
    # Shifted views rather than u - 1 and u + 1: only so does the loop compile to vector code.
    left, middle, right = plane[v, start - 1 :], plane[v, start:], plane[v, start + 1 :]
    above, below = plane[max(v - 1, 0), start:], plane[min(v + 1, height - 1), start:]
    marks = may_hold[start:]
    for u in range(width - 1 - start):
        beside = (left[u] > middle[u]) | (right[u] > middle[u])
        marks[u] = not (beside | (above[u] > middle[u]) | (below[u] > middle[u]))


@njit
def _rule_out_by_slope(
    plane: FloatArray, v: int, start: int, tolerance: np.float32, may_hold: NDArray[np.uint8]
) -> None:
    """may_hold[u] = 0 where a slope at pixel (u, v), u >= start, leaves no peak nearest to it.

    Both axes are raised exactly 2 or 4 times. Along one axis, with outputs s = 1/2 or 1/4 of a
    pixel apart, take an output nearest to u and d = p[u+1] - p[u] > 0. Right of u its right
    neighbour is higher by s d. Left of u, either p[u-1] rises over p[u], so that its left neighbour
    is higher, or the output two to the right is: the higher of these by at least d/24. The row p is
    a blend of row v, which weighs at least a half, with row v-1 or v+1, so there the slope must not
    be negative. Likewise to the left, down and up.
    """
    height, width = plane.shape
    start = max(start, 1)
    # Shifted views, as above.
    above, here, below = plane[max(v - 1, 0)], plane[v], plane[min(v + 1, height - 1)]
    above_left, above_middle, above_right = above[start - 1 :], above[start:], above[start + 1 :]
    left, middle, right = here[start - 1 :], here[start:], here[start + 1 :]
    below_left, below_middle, below_right = below[start - 1 :], below[start:], below[start + 1 :]
    marks = may_hold[start:]
    for u in range(width - 1 - start):
        higher = middle[u] + tolerance
        to_right = (
            (right[u] > higher)
            & (above_right[u] >= above_middle[u])
            & (below_right[u] >= below_middle[u])
        )
        to_left = (
            (left[u] > higher)
            & (above_left[u] >= above_middle[u])
            & (below_left[u] >= below_middle[u])
        )
        to_below = (
            (below_middle[u] > higher) & (below_left[u] >= left[u]) & (below_right[u] >= right[u])
        )
        to_above = (
            (above_middle[u] > higher) & (above_left[u] >= left[u]) & (above_right[u] >= right[u])
        )
        marks[u] = not (to_right | to_left | to_below | to_above)


@njit
def _is_highest(plane: FloatArray, grid: Grid, x: int, y: int, radius: int) -> bool:
    value = raised_value(plane, grid, x, y)
    if not np.isfinite(value):
        return False
    height, width = len(grid.rows.first), len(grid.columns.first)
    for other_y in range(max(y - radius, 0), min(y + radius + 1, height)):
        for other_x in range(max(x - radius, 0), min(x + radius + 1, width)):
            if raised_value(plane, grid, other_x, other_y) > value:
                return False
    return True


@njit
def _has_slot(place: _Place, slots: _Slots) -> bool:
    last = len(slots.score) - 1
    return bool(slots.used[0] <= last or _comes_before(place, slots, last))


@njit
def _insert(place: _Place, slots: _Slots) -> None:
    """Keep the slots sorted: highest score first, equal scores in row-major order."""
    xy, score, used = slots
    m = min(used[0], len(score) - 1)
    used[0] = m + 1
    while m > 0 and _comes_before(place, slots, m - 1):
        xy[m, 0], xy[m, 1], score[m] = xy[m - 1, 0], xy[m - 1, 1], score[m - 1]
        m -= 1
    xy[m, 0], xy[m, 1], score[m] = place.x, place.y, place.value


@njit
def _comes_before(place: _Place, slots: _Slots, m: int) -> bool:
    if place.value != slots.score[m]:
        return bool(place.value > slots.score[m])
    x, y = slots.xy[m]
    return bool(place.y < y or (place.y == y and place.x < x))


@njit
def quarter_offset(plane: FloatArray, grid: Grid, x: int, y: int) -> tuple[np.float32, np.float32]:
    """The published adjustment of a pixel: a half, and a quarter towards the higher neighbour.

    Equal neighbours count as lower on the far side (towards smaller x and y).
    """
    right, below = min(x + 1, len(grid.columns.first) - 1), min(y + 1, len(grid.rows.first) - 1)
    left, above = max(x - 1, 0), max(y - 1, 0)
    to_right = raised_value(plane, grid, right, y) > raised_value(plane, grid, left, y)
    to_below = raised_value(plane, grid, x, below) > raised_value(plane, grid, x, above)
    return (
        _THREE_QUARTERS if to_right else _QUARTER,
        _THREE_QUARTERS if to_below else _QUARTER,
    )


@njit
def _adjust_full(heat: FloatArray, grid: Grid, peaks: Peaks) -> None:
    for k in range(len(heat)):
        for m in range(peaks.score.shape[1]):
            if peaks.score[k, m] > _ZERO:
                x, y = int(peaks.xy[k, m, 0]), int(peaks.xy[k, m, 1])
                peaks.offset[k, m] = quarter_offset(heat[k], grid, x, y)


@njit
def _adjust_half(heat: FloatArray, step_x: np.float32, step_y: np.float32, peaks: Peaks) -> None:
    """Turn pixels of heat into network-input pixels, with a log-parabola's top as the offset."""
    for k in range(len(heat)):
        for m in range(peaks.score.shape[1]):
            if peaks.score[k, m] > _ZERO:
                x, y = int(peaks.xy[k, m, 0]), int(peaks.xy[k, m, 1])
                top_x, top_y = _log_parabola(heat[k, y], x), _log_parabola(heat[k, :, x], y)
                peaks.xy[k, m, 0] = (x + _HALF) * step_x - _HALF
                peaks.xy[k, m, 1] = (y + _HALF) * step_y - _HALF
                peaks.offset[k, m, 0] = top_x * step_x + _HALF
                peaks.offset[k, m, 1] = top_y * step_y + _HALF


@njit
def _log_parabola(line: FloatArray, at: int) -> np.float32:
    """Offset within +-1/2 of the top of the parabola through the logarithms at at-1, at, at+1.

    Exact for a Gaussian. A neighbour below a hundredth of the middle counts as that.
    """
    if at == 0 or at == len(line) - 1:
        return _ZERO
    middle = np.float64(line[at])
    before = math.log(max(line[at - 1] / middle, 0.01))
    after = math.log(max(line[at + 1] / middle, 0.01))
    curve = before + after
    return np.float32(0.5 * (before - after) / curve) if curve < 0.0 else _ZERO
