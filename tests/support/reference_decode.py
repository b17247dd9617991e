"""The published decode as an ordinary user would write it: torch, NumPy and plain Python.

This is the definition that the fused kernels are compared with, in tests and in
benchmarks/bench_decode.py. It makes every full-size map, pools, sorts, solves the assignment on
Python lists and searches whole maps for missing keypoints.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
RaiseMaps = Callable[[FloatArray, tuple[int, int]], FloatArray]


class PlainPeople(NamedTuple):
    keypoints: FloatArray  # (P, K, 3)
    scores: FloatArray  # (P,)
    filled: NDArray[np.bool_]  # (P, K)
    tags: FloatArray  # (P, T)


class PlainPeaks(NamedTuple):
    xy: NDArray[np.int64]  # (K, M, 2)
    score: FloatArray  # (K, M), 0 in unused slots
    tags: FloatArray  # (K, M, T)


def decode_plain(
    levels: Sequence[FloatArray],
    tags: FloatArray,
    size: tuple[int, int],
    matching_order: Sequence[int],
    *,
    adjust: bool = True,
    refine: bool = True,
    only_missing: bool = False,
    max_people: int = 30,
    raise_maps: RaiseMaps | None = None,
    one_step: bool = False,
) -> PlainPeople:
    """Every step on full-size maps; only_missing spares refine what it would throw away."""
    raise_maps = raise_maps or raise_with_torch
    heat = full_size_heat(levels, size, raise_maps, one_step=one_step)
    mean_size = size if one_step and len(levels) > 1 else levels[-1].shape[1:]
    full_tags = full_size_tags(tags, mean_size, size, raise_maps)
    peaks = find_peaks_plain(heat, full_tags)
    rows = match_plain(peaks, matching_order, max_people=max_people)
    keypoints = np.array(rows, np.float32).reshape(-1, len(heat), 3 + tags.shape[3])
    scores = np.array([person[:, 2].mean() for person in keypoints], np.float32)
    found = keypoints[:, :, 2] > 0
    mean_tags = [_mean_tag(person, full_tags) for person in keypoints]
    if adjust:
        adjust_plain(keypoints, heat)
    if refine:
        for person, mean in zip(keypoints, mean_tags, strict=True):
            refine_plain(person, mean, heat, full_tags, only_missing=only_missing)
    return PlainPeople(
        keypoints=keypoints[:, :, :3],
        scores=scores,
        filled=(keypoints[:, :, 2] > 0) & ~found,
        tags=np.array(mean_tags, np.float32).reshape(-1, tags.shape[3]),
    )


# ---- maps --------------------------------------------------------------------------------------


def raise_with_torch(maps: FloatArray, size: tuple[int, int]) -> FloatArray:
    """(K, h, w) to (K, H, W), bilinear."""
    raised = F.interpolate(torch.from_numpy(maps)[None], size=size, mode="bilinear")
    return raised[0].numpy()


def raise_with_numpy(maps: FloatArray, size: tuple[int, int]) -> FloatArray:
    """The same with every float32 operation written out, where torch may fuse or reorder some."""
    y0, y1, wy = _taps(maps.shape[1], size[0])
    x0, x1, wx = _taps(maps.shape[2], size[1])
    across = (1 - wx) * maps[:, :, x0] + wx * maps[:, :, x1]
    wy = wy[:, None]
    return np.asarray((1 - wy) * across[:, y0] + wy * across[:, y1])


def _taps(n_in: int, n_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    scale = np.float32(n_in) / np.float32(n_out)
    source = scale * (np.arange(n_out, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    source = np.maximum(source, np.float32(0))
    lower = source.astype(np.int64)
    return lower, np.minimum(lower + 1, n_in - 1), source - lower.astype(np.float32)


def full_size_heat(
    levels: Sequence[FloatArray], size: tuple[int, int], raise_maps: RaiseMaps, *, one_step: bool
) -> FloatArray:
    if one_step:
        raised = [raise_maps(level, size) for level in levels]
    else:
        raised = [raise_maps(level, levels[-1].shape[1:]) for level in levels]
    total = raised[0]
    for level in raised[1:]:
        total = total + level
    return raise_maps(total / np.float32(len(levels)), size)


def full_size_tags(
    tags: FloatArray, mean_size: tuple[int, int], size: tuple[int, int], raise_maps: RaiseMaps
) -> FloatArray:
    """(K, a, b, T) to (K, H, W, T), over mean_size."""
    if tags.shape[1:3] == size:
        return tags
    numbers = [
        raise_maps(raise_maps(np.ascontiguousarray(tags[..., t]), mean_size), size)
        for t in range(tags.shape[3])
    ]
    return np.stack(numbers, axis=-1)


# ---- peaks -------------------------------------------------------------------------------------


def find_peaks_plain(
    heat: FloatArray,
    tags: FloatArray,
    *,
    max_peaks: int = 30,
    nms_kernel: int = 5,
    min_score: float = 0.1,
) -> PlainPeaks:
    """heat (K, H, W), tags (K, H, W, T), both at full size."""
    num_keypoints, _, width = heat.shape
    maps = torch.from_numpy(heat)
    pooled = F.max_pool2d(maps[None], nms_kernel, stride=1, padding=nms_kernel // 2)[0]
    kept = (maps * (pooled == maps)).flatten(1)
    score, index = (array.numpy() for array in kept.topk(min(max_peaks, kept.shape[1])))
    index = np.stack(
        [
            _row_major_ties(*peak, kept[k].numpy())
            for k, peak in enumerate(zip(score, index, strict=True))
        ]
    )
    score = np.where(score.astype(np.float64) > min_score, score, np.float32(0))
    joint = np.arange(num_keypoints)[:, None]
    return PlainPeaks(
        xy=np.stack([index % width, index // width], axis=-1),
        score=score,
        tags=tags[joint, index // width, index % width],
    )


def _row_major_ties(
    score: FloatArray, index: NDArray[np.int64], kept: FloatArray
) -> NDArray[np.int64]:
    """topk leaves the order of equal scores open; here the first in row-major order comes first."""
    last = score[score > 0].min(initial=np.float32(np.inf))
    candidates = np.flatnonzero(kept >= last)
    ordered = candidates[np.argsort(-kept[candidates], kind="stable")]
    index = index.copy()
    index[: len(ordered)] = ordered[: len(index)]
    return index


# ---- matching ----------------------------------------------------------------------------------


def match_plain(
    peaks: PlainPeaks, matching_order: Sequence[int], *, max_people: int, tag_threshold: float = 1.0
) -> list[NDArray[np.float64]]:
    """People as (K, 3 + T) float64 rows x, y, score, tags, in the order they were begun."""
    num_keypoints, num_numbers = len(peaks.score), peaks.tags.shape[2]
    people: dict[np.float32, NDArray[np.float64]] = {}
    person_tags: dict[np.float32, list[FloatArray]] = {}
    for k in matching_order:
        used = peaks.score[k] > 0
        tags = peaks.tags[k][used]
        rows = np.concatenate([peaks.xy[k][used], peaks.score[k][used][:, None], tags], axis=1)
        if len(rows) == 0:
            continue
        keys = list(people)[:max_people]
        matches: dict[int, int] = {}
        if keys:
            means = np.array([np.mean(person_tags[key], axis=0) for key in keys])
            distance = np.linalg.norm(rows[:, None, 3:] - means[None], axis=2)
            cost = np.round(distance) * 100 - rows[:, 2:3]
            extra = max(0, len(rows) - len(keys))
            cost = np.concatenate([cost, np.full((len(rows), extra), 1e10)], axis=1)
            matches = {
                row: column
                for row, column in munkres_plain(cost.tolist())
                if column < len(keys) and distance[row, column] < tag_threshold
            }
        for row in range(len(rows)):
            if row in matches:
                key = keys[matches[row]]
                people[key][k] = rows[row]
                person_tags[key].append(tags[row])
            else:
                key = tags[row][0]
                people.setdefault(key, np.zeros((num_keypoints, 3 + num_numbers)))[k] = rows[row]
                person_tags[key] = [tags[row]]
    return list(people.values())


def munkres_plain(cost: list[list[float]]) -> list[tuple[int, int]]:
    """The classical algorithm on a Python matrix of marks (1 star, 2 prime); pairs in row order.

    Rows may be fewer than columns; rows of zeros are added. Every scan runs in its published order.
    """
    rows, n = len(cost), len(cost[0])
    cost = [[value - min(row) for value in row] for row in cost]
    cost += [[0.0] * n for _ in range(n - rows)]
    marks = [[0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if cost[i][j] == 0 and 1 not in marks[i] and all(m[j] != 1 for m in marks):
                marks[i][j] = 1
    while True:
        row_covered = [False] * n
        column_covered = [any(row[j] == 1 for row in marks) for j in range(n)]
        if all(column_covered):
            break
        path = [_prime_until_free(cost, marks, row_covered, column_covered)]
        while True:
            column = path[-1][1]
            starred = [i for i in range(n) if marks[i][column] == 1]
            if not starred:
                break
            path += [(starred[0], column), (starred[0], marks[starred[0]].index(2))]
        for i, j in path:
            marks[i][j] = 0 if marks[i][j] == 1 else 1
        marks = [[0 if mark == 2 else mark for mark in row] for row in marks]
    return [(i, marks[i].index(1)) for i in range(rows)]


def _prime_until_free(
    cost: list[list[float]],
    marks: list[list[int]],
    row_covered: list[bool],
    column_covered: list[bool],
) -> tuple[int, int]:
    """Prime zeros until one has no star in its row; where none is left, make one."""
    n = len(cost)
    i, j = 0, 0
    while True:
        zero = _uncovered_zero(cost, row_covered, column_covered, i, j)
        if zero is None:
            least = min(
                cost[a][b]
                for a in range(n)
                for b in range(n)
                if not row_covered[a] and not column_covered[b]
            )
            for a in range(n):
                for b in range(n):
                    if row_covered[a]:
                        cost[a][b] += least
                    if not column_covered[b]:
                        cost[a][b] -= least
            i, j = 0, 0
            continue
        i, j = zero
        marks[i][j] = 2
        if 1 not in marks[i]:
            return i, j
        j = marks[i].index(1)
        row_covered[i] = True
        column_covered[j] = False


def _uncovered_zero(
    cost: list[list[float]],
    row_covered: list[bool],
    column_covered: list[bool],
    start_row: int,
    start_column: int,
) -> tuple[int, int] | None:
    n = len(cost)
    for i in [*range(start_row, n), *range(start_row)]:
        if row_covered[i]:
            continue
        found = None
        for j in [*range(start_column, n), *range(start_column)]:
            if cost[i][j] == 0 and not column_covered[j]:
                found = (i, j)  # the last one met counts
        if found:
            return found
    return None


# ---- adjust and refine -------------------------------------------------------------------------


def _mean_tag(person: FloatArray, tags: FloatArray) -> Any:
    found = [(k, int(y), int(x)) for k, (x, y, score) in enumerate(person[:, :3]) if score > 0]
    return np.mean([tags[k, y, x] for k, y, x in found], axis=0)


def _quarters(plane: FloatArray, x: int, y: int) -> tuple[float, float]:
    height, width = plane.shape
    right, left = plane[y, min(x + 1, width - 1)], plane[y, max(x - 1, 0)]
    below, above = plane[min(y + 1, height - 1), x], plane[max(y - 1, 0), x]
    return (0.75 if right > left else 0.25), (0.75 if below > above else 0.25)


def adjust_plain(keypoints: FloatArray, heat: FloatArray) -> None:
    for person in keypoints:
        for k, row in enumerate(person):
            if row[2] > 0:
                row[:2] += _quarters(heat[k], int(row[0]), int(row[1]))


def refine_plain(
    person: FloatArray,
    mean_tag: FloatArray,
    heat: FloatArray,
    tags: FloatArray,
    *,
    only_missing: bool = False,
) -> None:
    for k in range(len(person)):
        if only_missing and person[k, 2] > 0:
            continue
        distance = np.sqrt(((tags[k] - mean_tag) ** 2).sum(axis=-1))
        y, x = divmod(int(np.argmax(heat[k] - np.round(distance))), heat.shape[2])
        if person[k, 2] == 0 and heat[k, y, x] > 0:
            across, down = _quarters(heat[k], x, y)
            person[k, :3] = x + across, y + down, heat[k, y, x]
