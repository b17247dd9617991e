"""HRNet: branches of four resolutions side by side, exchanged again and again (Sun et al. 2019).

    picture - stem - bottlenecks - branch 1/4  ===x===x===x== 1/4 features
                          \\- branch 1/8  =====x===x===x
                                \\- branch 1/16 ==x===x
                                       \\- branch 1/32 x       x: every branch adds all the others

This file ends at the 1/4 features; what is predicted from them is the heads' business.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from nets.blocks import BasicBlock, Bottleneck, ConvNorm, initialise


@dataclass(frozen=True)
class HRNetSettings:
    """Sizes of an HRNet. The defaults are the published W32."""

    width: int = 32
    """Channels of the 1/4 branch; each coarser branch has twice those of the one before it."""
    stem: int = 64
    """Channels of the two stride-2 convolutions."""
    bottlenecks: int = 4
    bottleneck_channels: int = 256
    """Channels after the bottlenecks; a quarter of them inside."""
    modules: tuple[int, int, int] = (1, 4, 3)
    """Exchange modules of the stages with two, three and four branches."""
    blocks: int = 4
    """Basic blocks of a branch between two exchanges."""

    @property
    def channels(self) -> int:
        """Channels of the features at 1/4."""
        return self.width


W32 = HRNetSettings(width=32)
W40 = HRNetSettings(width=40)
W48 = HRNetSettings(width=48)
LITE = HRNetSettings(
    width=32, stem=32, bottlenecks=2, bottleneck_channels=128, modules=(1, 1, 1), blocks=2
)


class ExchangeModule(nn.Module):
    """Basic blocks on every branch, then each output is the sum of all branches at its size."""

    def __init__(self, widths: list[int], *, blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths
        )
        self.exchange = nn.ModuleList(
            nn.ModuleList(
                _path(widths, source=source, target=target) for source in range(len(widths))
            )
            for target in range(outputs)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        return [_summed(paths, features) for paths in self.exchange]


def _summed(paths: nn.Module, features: list[Tensor]) -> Tensor:
    assert isinstance(paths, nn.ModuleList)
    total, *others = (path(x) for path, x in zip(paths, features, strict=True))
    for other in others:
        total = total + other
    return F.relu(total)


def _path(widths: list[int], *, source: int, target: int) -> nn.Module:
    """From the source branch's size and channels to the target's; branch 0 is the finest."""
    if source == target:
        return nn.Identity()
    if source > target:  # a scale factor, not a size: TensorRT converts no other nearest upsampling
        return nn.Sequential(
            ConvNorm(widths[source], widths[target], 1, relu=False),
            nn.Upsample(scale_factor=2.0 ** (source - target), mode="nearest"),
        )
    steps = [
        ConvNorm(widths[source], widths[source], 3, stride=2) for _ in range(target - source - 1)
    ]
    return nn.Sequential(*steps, ConvNorm(widths[source], widths[target], 3, stride=2, relu=False))


class HRNet(nn.Module):
    """Pictures (B, 3, H, W), sides multiples of 32 -> features (B, width, H/4, W/4)."""

    def __init__(self, settings: HRNetSettings) -> None:
        super().__init__()
        widths = [settings.width * 2**branch for branch in range(4)]
        stem, wide = settings.stem, settings.bottleneck_channels
        self.stem = nn.Sequential(ConvNorm(3, stem, 3, stride=2), ConvNorm(stem, stem, 3, stride=2))
        self.bottlenecks = nn.Sequential(
            *(
                Bottleneck(wide if block else stem, wide, middle=wide // 4)
                for block in range(settings.bottlenecks)
            )
        )
        self.narrow = ConvNorm(wide, widths[0], 3)
        # Each new branch grows out of the coarsest one before it.
        self.new_branches = nn.ModuleList(
            ConvNorm(inputs, width, 3, stride=2)
            for inputs, width in zip([wide, *widths[1:3]], widths[1:], strict=True)
        )
        self.stages = nn.ModuleList(
            _stage(widths[: branches + 2], modules, settings.blocks)
            for branches, modules in enumerate(settings.modules)
        )
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bottlenecks(self.stem(images))  # (B, bottleneck_channels, H/4, W/4)
        features: list[Tensor] = [self.narrow(x)]
        coarsest = x
        for new_branch, stage in zip(self.new_branches, self.stages, strict=True):
            features = stage([*features, new_branch(coarsest)])
            coarsest = features[-1]
        return features[0]


def _stage(widths: list[int], modules: int, blocks: int) -> nn.Sequential:
    """The last module of the last stage makes the 1/4 output only: nothing reads the others."""
    last_stage = len(widths) == 4
    return nn.Sequential(
        *(
            ExchangeModule(
                widths,
                blocks=blocks,
                outputs=1 if last_stage and module == modules - 1 else len(widths),
            )
            for module in range(modules)
        )
    )
