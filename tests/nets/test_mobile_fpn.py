"""MobileFpn and the heads of higher_mobile against a second definition on their state dict."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nets.higher_hrnet import HigherHRNet, HigherHRNetSettings
from nets.hrnet import W32
from nets.mobile_fpn import MobileFpn, MobileFpnSettings
from tests.support.random_model import random_model

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, Tensor]

# MoveNet MultiPose Lightning, read off its graph: in, expanded, out channels; stride 2 where noted.
MOVENET_BLOCKS = [
    (48, 48, 24), (24, 144, 40), (40, 240, 40), (40, 240, 48), (48, 288, 48), (48, 288, 48),
    (48, 288, 96), (96, 576, 96), (96, 576, 96), (96, 576, 96), (96, 576, 144), (144, 864, 144),
    (144, 864, 144), (144, 864, 240), (240, 1440, 240), (240, 1440, 240), (240, 1440, 480),
]  # fmt: skip
STRIDE_2 = (1, 3, 6, 13)


def same_conv(w: Weights, key: str, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution with TensorFlow's SAME padding: what is odd goes to the bottom and right."""
    kernel = w[f"{key}.weight"]
    groups = x.shape[1] // kernel.shape[1]
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        outputs = -(-side // stride)
        total = max((outputs - 1) * stride + kernel.shape[-1] - side, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), kernel, w.get(f"{key}.bias"), stride, groups=groups)


def separable(w: Weights, key: str, x: Tensor) -> Tensor:
    return same_conv(w, f"{key}.pointwise", same_conv(w, f"{key}.depthwise", x)).clamp(min=0)


def twice(x: Tensor) -> Tensor:
    """Bilinear upsampling by 2, half-pixel centres: 3/4 of the near pixel, 1/4 of the next."""
    for dim in (2, 3):
        n = x.shape[dim]
        before = x.index_select(dim, torch.arange(n).sub(1).clamp(min=0))
        after = x.index_select(dim, torch.arange(n).add(1).clamp(max=n - 1))
        pair = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim=dim + 1)
        x = pair.flatten(dim, dim + 1)
    return x


def features(w: Weights, x: Tensor, pyramid: str) -> Tensor:
    x = same_conv(w, "backbone.stem", x, stride=2).clamp(0, 6)
    outputs = []
    for block in range(17):
        key, y = f"backbone.blocks.{block}", x
        if f"{key}.expand.weight" in w:
            y = same_conv(w, f"{key}.expand", y).clamp(0, 6)
        y = same_conv(w, f"{key}.depthwise", y, stride=2 if block in STRIDE_2 else 1).clamp(0, 6)
        y = same_conv(w, f"{key}.project", y)
        x = x + y if y.shape == x.shape else y
        outputs.append(x)
    top = same_conv(w, "backbone.top", x).clamp(0, 6)
    x = same_conv(w, f"{pyramid}.entry", top)
    for level, block in enumerate((9, 5, 2)):
        lateral = same_conv(w, f"{pyramid}.laterals.{level}", outputs[block])
        x = separable(w, f"{pyramid}.merges.{level}", twice(x) + lateral)
    return x


@pytest.mark.parametrize("second_pyramid", [True, False])
def test_network_computes_what_its_definition_says(second_pyramid: bool) -> None:
    net = random_model("higher_mobile", width=16, second_pyramid=second_pyramid).net
    w = dict(net.state_dict())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = net(images)
        x = features(w, images, "backbone.pyramid")
        second = features(w, images, "second_pyramid") if second_pyramid else x
        of_heatmaps = separable(w, "first_head.heatmap_branch", x)
        of_tags = separable(w, "first_head.tag_branch", second)
        low = torch.sigmoid(same_conv(w, "first_head.heatmaps", of_heatmaps))
        tags = same_conv(w, "first_head.tags", torch.cat([of_heatmaps, of_tags], dim=1))
        deconv = w["upsamplers.0.deconv.weight"]
        read = [x, second, low, tags] if second_pyramid else [x, low, tags]
        y = F.conv_transpose2d(torch.cat(read, dim=1), deconv, stride=2, padding=1)
        norm = [w[f"upsamplers.0.norm.{p}"] for p in ("running_mean", "running_var")]
        scale = [w[f"upsamplers.0.norm.{p}"] for p in ("weight", "bias")]
        y = F.batch_norm(y, *norm, *scale).clamp(min=0)
        high = same_conv(w, "higher_heads.0", y)
    for ours, theirs in (
        (output.heatmaps[0], low),
        (output.tags, tags),
        (output.heatmaps[1], high),
    ):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("separable_head", [0, 16])
def test_tags_of_two_numbers_are_side_by_side(separable_head: int) -> None:
    net = random_model(
        "higher_mobile",
        width=8,
        tag_numbers=2,
        separable_head=separable_head,
        second_pyramid=separable_head > 0,
    ).net
    with torch.inference_mode():
        output = net(torch.randn(2, 3, 64, 96))
        maps = net.maps(output)  # type: ignore[operator]
    assert output.heatmaps[0].shape == (2, 17, 16, 24)
    assert output.tags.shape == (2, 34, 16, 24)
    assert maps.tags.shape == (2, 17, 16, 24, 2)
    for number in range(2):
        for keypoint in (0, 16):
            assert torch.equal(
                maps.tags[:, keypoint, ..., number], output.tags[:, 17 * number + keypoint]
            )


@pytest.mark.parametrize("changes", [{"separable_head": 0}, {"backbone": W32}])
def test_a_second_pyramid_needs_its_trunk_and_its_head(changes: dict[str, Any]) -> None:
    settings = replace(HigherHRNetSettings(MobileFpnSettings(), separable_head=8), **changes)
    with pytest.raises(ValueError, match="second_pyramid needs a MobileFpn backbone and separable"):
        HigherHRNet(replace(settings, second_pyramid=True))


def test_heatmaps_at_a_quarter_do_not_see_the_second_pyramid() -> None:
    net = random_model("higher_mobile", width=8).net
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = net(images)
        for weight in net.second_pyramid.parameters():  # type: ignore[union-attr]
            weight.add_(0.1)
        after = net(images)
    assert torch.equal(after.heatmaps[0], before.heatmaps[0])
    assert not torch.equal(after.tags, before.tags)


def test_default_widths_are_those_of_movenet() -> None:
    with torch.device("meta"):
        net = MobileFpn(MobileFpnSettings())
    w = net.state_dict()
    for index, (inputs, expanded, outputs) in enumerate(MOVENET_BLOCKS):
        assert w[f"blocks.{index}.depthwise.weight"].shape == (expanded, 1, 3, 3)
        assert w[f"blocks.{index}.project.weight"].shape == (outputs, expanded, 1, 1)
        key = f"blocks.{index}.expand.weight"
        assert (key in w) == (inputs != expanded)
        assert key not in w or w[key].shape == (expanded, inputs, 1, 1)


def test_start_values_keep_activations_alive() -> None:
    torch.manual_seed(0)
    net = MobileFpn(MobileFpnSettings(width=16))
    with torch.inference_mode():
        x = net(torch.randn(2, 3, 128, 128))
    assert 0.05 < x.std() < 50
    assert (x > 0).float().mean() > 0.1
