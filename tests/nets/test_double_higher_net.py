"""DoubleHigherNet against a second definition: the reconstruction's formulas on the state dict."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.random_model import random_model

pytestmark = pytest.mark.usefixtures("one_thread")

TRUNK: dict[str, Any] = {"width": 8, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 1}


class Definition:
    """y = heatmaps and tags at 1/4, z = heatmaps at 1/2, u = features at 1/2; 1 coarse, 2 fine."""

    def __init__(self, net: nn.Module) -> None:
        self.w = dict(net.state_dict())

    def conv(self, key: str, x: Tensor) -> Tensor:
        kernel = self.w[f"{key}.weight"]
        return F.conv2d(x, kernel, self.w.get(f"{key}.bias"), padding=kernel.shape[-1] // 2)

    def norm(self, key: str, x: Tensor) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.w[f"{key}.{name}"] for name in names))

    def bottleneck(self, key: str, x: Tensor) -> Tensor:
        y = x
        for part in ("reduce", "conv"):
            y = self.norm(f"{key}.{part}.norm", self.conv(f"{key}.{part}.conv", y)).relu()
        return (x + self.norm(f"{key}.expand.norm", self.conv(f"{key}.expand.conv", y))).relu()

    def fuse(self, key: str, a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([a, b], dim=1)
        pooled = x.flatten(2).mean(-1)
        inner = (pooled @ self.w[f"{key}.squeeze.weight"].T + self.w[f"{key}.squeeze.bias"]).relu()
        outer = inner @ self.w[f"{key}.excite.weight"].T + self.w[f"{key}.excite.bias"]
        weights = 1 / (1 + torch.exp(-outer))
        return torch.einsum("bnhw,bn->bnhw", x, weights)

    def raised(self, key: str, x: Tensor) -> Tensor:
        kernel = self.w[f"{key}.deconv.weight"]
        return self.norm(f"{key}.norm", F.conv_transpose2d(x, kernel, stride=2, padding=1)).relu()

    def __call__(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y1 = self.conv("coarse.head.conv", f)
        u1 = self.raised("coarse.upsampler", self.fuse("coarse.fusion", f, y1))
        z1 = self.conv("coarse_head", u1)
        f2, u1_refined = f, u1
        for block in range(4):
            f2 = self.bottleneck(f"bridge_low.{block}", f2)
        for block in range(2):
            u1_refined = self.bottleneck(f"bridge_high.{block}", u1_refined)
        y2 = self.conv("fine.head.conv", f2)
        u2 = self.raised("fine.upsampler", self.fuse("fine.fusion", f2, y2))
        z2 = self.conv("fine_head", self.fuse("fine_fusion", u1_refined, u2))
        return y1, z1, y2, z2


def test_network_computes_what_the_reconstruction_says() -> None:
    net = random_model("double_higher_net_w32", **TRUNK).net
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = net(images)
        y1, z1, y2, z2 = Definition(net)(net.get_submodule("backbone")(images))
        maps = net.maps(output)  # type: ignore[operator]
    coarse_low, coarse_high = output.coarse_heatmaps
    fine_low, fine_high = output.fine_heatmaps
    for ours, theirs in (
        (torch.cat([coarse_low, output.coarse_tags], dim=1), y1),
        (coarse_high, z1),
        (torch.cat([fine_low, output.fine_tags], dim=1), y2),
        (fine_high, z2),
        (maps.levels[0], (y1[:, :17] + y2[:, :17]) / 2),
        (maps.levels[1], (z1 + z2) / 2),
        (maps.tags[..., 0], y2[:, 17:]),
    ):
        assert theirs.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_without_stage_aggregation_the_fine_heatmaps_are_decoded() -> None:
    net = random_model("double_higher_net_w32", stage_aggregation=False, **TRUNK).net
    with torch.inference_mode():
        output = net(torch.randn(1, 3, 64, 64))
        maps = net.maps(output)  # type: ignore[operator]
    assert all(map(torch.equal, maps.levels, output.fine_heatmaps))


def test_concatenation_is_attention_that_weighs_nothing() -> None:
    """A sigmoid of a large number is 1: then both ways of fusing compute the same."""
    attention = random_model("double_higher_net_w32", **TRUNK).net
    concatenation = random_model("double_higher_net_w32", fusion="concatenation", **TRUNK).net
    state = attention.state_dict()
    for key, value in state.items():
        if ".excite." in key or "fine_fusion.excite" in key:
            value.fill_(30.0 if key.endswith("bias") else 0.0)
    assert concatenation.state_dict().keys() == {
        key for key in state if ".squeeze." not in key and ".excite." not in key
    }
    concatenation.load_state_dict(
        {k: v for k, v in state.items() if k in concatenation.state_dict()}
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        one, other = attention(images), concatenation(images)
    torch.testing.assert_close(one.fine_heatmaps, other.fine_heatmaps)
    torch.testing.assert_close(one.fine_tags, other.fine_tags)


@pytest.mark.parametrize(
    "settings",
    [{"wide_deconv": True, "residual_blocks": 1}, {"fuse_tags": False}, {"bridge_expansion": 2}],
    ids=lambda settings: next(iter(settings)),
)
def test_other_readings_of_the_paper_have_the_same_outputs(settings: dict[str, Any]) -> None:
    net = random_model("double_higher_net_w32", num_keypoints=14, **TRUNK, **settings).net
    with torch.inference_mode():
        output = net(torch.randn(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in output.fine_heatmaps] == [(14, 16, 16), (14, 32, 32)]
    assert output.coarse_tags.shape == output.fine_tags.shape == (1, 14, 16, 16)
