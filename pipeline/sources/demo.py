"""The demo scene: three prints of one photograph move before a slowly panning, zooming camera.

The photograph is NASA's public-domain portrait of the astronaut Eileen Collins (512x512, one
person, visible to the waist); eileen_collins.md names its source. The geometry of every print is
known, so poses found in the scene can be checked: a keypoint that lies at (x, y) in the photograph
must lie at copies(index)[i].picture_from_astronaut applied to (x, y).

    photograph --copy's path--> scene --camera--> picture (1280x720)
      512x512    scale, tilt,           pan, zoom
                 mirror, shift

All motion is periodic over NUM_FRAMES, so the scene loops without a jump. This file knows nothing
of sources, frames or poses: numbers in, pictures out, always the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin
from pathlib import Path

import cv2
import numpy as np

SIZE = (720, 1280)
"""(height, width) of every picture."""
FPS = 30.0
NUM_FRAMES = 300
"""Length of one round; picture(index) and picture(index + NUM_FRAMES) are equal."""
PHOTO_SIZE = 512
"""Side of the square photograph in pixels."""

_PHOTO = Path(__file__).with_name("eileen_collins.jpg")
_MARGIN = 120  # scene pixels around the picture, so that the camera never sees past the wall
_BORDER = 12  # white rim of a print, texture pixels
_PAD = 24  # room for a print's shadow, texture pixels


@dataclass(frozen=True)
class Copy:
    """One print of the photograph, as it lies in one picture."""

    picture_from_astronaut: np.ndarray
    """(2, 3) float64: pixels of the photograph to pixels of the picture."""
    mirrored: bool
    """True: left and right are swapped, so its left shoulder is the photograph's right one."""


@dataclass(frozen=True)
class _Path:
    """A print's way through the scene over one round (t from 0 to 1), in scene pixels."""

    scale: float
    home: tuple[float, float]
    sway: tuple[float, float]
    turns: tuple[int, int]
    """Whole oscillations of x and y in a round."""
    tilt_degrees: float
    visit: tuple[float, float] = (0.0, 0.0)
    """Extra displacement, taken once a round, at its middle."""
    mirrored: bool = False

    def scene_from_astronaut(self, t: float) -> np.ndarray:
        """(2, 3): about the photograph's centre, mirror, scale, tilt; then to where it is at t."""
        once = ((1.0 - cos(2 * pi * t)) / 2.0) ** 6
        x = self.home[0] + self.sway[0] * sin(2 * pi * self.turns[0] * t) + self.visit[0] * once
        y = self.home[1] + self.sway[1] * sin(2 * pi * self.turns[1] * t) + self.visit[1] * once
        angle = np.deg2rad(self.tilt_degrees) * sin(2 * pi * (t + self.scale))
        scale = self.scale * (1.0 + 0.04 * sin(4 * pi * (t + self.scale)))
        turn = scale * np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
        if self.mirrored:
            turn[:, 0] *= -1.0
        centre = np.full(2, (PHOTO_SIZE - 1) / 2.0)
        return np.column_stack([turn, np.array([x, y]) - turn @ centre])


# Back to front: the smallest passes before the mirrored one once in a round.
_PATHS = (
    _Path(scale=0.92, home=(312, 378), sway=(18, 30), turns=(1, 2), tilt_degrees=3.0),
    _Path(
        scale=0.64, home=(835, 232), sway=(36, 14), turns=(2, 1), tilt_degrees=5.0, mirrored=True
    ),
    _Path(
        scale=0.42, home=(1085, 570), sway=(26, 10), turns=(1, 3), tilt_degrees=7.0,
        visit=(-190, -200),
    ),
)  # fmt: skip


def copies(index: int) -> list[Copy]:
    """Where the three prints lie in picture(index), from the one at the back to the front one."""
    t = (index % NUM_FRAMES) / NUM_FRAMES
    camera = _picture_from_scene(t)
    return [
        Copy(_compose(camera, path.scene_from_astronaut(t)), mirrored=path.mirrored)
        for path in _PATHS
    ]


def picture(index: int) -> np.ndarray:
    """Draw one picture of the scene: a new (720, 1280, 3) uint8 BGR array.

    Equal for equal index; any index >= 0 is allowed, the scene repeats after NUM_FRAMES.
    """
    height, width = SIZE
    t = (index % NUM_FRAMES) / NUM_FRAMES
    # The wall is soft, so half its pixels do: three times faster than warping it whole.
    half_from_scene = _compose(_scaling(0.5), _picture_from_scene(t))
    half_from_wall = _compose(half_from_scene, _scaling(2.0, -_MARGIN))
    wall = cv2.warpAffine(_wall(), half_from_wall, (width // 2, height // 2))
    canvas = np.asarray(cv2.resize(wall, (width, height)))
    for number, copy in enumerate(copies(index)):
        astronaut_from_texture = _inverse(_texture_from_astronaut(number))
        picture_from_texture = _compose(copy.picture_from_astronaut, astronaut_from_texture)
        _paste(canvas, _print_texture(number), picture_from_texture)
    return canvas


def _picture_from_scene(t: float) -> np.ndarray:
    """(2, 3): the camera. It zooms about the picture's centre and pans along a flat eight."""
    zoom = 1.03 + 0.05 * sin(2 * pi * t)
    centre = np.array([(SIZE[1] - 1) / 2.0, (SIZE[0] - 1) / 2.0])
    pan = np.array([24.0 * sin(2 * pi * t), 10.0 * sin(4 * pi * t)])
    return np.column_stack([zoom * np.eye(2), centre - zoom * centre + pan])


def _texture_from_astronaut(number: int) -> np.ndarray:
    """(2, 3): the photograph to the print's texture, which holds it shrunk, rimmed and padded."""
    side = _photo_side(number)
    return _scaling(side / PHOTO_SIZE, _PAD + _BORDER)


@cache
def photograph() -> np.ndarray:
    """(512, 512, 3) uint8 BGR, read-only."""
    photo = np.asarray(cv2.imread(str(_PHOTO)))
    photo.flags.writeable = False
    return photo


def _photo_side(number: int) -> int:
    return round(PHOTO_SIZE * _PATHS[number].scale)


@cache
def _print_texture(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A print with its white rim and its shadow: (n, n, 3) BGR times alpha, (n, n) alpha; uint8.

    It is shrunk here, once and by area, so that drawing needs no prefilter.
    """
    side = _photo_side(number)
    small = cv2.resize(photograph(), (side, side), interpolation=cv2.INTER_AREA)
    rim = _PAD + _BORDER
    bgr = np.zeros((side + 2 * rim, side + 2 * rim, 3), np.uint8)
    bgr[_PAD:-_PAD, _PAD:-_PAD] = (236, 240, 242)
    bgr[rim:-rim, rim:-rim] = small
    opaque = np.zeros(bgr.shape[:2], np.float32)
    opaque[_PAD:-_PAD, _PAD:-_PAD] = 1.0
    shadow = 0.5 * cv2.GaussianBlur(np.roll(opaque, (6, 4), axis=(0, 1)), (0, 0), 5.0)
    alpha = np.maximum(opaque, shadow)
    return bgr, np.rint(255.0 * alpha).astype(np.uint8)


@cache
def _wall() -> np.ndarray:
    """The background, half size: plaster, lit from the upper left; (h, w, 3) uint8 BGR."""
    height, width = SIZE[0] // 2 + _MARGIN, SIZE[1] // 2 + _MARGIN
    rng = np.random.default_rng(7)
    plaster = np.zeros((height, width), np.float32)
    for cell, strength in ((80, 9.0), (20, 5.0), (5, 3.0), (2, 3.0)):
        coarse = rng.standard_normal((height // cell + 3, width // cell + 3)).astype(np.float32)
        plaster += strength * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    x = np.linspace(-0.6, 1.0, width, dtype=np.float32)
    y = np.linspace(-0.6, 1.0, height, dtype=np.float32)
    light = 1.12 - 0.30 * (x[None, :] ** 2 + y[:, None] ** 2)
    wall = (np.array([150, 142, 126], np.float32) + plaster[..., None]) * light[..., None]
    return np.clip(np.rint(wall), 0, 255).astype(np.uint8)


def _paste(
    canvas: np.ndarray, texture: tuple[np.ndarray, np.ndarray], canvas_from_texture: np.ndarray
) -> None:
    """Lay a premultiplied texture over the canvas, in place; only its bounding box is touched."""
    bgr, alpha = texture
    side = alpha.shape[0]
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]], np.float64)
    placed = corners @ canvas_from_texture.T
    low = np.maximum(np.floor(placed.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(placed.max(axis=0)).astype(int) + 1, canvas.shape[1::-1])
    box_from_texture = canvas_from_texture.copy()
    box_from_texture[:, 2] -= low
    width, height = (int(n) for n in high - low)
    layer = cv2.warpAffine(bgr, box_from_texture, (width, height))
    opaque = cv2.warpAffine(alpha, box_from_texture, (width, height))
    clear = cv2.cvtColor(255 - opaque, cv2.COLOR_GRAY2BGR)
    box = canvas[low[1] : high[1], low[0] : high[0]]
    box[:] = cv2.add(layer, cv2.multiply(box, clear, scale=1 / 255))


def _scaling(scale: float, shift: float = 0.0) -> np.ndarray:
    """(2, 3): scale about the picture's corner (so pixel edges stay edges), then shift."""
    offset = 0.5 * scale - 0.5 + shift
    return np.array([[scale, 0.0, offset], [0.0, scale, offset]])


def _compose(c_from_b: np.ndarray, b_from_a: np.ndarray) -> np.ndarray:
    """(2, 3) c_from_a."""
    linear = c_from_b[:, :2] @ b_from_a[:, :2]
    return np.column_stack([linear, c_from_b[:, :2] @ b_from_a[:, 2] + c_from_b[:, 2]])


def _inverse(b_from_a: np.ndarray) -> np.ndarray:
    """(2, 3) a_from_b."""
    linear = np.linalg.inv(b_from_a[:, :2])
    return np.column_stack([linear, -linear @ b_from_a[:, 2]])
