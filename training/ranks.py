"""The processes of one training, as torchrun starts them."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

_TIMEOUT = datetime.timedelta(hours=2)
"""Ranks wait for the one that validates or writes."""


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is. One process alone is rank 0 of 1."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one logs and writes files."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks; alike on each."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def share_first(self, values: Sequence[Tensor]) -> None:
        """Put the first rank's values in place of every rank's."""
        if self.world > 1:
            for value in values:
                dist.broadcast(value, src=0)

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value; alike on each."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def join_ranks(device: str) -> Ranks:
    """Meet the other processes that torchrun started, if it did; else be the only one.

    Args:
        device: cpu, cuda, or auto: CUDA where there is a GPU. With CUDA each rank takes one GPU.
    Raises:
        ValueError: CUDA was asked for and is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not there: torch sees no CUDA GPU; pass cpu")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(0, 1, torch.device(device))
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    return Ranks(dist.get_rank(), world, torch.device(device))


def leave_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
