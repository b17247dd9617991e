"""export.py: what it writes runs elsewhere as it runs here, and says how; bad input is one line."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from numpy.typing import NDArray

import export
from nets import graphs
from nets.aggregation import Maps, add_tag_ramp
from nets.checkpoints import Model, load_model, our_name, save_model
from tests.support.places import ROOT
from tests.support.random_model import random_model

TINY: dict[str, Any] = {"width": 8, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 1}
MOBILE: dict[str, Any] = {"width": 8, "top": 16, "pyramid": (8, 8, 8), "separable_head": 8}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobile.safetensors"
    save_model(path, random_model("higher_mobile", seed=1, **MOBILE))
    return path


def expected_maps(model: Model, images: torch.Tensor) -> list[NDArray[Any]]:
    with torch.inference_mode():
        maps: Maps = model.net.maps(model.net(images))  # type: ignore[operator]
    return [output.numpy() for output in (*maps.levels, maps.tags)]


def openvino_outputs(path: Path, images: torch.Tensor) -> Any:
    """What the file gives, by name or index."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"images": images.numpy()})


def check_outputs(path: Path, model: Model, shape: tuple[int, ...], rtol: float) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    outputs = openvino_outputs(path, images)
    references = expected_maps(model, images)
    assert len(outputs) == len(references)
    for index, reference in enumerate(references):
        output = outputs[index]
        assert output.shape == reference.shape
        np.testing.assert_allclose(output, reference, rtol=0, atol=rtol * np.abs(reference).max())
    assert np.array_equal(outputs["tags"], outputs[len(references) - 1])


# --- safetensors ---------------------------------------------------------------------------------


def test_an_official_file_becomes_ours(tmp_path: Path) -> None:
    keys = json.loads((ROOT / "tests" / "data" / "net_w32_keys.json").read_text())["keys"]
    official = {our_name(key): key for key in keys}
    model = random_model("higher_hrnet_w32", seed=2, **TINY)
    source = tmp_path / "pose_higher_hrnet_w32_640.pth"
    state = {f"1.{official[key]}": value for key, value in model.net.state_dict().items()}
    torch.save(state, source)
    output = tmp_path / "w32.safetensors"
    assert export.main([str(source), "--output", str(output), "--precision", "fp32"]) == 0
    ours = load_model(output)
    assert (ours.input_size, ours.skeleton.name) == (640, "coco17")
    for key, value in ours.net.state_dict().items():
        assert torch.equal(value, model.net.state_dict()[key])
    assert load_model(source).weights_sha256 in (tmp_path / "w32.safetensors.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        source.name,
        output.name,
        f"{output.name}.md",
    }


def test_weights_that_do_not_say_their_net_need_its_name(tmp_path: Path) -> None:
    model = random_model("higher_mobile", seed=2)
    source, output = tmp_path / "bare.pth", tmp_path / "named.safetensors"
    torch.save(model.net.state_dict(), source)
    assert export.main([str(source), "--output", str(output)]) == 2
    assert export.main([str(source), "--output", str(output), "--name", "higher_mobile"]) == 0
    assert load_model(output).name == "higher_mobile"


# --- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "names"),
    [
        ("higher_mobile", MOBILE, ["heatmaps_4", "heatmaps_2", "tags"]),
        (
            "higher_mobile",
            MOBILE | {"tag_numbers": 2, "aggregation": "highest"},
            ["heatmaps_2", "tags"],
        ),
        ("hrnet_w32", TINY, ["heatmaps_4", "tags"]),
        ("double_higher_net_w32", TINY, ["heatmaps_4", "heatmaps_2", "tags"]),
    ],
)
def test_every_net_is_the_same_as_onnx(
    tmp_path: Path, name: str, settings: dict[str, Any], names: list[str]
) -> None:
    weights, output = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    save_model(weights, random_model(name, seed=4, **settings), dtype=torch.float32)
    options = ["--dynamic", "--batch", "--opset", "18"]
    assert export.main([str(weights), "--output", str(output), *options]) == 0
    graph = onnx.load(output)
    assert graph.opset_import[0].version == 18
    assert [port.name for port in graph.graph.output] == names
    for shape in ((1, 3, 64, 64), (3, 3, 96, 160)):
        check_outputs(output, load_model(weights), shape, rtol=1e-3)


def test_onnx_of_one_size_takes_that_size_only_and_says_how_it_is_run(
    tmp_path: Path, mobile: Path
) -> None:
    output = tmp_path / "net.onnx"
    assert export.main([str(mobile), "--output", str(output), "--size", "64x96"]) == 0
    graph = onnx.load(output)
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, 64, 96]
    check_outputs(output, load_model(mobile), (1, 3, 64, 96), rtol=1e-3)
    with pytest.raises(RuntimeError):
        openvino_outputs(output, torch.zeros(1, 3, 96, 96))
    said = {item.key: item.value for item in graph.metadata_props}
    model = load_model(mobile)
    assert [float(value) for value in said["mean"].split(",")] == list(model.mean)
    assert float(said["tag_ramp_px"]) == model.tag_ramp_px
    assert said["skeleton"] == "coco17"


def test_float16_halves_the_weights_and_changes_little(tmp_path: Path) -> None:
    weights = tmp_path / "net.safetensors"
    save_model(weights, random_model("hrnet_w32", seed=5, **TINY), dtype=torch.float32)
    sizes = {}
    for precision in ("fp32", "fp16"):
        output = tmp_path / f"{precision}.onnx"
        options = ["--dynamic", "--precision", precision]
        assert export.main([str(weights), "--output", str(output), *options]) == 0
        sizes[precision] = output.stat().st_size
        check_outputs(output, load_model(weights), (1, 3, 96, 128), rtol=2e-2)
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_ir_is_read_with_the_weights_beside_it(tmp_path: Path, mobile: Path) -> None:
    sizes = {}
    for precision in ("fp32", "fp16"):
        output = tmp_path / precision / "net.xml"
        output.parent.mkdir()
        options = ["--size", "96x64", "--batch", "--precision", precision]
        assert export.main([str(mobile), "--output", str(output), *options]) == 0
        assert {path.name for path in output.parent.iterdir()} == {
            "net.xml",
            "net.bin",
            "net.xml.md",
        }
        check_outputs(output, load_model(mobile), (2, 3, 96, 64), rtol=2e-2)
        sizes[precision] = output.with_suffix(".bin").stat().st_size
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_the_difference_from_torch_is_printed(
    tmp_path: Path, mobile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main([str(mobile), "--output", str(tmp_path / "net.onnx"), "--size", "64x64"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["heatmaps_4", "heatmaps_2", "tags"]
    assert all("differs from torch by at most" in line for line in lines[:3])


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_wrong_graph_fails_and_leaves_the_old_files(
    tmp_path: Path,
    mobile: Path,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / f"net{suffix}"
    output.write_text("an older export")
    right = graphs._onnx_graph

    def wrong(model: Model, settings: graphs.GraphSettings) -> bytes:
        return right(random_model("higher_mobile", seed=9, **MOBILE), settings)

    monkeypatch.setattr(graphs, "_onnx_graph", wrong)
    assert export.main([str(mobile), "--output", str(output), "--size", "64x64"]) == 1
    assert "differs from torch" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert output.read_text() == "an older export"


def test_a_frozen_size_is_noticed(mobile: Path) -> None:
    # Tracing can freeze a size: a graph that was made for another one must not pass as dynamic.
    model = load_model(mobile)
    any_size = graphs.GraphSettings(size=None)

    def frozen(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return graphs.torch_outputs(model, images[:, :, :64, :96])

    with pytest.raises(RuntimeError, match="of the written file is"):
        graphs.compare_with_torch(model, frozen, any_size)


def test_nan_is_a_difference(mobile: Path) -> None:
    model = load_model(mobile)

    def broken(images: torch.Tensor) -> list[torch.Tensor]:
        return [output * float("nan") for output in graphs.torch_outputs(model, images)]

    settings = graphs.GraphSettings(size=(64, 64))
    differences = graphs.compare_with_torch(model, broken, settings)
    with pytest.raises(RuntimeError, match="heatmaps_4 by nan"):
        graphs.check_differences(differences, "fp32")


# --- the card ------------------------------------------------------------------------------------


def card_of(tmp_path: Path, model: Model, output: str, *options: str) -> str:
    weights = tmp_path / "weights.safetensors"
    save_model(weights, model)
    assert export.main([str(weights), "--output", str(tmp_path / output), *options]) == 0
    return (tmp_path / f"{output}.md").read_text()


def test_card_says_what_a_stranger_needs(tmp_path: Path) -> None:
    model = random_model("higher_mobile", seed=1, **MOBILE)
    card = card_of(
        tmp_path,
        replace(model, decode={"detection_threshold": 0.25}),
        "net.onnx",
        "--size",
        "64x96",
    )
    for needed in (
        "higher_mobile",
        "sha256",
        "ONNX, opset 17, fp32 weights",
        "B = 1, H = 64 and W = 96",
        "RGB",
        "mean (0.5, 0.5, 0.5)",
        "multiples of 32",
        "| `heatmaps_4` | (B, 17, H/4, W/4) float32 |",
        "| `heatmaps_2` | (B, 17, H/2, W/2) float32 |",
        "| `tags` | (B, 17, H/4, W/4, 2) float32 |",
        "detection_threshold 0.25",
        "0 nose",
        "16 right_ankle",
        torch.__version__,
        "python export.py",
    ):
        assert needed in card


@pytest.mark.parametrize("numbers", [1, 2])
def test_card_s_ramp_is_the_stream_s(tmp_path: Path, numbers: int) -> None:
    model = random_model("higher_mobile", seed=1, **MOBILE, tag_numbers=numbers)
    card = card_of(tmp_path, replace(model, tag_ramp_px=24.0), "net.safetensors")
    formulas = {
        1: "(x + 0.35 y) * 4 / 24",
        2: "x * 4 / 24 (first number) and 0.5 y * 4 / 24 (second",
    }
    assert formulas[numbers] in card
    # The same words as numbers: the ramp at x = 3, y = 2 of the tags.
    zeros = Maps((), torch.zeros(1, 17, 4, 5, numbers))
    ramp = add_tag_ramp(zeros, 24.0, 4).tags[0, 0, 2, 3]
    expected = [(3 + 0.35 * 2) * 4 / 24] if numbers == 1 else [3 * 4 / 24, 0.5 * 2 * 4 / 24]
    np.testing.assert_allclose(ramp.numpy(), expected, rtol=1e-6)


def test_card_without_ramp_and_without_chosen_settings(tmp_path: Path) -> None:
    model = random_model("higher_mobile", num_keypoints=14, seed=1, **MOBILE)
    card = card_of(
        tmp_path,
        replace(model, tag_ramp_px=0.0),
        "net.xml",
        "--batch",
        "--precision",
        "fp16",
        "--dynamic",
    )
    assert "there is no tag ramp" in card
    assert "As published" in card
    assert "any B, H and W any multiples of 32" in card
    assert "crowdpose14" in card
    assert "fp16 weights" in card


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output {tmp}/net.pt", "must end in .safetensors, .onnx, .xml"),
        ("--output {tmp}/none/net.onnx", "there is no folder"),
        ("--output /proc/net.onnx", "nothing can be written in /proc: "),
        ("--output {weights}", "is the weights file"),
        ("--output {tmp}/net.onnx --size 64", "--size must be HxW"),
        ("--output {tmp}/net.onnx --size 64xy", "--size must be HxW"),
        ("--output {tmp}/net.onnx --size 64x100", "multiples of 32"),
        ("--output {tmp}/net.onnx --size 0x64", "multiples of 32"),
        ("--output {tmp}/net.onnx --size 64x64 --dynamic", "exclude each other"),
        ("--output {tmp}/net.onnx --opset 5", "opset must be 13 to 20, got 5"),
        ("--output {tmp}/net.xml --opset 17", "--opset belongs to .onnx"),
        ("--output {tmp}/net.safetensors --dynamic --batch", "--dynamic, --batch belongs to"),
        ("--output {tmp}/net.onnx --name higher_hrnet_w32", "not of higher_hrnet_w32"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    mobile: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
) -> None:
    filled = options.format(tmp=tmp_path, weights=mobile).split()
    assert export.main([str(mobile), *filled]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("export.py: ")
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: None, "there is no weights file"),
        (lambda path: path.write_bytes(b"no weights"), "no readable safetensors"),
    ],
)
def test_weights_that_cannot_be_read(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    weights = tmp_path / "w.safetensors"
    damage(weights)
    assert export.main([str(weights), "--output", str(tmp_path / "net.onnx")]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_onnx_package_is_said(
    tmp_path: Path,
    mobile: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export.main([str(mobile), "--output", str(tmp_path / "n.onnx"), "--size", "64x64"]) == 2
    assert "pip install onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
