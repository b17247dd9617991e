"""Cases of the grouping on a GPU that also run under sanitizers.

Apart from the tests and free of their imports, for each sanitizer run is a process of its own, in
which every import is slow.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Gpu
from kernels.gpu_grouping import GpuGrouper, GpuPeople
from kernels.gpu_peaks import GpuMaps, GpuPeakFinder, GpuPeaks
from kernels.peaks import Peaks
from tests.support.cuda_on_cpu.emulator import EmulatedGpu

FloatArray = NDArray[np.float32]
Size = tuple[int, int]


def on_device(images: Sequence[Peaks]) -> GpuPeaks:
    return GpuPeaks(*(np.stack(arrays) for arrays in zip(*images, strict=True)))


def maps_on_device(levels: Sequence[FloatArray], tags: FloatArray, size: Size) -> GpuMaps:
    """Of a batch of one image."""
    finder = GpuPeakFinder(
        EmulatedGpu(), max_peaks=1, nms_kernel=5, min_score=0.1, at="full", one_step=False
    )
    return finder.average([level[None] for level in levels], tags[None], size)


def plain_grouper(gpu: Gpu, num_keypoints: int = 17) -> GpuGrouper:
    return GpuGrouper(
        gpu, matching_order=range(num_keypoints), tag_threshold=1.0, max_people=30, adjust=True
    )


def random_maps(
    rng: np.random.Generator, sizes: Sequence[Size], num_tags: int, *, ties: bool
) -> tuple[list[FloatArray], FloatArray]:
    """Levels and tags of 4 keypoints; with ties, equal merits abound and some maps are <= 0."""
    if not ties:
        levels = [rng.normal(0, 1, (4, *size)).astype(np.float32) for size in sizes]
        return levels, rng.normal(0, 2, (4, *sizes[0], num_tags)).astype(np.float32)
    top = rng.integers(-3, 3, (4, 1, 1))
    levels = [
        (np.minimum(rng.integers(-3, 3, (4, *size)), top) / 256).astype(np.float32)
        for size in sizes
    ]
    tags = rng.integers(-8, 8, (4, *sizes[0], num_tags)) * rng.choice([1 / 256, 0.5, 1.0])
    return levels, tags.astype(np.float32)


def few_peaks(rng: np.random.Generator, *, num_keypoints: int, num_tags: int) -> Peaks:
    """Up to five for each keypoint, with tags in steps of 0.4 that are often equal."""
    score = np.zeros((num_keypoints, 5), np.float32)
    for k in range(num_keypoints):
        count = rng.integers(0, 6)
        score[k, :count] = -np.sort(-rng.uniform(0.1, 1, count))
    tags = (rng.integers(0, 10, (num_keypoints, 5, num_tags)) * 0.4).astype(np.float32)
    xy = rng.integers(0, 40, (num_keypoints, 5, 2)).astype(np.float32)
    return Peaks(xy, score, tags, np.full_like(xy, 0.25))


def refined_people(gpu: Gpu) -> GpuPeople:
    """Everything on small maps; the peaks are grouped on gpu, the maps averaged elsewhere."""
    rng = np.random.default_rng(7)
    peaks = few_peaks(rng, num_keypoints=4, num_tags=2)
    levels, tags = random_maps(rng, ((10, 12), (20, 24)), 2, ties=True)
    levels[1][3] = levels[0][3] = 0.25  # every pixel ties with every other
    tags[3] = 0.5
    return plain_grouper(gpu, 4)(on_device([peaks]), maps_on_device(levels, tags, (40, 48)))


def small_batch(gpu: EmulatedGpu) -> None:
    refined_people(gpu)


def many_people(gpu: EmulatedGpu) -> None:
    """A problem whose costs lie in global memory, and people of equal keys."""
    rng = np.random.default_rng(8)
    peaks = few_peaks(rng, num_keypoints=17, num_tags=1)
    GpuGrouper(gpu, matching_order=range(17), tag_threshold=1.0, max_people=34, adjust=True)(
        on_device([peaks]), None
    )
