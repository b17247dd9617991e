"""DoubleHigherNet: two HigherHRNet pyramids, one after the other, on one backbone.

                   .-------------- coarse: heatmaps, tags 1/4
    features 1/4 --+-fusion- deconvolution --+-- coarse: heatmaps 1/2
          |                                  |
       bridge 1/4                        bridge 1/2
          |                                  |
          +----- fine: heatmaps, tags 1/4    '------------.
          '-fusion- deconvolution ---------------------fusion- fine: heatmaps 1/2

The paper leaves points open; where it does, a setting says what is chosen here and why. What is
chosen by default keeps "all features of C channels" and the paper's number of parameters.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nets.aggregation import LevelAggregation, Maps, average_stages, choose_levels
from nets.blocks import BasicBlock, Bottleneck, ConvNorm, Upsampler, initialise, joined
from nets.higher_hrnet import BackboneSettings, LinearHead, build_backbone
from nets.hrnet import W32


@dataclass(frozen=True)
class DoubleHigherNetSettings:
    """A backbone and the two pyramids on it."""

    backbone: BackboneSettings = W32
    fusion: Literal["attention", "concatenation"] = "attention"
    """How features and predictions join (table 2)."""
    stage_aggregation: bool = True
    """Decode the average of coarse and fine heatmaps (table 2); else the fine ones alone."""
    aggregation: LevelAggregation = "on"
    """Which levels the decode averages: see nets.aggregation.choose_levels."""
    bridge_low: int = 4
    """Bottlenecks between the stages at 1/4. The paper: "different numbers at the two levels"."""
    bridge_high: int = 2
    """The same at 1/2, where one costs four times as much."""
    bridge_expansion: int = 1
    """Channels inside a bottleneck as a multiple of C; 1 follows "all features share C"."""
    fuse_tags: bool = True
    """The fusion at 1/4 takes tags too, as HigherHRNet's; the paper: "feature and heatmaps"."""
    wide_deconv: bool = False
    """Deconvolutions keep all fused channels and a 1x1 convolution reduces them to C; else the
    deconvolution does it at once. The paper's sentence on it can be read both ways."""
    residual_blocks: int = 0
    """Basic blocks after each deconvolution. HigherHRNet has 4; this paper mentions none."""


class DoubleHigherNetOutput(NamedTuple):
    """Raw predictions of both stages, no activation; a pair is (1/4, 1/2)."""

    coarse_heatmaps: tuple[Tensor, Tensor]
    """(B, K, H/4, W/4), (B, K, H/2, W/2)."""
    coarse_tags: Tensor
    """(B, K, H/4, W/4); trained, never decoded."""
    fine_heatmaps: tuple[Tensor, Tensor]
    fine_tags: Tensor
    """(B, K, H/4, W/4)."""


class ChannelAttention(nn.Module):
    """The weighting of an attention fusion: each channel of (B, n, h, w) times a number in 0..1.

    Squeeze and excitation with reduction 4: sigmoid(FC(ReLU(FC(mean over h, w)))).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 4)
        self.excite = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * weights[:, :, None, None]


class HeatmapPyramid(nn.Module):
    """One stage up to its 1/2 features: 1/4 heatmaps and tags, and their fusion deconvolved."""

    def __init__(self, settings: DoubleHigherNetSettings, num_keypoints: int) -> None:
        super().__init__()
        channels = settings.backbone.channels
        fused = channels + (2 if settings.fuse_tags else 1) * num_keypoints
        self.fuse_tags = settings.fuse_tags
        self.head = LinearHead(channels, num_keypoints)
        self.fusion = _fusion(settings, fused)
        self.upsampler = _upsampler(settings, fused)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heatmaps, tags = self.head(features)
        predicted = [heatmaps, tags] if self.fuse_tags else [heatmaps]
        fused = self.fusion(joined(features, *predicted))
        return heatmaps, tags, self.upsampler(fused)  # features (B, C, H/2, W/2)


class DoubleHigherNet(nn.Module):
    """Pictures (B, 3, H, W) -> DoubleHigherNetOutput; H and W are multiples of 32."""

    def __init__(self, settings: DoubleHigherNetSettings, *, num_keypoints: int = 17) -> None:
        super().__init__()
        self.settings = settings
        self.num_keypoints = num_keypoints
        channels = settings.backbone.channels
        self.backbone = build_backbone(settings.backbone)
        self.coarse = HeatmapPyramid(settings, num_keypoints)
        self.coarse_head = nn.Conv2d(channels, num_keypoints, 1)
        self.bridge_low = _bridge(settings, settings.bridge_low)
        self.bridge_high = _bridge(settings, settings.bridge_high)
        self.fine = HeatmapPyramid(settings, num_keypoints)
        self.fine_fusion = _fusion(settings, 2 * channels)
        self.fine_head = nn.Conv2d(2 * channels, num_keypoints, 1)
        initialise(self.coarse, self.coarse_head, self.bridge_low, self.bridge_high)
        initialise(self.fine, self.fine_fusion, self.fine_head)

    def forward(self, images: Tensor) -> DoubleHigherNetOutput:
        features = self.backbone(images)  # (B, C, H/4, W/4)
        coarse_low, coarse_tags, coarse = self.coarse(features)
        fine_low, fine_tags, fine = self.fine(self.bridge_low(features))
        both = self.fine_fusion(torch.cat([self.bridge_high(coarse), fine], dim=1))
        return DoubleHigherNetOutput(
            coarse_heatmaps=(coarse_low, self.coarse_head(coarse)),
            coarse_tags=coarse_tags,
            fine_heatmaps=(fine_low, self.fine_head(both)),
            fine_tags=fine_tags,
        )

    def maps(self, output: DoubleHigherNetOutput) -> Maps:
        """What the decode reads of an output: tags are the fine stage's, never averaged."""
        levels: tuple[Tensor, ...] = output.fine_heatmaps
        if self.settings.stage_aggregation:
            levels = average_stages(output.coarse_heatmaps, output.fine_heatmaps)
        return Maps(
            choose_levels(levels, self.settings.aggregation), output.fine_tags.unsqueeze(-1)
        )


def _fusion(settings: DoubleHigherNetSettings, channels: int) -> nn.Module:
    """What is done to concatenated maps; by concatenation alone, nothing."""
    return ChannelAttention(channels) if settings.fusion == "attention" else nn.Identity()


def _upsampler(settings: DoubleHigherNetSettings, fused: int) -> nn.Module:
    channels, blocks = settings.backbone.channels, settings.residual_blocks
    if not settings.wide_deconv:
        return Upsampler(fused, channels, residual_blocks=blocks)
    return nn.Sequential(
        Upsampler(fused, fused, residual_blocks=0),
        ConvNorm(fused, channels, 1),
        *(BasicBlock(channels) for _ in range(blocks)),
    )


def _bridge(settings: DoubleHigherNetSettings, bottlenecks: int) -> nn.Sequential:
    """The residual blocks that lead from the coarse stage to the fine one."""
    channels = settings.backbone.channels
    middle = channels * settings.bridge_expansion
    return nn.Sequential(
        *(Bottleneck(channels, channels, middle=middle) for _ in range(bottlenecks))
    )
