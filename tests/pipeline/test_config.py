"""Configurations: what is read, what wins, and that every mistake is one clear line."""

from pathlib import Path

import pytest

from pipeline.config import ConfigError, StreamConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_defaults_need_no_file() -> None:
    assert load_config() == StreamConfig()


def test_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("sources: [a.mp4, {input: b.mp4, name: yard}]\ninference: {engine: torch}\n")
    config = load_config(
        path,
        every_source={"max_frames": 5},
        settings={"inference.engine": "openvino", "inference.threads": 2},
        overrides=["inference.threads=1", "poses.refine=off"],
    )
    assert [source.input for source in config.sources] == ["a.mp4", "b.mp4"]
    assert [source.name for source in config.sources] == [None, "yard"]
    assert [source.max_frames for source in config.sources] == [5, 5]
    assert (config.inference.engine, config.inference.threads) == ("openvino", 1)
    assert config.poses.refine == "off"


def test_sources_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("sources: a.mp4\n")
    assert [source.input for source in load_config(path).sources] == ["a.mp4"]
    assert [source.input for source in load_config(path, sources=["0"]).sources] == ["0"]


def test_off_in_yaml_is_the_mode_and_not_false(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("poses: {refine: off}\n")
    assert load_config(path).poses.refine == "off"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["poses.refin=off"], "unknown setting 'poses.refin'; did you mean 'poses.refine'?"),
        (["nonsense=1"], "unknown setting 'nonsense'; known here: sources, weights, "),
        (["sources=[{input: a, nmae: b}]"], "unknown setting 'sources.0.nmae'; did you mean"),
        (["poses.max_people=many"], "setting 'poses.max_people': Input should be a valid integer"),
        (["preprocess.canvas=[288, 510]"], "setting 'preprocess.canvas.1': "),
        (["poses.min_person_score=2"], "less than or equal to 1, got 2"),
        (
            ["queues.frames=udp://a:1"],
            "must be inproc, ipc, ipc:///path or tcp://host:port, got 'udp://a:1'",
        ),
        (["no equals sign"], "--set takes key=value, got 'no equals sign'"),
        (["weights=a", "weights.name=b"], "setting 'weights.name': 'weights' is not a group"),
        (["poses.refine={"], "setting 'poses.refine': '{' is not a YAML value"),
        (["sources=5.5"], "setting 'sources': "),
    ],
)
def test_a_mistake_is_one_line_that_names_it(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("a: [", "is not YAML"),
        ("- a\n- b\n", "must hold `key: value` lines"),
        ("sources: {input: a}\n", "setting 'sources': "),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "stream.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("# nothing differs\n")
    assert load_config(path) == StreamConfig()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_in_the_box_is_valid(path: Path) -> None:
    assert load_config(path) != StreamConfig()
