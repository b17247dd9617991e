"""Configurations: what is read, what wins, and that every mistake is one clear line."""

from pathlib import Path

import pytest

from common.settings import ConfigError
from pipeline.config import StreamConfig, load_config
from tests.support.places import ROOT

CONFIGS = ROOT / "configs"


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


def test_a_setting_of_one_source_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("sources: [a.mp4, {input: b.mp4, roi: [0, 0, 1, 1]}]\n")
    overrides = ["sources.0.max_fps=5", "sources.1.roi.1=0.5", "sources.1.input=c.mp4"]
    for_all = {"max_fps": 9, "pace": True}
    first, second = load_config(path, every_source=for_all, overrides=overrides).sources
    assert (first.input, first.max_fps, first.pace) == ("a.mp4", 5, True)
    assert (second.input, second.max_fps, second.roi) == ("c.mp4", 9, (0, 0.5, 1, 1))
    (typed,) = load_config(sources=["demo"], overrides=["sources.0.name=x"]).sources
    assert (typed.input, typed.name) == ("demo", "x")
    all_new = load_config(path, every_source=for_all, overrides=["sources=[d]", "sources.0.name=y"])
    assert [(s.input, s.name, s.max_fps) for s in all_new.sources] == [("d", "y", 9)]


def test_numbers_name_cameras(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("sources:\n- {name: 1, input: 0}\n- 2\n")
    sources = load_config(path).sources
    assert [(source.input, source.name) for source in sources] == [("0", "1"), ("2", None)]


def test_options_of_ffmpeg_reach_the_source(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    options = "{tls_verify: 1, ca_file: camera.pem}"
    path.write_text(f"sources:\n- {{input: rtsps://camera/live, options: {options}}}\n")
    (source,) = load_config(path).sources
    assert source.options == {"tls_verify": "1", "ca_file": "camera.pem"}
    path.write_text("sources:\n- {input: a, options: [1]}\n")
    with pytest.raises(ConfigError, match=r"sources.0.options"):
        load_config(path)


def test_a_group_without_lines_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("sources:\nrecorder:\n# jsonl: a\npage:\n")
    config = load_config(path, settings={"recorder.jsonl": "b"})
    assert (config.sources, config.recorder.jsonl) == ((), "b")
    path.write_text("recoder:\n")
    with pytest.raises(ConfigError, match="unknown setting 'recoder'; did you mean 'recorder'"):
        load_config(path)


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
        (["sources=[a, null]"], "setting 'sources.1': "),
        (["sources=[a]", "sources.1.loop=on"], "'sources.1.loop': there is no entry '1'; there"),
        (["sources=[a]", "sources.one=b"], "'sources.one': there is no entry 'one'; there are"),
        (["sources=[a]", "sources.0.input.b=1"], "setting 'sources.0.input.b': 'input' is not"),
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
