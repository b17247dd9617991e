"""A world in which the answer is known: painted people, and a network that reads the paint.

Every keypoint is a dot. Red and green say which keypoint it is (an angle on a quarter circle, so
that the soft edge of a dot is never taken for another one), blue says whose it is. The network
turns that into heatmaps and tags, so a test can follow known people through video decoding,
preprocessing, inference, decode and every sink, whatever weights exist.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.skeletons import COCO

DOT_RADIUS_PX = 7
_BRIGHTNESS = 250.0
_TAG_PER_BLUE = 1 / 20
_COLOR_TOLERANCE = 8.0


def _red_green(keypoint: int) -> tuple[float, float]:
    angle = math.pi / 2 * keypoint / (COCO.num_keypoints - 1)
    return _BRIGHTNESS * math.cos(angle), _BRIGHTNESS * math.sin(angle)


def paint(size: tuple[int, int], people: np.ndarray) -> np.ndarray:
    """Paint people (P, K, 2), P <= 4, as a (height, width, 3) BGR picture of that size.

    A keypoint with a NaN coordinate is left out.
    """
    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    ys, xs = np.mgrid[:height, :width]
    for person, keypoints in enumerate(people):
        blue = 40 + 60 * person
        x0, y0 = np.nanmin(keypoints, axis=0) - 2 * DOT_RADIUS_PX
        x1, y1 = np.nanmax(keypoints, axis=0) + 2 * DOT_RADIUS_PX
        picture[(xs >= x0) & (xs <= x1) & (ys >= y0) & (ys <= y1)] = (blue, 0, 0)
    for person, keypoints in enumerate(people):
        for k, (x, y) in enumerate(keypoints):
            if not np.isnan(x):
                red, green = _red_green(k)
                dot = (xs - x) ** 2 + (ys - y) ** 2 <= DOT_RADIUS_PX**2
                picture[dot] = (40 + 60 * person, round(green), round(red))
    return picture


def grid_people(count: int, *, origin: tuple[float, float] = (40, 40)) -> np.ndarray:
    """People (count, K, 2) side by side, their keypoints on a 3-wide grid 24 px apart."""
    k = np.arange(COCO.num_keypoints)
    person = np.stack([k % 3 * 24.0, k // 3 * 24.0], axis=1) + origin
    return np.stack([person + (110 * p, 6 * p) for p in range(count)])


class PaintedOutput(NamedTuple):
    """heatmaps: (B, K, H/4, W/4) and (B, K, H/2, W/2); tags: (B, K, H/4, W/4)."""

    heatmaps: tuple[Tensor, Tensor]
    tags: Tensor


class PaintReader(nn.Module):
    """Reads painted pictures as HigherHRNet reads photographs: two heatmap levels, one of tags."""

    codes: Tensor
    """(K, 2): red and green of every keypoint."""

    def __init__(self) -> None:
        super().__init__()
        codes = torch.tensor([_red_green(k) for k in range(COCO.num_keypoints)])
        self.register_buffer("codes", codes)

    def forward(self, images: Tensor) -> PaintedOutput:
        colors = images * 255.0
        distance = (colors[:, None, :2] - self.codes[None, :, :, None, None]).square().sum(dim=2)
        # Not below e**-80: with denormal numbers everything here would take three times as long.
        dots = torch.exp(-(distance / (2 * _COLOR_TOLERANCE**2)).clamp(max=80.0))
        box = 2 * DOT_RADIUS_PX - 3
        # One side after the other: the mean of a square, for a fraction of the time.
        rows = F.avg_pool2d(dots, (1, box), stride=1, padding=(0, box // 2))
        cones = F.avg_pool2d(rows, (box, 1), stride=1, padding=(box // 2, 0))
        tags = F.avg_pool2d(colors[:, 2:] * _TAG_PER_BLUE, 4).expand(-1, len(self.codes), -1, -1)
        return PaintedOutput((F.avg_pool2d(cones, 4), F.avg_pool2d(cones, 2)), tags)

    def maps(self, output: PaintedOutput) -> Maps:
        return Maps(output.heatmaps, output.tags[..., None])


def painted_model(**decode: float) -> Model:
    """The paint reader as a model of 17 keypoints with no normalisation."""
    return Model(
        net=PaintReader().eval(),
        name="paint_reader",
        skeleton=COCO,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        input_size=256,
        size_multiple=32,
        tag_ramp_px=0.0,
        weights_sha256="painted",
        decode=decode,
    )
