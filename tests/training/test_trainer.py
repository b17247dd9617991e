"""training.trainer in this process: what one training does to weights, files and bad data."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.settings import ConfigError
from nets.checkpoints import load_model, save_model
from nets.skeletons import CROWDPOSE
from tests.support.painted_set import write_set
from tests.support.random_model import random_model
from tests.support.tiny import TINY_NET, tiny_config
from training.config import OptimiserConfig, TrainConfig
from training.trainer import DivergedError, StopLimits, train


@pytest.fixture(autouse=True)
def _as_before(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """train() sets threads, random generator and log handlers of the process; undo that."""
    threads, root = torch.get_num_threads(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), count=4, size=(96, 96))


def _run(config: TrainConfig, output: Path, **options: Any) -> list[dict[str, Any]]:
    """Train; the lines of losses.jsonl."""
    train(config, output=output, quiet=True, **options)
    return _lines(output)


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]


def _weights(output: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(output / "last.pt", weights_only=True)["net"]
    return weights


def test_a_stopped_training_goes_on_as_if_it_had_not_been(painted: Path, tmp_path: Path) -> None:
    config = tiny_config(
        painted,
        data={
            "train": [{"annotations": str(painted)}],
            "validation": {"annotations": str(painted)},
            "workers": 0,
        },
        ema={"decay": 0.9},
        schedule={"epochs": 3, "kind": "cosine", "warmup_steps": 2},
    )
    whole = _run(config, tmp_path / "whole")
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 5, 6]
    parts = tmp_path / "parts"
    _run(config, parts, limits=StopLimits(steps=1))
    _run(config, parts, limits=StopLimits(steps=4), resume=True)
    # What a killed process leaves beyond its last state is forgotten.
    with (parts / "losses.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "total": -1}) + "\n")
    assert _run(config, parts, resume=True) == whole
    for name in ("best.safetensors", "last.safetensors"):
        unbroken = load_model(tmp_path / "whole" / name).net.state_dict()
        for key, value in load_model(parts / name).net.state_dict().items():
            assert torch.equal(value, unbroken[key]), (name, key)


def test_a_folder_that_holds_a_training_is_not_overwritten(painted: Path, tmp_path: Path) -> None:
    config = tiny_config(painted)
    _run(config, tmp_path, limits=StopLimits(steps=1))
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        _run(config, tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == before
    other = tiny_config(painted, settings=TINY_NET | {"width": 16})
    with pytest.raises(ConfigError, match="another net"):
        _run(other, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 4}, "2 examples, this run has 4"),
        ({"batch": 1}, "2 examples, this run has 1"),
        ({"accumulate": 2}, "2 examples, this run has 4"),
        ({"schedule": {"epochs": 3, "images_per_epoch": 2}}, "2 steps an epoch, this run has 1"),
    ],
)
def test_steps_of_another_size_are_refused(
    painted: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    # The schedule counts steps: it would end early or late, and go on at another rate.
    before = {"batch": 2, "schedule": {"epochs": 3}}
    _run(tiny_config(painted, **before), tmp_path, limits=StopLimits(steps=2))
    with pytest.raises(ConfigError, match=said):
        _run(tiny_config(painted, **before | changes), tmp_path, resume=True)
    regrouped = tiny_config(painted, **before | {"batch": 1, "accumulate": 2})
    assert len(_run(regrouped, tmp_path, resume=True)) == 6


def test_files_that_changed_since_change_no_step_and_are_told(
    painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What steps are in units of is of the run's first weights; another teacher is another run."""
    weights = tmp_path / "weights.safetensors"

    def put(seed: int) -> None:
        save_model(weights, random_model("higher_hrnet_lite", seed=seed, **TINY_NET))

    config = tiny_config(
        painted,
        init=str(weights),
        optimiser={"unit": "channel"},
        teacher={"weights": str(weights), "scales": [1.0], "share": 0.5},
    )
    put(seed=1)
    whole = _run(config, tmp_path / "whole", limits=StopLimits(steps=3))
    parts = tmp_path / "parts"
    _run(config, parts, limits=StopLimits(steps=1))
    put(seed=2)
    train(config, output=parts, resume=True, limits=StopLimits(steps=2))
    assert "another teacher" in capsys.readouterr().err
    put(seed=1)
    train(config, output=parts, resume=True, limits=StopLimits(steps=3))
    sizes = torch.load(parts / "last.pt", weights_only=True)["optimiser"]["param_groups"][0]
    first = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["optimiser"]
    for mine, theirs in zip(sizes["sizes"], first["param_groups"][0]["sizes"], strict=True):
        assert torch.equal(mine, theirs)
    assert _lines(parts)[0] == whole[0]


def test_rates_of_the_recipe_hold_after_a_resume(painted: Path, tmp_path: Path) -> None:
    _run(tiny_config(painted), tmp_path, limits=StopLimits(steps=1))
    slower = tiny_config(painted, optimiser={"rate": 1e-5})
    lines = _run(slower, tmp_path, limits=StopLimits(steps=2), resume=True)
    assert [line["rate"] for line in lines] == [1e-3, 1e-5]


def test_accumulated_batches_equal_one_large_batch(painted: Path, tmp_path: Path) -> None:
    # Norms in evaluation mode: in training mode they reckon over one forward pass.
    common: dict[str, Any] = {"freeze_norms": True, "run": {"weights": "float32"}}
    large = tiny_config(painted, batch=4, **common)
    small = tiny_config(painted, batch=2, accumulate=2, **common)
    large_lines = _run(large, tmp_path / "large", limits=StopLimits(steps=3))
    small_lines = _run(small, tmp_path / "small", limits=StopLimits(steps=3))
    for a, b in zip(large_lines, small_lines, strict=True):
        assert a["images"] == b["images"]
        assert a["total"] == pytest.approx(b["total"], rel=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)


def test_frozen_parts_stay_as_they_were(painted: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    model = random_model("higher_hrnet_lite", **TINY_NET)
    save_model(start, model, dtype=torch.float32)
    config = tiny_config(painted, init=str(start), optimiser={"rates": {"backbone": 0}})
    _run(config, tmp_path / "out", limits=StopLimits(steps=2))
    before = model.net.state_dict()
    after = _weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "first_head.conv.weight" in changed
    assert not any(name.startswith("backbone.") for name in changed)


def test_the_saved_weights_are_the_averaged_ones(painted: Path, tmp_path: Path) -> None:
    config = tiny_config(painted, ema={"decay": 0.9}, run={"weights": "float32"})
    _run(config, tmp_path, limits=StopLimits(steps=3))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    saved = load_model(tmp_path / "last.safetensors").net.state_dict()
    name = "first_head.conv.weight"
    assert torch.equal(saved[name], state["ema"][name])
    assert not torch.equal(state["ema"][name], state["net"][name])


@pytest.mark.parametrize("averaged", [{}, {"decay": 0.9}])
def test_saved_weights_may_lie_between_start_and_end(
    painted: Path, tmp_path: Path, averaged: dict[str, float]
) -> None:
    """After a resume too: the start is what `init` says, not where the run goes on."""
    start = tmp_path / "start.safetensors"
    model = random_model("higher_hrnet_lite", **TINY_NET)
    save_model(start, model, dtype=torch.float32)
    config = tiny_config(
        painted, init=str(start), ema=averaged | {"start": 0.25}, run={"weights": "float32"}
    )
    out = tmp_path / "out"
    for steps in (1, 2):
        _run(config, out, resume=steps > 1, limits=StopLimits(steps=steps))
    state = torch.load(out / "last.pt", weights_only=True)
    end = state["ema" if averaged else "net"]
    saved = load_model(out / "last.safetensors").net.state_dict()
    for name, before in model.net.state_dict().items():
        if before.is_floating_point():
            torch.testing.assert_close(saved[name], 0.25 * before + 0.75 * end[name])
            assert not torch.equal(saved[name], end[name]) or torch.equal(before, end[name])


def test_the_file_says_how_the_weights_are_run(painted: Path, tmp_path: Path) -> None:
    run = {"tag_ramp_px": 8, "size_multiple": 32, "decode": {"detection_threshold": 0.3}}
    config = tiny_config(painted, run=run)
    _run(config, tmp_path, limits=StopLimits(steps=1))
    model = load_model(tmp_path / "last.safetensors")
    assert (model.input_size, model.size_multiple, model.tag_ramp_px) == (64, 32, 8)
    assert model.decode == {"detection_threshold": 0.3}
    assert model.mean == (0.485, 0.456, 0.406)  # the habit of HRNets: ImageNet's
    # A training that starts from it takes over what its own recipe does not say.
    again = tiny_config(painted, init=str(tmp_path / "last.safetensors"))
    _run(again, tmp_path / "again", limits=StopLimits(steps=1))
    assert load_model(tmp_path / "again" / "last.safetensors").tag_ramp_px == 8


def test_what_would_fail_at_the_first_validation_fails_at_the_start(
    painted: Path, tmp_path: Path
) -> None:
    misspelt = tiny_config(painted, run={"decode": {"detection_treshold": 0.3}})
    with pytest.raises(ValueError, match="did you mean 'detection_threshold'"):
        _run(misspelt, tmp_path / "out")
    content = json.loads(painted.read_text())
    del content["annotations"][0]["bbox"]
    no_box = painted.with_name("no_box.json")  # enough to learn from, but not for OKS
    no_box.write_text(json.dumps(content))
    part = {"annotations": str(no_box), "images": str(painted.with_suffix(""))}
    config = tiny_config(painted, data={"train": [part], "validation": part, "workers": 0})
    with pytest.raises(ValueError, match="no bbox"):
        _run(config, tmp_path / "out")
    assert not (tmp_path / "out" / "last.pt").exists()


def test_fine_tuning_from_17_keypoints_to_14(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.safetensors"
    save_model(start, random_model("higher_hrnet_lite", **TINY_NET), dtype=torch.float32)
    crowd = write_set(tmp_path, count=2, size=(96, 96), skeleton=CROWDPOSE, name="crowd")
    data = {"train": [{"annotations": str(crowd)}], "skeleton": "crowdpose14", "workers": 0}
    config = tiny_config(crowd, data=data, init=str(start))
    with pytest.raises(ConfigError, match="init_part=matching"):
        _run(config, tmp_path / "out")
    # One step of almost no rate shows what the weights started from.
    changes = {"init_part": "matching", "optimiser": OptimiserConfig(rate=1e-12)}
    train(config.model_copy(update=changes), output=tmp_path / "out")
    assert "first_head.conv.weight" in capsys.readouterr().err  # said to start anew
    before, after = load_model(start).net.state_dict(), _weights(tmp_path / "out")
    name = "backbone.stem.0.conv.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert len(after["first_head.conv.weight"]) == 28
    assert load_model(tmp_path / "out" / "last.safetensors").skeleton is CROWDPOSE


def test_a_corrupt_image_is_counted_named_and_survived(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = write_set(tmp_path, count=4, size=(96, 96))
    (tmp_path / "painted" / "2.png").write_bytes(b"no picture")
    (tmp_path / "painted" / "3.png").unlink()
    config = tiny_config(annotations, schedule={"epochs": 3, "milestones": []})
    train(config, output=tmp_path / "out")
    assert len(_lines(tmp_path / "out")) == 6
    log = capsys.readouterr().err
    assert log.count("2.png") == log.count("3.png") == 1  # not each time it comes
    progress = torch.load(tmp_path / "out" / "last.pt", weights_only=True)["progress"]
    assert progress["failed_images"] >= 6  # each comes once an epoch
    assert f"could not be read: {progress['failed_images']}" in log


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(painted: Path, tmp_path: Path) -> None:
    config = tiny_config(painted)
    _run(config, tmp_path, limits=StopLimits(steps=2))
    good = (tmp_path / "last.pt").read_bytes()
    # A rate that no net survives.
    wild = tiny_config(painted, optimiser={"rate": 1e30})
    with pytest.raises(DivergedError) as error:
        _run(wild, tmp_path, resume=True)
    text = str(error.value)
    assert "step 3" in text or "step 4" in text
    assert ".png)" in text
    assert "last.pt" in text
    assert (tmp_path / "last.pt").read_bytes() == good
