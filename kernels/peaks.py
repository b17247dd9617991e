"""Averaged heatmaps and tags -> peaks: 5x5 non-maximum suppression, top 30, tags; one image.

    heat (K, h/2, w/2) --upsampled where it is looked at--> value at (x, y) of the input grid
    tags (K, h/4, w/4, T) --to h/2 x w/2, then to the input grid--> tags at (x, y)

The map at network-input size never exists as a whole. A bilinear value cannot exceed the pixels it
is made of, so most places are never computed.

The result is that of the published HigherHRNet evaluation (Cheng et al. 2020 and its code) to the
digit. Every float32 operation is written in its order, because the CUDA twin takes the same steps.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.averaging import MeanMaps, tag_grids_between
from kernels.jit import njit
from kernels.sampling import (
    CEILING_SLACK,
    FloatArray,
    Grid,
    grid_between,
    quarter_offset,
    upsampled_tag,
    upsampled_value,
)

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


def peaks_of_maps(
    maps: MeanMaps,
    *,
    max_peaks: int,
    nms_kernel: int,
    min_score: float,
    at: Literal["full", "half"],
) -> Peaks:
    """Keep the strongest local maxima of every keypoint's averaged heatmap, with their tags.

    A pixel is a peak when its score is above min_score (strictly) and no pixel of the
    nms_kernel x nms_kernel window around it is higher; of a plateau every pixel is one. Values that
    are not finite are never peaks.

    Args:
        maps: from average_levels.
        max_peaks: M, peaks kept for each keypoint.
        nms_kernel: odd side of the window, in network-input pixels.
        min_score: a peak is above it; at least 0.
        at: "full" looks for peaks at network-input size; "half" at the highest level's own size,
            with a window half as wide and sub-pixel offsets: cheaper, not the published numbers.
    Raises:
        ValueError: settings that do not fit, with what was expected.
    """
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
        tag_grids = tag_grids_between(maps.tags, own_size, own_size)
        _find(maps, grid_between(own_size, own_size), tag_grids, rule, peaks)
        _adjust_half(maps.heat, np.float32(size[1] / width), np.float32(size[0] / height), peaks)
    return peaks


def _what_rules_out(size_in: tuple[int, int], size_out: tuple[int, int], radius: int) -> int:
    """The strongest test that is valid where a map of size_in is upsampled to size_out."""
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


# ---- the CPU twin ------------------------------------------------------------------------------


@njit
def _find(
    maps: MeanMaps, grid: Grid, tag_grids: tuple[Grid, Grid], rule: _Rule, peaks: Peaks
) -> None:
    """Fill xy and score of peaks, in pixels of the grid, and their tags."""
    used = np.zeros(len(maps.heat), np.int64)
    for k in range(len(maps.heat)):
        slots = _Slots(peaks.xy[k], peaks.score[k], used[k : k + 1])
        _find_in_map(maps, k, grid, rule, slots)
        for m in range(used[k]):
            x, y = int(slots.xy[m, 0]), int(slots.xy[m, 1])
            for t in range(maps.tags.shape[3]):
                peaks.tags[k, m, t] = upsampled_tag(maps.tags[k], tag_grids, x, y, t)


@njit
def _find_in_map(maps: MeanMaps, k: int, grid: Grid, rule: _Rule, slots: _Slots) -> None:
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
    """No upsampled value nearest to pixel (u, v) is higher."""
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
    """Insert the peaks among the upsampled values nearest to a pixel (u, v) of plane.

    Returns what a later peak must be above: once all slots are taken, the last one's score less the
    least step because a peak of equal score may still come earlier in row-major order.
    """
    u, v = pixel
    rows, columns = grid.rows.nearest_from, grid.columns.nearest_from
    for y in range(rows[v], rows[v + 1]):
        for x in range(columns[u], columns[u + 1]):
            place = _Place(upsampled_value(plane, grid, x, y), x, y)
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
    """may_hold[u] = 0 where pixel (u, v), u >= start, has a higher neighbour; sizes are equal."""
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

    Both axes are upsampled exactly 2 or 4 times. Along one axis, with outputs s = 1/2 or 1/4 of a
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
    value = upsampled_value(plane, grid, x, y)
    if not np.isfinite(value):
        return False
    height, width = len(grid.rows.first), len(grid.columns.first)
    for other_y in range(max(y - radius, 0), min(y + radius + 1, height)):
        for other_x in range(max(x - radius, 0), min(x + radius + 1, width)):
            if upsampled_value(plane, grid, other_x, other_y) > value:
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
