"""The half copy: float16 inside, float32 heads with their own weights, the original untouched."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets.aggregation import Maps
from nets.engines.half_precision import Float32Head, folded_copy, half_copy
from nets.named import NAMED
from tests.support.random_model import random_model

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = ["higher_hrnet_lite", "higher_mobile", "double_higher_net_lite", "double_higher_mobile"]


def _outputs(net: Any, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        maps: Maps = net.maps(net(images))
    return [*maps.levels, maps.tags]


def _images() -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_every_named_network_is_covered_by_these() -> None:
    kinds = {(type(NAMED[name]), type(NAMED[name].backbone)) for name in NETS}
    assert kinds == {(type(settings), type(settings.backbone)) for settings in NAMED.values()}


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_float32_and_finer_than_float16(name: str) -> None:
    net = random_model(name, width=8).net
    outputs = _outputs(half_copy(net), _images().half())
    for output, reference in zip(outputs, _outputs(net, _images()), strict=True):
        assert output.dtype == torch.float32
        assert (output - reference).abs().max() < 0.1 * reference.abs().max()
        inner = output[(output != 0) & (output != 1)]
        assert (inner == inner.half().float()).float().mean() < 0.2


@pytest.mark.parametrize("name", NETS)
def test_heads_keep_their_float32_weights_and_the_rest_is_float16(name: str) -> None:
    net = random_model(name, width=8).net
    copy = half_copy(net)
    heads = {n for n, module in copy.named_modules() if isinstance(module, Float32Head)}
    assert heads
    own = dict(net.named_parameters())
    for parameter_name, parameter in copy.named_parameters():
        head, _, rest = parameter_name.rpartition(".conv.")
        if head in heads:
            assert torch.equal(parameter, own[f"{head}.{rest}"])
        else:
            assert parameter.dtype == torch.float16


@pytest.mark.parametrize("name", NETS)
def test_the_original_stays_as_it_is(name: str) -> None:
    net = random_model(name, width=8).net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    half_copy(net)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("name", NETS)
def test_folding_leaves_no_norm_and_changes_nothing(name: str) -> None:
    net = random_model(name, width=8).net
    folded = folded_copy(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for output, reference in zip(
        _outputs(folded, _images()), _outputs(net, _images()), strict=True
    ):
        assert (output - reference).abs().max() < 1e-5 * reference.abs().max()


def test_a_variance_below_half_precision_does_no_harm() -> None:
    net: Any = random_model("higher_hrnet_lite", width=8).net
    conv, norm = net.backbone.stem[0].conv, net.backbone.stem[0].norm
    conv.weight.data *= 1e-4
    norm.running_mean *= 1e-4
    norm.running_var *= 1e-8  # rounds to 0 in float16
    norm.eps = 1e-13
    outputs = _outputs(half_copy(net), _images().half())
    for output, reference in zip(outputs, _outputs(net, _images()), strict=True):
        assert (output - reference).abs().max() < 0.1 * reference.abs().max()


def test_a_net_whose_heads_are_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="got Linear"):
        half_copy(nn.Linear(1, 1))
