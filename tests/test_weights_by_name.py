"""The programs with published weights by name: small files of a server of the test's own."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import evaluate
import export
import run_stream
import train
from nets.checkpoints import load_model
from nets.skeletons import CROWDPOSE
from nets.zoo.published import PUBLISHED
from pipeline.config import StreamConfig, load_config
from pipeline.network import better_weights
from tests.support.file_server import FileServer, file_server
from tests.support.painted_set import write_set
from tests.support.published_files import TINY, publish, small_model
from tests.support.tiny import tiny_recipe

NAME = "higher_hrnet_w32_crowdpose"

pytestmark = pytest.mark.timeout(600)  # cold caches: numba compiles the kernels first


@pytest.fixture(autouse=True)
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Has all published files; the cache is empty."""
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    threads = torch.get_num_threads()
    with file_server() as server:
        server.files |= publish(monkeypatch)
        monkeypatch.setattr("nets.zoo.weights_files.weights_folder", lambda: tmp_path / "weights")
        monkeypatch.setenv("POSESTREAM_WEIGHTS_URL", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server
    torch.set_num_threads(threads)
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def test_a_stream(tmp_path: Path, mirror: FileServer) -> None:
    poses = tmp_path / "poses.jsonl"
    arguments = ["demo", "--weights", NAME, "--max-frames", "2", "--jsonl", str(poses), "--quiet"]
    assert run_stream.main([*arguments, "--engine", "torch", "--input-size", "64"]) == 0
    messages = [json.loads(line) for line in poses.read_text().splitlines()]
    assert [message["skeleton"] for message in messages] == ["crowdpose14"] * 2
    assert len(mirror.requests) == 1


def test_a_stream_of_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stream.main(["demo", "--weights", "higher_hrnet_w23", "--max-frames", "1"]) == 2
    assert (
        "did you mean the published higher_hrnet_w32?" in capsys.readouterr().err.splitlines()[-1]
    )


def test_the_weights_setting_keeps_names_urls_and_paths_apart(tmp_path: Path) -> None:
    url = "https://me:pw@host/a.pth?b=c#sha256=0123abcd"
    for word in (NAME, url, "a/b.pth"):
        assert load_config(settings={"weights": word}).weights == word
    path = tmp_path / "net.pth"
    config = StreamConfig.model_validate({"weights": path})
    assert config.weights == path
    # As a cut stream hands it to its other processes.
    again = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    assert StreamConfig.model_validate(again).weights == str(path)


def test_a_better_name_is_offered_to_those_who_chose_none() -> None:
    name = better_weights(StreamConfig(), None)
    assert name in PUBLISHED
    assert not PUBLISHED[name].backbone_only
    assert better_weights(StreamConfig(weights="hrnet_w32"), None) is None
    assert better_weights(StreamConfig(), small_model("hrnet_w32")) is None


def test_an_evaluation_and_both_matching_orders(tmp_path: Path, mirror: FileServer) -> None:
    data = write_set(tmp_path, count=2, size=(96, 96), skeleton=CROWDPOSE)
    report = tmp_path / "report.json"
    used = []
    for more in ([], ["--set", "matching_order=skeleton"]):
        arguments = ["--data", str(data), "--weights", NAME, "--input-size", "64", "--quiet"]
        arguments += ["--engine", "torch", "--output", str(report), "--bootstrap", "0"]
        assert evaluate.main([*arguments, *more]) == 0
        settings = json.loads(report.read_text())["settings"]
        assert settings["weights"] == NAME
        assert settings["decode"]["one_step"] is True
        used.append(settings["decode"]["matching_order"])
    assert used == ["index", "skeleton"]
    assert len(mirror.requests) == 1


def test_an_export_says_where_it_came_from(tmp_path: Path) -> None:
    output = tmp_path / "ours.safetensors"
    assert export.main([NAME, "--output", str(output), "--precision", "fp32"]) == 0
    model, expected = load_model(output), small_model(NAME)
    assert model.decode == {"one_step": True, "matching_order": "index"}
    for key, value in expected.net.state_dict().items():
        np.testing.assert_array_equal(model.net.state_dict()[key], value, err_msg=key)
    card = output.with_name("ours.safetensors.md").read_text()
    assert f"| weights | {NAME}, sha256 `" in card
    assert "Chosen for these weights: matching_order index, one_step true." in card


def test_an_export_hides_a_password(tmp_path: Path, mirror: FileServer) -> None:
    output = tmp_path / "ours.safetensors"
    path = next(path for path in mirror.files if "crowdpose" in path)
    url = f"{mirror.url}/{path}".replace("://", "://me:secret@") + "?token=secret"
    assert export.main([url, "--output", str(output)]) == 0
    card = output.with_name("ours.safetensors.md").read_text()
    assert "secret" not in card
    assert Path(path).name in card


@pytest.mark.parametrize(
    ("init", "part", "found"),
    [
        ("imagenet_hrnet_w32", "matching", "backbone.stages.0.0.branches.0.0.first.conv.weight"),
        ("higher_hrnet_w32", "all", "higher_heads.0.bias"),
    ],
)
def test_a_training_starts_from_a_name(
    tmp_path: Path, init: str, part: str, found: str, mirror: FileServer
) -> None:
    data = write_set(tmp_path, count=2, size=(96, 96))
    recipe = tmp_path / "recipe.yaml"
    changes = {"net": "higher_hrnet_w32", "settings": TINY | {"modules": [1, 1, 1]}}
    changes |= {"init": init, "init_part": part, "optimiser": {"rate": 1e-12}}
    recipe.write_text(yaml.safe_dump(tiny_recipe(data, **changes)))
    output = tmp_path / "out"
    arguments = ["--config", str(recipe), "--output", str(output), "--limit-steps", "1", "--quiet"]
    assert train.main(arguments) == 0
    trained = load_model(output / "last.safetensors").net.state_dict()[found]
    expected = small_model(init).net.state_dict()[found]
    torch.testing.assert_close(trained, expected, atol=1e-3, rtol=1e-3)
    assert len(mirror.requests) == 1
