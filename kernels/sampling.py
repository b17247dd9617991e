"""Reading a small map at any pixel of a larger one: what peaks and refine both look up.

    plane (h, w) --grid: two pixels an axis and their weights--> value at (x, y) of (H, W)

The larger map never exists as a whole: bilinear values are computed where they are looked at. Every
float32 operation is written in its order, because maps.cuh, the CUDA twin, takes the same steps.
"""

from functools import lru_cache
from typing import NamedTuple

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


class Axis(NamedTuple):
    """How one axis is upsampled: out[i] from two pixels (bilinear, align_corners=False)."""

    first: NDArray[np.uint32]
    """(n_out,) lower pixel; unsigned, so that compiled code need not test for negative indices."""
    second: NDArray[np.uint32]
    """(n_out,) upper pixel; the last pixel repeats at the border."""
    weight: FloatArray
    """(n_out,) float32 weight of the upper pixel; the lower one has 1 - weight."""
    nearest_from: NDArray[np.int64]
    """(n_in + 1,): outputs nearest to input i are nearest_from[i] up to nearest_from[i + 1]."""


class Grid(NamedTuple):
    """How a small map is upsampled to a larger one."""

    rows: Axis
    columns: Axis


def grid_between(size_in: tuple[int, int], size_out: tuple[int, int]) -> Grid:
    """The tables that upsample a map of size_in (h, w) to size_out (H, W)."""
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


@njit
def upsampled_value(plane: FloatArray, grid: Grid, x: int, y: int) -> np.float32:
    """plane (h, w) upsampled by grid, at (x, y): blended along x first, then along y."""
    y0, y1, wy = grid.rows.first[y], grid.rows.second[y], grid.rows.weight[y]
    x0, x1, wx = grid.columns.first[x], grid.columns.second[x], grid.columns.weight[x]
    upper = (_ONE - wx) * plane[y0, x0] + wx * plane[y0, x1]
    lower = (_ONE - wx) * plane[y1, x0] + wx * plane[y1, x1]
    return np.float32((_ONE - wy) * upper + wy * lower)


@njit
def upsampled_tag(tags: FloatArray, grids: tuple[Grid, Grid], x: int, y: int, t: int) -> np.float32:
    """Tag number t of tags (a, b, T), upsampled by the first grid, then the second, at (x, y)."""
    inner, outer = grids
    plane = tags[:, :, t]
    y0, y1, wy = outer.rows.first[y], outer.rows.second[y], outer.rows.weight[y]
    x0, x1, wx = outer.columns.first[x], outer.columns.second[x], outer.columns.weight[x]
    upper_left, upper_right = (
        upsampled_value(plane, inner, x0, y0),
        upsampled_value(plane, inner, x1, y0),
    )
    lower_left, lower_right = (
        upsampled_value(plane, inner, x0, y1),
        upsampled_value(plane, inner, x1, y1),
    )
    upper = (_ONE - wx) * upper_left + wx * upper_right
    lower = (_ONE - wx) * lower_left + wx * lower_right
    return np.float32((_ONE - wy) * upper + wy * lower)


@njit
def quarter_offset(plane: FloatArray, grid: Grid, x: int, y: int) -> tuple[np.float32, np.float32]:
    """The published adjustment of a pixel: a half, and a quarter towards the higher neighbour.

    Equal neighbours count as lower on the far side (towards smaller x and y).
    """
    right, below = min(x + 1, len(grid.columns.first) - 1), min(y + 1, len(grid.rows.first) - 1)
    left, above = max(x - 1, 0), max(y - 1, 0)
    to_right = upsampled_value(plane, grid, right, y) > upsampled_value(plane, grid, left, y)
    to_below = upsampled_value(plane, grid, x, below) > upsampled_value(plane, grid, x, above)
    return (
        _THREE_QUARTERS if to_right else _QUARTER,
        _THREE_QUARTERS if to_below else _QUARTER,
    )
