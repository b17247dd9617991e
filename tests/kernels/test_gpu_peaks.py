"""peaks.cu on the emulator: equal to kernels.peaks on every map, in any thread order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.averaging import average_levels
from kernels.checks.scenes import paint_people
from kernels.gpu_peaks import TILE_SIDE, GpuPeakFinder, GpuPeaks
from kernels.peaks import peaks_of_maps
from tests.support.cuda_on_cpu.emulator import (
    EmulatedGpu,
    Sanitizer,
    assert_clean,
    sanitizer_report,
)

FloatArray = NDArray[np.float32]
Size = tuple[int, int]

PUBLISHED: dict[str, Any] = {"max_peaks": 30, "nms_kernel": 5, "min_score": 0.1, "at": "full"}

LEVEL_SIZES: list[tuple[list[Size], Size]] = [
    ([(24, 32), (48, 64)], (96, 128)),
    ([(24, 32)], (96, 128)),
    ([(12, 16), (24, 32), (48, 64)], (96, 128)),
    ([(24, 32), (24, 32)], (96, 128)),  # coarse and fine stages
    ([(48, 64)], (48, 64)),
    ([(19, 23), (41, 37)], (77, 101)),
    ([(13, 31)], (53, 64)),
    ([(9, 20), (33, 20), (33, 40), (40, 41)], (65, 70)),
]
"""Levels, low to high, and network input: HigherHRNet's, one level, three, sizes of no ratio."""


def assert_equal_to_cpu(
    gpu: EmulatedGpu,
    levels: Sequence[NDArray[Any]],
    tags: FloatArray,
    size: Size,
    *,
    one_step: bool = False,
    **rule: Any,
) -> GpuPeaks:
    """Heat, ceilings and peaks of every image of a batch are those of the CPU twin."""
    rule = PUBLISHED | rule
    finder = GpuPeakFinder(gpu, one_step=one_step, **rule)
    maps = finder.average(levels, tags, size)
    peaks = finder.find(maps)
    for b in range(len(tags)):
        image_levels = [level[b].astype(np.float32) for level in levels]
        cpu_maps = average_levels(
            image_levels, tags[b], size, one_step=one_step, tile_side=TILE_SIDE
        )
        np.testing.assert_array_equal(maps.heat[b], cpu_maps.heat)
        np.testing.assert_array_equal(maps.ceiling[b], cpu_maps.tiles.ceiling)
        cpu_peaks = peaks_of_maps(cpu_maps, **rule)
        for name, got, want in zip(cpu_peaks._fields, peaks, cpu_peaks, strict=True):
            np.testing.assert_array_equal(got[b], want, err_msg=f"{name} of image {b}")
    return peaks


def random_scene(seed: int) -> tuple[list[FloatArray], FloatArray, Size]:
    """People, or noise and plateaus, of random shapes, with a batch axis of one or two."""
    rng = np.random.default_rng(seed)
    level_sizes, size = LEVEL_SIZES[seed % len(LEVEL_SIZES)]
    num_tags = int(rng.choice([1, 2, 4]))
    if seed % 3 == 0:
        levels = [rng.integers(-20, 40, (2, 3, *each)) / np.float32(64) for each in level_sizes]
        tags = rng.normal(0, 3, (2, 3, *level_sizes[0], num_tags))
        return [level.astype(np.float32) for level in levels], tags.astype(np.float32), size
    scene = paint_people(
        int(rng.integers(1, 6)),
        size=size,
        level_sizes=tuple(level_sizes),
        num_keypoints=3,
        num_tags=num_tags,
        noise=float(rng.choice([0.01, 0.1])),
        steps=256 if seed % 2 else None,
        seed=seed,
    )
    return [level[None] for level in scene.levels], scene.tags[None], size


def random_rule(seed: int) -> dict[str, Any]:
    """The published settings, or others."""
    if seed % 4 == 0:
        return {}
    rng = np.random.default_rng(seed)
    return {
        "max_peaks": int(rng.choice([1, 8, 30])),
        "nms_kernel": int(rng.choice([1, 3, 5, 7, 15])),
        "min_score": float(rng.choice([0.0, 0.1, 0.25])),
        "at": str(rng.choice(["full", "half"])),
        "one_step": bool(rng.integers(2)),
    }


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_random_scenes_equal_the_cpu(first: int) -> None:
    gpu = EmulatedGpu()
    for seed in range(first, first + 25):
        assert_equal_to_cpu(gpu, *random_scene(seed), **random_rule(seed))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_any_order_of_threads_gives_the_same(order: int) -> None:
    gpu = EmulatedGpu(seed=order)
    for seed in range(12):
        assert_equal_to_cpu(gpu, *random_scene(seed), **random_rule(seed))


def test_a_full_size_scene_equals_the_cpu() -> None:
    scene = paint_people(8, seed=5, noise=0.02)
    levels = [level[None] for level in scene.levels]
    peaks = assert_equal_to_cpu(EmulatedGpu(), levels, scene.tags[None], scene.size)
    assert (peaks.score > 0).sum() > 60


@settings(max_examples=30, deadline=None)
@given(
    low=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    much_more=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    at=st.sampled_from(["full", "half"]),
    seed=st.integers(0, 2**16),
)
def test_odd_sizes_equal_the_cpu(
    low: Size, more: Size, much_more: Size, at: str, seed: int
) -> None:
    high = (low[0] + more[0], low[1] + more[1])
    size = (high[0] + much_more[0], high[1] + much_more[1])
    rng = np.random.default_rng(seed)
    levels = [rng.normal(0.1, 0.3, (1, 2, *each)).astype(np.float32) for each in (low, high)]
    tags = rng.normal(0, 3, (1, 2, *low, 1)).astype(np.float32)
    assert_equal_to_cpu(EmulatedGpu(), levels, tags, size, at=at)


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_half_precision_levels_are_read_as_float32(num_levels: int) -> None:
    rng = np.random.default_rng(num_levels)
    sizes = [(12, 16), (24, 32), (48, 64)][:num_levels]
    levels = [rng.normal(0.1, 0.3, (2, 3, *each)).astype(np.float16) for each in sizes]
    tags = rng.normal(0, 3, (2, 3, 12, 16, 2)).astype(np.float32)
    assert_equal_to_cpu(EmulatedGpu(), levels, tags, (96, 128))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("num_levels", [1, 2])
def test_a_flip_pair_equals_flip_test_and_the_cpu(kind: type, num_levels: int) -> None:
    import torch  # here, for the processes of the sanitizers import this file

    from nets.aggregation import Maps, flip_test

    rng = np.random.default_rng(num_levels)
    sizes, size = [(15, 20), (30, 40)][:num_levels], (60, 80)
    levels: list[NDArray[Any]] = [
        rng.normal(0.1, 0.3, (4, 3, *each)).astype(kind) for each in sizes
    ]
    tags = rng.normal(0, 3, (4, 3, 15, 20, 2)).astype(np.float32)
    order = (0, 2, 1)

    def engine(images: torch.Tensor) -> Maps:
        assert len(images) == 4
        wide = tuple(torch.from_numpy(level.astype(np.float32)) for level in levels)
        return Maps(wide, torch.from_numpy(tags))

    expected = flip_test(engine, torch.zeros(2, 3, *size), flip_order=order)
    finder = GpuPeakFinder(EmulatedGpu(), one_step=False, flip_order=order, **PUBLISHED)
    maps = finder.average(levels, tags, size)
    np.testing.assert_array_equal(maps.tags, expected.tags.numpy())
    peaks = finder.find(maps)
    for b in range(2):
        cpu_levels = [level[b].numpy() for level in expected.levels]
        cpu_maps = average_levels(cpu_levels, expected.tags[b].numpy(), size)
        np.testing.assert_array_equal(maps.heat[b], cpu_maps.heat)
        want = peaks_of_maps(cpu_maps, **PUBLISHED)
        for name, got, cpu in zip(want._fields, peaks, want, strict=True):
            np.testing.assert_array_equal(got[b], cpu, err_msg=name)


def blank(size: Size, value: float = 0.0) -> tuple[FloatArray, FloatArray]:
    heat = np.full((1, 2, *size), value, np.float32)
    tags = np.arange(2 * size[0] * size[1], dtype=np.float32).reshape(1, 2, *size, 1)
    return heat, tags


@pytest.mark.parametrize("at", ["full", "half"])
def test_peaks_in_corners_and_across_tiles_of_blocks(at: str) -> None:
    """Single pixels, among them all borders and both sides of every seam between blocks."""
    heat, tags = blank((70, 70))
    places = [0, 15, 16, 31, 32, 33, 47, 48, 63, 64, 69]
    rng = np.random.default_rng(0)
    for y in places:
        for x in places:
            heat[0, 0, y, x] = rng.uniform(0.2, 1.0)
    heat[0, 1] = heat[0, 0].T
    for size in ((70, 70), (140, 140)):
        peaks = assert_equal_to_cpu(
            EmulatedGpu(), [heat], tags, size, at=at, max_peaks=150, nms_kernel=3
        )
        assert (peaks.score > 0).sum() > 60


@pytest.mark.parametrize("value", [0.0, -1.0, 0.1, 0.5])
@pytest.mark.parametrize("max_peaks", [30, 256])
def test_constant_maps_are_all_peaks_or_none(value: float, max_peaks: int) -> None:
    heat, tags = blank((40, 70), value)
    peaks = assert_equal_to_cpu(EmulatedGpu(), [heat], tags, (80, 140), max_peaks=max_peaks)
    first = np.arange(max_peaks)
    if value == 0.5:
        np.testing.assert_array_equal(peaks.xy[0, 0], np.stack([first % 140, first // 140], 1))


def test_equal_peaks_of_many_tiles_come_in_row_major_order() -> None:
    heat, tags = blank((128, 128))
    heat[..., 3::8, 5::8] = 0.5
    heat[0, 1, 3::16, 5::16] = 0.75
    peaks = assert_equal_to_cpu(EmulatedGpu(), [heat], tags, (128, 128), max_peaks=200)
    order = peaks.xy[0, 0, :, 1] * 128 + peaks.xy[0, 0, :, 0]
    assert (np.diff(order) > 0).all()


def test_the_threshold_is_strict_and_compared_as_float64() -> None:
    heat, tags = blank((16, 16))
    heat[0, 0, 4, 4], heat[0, 1, 8, 8] = 0.5, 0.1
    peaks = assert_equal_to_cpu(EmulatedGpu(), [heat], tags, (16, 16), min_score=0.5)
    assert not peaks.score.any()
    peaks = assert_equal_to_cpu(EmulatedGpu(), [heat], tags, (16, 16), min_score=0.1)
    assert peaks.score[0, 1, 0] == np.float32(0.1)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("size", [(96, 128), (75, 101)])
def test_numbers_that_are_not_finite_spoil_no_more_than_on_the_cpu(size: Size) -> None:
    rng = np.random.default_rng(7)
    low = rng.uniform(0, 1, (1, 3, 24, 32)).astype(np.float32)
    high = rng.uniform(0, 1, (1, 3, 48, 64)).astype(np.float32)
    for level in (low, high):
        for bad in (np.inf, -np.inf, np.nan):
            level[rng.random(level.shape) < 0.02] = bad
    high[0, 2] = np.nan
    tags = np.where(rng.random((1, 3, 24, 32, 1)) < 0.1, np.nan, 1).astype(np.float32)
    assert_equal_to_cpu(EmulatedGpu(), [low, high], tags, size)
    assert_equal_to_cpu(EmulatedGpu(), [high], tags, size)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("at", ["full", "half"])
def test_numbers_that_are_not_finite_on_the_searched_grid_itself(at: str) -> None:
    """Away from people: beside them the CPU's _rule_out_by_neighbour drops peaks that the
    definition keeps, for it looks at pixels, and a raised pixel next to an infinite one is NaN."""
    heat, tags = blank((48, 64))
    heat[..., 5::9, 5::9] = 0.5
    heat[0, 0, 9::9, 9::9], heat[0, 1, 9::9, 9::9] = np.inf, np.nan
    heat[0, 0, 9::18, 9::18] = -np.inf
    peaks = assert_equal_to_cpu(EmulatedGpu(), [heat], tags, (48, 64), at=at)
    assert (peaks.score == 0.5).all()


def test_a_workspace_serves_calls_of_other_shapes_and_stays_small() -> None:
    """Slots that were used before are empty again, and old shapes are forgotten."""
    gpu = EmulatedGpu()
    finder = GpuPeakFinder(gpu, one_step=False, **PUBLISHED)
    for side in [40, *range(20, 32), 40]:
        for value in (0.5, 0.0):
            heat, tags = blank((side, side), value)
            peaks = finder.find(finder.average([heat], tags, (side, side)))
            assert (peaks.score > 0).all() == (value == 0.5)
            assert all(field.any() == (value == 0.5) for field in peaks)
    assert len(finder._averages) == len(finder._finds) == 8


def test_what_does_not_fit_is_refused() -> None:
    gpu, (heat, tags) = EmulatedGpu(), blank((8, 8))

    def make(**other: Any) -> GpuPeakFinder:
        return GpuPeakFinder(gpu, **(PUBLISHED | {"one_step": False} | other))

    finder = make()
    with pytest.raises(ValueError, match="1 to 4"):
        finder.average([], tags, (8, 8))
    with pytest.raises(ValueError, match="1 to 4"):
        finder.average([heat] * 5, tags, (8, 8))
    with pytest.raises(ValueError, match="all float32 or all float16"):
        finder.average([heat.astype(np.float16), heat], tags, (8, 8))
    with pytest.raises(ValueError, match="all float32 or all float16"):
        finder.average([heat.astype(np.float64)], tags, (8, 8))
    with pytest.raises(ValueError, match="does not fit size"):
        finder.average([heat], tags, (8, 7))
    with pytest.raises(ValueError, match="tags must be"):
        finder.average([heat], tags[..., 0], (8, 8))
    with pytest.raises(ValueError, match="agree"):
        finder.average([heat], tags[:, :1], (8, 8))
    with pytest.raises(ValueError, match="contiguous"):
        finder.average([heat.transpose(0, 1, 3, 2)], tags, (8, 8))
    with pytest.raises(ValueError, match="mirrored"):
        make(flip_order=(1, 0)).average([heat], tags, (8, 8))
    with pytest.raises(ValueError, match="every keypoint once"):
        make(flip_order=(1, 1))
    with pytest.raises(ValueError, match="odd"):
        make(nms_kernel=4)
    with pytest.raises(ValueError, match="odd"):
        make(nms_kernel=17)
    with pytest.raises(ValueError, match="max_peaks"):
        make(max_peaks=257)
    with pytest.raises(ValueError, match="min_score"):
        make(min_score=float("nan"))
    with pytest.raises(ValueError, match="full or half"):
        make(at="quarter")


# ---- sanitizers and planted bugs ---------------------------------------------------------------


def small_launches(gpu: EmulatedGpu) -> None:
    """Every kernel once or twice, over seams of blocks and odd sizes."""
    rng = np.random.default_rng(0)
    levels = [
        rng.uniform(-0.5, 1, (2, 2, *each)).astype(np.float32) for each in [(9, 11), (18, 23)]
    ]
    tags = rng.normal(0, 3, (2, 2, 9, 11, 2)).astype(np.float32)
    rule: dict[str, Any] = PUBLISHED | {"one_step": False, "max_peaks": 7}
    finder = GpuPeakFinder(gpu, **rule)
    finder.find(finder.average(levels, tags, (36, 47)))
    finder.find(finder.average(levels[1:], tags, (18, 23)))
    finder = GpuPeakFinder(gpu, **(rule | {"at": "half", "flip_order": (1, 0)}))
    finder.find(finder.average([level.astype(np.float16) for level in levels], tags, (36, 47)))
    finder = GpuPeakFinder(gpu, **(rule | {"max_peaks": 256}))  # more than select ranks at a time
    finder.find(finder.average([np.ones((1, 2, 36, 47), np.float32)], tags[:1], (36, 47)))


@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_sanitizers_find_nothing(sanitize: Sanitizer) -> None:
    assert_clean(small_launches, sanitize=sanitize)


@pytest.mark.parametrize(
    ("sanitize", "words", "old", "new"),
    [
        ("thread", "data race", "__syncthreads();  // value is complete", ""),
        ("address", "heap-buffer-overflow", "if (rank < max_peaks) keys[", "keys["),
    ],
)
def test_sanitizers_find_planted_bugs(sanitize: Sanitizer, words: str, old: str, new: str) -> None:
    report = sanitizer_report(small_launches, sanitize=sanitize, replace=[(old, new)])
    assert words in report
    assert "peaks.cu" in report


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("__syncthreads();  // mean is complete", ""),
        ("__syncthreads();  // maxima along x of the values are complete", ""),
        ("__syncthreads();  // candidates are complete", ""),
        ("__syncthreads();  // warp_sums is complete", ""),
        ("__syncthreads();  // the window is complete, and best has been copied", ""),
        ("__syncthreads();  // best is complete, and the window has been read", ""),
        ("if (__syncthreads_or(may) == 0)", "__syncthreads_or(may); if (!may)"),
        ("left + i % side - radius", "left + i % side - radius + 1"),
        ("rank += candidates[other] > key", "rank += candidates[other] >> 32 > key >> 32"),
        ("score > min_score && score", "score >= min_score && score"),
    ],
)
def test_planted_bugs_are_noticed(old: str, new: str) -> None:
    """By equality with the CPU or by the emulator, in one of three orders."""
    heat, tags = blank((40, 70))
    heat[0, 0] = np.random.default_rng(1).integers(-3, 8, (40, 70)) / 8
    heat[0, 1, 20:26, 30:36] = 0.5

    def compare_in_three_orders() -> None:
        for seed in range(3):
            gpu = EmulatedGpu(seed=seed, replace=[(old, new)])
            assert_equal_to_cpu(gpu, [heat], tags, (80, 140), min_score=0.5)

    with pytest.raises((AssertionError, RuntimeError)):
        compare_in_three_orders()
