"""A model out of nothing, for tests and benchmarks of speed."""

from typing import Any

import torch
from torch import nn

from nets import build_net
from nets.checkpoints import Model, default_run_settings, state_sha256
from nets.skeletons import skeleton_for


def random_model(name: str, *, num_keypoints: int = 17, seed: int = 0, **settings: Any) -> Model:
    """A model with random weights whose activations are of ordinary size.

    The published start values would let all activations vanish, so convolutions are drawn as He et
    al. (2015) do and the norms' statistics are taken from one batch of noise. The same seed gives
    the same model; torch's global generator is left as it was.

    Args:
        name, settings: as nets.build_net takes them, for example width=8.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net(name, num_keypoints, **settings)
        _randomise(net)
    return Model(
        net=net.eval(),
        name=name,
        skeleton=skeleton_for(num_keypoints),
        weights_sha256=state_sha256(net.state_dict()),
        **default_run_settings(name),
    )


def _randomise(net: nn.Module) -> None:
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for norm in norms:
        norm.momentum = None  # keep the one batch's statistics, not a running average
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 128, 128))
    for norm in norms:
        norm.momentum = 0.1
