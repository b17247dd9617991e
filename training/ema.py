"""Averaged weights: a second net that follows the trained one slowly (Polyak and Juditsky 1992)."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of a net's weights and norm statistics."""

    def __init__(self, net: nn.Module, *, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, *, step: int) -> None:
        """Follow net after step (counted from 0): average = decay * average + (1 - decay) * net.

        The decay is at most (1 + step) / (10 + step), so the start weights are soon forgotten.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, values = [], []
        for average, value in zip(_tensors(self.net), _tensors(net), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)  # the norms' counters
        torch._foreach_lerp_(averages, values, 1 - decay)


@torch.no_grad()
def between(start: nn.Module, end: nn.Module, share: float) -> nn.Module:
    """A net with weights between two nets: share of start, the rest of end (Wortsman et al. 2022).

    Fine-tuned weights are near enough to their start that the way between is good, and its middle
    keeps what few examples do not teach.
    """
    net = copy.deepcopy(end).requires_grad_(False).eval()
    for value, first in zip(_tensors(net), _tensors(start), strict=True):
        if value.is_floating_point():
            value.lerp_(first, share)
    return net


def _tensors(net: nn.Module) -> "chain[Tensor]":
    return chain(net.parameters(), net.buffers())
