"""MoveNet MultiPose Lightning, as Google published it for TensorFlow.js, into our higher_mobile.

    model.json (what lies where) + .bin (the numbers) -> tensors by MoveNet's names -> ours -> Model

MoveNet (Google, Apache-2.0) finds people by their centres; what of it fits HigherHRNet's heads is
kept: the trunk, the pyramid, the heatmaps, and the regression's separable convolution, from which
the tags start. Its centre, box and offset heads are left over. What MoveNet does not have (tags'
last convolution, deconvolution, heatmaps at 1/2) gets the start values of a fresh net. So this is
where a training starts from, not a model that tells people apart.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nets import build_net
from nets.checkpoints import Model, default_run_settings, load_checkpoint, state_sha256
from nets.skeletons import skeleton_for

_log = logging.getLogger(__name__)

NET = "higher_mobile"

_ROOT = "StatefulPartitionedCall/"
_FEATURES = f"{_ROOT}center_net_mobile_net_v2fpn_feature_extractor/model_1/"
_HEATMAP = f"{_ROOT}kpt_heatmap_0/"
_REGRESSION = f"{_ROOT}kpt_regress_0/"

_BYTES = {"float32": 4, "int32": 4, "bool": 1}


# --- names ---------------------------------------------------------------------------------------


def _movenet_names() -> dict[str, str]:
    """MoveNet's name of each of our tensors that it has."""
    names: dict[str, str] = {}

    def add(layer: str, weight: str, bias: str | None) -> None:
        names[f"{layer}.weight"] = weight
        if bias is not None:
            names[f"{layer}.bias"] = bias

    # Where a norm stood the converter folded it into the convolution and says so in the name.
    folded = {"stem": "model/Conv1/Conv2D", "top": "model/Conv_1/Conv2D"}
    for block in range(17):
        theirs = f"model/block_{block}" if block else "model/expanded_conv"
        folded[f"blocks.{block}.depthwise"] = f"{theirs}_depthwise/depthwise"
        folded[f"blocks.{block}.project"] = f"{theirs}_project/Conv2D"
        if block:  # the first does not expand
            folded[f"blocks.{block}.expand"] = f"{theirs}_expand/Conv2D"
    for merge in range(3):
        outer = f"separable_conv2d_{merge}" if merge else "separable_conv2d"
        folded[f"pyramid.merges.{merge}.pointwise"] = f"{outer}/separable_conv2d"
        depthwise = f"{_FEATURES}{outer}/separable_conv2d/ReadVariableOp"
        add(f"backbone.pyramid.merges.{merge}.depthwise", depthwise, None)
    for layer, theirs in folded.items():
        start = f"{_FEATURES}{theirs}"
        add(f"backbone.{layer}", f"{start}_weights", f"{start}_bn_offset")

    plain = {
        "backbone.pyramid.entry": f"{_FEATURES}conv2d",
        **{
            f"backbone.pyramid.laterals.{index}": f"{_FEATURES}conv2d_{index + 1}"
            for index in range(3)
        },
        "first_head.heatmaps": f"{_HEATMAP}conv2d_7",
    }
    for layer, theirs in plain.items():
        add(layer, f"{theirs}/Conv2D/ReadVariableOp", f"{theirs}/BiasAdd/ReadVariableOp")

    branches = {
        "first_head.heatmap_branch": f"{_HEATMAP}separable_conv2d_6",
        "first_head.tag_branch": f"{_REGRESSION}separable_conv2d_7",
    }
    for layer, theirs in branches.items():
        weight = f"{theirs}/separable_conv2d/ReadVariableOp"
        add(f"{layer}.depthwise", weight, None)
        add(f"{layer}.pointwise", f"{weight}_1", f"{theirs}/BiasAdd/ReadVariableOp")
    return names


# --- reading -------------------------------------------------------------------------------------


def load_movenet(path: str | Path, *, seed: int = 0) -> Model:
    """A higher_mobile that starts from MoveNet MultiPose Lightning.

    Args:
        path: the model.json of the TensorFlow.js graph model; its .bin files lie beside it under
            the names that it gives. Widths are read off the shapes.
        seed: of the start values of what MoveNet does not have. The same seed gives the same
            model; torch's global generator is left as it was.
    Raises:
        ValueError: no such file, no graph model, another model, damaged or missing .bin files.
    """
    path = Path(path)
    tensors = _read_graph_model(path)
    names = _movenet_names()
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise ValueError(
            f"{path} is not MoveNet MultiPose Lightning: it lacks {len(missing)} of "
            f"{len(names)} tensors, the first is {missing[0]}"
        )
    state = {ours: _as_torch(tensors[theirs], ours) for ours, theirs in names.items()}
    # The tags' own pyramid begins as a copy: what places keypoints knows something of people too.
    state |= {
        ours.removeprefix("backbone.").replace("pyramid.", "second_pyramid.", 1): tensor.clone()
        for ours, tensor in state.items()
        if ours.startswith("backbone.pyramid.")
    }
    settings = _settings(state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net(NET, state["first_head.heatmaps.weight"].shape[0], **settings)
    load_checkpoint(net, net.state_dict() | state)
    _log.info("%s: %d of %d tensors start from MoveNet", path, len(state), len(net.state_dict()))
    return Model(
        net=net.eval(),
        name=NET,
        skeleton=skeleton_for(net.num_keypoints),
        weights_sha256=state_sha256(net.state_dict()),
        **default_run_settings(NET),
    )


def _settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Widths, read off the number of outputs of single layers."""

    def outputs(layer: str) -> int:
        return int(state[f"{layer}.weight"].shape[0])

    return {
        "width": outputs("backbone.stem"),
        "top": outputs("backbone.top"),
        "pyramid": tuple(outputs(f"backbone.pyramid.laterals.{index}") for index in range(3)),
        "separable_head": outputs("first_head.heatmap_branch.pointwise"),
    }


def _as_torch(values: np.ndarray, ours: str) -> Tensor:
    """TensorFlow's weights in torch's order: out of (y, x, in, out); of depthwise (y, x, C, 1)."""
    if values.ndim == 4:
        order = (2, 3, 0, 1) if ours.endswith("depthwise.weight") else (3, 2, 0, 1)
        values = values.transpose(order)
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _read_graph_model(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a TensorFlow.js graph model by name, as they are stored."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = [(group["paths"], group["weights"]) for group in content["weightsManifest"]]
        tensors: dict[str, np.ndarray] = {}
        for shards, entries in groups:
            stored = b"".join((path.parent / shard).read_bytes() for shard in shards)
            tensors |= _cut(stored, entries, path)
    except OSError as error:
        raise ValueError(f"{path}: {error.filename} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no TensorFlow.js graph model ({error!r}); expected the model.json that "
            "lies beside the .bin file"
        ) from error
    return tensors


def _cut(stored: bytes, entries: list[dict[str, Any]], path: Path) -> dict[str, np.ndarray]:
    """The tensors of one group, which lie one behind the other without gaps."""
    tensors: dict[str, np.ndarray] = {}
    start = 0
    for entry in entries:
        dtype = entry.get("quantization", entry)["dtype"]
        if dtype not in ("float16", *_BYTES):
            raise ValueError(
                f"{path}: {entry['name']} is stored as {dtype}; only files stored as float16 or "
                "float32 can be read"
            )
        count = math.prod(entry["shape"])
        end = start + count * _BYTES.get(dtype, 2)
        if end > len(stored):
            break
        values = np.frombuffer(stored, np.dtype(dtype), count, start)
        tensors[entry["name"]] = values.reshape(entry["shape"])
        start = end
    if len(tensors) < len(entries) or start != len(stored):
        needed = "more" if len(tensors) < len(entries) else f"{start}"
        raise ValueError(
            f"{path}: its .bin files hold {len(stored)} bytes, but {needed} are described; "
            "fetch them again"
        )
    return tensors
