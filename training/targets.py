"""Keypoints -> what a network shall say: heatmaps for each of its levels, and where tags are read.

    keypoints (P, K, 3) in map pixels --+-- draw_heatmaps --> (K, h, w)            one a Plan
                                        '-- tag_index ------> (max_people, K, 2)   at 1/4 only

Which heatmaps a network is trained on, and with which hats, is known by target_plan alone. All of
it rests on one rule (_cells): a keypoint belongs to the pixel that its truncated coordinates name.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import njit
from nets.double_higher_net import DoubleHigherNetSettings
from nets.named import NetSettings
from training.config import TargetConfig

FloatArray = NDArray[np.float32]

_SIGMA_STEP = 0.125

TAG_STRIDE = 4
"""Network-input pixels in a pixel of the tags, of every net (HigherHRNet sec. 3.2)."""


class Plan(NamedTuple):
    """One stack of heatmaps that a network predicts."""

    stride: int
    """Network-input pixels in a pixel of the heatmaps: 4, 2 or 1."""
    tau: float | None
    """Radius at which the hats are cut (DoubleHigherNet); None: a whole Gaussian (HigherHRNet)."""


def target_plan(settings: NetSettings, target: TargetConfig) -> tuple[Plan, ...]:
    """What a network is trained on, in the order of training.losses.heatmaps_of(output).

    HigherHRNet: one stack a level. DoubleHigherNet (eq. 1 and sec. 3): the coarse stage at 1/4 and
    1/2, then the fine one, whose hats are narrower. A network of one stage whose hats are cut all
    the same is taken for a fine stage.
    """
    coarse, fine = target.tau if target.kind == "truncated" else (None, None)
    if isinstance(settings, DoubleHigherNetSettings):
        return tuple(Plan(stride, tau) for tau in (coarse, fine) for stride in (4, 2))
    return tuple(Plan(4 >> level, fine) for level in range(settings.deconvs + 1))


def draw_heatmaps(
    keypoints: NDArray[np.floating[Any]],
    size: int | tuple[int, int],
    *,
    sigma: float | FloatArray,
    tau: float | None = None,
    unit_stride: int = 1,
    heights: FloatArray | None = None,
) -> FloatArray:
    """A hat on every labelled keypoint; where hats of several people overlap, the higher one.

    A hat stands on the middle of a pixel, so its top is exactly 1. With d the distance to it:
    without tau exp(-d^2 / (2 sigma^2)) on the square that the published HigherHRNet code draws,
    with tau exp(-d^2 / sigma^2) where d <= tau and 0 beyond (DoubleHigherNet).

    Args:
        keypoints: (P, K, 3) x, y, v in pixels of the map. Those with v <= 0 and those whose pixel
            lies outside are dropped.
        size: (h, w) of the map, or one number for a square one.
        sigma, tau: in the unit of d; sigma may be one for each person, (P,).
        unit_stride: how many units a map pixel is wide. 1 measures in map pixels; the map's stride
            measures in network-input pixels.
        heights: (P, K) float32, tops of the hats; None: all 1.
    Returns:
        (K, h, w) float32 in 0..1.
    """
    height, width = _height_width(size)
    heatmaps = np.zeros((keypoints.shape[1], height, width), np.float32)
    cells = _cells(keypoints, (height, width))
    if heights is None:
        heights = np.ones(cells.shape, np.float32)
    sigmas = np.broadcast_to(sigma, len(cells))
    for one in np.unique(sigmas).tolist():
        same = sigmas == one
        _merge(heatmaps, cells[same], heights[same], _hat(one, tau, unit_stride))
    return heatmaps


def sigmas_by_size(areas: FloatArray, stride: int, target: TargetConfig) -> float | FloatArray:
    """Sigma for draw_heatmaps: one for all, or (P,) by the people's areas.

    Args:
        areas: (P,) in square pixels of the network input.
        stride: of the map.
    """
    by_size = target.sigma_by_size
    if by_size is None:
        return target.sigma
    unit_px = 1 if target.unit == "input" else stride
    sigmas = by_size.share * np.sqrt(areas) / unit_px
    steps = np.rint(sigmas / _SIGMA_STEP) * _SIGMA_STEP  # few hats, which are kept
    return np.clip(steps, by_size.least, by_size.most).astype(np.float32)


def mixed_heatmaps(
    drawn: FloatArray, mask: NDArray[np.uint8], taught: FloatArray, share: FloatArray
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Heatmaps of labels and of a teacher as one target, and its mask.

    Where both are known it is their mean by `share`, where one is known that one's.

    Args:
        drawn, taught: (K, h, w).
        mask: (1 or K, h, w), 1 where labels are complete.
        share: (1, h, w), the teacher's; 0 where it says nothing.
    Returns:
        (K, h, w) float32 and (1 or K, h, w) uint8.
    """
    knows = share > 0
    mixed = taught - drawn
    mixed *= np.where(mask > 0, share, knows.astype(np.float32))
    mixed += drawn
    return mixed, mask | knows.astype(np.uint8)


def tag_index(
    keypoints: NDArray[np.floating[Any]],
    size: int | tuple[int, int],
    *,
    max_people: int,
    rng: np.random.Generator | None = None,
) -> NDArray[np.int32]:
    """Where the tags of every person's keypoints are read, as the published HigherHRNet code says.

    Each row is a person; its labelled keypoints inside the map are packed to the front as (place in
    the flattened (K, h, w) tags, 1), all else is (0, 0).

    Args:
        keypoints, size: as for draw_heatmaps, at the level that has the tags.
        max_people: rows. Of more people than that only those seen inside the map count, and of
            these so many at random (the published code fails there).
        rng: draws the people; None takes the first ones.
    Returns:
        (max_people, K, 2) int32.
    """
    height, width = _height_width(size)
    num_keypoints = keypoints.shape[1]
    cells = _cells(keypoints, (height, width))
    if len(cells) > max_people:
        cells = cells[_some(np.flatnonzero((cells >= 0).any(axis=1)), max_people, rng)]
    inside = cells >= 0
    person, keypoint = np.nonzero(inside)
    slot = (np.cumsum(inside, axis=1) - 1)[person, keypoint]
    index = np.zeros((max_people, num_keypoints, 2), np.int32)
    index[person, slot, 0] = keypoint * (height * width) + cells[person, keypoint]
    index[person, slot, 1] = 1
    return index


def _some(
    people: NDArray[np.intp], count: int, rng: np.random.Generator | None
) -> NDArray[np.intp]:
    """At most `count` of the people, in their order."""
    if rng is None or len(people) <= count:
        return people[:count]
    return np.sort(rng.choice(people, count, replace=False))


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _cells(keypoints: NDArray[np.floating[Any]], size: tuple[int, int]) -> NDArray[np.int64]:
    """(P, K): y * w + x of each keypoint's pixel; -1 where it is unlabelled or outside.

    Truncated towards zero as published: x = -0.9 lies in pixel 0.
    """
    if keypoints.ndim != 3 or keypoints.shape[2] != 3:
        raise ValueError(
            f"keypoints must be (P, K, 3) x, y, v, got shape {keypoints.shape}; "
            "an image without people has shape (0, K, 3)"
        )
    height, width = size
    x, y, v = keypoints[..., 0], keypoints[..., 1], keypoints[..., 2]
    inside = (v > 0) & (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN
    cells = np.full(inside.shape, -1, np.int64)
    cells[inside] = y[inside].astype(np.int64) * width + x[inside].astype(np.int64)
    return cells


@lru_cache(maxsize=64)
def _hat(sigma: float, tau: float | None, unit_stride: int) -> FloatArray:
    """One hat, (2r + 1, 2r + 1) float32, its top in the middle."""
    if sigma <= 0 or (tau is not None and tau < 0):
        raise ValueError(f"sigma must be above 0 and tau at least 0, got {sigma} and {tau}")
    if tau is None:
        radius = math.ceil(3 * sigma / unit_stride) + 1  # 7 for the published sigma 2
    else:
        radius = math.floor(tau / unit_stride)
    offset = np.arange(-radius, radius + 1, dtype=np.float64) * unit_stride
    squared = offset**2 + offset[:, None] ** 2
    if tau is None:
        hat = np.exp(-squared / (2 * sigma**2))
    else:
        hat = np.where(squared <= tau**2, np.exp(-squared / sigma**2), 0)
    return hat.astype(np.float32)


@njit
def _merge(
    heatmaps: FloatArray, cells: NDArray[np.int64], heights: FloatArray, hat: FloatArray
) -> None:
    """Raise heatmaps (K, h, w) to the hat, heights (P, K) high, around every cell (P, K) >= 0."""
    num_keypoints, height, width = heatmaps.shape
    radius = hat.shape[0] // 2
    for person in range(cells.shape[0]):
        for k in range(num_keypoints):
            cell = cells[person, k]
            if cell < 0:
                continue
            top_of_hat = heights[person, k]
            top, left = cell // width - radius, cell % width - radius
            first, last = max(left, 0), min(left + 2 * radius + 1, width)
            for y in range(max(top, 0), min(top + 2 * radius + 1, height)):
                row = heatmaps[k, y, first:last]
                of_hat = hat[y - top, first - left : last - left]
                for x in range(last - first):
                    row[x] = max(row[x], top_of_hat * of_hat[x])
