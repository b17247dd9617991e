"""Every named network: its size, its cost, its shapes, that it exports, and its settings."""

from typing import Any

import pytest
import torch
from torch import nn

from nets import build_net
from nets.higher_hrnet import HigherHRNetSettings
from nets.named import NAMED, build, changed, flat

# Small enough for a test: same structure, few channels and blocks.
TINY = {"width": 8, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 1}


def tiny(name: str, **settings: Any) -> nn.Module:
    trunk = {"width": 8} if "mobile" in name else TINY
    torch.manual_seed(0)
    return build_net(name, **(trunk | settings)).eval()


pytestmark = pytest.mark.usefixtures("one_thread")

ONE_OF_EACH_KIND = ("hrnet_w32", "higher_hrnet_w32", "higher_mobile", "double_higher_net_w32")


def parameters_and_gmacs(
    name: str, size: int, keypoints: int, *, without_backbone: bool = False, **settings: Any
) -> tuple[int, float]:
    """Parameters, and multiply-adds of convolutions and linear layers; no memory is touched."""
    with torch.device("meta"):
        net = build_net(name, keypoints, **settings).eval()
        images = torch.empty(1, 3, size, size)
    counted = [part for key, part in net.named_children() if key != "backbone"]
    counted += [] if without_backbone else [net.backbone]
    multiply_adds = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal multiply_adds
        if isinstance(module, nn.ConvTranspose2d):  # each INPUT pixel meets each weight once
            multiply_adds += inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            multiply_adds += output.numel() * module.weight[0].numel()

    for part in counted:
        for module in part.modules():
            module.register_forward_hook(count)
    net(images)
    return sum(p.numel() for part in counted for p in part.parameters()), multiply_adds / 1e9


@pytest.mark.parametrize(
    ("name", "size", "keypoints", "parameters", "gmacs"),
    [
        ("higher_hrnet_w32", 512, 17, 28_645_331, 46.203),
        ("higher_hrnet_w32", 512, 14, 28_641_962, 46.144),
        ("higher_hrnet_w48", 640, 17, 63_827_139, 149.469),
        # Backbone 28,535,552 and 40.764, and a 1x1 head of 34 channels on 128x128.
        ("hrnet_w32", 512, 17, 28_535_552 + 34 * 33, 40.764 + 34 * 32 * 128**2 / 1e9),
    ],
)
def test_size_and_cost_are_those_of_the_published_networks(
    name: str, size: int, keypoints: int, parameters: int, gmacs: float
) -> None:
    measured, measured_gmacs = parameters_and_gmacs(name, size, keypoints)
    assert measured == parameters
    assert measured_gmacs == pytest.approx(gmacs, abs=0.001)


@pytest.mark.parametrize(
    ("settings", "of_14", "of_17", "of_w48"),
    [
        ({}, (28.675, 44.10), (28.682, 44.23), (63.881, 90.75)),
        ({"bridge_high": 4}, (28.698, 45.58), (28.705, 45.71), (63.932, 94.07)),
        ({"bridge_low": 2, "bridge_high": 4}, (28.675, 45.21), (28.682, 45.34), (63.881, 93.24)),
        ({"bridge_low": 3, "bridge_high": 1}, (28.652, 43.18), (28.660, 43.31), (63.830, 88.67)),
        ({"wide_deconv": True}, (28.733, 45.24), (28.759, 45.68), (63.957, 92.34)),
        ({"fuse_tags": False}, (28.659, 43.87), (28.663, 43.94), (63.858, 90.40)),
        ({"residual_blocks": 4}, (28.823, 53.77), (28.831, 53.89), (64.214, 112.49)),
        ({"bridge_expansion": 4}, (29.544, 72.49), (29.551, 72.62), (65.834, 154.62)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_double_higher_net_costs_what_each_reading_of_the_paper_costs(
    settings: dict[str, Any],
    of_14: tuple[float, float],
    of_17: tuple[float, float],
    of_w48: tuple[float, float],
) -> None:
    """Published backbone (counted above) + heads, which are measured on a backbone of no depth."""
    shallow = {"modules": (0, 0, 0), "bottlenecks": 1}
    for name, keypoints, expected, backbone in (
        ("double_higher_net_w32", 14, of_14, (28_535_552, 40.764)),
        ("double_higher_net_w32", 17, of_17, (28_535_552, 40.764)),
        ("double_higher_net_w48", 14, of_w48, (63_594_912, 83.676)),
    ):
        parameters, gmacs = parameters_and_gmacs(
            name, 512, keypoints, without_backbone=True, **shallow, **settings
        )
        assert (parameters + backbone[0]) / 1e6 == pytest.approx(expected[0], abs=0.0006)
        assert gmacs + backbone[1] == pytest.approx(expected[1], abs=0.006)


def test_double_higher_net_is_its_heads_on_the_published_backbone() -> None:
    parameters, gmacs = parameters_and_gmacs("double_higher_net_w32", 512, 17)
    assert (round(parameters / 1e6, 3), round(gmacs, 2)) == (28.682, 44.23)


def test_small_networks_cost_what_they_were_chosen_for() -> None:
    parameters, gmacs = parameters_and_gmacs("higher_hrnet_lite", 256, 17)
    assert (round(parameters / 1e6, 2), round(gmacs, 3)) == (4.87, 2.362)
    parameters, gmacs = parameters_and_gmacs("higher_mobile", 256, 17)
    assert (parameters, round(gmacs, 2)) == (4_858_972, 1.16)


@pytest.mark.parametrize("name", NAMED)
def test_maps_have_the_shapes_that_the_decode_expects(name: str) -> None:
    net = tiny(name)
    with torch.inference_mode():
        levels, tags = net.maps(net(torch.randn(2, 3, 64, 96)))  # type: ignore[operator]
    sizes = [(16, 24), (32, 48)][: 1 if name.startswith("hrnet") else 2]
    assert [tuple(level.shape) for level in levels] == [(2, 17, *size) for size in sizes]
    assert tags.shape == (2, 17, 16, 24, 2 if name == "higher_mobile" else 1)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_picture_has_the_same_maps_alone_and_in_a_batch(name: str) -> None:
    net = tiny(name)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        batch, single = net(images), net(images[1:2])
    for of_batch, of_single in zip(leaves(batch), leaves(single), strict=True):
        scale = of_single.abs().max().item()
        torch.testing.assert_close(of_batch[1:2], of_single, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND[1:])
def test_exports_with_any_size_and_upsamples_by_factor(name: str) -> None:
    """Engines take the graph; TensorRT converts upsampling only where it is given by factor."""
    fewer = {"bridge_low": 1, "bridge_high": 1} if name.startswith("double") else {}
    net = tiny(name, residual_blocks=0, **fewer)
    images = torch.randn(2, 3, 64, 64)
    rows, columns = torch.export.Dim("rows", min=2, max=32), torch.export.Dim("columns", min=2)
    dynamic_shapes = ({2: 32 * rows, 3: 32 * columns},)
    exported = torch.export.export(net, (images,), dynamic_shapes=dynamic_shapes)
    other = torch.randn(2, 3, 96, 160)
    with torch.inference_mode():
        for ours, theirs in zip(leaves(net(other)), leaves(exported.module()(other)), strict=True):
            torch.testing.assert_close(ours, theirs)
    upsamplings = [n for n in exported.graph.nodes if "aten.upsample" in str(n.target)]
    assert upsamplings
    assert all(node.args[1] is None for node in upsamplings), "upsampled to a size"


def leaves(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in output for tensor in leaves(part)]


@pytest.mark.parametrize("deconvs", [0, 1, 2])
@pytest.mark.parametrize("residual_blocks", [0, 2])
@pytest.mark.parametrize("concatenate", [True, False])
def test_every_row_of_the_ablation_can_be_built(
    deconvs: int, residual_blocks: int, concatenate: bool
) -> None:
    settings = {"deconvs": deconvs, "residual_blocks": residual_blocks, "concatenate": concatenate}
    net = tiny("higher_hrnet_w32", **settings)
    with torch.inference_mode():
        output = net(torch.randn(1, 3, 64, 64))
    assert [level.shape[-1] for level in output.heatmaps] == [16, 32, 64][: deconvs + 1]
    extra = {key for key in net.state_dict() if key.startswith("upsamplers")}
    inputs = [net.state_dict()[key].shape[0] for key in sorted(extra) if "deconv" in key]
    assert inputs == ([8 + 34, 8 + 17] if concatenate else [8, 8])[:deconvs]
    blocks = {key.split(".")[3] for key in extra if ".blocks." in key}
    assert len(blocks) == (residual_blocks if deconvs else 0)


def test_settings_survive_json_like_lists_and_name_the_same_net() -> None:
    settings = flat(changed(NAMED["higher_hrnet_w32"], TINY))
    as_json = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    assert build("higher_hrnet_w48", 17, as_json).settings == changed(
        NAMED["higher_hrnet_w32"], TINY
    )


@pytest.mark.parametrize("name", NAMED)
def test_no_setting_of_heads_and_backbone_has_the_same_name(name: str) -> None:
    settings = NAMED[name]
    heads, backbone = vars(settings).keys() - {"backbone"}, vars(settings.backbone).keys()
    assert not heads & backbone
    assert set(flat(settings)) == heads | backbone


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no network is called 'higher_hrnet'; known: hrnet_w32,"):
        build_net("higher_hrnet")
    with pytest.raises(ValueError, match=r"no setting is called widht; known: .*width"):
        build_net("higher_hrnet_w32", widht=8)


@pytest.mark.parametrize("settings", [{"width": "8"}, {"modules": 3}, {"concatenate": 1}])
def test_a_value_of_another_kind_is_told(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"setting {next(iter(settings))}: expected"):
        build_net("higher_hrnet_w32", **settings)


def test_aggregation_setting_chooses_levels() -> None:
    images = torch.randn(1, 3, 64, 64)
    sizes = {}
    for aggregation in ("on", "off", "highest"):
        net = tiny("higher_hrnet_w32", aggregation=aggregation)
        with torch.inference_mode():
            maps = net.maps(net(images))  # type: ignore[operator]
        sizes[aggregation] = [level.shape[-1] for level in maps.levels]
        assert maps.tags.shape[2:4] == (16, 16)
    assert sizes == {"on": [16, 32], "off": [16], "highest": [32]}


def test_published_start_values() -> None:
    """Convolutions N(0, 0.001), biases 0, norms 1 and 0."""
    net = build_net("higher_hrnet_lite")
    weight = net.get_parameter("backbone.stages.2.0.branches.3.0.first.conv.weight")
    assert weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert net.get_parameter("upsamplers.0.deconv.weight").std().item() == pytest.approx(
        0.001, rel=0.05
    )
    assert not net.get_parameter("first_head.conv.bias").any()
    assert (net.get_parameter("backbone.stem.0.norm.weight") == 1).all()


def test_defaults_are_the_published_w32() -> None:
    assert HigherHRNetSettings() == NAMED["higher_hrnet_w32"]
