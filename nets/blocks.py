"""The bricks that the networks share: convolution + norm, residual blocks, the deconvolution.

Nothing here knows of heatmaps or people. All convolutions under a norm are bias-free; every norm is
a BatchNorm with eps 1e-5 and momentum 0.1, as published.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """Convolution (no bias, same size / stride), batch norm and, by default, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ReLU after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3)
        self.second = ConvNorm(channels, channels, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Bottleneck(nn.Module):
    """1x1 to `middle` channels, 3x3, 1x1 to `outputs`, beside a shortcut; ReLU after the sum.

    The shortcut is a 1x1 convolution + norm where the number of channels changes.
    """

    def __init__(self, inputs: int, outputs: int, *, middle: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(inputs, middle, 1)
        self.conv = ConvNorm(middle, middle, 3)
        self.expand = ConvNorm(middle, outputs, 1, relu=False)
        self.shortcut = (
            nn.Identity() if inputs == outputs else ConvNorm(inputs, outputs, 1, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.expand(self.conv(self.reduce(x))))


class Upsampler(nn.Module):
    """Deconvolution that doubles the size, norm, ReLU, then residual blocks.

    HigherHRNet (Cheng et al. 2020) sec. 3.3: 4x4 kernel, stride 2, four residual blocks.
    """

    def __init__(self, inputs: int, outputs: int, *, residual_blocks: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.blocks = nn.Sequential(*(BasicBlock(outputs) for _ in range(residual_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.deconv(x))))  # (B, outputs, 2h, 2w)
        return x


def joined(features: Tensor, *predicted: Tensor) -> Tensor:
    """Features and what was predicted from them, along channels, in the features' precision.

    In a half-precision net (nets.engines.half_precision) the predictions are float32.
    """
    kind = features.dtype  # asked because a cast that does nothing stays in exported graphs
    alike = (x if x.dtype == kind else x.to(kind) for x in predicted)
    return torch.cat([features, *alike], dim=1)


def initialise(*parts: nn.Module) -> None:
    """Start values of the published training: convolutions N(0, 0.001), biases 0, norms 1 and 0.

    Linear layers, which only DoubleHigherNet has and its paper says nothing of, keep torch's own.
    """
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
