"""A network in half precision whose last convolutions stay float32.

    images float16 -> trunk, upsampling: float16 -> last convolutions: float32 -> heatmaps, tags

The nets' outputs need more than half precision: tags near 8 are 1/128 apart in float16, coarser
than the matching's rounding likes, and equal neighbours at the top of a heatmap become two peaks.
Norms are folded into the convolutions before them, in float32: a variance of 1e-7 has only one bit
in float16. TensorRT computes in the precision that a network is written in, so this is how its
engines get theirs; torch runs the same copy on a GPU.
"""

import copy

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nets.blocks import ConvNorm, Upsampler
from nets.double_higher_net import DoubleHigherNet
from nets.higher_hrnet import HigherHRNet, LinearHead, SeparableHead


class Float32Head(nn.Module):
    """A convolution that computes and writes float32, whatever the net around it is in."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, features: Tensor) -> Tensor:
        predicted: Tensor = self.conv(features.float())
        return predicted


def half_copy(net: nn.Module) -> nn.Module:
    """A copy of a net for inference in float16, whose outputs are float32.

    Args:
        net: a HigherHRNet or DoubleHigherNet; it stays as it is.
    Raises:
        ValueError: another net, whose last convolutions are not known here.
    """
    if not isinstance(net, HigherHRNet | DoubleHigherNet):
        raise ValueError(
            f"half precision knows HigherHRNet and DoubleHigherNet, got {type(net).__name__}; "
            "pass precision='fp32'"
        )
    net = folded_copy(net)
    heads = {id(head) for head in _last_convolutions(net)}
    kept = {name: module for name, module in net.named_modules() if id(module) in heads}
    for name in kept:
        net.set_submodule(name, nn.Identity())  # out of reach of half(), which rounds
    net.half()
    for name, head in kept.items():
        net.set_submodule(name, Float32Head(head))
    return net


def folded_copy(net: nn.Module) -> nn.Module:
    """A copy of a net for inference whose norms are folded into the convolutions before them."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
        elif isinstance(module, Upsampler):
            module.deconv = fuse_conv_bn_eval(module.deconv, module.norm, transpose=True)
        else:
            continue
        module.register_module("norm", nn.Identity())
    return net


def _last_convolutions(net: nn.Module) -> list[nn.Module]:
    """What writes heatmaps and tags."""
    found: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, LinearHead):
            found.append(module.conv)
        elif isinstance(module, SeparableHead):
            found += [module.heatmaps, module.tags]
        elif isinstance(module, HigherHRNet):
            found += module.higher_heads
        elif isinstance(module, DoubleHigherNet):
            found += [module.coarse_head, module.fine_head]
    return found
