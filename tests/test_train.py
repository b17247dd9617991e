"""train.py as users run it: real processes that are stopped, killed, resumed and many at once."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from nets.checkpoints import load_model
from nets.skeletons import SKELETONS
from tests.support.painted_set import write_set
from tests.support.places import ROOT
from tests.support.tiny import TINY_NET, tiny_recipe
from tests.support.waiting import PATIENCE_SECONDS
from training.config import checked_recipe, load_recipe

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RECIPES = sorted((ROOT / "configs" / "train").glob("*.yaml"))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), count=8, size=(96, 96))


def _recipe_file(folder: Path, annotations: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(annotations, **changes)))
    return path


def _command(recipe: Path, output: Path, *more: str, ranks: int = 0) -> list[str]:
    start = [sys.executable]
    if ranks:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*start, "train.py", "--config", str(recipe), "--output", str(output), *more]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=100
    )


def _lines(output: Path) -> list[dict[str, Any]]:
    text = (output / "losses.jsonl").read_text() if (output / "losses.jsonl").exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _main(recipe: Path, output: Path, *more: str) -> int:
    """train.py in this process; puts back what it changes of it."""
    threads, root = torch.get_num_threads(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with torch.random.fork_rng(devices=[]):
        code = train.main(["--config", str(recipe), "--output", str(output), "--quiet", *more])
    torch.set_num_threads(threads)
    root.handlers[:], root.level = handlers, level
    return code


def _start_and_wait_for(command: list[str], output: Path, *, steps: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(_lines(output)) < steps:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


def test_kill_9_and_resume_equals_an_unbroken_run(painted: Path, tmp_path: Path) -> None:
    data = {"train": [{"annotations": str(painted)}], "workers": 1}
    recipe = _recipe_file(
        tmp_path, painted, data=data, schedule={"epochs": 6, "milestones": [3]}, ema={"decay": 0.9}
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _main(recipe, whole) == 0
    process = _start_and_wait_for(_command(recipe, killed), killed, steps=9)  # of the third epoch
    process.kill()
    process.communicate()
    assert len(_lines(killed)) < len(_lines(whole)) == 24
    resumed = _run(_command(recipe, killed, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert "continues from step 8" in resumed.stderr or "continues from step 12" in resumed.stderr
    assert _lines(killed) == _lines(whole)


def test_sigterm_ends_the_step_saves_and_leaves_with_143(painted: Path, tmp_path: Path) -> None:
    recipe = _recipe_file(tmp_path, painted, schedule={"epochs": 1000})
    output = tmp_path / "out"
    process = _start_and_wait_for(_command(recipe, output), output, steps=2)
    for _ in range(5):  # as torchrun and a service manager both send it
        process.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, errors
    assert "stopped by SIGTERM" in errors
    state = torch.load(output / "last.pt", weights_only=True)
    assert state["progress"]["step"] == len(_lines(output)) < 4000
    assert load_model(output / "last.safetensors").name == "higher_hrnet_lite"


def test_a_folder_takes_one_training_at_a_time(painted: Path, tmp_path: Path) -> None:
    recipe = _recipe_file(tmp_path, painted, schedule={"epochs": 1000})
    output = tmp_path / "out"
    process = _start_and_wait_for(_command(recipe, output), output, steps=2)
    second = _run(_command(recipe, output, "--resume"))
    assert second.returncode == 2, second.stderr
    assert second.stderr.splitlines()[-1] == (
        f"train.py: another training writes to {output}; wait for its end, or give another --output"
    )
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, errors
    assert _main(recipe, output, "--resume", "--minutes", "0.001") == 0


def test_minutes_end_a_run_that_can_be_resumed(painted: Path, tmp_path: Path) -> None:
    recipe = _recipe_file(tmp_path, painted, schedule={"epochs": 1000})
    assert _main(recipe, tmp_path / "out", "--minutes", "0.001") == 0
    steps = torch.load(tmp_path / "out" / "last.pt", weights_only=True)["progress"]["step"]
    assert 1 <= steps == len(_lines(tmp_path / "out")) < 4000


def test_two_ranks_equal_one_process_with_twice_the_batch(painted: Path, tmp_path: Path) -> None:
    # Norms in evaluation mode: in training mode each rank reckons over its own examples.
    common: dict[str, Any] = {"freeze_norms": True, "schedule": {"epochs": 2}}
    two = _recipe_file(tmp_path, painted, batch=2, **common)
    done = _run(_command(two, tmp_path / "two", ranks=2))
    assert done.returncode == 0, done.stderr
    one = _recipe_file(tmp_path, painted, batch=4, **common)
    assert _main(one, tmp_path / "one") == 0
    one_lines, two_lines = _lines(tmp_path / "one"), _lines(tmp_path / "two")
    assert len(one_lines) == len(two_lines) == 4
    for a, b in zip(one_lines, two_lines, strict=True):
        assert (a["step"], a["epoch"], a["images"]) == (b["step"], b["epoch"], b["images"])
        assert a["total"] == pytest.approx(b["total"], rel=1e-3)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-2)


_RANKS_COMPARED = """
import sys, torch
from pathlib import Path
from training.config import load_recipe
from training.trainer import Training, StopLimits
from training.ranks import join_ranks, leave_ranks
ranks = join_ranks("cpu")
torch.set_num_threads(1)
config = load_recipe(Path(sys.argv[1]))
with Training(config, output=Path(sys.argv[2]), resume=False, ranks=ranks, quiet=True) as training:
    training.run(StopLimits())
    mine = torch.cat([weight.detach().flatten() for weight in training.net.parameters()])
    first, second = ranks.gathered(mine)
    assert torch.equal(first, second), (first - second).abs().max()
    measured = training._averaged_model().net
    first, second = ranks.gathered(torch.cat([value.flatten() for value in measured.buffers()]))
    assert torch.equal(first, second), (first - second).abs().max()
leave_ranks()
"""


def test_with_norms_in_training_ranks_stay_equal_and_the_loss_falls(
    painted: Path, tmp_path: Path
) -> None:
    data = {"train": [{"annotations": str(painted)}], "workers": 0}
    recipe = _recipe_file(
        tmp_path,
        painted,
        data=data | {"validation": {"annotations": str(painted)}},
        schedule={"epochs": 8},
        loss={"foreground": 10},
        ema={"decay": 0.9},
        validation={"every_epochs": 8},
    )
    script = tmp_path / "compared.py"
    script.write_text(_RANKS_COMPARED)
    command = _command(recipe, tmp_path / "out", ranks=2)
    start = [*command[: command.index("train.py")], str(script), str(recipe), str(tmp_path / "out")]
    done = subprocess.run(
        start,
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    totals = [line["total"] for line in _lines(tmp_path / "out")]
    assert len(totals) == 16
    assert sum(totals[-4:]) < 0.8 * sum(totals[:4])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("empty", "is not JSON"),
        ("no_people", "nothing to learn"),
        ("keypoints", "17"),
        ("missing", "cannot be read"),
    ],
)
def test_annotations_that_cannot_be_used_are_one_clear_line(
    tmp_path: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = write_set(tmp_path, count=2, size=(96, 96))
    if change == "empty":
        annotations.write_text("")
    elif change == "missing":
        annotations.unlink()
    else:
        tree = json.loads(annotations.read_text())
        if change == "no_people":
            tree["annotations"] = []
        else:
            for person in tree["annotations"]:
                person["keypoints"] = person["keypoints"][: 3 * 14]
        annotations.write_text(json.dumps(tree))
    recipe = _recipe_file(tmp_path, annotations)
    code = _main(recipe, tmp_path / "out")
    text = capsys.readouterr().err
    assert code == 2
    assert text.startswith("train.py: ")
    assert text.count("\n") == 1
    assert said in text
    assert "painted.json" in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "device=gpu"], "'device': expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--output", "{folder}/set.json/out"], "set.json/out cannot be written to as a folder"),
        (["--set", "settings.width='8'"], "setting width: expected"),
        (["--set", "init={folder}/none.pth"], "none.pth; check the path"),
        (["--limit-steps", "0"], "a limit of steps must be above 0, got 0"),
        (["--minutes", "-5"], "a limit of minutes must be above 0, got -5"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe_file(tmp_path, write_set(tmp_path, count=2, size=(96, 96), name="set"))
    code = _main(recipe, tmp_path / "out", *(word.format(folder=tmp_path) for word in more))
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert lines[-1].startswith("train.py: ")
    assert said in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_images_that_are_not_there_are_one_clear_line_of_a_worker_too(tmp_path: Path) -> None:
    annotations = write_set(tmp_path, count=2, size=(96, 96), name="set")
    for image in (tmp_path / "set").iterdir():
        image.unlink()
    data = {"train": [{"annotations": str(annotations)}], "workers": 1}
    recipe = _recipe_file(tmp_path, annotations, data=data)
    done = _run(_command(recipe, tmp_path / "out", "--quiet"))  # it ends, though a worker lives
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("train.py: 2 images in a row cannot be read; the last: there is")
    assert done.stderr.count("\n") == 1


def test_a_training_that_diverges_leaves_with_1(
    painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe_file(tmp_path, painted, optimiser={"rate": 1e30})
    assert _main(recipe, tmp_path / "out") == 1
    assert ".png)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_one_step_at_small_width(recipe: Path, tmp_path: Path) -> None:
    config = load_recipe(recipe)
    skeleton = SKELETONS[config.data.skeleton]
    annotations = write_set(tmp_path, count=2, size=(96, 96), skeleton=skeleton)
    tree = config.model_dump()
    for part in (*tree["data"]["train"], tree["data"]["validation"]):
        part |= {"annotations": annotations, "images": None}
    tree["data"]["workers"] = 0
    tree["settings"] = {"width": 8} if config.net.endswith("mobile") else _narrow(config.net)
    tree["augment"]["size"] = 64
    if tree["teacher"] is not None:
        tree["teacher"]["scales"] = [1]  # of which a multiple of 32 is left
    tree["schedule"]["images_per_epoch"] = 2
    tree["validation"]["every_epochs"] = 1
    # What this machine has not: the weights to start from, and CUDA for fp16.
    small: dict[str, Any] = {"init": None, "batch": 2, "accumulate": 1, "threads": 1}
    small |= {"precision": "fp32" if config.precision == "fp16" else config.precision}
    small |= {"tensorboard": False, "device": "cpu"}
    small_recipe = tmp_path / "recipe.yaml"
    small_recipe.write_text(checked_recipe(tree | small).model_dump_json())  # JSON is YAML
    assert _main(small_recipe, tmp_path / "out", "--limit-steps", "1") == 0
    model = load_model(tmp_path / "out" / "best.safetensors")
    assert (model.name, model.skeleton) == (config.net, skeleton)
    assert len(_lines(tmp_path / "out")) == 1


def _narrow(net: str) -> dict[str, Any]:
    heads = {"bridge_low": 1, "bridge_high": 1} if net.startswith("double") else {}
    return {k: v for k, v in TINY_NET.items() if k != "residual_blocks"} | heads


@pytest.mark.slow
def test_a_net_learns_eight_pictures_by_heart(tmp_path: Path) -> None:
    annotations = write_set(tmp_path, count=8)
    recipe = _recipe_file(
        tmp_path,
        annotations,
        settings=TINY_NET | {"width": 24, "stem": 24, "bottleneck_channels": 32},
        augment={"size": 160, "rotation_deg": 0, "scale": [1, 1], "translation_px": 0, "flip": 0},
        loss={"foreground": 10, "push": 0.2, "pull": 0.2},
        optimiser={"rate": 3e-3},
        schedule={"epochs": 2, "images_per_epoch": 700, "kind": "cosine", "warmup_steps": 20},
        # Without it tags of one value for everybody are where a short training gets stuck.
        run={"tag_ramp_px": 40},
        ema={"decay": 0.95},
        batch=4,
    )
    trained = _run_long(_command(recipe, tmp_path / "out"))
    assert trained.returncode == 0, trained.stderr
    result = tmp_path / "result.json"
    command = [sys.executable, "evaluate.py", "--data", str(annotations), "--output", str(result)]
    weights = ["--weights", str(tmp_path / "out" / "last.safetensors")]
    evaluated = _run_long([*command, *weights])
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads(result.read_text())
    assert metrics["AP"] > 0.8, metrics


def _run_long(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        timeout=3 * PATIENCE_SECONDS,
    )  # fmt: skip
