"""Adam over groups of weights: each group has its own learning rate."""

import logging
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from common.nearest import nearest
from common.settings import ConfigError
from training.config import OptimiserConfig

logger = logging.getLogger(__name__)

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def make_optimiser(net: nn.Module, settings: OptimiserConfig) -> Optimizer:
    """Adam or AdamW, fused, over the weights that learn; freezes the others.

    A weight's rate is settings.rate times the factor of the longest name in settings.rates that its
    own name begins with (whole words between dots). Factor 0 sets requires_grad to False. Every
    group keeps its full rate under "full_rate"; set_rates scales it. With unit "channel" steps are
    in units of channel_sizes(net), as it is now; they are the group's "sizes", so that they are
    part of the optimiser's state.
    """
    _check_prefixes(net, settings)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, weight in net.named_parameters():
        prefix = _longest_prefix(name, settings)
        factor = settings.rates.get(prefix, 1.0)
        weight.requires_grad_(factor > 0)
        groups[factor, settings.weight_decay > 0 and weight.ndim > 1].append(weight)
    frozen = sum(weight.numel() for (factor, _), w in groups.items() if not factor for weight in w)
    learning = sum(weight.numel() for weight in net.parameters()) - frozen
    logger.info("%d weights learn, %d are frozen", learning, frozen)
    if not learning:
        raise ConfigError("optimiser.rates freezes every weight; give one part a factor above 0")
    kind = AdamW if settings.kind == "adamw" else Adam
    optimiser = kind(
        [
            {
                "params": weights,
                "full_rate": settings.rate * factor,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (factor, decays), weights in sorted(groups.items(), key=lambda item: item[0])
            if factor
        ],
        lr=settings.rate,
        betas=settings.betas,
        fused=True,
    )
    if settings.unit == "channel":
        sizes = channel_sizes(net)
        for group in optimiser.param_groups:
            group["sizes"] = [sizes[weight] for weight in group["params"]]
        _scale_steps(optimiser)
    return optimiser


def load_optimiser(optimiser: Optimizer, state: dict[str, Any]) -> None:
    """Moments and sizes from a saved state, but rates and betas as the recipe says now."""
    own = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimiser.param_groups
    ]
    optimiser.load_state_dict(state)
    for group, settings in zip(optimiser.param_groups, own, strict=True):
        sizes = group.get("sizes", settings.get("sizes"))
        group.update(settings)
        if sizes is not None:
            pairs = zip(sizes, group["params"], strict=True)
            group["sizes"] = [size.to(weight.device) for size, weight in pairs]


def channel_sizes(net: nn.Module) -> dict[Tensor, Tensor]:
    """How large the weights of each output channel are; broadcasts over its parameter.

    Of convolutions and linear layers: the root of the mean square, and for a bias that or its own
    magnitude, whichever is larger. A channel without weights counts as the mean one. 1 elsewhere.
    """
    sizes: dict[Tensor, Tensor] = {weight: weight.new_ones(()) for weight in net.parameters()}
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        weight = module.weight.detach()
        # The output channels of a ConvTranspose2d lie second, and again for each group.
        channels = 1 if isinstance(module, nn.ConvTranspose2d) else 0
        others = [dim for dim in range(weight.ndim) if dim != channels]
        size = weight.square().mean(dim=others, keepdim=True).sqrt()
        size = torch.where(size > 0, size, weight.square().mean().sqrt())
        sizes[module.weight] = size
        if module.bias is not None:
            of_bias = size.flatten() if size.numel() == len(module.bias) else size.mean()
            sizes[module.bias] = torch.maximum(module.bias.detach().abs(), of_bias)
    return sizes


def _scale_steps(optimiser: Optimizer) -> None:
    """Make every step `size` times as long. Adam's own length does not depend on the gradient's."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    before: list[Tensor] = []

    def keep(*_: object) -> None:
        before[:] = [weight.detach().clone() for weight in weights]

    def scale(*_: object) -> None:
        # Read each time because a resumed training puts others in their place.
        sizes = [size for group in optimiser.param_groups for size in group["sizes"]]
        with torch.no_grad():
            for weight, size, start in zip(weights, sizes, before, strict=True):
                weight.sub_(start).mul_(size).add_(start)
        before.clear()

    optimiser.register_step_pre_hook(keep)
    optimiser.register_step_post_hook(scale)


def set_rates(optimiser: Optimizer, factor: float) -> None:
    """Scale every group's learning rate; factor is that of training.schedule.rate_factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * factor


def set_norms(net: nn.Module, *, freeze_all: bool) -> None:
    """Put the norms that shall keep their statistics into evaluation mode, after net.train().

    Those are all, or those whose own weights are frozen: a frozen part computes one function.
    """
    for module in net.modules():
        if isinstance(module, _NORMS) and (freeze_all or not module.weight.requires_grad):
            module.eval()


def _longest_prefix(name: str, settings: OptimiserConfig) -> str:
    return max((prefix for prefix in settings.rates if _begins(name, prefix)), key=len, default="")


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _check_prefixes(net: nn.Module, settings: OptimiserConfig) -> None:
    names = [name for name, _ in net.named_parameters()]
    for prefix in settings.rates:
        if any(_begins(name, prefix) for name in names):
            continue
        known = sorted({start for name in names for start in _prefixes(name)})
        close = nearest(prefix, known)
        children = ", ".join(name for name, _ in net.named_children())
        hint = f"did you mean {close!r}?" if close else f"known: {children}"
        raise ConfigError(f"optimiser.rates: no weight's name begins with {prefix!r}; {hint}")


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[: count + 1]) for count in range(len(words))]
