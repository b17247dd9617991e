"""training.ema: the average follows, forgets its start and is a net of its own."""

import pytest
import torch
from torch import nn

from training.ema import Ema, between


def _net(value: float) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data.fill_(value)
    return net


def test_the_average_is_the_plain_definition() -> None:
    net = _net(0.0)
    ema = Ema(net, decay=0.75)
    average = 0.0
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0] * 10):
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.data.fill_(value)
        ema.update(net, step=step)
        decay = min(0.75, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    for tensor in (*ema.net.parameters(), *ema.net.buffers()):
        expected = average if tensor.is_floating_point() else 5  # counters are taken over
        assert tensor.double().mean().item() == pytest.approx(expected, abs=1e-5)


def test_the_average_is_apart_from_the_net_and_in_evaluation_mode() -> None:
    net = _net(1.0).train()
    ema = Ema(net, decay=0.9)
    assert not ema.net.training
    assert not any(weight.requires_grad for weight in ema.net.parameters())
    before = torch.cat([weight.flatten() for weight in ema.net.parameters()])
    for weight in net.parameters():
        weight.data.fill_(7.0)
    assert torch.equal(before, torch.cat([weight.flatten() for weight in ema.net.parameters()]))
    assert net.training


def test_weights_between_start_and_end_leave_both_as_they_are() -> None:
    start, end = _net(1.0), _net(5.0)
    net = between(start, end, 0.25)
    for tensor in (*net.parameters(), *net.buffers()):
        expected = 4 if tensor.is_floating_point() else 5
        assert tensor.double().mean().item() == expected
    assert not net.training
    assert all(weight.mean() == 1 for weight in start.parameters())
    assert all(weight.mean() == 5 for weight in end.parameters())
