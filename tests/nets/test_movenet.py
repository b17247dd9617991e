"""MoveNet's file into our net: against TensorFlow's operations written out, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import export
from nets.checkpoints import Model, load_model
from nets.movenet import load_movenet

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, NDArray[np.float16]]

ROOT = "StatefulPartitionedCall/"
TRUNK = f"{ROOT}center_net_mobile_net_v2fpn_feature_extractor/model_1/"
WIDTH, TOP, PYRAMID, HEAD, KEYPOINTS = 8, 16, (12, 10, 6), 14, 17
# MobileNetV2's table 2 at a quarter of its width, no layer under 8 channels.
OUTPUTS = (8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 40, 40, 40, 80)
STRIDE_2 = (1, 3, 6, 13)


# --- a tiny MoveNet, as TensorFlow.js stores it --------------------------------------------------


def tiny_weights(seed: int = 0) -> Weights:
    """Random weights in TensorFlow's order (y, x, in, out), those of depthwise (y, x, C, 1)."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}

    def add(name: str, *shape: int) -> None:
        fan_in = np.prod(shape[:3]) if shape[-1] > 1 else 9
        scale = 0.1 if len(shape) == 1 else (2 / fan_in) ** 0.5
        weights[name] = (scale * rng.standard_normal(shape)).astype(np.float16)

    def folded(name: str, *shape: int, channels: int) -> None:
        add(f"{TRUNK}{name}_weights", *shape)
        add(f"{TRUNK}{name}_bn_offset", channels)

    def head(name: str, index: int, outputs: int) -> None:
        separable = f"{ROOT}{name}/separable_conv2d_{index}"
        add(f"{separable}/separable_conv2d/ReadVariableOp", 3, 3, PYRAMID[2], 1)
        add(f"{separable}/separable_conv2d/ReadVariableOp_1", 1, 1, PYRAMID[2], HEAD)
        add(f"{separable}/BiasAdd/ReadVariableOp", HEAD)
        add(f"{ROOT}{name}/conv2d_{index + 1}/Conv2D/ReadVariableOp", 1, 1, HEAD, outputs)
        add(f"{ROOT}{name}/conv2d_{index + 1}/BiasAdd/ReadVariableOp", outputs)

    head("center_0", 3, 1)
    head("kpt_heatmap_0", 6, KEYPOINTS)
    head("kpt_regress_0", 7, 2 * KEYPOINTS)
    folded("model/Conv1/Conv2D", 3, 3, 3, WIDTH, channels=WIDTH)
    inputs = WIDTH
    for block, outputs in enumerate(OUTPUTS):
        name = f"model/block_{block}" if block else "model/expanded_conv"
        expanded = 6 * inputs if block else inputs
        if block:
            folded(f"{name}_expand/Conv2D", 1, 1, inputs, expanded, channels=expanded)
        folded(f"{name}_depthwise/depthwise", 3, 3, expanded, 1, channels=expanded)
        folded(f"{name}_project/Conv2D", 1, 1, expanded, outputs, channels=outputs)
        inputs = outputs
    folded("model/Conv_1/Conv2D", 1, 1, inputs, TOP, channels=TOP)
    laterals = ((TOP, PYRAMID[0]), *zip((16, 8, 8), PYRAMID, strict=True))
    for index, (source, channels) in enumerate(laterals):
        name = f"{TRUNK}conv2d_{index}" if index else f"{TRUNK}conv2d"
        add(f"{name}/Conv2D/ReadVariableOp", 1, 1, source, channels)
        add(f"{name}/BiasAdd/ReadVariableOp", channels)
    for index, (source, channels) in enumerate(
        zip(PYRAMID, (*PYRAMID[1:], PYRAMID[2]), strict=True)
    ):
        name = f"separable_conv2d_{index}" if index else "separable_conv2d"
        add(f"{TRUNK}{name}/separable_conv2d/ReadVariableOp", 3, 3, source, 1)
        folded(f"{name}/separable_conv2d", 1, 1, source, channels, channels=channels)
    return weights


def write_graph_model(folder: Path, weights: Weights) -> Path:
    """model.json and two .bin files, cut in the middle of a tensor as TensorFlow.js does."""
    entries: list[dict[str, Any]] = [{"name": "axis", "shape": [], "dtype": "int32"}]
    stored = np.int32(3).tobytes()
    for name, values in weights.items():
        quantization = {"dtype": "float16", "original_dtype": "float32"}
        shape = list(values.shape)
        entry = {"name": name, "shape": shape, "dtype": "float32", "quantization": quantization}
        entries.append(entry)
        stored += values.tobytes()
    shards = ["group1-shard1of2.bin", "group1-shard2of2.bin"]
    (folder / shards[0]).write_bytes(stored[:1001])
    (folder / shards[1]).write_bytes(stored[1001:])
    path = folder / "model.json"
    manifest = [{"paths": shards, "weights": entries}]
    path.write_text(json.dumps({"format": "graph-model", "weightsManifest": manifest}))
    return path


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    return write_graph_model(tmp_path_factory.mktemp("movenet"), weights)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load_movenet(path)


# --- MoveNet by TensorFlow's definitions, in NumPy, on pictures (H, W, C) ------------------------


class Definition:
    """MoveNet's features, heatmaps and regression branch from TensorFlow's weights."""

    def __init__(self, weights: Weights) -> None:
        self.weights = {name: values.astype(np.float64) for name, values in weights.items()}

    def windows(self, x: NDArray[Any], size: int, stride: int) -> Any:
        """(h, w, C, size, size) under TensorFlow's SAME: the odd row of padding comes last."""
        padding = []
        for length in x.shape[:2]:
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
            padding.append((total // 2, total - total // 2))
        x = np.pad(x, (*padding, (0, 0)))
        view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))
        return view[::stride, ::stride]

    def conv(
        self, x: NDArray[Any], weight: str, bias: str | None = None, stride: int = 1
    ) -> NDArray[Any]:
        w = self.weights[weight]
        windows = self.windows(x, len(w), stride)
        spec = "hwcyx,yxco->hwc" if w.shape[3] == 1 and len(w) == 3 else "hwcyx,yxco->hwo"
        y: NDArray[Any] = np.einsum(spec, windows, w, optimize=True)
        return y if bias is None else y + self.weights[bias]

    def folded(self, x: NDArray[Any], name: str, stride: int = 1) -> NDArray[Any]:
        return self.conv(x, f"{TRUNK}{name}_weights", f"{TRUNK}{name}_bn_offset", stride)

    def plain(self, x: NDArray[Any], name: str) -> NDArray[Any]:
        return self.conv(x, f"{name}/Conv2D/ReadVariableOp", f"{name}/BiasAdd/ReadVariableOp")

    def features(self, x: NDArray[Any]) -> NDArray[Any]:
        x = relu6(self.folded(x, "model/Conv1/Conv2D", stride=2))
        after = []
        for block, outputs in enumerate(OUTPUTS):
            name = f"model/block_{block}" if block else "model/expanded_conv"
            stride = 2 if block in STRIDE_2 else 1
            y = relu6(self.folded(x, f"{name}_expand/Conv2D")) if block else x
            y = relu6(self.folded(y, f"{name}_depthwise/depthwise", stride))
            y = self.folded(y, f"{name}_project/Conv2D")
            x = x + y if stride == 1 and x.shape[2] == outputs else y
            after.append(x)
        x = self.plain(relu6(self.folded(x, "model/Conv_1/Conv2D")), f"{TRUNK}conv2d")
        for index, block in enumerate((9, 5, 2)):
            twice = (2 * x.shape[1], 2 * x.shape[0])
            raised = cv2.resize(x, twice, interpolation=cv2.INTER_LINEAR)
            x = raised + self.plain(after[block], f"{TRUNK}conv2d_{index + 1}")
            name = f"separable_conv2d_{index}" if index else "separable_conv2d"
            x = self.conv(x, f"{TRUNK}{name}/separable_conv2d/ReadVariableOp")
            x = relu(self.folded(x, f"{name}/separable_conv2d"))
        return x

    def branch(self, features: NDArray[Any], name: str) -> NDArray[Any]:
        x = self.conv(features, f"{ROOT}{name}/separable_conv2d/ReadVariableOp")
        weight = f"{ROOT}{name}/separable_conv2d/ReadVariableOp_1"
        x = self.conv(x, weight, f"{ROOT}{name}/BiasAdd/ReadVariableOp")
        return relu(x)


def relu(x: NDArray[Any]) -> NDArray[Any]:
    return x.clip(0)


def relu6(x: NDArray[Any]) -> NDArray[Any]:
    return x.clip(0, 6)


def picture(height: int = 64, width: int = 96) -> NDArray[np.float32]:
    """(H, W, 3) RGB in -1..1."""
    return np.random.default_rng(5).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def as_input(rgb: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(rgb.transpose(2, 0, 1)[None].copy())


def as_map(output: torch.Tensor) -> NDArray[Any]:
    values: NDArray[Any] = output[0].permute(1, 2, 0).numpy()
    return values


def test_heatmaps_are_those_of_tensorflow_s_definition(model: Model, weights: Weights) -> None:
    definition, rgb = Definition(weights), picture()
    branch = definition.branch(definition.features(rgb), "kpt_heatmap_0/separable_conv2d_6")
    logits = definition.plain(branch, f"{ROOT}kpt_heatmap_0/conv2d_7")
    with torch.inference_mode():
        heatmaps = as_map(model.net(as_input(rgb)).heatmaps[0])
    assert heatmaps.std() > 0.01
    np.testing.assert_allclose(heatmaps, 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-4)


def test_tags_start_from_the_regression_branch(model: Model, weights: Weights) -> None:
    definition, rgb = Definition(weights), picture()
    expected = definition.branch(definition.features(rgb), "kpt_regress_0/separable_conv2d_7")
    net: Any = model.net
    with torch.inference_mode():
        branch = as_map(net.first_head.tag_branch(net.backbone(as_input(rgb))))
    assert expected.std() > 0.01
    np.testing.assert_allclose(branch, expected, rtol=0, atol=1e-4 * expected.max())


def test_only_what_movenet_lacks_depends_on_the_seed(path: Path, model: Model) -> None:
    state = model.net.state_dict()
    again, other = (load_movenet(path, seed=seed).net.state_dict() for seed in (0, 1))
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    differing = {key for key, value in state.items() if not torch.equal(value, other[key])}
    assert differing == {
        "first_head.tags.weight",
        "upsamplers.0.deconv.weight",
        "higher_heads.0.weight",
    }


def test_the_tags_pyramid_begins_as_a_copy(model: Model) -> None:
    state = model.net.state_dict()
    copies = [key for key in state if key.startswith("second_pyramid.")]
    assert len(copies) == 17
    for key in copies:
        assert torch.equal(state[key], state[f"backbone.{key.removeprefix('second_')}"])


def test_loading_leaves_torch_s_generator_alone(path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    load_movenet(path)
    assert torch.equal(torch.rand(3), expected)


def test_export_py_makes_the_start_of_a_training(path: Path, model: Model, tmp_path: Path) -> None:
    output = tmp_path / "start.safetensors"
    assert export.main([str(path), "--output", str(output)]) == 0
    start = load_model(output)
    assert start.name == "higher_mobile"
    assert start.mean == start.std == (0.5, 0.5, 0.5)  # MoveNet reads -1..1
    state = model.net.state_dict()
    for key, value in start.net.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-6)


def test_movenet_is_no_other_net(path: Path, tmp_path: Path) -> None:
    arguments = [str(path), "--name", "higher_hrnet_w32", "--output", str(tmp_path / "a.onnx")]
    assert export.main(arguments) == 2


# --- bad files -----------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    shard = path.parent / "group1-shard2of2.bin"
    shard.write_bytes(shard.read_bytes()[:-100])


def grow(path: Path) -> None:
    with (path.parent / "group1-shard2of2.bin").open("ab") as file:
        file.write(b"\0\0")


def quantise(path: Path) -> None:
    content = json.loads(path.read_text())
    content["weightsManifest"][0]["weights"][1]["quantization"]["dtype"] = "uint8"
    path.write_text(json.dumps(content))


def rename_a_tensor(path: Path) -> None:
    path.write_text(path.read_text().replace("block_7_expand", "block_7_widen"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "hold .* bytes, but more are described"),
        (grow, "hold .* bytes, but .* are described"),
        (quantise, "is stored as uint8"),
        (rename_a_tensor, "not MoveNet MultiPose Lightning: it lacks 2 of .*block_7_expand"),
        (lambda path: (path.parent / "group1-shard1of2.bin").unlink(), "shard1of2.bin cannot be"),
        (lambda path: path.unlink(), "model.json cannot be read"),
        (lambda path: path.write_text("{"), "no TensorFlow.js graph model"),
        (lambda path: path.write_text("[1]"), "no TensorFlow.js graph model"),
        (lambda path: path.write_text('{"images": []}'), "no TensorFlow.js graph model"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "no TensorFlow.js graph model"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, weights: Weights, damage: Callable[[Path], object], message: str
) -> None:
    path = write_graph_model(tmp_path, weights)
    damage(path)
    with pytest.raises(ValueError, match=message):
        load_movenet(path)
