"""Heatmap pyramids, tags -> people of a batch on a GPU: the GPU twin of kernels.decode.decode.

    levels, tags --enqueue--> GpuPeople on the device --people--> list of People on the host
                (launches only)                    (one copy; the only wait)

enqueue never waits for the device, so that the host can prepare the next batch meanwhile. What it
returns is overwritten by the next enqueue; work that is already on the stream is not, because
the stream keeps its order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.arrays import Gpu, pinned_like, to_host
from kernels.decode import DecodeSettings, Skeleton, hide, matching_order
from kernels.gpu_grouping import GpuGrouper, GpuPeople, people_in
from kernels.gpu_peaks import GpuPeakFinder
from kernels.people import People
from kernels.sampling import FloatArray

_FIRST_PEOPLE = 32
"""Copied with the counts; only a batch with more people in an image needs a second copy."""


class GpuDecoder:
    """Decodes batches on one device, on torch's current stream.

    Args:
        gpu: where to run.
        skeleton: the order of matching and the OKS constants.
        settings: as for kernels.decode.decode, whose people are the same.
        flip_order: the keypoint that takes each place when mirrored, if every batch holds each
            picture twice: B plain ones, then the same B mirrored. None: B plain ones.

    Raises:
        ValueError: settings that the kernels cannot take; they say their limits.
    """

    def __init__(
        self,
        gpu: Gpu,
        skeleton: Skeleton,
        settings: DecodeSettings,
        *,
        flip_order: Sequence[int] | None = None,
    ) -> None:
        self._gpu, self._skeleton, self._settings = gpu, skeleton, settings
        self._finder = peak_finder(gpu, settings, flip_order=flip_order)
        self._grouper = grouper(gpu, skeleton, settings)
        self._host: FloatArray | None = None

    def enqueue(self, levels: Sequence[Any], tags: Any, size: tuple[int, int]) -> GpuPeople:
        """Launch the decode of a batch; the host does not wait.

        Args:
            levels: (B or 2B, K, h, w) float32 or float16 device arrays, low to high resolution.
            tags: (B or 2B, K, a, b, T) float32 device array.
            size: (H, W) of the network input; people are in its pixels.

        Returns:
            People before hiding, until the next enqueue.

        Raises:
            ValueError: maps, size or skeleton that do not fit together.
        """
        maps = self._finder.average(levels, tags, size)
        peaks = self._finder.find(maps)
        if self._settings.refine == "off":
            return self._grouper(peaks, None)
        if self._settings.refine == "full":
            return self._grouper(peaks, maps)
        height, width = levels[0].shape[2:]
        lowest = self._finder.average(levels[:1], tags, (height, width))
        return self._grouper(peaks, lowest, (size[1] / width, size[0] / height))

    def people(self, found: GpuPeople) -> list[People]:
        """The people of every image of a batch, on the host, hidden as the settings say.

        This is where the host waits. The counts and the first people of all images come in one
        copy, into memory that is kept for the next batch.
        """
        num_keypoints, numbers = found.keypoints.shape[2], found.tags.shape[2]
        with self._gpu.stream():
            rows = self._first_rows(found.rows)
            most = int(people_in(rows, num_keypoints, numbers).count.max())
            if most > _FIRST_PEOPLE:
                rest = found.rows[len(rows) : 1 + most]
                rows = np.concatenate([rows, to_host(rest, np.empty(rest.shape, np.float32))])
        batch = people_in(rows, num_keypoints, numbers)
        return [
            hide(_people_of_image(batch, image), self._skeleton, self._settings)
            for image in range(len(batch.count))
        ]

    def _first_rows(self, rows: Any) -> FloatArray:
        first = rows[: 1 + _FIRST_PEOPLE]
        if self._host is None or self._host.shape != first.shape:
            self._host = pinned_like(first)
        return to_host(first, self._host)


def peak_finder(
    gpu: Gpu, settings: DecodeSettings, *, flip_order: Sequence[int] | None = None
) -> GpuPeakFinder:
    """The first half of a decode."""
    return GpuPeakFinder(
        gpu,
        max_peaks=settings.max_peaks,
        nms_kernel=settings.nms_kernel,
        min_score=settings.detection_threshold,
        at=settings.peaks_at,
        one_step=settings.one_step,
        flip_order=flip_order,
    )


def grouper(gpu: Gpu, skeleton: Skeleton, settings: DecodeSettings) -> GpuGrouper:
    """The second half of a decode."""
    return GpuGrouper(
        gpu,
        matching_order=matching_order(skeleton, settings),
        tag_threshold=settings.tag_threshold,
        max_people=settings.max_people,
        adjust=settings.adjust,
    )


def _people_of_image(batch: GpuPeople, image: int) -> People:
    """Copies, for the batch's memory is used again."""
    count = int(batch.count[image])
    return People(
        keypoints=batch.keypoints[image, :count].copy(),
        scores=batch.scores[image, :count].copy(),
        filled=batch.filled[image, :count] != 0,
        tags=batch.tags[image, :count].copy(),
    )
