"""Frames -> network input: which size, which map, and one kernel call for each picture.

On a GPU it is one launch for each batch (stream_slots.py).

Frames of one network size travel as one batch. Geometry is that of the upright picture: a turned
frame is resized as its planes lie, and the small result is turned, which costs less than turning
planes and keeps chroma where it was. Pixels that are not square become square in the same pass:
the network sees bodies as they are. Pixels are the business of kernels.preprocess; this file knows
nothing of networks but their input's size and normalisation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kernels.geometry import capped_size, invert, net_from_image, network_size
from kernels.gpu_preprocess import GpuPicture
from kernels.preprocess import preprocess
from pipeline.messages import Frame, NetInput, shown_size

if TYPE_CHECKING:
    from pipeline.gpu.stream_slots import Gpus

logger = logging.getLogger(__name__)

_GEOMETRIES_KEPT = 64
"""GpuPicture sizes whose geometry is remembered; a folder of photographs may bring any number."""


class Geometry(NamedTuple):
    """How pictures of one size and rotation become network input."""

    net_size: tuple[int, int]
    """(H, W)."""
    image_from_net: np.ndarray
    """(2, 3) float64, to the upright picture."""
    tile_size: tuple[int, int]
    """(H, W) before turning: of the network input as the planes lie."""
    tile_from_planes: np.ndarray
    """(2, 3) float64, from plane pixels to pixels of that tile."""


class Crop(NamedTuple):
    """The part of a frame that the network sees."""

    box: tuple[int, int, int, int]
    """(left, top, right, bottom) of the planes as they lie, in pixels of the first plane; left and
    top are even, so that chroma planes of half the size have the same corner."""
    offset: tuple[int, int]
    """(x, y) of its corner in the upright picture."""
    size: tuple[int, int]
    """(height, width), upright."""


class Preprocess:
    """Makes the network input of a batch of frames."""

    def __init__(
        self,
        *,
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        size_multiple: int = 64,
        canvas: tuple[int, int] | None = None,
        prefilter: bool = True,
        max_long_side: int = 2048,
        scale: float = 1.0,
        min_scale: float = 1.0,
        gpus: Gpus | None = None,
    ) -> None:
        """Take the settings of the network and of the stream.

        Args:
            input_size: short side of the network input; the long side follows the picture.
            mean, std: (3,) of RGB / 255, as the network was trained.
            size_multiple: both sides are multiples of it.
            canvas: (H, W) of every network input, pictures letterboxed; input_size is then unused.
            prefilter: widen the resize filter where a picture shrinks below one half.
            max_long_side: a picture so elongated that its network input would be longer is
                shrunk until it fits (and a warning says so), so that it cannot stop a stream.
            scale, min_scale: of a multi-scale test, as kernels.preprocess.network_size takes them.
            GPUs: where pictures become network input; None: on the CPU.
        """
        self._input_size = input_size
        self._size_multiple = size_multiple
        self._canvas = canvas
        self._max_long_side = max_long_side
        self._scale, self._min_scale = scale, min_scale
        self._mean, self._std = tuple(mean), tuple(std)
        self._prefilter = prefilter
        self._gpus = gpus
        self._geometry = lru_cache(maxsize=_GEOMETRIES_KEPT)(self._find_geometry)

    def set_input_size(self, input_size: int) -> None:
        """From the next batch on: another short side; between two batches, in their thread."""
        self._input_size = input_size
        self._geometry.cache_clear()

    def __call__(self, frames: Sequence[Frame]) -> Iterator[NetInput]:
        """NetInputs of one network size and GPU each, in the order in which these first appear.

        They hold 8, 4, 2 or 1 frames: an engine compiles for each shape that it meets.
        """
        groups: dict[tuple[tuple[int, int], int], list[Frame]] = {}
        for frame in frames:
            geometry = self._geometry_of(frame, crop_of(frame))
            gpu = 0 if self._gpus is None else self._gpus.gpu_of(frame.source, frame.device)
            groups.setdefault((geometry.net_size, gpu), []).append(frame)
        for (net_size, gpu), group in groups.items():
            for part in in_powers_of_two(group):
                if self._gpus is None:
                    yield self._batch(net_size, tuple(part))
                else:
                    yield self._batch_on_gpu(net_size, tuple(part), self._gpus, gpu)

    def _batch(self, net_size: tuple[int, int], frames: tuple[Frame, ...]) -> NetInput:
        started = time.perf_counter()
        # Fresh for each batch: inference may still read the one before.
        images = np.empty((len(frames), 3, *net_size), np.float32)
        for frame, image in zip(frames, images, strict=True):
            self._fill(image, frame)
        return NetInput(
            frames=frames,
            images=images,
            image_from_net=np.stack([self._image_from_net(frame) for frame in frames]),
            stage_ms={"preprocess": (time.perf_counter() - started) * 1e3},
        )

    def _batch_on_gpu(
        self, net_size: tuple[int, int], frames: tuple[Frame, ...], gpus: Gpus, gpu: int
    ) -> NetInput:
        """Everything is queued on a stream slot of the GPU; only the slot is waited for."""
        held_slot = gpus.take(gpu)
        started = time.perf_counter()
        images = held_slot.stream_slot.images([self._picture(frame) for frame in frames], net_size)
        return NetInput(
            frames=frames,
            images=images,
            image_from_net=np.stack([self._image_from_net(frame) for frame in frames]),
            gpu=gpu,
            held_slot=held_slot,
            stage_ms={"preprocess": (time.perf_counter() - started) * 1e3},
        )

    def _picture(self, frame: Frame) -> GpuPicture:
        """What a GPU needs to know of a frame."""
        crop = _checked_crop(frame)
        geometry = self._geometry_of(frame, crop)
        return GpuPicture(
            planes=cropped(frame.planes, crop.box),
            pixel_format=frame.pixel_format,
            color_space=frame.color_space,
            full_range=frame.full_range,
            net_from_image=geometry.tile_from_planes,
            rotation=frame.rotation,
        )

    def _image_from_net(self, frame: Frame) -> np.ndarray:
        """(2, 3), to the whole upright picture, whatever part of it the network sees."""
        crop = crop_of(frame)
        matrix = self._geometry_of(frame, crop).image_from_net.copy()
        matrix[:, 2] += crop.offset
        return matrix

    def _fill(self, image: np.ndarray, frame: Frame) -> None:
        """Write one frame's network input (3, H, W) into its place in the batch."""
        crop = _checked_crop(frame)
        geometry = self._geometry_of(frame, crop)
        tile = preprocess(
            cropped(frame.planes, crop.box),
            pixel_format=frame.pixel_format,
            color_space=frame.color_space,
            full_range=frame.full_range,
            net_from_image=geometry.tile_from_planes,
            net_size=geometry.tile_size,
            mean=self._mean,
            std=self._std,
            prefilter=self._prefilter,
            out=None if frame.rotation else image,
        )
        if frame.rotation:
            image[:] = np.rot90(tile, k=-frame.rotation // 90, axes=(1, 2))

    def _geometry_of(self, frame: Frame, crop: Crop) -> Geometry:
        geometry: Geometry = self._geometry(crop.size, frame.rotation, frame.pixel_aspect)
        return geometry

    def _find_geometry(self, size: tuple[int, int], rotation: int, pixel_aspect: float) -> Geometry:
        shown = shown_size(size, pixel_aspect)
        net_size, letterbox = self._net_size(shown)
        matrix = net_from_image(shown, net_size, letterbox=letterbox)
        matrix = _of_stored_pixels(matrix, shown=shown, size=size)
        turned = rotation in (90, 270)
        return Geometry(
            net_size=net_size,
            image_from_net=invert(matrix),
            tile_size=net_size[::-1] if turned else net_size,
            tile_from_planes=lying_map(matrix, size=size, net_size=net_size, rotation=rotation),
        )

    def _net_size(self, size: tuple[int, int]) -> tuple[tuple[int, int], bool]:
        """(H, W), and whether the picture is letterboxed into it."""
        if self._canvas is not None:
            return self._canvas, True
        try:
            net_size = network_size(
                size,
                input_size=self._input_size,
                size_multiple=self._size_multiple,
                scale=self._scale,
                min_scale=self._min_scale,
                max_long_side=self._max_long_side,
            )
        except ValueError as reason:
            capped = capped_size(
                size, max_long_side=self._max_long_side, size_multiple=self._size_multiple
            )
            logger.warning("%s; until then it shrinks to fit %dx%d", reason, capped[1], capped[0])
            return capped, True
        return net_size, False


def _of_stored_pixels(
    net_from_shown: np.ndarray, *, shown: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """(2, 3), from pixels of the stored picture instead of those of the picture as it is shown."""
    x, y = shown[1] / size[1], shown[0] / size[0]  # pixel edges stay edges
    shown_from_stored = np.array([[x, 0.0, (x - 1.0) / 2], [0.0, y, (y - 1.0) / 2]])
    matrix = net_from_shown[:, :2] @ shown_from_stored
    matrix[:, 2] += net_from_shown[:, 2]
    return np.asarray(matrix)


def _checked_crop(frame: Frame) -> Crop:
    """crop_of, of a frame that carries the pixels it says."""
    if not frame.has_pixels:
        raise ValueError(f"{frame!r} carries no pixels; preprocess must run where they are")
    lying = frame.planes[0].shape[:2]
    upright = lying[::-1] if frame.rotation in (90, 270) else lying
    if upright != frame.size:
        raise ValueError(
            f"{frame!r} says size {frame.size}, but its planes turned by {frame.rotation} "
            f"degrees are {upright}"
        )
    return crop_of(frame)


def in_powers_of_two(frames: Sequence[Frame]) -> Iterator[Sequence[Frame]]:
    """In parts of 8, 4, 2 and 1, longer ones first: 7 frames are 4, 2 and 1."""
    start = 0
    while start < len(frames):
        length = 1 << ((len(frames) - start).bit_length() - 1)
        yield frames[start : start + length]
        start += length


def crop_of(frame: Frame) -> Crop:
    """The frame's region of interest as its planes lie, grown to even corners; by default all."""
    height, width = frame.size
    x, y, w, h = frame.roi or (0, 0, width, height)
    right, bottom = width - x - w, height - y - h  # what is left beside and below the region
    # Turning it upright clockwise makes the planes' left edge the picture's top, and so on.
    margins = {
        0: (x, y, right, bottom),
        90: (y, right, bottom, x),
        180: (right, bottom, x, y),
        270: (bottom, x, y, right),
    }[frame.rotation]
    left, top = margins[0] // 2 * 2, margins[1] // 2 * 2
    lying_height, lying_width = (height, width) if frame.rotation in (0, 180) else (width, height)
    box = (left, top, lying_width - margins[2], lying_height - margins[3])
    grown_x, grown_y = margins[0] - left, margins[1] - top
    offset = {
        0: (x - grown_x, y - grown_y),
        90: (x, y - grown_x),
        180: (x, y),
        270: (x - grown_y, y),
    }[frame.rotation]
    size = (box[3] - box[1], box[2] - box[0])
    return Crop(box, offset, size if frame.rotation in (0, 180) else size[::-1])


def cropped(planes: Sequence[np.ndarray], box: tuple[int, int, int, int]) -> tuple[np.ndarray, ...]:
    """Views of that part of each plane; a chroma plane has half the pixels of the first one."""
    left, top, right, bottom = box
    luma, *chroma = planes
    halves = [plane[top // 2 : (bottom + 1) // 2, left // 2 : (right + 1) // 2] for plane in chroma]
    return (luma[top:bottom, left:right], *halves)


def lying_map(
    net_from_image: np.ndarray, *, size: tuple[int, int], net_size: tuple[int, int], rotation: int
) -> np.ndarray:
    """The map of the planes as they lie onto a tile that, turned upright, is the network input.

    Turning both sides of a map that scales and shifts leaves a map that scales and shifts: axes
    swap, and an axis that turns round counts its shift from the other end.

    Args:
        net_from_image: (2, 3) of the upright picture; size (h, w) and net_size (H, W) likewise.
        rotation: clockwise degrees that turn the planes upright: 0, 90, 180 or 270.
    Returns:
        (2, 3) float64, from plane pixels to pixels of the tile.
    """
    (factor_x, _, shift_x), (_, factor_y, shift_y) = net_from_image
    far_x = net_size[1] - 1 - shift_x - factor_x * (size[1] - 1)
    far_y = net_size[0] - 1 - shift_y - factor_y * (size[0] - 1)
    shifts = {
        0: (shift_x, shift_y),
        90: (shift_y, far_x),
        180: (far_x, far_y),
        270: (far_y, shift_x),
    }[rotation]
    if rotation in (90, 270):
        factor_x, factor_y = factor_y, factor_x
    return np.array([[factor_x, 0.0, shifts[0]], [0.0, factor_y, shifts[1]]])
