"""People as a good network would paint them: heatmaps and tags of known scenes.

For tests, benchmarks and the stream's own check of a machine. Every person has a tag number of
its own; every visible keypoint is a Gaussian on every level. A missing keypoint leaves a weak one
behind, below the detection threshold, as networks do for hidden parts: matching does not see it,
refine should find it. Away from keypoints the tags are those of the nearest person, so that refine
has large regions to search.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_SIGMA = 2.0  # heatmap pixels on every level, as the papers train
_WEAK = 0.06  # below the detection threshold of 0.1
_TAG_GAP = 2.0  # between people; the matching joins below 1


class Scene(NamedTuple):
    """One image's maps and the truth behind them."""

    levels: list[FloatArray]
    """(K, h, w) float32 each, low to high resolution."""
    tags: FloatArray
    """(K, h, w, T) float32 at the lowest level's size."""
    size: tuple[int, int]
    """(H, W) of the network input."""
    xy: NDArray[np.float64]
    """(P, K, 2) true keypoints in network-input pixels."""
    visible: NDArray[np.bool_]
    """(P, K) whether the keypoint is above the detection threshold."""


def paint_people(
    num_people: int,
    *,
    size: tuple[int, int] = (512, 512),
    level_sizes: tuple[tuple[int, int], ...] = ((128, 128), (256, 256)),
    num_keypoints: int = 17,
    num_tags: int = 1,
    missing: float = 0.2,
    noise: float = 0.01,
    tag_jitter: float = 0.1,
    steps: int | None = 256,
    seed: int = 0,
) -> Scene:
    """A scene of people on a loose grid.

    Args:
        missing: share of keypoints that are only weak.
        noise: standard deviation added to heatmaps; tags get tag_jitter.
        steps: heatmaps and tags are rounded to multiples of 1/steps, so that averages and doublings
            are exact in any order and ties are real; None leaves them as they are.
    """
    rng = np.random.default_rng(seed)
    xy = _place_people(rng, num_people, num_keypoints, size)
    visible = rng.random((num_people, num_keypoints)) >= missing
    height = np.where(visible, rng.uniform(0.5, 1.0, visible.shape), _WEAK)
    levels = []
    for level_size in level_sizes:
        level = _paint_heat(xy, height, level_size, size)
        level += rng.normal(0, noise, level.shape)
        levels.append(_rounded(level, steps))
    person_tags = _TAG_GAP * rng.permutation(num_people)[:, None] + rng.normal(
        0, 0.05, (num_people, num_tags)
    )
    tags = _paint_tags(xy, person_tags, level_sizes[0], size)
    tags += rng.normal(0, tag_jitter, tags.shape)
    return Scene(levels, _rounded(tags, steps), size, xy, visible)


def _place_people(
    rng: np.random.Generator, num_people: int, num_keypoints: int, size: tuple[int, int]
) -> NDArray[np.float64]:
    """(P, K, 2): one person in each of as many cells as are needed, a little shifted."""
    columns = max(1, int(np.ceil(np.sqrt(num_people))))
    cell = np.array([size[1], size[0]]) / columns
    cells = rng.permutation(columns * columns)[:num_people]
    corner = np.stack([cells % columns, cells // columns], axis=1) * cell
    body = rng.uniform(0.15, 0.85, (num_keypoints, 2))
    shift = rng.uniform(-0.1, 0.1, (num_people, num_keypoints, 2))
    return np.asarray(corner[:, None] + (body + shift) * cell)


def _on_level(
    xy: NDArray[np.float64], level_size: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Network-input pixels to a level's pixels; pixel centres at integers in both."""
    scale = np.array([level_size[1] / size[1], level_size[0] / size[0]])
    return np.asarray((xy + 0.5) * scale - 0.5)


def _paint_heat(
    xy: NDArray[np.float64],
    height: NDArray[np.float64],
    level_size: tuple[int, int],
    size: tuple[int, int],
) -> NDArray[np.float64]:
    heat = np.zeros((xy.shape[1], *level_size))
    rows, columns = np.arange(level_size[0]), np.arange(level_size[1])
    for person, person_height in zip(_on_level(xy, level_size, size), height, strict=True):
        for k, ((x, y), top) in enumerate(zip(person, person_height, strict=True)):
            across = np.exp(-((columns - x) ** 2) / (2 * _SIGMA**2))
            down = np.exp(-((rows - y) ** 2) / (2 * _SIGMA**2))
            np.maximum(heat[k], top * np.outer(down, across), out=heat[k])
    return heat


def _paint_tags(
    xy: NDArray[np.float64],
    person_tags: NDArray[np.float64],
    level_size: tuple[int, int],
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """(K, h, w, T): everywhere the tag of the person whose keypoint k is nearest."""
    num_people, num_keypoints = xy.shape[:2]
    tags = np.zeros((num_keypoints, *level_size, person_tags.shape[1]))
    if num_people == 0:
        return tags
    rows, columns = np.arange(level_size[0])[:, None], np.arange(level_size[1])
    people = _on_level(xy, level_size, size)
    for k in range(num_keypoints):
        squared = [(columns - x) ** 2 + (rows - y) ** 2 for x, y in people[:, k]]
        tags[k] = person_tags[np.argmin(squared, axis=0)]
    return tags


def _rounded(maps: NDArray[np.float64], steps: int | None) -> FloatArray:
    if steps is not None:
        maps = np.round(maps * steps) / steps
    return maps.astype(np.float32)
