"""Weights in and out: our safetensors, the official .pth files and mmpose; one table of renames.

    file -> state dict in our names -> settings read off the shapes -> net -> Model

A file of ours says in its header which net it is. Of any other file that is read off its shapes.
Wherever a file is expected, a published name or a URL will do (nets.zoo.weights_files).
Nothing is ever unpickled that is not a plain tensor: a checkpoint from the internet may hold code.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.files import write_atomically
from nets import build_net
from nets.higher_hrnet import HigherHRNetSettings
from nets.hrnet import HRNetSettings
from nets.mobile_fpn import MobileFpnSettings
from nets.named import NAMED, PoseNet, check_name, flat
from nets.skeletons import SKELETONS, Skeleton, skeleton_for
from nets.zoo.published import PUBLISHED, Published, published_with
from nets.zoo.weights_files import weights_file

_log = logging.getLogger(__name__)

FORMAT = "posestream/1"
"""In the header of our files; a change of our key names makes it posestream/2."""

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A network with its weights and with what must be known to run it well."""

    net: nn.Module
    """In eval mode, float32. net(images) gives its NamedTuple, net.maps(output) the Maps of it."""
    name: str
    """As in nets.build_net, for example higher_hrnet_w32."""
    skeleton: Skeleton
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """RGB, pixel values scaled to 0..1: the network reads (rgb / 255 - mean) / std."""
    input_size: int
    """Short side of the network input in pixels that the weights were made for."""
    size_multiple: int
    """Both sides of the network input are multiples of it."""
    tag_ramp_px: float
    """Where positive, a ramp of position that rises by 1 over so many network-input pixels is added
    to every tag, in float32 and outside the network (nets.aggregation.tag_ramp); 0 adds nothing."""
    weights_sha256: str
    """Hash of the weights; part of the key of every compiled model."""
    decode: Mapping[str, float | str] = field(default_factory=dict)
    """Decode settings chosen on data for these weights, or that their publisher measured them with,
    by name (kernels.decode.DecodeSettings)."""


# --- names ---------------------------------------------------------------------------------------


def _counted_from(first: int, template: str) -> Callable[[re.Match[str]], str]:
    """A replacement whose first number is counted from 0 instead of `first`."""
    return lambda match: template.format(int(match[1]) - first, *match.groups()[1:])


# Official HRNet/HigherHRNet-Human-Pose-Estimation and mmpose 0.x -> ours; applied top to bottom.
# Our own names pass through unchanged.
_RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # Wrappers: DataParallel, and the to-half wrapper that models trained in FP16 were saved in.
    (r"^(?:module\.|1\.)+", ""),
    # mmpose 0.x has the official names inside, but for plain HRNet's single head; 1.x renamed both.
    (r"^(?:keypoint_head|head)\.final_layer\.", "final_layers.0."),
    (r"^keypoint_head\.", ""),
    (r"^backbone\.(?=(?:conv|bn|layer|transition|stage)\d)", ""),
    # Backbone: stem, bottlenecks, first branch, new branches, stages.
    (r"^conv([12])\.", _counted_from(1, "backbone.stem.{}.conv.")),
    (r"^bn([12])\.", _counted_from(1, "backbone.stem.{}.norm.")),
    (r"^layer1\.(\d+)\.", r"backbone.bottlenecks.\1."),
    (r"(bottlenecks\.\d+)\.conv1\.", r"\1.reduce.conv."),
    (r"(bottlenecks\.\d+)\.bn1\.", r"\1.reduce.norm."),
    (r"(bottlenecks\.\d+)\.conv2\.", r"\1.conv.conv."),
    (r"(bottlenecks\.\d+)\.bn2\.", r"\1.conv.norm."),
    (r"(bottlenecks\.\d+)\.conv3\.", r"\1.expand.conv."),
    (r"(bottlenecks\.\d+)\.bn3\.", r"\1.expand.norm."),
    (r"(bottlenecks\.\d+)\.downsample\.0\.", r"\1.shortcut.conv."),
    (r"(bottlenecks\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    (r"^transition1\.0\.0\.", "backbone.narrow.conv."),
    (r"^transition1\.0\.1\.", "backbone.narrow.norm."),
    (r"^transition([123])\.\1\.0\.0\.", _counted_from(1, "backbone.new_branches.{}.conv.")),
    (r"^transition([123])\.\1\.0\.1\.", _counted_from(1, "backbone.new_branches.{}.norm.")),
    (r"^stage([234])\.", _counted_from(2, "backbone.stages.{}.")),
    # Exchange: fine to coarse is a chain of convolutions (one index more), coarse to fine is one.
    (r"\.fuse_layers\.(\d)\.(\d)\.(\d)\.0\.", r".exchange.\1.\2.\3.conv."),
    (r"\.fuse_layers\.(\d)\.(\d)\.(\d)\.1\.", r".exchange.\1.\2.\3.norm."),
    (r"\.fuse_layers\.(\d)\.(\d)\.0\.", r".exchange.\1.\2.0.conv."),
    (r"\.fuse_layers\.(\d)\.(\d)\.1\.", r".exchange.\1.\2.0.norm."),
    # Heads.
    (r"^final_layers\.0\.", "first_head.conv."),
    (r"^final_layers\.(\d)\.", _counted_from(1, "higher_heads.{}.")),
    (r"^deconv_layers\.(\d)\.0\.0\.", r"upsamplers.\1.deconv."),
    (r"^deconv_layers\.(\d)\.0\.1\.", r"upsamplers.\1.norm."),
    (r"(?<=^deconv_layers\.\d\.)(\d)\.0\.", _counted_from(1, "blocks.{}.")),
    (r"^deconv_layers\.", "upsamplers."),
    # Basic blocks of branches and upsamplers.
    (r"\.conv1\.", ".first.conv."),
    (r"\.bn1\.", ".first.norm."),
    (r"\.conv2\.", ".second.conv."),
    (r"\.bn2\.", ".second.norm."),
)


def our_name(key: str) -> str:
    """Our name of a state-dict key of the official code, of mmpose or of ours."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


# --- reading files -------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's state dict in our names and, of a safetensors file, its header's metadata."""
    if path.suffix in (".onnx", ".xml", ".bin"):
        raise ValueError(
            f"{path} is an export, for other programs; pass the weights that it was made from "
            "(.safetensors, .pth)"
        )
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _unwrapped(_read_torch(path), str(path)), {}
    return {our_name(key): value for key, value in state.items()}, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no readable safetensors file ({error}); fetch it again"
        ) from error


def _read_torch(path: Path) -> object:
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise ValueError(
            f"{path} cannot be read as plain weights: it is damaged, or it holds pickled objects "
            "that could run code and are never loaded; fetch it again, or save its state_dict() "
            "alone where you trust it"
        ) from error
    return content


def _unwrapped(content: object, where: str) -> dict[str, Tensor]:
    """The state dict inside a training checkpoint, or the checkpoint itself."""
    for key in ("state_dict", "model", "best_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if isinstance(content, Mapping):
        state = {str(k): value for k, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
    if isinstance(content, Mapping) and "net" in content and "optimiser" in content:
        raise ValueError(
            f"{where} is the state of a training of ours; pass last.safetensors or "
            "best.safetensors, which lie beside it"
        )
    raise ValueError(
        f"{where} holds no weights: expected a state dict (name: tensor), bare or under "
        f"state_dict, model or best_state_dict, got {_described(content)}; save net.state_dict()"
    )


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {_first_few([str(key) for key in content])}"
    return f"a {type(content).__name__}"


# --- weights into a net --------------------------------------------------------------------------


def load_checkpoint(
    net: nn.Module, source: str | Path | StateDict, *, only_matching: bool = False
) -> None:
    """Load weights into a net; all must fit.

    Args:
        net: from nets.build_net; keeps its dtype, float16 weights are widened.
        source: a file (safetensors, official .pth, mmpose), a published name, a URL, or a state
            dict in any of their names.
        only_matching: take the weights whose name and shape fit and leave the net's others as they
            are; for starting a training from an ImageNet HRNet or from another skeleton. What was
            left is logged.
    Raises:
        ValueError: one message that names what is missing, left over or of another shape; with
            only_matching, if nothing fits.
    """
    if isinstance(source, Mapping):
        where = "the state dict"
        state = {our_name(k): v for k, v in _unwrapped(source, where).items()}
    else:
        path = weights_file(source)
        where, (state, _) = str(path), _read(path)
    _fill(net, state, where, only_matching=only_matching)


def _fill(net: nn.Module, state: StateDict, where: str, *, only_matching: bool = False) -> None:
    own = net.state_dict()
    misfits = [k for k, v in state.items() if k in own and v.shape != own[k].shape]
    # The norms' counters are read by nobody; where a file has none they begin at 0.
    counters = {k: torch.zeros_like(v) for k, v in own.items() if k.endswith("_batches_tracked")}
    missing = [k for k in own if k not in state and k not in counters]
    left_over = [k for k in state if k not in own]
    report = (
        f"missing: {_first_few(missing)}; left over: {_first_few(left_over)}; of another shape: "
        + _first_few([f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in misfits])
    )
    fitting = {k: v for k, v in state.items() if k in own and k not in misfits}
    if not fitting or (not only_matching and (missing or left_over or misfits)):
        raise ValueError(
            f"{where} does not fit {type(net).__name__}: {report}; build the net with the settings "
            "that the weights were made with"
        )
    if only_matching:
        _log.info("%d of %d tensors start from %s; %s", len(fitting), len(own), where, report)
    net.load_state_dict(counters | fitting, strict=False)


def _first_few(names: list[str], limit: int = 3) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


# --- a file into a model -------------------------------------------------------------------------


def load_model(weights: str | Path, *, name: str | None = None) -> Model:
    """The net that weights were made with, the weights, and how to run it.

    Our own files say all of it in their header. Of official and mmpose files net, width, number of
    keypoints and skeleton are read off the shapes; they run as published: ImageNet normalisation,
    sides multiples of 64, short side as the file's name says (_512, _640), else 512. A file of
    nets.zoo.published, known by its hash, runs as its publisher measured it.

    Args:
        weights: a file, a published name or a URL, see nets.zoo.weights_files.
        name: the net's name in nets.build_net, for files of which it cannot be read off (plain
            state dicts of other nets than HigherHRNet on HRNet).
    Raises:
        ValueError: no such file, damaged, pickled code, unknown net, weights that do not fit, or
            a download that failed.
    """
    if name is not None:
        check_name(name)
    _check_has_heads(PUBLISHED.get(str(weights)), str(weights))
    path = weights_file(weights)
    state, metadata = _read(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if metadata.get("format") == FORMAT:
        model = _from_metadata(metadata, sha256, path)
        if name not in (None, model.name):
            raise ValueError(f"{path} holds weights of {model.name}, not of {name}")
    else:
        model = _from_shapes(state, sha256, path, name)
    _fill(model.net, state, str(path))
    model.net.eval()
    _log.info("%s: %s for %s", path, model.name, model.skeleton.name)
    if published_with(sha256) is not None and model.decode:
        listed = ", ".join(f"{name}={value}" for name, value in model.decode.items())
        _log.info("decode as its publisher measured it: %s", listed)
    return model


def _check_has_heads(published: Published | None, weights: str) -> None:
    if published is not None and published.backbone_only:
        raise ValueError(
            f"{weights} is a backbone without heads for keypoints: a training starts from it "
            f"(init: {weights}, init_part: matching), but it finds nobody; take one of "
            + ", ".join(name for name, entry in PUBLISHED.items() if not entry.backbone_only)
        )


def _from_metadata(metadata: Mapping[str, str], sha256: str, path: Path) -> Model:
    """An unfilled model as the header of our file says."""
    try:
        name, skeleton = metadata["name"], SKELETONS[metadata["skeleton"]]
        said = {
            key: json.loads(metadata[key])
            for key in (*default_run_settings(name), "settings", "decode")
        }
        return Model(
            net=_empty_net(name, skeleton.num_keypoints, said.pop("settings")),
            name=name,
            skeleton=skeleton,
            mean=tuple(said.pop("mean")),
            std=tuple(said.pop("std")),
            weights_sha256=sha256,
            decode=dict(said.pop("decode")),
            **said,
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} says it is {FORMAT}, but its header is not whole ({error!r}); "
            "write it again with save_model"
        ) from error


def _empty_net(name: str, num_keypoints: int, settings: dict[str, Any]) -> nn.Module:
    """A net whose weights are memory only: drawing start values takes longer than loading."""
    with torch.device("meta"):
        net = build_net(name, num_keypoints, **settings)
    return net.to_empty(device="cpu")


def _from_shapes(state: StateDict, sha256: str, path: Path, name: str | None) -> Model:
    """An unfilled model as the shapes say; of a named net only the number of keypoints."""
    changes: dict[str, Any] = {}
    published = published_with(sha256)
    _check_has_heads(published, str(path))
    if name is None:
        name, changes = _name_and_settings(state, path)
    num_keypoints = _num_keypoints(state, path)
    size = re.search(r"_(512|640)(?!\d)", path.name)
    run = default_run_settings(name)
    if published is not None:
        run["input_size"] = published.input_size
    elif size:
        run["input_size"] = int(size[1])
    return Model(
        net=_empty_net(name, num_keypoints, changes),
        name=name,
        skeleton=skeleton_for(num_keypoints),
        weights_sha256=sha256,
        decode={} if published is None else published.decode,
        **run,
    )


def _num_keypoints(state: StateDict, path: Path) -> int:
    """Half the channels of the 1/4 head: a heatmap and a tag for each keypoint."""
    for key in ("first_head.conv.bias", "coarse.head.conv.bias"):
        if key in state and len(state[key]) % 2 == 0:
            return len(state[key]) // 2
    if "first_head.heatmaps.bias" in state:
        return len(state["first_head.heatmaps.bias"])
    raise ValueError(
        f"{path} has no 1/4 head with a heatmap and a tag for each keypoint; it begins with "
        f"{_first_few(list(state))}; pass weights of a net that nets.build_net knows"
    )


_PARTS_OF_HRNET = (
    "backbone.stem.0",
    "backbone.narrow",
    *(f"backbone.stages.{stage}.0.branches.0.0.first" for stage in range(3)),
    "first_head",
)
"""What a HigherHRNet on HRNet has, whatever its settings."""


def _name_and_settings(state: StateDict, path: Path) -> tuple[str, dict[str, Any]]:
    """Name and settings of a HigherHRNet (or plain HRNet) on HRNet."""
    if not all(f"{part}.conv.weight" in state for part in _PARTS_OF_HRNET):
        raise ValueError(
            f"{path}: cannot tell which net these weights are for, they begin with "
            f"{_first_few(list(state))}; if they are whole, name the net: python export.py "
            f"{path} --output named.safetensors --name NET, one of {', '.join(NAMED)}"
        )
    backbone = _hrnet_settings(state)
    deconvs = _count(state, r"upsamplers\.(\d+)\.")
    deconv = state.get("upsamplers.0.deconv.weight")  # (inputs, outputs, 4, 4)
    read = HigherHRNetSettings(
        backbone,
        deconvs=deconvs,
        residual_blocks=_count(state, r"upsamplers\.0\.blocks\.(\d+)\.") if deconvs else 4,
        concatenate=deconv is None or deconv.shape[0] > backbone.width,
        deconv_channels=(
            0 if deconv is None or deconv.shape[1] == backbone.width else deconv.shape[1]
        ),
    )
    same = [name for name, settings in NAMED.items() if settings == read]
    family = "higher_hrnet_w32" if deconvs else "hrnet_w32"
    return (same[0] if same else family), flat(read)


def _hrnet_settings(state: StateDict) -> HRNetSettings:
    low, middle, high = (_count(state, rf"backbone\.stages\.{s}\.(\d+)\.") for s in range(3))
    return HRNetSettings(
        width=state["backbone.narrow.conv.weight"].shape[0],
        stem=state["backbone.stem.0.conv.weight"].shape[0],
        bottlenecks=_count(state, r"backbone\.bottlenecks\.(\d+)\."),
        bottleneck_channels=state["backbone.narrow.conv.weight"].shape[1],
        modules=(low, middle, high),
        blocks=_count(state, r"backbone\.stages\.0\.0\.branches\.0\.(\d+)\."),
    )


def _count(state: StateDict, pattern: str) -> int:
    """How many different numbers stand in the place of the pattern's group."""
    found = (re.match(pattern, key) for key in state)
    return len({match[1] for match in found if match})


def default_run_settings(name: str) -> dict[str, Any]:
    """How weights of that net run where nothing else is said: as published, or as ours are made."""
    run = {
        "mean": (0.485, 0.456, 0.406),  # ImageNet
        "std": (0.229, 0.224, 0.225),
        "input_size": 512,
        "size_multiple": 64,
        "tag_ramp_px": 0.0,
    }
    if name.endswith(("_lite", "_mobile")):
        run |= {"input_size": 256, "size_multiple": 32}
    if name in NAMED and isinstance(NAMED[name].backbone, MobileFpnSettings):
        half = (0.5, 0.5, 0.5)  # MoveNet's -1..1
        run |= {"mean": half, "std": half, "tag_ramp_px": 32.0}
    return run


# --- a model into a file -------------------------------------------------------------------------


def save_model(path: str | Path, model: Model, *, dtype: torch.dtype = torch.float16) -> None:
    """Write weights and all of the Model's settings as one safetensors file, atomically.

    Args:
        dtype: torch.float16 (half the size) or torch.float32.
    Raises:
        ValueError: another dtype, or weights that are not finite in it.
    """
    from safetensors.torch import save

    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"dtype must be torch.float16 or torch.float32, got {dtype}")
    assert isinstance(model.net, PoseNet)
    tensors = {
        key: value.detach()
        .cpu()
        .to(dtype if value.is_floating_point() else value.dtype)
        .contiguous()
        for key, value in model.net.state_dict().items()
    }
    bad = [key for key, value in tensors.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(
            f"weights are not finite in {dtype}: {_first_few(bad)}; save them as torch.float32, "
            "or look for what made the training diverge"
        )
    metadata = {
        "format": FORMAT,
        "name": model.name,
        "skeleton": model.skeleton.name,
        "num_keypoints": str(model.skeleton.num_keypoints),
        "settings": json.dumps(flat(model.net.settings)),
        "decode": json.dumps(dict(model.decode)),
    } | {key: json.dumps(getattr(model, key)) for key in default_run_settings(model.name)}
    write_atomically(Path(path), save(tensors, metadata), durable=True)


def state_sha256(state: StateDict) -> str:
    """Hash of names and values, the same however they are stored in a file."""
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
