"""The model that a training starts from: which net, which weights, and how it will be run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from common.settings import ConfigError
from nets import build_net
from nets.checkpoints import FORMAT, Model, default_run_settings, load_checkpoint, load_model
from nets.skeletons import Skeleton
from nets.zoo.weights_files import shown_weights, weights_file
from training.config import TrainConfig

logger = logging.getLogger(__name__)


def starting_model(config: TrainConfig, skeleton: Skeleton) -> Model:
    """A net with fresh weights or those of config.init, and all that its file will say of it.

    How the net is run is what config.run says, else what a file of ours given as config.init says,
    else that net's defaults.

    Raises:
        ValueError: weights that do not fit, settings that the net does not have.
    """
    torch.manual_seed(config.seed)
    net = build_net(config.net, skeleton.num_keypoints, **config.settings)
    run = default_run_settings(config.net)
    decode: Mapping[str, float | str] = config.run.decode
    if config.init is None:
        logger.info("fresh weights, seed %d", config.seed)
    else:
        file = weights_file(config.init)
        _load(net, file, config.init_part)
        logger.info("weights start from %s (%s)", shown_weights(config.init), config.init_part)
        if _is_ours(file):
            said = load_model(file)
            run = {name: getattr(said, name) for name in run}
            decode = decode or said.decode
    run["input_size"] = config.augment.size
    run |= config.run.model_dump(exclude_none=True, exclude={"weights", "decode"})
    return Model(
        net=net, name=config.net, skeleton=skeleton, weights_sha256="", decode=decode, **run
    )


def _load(net: nn.Module, file: Path, part: Literal["all", "matching"]) -> None:
    try:
        load_checkpoint(net, file, only_matching=part == "matching")
    except ValueError as error:
        if part == "matching":
            raise
        raise ConfigError(
            f"{error}; or start from the part that fits with --set init_part=matching"
        ) from error


def _is_ours(path: Path) -> bool:
    """Whether a weights file says in its header how it is run."""
    if path.suffix != ".safetensors":
        return False
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format") == FORMAT
