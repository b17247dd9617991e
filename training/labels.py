"""What is labelled in an image, and which of its pixels must not count.

training.annotations --> LabelledImage --supervised_pixels, taught_pixels--> masks
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class Box(NamedTuple):
    """Pixels of a box."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """Pixels inside any of the rings."""

    rings: tuple[FloatArray, ...]
    """(N, 2) x, y each."""


@dataclass(frozen=True, slots=True, eq=False)
class Rle:
    """Pixels as COCO's run lengths say."""

    size: tuple[int, int]
    """(h, w)"""
    counts: bytes
    """COCO's compressed text: runs outside, inside, outside, ... down the columns from the left."""


LabelRegion = Box | Polygons | Rle


@dataclass(frozen=True, slots=True, eq=False)
class TaughtPeople:
    """The people of one image as another model sees them."""

    keypoints: FloatArray
    """(Q, K, 3) x, y, score in 0..1."""
    areas: FloatArray
    """(Q,) square pixels"""
    ignore: tuple[LabelRegion, ...]
    """People and crowds of whom it says nothing."""
    share: float
    """Of the heatmaps, where labels are not masked."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """Everything that is known of one image but its pixels; coordinates are in its pixels."""

    image_id: int
    file_name: str
    size: tuple[int, int]
    """(h, w) as the labels say."""
    keypoints: FloatArray
    """(P, K, 3) x, y, v. v > 0: labelled; 0: there is nothing to learn; -1: somewhere, unknown."""
    boxes: FloatArray
    """(P, 4) x, y, w, h"""
    areas: FloatArray
    """(P,) square pixels"""
    ignore: tuple[LabelRegion, ...]
    """Pixels without supervision: crowds, people without keypoints."""
    only: tuple[float, float, float, float] | None
    """x, y, w, h: nothing outside is supervised, because other people there have no labels."""
    taught: TaughtPeople | None = None
    """None: its set has no teacher's keypoints."""


def supervised_pixels(image: LabelledImage) -> NDArray[np.uint8]:
    """(h, w) uint8: 255 where the labels are complete, 0 in ignored regions and outside `only`."""
    return _pixels_without(image, image.ignore)


def taught_pixels(image: LabelledImage) -> NDArray[np.uint8]:
    """(h, w) uint8: 255 where the teacher's keypoints are complete; 0 everywhere without them."""
    if image.taught is None:
        return np.zeros(image.size, np.uint8)
    return _pixels_without(image, image.taught.ignore)


def _pixels_without(image: LabelledImage, ignore: Sequence[LabelRegion]) -> NDArray[np.uint8]:
    """(h, w) uint8: 0 in the regions and outside `only`, else 255."""
    mask = np.full(image.size, 255, np.uint8)
    if image.only is not None:
        mask[:] = 0
        _fill_box(mask, Box(*image.only), 255)
    for region in ignore:
        if isinstance(region, Box):
            _fill_box(mask, region, 0)
        elif isinstance(region, Polygons):
            for ring in region.rings:  # one by one: together, what two of them cover stays out
                cv2.fillPoly(mask, [np.rint(ring).astype(np.int32)], 0)
        else:
            mask[decode_rle(region)] = 0
    return mask


def _fill_box(mask: NDArray[np.uint8], box: Box, value: int) -> None:
    left, top = max(round(box.x), 0), max(round(box.y), 0)
    right, bottom = max(round(box.x + box.width), 0), max(round(box.y + box.height), 0)
    mask[top:bottom, left:right] = value


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """(h, w) bool, True inside.

    Raises:
        ValueError: the run lengths do not cover the size.
    """
    from faster_coco_eval import mask

    height, width = rle.size
    pixels = mask.decode({"size": [height, width], "counts": rle.counts})
    return np.asarray(pixels, np.bool_)
