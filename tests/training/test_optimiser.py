"""training.optimiser: which weights learn, and how fast."""

import pytest
import torch
from torch import nn

from nets import build_net
from tests.training.tiny import TINY_NET
from training.config import ConfigError, OptimiserConfig
from training.optimiser import make_optimiser, set_norms, set_rates


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
