"""training.optimiser: which weights learn, and how fast."""

import pytest
import torch
from torch import nn

from common.settings import ConfigError
from nets import build_net
from tests.support.tiny import TINY_NET
from training.config import OptimiserConfig
from training.optimiser import channel_sizes, make_optimiser, set_norms, set_rates


@pytest.fixture
def net() -> nn.Module:
    return build_net("higher_hrnet_lite", **TINY_NET)


def _rates(net: nn.Module, settings: OptimiserConfig) -> dict[str, float]:
    """Learning rate of every weight by name; frozen ones are not there."""
    optimiser = make_optimiser(net, settings)
    set_rates(optimiser, 0.5)
    of_weight = {
        id(weight): group["lr"] for group in optimiser.param_groups for weight in group["params"]
    }
    return {n: of_weight[id(w)] for n, w in net.named_parameters() if id(w) in of_weight}


def test_the_longest_name_that_matches_counts(net: nn.Module) -> None:
    factors = {"backbone": 0.1, "backbone.stem": 0.0, "backbone.stem.1": 2.0}
    rates = _rates(net, OptimiserConfig(rate=0.01, rates=factors))
    for name, weight in net.named_parameters():
        if name.startswith("backbone.stem.0."):
            assert name not in rates
            assert not weight.requires_grad
        elif name.startswith("backbone.stem.1."):
            assert rates[name] == pytest.approx(0.01)
        elif name.startswith("backbone."):
            assert rates[name] == pytest.approx(0.0005)
        else:
            assert rates[name] == pytest.approx(0.005)


def test_a_name_ends_at_a_dot() -> None:
    # blocks.1 must not mean blocks.10 too.
    net = build_net("higher_mobile")
    rates = _rates(net, OptimiserConfig(rates={"backbone.blocks.1": 0.0}))
    assert not any(name.startswith("backbone.blocks.1.") for name in rates)
    assert any(name.startswith("backbone.blocks.10.") for name in rates)


def test_a_name_that_no_weight_has_is_refused(net: nn.Module) -> None:
    with pytest.raises(ConfigError, match="did you mean 'backbone'"):
        make_optimiser(net, OptimiserConfig(rates={"bakbone": 0.1}))
    with pytest.raises(ConfigError, match="every weight"):
        make_optimiser(net, OptimiserConfig(rates=dict.fromkeys(dict(net.named_children()), 0.0)))


def test_weight_decay_spares_norms_and_biases(net: nn.Module) -> None:
    optimiser = make_optimiser(net, OptimiserConfig(kind="adamw", weight_decay=0.1))
    decays = {id(w): g["weight_decay"] for g in optimiser.param_groups for w in g["params"]}
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert decays[id(module.weight)] == decays[id(module.bias)] == 0
        elif isinstance(module, nn.Conv2d):
            assert decays[id(module.weight)] == 0.1


def test_norms_of_frozen_parts_keep_their_statistics(net: nn.Module) -> None:
    make_optimiser(net, OptimiserConfig(rates={"backbone": 0.0}))
    before = {name: value.clone() for name, value in net.named_buffers()}
    set_norms(net.train(), freeze_all=False)
    net(torch.randn(2, 3, 64, 64))
    changed = {n for n, value in net.named_buffers() if not torch.equal(value, before[n])}
    assert changed
    assert not any(name.startswith("backbone.") for name in changed)


# --- steps in units of a channel -----------------------------------------------------------------


def _two_layers(factors: torch.Tensor) -> nn.Sequential:
    """A convolution whose channels are so much larger, and a depthwise one that takes it back."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6, bias=False))
    of = dict(net.named_parameters())
    with torch.no_grad():
        of["0.weight"].mul_(factors[:, None, None, None])
        of["0.bias"].mul_(factors)
        of["1.weight"].div_(factors[:, None, None, None])
    return net


@pytest.mark.parametrize("unit", ["channel", "absolute"])
def test_in_units_of_channels_it_does_not_matter_how_sizes_are_shared_out(unit: str) -> None:
    """Two nets that are one function stay one function, whichever layer's weights are large."""
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    outputs = []
    for factors in (torch.ones(6), 4.0 ** torch.arange(-5, 7, 2)):
        net = _two_layers(factors)
        settings = OptimiserConfig.model_validate({"rate": 0.01, "unit": unit})
        optimiser = make_optimiser(net, settings)
        set_rates(optimiser, 1.0)
        for _ in range(3):
            optimiser.zero_grad()
            (net(images) - 1).square().sum().backward()
            optimiser.step()
        outputs.append(net(images).detach())
    same = torch.allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    assert same == (unit == "channel")


def test_the_first_step_is_as_long_as_rate_and_channel_say() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 4), nn.BatchNorm2d(2))
    with torch.no_grad():
        dict(net.named_parameters())["0.weight"][1] = 0  # counts as the mean channel
    sizes = {name: channel_sizes(net)[weight] for name, weight in net.named_parameters()}
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimiser = make_optimiser(net, OptimiserConfig(rate=0.01, unit="channel"))
    set_rates(optimiser, 0.5)
    weighting = torch.rand(1, 2, 13, 13)
    (net(torch.rand(1, 3, 12, 12)) * weighting).square().sum().backward()
    optimiser.step()
    rows = before["0.weight"].square().mean(dim=(1, 2, 3)).sqrt()
    rows[1] = before["0.weight"].square().mean().sqrt()
    assert torch.allclose(sizes["0.weight"].flatten(), rows)
    columns = before["1.weight"].square().mean(dim=(0, 2, 3)).sqrt()
    assert torch.allclose(sizes["1.weight"].flatten(), columns)
    for name, weight in net.named_parameters():
        if weight.grad is None or not (weight.grad.abs() > 1e-4).all():
            continue  # where Adam's epsilon would count
        step = (weight.detach() - before[name]).abs()
        assert torch.allclose(step, (0.005 * sizes[name]).expand_as(step), rtol=2e-2), name


def test_decay_in_units_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="goes with unit: absolute"):
        OptimiserConfig(kind="adamw", weight_decay=0.1, unit="channel")
