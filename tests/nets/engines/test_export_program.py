"""Every named network exports, sizes stay free, and the program computes what the net does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines.export_program import INPUT_DTYPE, ShapeRange, export_program, program_net
from nets.hrnet import HRNetSettings
from nets.named import NAMED, flat
from tests.support.random_model import random_model

pytestmark = pytest.mark.usefixtures("one_thread")

FREE = ShapeRange((1, 64, 64), (2, 64, 96), (4, 128, 128))
OTHER = (3, 96, 128)  # a shape of FREE that is not traced
KINDS = [
    "hrnet_w32",
    "higher_hrnet_w32",
    "higher_mobile",
    "double_higher_net_w32",
    "double_higher_mobile",
]
"""Named networks that differ in more than their numbers of channels and blocks."""


def _light_settings(name: str) -> dict[str, Any]:
    """Few channels and blocks: every kind of operation is still there."""
    settings = flat(NAMED[name])
    light: dict[str, Any] = {"width": 8}
    if isinstance(NAMED[name].backbone, HRNetSettings):
        light |= {"stem": 8, "blocks": 1, "bottlenecks": 1, "modules": (1, 1, 1)}
        light |= {"bottleneck_channels": 32}
        light |= {"residual_blocks": min(1, settings["residual_blocks"])}
    return settings | light


def _light(name: str) -> Model:
    return random_model(name, **_light_settings(name))


def test_every_named_network_is_of_one_of_these_kinds() -> None:
    kinds = [_light_settings(name) for name in KINDS]
    assert all(_light_settings(name) in kinds for name in NAMED)


def _images(shape: tuple[int, int, int]) -> Tensor:
    batch, height, width = shape
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def _definition(model: Model, images: Tensor) -> list[Tensor]:
    net: Any = model.net
    with torch.no_grad():
        maps: Maps = net.maps(net(images))
    return [*maps.levels, maps.tags]


def _relative_error(outputs: Any, expected: list[Tensor]) -> float:
    assert [x.shape for x in outputs] == [x.shape for x in expected]
    pairs = zip(outputs, expected, strict=True)
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


@pytest.mark.parametrize("name", KINDS)
def test_networks_export_with_free_sizes(name: str) -> None:
    model = _light(name)
    program = export_program(program_net(model.net, "fp32"), FREE).module()
    for shape in (OTHER, FREE.smallest):
        images = _images(shape)
        assert _relative_error(program(images), _definition(model, images)) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_networks_export_with_a_fixed_size_in_half_precision(name: str) -> None:
    model = _light(name)
    images = _images((1, 64, 96))
    net = program_net(model.net, "fp16")
    program = export_program(net, ShapeRange.fixed((1, 64, 96)))
    outputs = program.module()(images.half())
    assert {output.dtype for output in outputs} == {torch.float32}
    assert _relative_error(outputs, list(net(images.half()))) < 1e-5
    assert _relative_error(outputs, _definition(model, images)) < 0.1


def test_a_fixed_program_refuses_other_sizes() -> None:
    net = program_net(_light("higher_hrnet_lite").net, "fp32")
    fixed = export_program(net, ShapeRange.fixed((1, 64, 96))).module()
    with pytest.raises(AssertionError, match="Guard"):
        fixed(_images((1, 64, 64)))


def test_only_numbers_that_differ_are_free() -> None:
    net = program_net(_light("higher_hrnet_lite").net, "fp16")
    program = export_program(net, ShapeRange((2, 64, 96), (4, 64, 96), (16, 64, 96)))
    with pytest.raises(AssertionError, match="Guard"):
        program.module()(_images((17, 64, 96)).half())
    (images,) = (n for n in program.graph.nodes if n.name == "images")
    value = images.meta["val"]
    assert [isinstance(size, int) for size in value.shape] == [False, True, True, True]
    assert value.dtype == INPUT_DTYPE["fp16"] == torch.float16


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 64, 64), (1, 64, 64), (4, 64, 64)), "must rise"),
        (((0, 64, 64), (1, 64, 64), (4, 64, 64)), "must rise"),
        (((1, 64, 64), (1, 72, 64), (1, 96, 64)), "multiples of 32"),
    ],
)
def test_shapes_that_no_program_can_have_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapeRange(*shapes)


def test_a_range_knows_what_it_holds_and_says_what_it_is() -> None:
    assert FREE.holds((1, 64, 128))
    assert not FREE.holds((5, 64, 128))
    assert not FREE.holds((1, 80, 128))
    assert not FREE.is_fixed
    assert ShapeRange.fixed((1, 64, 96)).is_fixed
    assert (str(FREE), str(ShapeRange.fixed((1, 64, 96)))) == ("1..4x64..128x64..128", "1x64x96")
