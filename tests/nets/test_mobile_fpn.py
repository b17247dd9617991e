"""MobileFpn and the heads of higher_mobile against a second definition on their state dict."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nets.checkpoints import random_model
from nets.mobile_fpn import MobileFpn, MobileFpnSettings

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


def features(w: Weights, x: Tensor) -> Tensor:
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
    x = same_conv(w, "backbone.entry", top)
    for level, block in enumerate((9, 5, 2)):
        lateral = same_conv(w, f"backbone.laterals.{level}", outputs[block])
        x = separable(w, f"backbone.merges.{level}", twice(x) + lateral)
    return x


def test_network_computes_what_its_definition_says() -> None:
    net = random_model("higher_mobile", width=16).net
    w = dict(net.state_dict())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = net(images)
        x = features(w, images)
        of_heatmaps = separable(w, "first_head.heatmap_branch", x)
        of_tags = separable(w, "first_head.tag_branch", x)
        low = torch.sigmoid(same_conv(w, "first_head.heatmaps", of_heatmaps))
        tags = same_conv(w, "first_head.tags", torch.cat([of_heatmaps, of_tags], dim=1))
        deconv = w["upsamplers.0.deconv.weight"]
        y = F.conv_transpose2d(torch.cat([x, low, tags], dim=1), deconv, stride=2, padding=1)
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
    net = random_model("higher_mobile", width=8, tag_numbers=2, separable_head=separable_head).net
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
