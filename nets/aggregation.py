"""What the papers average: coarse and fine stages, the flip test, several scales.

    net -> average_stages -> Maps -> flip_test -> Maps -> average_scales -> Maps -> kernels.decode
           (DoubleHigherNet)         (two passes)         (several sizes)

Stream and evaluation share this file. All of it is linear in the heatmaps, so stages and passes are
averaged at the pyramid's own resolutions and the full-size map is left to kernels.peaks, which
never materialises it. Only several scales have to meet at one full size. Nothing here knows nets.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LevelAggregation = Literal["on", "off", "highest", "raised"]

_RAMP_SLOPE = {1: 0.35, 2: 0.5}
"""Slope of the ramp along y for one along x, by the numbers of a tag. People are taller than wide,
so along y there is more to bend, and most of them stand side by side; but some stand above others,
and their tags must differ too."""


class Maps(NamedTuple):
    """What the decode reads: a pyramid of heatmaps and the tags beside them."""

    levels: tuple[Tensor, ...]
    """Each (B, K, h, w) float32, low to high resolution."""
    tags: Tensor
    """(B, K, h, w, T) float32 at 1/4 of the network input, whichever levels there are; after
    average_scales at the size of its one level. T grows by one for each pass."""


def choose_levels(levels: Sequence[Tensor], aggregation: LevelAggregation) -> tuple[Tensor, ...]:
    """The heatmap levels that the decode averages (HigherHRNet tables 3 and 4).

    on: all of them. highest: the finest alone, what the paper compares the average with.
    off: the 1/4 level alone, as if the net had no deconvolution.
    raised (ours): the 1/4 level alone, but upsampled to full size in two steps, as beside a 1/2
    level. Peaks of a map upsampled in one step lie on its own pixels; for the default weights two
    steps are worth .014 AP (docs/training.md).
    """
    if aggregation not in ("on", "off", "highest", "raised"):
        raise ValueError(f"aggregation must be on, off, highest or raised, got {aggregation!r}")
    if aggregation == "on":
        return tuple(levels)
    if aggregation == "raised":
        half = F.interpolate(levels[0], scale_factor=2.0, mode="bilinear", align_corners=False)
        return levels[0], half
    return (levels[-1],) if aggregation == "highest" else (levels[0],)


def average_stages(coarse: Sequence[Tensor], fine: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Coarse and fine heatmaps of DoubleHigherNet averaged, level by level."""
    return tuple((c + f) / 2 for c, f in zip(coarse, fine, strict=True))


def flip_test(
    engine: Callable[[Tensor], Maps],
    images: Tensor,
    *,
    flip_order: Sequence[int],
    one_batch: bool = True,
) -> Maps:
    """Run plain and mirrored pictures and average the heatmaps of both.

    Args:
        engine: whatever turns (B, 3, H, W) pictures into Maps. Where tags carry a ramp
            (add_tag_ramp) it must be added inside, so that the mirrored pass has a mirrored ramp.
        images: (B, 3, H, W) float32.
        flip_order: the keypoint that takes each place when mirrored (Skeleton.flip_order).
        one_batch: both passes as one batch of 2B pictures; else one after the other.
    Returns:
        Maps: levels as the engine's; tags hold those of the plain pass, then of the mirrored one.
    """
    mirrored = images.flip(-1)
    if one_batch:
        both = engine(torch.cat([images, mirrored]))
        plain, flipped = (
            _part(both, slice(None, len(images))),
            _part(both, slice(len(images), None)),
        )
    else:
        plain, flipped = engine(images), engine(mirrored)
    order = list(flip_order)
    levels = tuple(
        (level + other[:, order].flip(-1)) / 2
        for level, other in zip(plain.levels, flipped.levels, strict=True)
    )
    return Maps(levels, torch.cat([plain.tags, flipped.tags[:, order].flip(-2)], dim=-1))


def _part(maps: Maps, images: slice) -> Maps:
    return Maps(tuple(level[images] for level in maps.levels), maps.tags[images])


def average_scales(maps_of_scale: Mapping[float, Maps], *, size: tuple[int, int]) -> Maps:
    """Several scales to one heatmap level at full size, as the published evaluation does it.

    Of each scale the levels are upsampled to its finest, averaged there and upsampled to `size`.
    Then the scales are averaged. Tags are those of scale 1 (or of the only scale), upsampled
    likewise: a tag tells people apart only within its own pass. All bilinear, align_corners False.

    Args:
        maps_of_scale: the Maps of each scale, flip test included.
        size: (H, W) of the network input at scale 1; the published PROJECT2IMAGE.
    Returns:
        Maps: one level (B, K, H, W) and tags (B, K, H, W, T).
    """
    if len(maps_of_scale) > 1 and 1 not in maps_of_scale:
        raise ValueError(
            f"scales must include 1, whose tags are used, got {sorted(maps_of_scale)}; add 1"
        )
    averaged = [
        _resized(_at_finest(maps.levels), size)
        for _, maps in sorted(maps_of_scale.items(), reverse=True)
    ]
    heatmaps = torch.stack(averaged).mean(dim=0)
    (tags_of,) = maps_of_scale.values() if len(maps_of_scale) == 1 else [maps_of_scale[1]]
    half = tags_of.levels[-1].shape[-2:]
    tags = [_resized(_resized(t, half), size) for t in tags_of.tags.unbind(-1)]
    return Maps((heatmaps,), torch.stack(tags, dim=-1))


def _at_finest(levels: Sequence[Tensor]) -> Tensor:
    """The levels' mean at the size of the last."""
    finest = levels[-1].shape[-2:]
    return torch.stack([_resized(level, finest) for level in levels]).mean(dim=0)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def add_tag_ramp(maps: Maps, ramp_px: float, stride: float) -> Maps:
    """Add tag_ramp to the tags (B, K, h, w, T) of Maps.

    It stays outside the network, in float32: half precision cannot hold large ramps finely enough
    for the matching.
    """
    if ramp_px <= 0:
        return maps
    height, width, numbers = maps.tags.shape[2:]
    ramp = _ramp_on(maps.tags.device, (height, width), numbers, ramp_px, stride)
    return maps._replace(tags=maps.tags.float() + ramp)


@lru_cache(maxsize=16)
def _ramp_on(
    device: torch.device, size: tuple[int, int], numbers: int, ramp_px: float, stride: float
) -> Tensor:
    """tag_ramp, kept where it is added: an upload for each batch would stop a GPU's queue."""
    with torch.inference_mode(False):  # the same ramp may serve a training later
        return tag_ramp(size, numbers, ramp_px=ramp_px, stride=stride).to(device)


def tag_ramp(size: tuple[int, int], numbers: int, *, ramp_px: float, stride: float) -> Tensor:
    """A ramp of position for tags of T numbers: (h, w, T) float32.

    With T = 2 it is (x, y / 2) * stride / ramp_px with x, y in tag pixels, so that a net which
    bends it to one value for each person tells where that person is. One number cannot hold both:
    T = 1 is (x + 0.35 y) * stride / ramp_px, alike for people on one diagonal. Nets learn to bend
    a ramp far sooner than values out of nothing.

    Args:
        ramp_px: network-input pixels over which a tag rises by 1.
        stride: network-input pixels in a pixel of the tags, 4 for all nets here.
    Raises:
        ValueError: T is neither 1 nor 2.
    """
    if numbers not in _RAMP_SLOPE:
        raise ValueError(f"a ramp is defined for tags of 1 or 2 numbers, got {numbers}")
    height, width = size
    x = torch.arange(width, dtype=torch.float32).expand(height, width)
    y = _RAMP_SLOPE[numbers] * torch.arange(height, dtype=torch.float32)[:, None]
    y = y.expand(height, width)
    ramp = torch.stack([x, y], dim=-1) if numbers == 2 else (x + y)[:, :, None]
    return ramp * (stride / ramp_px)
