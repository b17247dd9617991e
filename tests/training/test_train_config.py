"""training.config: recipes, their defaults and what is said about wrong ones."""

from pathlib import Path

import pytest

from common.settings import ConfigError
from tests.support.places import ROOT
from training.config import checked_recipe, load_recipe

LEAST = {"net": "higher_hrnet_w32", "data": {"train": [{"annotations": "a.json"}]}}


def _error(tree: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as error:
        checked_recipe(LEAST | tree)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_defaults_are_the_published_training() -> None:
    # HigherHRNet's published configuration for COCO.
    config = checked_recipe(dict(LEAST))
    assert (config.optimiser.kind, config.optimiser.rate) == ("adam", 1e-3)
    assert (config.schedule.epochs, config.schedule.milestones) == (300, (200, 260))
    assert (config.augment.rotation_deg, config.augment.scale) == (30, (0.75, 1.5))
    assert (config.augment.translation_px, config.augment.flip) == (40, 0.5)
    assert (config.loss.heatmap, config.loss.push, config.loss.pull) == (1, 1e-3, 1e-3)
    assert (config.target.kind, config.target.sigma) == ("gaussian", 2)
    assert (config.target.sigma_by_size, config.loss.adaptive, config.teacher) == (None,) * 3
    assert all(part.teacher is None for part in config.data.train)
    assert config.ema.decay == config.optimiser.weight_decay == config.augment.color == 0


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"optimizer": {}}, "unknown setting 'optimizer'; did you mean 'optimiser'?"),
        ({"augment": {"sise": 64}}, "did you mean 'augment.size'?"),
        ({"data": {"train": [{"annotation": "a"}]}}, "did you mean 'data.train.0.annotations'?"),
        ({"data": {"train": []}}, "'data.train'"),
        ({"augment": {"size": 100}}, "multiple of 32, got 100"),
        ({"net": "resnet"}, "higher_hrnet_w32"),
        ({"optimiser": {"weight_decay": 0.1}}, "adamw"),
        ({"precision": "fp8"}, "'fp16'"),
        ({"ema": {"decay": 1.0}}, "less than 1"),
        (
            {"target": {"kind": "truncated", "sigma_by_size": {}}},
            "sigma_by_size is for kind: gaussian",
        ),
        ({"target": {"sigma_by_size": {"least": 5}}}, "least 5 is above most 4"),
        ({"data": {"train": [{"annotations": "a", "teacher": {"share": 0}}]}}, "greater than 0"),
        ({"device": "gpu"}, "expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (
            {"teacher": {"weights": "a", "scales": [1, 0.6667]}, "augment": {"size": 320}},
            "0.6667 of augment.size 320 is 213 pixels, expected a multiple of 32",
        ),
    ],
)
def test_a_wrong_setting_is_named(tree: dict[str, object], said: str) -> None:
    assert said in _error(tree)


def test_data_must_be_said() -> None:
    with pytest.raises(ConfigError, match="'data' is missing"):
        checked_recipe({"net": "higher_mobile"})


def test_overrides_win_and_step_into_lists(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("net: higher_mobile\ndata: {train: [{annotations: a.json}]}\nbatch: 3\n")
    config = load_recipe(
        recipe,
        ["batch=5", "data.train.0.images=b.tar", "optimiser.rate=1e-4", "schedule.epochs=7"],
    )
    assert config.batch == 5
    assert config.data.train[0].images == Path("b.tar")
    assert config.data.train[0].annotations == Path("a.json")
    assert config.optimiser.rate == 1e-4
    assert config.schedule.epochs == 7


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("batch", "key=value"),
        ("data.train.1.images=b", "there is no entry '1'; there are 1"),
        ("data.train.images=b", "there is no entry 'images'"),
        ("net.width=8", "'net' is not a group"),
        ("batch=[", "not a YAML value"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("net: higher_mobile\ndata: {train: [{annotations: a.json}]}\n")
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as error:
        load_recipe(recipe, [override])
    assert said in str(error.value)


@pytest.mark.parametrize(("text", "said"), [(": [", "is not YAML"), ("- a", "key: value")])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_recipe(recipe)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_there_is_a_recipe_for_every_network_that_the_papers_train() -> None:
    nets = {load_recipe(path).net for path in (ROOT / "configs" / "train").glob("*.yaml")}
    assert nets >= {
        *(f"higher_hrnet_w{width}" for width in (32, 40, 48)),
        "hrnet_w32",
        "double_higher_net_w32",
        "higher_mobile",
        "higher_hrnet_lite",
        "double_higher_net_lite",
    }
