"""Labelled images and their pictures -> one Example, moved and coloured at random.

    one image:    picture --published_matrix--> crop of size x size, flipped or not
    a mosaic:     four pictures, each in its own tile     +-----+---+
                                                          |  0  | 1 |
                                                          +-----+---+   keypoints and masks stay
                                                          |  2  | 3 |   inside their tile
                                                          +-----+---+

One matrix serves all: a level's is that of the crop times level size / crop size, as published.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from training.config import AugmentConfig
from training.image_store import Picture
from training.labels import LabelledImage, TaughtPeople, supervised_pixels, taught_pixels

FloatArray = NDArray[np.float32]
Matrix = NDArray[np.float64]
"""(2, 3)"""
Mask = NDArray[np.uint8]

_SCALE_UNIT_PX = 200.0
"""The published code counts scales in units of 200 source pixels."""
_MASK_LEVEL = 127
"""A warped mask pixel is supervised above one half of 255."""
_UNKNOWN_GROWTH = 0.2
"""An unknown keypoint lies in its person's box, each edge moved out by this share of the longer
side: beyond it the background is trusted, so the rest of the picture still teaches."""
_PERSON_SHARE = (0.2, 0.9)
"""Longer side of the person that an example is centred on, as a share of the crop's or tile's."""
_MAX_ZOOM = 3.0
"""Crop pixels a source pixel at most, where a person is zoomed in on: beyond, nothing is sharp."""
_TILE_CENTER = (0.35, 0.65)
"""Where the four tiles of a mosaic meet, as a share of its side."""


@dataclass(frozen=True, slots=True, eq=False)
class TaughtExample:
    """What another model says of an example; see training.labels.TaughtPeople."""

    keypoints: tuple[FloatArray, ...]
    """One (Q, K, 3) a level: x, y in that level's pixels, score; 0 outside of a mosaic's tile."""
    areas: FloatArray
    """(Q,) square pixels of the network input."""
    shares: tuple[FloatArray, ...]
    """One (1, h, w) a level: the teacher's share of the heatmaps, 0 where it says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """What one network input shows and what is known of it, S = settings.size."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    keypoints: tuple[FloatArray, ...]
    """One (P, K, 3) a level: x, y in that level's pixels, v as LabelledImage has it. Those out of
    the crop are still there; those out of a mosaic's tile have v = 0."""
    masks: tuple[Mask, ...]
    """One (1, h, w) or, where keypoints are unknown, (K, h, w) a level: 1 is supervised."""
    areas: FloatArray
    """(P,) square pixels of the network input."""
    taught: TaughtExample | None
    """None: no image of it has a teacher's keypoints."""


class _Tile(NamedTuple):
    """The part of the crop that one picture fills, in crop pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def at(self, level_size: int, crop_size: int) -> "_Tile":
        """The same part of a level; tiles begin and end at whole pixels of every level."""
        return _Tile(*(edge * level_size // crop_size for edge in self))


def make_example(
    parts: Sequence[tuple[LabelledImage, Picture]],
    *,
    settings: AugmentConfig,
    level_sizes: Sequence[int],
    flip_order: Sequence[int],
    rng: np.random.Generator,
) -> Example:
    """Augment one image as published (HigherHRNet sec. 4.1), or make a mosaic of four.

    Args:
        parts: one or four images, each with its picture (h, w, 3) uint8 BGR.
        level_sizes: side of every heatmap level in pixels; they divide settings.size.
        flip_order: keypoint that takes each place when mirrored (Skeleton.flip_order).
        rng: everything random comes from it.
    """
    size = settings.size
    if len(parts) not in (1, 4) or any(size % level for level in level_sizes):
        raise ValueError(
            f"an example is made of 1 or 4 images with levels that divide {size}, got "
            f"{len(parts)} images and levels {tuple(level_sizes)}"
        )
    if len(parts) == 1:
        tiles = [_Tile(0, 0, size, size)]
        matrices = [_crop_matrix(parts[0][0], settings, rng)]
    else:
        tiles = _mosaic_tiles(size, size // min(level_sizes), rng)
        matrices = [
            _tile_matrix(image, tile, settings, rng)
            for (image, _), tile in zip(parts, tiles, strict=True)
        ]
    placed = [
        _Placed(image, matrix, tile, size)
        for (image, _), matrix, tile in zip(parts, matrices, tiles, strict=True)
    ]
    picture = np.zeros((size, size, 3), np.uint8)
    for (_, source), part in zip(parts, placed, strict=True):
        _view(picture, part.tile)[:] = _warp(source, part.matrix, part.tile)
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    if settings.color:
        picture = _recolored(picture, settings.color, rng)
    example = Example(
        picture,
        tuple(_keypoints_at(placed, level) for level in level_sizes),
        tuple(_mask_at(placed, level) for level in level_sizes),
        np.concatenate([part.areas(part.image.areas) for part in placed]),
        _taught(placed, level_sizes),
    )
    return _flipped(example, flip_order) if rng.random() < settings.flip else example


# --- where a picture goes -------------------------------------------------------------------------


def published_matrix(
    *, center: tuple[float, float], scale: float, rotation_deg: float, size: int
) -> Matrix:
    """Picture pixels -> crop pixels, as the published HigherHRNet code has it.

    A square of 200 * scale source pixels around center becomes size x size, then all is turned by
    minus the angle about (size / 2, size / 2). Pixel indices are scaled without the half pixel.

    Returns:
        (2, 3) float64.
    """
    zoom = size / (_SCALE_UNIT_PX * scale)
    angle = math.radians(-rotation_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = np.full(2, size / 2)
    return np.column_stack([zoom * turn, middle - zoom * turn @ np.array(center)])


def _crop_matrix(image: LabelledImage, settings: AugmentConfig, rng: np.random.Generator) -> Matrix:
    """The published random crop: of the whole picture, or of one person's surroundings."""
    height, width = image.size
    side = min(image.size) if settings.scale_of == "short" else max(image.size)
    scale = side / _SCALE_UNIT_PX * rng.uniform(*settings.scale)
    center_x, center_y = width / 2, height / 2
    if len(image.boxes) and rng.random() < settings.people_crop:
        x, y, w, h = _one_of(image.boxes, rng)
        wanted = max(w, h) / _SCALE_UNIT_PX / rng.uniform(*_PERSON_SHARE)
        least = settings.size / _MAX_ZOOM / _SCALE_UNIT_PX
        scale = min(max(wanted, least), side / _SCALE_UNIT_PX * settings.scale[1])
        center_x, center_y = x + w / 2, y + h / 2
    # Whole pixels from a half-open range that shrinks with the crop, as published.
    reach = settings.translation_px * scale
    if int(-reach) < int(reach):
        center_x += int(rng.integers(int(-reach), int(reach)))
        center_y += int(rng.integers(int(-reach), int(reach)))
    rotation_deg = rng.uniform(-settings.rotation_deg, settings.rotation_deg)
    return published_matrix(
        center=(center_x, center_y), scale=scale, rotation_deg=rotation_deg, size=settings.size
    )


def _mosaic_tiles(size: int, grid: int, rng: np.random.Generator) -> list[_Tile]:
    """Four tiles that meet at a random place, a multiple of the coarsest level's pixel."""
    x, y = (
        round(size * share / grid) * grid for share in rng.uniform(*_TILE_CENTER, size=2).tolist()
    )
    return [
        _Tile(0, 0, x, y),
        _Tile(x, 0, size, y),
        _Tile(0, y, x, size),
        _Tile(x, y, size, size),
    ]


def _tile_matrix(
    image: LabelledImage, tile: _Tile, settings: AugmentConfig, rng: np.random.Generator
) -> Matrix:
    """Picture pixels -> crop pixels for one tile of a mosaic.

    A whole picture in a quarter of the crop would halve its people. So a tile shows the part around
    one person, who is as large as in a people-centred crop; never less than the whole picture fits.
    """
    height, width = image.size
    tile_height, tile_width = tile.size
    whole = min(tile_width / width, tile_height / height)
    if len(image.boxes):
        x, y, w, h = _one_of(image.boxes, rng)
        share = rng.uniform(*_PERSON_SHARE)
        zoom = max(min(share * min(tile.size) / max(w, h, 1.0), _MAX_ZOOM), whole)
        center = np.array([x + w / 2, y + h / 2])
        # The person stays inside: it moves by at most half of the room left around it.
        center += rng.uniform(-0.5, 0.5, 2) * max(min(tile.size) / zoom - max(w, h), 0.0) / 2
    else:
        zoom = whole * rng.uniform(1.0, 2.0)
        center = np.array([width / 2, height / 2])
    # Towards the middle, as far as the tile shows what is not picture.
    half = np.array([tile_width, tile_height]) / zoom / 2
    extent = np.array([width, height], np.float64)
    center = np.clip(center, np.minimum(half, extent / 2), np.maximum(extent - half, extent / 2))
    matrix = published_matrix(
        center=(center[0], center[1]),
        scale=settings.size / zoom / _SCALE_UNIT_PX,
        rotation_deg=rng.uniform(-settings.rotation_deg, settings.rotation_deg),
        size=settings.size,
    )
    matrix[:, 2] += (
        (tile.left + tile.right - settings.size) / 2,
        (tile.top + tile.bottom - settings.size) / 2,
    )
    return matrix


def _one_of(boxes: FloatArray, rng: np.random.Generator) -> tuple[float, float, float, float]:
    x, y, w, h = boxes[rng.integers(len(boxes))].tolist()
    return x, y, w, h


# --- what goes there ------------------------------------------------------------------------------


class _Placed(NamedTuple):
    """An image and where it goes in the crop."""

    image: LabelledImage
    matrix: Matrix
    """Picture pixels -> crop pixels."""
    tile: _Tile
    crop_size: int

    def areas(self, of_picture: FloatArray) -> FloatArray:
        """Square pixels of the picture -> of the crop."""
        return of_picture * np.float32(abs(np.linalg.det(self.matrix[:, :2])))

    def taught(self) -> TaughtPeople:
        """Its image's; nobody and a share of 0 where it has none."""
        if self.image.taught is not None:
            return self.image.taught
        keypoints = np.zeros((0, *self.image.keypoints.shape[1:]), np.float32)
        return TaughtPeople(keypoints, np.zeros(0, np.float32), (), 0.0)


def _view(array: NDArray[Any], tile: _Tile) -> NDArray[Any]:
    """The tile's part of a (h, w, ...) array."""
    return array[tile.top : tile.bottom, tile.left : tile.right]


def _warp(source: NDArray[np.uint8], matrix: Matrix, tile: _Tile) -> NDArray[np.uint8]:
    """The tile's part of a warped picture: bilinear, black where there is no source."""
    inside = matrix.copy()
    inside[:, 2] -= tile.left, tile.top
    height, width = tile.size
    warped: NDArray[np.uint8] = cv2.warpAffine(source, inside, (width, height))
    return warped


def _keypoints_at(placed: Sequence[_Placed], level_size: int) -> FloatArray:
    """The keypoints of all parts in a level's pixels, (P, K, 3)."""
    return _moved(placed, [part.image.keypoints for part in placed], level_size)


def _moved(
    placed: Sequence[_Placed], of_pictures: Sequence[FloatArray], level_size: int
) -> FloatArray:
    """Keypoints (P, K, 3) of every part's picture -> all of them in a level's pixels."""
    people = []
    for (_, matrix, tile, crop_size), keypoints in zip(placed, of_pictures, strict=True):
        to_level = matrix * (level_size / crop_size)
        points = keypoints.copy()
        points[..., :2] = keypoints[..., :2] @ to_level[:, :2].T + to_level[:, 2]
        if len(placed) > 1:
            points = _cut(points, tile.at(level_size, crop_size))
        people.append(points)
    return np.concatenate(people)


def _taught(placed: Sequence[_Placed], level_sizes: Sequence[int]) -> TaughtExample | None:
    """What the teachers of all parts say, on every level."""
    if all(part.image.taught is None for part in placed):
        return None
    people = [part.taught() for part in placed]
    keypoints = [some.keypoints for some in people]
    pixels = [taught_pixels(part.image) for part in placed]
    return TaughtExample(
        tuple(_moved(placed, keypoints, level) for level in level_sizes),
        np.concatenate([part.areas(some.areas) for part, some in zip(placed, people, strict=True)]),
        tuple(
            _shares_at(placed, pixels, [some.share for some in people], level)
            for level in level_sizes
        ),
    )


def _shares_at(
    placed: Sequence[_Placed], pixels: Sequence[Mask], shares: Sequence[float], level_size: int
) -> FloatArray:
    """(1, h, w): every part's share where its teacher's keypoints are complete, else 0."""
    result = np.empty((1, level_size, level_size), np.float32)
    for part, known, share in zip(placed, pixels, shares, strict=True):
        to_level = part.matrix * (level_size / part.crop_size)
        place = part.tile.at(level_size, part.crop_size)
        _view(result[0], place)[:] = share * (_warp(known, to_level, place) > _MASK_LEVEL)
    return result


def _cut(keypoints: FloatArray, tile: _Tile) -> FloatArray:
    """v = 0 where a keypoint is not on the tile's pixels.

    Inside is from the first pixel's to the last one's centre: a mirrored keypoint between the last
    centre and the edge would be truncated into the neighbouring tile.
    """
    x, y = keypoints[..., 0], keypoints[..., 1]
    inside = (x >= tile.left) & (x <= tile.right - 1) & (y >= tile.top) & (y <= tile.bottom - 1)
    keypoints[~inside, 2] = 0
    return keypoints


def _mask_at(placed: Sequence[_Placed], level_size: int) -> Mask:
    """(1 or K, h, w) uint8: 1 where a level is supervised."""
    unknown = any((part.image.keypoints[..., 2] < 0).any() for part in placed)
    channels = placed[0].image.keypoints.shape[1] if unknown else 1
    masks = np.empty((channels, level_size, level_size), np.uint8)
    for image, matrix, tile, crop_size in placed:
        to_level, place = matrix * (level_size / crop_size), tile.at(level_size, crop_size)
        part = masks[:, place.top : place.bottom, place.left : place.right]
        part[:] = _warp(supervised_pixels(image), to_level, place) > _MASK_LEVEL
        if unknown:
            to_level[:, 2] -= place.left, place.top
            _hide_unknown(part, image, to_level)
    return masks


def _hide_unknown(masks: Mask, image: LabelledImage, part_from_image: Matrix) -> None:
    """Switch off (K, h, w) masks where a keypoint of that channel lies somewhere, unknown where."""
    height, width = masks.shape[1:]
    for person, box in zip(image.keypoints, image.boxes, strict=True):
        unknown = np.flatnonzero(person[:, 2] < 0)
        if not len(unknown):
            continue
        x, y, w, h = box.tolist()
        reach = _UNKNOWN_GROWTH * max(w, h)
        xs = np.array([x - reach, x + w + reach])[[0, 1, 1, 0]]
        ys = np.array([y - reach, y + h + reach])[[0, 0, 1, 1]]
        corners = np.column_stack([xs, ys]) @ part_from_image[:, :2].T + part_from_image[:, 2]
        near = np.zeros((height, width), np.uint8)
        cv2.fillConvexPoly(near, np.rint(corners).astype(np.int32), 1)
        masks[unknown] &= 1 - near


def _flipped(example: Example, flip_order: Sequence[int]) -> Example:
    """The example mirrored: left and right swap names, x becomes size - 1 - x on every level."""
    order = list(flip_order)
    sides = [mask.shape[-1] for mask in example.masks]
    masks = (mask[order] if len(mask) == len(order) else mask for mask in example.masks)
    taught = example.taught
    if taught is not None:
        taught = TaughtExample(
            _flipped_keypoints(taught.keypoints, sides, order),
            taught.areas,
            tuple(np.ascontiguousarray(share[..., ::-1]) for share in taught.shares),
        )
    return Example(
        cv2.flip(example.image, 1),
        _flipped_keypoints(example.keypoints, sides, order),
        tuple(np.ascontiguousarray(mask[..., ::-1]) for mask in masks),
        example.areas,
        taught,
    )


def _flipped_keypoints(
    of_levels: Sequence[FloatArray], sides: Sequence[int], order: list[int]
) -> tuple[FloatArray, ...]:
    flipped = []
    for points, side in zip(of_levels, sides, strict=True):
        mirrored = points[:, order]
        mirrored[..., 0] = side - 1 - mirrored[..., 0]
        flipped.append(mirrored)
    return tuple(flipped)


# --- colour ---------------------------------------------------------------------------------------

_YIQ_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]  # NTSC, 1953
)
_RGB_FROM_YIQ = np.linalg.inv(_YIQ_FROM_RGB)


def _recolored(
    picture: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Brightness, contrast, saturation and hue at random; rarely grey or blurred.

    Black stays black: the border around a picture is black at test time too. So brightness is a
    gamma curve, contrast a gain, and hue and saturation turn and stretch the two colour axes.
    """
    gamma, gain = np.exp(strength * rng.uniform((-0.5, -0.3), (0.5, 0.3)))
    saturation = 1 + strength * rng.uniform(-0.6, 0.6)
    hue = strength * rng.uniform(-math.pi / 10, math.pi / 10)
    grey, blurred = rng.random(2) < 0.1 * strength
    curve = 255 * gain * (np.arange(256) / 255) ** gamma
    changed = cv2.LUT(picture, np.clip(np.rint(curve), 0, 255).astype(np.uint8))
    if grey:
        saturation = 0.0
    turn = saturation * np.array([[math.cos(hue), -math.sin(hue)], [math.sin(hue), math.cos(hue)]])
    chroma = np.eye(3)
    chroma[1:, 1:] = turn
    changed = cv2.transform(changed, _RGB_FROM_YIQ @ chroma @ _YIQ_FROM_RGB)
    if blurred:
        changed = cv2.GaussianBlur(changed, (0, 0), rng.uniform(0.5, 1.5))
    return np.asarray(changed, np.uint8)
