"""Sinks of the user's own, beside those of the configuration."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from common.settings import ConfigError
from pipeline.config import StreamConfig
from pipeline.messages import Poses
from pipeline.stream import Stream
from tests.support.painted import painted_model

NUM_FRAMES = 12


def config_of(**settings: Any) -> StreamConfig:
    return StreamConfig.model_validate(
        {
            "sources": [{"input": "testsrc=128x64@25", "name": "cam", "max_frames": NUM_FRAMES}],
            "preprocess": {"input_size": 64},
            "inference": {"engine": "torch"},
            **settings,
        }
    )


class Notebook:
    """A sink that notes what it is told, and in which thread."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.pixels: set[bool] = set()
        self.closed_in: list[str] = []

    def __call__(self, poses: Poses) -> str:
        self.frames.append(poses.frame.index)
        self.pixels.add(poses.frame.has_pixels)
        return "ignored"

    def close(self) -> None:
        self.closed_in.append(threading.current_thread().name)


class Blind(Notebook):
    needs_pixels = False


def test_a_callable_is_a_sink_beside_the_others(tmp_path: Path) -> None:
    seen: list[Poses] = []
    jsonl = tmp_path / "poses.jsonl"
    config = config_of(recorder={"jsonl": str(jsonl)})
    assert Stream(config, sinks={"mine": seen.append}, model=painted_model()).run() == 0
    assert [poses.frame.index for poses in seen] == list(range(NUM_FRAMES))
    assert seen[0].frame.to_host().shape == (64, 128, 3)
    lines = [json.loads(line)["frame"] for line in jsonl.read_text().splitlines()]
    assert lines == list(range(NUM_FRAMES))


def test_it_is_closed_once_in_its_own_thread() -> None:
    book = Notebook()
    assert Stream(config_of(), sinks={"book": book}, model=painted_model()).run() == 0
    assert (len(book.frames), book.closed_in) == (NUM_FRAMES, ["book"])


@pytest.mark.parametrize(
    ("book", "privacy", "expected"),
    [(Notebook(), False, True), (Blind(), False, False), (Notebook(), True, False)],
)
def test_the_sink_says_whether_it_needs_pixels_and_privacy_wins(
    book: Notebook, privacy: bool, expected: bool
) -> None:
    stream = Stream(config_of(privacy=privacy), sinks={"book": book}, model=painted_model())
    assert stream.run() == 0
    assert book.pixels == {expected}


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_one_that_raises_ends_the_stream_with_the_cause(
    kind: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = kind("the alarm is broken")

    def alarm(poses: Poses) -> None:
        if poses.frame.index == 3:
            raise reason

    config = config_of(recorder={"jsonl": str(tmp_path / "poses.jsonl")})
    book = Notebook()
    stream = Stream(config, sinks={"alarm": alarm, "book": book}, model=painted_model())
    with caplog.at_level(logging.ERROR):
        assert stream.run() == 1
    assert stream.error is not None
    assert stream.error.__cause__ is reason
    (record,) = caplog.records
    assert record.getMessage().startswith("alarm failed on ")
    assert record.exc_info is not None, "a bug of the user's deserves its traceback"
    assert book.closed_in == ["book"], "the other sinks are finished"


def test_one_that_cannot_be_closed_is_an_error_too() -> None:
    class Stuck(Notebook):
        def close(self) -> None:
            raise OSError("no room")

    stream = Stream(config_of(), sinks={"stuck": Stuck()}, model=painted_model())
    assert stream.run() == 1
    assert isinstance(getattr(stream.error, "__cause__", None), OSError)


@pytest.mark.parametrize(
    ("sinks", "settings", "message"),
    [
        ({"mine": 3}, {}, "sink 'mine' must be something to call"),
        ({"jsonl": print}, {}, "the stream has a 'jsonl' already"),
        ({"poses": print}, {}, "the stream has a 'poses' already"),
        ({"mine": print}, {"queues": {"poses": "ipc"}}, "leave queues.poses at inproc"),
    ],
)
def test_what_cannot_be_a_sink_is_refused_before_anything_starts(
    sinks: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(config_of(**settings), sinks=sinks, model=painted_model())


def test_without_the_sinks_part_there_is_none(tmp_path: Path) -> None:
    config = config_of(queues={"poses": f"ipc://{tmp_path}/poses"})
    with pytest.raises(ConfigError, match="subscribe to the publisher"):
        Stream(config, sinks={"mine": print}, parts=("sources", "network"), model=painted_model())
