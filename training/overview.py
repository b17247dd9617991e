"""Pictures to look at while a training runs: what the net saw, was told, and said. Draws only.

input, labelled keypoints (green) and predicted maxima (red) | strongest heatmap, as red glow
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_LABELLED = (60, 220, 60)
_PREDICTED = (255, 60, 60)
_MIN_SCORE = 0.2
_MAX_WIDTH = 4
"""Examples shown."""

RgbPicture = NDArray[np.uint8]


def overview(
    images: Tensor,
    heatmaps: Tensor,
    tag_index: Tensor,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> RgbPicture:
    """A few examples of a batch, one a row: (rows * S, 2 * S, 3) uint8 RGB.

    Args:
        images: (B, 3, S, S), normalised with mean and std.
        heatmaps: (B, K, h, w) predicted.
        tag_index: (B, N, K, 2), the labelled keypoints at 1/4, as training.targets.tag_index.
    """
    rows = []
    for index in range(min(len(images), _MAX_WIDTH)):
        picture = _picture(images[index], mean, std)
        heatmap = heatmaps[index].detach().float().cpu()
        _draw(picture, _labelled(tag_index[index].cpu().numpy(), picture.shape[0]), _LABELLED)
        _draw(picture, _maxima(heatmap, picture.shape[0]), _PREDICTED)
        glow = _glow(_picture(images[index], mean, std), heatmap)
        rows.append(np.concatenate([picture, glow], axis=1))
    return np.concatenate(rows)


def _picture(image: Tensor, mean: Any, std: Any) -> RgbPicture:
    pixels = image.detach().float().cpu().permute(1, 2, 0).numpy() * np.array(std) + mean
    return np.ascontiguousarray((pixels * 255).clip(0, 255).astype(np.uint8))


def _labelled(index: NDArray[np.int32], size: int) -> NDArray[np.float64]:
    """(n, 2) x, y in pixels of the input."""
    side = size // 4
    place = index[index[..., 1] > 0][:, 0] % (side * side)
    return np.stack([place % side, place // side], axis=1).astype(np.float64) * 4.0 + 1.5


def _maxima(heatmaps: Tensor, size: int) -> NDArray[np.float64]:
    """(n, 2) x, y in pixels of the input: local maxima of any heatmap."""
    stride = size / heatmaps.shape[-1]
    highest = F.max_pool2d(heatmaps[None], 5, stride=1, padding=2)[0]
    peaks = (heatmaps == highest) & (heatmaps > _MIN_SCORE)
    yx = peaks.nonzero()[:, 1:].double().numpy()
    return np.asarray(yx[:, ::-1] * stride + (stride - 1) / 2)


def _draw(picture: RgbPicture, points: NDArray[np.float64], color: tuple[int, int, int]) -> None:
    for x, y in np.rint(points).astype(int).tolist():
        cv2.circle(picture, (x, y), 2, color, -1, cv2.LINE_AA)


def _glow(picture: RgbPicture, heatmaps: Tensor) -> RgbPicture:
    strongest = heatmaps.amax(dim=0).clamp(0, 1).numpy()
    height, width = picture.shape[:2]
    strength = cv2.resize(strongest, (width, height))[..., None]
    glow = np.array((255, 40, 0), np.float32) * strength
    return np.asarray(picture * 0.5 * (1 - strength) + glow).astype(np.uint8)
