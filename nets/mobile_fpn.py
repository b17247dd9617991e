"""MobileNetV2 (Sandler et al. 2018) with a feature pyramid that ends at stride 4.

    picture - stem - inverted residuals  1/4 ---- 1/8 ---- 1/16 --- 1/32 - top
                                          |        |         |          |
                   features 1/4 <-merge-- + <-merge- + <-merge- + <------'     <- : twice the size

This is the backbone of MoveNet MultiPose Lightning, whose weights can be loaded: norms are folded
into the convolutions, and stride 2 pads at the bottom and right only (TensorFlow's SAME).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

# Sandler et al. 2018, table 2: expansion, channels, repeats, stride of the first.
_TABLE_2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LATERAL_BLOCKS = (9, 5, 2)
"""The inverted residuals whose outputs join the pyramid at 1/16, 1/8, 1/4."""


@dataclass(frozen=True)
class MobileFpnSettings:
    """Sizes of a MobileFpn. The defaults are those of MoveNet MultiPose Lightning."""

    width: int = 48
    """Channels of the stem. MobileNetV2 has 32; all its other widths grow by the same factor."""
    top: int = 1280
    """Channels of the last convolution of the trunk, at 1/32."""
    pyramid: tuple[int, int, int] = (64, 32, 24)
    """Channels of the pyramid at 1/16, 1/8 and 1/4."""

    @property
    def channels(self) -> int:
        """Channels of the features at 1/4."""
        return self.pyramid[-1]


MOVENET_MULTIPOSE = MobileFpnSettings()


class SamePadConv(nn.Conv2d):
    """3x3 convolution of stride 2 on even sizes that pads at the bottom and right only."""

    def __init__(self, inputs: int, outputs: int, *, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(F.pad(x, (0, 1, 0, 1)))
        return y


class InvertedResidual(nn.Module):
    """1x1 to `expanded` channels, 3x3 on each of them, 1x1 back; ReLU6 after the first two."""

    def __init__(self, inputs: int, expanded: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, expanded, 1) if expanded != inputs else None
        self.depthwise: nn.Conv2d = (
            nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded)
            if stride == 1
            else SamePadConv(expanded, expanded, groups=expanded)
        )
        self.project = nn.Conv2d(expanded, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        inner = self.project(F.relu6(self.depthwise(inner)))
        return x + inner if self.shortcut else inner


class SeparableConv(nn.Module):
    """3x3 on each channel, 1x1 across them, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pointwise(self.depthwise(x)))


class FeaturePyramid(nn.Module):
    """What the trunk saw at four sizes, merged from coarse to fine into features at 1/4."""

    def __init__(self, settings: MobileFpnSettings) -> None:
        super().__init__()
        widths = [block.project.out_channels for block in _blocks(settings.width)]
        self.entry = nn.Conv2d(settings.top, settings.pyramid[0], 1)
        self.laterals = nn.ModuleList(
            nn.Conv2d(widths[block], channels, 1)
            for block, channels in zip(_LATERAL_BLOCKS, settings.pyramid, strict=True)
        )
        self.merges = nn.ModuleList(
            SeparableConv(inputs, outputs)
            for inputs, outputs in zip(
                settings.pyramid, [*settings.pyramid[1:], settings.channels], strict=True
            )
        )
        initialise_without_norms(self)

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        coarsest, *finer = seen
        x: Tensor = self.entry(coarsest)  # (B, pyramid[0], H/32, W/32)
        for lateral, merge, same_size in zip(self.laterals, self.merges, finer, strict=True):
            # A scale factor, not a size: engines fix it without knowing the picture's size.
            upsampled = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = merge(upsampled + lateral(same_size))
        return x


class MobileFpn(nn.Module):
    """Pictures (B, 3, H, W), sides multiples of 32 -> features (B, pyramid[-1], H/4, W/4)."""

    def __init__(self, settings: MobileFpnSettings) -> None:
        super().__init__()
        self.stem = SamePadConv(3, settings.width)
        blocks = _blocks(settings.width)
        self.blocks = nn.ModuleList(blocks)
        self.top = nn.Conv2d(blocks[-1].project.out_channels, settings.top, 1)
        initialise_without_norms(self)
        self.pyramid = FeaturePyramid(settings)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pyramid(self.trunk(images))
        return features

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """What a pyramid merges: the top at 1/32, then the blocks' outputs at 1/16, 1/8, 1/4."""
        x: Tensor = F.relu6(self.stem(images))
        outputs: list[Tensor] = []
        for residual in self.blocks:
            x = residual(x)
            outputs.append(x)
        return F.relu6(self.top(x)), *(outputs[block] for block in _LATERAL_BLOCKS)


def _blocks(width: int) -> list[InvertedResidual]:
    blocks, inputs = [], width
    for expansion, base, repeats, first_stride in _TABLE_2:
        outputs = _scaled(base, width)
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            blocks.append(InvertedResidual(inputs, expansion * inputs, outputs, stride=stride))
            inputs = outputs
    return blocks


def _scaled(base: int, width: int) -> int:
    """Table 2's channels at this width, to the nearest multiple of 8, at least 8."""
    return max(8, (base * width // 32 + 4) // 8 * 8)


def initialise_without_norms(net: nn.Module) -> None:
    """He et al. (2015) for every convolution, biases 0: without norms, smaller values vanish."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
