"""Small files under the published names, with the keys that the real ones have."""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from nets.checkpoints import Model, our_name
from nets.zoo.published import PUBLISHED
from tests.support.places import DATA
from tests.support.random_model import random_model

TINY: dict[str, Any] = {"width": 8, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 2}
SEED = 11

StateDict = dict[str, Tensor]

_KEYS = DATA / "net_w32_keys.json"
_OFFICIAL = {our_name(key): key for key in json.loads(_KEYS.read_text())["keys"]}
"""Our names to official ones; a small net has fewer of them."""


@cache  # made twice, the norms' means may differ in the last bit
def small_model(name: str) -> Model:
    """The net that stands for a published one."""
    keypoints = 14 if PUBLISHED[name].data == "CrowdPose" else 17
    net = "higher_hrnet_w32" if name.startswith("higher") else "hrnet_w32"
    return random_model(net, seed=SEED, num_keypoints=keypoints, **TINY)


def official_state(model: Model) -> StateDict:
    return {_OFFICIAL[key]: value.clone() for key, value in model.net.state_dict().items()}


@cache  # the old file format holds addresses of memory: no two files are the same
def published_bytes(name: str) -> bytes:
    """A .pth file as mmpose 0.x wrote it: `meta` beside a state dict with its prefixes."""
    state = official_state(small_model(name))
    content: Mapping[str, Any]
    if PUBLISHED[name].backbone_only:
        content = {k: v for k, v in state.items() if "final" not in k and "deconv" not in k}
        # The classifier's own: fuse outputs and heads that no pose net has.
        content |= {
            "incre_modules.0.0.conv1.weight": torch.zeros(4, 4, 1, 1),
            "final_layer.0.weight": torch.zeros(8, 4, 1, 1),
            "classifier.weight": torch.zeros(10, 8),
        }
    else:
        content = {
            "meta": {"epoch": 300, "mmpose_version": "0.29.0", "config": "model = dict(...)"},
            "state_dict": _with_metadata(
                {_key_of_mmpose(key, name): value for key, value in state.items()}
            ),
        }
    file = io.BytesIO()
    # As torch wrote files when these were published, in 2020.
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _with_metadata(state: StateDict) -> StateDict:
    """What a module's state_dict() is: ordered, with versions of its layers as an attribute."""
    ordered = OrderedDict(state)
    ordered._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return ordered


def _key_of_mmpose(key: str, name: str) -> str:
    if not key.startswith(("final_layers", "deconv_layers")):
        return f"backbone.{key}"
    if name.startswith("hrnet"):
        key = key.replace("final_layers.0", "final_layer")
    return f"keypoint_head.{key}"


def publish(monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, bytes]:
    """Small files take the places of the published ones in the table; by their path there."""
    files = {}
    for name in names or tuple(PUBLISHED):
        content = published_bytes(name)
        sha256 = hashlib.sha256(content).hexdigest()[:8]
        monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], sha256=sha256))
        files[PUBLISHED[name].path] = content
    return files
