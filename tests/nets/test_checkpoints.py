"""Weights in every form they come in, what is said when they do not fit, and our own files."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nets import build_net
from nets.aggregation import add_tag_ramp, average_scales
from nets.checkpoints import (
    Model,
    load_checkpoint,
    load_model,
    our_name,
    save_model,
)
from nets.named import flat
from nets.skeletons import COCO, CROWDPOSE
from pipeline.sources.demo import photograph
from tests.support.places import ROOT
from tests.support.random_model import random_model

pytestmark = pytest.mark.usefixtures("one_thread")

DEFAULT_WEIGHTS = ROOT / "weights" / "higher_mobile.safetensors"
TINY: dict[str, Any] = {"width": 8, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 2}

StateDict = dict[str, Tensor]


def official_keys(name: str) -> dict[str, list[int]]:
    keys: dict[str, list[int]] = json.loads(
        (ROOT / "tests" / "data" / f"net_{name}_keys.json").read_text()
    )["keys"]
    return keys


OFFICIAL = {our_name(key): key for key in official_keys("w32")}
"""Our names to official ones; the small nets of the tests have fewer of them."""


@pytest.fixture(scope="module")
def tiny() -> Model:
    return random_model("higher_hrnet_w32", seed=3, **TINY)


def official_state(model: Model) -> StateDict:
    return {OFFICIAL[key]: value.clone() for key, value in model.net.state_dict().items()}


def same_weights(a: nn.Module, b: nn.Module, rtol: float = 0.0) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.allclose(ours[k], theirs[k], rtol=rtol, atol=rtol) for k in ours)


# --- names and shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "name", "keypoints"),
    [
        ("w32", "higher_hrnet_w32", 17),
        ("w48", "higher_hrnet_w48", 17),
        ("crowdpose_w32", "higher_hrnet_w32", 14),
    ],
)
def test_official_keys_are_ours_with_the_same_shapes(keys: str, name: str, keypoints: int) -> None:
    with torch.device("meta"):
        net = build_net(name, keypoints)
    ours = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert {our_name(key): shape for key, shape in official_keys(keys).items()} == ours
    assert [our_name(key) for key in ours] == list(ours)  # our own names pass through


def test_official_file_alone_says_all(tmp_path: Path) -> None:
    """The real thing: a CrowdPose W32 file of the published shapes."""
    state = {
        key: torch.zeros(shape, dtype=torch.int64 if not shape else torch.float16)
        for key, shape in official_keys("crowdpose_w32").items()
    }
    state["final_layers.1.bias"][5] = 0.5
    torch.save(state, tmp_path / "pose_higher_hrnet_w32_640.pth")
    model = load_model(tmp_path / "pose_higher_hrnet_w32_640.pth")
    assert model.name == "higher_hrnet_w32"
    assert model.skeleton is CROWDPOSE
    assert flat(model.net.settings) == flat(build_net("higher_hrnet_w32").settings)  # type: ignore[arg-type]
    assert (model.input_size, model.size_multiple, model.tag_ramp_px) == (640, 64, 0.0)
    assert model.mean == pytest.approx((0.485, 0.456, 0.406))
    assert model.std == pytest.approx((0.229, 0.224, 0.225))
    assert model.decode == {}
    assert not model.net.training
    parameters = list(model.net.parameters())
    assert all(p.dtype == torch.float32 for p in parameters)
    assert model.net.get_parameter("higher_heads.0.bias")[5] == 0.5
    assert sum(p.abs().sum().item() for p in parameters) == 0.5  # nothing else was invented


def mmpose(state: StateDict) -> StateDict:
    heads = ("final_layers", "deconv_layers")
    return {
        f"{'keypoint_head' if key.startswith(heads) else 'backbone'}.{key}": value
        for key, value in state.items()
    }


WRAPPINGS: dict[str, Callable[[StateDict], Any]] = {
    "bare": lambda state: state,
    "data_parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "fp16_wrapper": lambda state: {f"1.{k}": v for k, v in state.items()},
    "both": lambda state: {f"module.1.{k}": v for k, v in state.items()},
    "state_dict": lambda state: {"epoch": 3, "model": "pose_hrnet", "state_dict": state},
    "model": lambda state: {"model": state, "perf": 0.67},
    "best_state_dict": lambda state: {"best_state_dict": state, "optimizer": {"lr": 0.1}},
    "mmpose": lambda state: {"meta": {"epoch": 300}, "state_dict": mmpose(state)},
    "without_counters": lambda state: {k: v for k, v in state.items() if "batches" not in k},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_read_in_every_wrapping(wrapping: str, tiny: Model, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[wrapping](official_state(tiny)), tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth")
    assert flat(model.net.settings) == flat(tiny.net.settings)  # type: ignore[arg-type]
    assert model.input_size == 512
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.net(images).heatmaps[1], tiny.net(images).heatmaps[1])


def test_half_precision_weights_are_widened(tiny: Model, tmp_path: Path) -> None:
    state = {k: v.half() if v.dim() == 4 else v for k, v in official_state(tiny).items()}
    torch.save(state, tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth")
    assert model.net.get_parameter("first_head.conv.weight").dtype == torch.float32
    assert same_weights(model.net, tiny.net, rtol=1e-3)
    assert model.weights_sha256 != tiny.weights_sha256


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hrnet_w32", TINY),
        ("higher_hrnet_w32", TINY | {"deconvs": 2, "residual_blocks": 2, "concatenate": False}),
        ("higher_hrnet_lite", {}),
    ],
)
def test_settings_are_read_off_the_shapes(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    made = random_model(name, **settings)
    torch.save(made.net.state_dict(), tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth")
    assert model.name == name
    assert flat(model.net.settings) == flat(made.net.settings)  # type: ignore[arg-type]
    assert same_weights(model.net, made.net)


def test_plain_hrnet_of_mmpose_1_is_the_baseline(tmp_path: Path) -> None:
    made = random_model("hrnet_w32", **TINY)
    state = {OFFICIAL[key]: value for key, value in made.net.state_dict().items()}
    state = {
        key.replace("final_layers.0", "head.final_layer")
        if "final" in key
        else f"backbone.{key}": v
        for key, v in state.items()
    }
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    assert same_weights(load_model(tmp_path / "weights.pth").net, made.net)


def test_other_nets_are_loaded_by_name(tmp_path: Path) -> None:
    made = random_model("double_higher_net_lite", num_keypoints=14)
    torch.save(made.net.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="no network is called 'double_higher_net_light'; known"):
        load_model(tmp_path / "weights.pth", name="double_higher_net_light")
    with pytest.raises(ValueError, match=r"cannot tell which net .*--name NET, .*net_lite"):
        load_model(tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth", name="double_higher_net_lite")
    assert model.skeleton is CROWDPOSE
    assert same_weights(model.net, made.net)
    with pytest.raises(ValueError, match=r"does not fit HigherHRNet: missing: .* more; left over:"):
        load_model(tmp_path / "weights.pth", name="higher_hrnet_lite")


# --- what does not fit ---------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_named_in_one_error(tiny: Model) -> None:
    state = official_state(tiny)
    for key in [key for key in state if key.startswith("layer1.0.conv")]:
        del state[key]
    state["extra.weight"] = torch.zeros(3)
    state["final_layers.1.bias"] = torch.zeros(14)
    before = random_model("higher_hrnet_w32", **TINY)
    net = random_model("higher_hrnet_w32", **TINY).net
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        load_checkpoint(net, state)
    assert str(caught.value) == (
        "the state dict does not fit HigherHRNet: missing: "
        "backbone.bottlenecks.0.reduce.conv.weight, backbone.bottlenecks.0.conv.conv.weight, "
        "backbone.bottlenecks.0.expand.conv.weight; left over: extra.weight; of another shape: "
        "higher_heads.0.bias (14,) for (17,); build the net with the settings that the weights "
        "were made with"
    )
    assert same_weights(net, before.net), "a refused checkpoint must change nothing"


def test_long_lists_are_cut_with_a_count(tiny: Model) -> None:
    with pytest.raises(ValueError, match=r"missing: backbone.stem.\S+, \S+, \S+ and \d+ more;"):
        load_checkpoint(tiny.net, {"something.weight": torch.zeros(1)})


def test_imagenet_weights_start_the_backbone(tiny: Model, caplog: pytest.LogCaptureFixture) -> None:
    state = {
        k: v for k, v in official_state(tiny).items() if "final" not in k and "deconv" not in k
    }
    state |= {"classifier.weight": torch.zeros(1000, 4), "incre_modules.0.bias": torch.zeros(4)}
    net = random_model("higher_hrnet_w32", seed=9, **TINY).net
    heads = net.get_parameter("first_head.conv.weight").clone()
    with pytest.raises(ValueError, match=r"missing: first_head.conv.weight.*left over: classifier"):
        load_checkpoint(net, state)
    with caplog.at_level(logging.INFO, logger="nets.checkpoints"):
        load_checkpoint(net, state, only_matching=True)
    assert same_weights(net.get_submodule("backbone"), tiny.net.get_submodule("backbone"))
    assert torch.equal(net.get_parameter("first_head.conv.weight"), heads)
    assert "left over: classifier.weight, incre_modules.0.bias" in caplog.text
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(net, {"unknown": torch.zeros(1)}, only_matching=True)


class _Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.unlink, (str(self.victim),)


def test_pickled_code_is_refused_and_never_run(tiny: Model, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    torch.save(official_state(tiny) | {"meta": _Intruder(victim)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth cannot be read as plain weights: .* code"):
        load_model(tmp_path / "weights.pth")
    assert victim.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x02garbage" * 99])
def test_damaged_files_are_said_to_be(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.\w+ (cannot be read|is no readable)"):
        load_model(path)


def test_truncated_files_are_said_to_be(tiny: Model, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_model(whole, tiny)
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no readable safetensors file"):
        load_model(cut)
    torch.save(official_state(tiny), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        load_model(tmp_path / "cut.pth")


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no weights file .*none.pth"):
        load_model(tmp_path / "none.pth")
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    with pytest.raises(ValueError, match=r"net.onnx is an export, .* pass the weights"):
        load_model(tmp_path / "net.onnx")
    torch.save({"net": {}, "optimiser": {}, "progress": {}}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt is the state of a training .* last.safetensors"):
        load_model(tmp_path / "last.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"holds no weights: .* got a dict with epoch, lr"):
        load_model(tmp_path / "weights.pth")
    torch.save([1, 2], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="got a list"):
        load_model(tmp_path / "weights.pth")


# --- our own files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("higher_hrnet_w48", TINY | {"aggregation": "highest", "deconvs": 2}),
        ("double_higher_net_w32", TINY | {"fusion": "concatenation", "bridge_low": 1}),
        ("higher_mobile", {"width": 8, "pyramid": (16, 8, 8)}),
        ("higher_mobile", {"width": 8, "pyramid": (16, 8, 8), "tag_numbers": 2}),
    ],
)
def test_saved_models_come_back_whole(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = replace(
        random_model(name, num_keypoints=14, **settings),
        mean=(0.1, 0.2, 0.3),
        input_size=320,
        tag_ramp_px=12.5,
        decode={"detection_threshold": 0.25},
    )
    path = tmp_path / "model.safetensors"
    save_model(path, model, dtype=torch.float32)
    loaded = load_model(path)
    assert same_weights(loaded.net, model.net)
    assert flat(loaded.net.settings) == flat(model.net.settings)  # type: ignore[arg-type]
    plain = replace(loaded, net=model.net, weights_sha256=model.weights_sha256)
    assert plain == model
    full_size = path.stat().st_size
    save_model(path, model)
    assert path.stat().st_size < 0.7 * full_size
    assert same_weights(load_model(path).net, model.net, rtol=1e-3)
    assert load_model(path).weights_sha256 != loaded.weights_sha256


def test_name_must_agree_with_the_header(tiny: Model, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", tiny)
    with pytest.raises(ValueError, match="holds weights of higher_hrnet_w32, not of hrnet_w32"):
        load_model(tmp_path / "model.safetensors", name="hrnet_w32")


def read_header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_headers_that_are_not_whole_are_refused(tiny: Model, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(tiny.net.state_dict(), path, {"format": "posestream/1", "name": "hrnet_w32"})
    with pytest.raises(ValueError, match=r"its header is not whole .*'skeleton'"):
        load_model(path)
    save_model(path, tiny)
    header = read_header(path)
    for key, value in (("mean", "1"), ("settings", "[]"), ("decode", "{"), ("decode", "[1]")):
        save_file(tiny.net.state_dict(), path, header | {key: value})
        with pytest.raises(ValueError, match="its header is not whole"):
            load_model(path)


def test_a_failed_save_leaves_the_old_file(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, tiny)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(path, random_model("higher_hrnet_w32", **TINY))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_beyond_half_precision_are_not_written(tmp_path: Path) -> None:
    model = random_model("higher_hrnet_w32", **TINY)
    with torch.no_grad():
        model.net.get_parameter("first_head.conv.bias")[0] = 1e6
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"not finite in torch.float16: first_head.conv.bias"):
        save_model(path, model)
    with pytest.raises(ValueError, match=r"must be torch.float16 or torch.float32, got torch.int8"):
        save_model(path, model, dtype=torch.int8)
    assert not path.exists()
    save_model(path, model, dtype=torch.float32)


def test_random_models_are_reproducible_and_alive() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = random_model("higher_hrnet_w32", **TINY)
    assert torch.equal(torch.rand(1), expected), "the global generator must stay as it was"
    assert one.weights_sha256 == random_model("higher_hrnet_w32", **TINY).weights_sha256
    assert one.weights_sha256 != random_model("higher_hrnet_w32", seed=1, **TINY).weights_sha256
    with torch.inference_mode():
        output = one.net(torch.randn(1, 3, 128, 128))
    assert all(0.1 < maps.std() < 100 for maps in (*output.heatmaps, output.tags))


# --- the default weights -------------------------------------------------------------------------


def test_default_weights_find_a_face() -> None:
    """The astronaut of the demo scene: eyes and nose are found where everybody sees them."""
    model = load_model(DEFAULT_WEIGHTS)
    assert DEFAULT_WEIGHTS.stat().st_size < 12e6
    assert (model.name, model.skeleton, model.input_size) == ("higher_mobile", COCO, 320)
    photo = cv2.cvtColor(photograph(), cv2.COLOR_BGR2RGB)
    picture = cv2.resize(photo, (256, 256), interpolation=cv2.INTER_AREA)
    images = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - model.mean[0]) / model.std[0]
    with torch.inference_mode():
        maps = add_tag_ramp(model.net.maps(model.net(images)), model.tag_ramp_px, 4)  # type: ignore[operator]
    (heatmaps,), tags = average_scales({1: maps}, size=(256, 256))
    seen = {  # (x, y) in the 512x512 photograph; her left is on the picture's right
        "nose": (226, 122),
        "left_eye": (246, 104),
        "right_eye": (203, 106),
    }
    seen_tags: list[np.ndarray] = []
    for name, (x, y) in seen.items():
        keypoint = COCO.keypoint_names.index(name)
        heatmap = heatmaps[0, keypoint].numpy()  # one pixel is two of the photograph
        row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
        assert heatmap.max() > model.decode["detection_threshold"]
        assert np.hypot(2 * column - x, 2 * row - y) < 15, name
        seen_tags.append(tags[0, keypoint, row, column].numpy())
    spread = np.linalg.norm(np.ptp(seen_tags, axis=0))
    assert spread < 1.0, "one person's tags lie closer than the matching's threshold"
