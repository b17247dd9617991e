"""Poses drawn over their picture, for people to look at.

    Poses -> picture -> draw_poses -> video_sink.py, viewer.py

Colours tell the sides of the body apart, widths follow the size of the person, and what refine
merely filled in looks different from what the network found. Nothing here decides which people
there are, nor where the picture goes.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from nets.skeletons import SKELETONS, Skeleton
from pipeline.messages import Frame, Poses
from pipeline.sinks.schema import person_boxes

Color = tuple[int, int, int]
Colors = Literal["side", "id"]
"""What a skeleton's colours tell apart: sides of the body, or people."""
Draw = Callable[[Poses], np.ndarray]
"""Makes the (height, width, 3) uint8 BGR picture that a sink shows of a frame."""

# BGR.
SIDE_COLORS: dict[str, Color] = {
    "left": (70, 220, 60),
    "right": (20, 130, 255),
    "centre": (255, 190, 60),
}
_EDGE: Color = (24, 24, 24)
_WHITE: Color = (255, 255, 255)
_NO_ID: Color = (70, 70, 70)
_ID_COLORS: tuple[Color, ...] = (
    (196, 98, 20), (28, 26, 214), (44, 140, 30), (190, 40, 150), (0, 110, 200),
    (130, 130, 0), (110, 60, 230), (60, 90, 120), (200, 60, 90), (80, 120, 60),
)  # fmt: skip

_SHIFT = 4  # OpenCV takes coordinates in 1/16 pixel
_Plate = tuple[int, int, int, int]  # left, top, right, bottom of a label
_FAR = 1 << 14  # pixels; what lies further out is drawn at that border
_NUM_SHARED = 4
_ANGLES = 2 * math.pi * np.arange(16) / 16
_UNIT_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)  # (16, 2)


def draw_poses(
    image_bgr: np.ndarray,
    poses: Poses,
    skeleton: Skeleton,
    *,
    min_keypoint_score: float = 0.1,
    labels: bool = True,
    boxes: bool = False,
    colors: Colors = "side",
    smoothed: bool = True,
) -> np.ndarray:
    """Draw people into a picture, in place.

    Args:
        image_bgr: (height, width, 3) uint8, contiguous and writable.
        poses: people in pixels of this picture.
        skeleton: names and limbs of their keypoints.
        min_keypoint_score: no keypoint below it is drawn, and no limb that needs one.
        labels: write each person's id and score above the head.
        boxes: draw each person's box.
        colors: "id" gives each person one colour; who has no id is grey.
        smoothed: draw the smoothed keypoints where poses have them.
    Returns:
        image_bgr.
    """
    scores = poses.keypoints[..., 2]
    drawn = (scores > 0) & (scores >= min_keypoint_score)
    drawn &= np.isfinite(poses.keypoints).all(axis=-1)
    keypoints = np.where(drawn[..., None], poses.keypoints, 0)
    if smoothed and poses.smoothed is not None:
        keypoints[..., :2] = np.where(drawn[..., None], poses.smoothed, 0)
    people = _smallest_first(keypoints, poses.filled)
    for i, box in people:
        width = line_width(_size(box), image_bgr.shape[:2])
        if boxes:
            _draw_box(image_bgr, box, _id_color(poses.ids[i]), width)
        _draw_person(
            image_bgr,
            keypoints[i],
            drawn=drawn[i],
            filled=poses.filled[i],
            skeleton=skeleton,
            width=width,
            color=_id_color(poses.ids[i]) if colors == "id" else None,
        )
    if labels:
        plates: list[_Plate] = []
        for i, box in reversed(people):  # the nearest get the best places
            plates.append(_draw_label(image_bgr, box, poses.ids[i], poses.scores[i], plates))
    return image_bgr


def line_width(person_size: float, image_size: tuple[int, int]) -> int:
    """Pixels: 1/60 of the person, but never too thin to be seen in a picture of this size."""
    least = max(1.0, min(image_size) / 480)
    return round(float(np.clip(person_size / 60, least, 5 * least)))


def _smallest_first(keypoints: np.ndarray, filled: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(index, box) of everyone who has a keypoint; who stands nearer comes last, on top."""
    boxes = enumerate(person_boxes(keypoints, filled))
    return sorted(
        ((i, box) for i, box in boxes if box is not None), key=lambda person: _size(person[1])
    )


def _size(box: np.ndarray) -> float:
    """Side of a square of the box's area; someone seen edge-on still counts half their height."""
    width, height = float(box[2]), float(box[3])
    return max(math.sqrt(width * height), width / 2, height / 2)


@dataclass(frozen=True, slots=True)
class _Look:
    """How a part of a body is drawn."""

    color: Color
    face: bool
    """Finer, or the lines would cover the face."""


_FACE = {"nose", "eye", "ear"}


@functools.cache
def _looks(skeleton: Skeleton) -> tuple[list[_Look], list[_Look]]:
    """Of every keypoint and of every limb: its side's colour, and whether it is in the face."""
    sides = [skeleton.side(k) for k in range(skeleton.num_keypoints)]
    face = [name.split("_")[-1] in _FACE for name in skeleton.keypoint_names]
    keypoints = [_Look(SIDE_COLORS[side], f) for side, f in zip(sides, face, strict=True)]
    limbs = [
        _Look(SIDE_COLORS[sides[a] if sides[a] == sides[b] else "centre"], face[a] and face[b])
        for a, b in skeleton.limbs
    ]
    return keypoints, limbs


def _draw_person(
    image: np.ndarray,
    keypoints: np.ndarray,
    *,
    drawn: np.ndarray,
    filled: np.ndarray,
    skeleton: Skeleton,
    width: int,
    color: Color | None,
) -> None:
    """Limbs, then keypoints, over a dark edge that stands out from any background.

    A filled keypoint is a ring, and its limbs are thin. A colour replaces those of the sides.
    """
    points = _fixed(np.clip(keypoints[:, :2], -_FAR, _FAR))
    keypoint_looks, limb_looks = _looks(skeleton)
    edge = max(1, round(width / 4))
    fine, thin = max(1, round(0.6 * width)), max(1, round(0.3 * width))

    strokes: dict[tuple[int, Color], list[np.ndarray]] = {}  # (width, colour): limbs
    for (a, b), look in zip(skeleton.limbs, limb_looks, strict=True):
        if drawn[a] and drawn[b]:
            stroke = thin if filled[a] or filled[b] else fine if look.face else width
            strokes.setdefault((stroke, color or look.color), []).append(points[[a, b]])
    for (stroke, _), limbs in strokes.items():
        _draw_limbs(image, limbs, _EDGE, stroke + 2 * edge)
    for (stroke, limb_color), limbs in strokes.items():
        _draw_limbs(image, limbs, limb_color, stroke)

    diameters = np.array([fine if look.face else width for look in keypoint_looks])
    radii = 0.5 * (diameters + thin * filled) + edge
    inner, outer = _circles(points, radii), _circles(points, radii + edge)
    for k in np.flatnonzero(drawn).tolist():
        if filled[k]:
            ring = [inner[k]]
            cv2.polylines(image, ring, True, _EDGE, thin + 2 * edge, cv2.LINE_AA, _SHIFT)
            ring_color = color or keypoint_looks[k].color
            cv2.polylines(image, ring, True, ring_color, thin, cv2.LINE_AA, _SHIFT)
        else:
            cv2.fillConvexPoly(image, outer[k], _EDGE, cv2.LINE_AA, _SHIFT)
            cv2.fillConvexPoly(image, inner[k], _WHITE, cv2.LINE_AA, _SHIFT)


def _draw_limbs(image: np.ndarray, limbs: list[np.ndarray], color: Color, width: int) -> None:
    cv2.polylines(image, limbs, False, color, width, cv2.LINE_AA, _SHIFT)


def _circles(points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(K, 16, 2) int32 outlines around (K, 2) points, both in 1/16 pixel; radii (K,) in pixels.

    cv2.circle makes four corners of a small radius, and is slower.
    """
    return np.asarray(points[:, None] + _fixed(radii[:, None, None] * _UNIT_CIRCLE))


def _fixed(pixels: np.ndarray) -> np.ndarray:
    """As OpenCV takes coordinates between pixels: int32 in 1/16 pixel."""
    return np.round(pixels * (1 << _SHIFT)).astype(np.int32)


def _draw_box(image: np.ndarray, box: np.ndarray, color: Color, width: int) -> None:
    x, y, w, h = np.clip(np.round(box), -_FAR, _FAR).astype(int).tolist()
    cv2.rectangle(image, (x, y), (x + w, y + h), color, max(1, width // 3), cv2.LINE_AA)


def _id_color(identity: int) -> Color:
    return _NO_ID if identity < 0 else _ID_COLORS[identity % len(_ID_COLORS)]


def _draw_label(
    image: np.ndarray, box: np.ndarray, identity: int, score: float, taken: list[_Plate]
) -> _Plate:
    """`#id score` on the id's colour: above the head, inside the picture, beside other labels."""
    text = f"{score:.2f}" if identity < 0 else f"#{identity}  {score:.2f}"
    scale = max(0.38, min(image.shape[:2]) / 1440)
    stroke = max(1, round(1.6 * scale))
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    pad = round(0.4 * text_height)
    size = text_width + 2 * pad, text_height + 2 * pad
    plate = left, top, right, bottom = _place(box, size, pad, image.shape, taken)
    cv2.rectangle(image, (left, top), (right, bottom), _id_color(identity), cv2.FILLED)
    origin = (left + pad, bottom - pad)
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, _WHITE, stroke, cv2.LINE_AA)
    return plate


def _place(
    box: np.ndarray,
    size: tuple[int, int],
    pad: int,
    shape: tuple[int, ...],
    taken: list[_Plate],
) -> _Plate:
    """The plate of (width, height) centred over a box, moved up past those that are in its way."""
    width, height = size
    left = int(np.clip(box[0] + (box[2] - width) / 2, 0, max(0, shape[1] - width)))
    top = int(np.clip(box[1] - height - 3 * pad, 0, max(0, shape[0] - height)))
    for other in sorted(taken, key=lambda plate: -plate[3]):
        beside = left > other[2] or left + width < other[0]
        clear = top > other[3] or top + height < other[1]
        if not beside and not clear:
            top = max(0, other[1] - height - 1)
    return left, top, left + width, top + height


def picture(poses: Poses, *, on_black: bool = False) -> np.ndarray:
    """What is drawn on: the frame, or black (which asks for no pixel of the frame)."""
    if on_black:
        return np.zeros((*poses.frame.size, 3), dtype=np.uint8)
    return poses.frame.to_host()


def with_square_pixels(image_bgr: np.ndarray, frame: Frame) -> np.ndarray:
    """The picture of a frame as it must look on a screen, whose pixels are square."""
    height, width = frame.shown_size
    if image_bgr.shape[:2] == (height, width):
        return image_bgr
    return np.asarray(cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_LINEAR))


def drawn_picture(
    poses: Poses,
    *,
    min_keypoint_score: float = 0.1,
    on_black: bool = False,
    colors: Colors = "side",
    smoothed: bool = True,
) -> np.ndarray:
    """The poses drawn over their picture, or on black: what sinks for people to look at show."""
    skeleton = SKELETONS[poses.skeleton]
    image = picture(poses, on_black=on_black)
    return draw_poses(
        image, poses, skeleton, min_keypoint_score=min_keypoint_score, colors=colors,
        smoothed=smoothed,
    )  # fmt: skip


class SharedPictures:
    """Draws each picture once for several sinks of a stream that show the same.

    The last few are kept, for the sinks need not be at the same frame. What it returns is
    read-only, since others look at it too.
    """

    def __init__(self, draw: Draw) -> None:
        """Args: draw: makes a new picture, as drawn_picture does."""
        self._draw = draw
        self._lock = threading.Lock()  # whoever comes second waits for the picture
        self._recent: deque[tuple[tuple[str, int, int], np.ndarray]] = deque(maxlen=_NUM_SHARED)

    def __call__(self, poses: Poses) -> np.ndarray:
        frame = poses.frame
        wanted = frame.source, frame.index, frame.captured_ns
        with self._lock:
            for key, image in self._recent:
                if key == wanted:
                    return image
            image = self._draw(poses)
            image.flags.writeable = False
            self._recent.append((wanted, image))
            return image
