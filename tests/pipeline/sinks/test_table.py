"""The table of sinks: its rows fit the settings, and no output replaces an input or another."""

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.settings import ConfigError
from pipeline.config import load_config
from pipeline.sinks.table import ROWS, asked_rows, check_outputs
from run_stream import _config, _parser
from tests.support.places import ROOT
from tests.support.sink_context import context_of

EXAMPLES = {
    "--save": "a.mp4",
    "--save-clean": "b.mp4",
    "--segment-s": "60",
    "--publish": "tcp://127.0.0.1:5556",
    "--curve-dir": "keys",
    "--serve": "8000",
}


def test_names_options_and_settings_are_there_once() -> None:
    options = [option for row in ROWS for option in row.options]
    for values in (
        [row.name for row in ROWS],
        [option.flag for option in options],
        [option.setting for option in options],
    ):
        assert Counter(values).most_common(1)[0][1] == 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_option_of_a_row_asks_for_its_sink_and_no_other(row: Any) -> None:
    arguments = ["demo"]
    for option in row.options:
        value = EXAMPLES.get(option.flag, f"{row.name}.json")
        arguments += [option.flag] if option.metavar is None else [option.flag, value]
    config = _config(_parser().parse_args(arguments))
    assert [asked.name for asked in asked_rows(config)] == [row.name]
    assert asked_rows(load_config()) == []


def test_the_table_imports_no_library_and_no_sink_before_one_is_made() -> None:
    tree = ast.parse((ROOT / "pipeline/sinks/table.py").read_text(encoding="utf-8"))
    modules = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert modules
    assert not [module for module in modules if module.startswith(("pipeline", "kernels", "nets"))]


@pytest.mark.parametrize(
    ("settings", "names", "message"),
    [
        ({"recorder.jsonl": "clip.mp4"}, ["clip"], r"clip\.mp4 is an input"),
        ({"recorder.jsonl": "net.pth", "weights": "net.pth"}, ["clip"], r"net\.pth is an input"),
        ({"recorder.jsonl": "p.json", "recorder.coco": "./p.json"}, ["clip"], "two outputs"),
        ({"video.path": "p.mp4", "video.clean": "p.mp4"}, ["clip"], "two outputs"),
        # With several sources the names differ from what was given.
        ({"video.path": "cl.mp4"}, ["ip", "clip"], None),
        ({"video.path": "clip.mp4"}, ["one", "two"], None),
        ({"recorder.coco": "p.json", "recorder.jsonl": "p-a.json"}, ["a", "b"], "two outputs"),
        # The list of a video's segments.
        (
            {"video.path": "p.mp4", "video.segment_s": 9, "recorder.jsonl": "p.mp4.jsonl"},
            ["clip"],
            "two outputs",
        ),
        ({"recorder.jsonl": "-", "recorder.coco": "p.json"}, ["clip"], None),
    ],
)
def test_no_output_replaces_an_input_or_another_output(
    settings: dict[str, Any],
    names: list[str],
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    context = context_of(load_config(sources=["clip.mp4"], settings=settings), names=names)
    if message is None:
        check_outputs(context)
    else:
        with pytest.raises(ValueError, match=message):
            check_outputs(context)


@pytest.mark.parametrize("name", ["path", "clean", "segment_s", "keep_gb", "keep_hours"])
def test_settings_of_a_video_say_their_new_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^setting 'overlay.{name}' is now 'video.{name}'$"):
        load_config(settings={f"overlay.{name}": 1})


def test_skeletons_are_drawn_once_for_video_and_window() -> None:
    both = load_config(settings={"video.path": "p.mp4", "viewer.show": True})
    one = load_config(settings={"video.path": "p.mp4"})
    context = context_of(both)
    assert context.draw is context.draw
    assert type(context.draw) is not type(context_of(one).draw)
