"""HRNet and its published heads against a second definition: plain functions on official keys."""

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nets.checkpoints import our_name
from nets.hrnet import HRNet, HRNetSettings
from tests.support.places import DATA
from tests.support.random_model import random_model

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, Tensor]

OFFICIAL_KEYS = json.loads((DATA / "net_w32_keys.json").read_text())["keys"]


def conv(w: Weights, conv_key: str, norm_key: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = w[f"{conv_key}.weight"]
    x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)
    return normed(w, norm_key, x)


def normed(w: Weights, key: str, x: Tensor) -> Tensor:
    mean, var = w[f"{key}.running_mean"], w[f"{key}.running_var"]
    scale = w[f"{key}.weight"] / torch.sqrt(var + 1e-5)
    return (x - mean[:, None, None]) * scale[:, None, None] + w[f"{key}.bias"][:, None, None]


def basic_block(w: Weights, key: str, x: Tensor) -> Tensor:
    y = conv(w, f"{key}.conv1", f"{key}.bn1", x).relu()
    return (conv(w, f"{key}.conv2", f"{key}.bn2", y) + x).relu()


def bottleneck(w: Weights, key: str, x: Tensor) -> Tensor:
    y = conv(w, f"{key}.conv1", f"{key}.bn1", x).relu()
    y = conv(w, f"{key}.conv2", f"{key}.bn2", y).relu()
    y = conv(w, f"{key}.conv3", f"{key}.bn3", y)
    if f"{key}.downsample.0.weight" in w:
        x = conv(w, f"{key}.downsample.0", f"{key}.downsample.1", x)
    return (x + y).relu()


def exchange(w: Weights, key: str, xs: list[Tensor], outputs: int) -> list[Tensor]:
    sums = []
    for i in range(outputs):
        total = torch.zeros(())
        for j, source in enumerate(xs):
            x, fuse = source, f"{key}.fuse_layers.{i}.{j}"
            if j > i:
                x = conv(w, f"{fuse}.0", f"{fuse}.1", x)
                x = x.repeat_interleave(2 ** (j - i), 2).repeat_interleave(2 ** (j - i), 3)
            for k in range(i - j):
                x = conv(w, f"{fuse}.{k}.0", f"{fuse}.{k}.1", x, stride=2)
                x = x.relu() if k < i - j - 1 else x
            total = total + x
        sums.append(total.relu())
    return sums


def official_backbone(w: Weights, x: Tensor) -> Tensor:
    x = conv(w, "conv1", "bn1", x, stride=2).relu()
    x = conv(w, "conv2", "bn2", x, stride=2).relu()
    for block in range(4):
        x = bottleneck(w, f"layer1.{block}", x)
    xs = [
        conv(w, "transition1.0.0", "transition1.0.1", x).relu(),
        conv(w, "transition1.1.0.0", "transition1.1.0.1", x, stride=2).relu(),
    ]
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        if stage > 2:
            key = f"transition{stage - 1}.{stage - 1}.0"
            xs = [*xs, conv(w, f"{key}.0", f"{key}.1", xs[-1], stride=2).relu()]
        for module in range(modules):
            key = f"stage{stage}.{module}"
            for branch in range(stage):
                for block in range(4):
                    xs[branch] = basic_block(w, f"{key}.branches.{branch}.{block}", xs[branch])
            last = stage == 4 and module == modules - 1
            xs = exchange(w, key, xs, outputs=1 if last else stage)
    return xs[0]


def official_outputs(w: Weights, images: Tensor) -> tuple[Tensor, Tensor]:
    """The (B, 2K, h, w) and (B, K, 2h, 2w) outputs of the published network."""
    features = official_backbone(w, images)
    low = F.conv2d(features, w["final_layers.0.weight"], w["final_layers.0.bias"])
    x = torch.cat([features, low], dim=1)
    x = F.conv_transpose2d(x, w["deconv_layers.0.0.0.weight"], stride=2, padding=1)
    x = normed(w, "deconv_layers.0.0.1", x).relu()
    for block in range(1, 5):
        x = basic_block(w, f"deconv_layers.0.{block}.0", x)
    return low, F.conv2d(x, w["final_layers.1.weight"], w["final_layers.1.bias"])


def test_network_computes_what_the_published_one_does() -> None:
    model = random_model("higher_hrnet_w32", width=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms and biases of their own, so that none can be confused
        for parameter in model.net.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    own = model.net.state_dict()
    weights = {key: own[our_name(key)] for key in OFFICIAL_KEYS}
    images = torch.randn(1, 3, 64, 96, generator=generator)
    with torch.inference_mode():
        output = model.net(images)
        low, high = official_outputs(weights, images)
    for ours, theirs in (
        (torch.cat([output.heatmaps[0], output.tags], dim=1), low),
        (output.heatmaps[1], high),
    ):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())


def test_every_weight_of_the_published_backbone_is_used() -> None:
    settings = HRNetSettings(width=8, modules=(1, 1, 2), blocks=1, bottlenecks=2)
    net = HRNet(settings)
    with torch.no_grad():  # the published start values are too small for a gradient to survive
        for parameter in net.parameters():
            if parameter.dim() == 4:
                parameter.mul_(100)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    unused = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


def test_features_are_at_a_quarter_of_the_picture() -> None:
    net = HRNet(HRNetSettings(width=8, modules=(1, 1, 1), blocks=1, bottlenecks=1)).eval()
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 96, 160)).shape == (1, 8, 24, 40)
