"""Heatmap pyramid and tags -> peaks on a GPU: the launches of peaks.cu, for a batch.

    levels (B or 2B, K, ., .) --average--> GpuMaps --find--> GpuPeaks
    tags   (B or 2B, K, a, b, T) ------------^

kernels.averaging and kernels.peaks are the CPU twins and define the numbers. Arrays stay on the
device. They live in a workspace that is made once for each combination of shapes and written again
by the next call; what average and find return is valid until then. Nothing here waits for the
device.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Gpu, remember
from kernels.peaks import float32_at_most
from kernels.sampling import Axis, grid_between

Size = tuple[int, int]

TILE_SIDE = 8
"""Heat pixels along the side of a tile of GpuMaps.ceiling; CEILING_SIDE in peaks.cu."""

_BLOCK_TILE, _THREADS = 32, 256
_MAX_LEVELS, _MAX_RADIUS, _MAX_PEAKS = 4, 7, 256
"""Limits of peaks.cu."""
_MAX_MAPS = 65535
"""CUDA's limit on a grid's third side."""


class GpuTables(NamedTuple):
    """How maps are upsampled: device arrays (n,) uint32 in the layout that maps.cuh states."""

    heat: Any
    """From heat's size to the network input's."""
    tag_inner: Any
    """From the tags' own size to between."""
    tag_outer: Any
    """From between to the network input's size."""
    between: Size
    """Heat's size, or the network input's if the tags have that already."""


class GpuMaps(NamedTuple):
    """A batch's maps on their own grids, in device memory; MeanMaps of B images."""

    heat: Any
    """(B, K, h, w) float32: mean of all levels at the highest level's size. A single float32 level
    without flip is not copied: heat is the level."""
    tags: Any
    """(B, K, a, b, T) float32; with flip T counts the numbers of both passes."""
    tables: GpuTables
    ceiling: Any
    """(B, K, I, J) float32: no upsampled value nearest to a tile's pixel is higher."""
    size: Size
    """(H, W) of the network input."""


class GpuPeaks(NamedTuple):
    """kernels.peaks.Peaks of B images, in device memory."""

    xy: Any
    """(B, K, M, 2) float32."""
    score: Any
    """(B, K, M) float32; 0 in unused slots."""
    tags: Any
    """(B, K, M, T) float32."""
    offset: Any
    """(B, K, M, 2) float32."""


class _Average(NamedTuple):
    """What average needs for one combination of shapes."""

    level_sizes: Any  # (L, 2) int32
    level_tables: Any  # (n,) uint32: from every level to heat
    both_tags: Any | None  # (B, K, a, b, 2T) float32 with flip
    in_place: bool
    maps: GpuMaps  # heat and tags are replaced where the caller's own arrays are used


class _Find(NamedTuple):
    """What find needs for one combination of shapes."""

    searched: Size  # the grid on which peaks are searched
    radius: int
    tables: GpuTables  # to that grid
    keys: Any  # (B, K, I, J, M) uint64
    counts: Any  # (B, K, I, J) int32
    peaks: GpuPeaks


class GpuPeakFinder:
    """Averages pyramids and finds their peaks on one device, on torch's current stream.

    Args:
        gpu: where to run.
        max_peaks: M, at most 256. This and what follows: as in kernels.peaks.peaks_of_maps.
        nms_kernel: odd, at most 15.
        min_score: at least 0.
        at: full or half.
        one_step: upsample every level straight to the network input's size.
        flip_order: the keypoint that takes each place when mirrored, if every batch holds each
            picture twice: B plain ones, then the same B mirrored. None: B plain ones.

    Raises:
        ValueError: settings that peaks.cu cannot take.
    """

    def __init__(
        self,
        gpu: Gpu,
        *,
        max_peaks: int,
        nms_kernel: int,
        min_score: float,
        at: Literal["full", "half"],
        one_step: bool,
        flip_order: Sequence[int] | None = None,
    ) -> None:
        if not 1 <= max_peaks <= _MAX_PEAKS:
            raise ValueError(f"max_peaks must be 1 to {_MAX_PEAKS} on a GPU, got {max_peaks}")
        if nms_kernel % 2 == 0 or not 1 <= nms_kernel <= 2 * _MAX_RADIUS + 1:
            raise ValueError(
                f"nms_kernel must be odd, 1 to {2 * _MAX_RADIUS + 1} on a GPU, got {nms_kernel}"
            )
        if not min_score >= 0:
            raise ValueError(f"min_score must be at least 0, got {min_score}")
        if at not in ("full", "half"):
            raise ValueError(f"at must be full or half, got {at!r}")
        if flip_order is not None and sorted(flip_order) != list(range(len(flip_order))):
            raise ValueError(
                f"flip_order must name every keypoint once, got {tuple(flip_order)}; "
                "give Skeleton.flip_order"
            )
        self._gpu = gpu
        self._max_peaks, self._radius, self._at = max_peaks, nms_kernel // 2, at
        self._min_score = float32_at_most(min_score)
        self._one_step, self._flip_order = one_step, flip_order
        order = flip_order if flip_order is not None else (0,)
        with gpu.stream():
            self._device_order = gpu.xp.asarray(np.array(order, np.int32))
        self._averages: dict[object, _Average] = {}
        self._finds: dict[object, _Find] = {}

    def average(self, levels: Sequence[Any], tags: Any, size: Size) -> GpuMaps:
        """The mean of all levels, as kernels.averaging.average_levels makes it of each image.

        Args:
            levels: (B, K, h, w) each, all float32 or all float16, C-contiguous device arrays, low
                to high resolution; one to four. float16 is read as float32 before anything is
                added. With flip_order 2B images, as nets.aggregation.flip_test has them in one
                batch, and the result equals averaging what that returns.
            tags: (B or 2B, K, a, b, T) float32, C-contiguous.
            size: (H, W) of the network input.

        Raises:
            ValueError: arrays that do not fit, with what was expected.
        """
        size = (size[0], size[1])
        key = (*((array.shape, array.dtype) for array in (*levels, tags)), size)
        with self._gpu.stream():
            if key not in self._averages:
                _check_maps(levels, tags, size, self._flip_order)
                remember(self._averages, key, self._average_workspace(levels, tags, size))
            work = self._averages[key]
            for array in (*levels, tags):
                _check_contiguous(array)
            maps = work.maps
            if work.in_place:
                maps = maps._replace(heat=levels[0])
            if work.both_tags is None:
                maps = maps._replace(tags=tags)
            else:
                self._mirror_tags(tags, work.both_tags)
            self._launch_average(levels, work, maps)
        return maps

    def find(self, maps: GpuMaps) -> GpuPeaks:
        """The strongest peaks of every map, as kernels.peaks.peaks_of_maps finds them."""
        key = maps.heat.shape, maps.tags.shape, maps.size
        with self._gpu.stream():
            if key not in self._finds:
                remember(self._finds, key, self._find_workspace(maps))
            work = self._finds[key]
            self._launch_find(maps, work)
            self._launch_select(maps, work)
        return work.peaks

    # ---- average -------------------------------------------------------------------------------

    def _average_workspace(self, levels: Sequence[Any], tags: Any, size: Size) -> _Average:
        xp = self._gpu.xp
        level_sizes = [_size_of(level) for level in levels]
        mean_size = size if self._one_step and len(levels) > 1 else level_sizes[-1]
        passes = 1 if self._flip_order is None else 2
        num_images, num_keypoints = len(levels[0]) // passes, levels[0].shape[1]
        in_place = len(levels) == 1 and passes == 1 and levels[0].dtype == np.float32
        both_tags = None
        if passes == 2:
            shape = (num_images, *tags.shape[1:4], 2 * tags.shape[4])
            both_tags = xp.empty(shape, np.float32)
        tiles = [-(-length // TILE_SIDE) for length in mean_size]
        tables = [grid_table(level_size, mean_size) for level_size in level_sizes]
        return _Average(
            level_sizes=xp.asarray(np.array(level_sizes, np.int32)),
            level_tables=xp.asarray(np.concatenate(tables)),
            both_tags=both_tags,
            in_place=in_place,
            maps=GpuMaps(
                heat=None
                if in_place
                else xp.empty((num_images, num_keypoints, *mean_size), np.float32),
                tags=both_tags,
                tables=self._tables(_size_of(tags), mean_size, size),
                ceiling=xp.empty((num_images, num_keypoints, *tiles), np.float32),
                size=size,
            ),
        )

    def _tables(self, tag_size: Size, heat_size: Size, size: Size) -> GpuTables:
        between = size if tag_size == size else heat_size
        asarray = self._gpu.xp.asarray
        return GpuTables(
            heat=asarray(grid_table(heat_size, size)),
            tag_inner=asarray(grid_table(tag_size, between)),
            tag_outer=asarray(grid_table(between, size)),
            between=between,
        )

    def _mirror_tags(self, tags: Any, both_tags: Any) -> None:
        num_images, num_keypoints, height, width, numbers = both_tags.shape
        self._gpu.function("peaks.cu", "mirror_tags")(
            (-(-both_tags.size // _THREADS),),
            (_THREADS,),
            (
                tags,
                self._device_order,
                *_ints(num_images, num_keypoints, height, width, numbers // 2),
                both_tags,
            ),
        )

    def _launch_average(self, levels: Sequence[Any], work: _Average, maps: GpuMaps) -> None:
        num_images, num_keypoints, height, width = maps.heat.shape
        half = levels[0].dtype == np.float16
        name = "average_levels_half" if half else "average_levels_float"
        unused = [levels[0]] * (_MAX_LEVELS - len(levels))
        self._gpu.function("peaks.cu", name)(
            _grid_of(height, width, num_images * num_keypoints),
            (_THREADS,),
            (
                *levels,
                *unused,
                np.int32(len(levels)),
                work.level_sizes,
                work.level_tables,
                self._device_order,
                *_ints(self._flip_order is not None, num_images, num_keypoints, height, width),
                np.int32(not work.in_place),
                maps.heat,
                maps.ceiling,
            ),
        )

    # ---- find ----------------------------------------------------------------------------------

    def _find_workspace(self, maps: GpuMaps) -> _Find:
        xp, m = self._gpu.xp, self._max_peaks
        num_images, num_keypoints = maps.heat.shape[:2]
        own_size, numbers = _size_of(maps.heat), maps.tags.shape[4]
        if self._at == "full":
            searched, radius, tables = maps.size, self._radius, maps.tables
        else:  # a window half as wide, as in kernels.peaks.peaks_of_maps
            searched = own_size
            radius = min(self._radius, max(1, self._radius * own_size[0] // maps.size[0]))
            tables = self._tables(_size_of(maps.tags), own_size, own_size)
        columns, rows, _ = _grid_of(*searched, 1)
        slots = (num_images, num_keypoints, m)
        return _Find(
            searched=searched,
            radius=radius,
            tables=tables,
            keys=xp.empty((num_images, num_keypoints, rows, columns, m), np.uint64),
            counts=xp.empty((num_images, num_keypoints, rows, columns), np.int32),
            peaks=GpuPeaks(
                xy=xp.empty((*slots, 2), np.float32),
                score=xp.empty(slots, np.float32),
                tags=xp.empty((*slots, numbers), np.float32),
                offset=xp.empty((*slots, 2), np.float32),
            ),
        )

    def _launch_find(self, maps: GpuMaps, work: _Find) -> None:
        num_images, num_keypoints, *own_size = maps.heat.shape
        self._gpu.function("peaks.cu", "find_in_tiles")(
            _grid_of(*work.searched, num_images * num_keypoints),
            (_BLOCK_TILE, _THREADS // _BLOCK_TILE),
            (
                maps.heat,
                maps.ceiling,
                work.tables.heat,
                *_ints(*own_size, *work.searched, work.radius),
                self._min_score,
                np.int32(self._max_peaks),
                work.keys,
                work.counts,
            ),
        )

    def _launch_select(self, maps: GpuMaps, work: _Find) -> None:
        num_images, num_keypoints, height, width = maps.heat.shape
        num_tiles = work.counts.shape[2] * work.counts.shape[3]
        self._gpu.function("peaks.cu", "select_peaks")(
            (num_images * num_keypoints,),
            (_THREADS,),
            (
                work.keys,
                work.counts,
                *_ints(num_tiles, self._max_peaks),
                maps.heat,
                work.tables.heat,
                *_ints(height, width, *work.searched),
                maps.tags,
                work.tables.tag_inner,
                work.tables.tag_outer,
                *_ints(*_size_of(maps.tags), *work.tables.between, maps.tags.shape[4]),
                np.int32(self._at == "half"),
                np.float32(maps.size[1] / width),
                np.float32(maps.size[0] / height),
                *work.peaks,
            ),
        )


def grid_table(size_in: Size, size_out: Size) -> NDArray[np.uint32]:
    """The table of kernels.sampling.grid_between in the layout that maps.cuh states."""
    grid = grid_between(size_in, size_out)
    return np.concatenate([*_axis_parts(grid.rows), *_axis_parts(grid.columns)])


def _axis_parts(axis: Axis) -> list[NDArray[np.uint32]]:
    nearest_from = axis.nearest_from.astype(np.uint32)
    return [axis.first, axis.second, axis.weight.view(np.uint32), nearest_from]


def _size_of(array: Any) -> Size:
    return array.shape[2], array.shape[3]


def _grid_of(height: int, width: int, maps: int) -> tuple[int, int, int]:
    """Blocks along x, along y, and maps."""
    return -(-width // _BLOCK_TILE), -(-height // _BLOCK_TILE), maps


def _ints(*numbers: int) -> list[np.int32]:
    return [np.int32(number) for number in numbers]


def _check_contiguous(array: Any) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(
            f"maps must be C-contiguous, got shape {array.shape} with strides {array.strides}; "
            "call contiguous()"
        )


def _check_maps(
    levels: Sequence[Any], tags: Any, size: Size, flip_order: Sequence[int] | None
) -> None:
    if not 1 <= len(levels) <= _MAX_LEVELS:
        raise ValueError(f"levels must be 1 to {_MAX_LEVELS} on a GPU, got {len(levels)}")
    kind = levels[0].dtype
    for level in levels:
        if level.ndim != 4 or level.dtype != kind or kind not in (np.float32, np.float16):
            raise ValueError(
                "levels must be (B, K, h, w), all float32 or all float16, "
                f"got {_described(level)} beside {kind}"
            )
        if not (0 < level.shape[2] <= size[0] and 0 < level.shape[3] <= size[1]):
            raise ValueError(
                f"a level of shape {level.shape} does not fit size (H, W) = {size}; "
                "heatmaps are at most as large as the network input"
            )
    if tags.ndim != 5 or tags.dtype != np.float32 or tags.shape[4] < 1:
        raise ValueError(f"tags must be (B, K, a, b, T) float32, got {_described(tags)}")
    maps = levels[0].shape[:2]
    if any(array.shape[:2] != maps for array in (*levels, tags)):
        shapes = [array.shape for array in (*levels, tags)]
        raise ValueError(f"levels and tags must agree in images and keypoints, got {shapes}")
    if flip_order is not None and (maps[0] % 2 or maps[1] != len(flip_order)):
        raise ValueError(
            f"with flip_order of {len(flip_order)} keypoints a batch holds B plain images and the "
            f"same B mirrored, got {maps[0]} images of {maps[1]} keypoints"
        )
    if not 0 < maps[0] * maps[1] <= _MAX_MAPS:
        raise ValueError(f"a batch must hold 1 to {_MAX_MAPS} maps, got {maps[0] * maps[1]}")


def _described(array: Any) -> str:
    return f"shape {array.shape} of {array.dtype}"
