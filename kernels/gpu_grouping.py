"""Peaks -> people on a GPU: the launches of grouping.cu and refine.cu, for a batch.

    GpuPeaks --group--> GpuPeople (found keypoints) --refine--> GpuPeople (missing ones filled)
                                                       ^
    GpuMaps --measure_tags--> ranges of tags ----------+

kernels.grouping is the CPU twin and defines the numbers. Arrays stay on the device, in a workspace
that is made once for each combination of shapes and written again by the next call. Nothing here
waits for the device, and no launch depends on what an earlier one found.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import Gpu, remember
from kernels.gpu_peaks import TILE_SIDE, GpuMaps, GpuPeaks

_GROUP_THREADS, _REFINE_THREADS = 256, 128
_PEOPLE_AT_A_TIME = 32
"""Blocks that share the people of one image and keypoint in refine; more people take turns."""
_LARGEST_SIDE = 256
"""Of the assignment problem, and in grouping.cu."""
_SMALL_SIDE = 32
"""Costs of a problem of this side or less live in shared memory."""
_LARGEST_SUM = 128
"""Keypoints at most: from there on NumPy adds in yet another order."""


class GpuPeople(NamedTuple):
    """The people of B images in device memory; kernels.grouping.People but for room to spare.

    All of it lies in rows, and the other fields are views of that. Only the first count[b] people
    of image b mean anything.
    """

    rows: Any
    """(1 + C, B, R) float32: row 0 holds count, row 1 + p the records of the p-th people; see
    people.cuh. C = K * M people at most."""
    count: Any
    """(B,) int32."""
    keypoints: Any
    """(B, C, K, 3) float32: x, y in network-input pixels, score."""
    scores: Any
    """(B, C) float32."""
    filled: Any
    """(B, C, K) uint8: 1 where refine filled a keypoint."""
    tags: Any
    """(B, C, T) float32."""


def people_in(rows: Any, num_keypoints: int, num_numbers: int) -> GpuPeople:
    """Names for the parts of rows (1 + C, B, R), an array of the device or of the host."""
    end = 3 * num_keypoints
    people = rows[1:].transpose(1, 0, 2)  # (B, C, R)
    as_bytes = rows.view(np.uint8)[1:].transpose(1, 0, 2)
    first_byte = 4 * (end + 1 + num_numbers)
    return GpuPeople(
        rows=rows,
        count=rows.view(np.int32)[0, :, 0],
        keypoints=people[:, :, :end].reshape(*people.shape[:2], num_keypoints, 3),
        scores=people[:, :, end],
        filled=as_bytes[:, :, first_byte : first_byte + num_keypoints],
        tags=people[:, :, end + 1 : end + 1 + num_numbers],
    )


def record_length(num_keypoints: int, num_numbers: int) -> int:
    """R, the floats of a person; record_length in people.cuh."""
    return 3 * num_keypoints + 1 + num_numbers + (num_keypoints + 3) // 4


class _Group(NamedTuple):
    """Work space of group for one combination of shapes, as grouping.cu lists it."""

    slots: Any  # (B, C, K) int32
    key: Any  # (B, C) float32
    history: Any  # (B, K, T, C) float32
    num_tags: Any  # (B, C) int32
    mean: Any  # (B, T, max_people) float32
    cost: Any  # (B, side, side) float64, one number where small
    people: GpuPeople


class _Refine(NamedTuple):
    """Work space of refine for one combination of shapes."""

    sizes: Any  # (10,) int32, as refine.cu lists them
    lowest: Any  # (B, K, T, I, J) float32
    highest: Any  # (B, K, T, I, J) float32


class GpuGrouper:
    """Groups the peaks of a batch into people on one device, on torch's current stream.

    Args:
        gpu: where to run.
        matching_order: every keypoint once, trunk first. This and what follows: as in
            kernels.grouping.group_people.
        tag_threshold: a peak joins a person whose mean tag is nearer than this.
        max_people: only the first so many people can win further peaks; at most 256.
        adjust: add each peak's offset to its place.

    Raises:
        ValueError: settings that grouping.cu cannot take.
    """

    def __init__(
        self,
        gpu: Gpu,
        *,
        matching_order: Sequence[int],
        tag_threshold: float,
        max_people: int,
        adjust: bool,
    ) -> None:
        if sorted(matching_order) != list(range(len(matching_order))):
            raise ValueError(
                f"matching_order must name every keypoint once, got {tuple(matching_order)}"
            )
        if not 1 <= len(matching_order) <= _LARGEST_SUM:
            raise ValueError(
                f"a GPU groups 1 to {_LARGEST_SUM} keypoints, got {len(matching_order)}"
            )
        if not 1 <= max_people <= _LARGEST_SIDE:
            raise ValueError(f"max_people must be 1 to {_LARGEST_SIDE} on a GPU, got {max_people}")
        self._gpu = gpu
        self._num_keypoints, self._max_people = len(matching_order), max_people
        self._tag_threshold, self._adjust = tag_threshold, adjust
        with gpu.stream():
            self._order = gpu.xp.asarray(np.array(matching_order, np.int32))
        self._groups: dict[object, _Group] = {}
        self._refines: dict[object, _Refine] = {}

    def __call__(
        self,
        peaks: GpuPeaks,
        refine_on: GpuMaps | None,
        refine_step: tuple[float, float] = (1.0, 1.0),
    ) -> GpuPeople:
        """Assign peaks to people by their tags, then fill what is missing from the maps.

        Args:
            peaks: of B images.
            refine_on: the maps to search for missing keypoints; None leaves them missing.
            refine_step: network-input pixels per pixel of refine_on's grid, (x, y).

        Raises:
            ValueError: peaks or maps that do not fit.
        """
        with self._gpu.stream():
            work = self._group_workspace(peaks)
            self._launch_group(peaks, work)
            if refine_on is not None:
                self._launch_refine(refine_on, refine_step, work)
        return work.people

    # ---- group ---------------------------------------------------------------------------------

    def _group_workspace(self, peaks: GpuPeaks) -> _Group:
        shape = peaks.tags.shape
        if shape not in self._groups:
            _, num_keypoints, num_peaks, _ = shape
            if num_keypoints != self._num_keypoints:
                raise ValueError(
                    f"matching_order names {self._num_keypoints} keypoints, peaks have "
                    f"{num_keypoints}; they must agree"
                )
            if num_peaks > _LARGEST_SIDE:
                raise ValueError(f"max_peaks must be at most {_LARGEST_SIDE}, got {num_peaks}")
            remember(self._groups, shape, self._new_group(shape))
        return self._groups[shape]

    def _new_group(self, shape: tuple[int, int, int, int]) -> _Group:
        num_images, num_keypoints, num_peaks, numbers = shape
        empty, capacity = self._gpu.xp.empty, num_keypoints * num_peaks
        side = max(num_peaks, self._max_people)
        large = (num_images, side, side)
        length = record_length(num_keypoints, numbers)
        return _Group(
            slots=empty((num_images, capacity, num_keypoints), np.int32),
            key=empty((num_images, capacity), np.float32),
            history=empty((num_images, num_keypoints, numbers, capacity), np.float32),
            num_tags=empty((num_images, capacity), np.int32),
            mean=empty((num_images, numbers, self._max_people), np.float32),
            cost=empty(large if side > _SMALL_SIDE else (1,), np.float64),
            people=people_in(
                empty((1 + capacity, num_images, length), np.float32), num_keypoints, numbers
            ),
        )

    def _launch_group(self, peaks: GpuPeaks, work: _Group) -> None:
        num_images, num_keypoints, num_peaks, numbers = peaks.tags.shape
        self._gpu.function("grouping.cu", "group")(
            (num_images,),
            (_GROUP_THREADS,),
            (
                peaks.xy,
                peaks.score,
                peaks.tags,
                peaks.offset,
                self._order,
                np.int32(num_keypoints),
                np.int32(num_peaks),
                np.int32(numbers),
                np.int32(self._max_people),
                np.float64(self._tag_threshold),
                np.int32(self._adjust),
                *work[:6],
                work.people.rows,
            ),
        )

    # ---- refine --------------------------------------------------------------------------------

    def _launch_refine(self, maps: GpuMaps, step: tuple[float, float], group: _Group) -> None:
        num_images, num_keypoints = maps.ceiling.shape[:2]
        tiles = maps.ceiling.shape[2] * maps.ceiling.shape[3]
        work = self._refine_workspace(maps, group)
        tables = maps.tables.heat, maps.tables.tag_inner, maps.tables.tag_outer
        self._gpu.function("refine.cu", "measure_tags")(
            (-(-tiles // _REFINE_THREADS), num_keypoints, num_images),
            (_REFINE_THREADS,),
            (maps.tags, *tables, *work),
        )
        self._gpu.function("refine.cu", "refine")(
            (_PEOPLE_AT_A_TIME, num_keypoints, num_images),
            (_REFINE_THREADS,),
            (
                maps.heat,
                maps.tags,
                maps.ceiling,
                work.lowest,
                work.highest,
                *tables,
                work.sizes,
                group.slots,
                np.int32(group.slots.shape[1]),
                np.float32(step[0]),
                np.float32(step[1]),
                group.people.rows,
            ),
        )

    def _refine_workspace(self, maps: GpuMaps, group: _Group) -> _Refine:
        key = maps.heat.shape, maps.tags.shape, maps.size
        if key not in self._refines:
            num_images, _, num_keypoints = group.slots.shape
            numbers = group.people.tags.shape[2]
            expected = (num_images, num_keypoints, numbers)
            got = (*maps.tags.shape[:2], maps.tags.shape[4])
            if got != expected:
                raise ValueError(
                    f"refine_on has (images, keypoints, tag numbers) {got}, peaks have {expected}; "
                    "they must be of the same batch"
                )
            remember(self._refines, key, self._new_refine(maps))
        return self._refines[key]

    def _new_refine(self, maps: GpuMaps) -> _Refine:
        xp, numbers = self._gpu.xp, maps.tags.shape[4]
        num_images, num_keypoints, *tiles = maps.ceiling.shape
        sizes = [*maps.heat.shape[2:], *maps.tags.shape[2:4], *maps.tables.between, *maps.size]
        ranges = (num_images, num_keypoints, numbers, *tiles)
        return _Refine(
            sizes=xp.asarray(np.array([*sizes, TILE_SIDE, numbers], np.int32)),
            lowest=xp.empty(ranges, np.float32),
            highest=xp.empty(ranges, np.float32),
        )
