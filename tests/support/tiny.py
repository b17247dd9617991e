"""The smallest training there is: a recipe for a tiny net on painted people."""

from pathlib import Path
from typing import Any

from training.config import TrainConfig, checked_recipe

TINY_NET: dict[str, Any] = {
    "width": 8,
    "stem": 8,
    "bottlenecks": 1,
    "bottleneck_channels": 16,
    "modules": [1, 1, 1],
    "blocks": 1,
    "residual_blocks": 0,
}


def tiny_recipe(annotations: Path, **changes: Any) -> dict[str, Any]:
    """Plain values; changes replace whole groups."""
    recipe: dict[str, Any] = {
        "net": "higher_hrnet_lite",
        "settings": TINY_NET,
        "data": {"train": [{"annotations": str(annotations)}], "workers": 0},
        "augment": {"size": 64},
        "schedule": {"epochs": 4, "milestones": []},
        "batch": 2,
        "threads": 1,
        "tensorboard": False,
    }
    return recipe | changes


def tiny_config(annotations: Path, **changes: Any) -> TrainConfig:
    return checked_recipe(tiny_recipe(annotations, **changes))
