"""Peaks of averaged levels against full-size maps, pooled and sorted, and each rule alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.averaging import average_levels
from kernels.checks.scenes import paint_people
from kernels.peaks import Peaks, peaks_of_maps
from tests.support.reference_decode import (
    PlainPeaks,
    RaiseMaps,
    find_peaks_plain,
    full_size_heat,
    full_size_tags,
    raise_with_numpy,
    raise_with_torch,
)

FloatArray = NDArray[np.float32]
CASES = [f"c{case:03d}" for case in range(6)]


def plain_peaks(
    levels: list[FloatArray],
    tags: FloatArray,
    size: tuple[int, int],
    raise_maps: RaiseMaps,
    *,
    one_step: bool = False,
    **settings: int | float,
) -> PlainPeaks:
    heat = full_size_heat(levels, size, raise_maps, one_step=one_step)
    between = size if one_step and len(levels) > 1 else levels[-1].shape[1:]
    full_tags = full_size_tags(tags, (between[0], between[1]), size, raise_maps)
    return find_peaks_plain(heat, full_tags, **settings)  # type: ignore[arg-type]


def find_peaks(
    levels: Sequence[FloatArray],
    tags: FloatArray,
    size: tuple[int, ...],
    *,
    one_step: bool = False,
    **rule: Any,
) -> Peaks:
    """Both steps, with the published evaluation's rule where none is given."""
    maps = average_levels(levels, tags, (size[0], size[1]), one_step=one_step)
    published: dict[str, Any] = {"max_peaks": 30, "nms_kernel": 5, "min_score": 0.1, "at": "full"}
    return peaks_of_maps(maps, **(published | rule))


def assert_same_peaks(peaks: Peaks, plain: PlainPeaks) -> None:
    slots = plain.score.shape[1]  # a small map has fewer pixels than there are slots
    np.testing.assert_array_equal(peaks.score[:, :slots], plain.score)
    assert not peaks.score[:, slots:].any()
    used = plain.score > 0
    np.testing.assert_array_equal(peaks.xy[:, :slots][used], plain.xy[used])
    np.testing.assert_array_equal(peaks.tags[:, :slots][used], plain.tags[used])


def random_maps(
    rng: np.random.Generator, sizes: list[tuple[int, int]], *, num_tags: int, distinct: int
) -> tuple[list[FloatArray], FloatArray]:
    """Multiples of 1/256: few distinct values make ties and plateaus."""
    levels = [
        (rng.integers(-distinct // 4, distinct, (3, *size)) / 256).astype(np.float32)
        for size in sizes
    ]
    tags = (rng.integers(-2000, 2000, (3, *sizes[0], num_tags)) / 256).astype(np.float32)
    return levels, tags


@pytest.mark.parametrize("case", CASES)
def test_published_peaks_are_reproduced(case: str, data_folder: Path) -> None:
    data = np.load(data_folder / "decode_direct.npz")
    heat, tags = data[f"{case}_det"][0], data[f"{case}_tag"][0]
    peaks = find_peaks([heat], tags, heat.shape[1:])
    used = data[f"{case}_val_k"] > 0.1
    np.testing.assert_array_equal(peaks.score > 0, used)
    np.testing.assert_array_equal(peaks.score[used], data[f"{case}_val_k"][used])
    np.testing.assert_array_equal(peaks.xy[used], data[f"{case}_loc_k"][used])
    np.testing.assert_array_equal(peaks.tags[used], data[f"{case}_tag_k"][used])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    doublings=st.sampled_from(
        [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 1, 0)]
    ),
    num_tags=st.integers(1, 2),
    distinct=st.sampled_from([30, 60, 400]),
    nms_kernel=st.sampled_from([1, 3, 5, 7]),
    one_step=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_peaks_are_those_of_the_full_size_map(
    *,
    height: int,
    width: int,
    doublings: tuple[int, ...],
    num_tags: int,
    distinct: int,
    nms_kernel: int,
    one_step: bool,
    seed: int,
) -> None:
    """Every level is 2^n times the one before; with dyadic values torch is exact in any order."""
    sizes = [(height, width)]
    for doubling in doublings:
        sizes.append((sizes[-1][0] << doubling, sizes[-1][1] << doubling))
    rng = np.random.default_rng(seed)
    levels, tags = random_maps(rng, sizes[:-1], num_tags=num_tags, distinct=distinct)
    rule = {"nms_kernel": nms_kernel, "max_peaks": 8, "min_score": 0.03}
    peaks = find_peaks(levels, tags, sizes[-1], one_step=one_step, **rule)
    raise_maps = raise_with_torch if len(levels) != 3 else raise_with_numpy  # thirds round
    plain = plain_peaks(levels, tags, sizes[-1], raise_maps, one_step=one_step, **rule)
    assert_same_peaks(peaks, plain)


@settings(max_examples=40, deadline=None)
@given(
    low=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    more=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    much_more=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    smooth=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_odd_sizes_and_any_numbers_equal_the_written_out_arithmetic(
    low: tuple[int, int],
    more: tuple[int, int],
    much_more: tuple[int, int],
    smooth: bool,
    seed: int,
) -> None:
    high = (low[0] + more[0], low[1] + more[1])
    size = (high[0] + much_more[0], high[1] + much_more[1])
    levels, tags = continuous_maps(np.random.default_rng(seed), [low, high], smooth=smooth)
    peaks = find_peaks(levels, tags, size)
    assert_same_peaks(peaks, plain_peaks(levels, tags, size, raise_with_numpy))


@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
@pytest.mark.parametrize("smooth", [True, False])
def test_skipping_by_slope_changes_nothing(ratio: int, scale: float, smooth: bool) -> None:
    """Random numbers of every magnitude, with an outlier, where roundings could mislead."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        levels, tags = continuous_maps(rng, [(24, 20)], smooth=smooth)
        heat = levels[0] * np.float32(scale)
        heat[0, 3, 3] = -100 * scale
        size = (24 * ratio, 20 * ratio)
        peaks = find_peaks([heat], tags, size, min_score=0.0)
        assert_same_peaks(peaks, plain_peaks([heat], tags, size, raise_with_numpy, min_score=0.0))


def continuous_maps(
    rng: np.random.Generator, sizes: list[tuple[int, int]], *, smooth: bool
) -> tuple[list[FloatArray], FloatArray]:
    levels = [rng.normal(0.1, 0.3, (2, *size)) for size in sizes]
    if smooth:
        for _ in range(3):
            levels = [
                (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, -1, 2)) / 4 for x in levels
            ]
    tags = rng.normal(0, 3, (2, *sizes[0], 1)).astype(np.float32)
    return [level.astype(np.float32) for level in levels], tags


def test_the_average_equals_torch_to_rounding() -> None:
    levels, tags = continuous_maps(np.random.default_rng(0), [(16, 24), (32, 48)], smooth=False)
    maps = average_levels(levels, tags, (64, 96))
    expected = (raise_with_torch(levels[0], (32, 48)) + levels[1]) / 2
    np.testing.assert_allclose(maps.heat, expected, atol=1e-6)


def test_of_a_plateau_every_pixel_is_a_peak_in_row_major_order() -> None:
    heat = np.full((1, 10, 12), 0.5, np.float32)
    peaks = find_peaks([heat], np.zeros((1, 10, 12, 1), np.float32), (10, 12), max_peaks=30)
    first = np.arange(30)
    np.testing.assert_array_equal(peaks.xy[0], np.stack([first % 12, first // 12], axis=1))


def test_the_threshold_is_strict_and_compared_as_float64() -> None:
    tags = np.zeros((1, 8, 8, 1), np.float32)
    heat = np.zeros((1, 8, 8), np.float32)
    heat[0, 4, 4] = 0.5
    assert not find_peaks([heat], tags, (8, 8), min_score=0.5).score.any()
    heat[0, 4, 4] = 0.1  # as float32 this is a little more than 0.1
    assert find_peaks([heat], tags, (8, 8), min_score=0.1).score[0, 0] == np.float32(0.1)


@pytest.mark.parametrize("heat", [np.zeros((2, 8, 8)), np.full((2, 8, 8), -1.0)])
def test_maps_without_peaks_leave_all_slots_zero(heat: FloatArray) -> None:
    tags = np.ones((2, 8, 8, 1), np.float32)
    for field in find_peaks([heat.astype(np.float32)], tags, (16, 16)):
        assert not field.any()


def test_numbers_that_are_not_finite_are_no_peaks() -> None:
    heat = np.zeros((1, 16, 16), np.float32)
    heat[0, 3, 3], heat[0, 3, 12], heat[0, 12, 12] = np.inf, np.nan, 0.7
    peaks = find_peaks([heat], np.zeros((1, 16, 16, 1), np.float32), (16, 16))
    assert peaks.score[0, 0] == np.float32(0.7)
    assert not peaks.score[0, 1:].any()


def test_layout_and_write_protection_do_not_matter() -> None:
    scene = paint_people(2, size=(64, 96), level_sizes=((16, 24), (32, 48)), seed=3)
    expected = find_peaks(scene.levels, scene.tags, scene.size)
    turned = [np.ascontiguousarray(level.transpose(1, 2, 0)) for level in scene.levels]
    views = [level.transpose(2, 0, 1) for level in turned]
    tags = scene.tags[:, :, ::-1][:, :, ::-1]
    tags.flags.writeable = False
    assert not views[0].flags.c_contiguous
    for got, want in zip(find_peaks(views, tags, scene.size), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_tags_at_network_input_size_are_used_as_given() -> None:
    scene = paint_people(2, size=(64, 64), level_sizes=((16, 16), (32, 32)), seed=4)
    tags = np.random.default_rng(4).normal(size=(17, 64, 64, 2)).astype(np.float32)
    peaks = find_peaks(scene.levels, tags, scene.size)
    for k, m in zip(*np.nonzero(peaks.score), strict=True):
        x, y = peaks.xy[k, m].astype(int)
        np.testing.assert_array_equal(peaks.tags[k, m], tags[k, y, x])


@pytest.mark.parametrize("at", ["full", "half"])
def test_adjusted_peaks_lie_on_the_painted_people(at: str) -> None:
    """Adjusted coordinates carry the half pixel that the published code adds."""
    errors = []
    for seed in range(3):
        scene = paint_people(3, missing=0, noise=0.003, steps=None, seed=seed)
        peaks = find_peaks(scene.levels, scene.tags, scene.size, at=at)
        places = peaks.xy + peaks.offset - 0.5
        for person in scene.xy:
            for k in range(len(person)):
                found = places[k][peaks.score[k] > 0]
                errors.append(np.abs(found - person[k]).max(axis=1).min())
    assert np.median(errors) < (0.1 if at == "half" else 0.3)
    assert np.max(errors) < (0.6 if at == "half" else 0.8)


def test_what_does_not_fit_is_refused() -> None:
    heat, tags = np.zeros((2, 8, 8), np.float32), np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match="levels is empty"):
        find_peaks([], tags, (8, 8))
    with pytest.raises(ValueError, match=r"\(K, h, w\) float32"):
        find_peaks([heat[None]], tags, (8, 8))
    with pytest.raises(ValueError, match="float32"):
        find_peaks([heat.astype(np.float64)], tags, (8, 8))
    with pytest.raises(ValueError, match="does not fit size"):
        find_peaks([heat], tags, (8, 7))
    with pytest.raises(ValueError, match="tags must be"):
        find_peaks([heat], tags[..., 0], (8, 8))
    with pytest.raises(ValueError, match="keypoints"):
        find_peaks([heat], tags[:1], (8, 8))
    with pytest.raises(ValueError, match="odd"):
        find_peaks([heat], tags, (8, 8), nms_kernel=4)
    with pytest.raises(ValueError, match="min_score"):
        find_peaks([heat], tags, (8, 8), min_score=-0.1)
    with pytest.raises(ValueError, match="full or half"):
        find_peaks([heat], tags, (8, 8), at="quarter")
    with pytest.raises(ValueError, match="max_peaks"):
        find_peaks([heat], tags, (8, 8), max_peaks=0)
