"""HigherHRNet (Cheng et al. 2020): heatmaps and tags at 1/4, one deconvolution a finer level.

                         .-- heatmaps, tags 1/4 --.
    picture - backbone --+--- features 1/4 -------+-concat- deconvolution - blocks - heatmaps 1/2

The same heads on another backbone make the small net (higher_mobile). Without a deconvolution it is
the bottom-up HRNet of the paper's table 3. How levels are averaged is left to nets.aggregation.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nets.aggregation import LevelAggregation, Maps, choose_levels
from nets.blocks import Upsampler, initialise, joined
from nets.hrnet import W32, HRNet, HRNetSettings
from nets.mobile_fpn import (
    FeaturePyramid,
    MobileFpn,
    MobileFpnSettings,
    SeparableConv,
    initialise_without_norms,
)

BackboneSettings = HRNetSettings | MobileFpnSettings


@dataclass(frozen=True)
class HigherHRNetSettings:
    """A backbone and the heads on it. The defaults are the published network."""

    backbone: BackboneSettings = W32
    deconvs: int = 1
    """Deconvolutions, each one level more: 0, 1 or 2 (table 3)."""
    residual_blocks: int = 4
    """Basic blocks after each deconvolution: 0 to 4 (table 3)."""
    concatenate: bool = True
    """Whether a deconvolution sees the predictions below it beside the features (table 3)."""
    aggregation: LevelAggregation = "on"
    """Which levels the decode averages: see nets.aggregation.choose_levels."""
    deconv_channels: int = 0
    """Channels after a deconvolution; 0: as many as the backbone's features, as published."""
    separable_head: int = 0
    """0: the 1/4 level is one 1x1 convolution, as published. Else SeparableHead of that width."""
    tag_numbers: int = 1
    """T: numbers that make up one tag. Published: 1; Newell et al. (2017) allow vectors. With 2, a
    tag can say where its person is (nets.aggregation.add_tag_ramp)."""
    second_pyramid: bool = False
    """A second pyramid on a MobileFpn's trunk. A SeparableHead's tags read it, and deconvolutions
    beside the first: so both can be learnt while what the 1/4 heatmaps read stays as it is."""


class HigherHRNetOutput(NamedTuple):
    """Raw predictions: no activation, except the sigmoid of a SeparableHead's heatmaps."""

    heatmaps: tuple[Tensor, ...]
    """(B, K, H/4, W/4), then one of twice the size for each deconvolution."""
    tags: Tensor
    """(B, T * K, H/4, W/4): the first numbers of all K tags, then their second ones."""


class LinearHead(nn.Module):
    """One 1x1 convolution from features (B, C, h, w) to heatmaps (B, K, h, w) and tags."""

    def __init__(self, channels: int, num_keypoints: int, *, tag_numbers: int = 1) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.conv = nn.Conv2d(channels, (1 + tag_numbers) * num_keypoints, 1)
        initialise(self)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        predicted = self.conv(features)
        return predicted[:, : self.num_keypoints], predicted[:, self.num_keypoints :]


class SeparableHead(nn.Module):
    """MoveNet's heads: separable convolutions, then 1x1 to heatmaps (with a sigmoid) and to tags.

    Tags read what the heatmaps read and a branch of their own, which MoveNet used for regression.
    """

    def __init__(
        self, channels: int, num_keypoints: int, *, width: int, tag_numbers: int = 1
    ) -> None:
        super().__init__()
        self.heatmap_branch = SeparableConv(channels, width)
        self.tag_branch = SeparableConv(channels, width)
        initialise_without_norms(self)
        self.heatmaps = nn.Conv2d(width, num_keypoints, 1)
        self.tags = nn.Conv2d(2 * width, tag_numbers * num_keypoints, 1)
        for last in (self.heatmaps, self.tags):
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # typed as optional

    def forward(self, features: Tensor, tag_features: Tensor) -> tuple[Tensor, Tensor]:
        of_heatmaps = self.heatmap_branch(features)
        of_tags = torch.cat([of_heatmaps, self.tag_branch(tag_features)], dim=1)
        return torch.sigmoid(self.heatmaps(of_heatmaps)), self.tags(of_tags)


class HigherHRNet(nn.Module):
    """Pictures (B, 3, H, W) -> HigherHRNetOutput; H and W are multiples of 32."""

    def __init__(self, settings: HigherHRNetSettings, *, num_keypoints: int = 17) -> None:
        super().__init__()
        self.settings = settings
        self.num_keypoints = num_keypoints
        channels = settings.backbone.channels
        self.backbone = build_backbone(settings.backbone)
        self.second_pyramid = _second_pyramid(settings)
        self.first_head = (
            SeparableHead(
                channels,
                num_keypoints,
                width=settings.separable_head,
                tag_numbers=settings.tag_numbers,
            )
            if settings.separable_head
            else LinearHead(channels, num_keypoints, tag_numbers=settings.tag_numbers)
        )
        self.upsamplers = nn.ModuleList()
        self.higher_heads = nn.ModuleList()
        inputs = 2 * channels if settings.second_pyramid else channels
        predicted = (1 + settings.tag_numbers) * num_keypoints
        channels = settings.deconv_channels or channels
        for _ in range(settings.deconvs):
            inputs += predicted if settings.concatenate else 0
            self.upsamplers.append(
                Upsampler(inputs, channels, residual_blocks=settings.residual_blocks)
            )
            self.higher_heads.append(nn.Conv2d(channels, num_keypoints, 1))
            inputs, predicted = channels, num_keypoints  # tags are predicted at 1/4 only
        initialise(self.upsamplers, self.higher_heads)

    def forward(self, images: Tensor) -> HigherHRNetOutput:
        features, heatmaps, tags = self._first_level(images)
        levels, predicted = [heatmaps], [heatmaps, tags]
        for upsampler, head in zip(self.upsamplers, self.higher_heads, strict=True):
            if self.settings.concatenate:
                features = joined(features, *predicted)
            features = upsampler(features)  # twice the size
            predicted = [head(features)]
            levels += predicted
        return HigherHRNetOutput(tuple(levels), tags)

    def _first_level(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features for the deconvolution (B, C, H/4, W/4), and the heatmaps and tags there."""
        if not isinstance(self.first_head, SeparableHead):
            features = self.backbone(images)
            return features, *self.first_head(features)
        if self.second_pyramid is None:
            features = self.backbone(images)
            return features, *self.first_head(features, features)
        assert isinstance(self.backbone, MobileFpn)  # _second_pyramid made sure
        seen = self.backbone.trunk(images)
        first, second = self.backbone.pyramid(seen), self.second_pyramid(seen)
        return torch.cat([first, second], dim=1), *self.first_head(first, second)

    def maps(self, output: HigherHRNetOutput) -> Maps:
        """What the decode reads of an output."""
        levels = choose_levels(output.heatmaps, self.settings.aggregation)
        numbers = output.tags.chunk(self.settings.tag_numbers, dim=1)
        return Maps(levels, torch.stack(numbers, dim=-1))


def build_backbone(settings: BackboneSettings) -> HRNet | MobileFpn:
    """Both end at features (B, settings.channels, H/4, W/4)."""
    return HRNet(settings) if isinstance(settings, HRNetSettings) else MobileFpn(settings)


def _second_pyramid(settings: HigherHRNetSettings) -> FeaturePyramid | None:
    if not settings.second_pyramid:
        return None
    if not isinstance(settings.backbone, MobileFpnSettings) or not settings.separable_head:
        raise ValueError(
            "second_pyramid needs a MobileFpn backbone and separable_head above 0; leave it out"
        )
    return FeaturePyramid(settings.backbone)
