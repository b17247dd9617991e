"""grouping.cu and refine.cu, run on the CPU, against kernels/grouping.py: equal, not close."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.arrays import Function, Gpu
from kernels.averaging import average_levels
from kernels.gpu_grouping import GpuGrouper, GpuPeople
from kernels.grouping import group_people
from kernels.munkres import munkres
from kernels.nvrtc import cuda_source
from kernels.peaks import Peaks
from kernels.people import People
from tests.support.cuda_on_cpu.emulator import (
    CpuRawModule,
    EmulatedGpu,
    Sanitizer,
    assert_clean,
    sanitizer_report,
)
from tests.support.grouping_cases import (
    many_people,
    maps_on_device,
    on_device,
    plain_grouper,
    random_maps,
    refined_people,
    small_batch,
)
from tests.support.random_peaks import random_peaks, sparse_peaks, tied_costs
from tests.support.reference_decode import full_size_heat, full_size_tags, raise_with_numpy

FloatArray = NDArray[np.float32]
Size = tuple[int, int]


def assert_same(found: GpuPeople, image: int, expected: People) -> None:
    count = len(expected.scores)
    assert found.count[image] == count
    np.testing.assert_array_equal(found.keypoints[image, :count], expected.keypoints)
    np.testing.assert_array_equal(found.scores[image, :count], expected.scores)
    np.testing.assert_array_equal(found.filled[image, :count] != 0, expected.filled)
    np.testing.assert_array_equal(found.tags[image, :count], expected.tags)


# ---- the assignment problem --------------------------------------------------------------------

MUNKRES_ALONE = """
extern "C" __global__ void __launch_bounds__(32)
munkres_alone(double* cost, int side, int* columns)
{
    __shared__ unsigned int zeros[256 * 8];
    __shared__ int star_of_column[256], prime_of_row[256];
    const Assignment problem = {cost, zeros, columns, star_of_column, prime_of_row, side, side};
    for (int row = 0; row < side; row++) reduce_row<NUM_WORDS>(problem, row);
    __syncwarp();
    munkres<NUM_WORDS>(problem);
}
"""


@cache
def munkres_function(words: int, seed: int) -> Function:
    module = CpuRawModule(cuda_source("munkres.cuh") + MUNKRES_ALONE, (f"-DNUM_WORDS={words}",))
    return module.get_function("munkres_alone", seed=seed)


def munkres_alone(cost: NDArray[np.float64], words: int, seed: int = 0) -> list[int]:
    columns = np.full(len(cost), -7, np.int32)
    launch = munkres_function(words, seed)
    launch((1,), (32,), (cost.copy(), np.int32(len(cost)), columns))
    return [int(column) for column in columns]


@pytest.mark.parametrize("words", [1, 8])
def test_munkres_makes_the_choices_of_the_cpu(words: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sides = (1, 2, 5, 13, 30, 32) if words == 1 else (3, 31, 33, 70)
        for side in sides:
            integers = rng.integers(0, rng.integers(2, 12), (side, side)).astype(np.float64)
            for cost in (tied_costs(rng, side), integers):
                assert munkres_alone(cost, words, seed % 3) == munkres(cost.copy()).tolist()


def test_munkres_at_the_largest_side() -> None:
    rng = np.random.default_rng(0)
    cost = rng.integers(0, 500, (256, 256)).astype(np.float64)
    assert munkres_alone(cost, 8) == munkres(cost.copy()).tolist()


# ---- matching ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_peaks", "max_people", "num_tags"),
    [(1, 30, 1), (5, 2, 2), (12, 30, 1), (12, 30, 3), (30, 30, 1), (9, 40, 1), (40, 7, 2)],
)
def test_matching_equals_the_cpu(max_peaks: int, max_people: int, num_tags: int) -> None:
    """Jitter 0 gives equal keys and ties; more people than max_people; large problems too."""
    rng = np.random.default_rng(100 * max_peaks + num_tags)
    images = [
        random_peaks(rng, num_people=people, max_peaks=max_peaks, num_tags=num_tags, jitter=jitter)
        for people, jitter in ((4, 0.0), (12, 0.05), (40, 0.5))
    ]
    order = rng.permutation(17).tolist()
    grouper = GpuGrouper(
        EmulatedGpu(seed=num_tags),
        matching_order=order,
        tag_threshold=1.0,
        max_people=max_people,
        adjust=num_tags == 1,
    )
    found = grouper(on_device(images), None)
    for image, peaks in enumerate(images):
        expected = group_people(
            peaks, matching_order=order, max_people=max_people, adjust=num_tags == 1
        )
        assert_same(found, image, expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ties_are_decided_in_any_order_of_threads(seed: int) -> None:
    images = tied_images()
    found = plain_grouper(EmulatedGpu(seed=seed))(on_device(images), None)
    for image, peaks in enumerate(images):
        assert_same(found, image, group_people(peaks, matching_order=range(17)))


def tied_images() -> list[Peaks]:
    """Only the order of the scans decides who gets what."""
    rng = np.random.default_rng(9)
    return [random_peaks(rng, num_people=8, max_peaks=12, num_tags=1, jitter=0.3) for _ in range(6)]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -3e38])
def test_broken_tags_begin_people(broken: float) -> None:
    rng = np.random.default_rng(1)
    peaks = random_peaks(rng, num_people=4, max_peaks=5, num_tags=2, jitter=0.1)
    peaks.tags[::2] = broken
    found = plain_grouper(EmulatedGpu())(on_device([peaks]), None)
    assert_same(found, 0, group_people(peaks, matching_order=range(17)))


def test_other_numbers_of_keypoints() -> None:
    """One, and enough that a person's tags and scores are added in eight strands twice."""
    for num_keypoints in (1, 41):
        peaks = Peaks(
            *(
                np.concatenate([array] * 3)[:num_keypoints]
                for array in random_peaks(
                    np.random.default_rng(2), num_people=3, max_peaks=4, num_tags=1, jitter=0.1
                )
            )
        )
        grouper = plain_grouper(EmulatedGpu(), num_keypoints)
        expected = group_people(peaks, matching_order=range(num_keypoints))
        assert_same(grouper(on_device([peaks]), None), 0, expected)


# ---- refine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_refine_equals_the_cpu(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    low = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
    more = [int(2 ** rng.integers(0, 2)) if ties else rng.uniform(1, 3) for _ in range(4)]
    high = (int(low[0] * more[0]), int(low[1] * more[1]))
    size = (int(high[0] * more[2]), int(high[1] * more[3]))
    num_tags = 1 + seed % 2
    levels, tags = random_maps(rng, (low, high), num_tags, ties=ties)
    peaks = sparse_peaks(rng, 4, num_tags)
    step = (float(rng.integers(1, 5)), 1.0)
    expected = group_people(
        peaks,
        matching_order=range(4),
        refine_on=average_levels(levels, tags, size),
        refine_step=step,
    )
    grouper = plain_grouper(EmulatedGpu(seed=seed % 3), 4)
    assert_same(grouper(on_device([peaks]), maps_on_device(levels, tags, size), step), 0, expected)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_refine_passes_over_broken_tags(broken: float) -> None:
    """Pixels whose tag is not finite have no merit; every other place still can win."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        levels, tags = random_maps(rng, ((12, 16), (24, 32)), 1, ties=seed % 2 == 0)
        tags[rng.random(tags.shape) < 0.1] = broken
        tags[1] = broken
        peaks = sparse_peaks(rng, 4, 1)
        size = (48, 64)
        found = plain_grouper(EmulatedGpu(), 4)(
            on_device([peaks]), maps_on_device(levels, tags, size)
        )
        heat = full_size_heat(levels, size, raise_with_numpy, one_step=False)
        with np.errstate(invalid="ignore"):
            raised = full_size_tags(tags, (24, 32), size, raise_with_numpy)
        for person in range(2):
            for k in range(1, 4):
                distance = np.rint(np.abs(raised[k, :, :, 0] - found.tags[0, person, 0]))
                merit = np.where(np.isfinite(distance), heat[k] - distance, -np.inf)
                y, x = np.unravel_index(np.argmax(merit), merit.shape)
                assert found.filled[0, person, k] == (heat[k, y, x] > 0)
                if heat[k, y, x] > 0:
                    place = np.floor(found.keypoints[0, person, k, :2])
                    np.testing.assert_array_equal(place, (x, y))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_person_of_broken_tags_gets_the_first_pixel(broken: float) -> None:
    """As on the CPU: nowhere is there any merit."""
    rng = np.random.default_rng(3)
    levels, tags = random_maps(rng, ((12, 16), (24, 32)), 1, ties=False)
    peaks = sparse_peaks(rng, 4, 1)
    peaks.tags[0, 0] = broken
    levels[0][:, 0, 0] = levels[1][:, 0, 0] = 1.0
    maps = average_levels(levels, tags, (48, 64))
    expected = group_people(peaks, matching_order=range(4), refine_on=maps)
    np.testing.assert_array_equal(expected.keypoints[0, 1:, :2], np.full((3, 2), 0.25))
    found = plain_grouper(EmulatedGpu(), 4)(
        on_device([peaks]), maps_on_device(levels, tags, (48, 64))
    )
    assert_same(found, 0, expected)


def test_more_people_than_blocks_take_turns() -> None:
    """40 people of one keypoint each: refine's blocks search for several."""
    rng = np.random.default_rng(4)
    peaks = sparse_peaks(rng, 4, 1)
    wide = Peaks(*(np.zeros((4, 40, *array.shape[2:]), np.float32) for array in peaks))
    wide.score[0] = np.linspace(0.9, 0.5, 40)
    wide.tags[0, :, 0] = 2 * np.arange(40)
    levels, tags = random_maps(rng, ((12, 16), (24, 32)), 1, ties=True)
    tags += rng.integers(0, 40, tags.shape).astype(np.float32) * 2
    levels[0] += 1
    maps = average_levels(levels, tags, (48, 64))
    expected = group_people(wide, matching_order=range(4), max_people=50, refine_on=maps)
    assert len(expected.scores) == 40
    assert expected.filled[:, 1:].all()
    grouper = GpuGrouper(
        EmulatedGpu(), matching_order=range(4), tag_threshold=1.0, max_people=50, adjust=True
    )
    found = grouper(on_device([wide]), maps_on_device(levels, tags, (48, 64)))
    assert_same(found, 0, expected)


# ---- settings and shapes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"matching_order": (0, 0)}, "matching_order must name every keypoint once"),
        ({"matching_order": range(129)}, "a GPU groups 1 to 128 keypoints, got 129"),
        ({"max_people": 257}, "max_people must be 1 to 256 on a GPU, got 257"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    right: dict[str, object] = {
        "matching_order": (0, 1),
        "tag_threshold": 1.0,
        "max_people": 30,
        "adjust": True,
    }
    with pytest.raises(ValueError, match=message):
        GpuGrouper(EmulatedGpu(), **{**right, **wrong})  # type: ignore[arg-type]


def test_peaks_and_maps_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(0)
    grouper = plain_grouper(EmulatedGpu(), 4)
    with pytest.raises(ValueError, match="names 4 keypoints, peaks have 3"):
        grouper(on_device([sparse_peaks(rng, 3, 1)]), None)
    levels, tags = random_maps(rng, ((12, 16), (24, 32)), 2, ties=True)
    with pytest.raises(ValueError, match="must be of the same batch"):
        grouper(on_device([sparse_peaks(rng, 4, 1)]), maps_on_device(levels, tags, (24, 32)))


def test_workspaces_are_bounded_and_used_again() -> None:
    rng = np.random.default_rng(0)
    grouper = plain_grouper(EmulatedGpu())
    for num_peaks in [*range(1, 13), 12]:
        peaks = random_peaks(rng, num_people=3, max_peaks=num_peaks, num_tags=1, jitter=0.1)
        found = grouper(on_device([peaks]), None)
        assert_same(found, 0, group_people(peaks, matching_order=range(17)))
    again = grouper(on_device([peaks]), None)
    assert again.rows is found.rows


# ---- sanitizers and planted bugs ---------------------------------------------------------------


@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_sanitizers_find_nothing(sanitize: Sanitizer) -> None:
    assert_clean(small_batch, sanitize=sanitize)
    assert_clean(many_people, sanitize=sanitize)


@pytest.mark.parametrize(
    ("right", "wrong", "sanitize", "complaint"),
    [
        ("__syncthreads();  // the problem is filled", "", "thread", "data race"),
        (
            "__syncwarp();  // every lane has read the keys; a vote orders no memory",
            "",
            "thread",
            "data race",
        ),
        (
            "for (int t = lane; t < peaks.num_numbers; t += 32)",
            "for (int t = lane; t < 4096; t += 32)",
            "address",
            "heap-buffer-overflow",
        ),
    ],
)
def test_planted_bugs_are_seen_by_sanitizers(
    right: str, wrong: str, sanitize: Sanitizer, complaint: str
) -> None:
    report = sanitizer_report(small_batch, sanitize=sanitize, replace=[(right, wrong)])
    assert complaint in report


@pytest.mark.parametrize(
    "planted",
    [
        [("__ballot_sync(ALL_LANES, bound > best)", "__ballot_sync(0x7fffffffu, bound > best)")],
        [("zeros.last_before(column)", "zeros.first_from(column)")],
        [  # of equal merits the last
            ("| (unsigned int)~position;", "| position;"),
            ("return ~(unsigned int)place;", "return (unsigned int)place;"),
        ],
    ],
    ids=["wrong mask", "other zero", "other pixel"],
)
def test_planted_bugs_show_in_results(planted: list[tuple[str, str]]) -> None:
    right = results(EmulatedGpu())
    assert not isinstance(right, str)
    assert results(EmulatedGpu(replace=planted)) != right


def results(gpu: Gpu) -> list[list[float]] | str:
    """Numbers of people and their records, or what the emulator says against the kernel."""
    try:
        refined = refined_people(gpu)
        tied = plain_grouper(gpu)(on_device(tied_images()), None)
    except RuntimeError as error:
        return str(error)
    return [
        [float(found.count[image]), *found.keypoints[image, : found.count[image]].ravel().tolist()]
        for found in (refined, tied)
        for image in range(len(found.count))
    ]
