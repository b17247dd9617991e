"""The latency contract on real streams: too much to do, less of it, frames that come late.

The network is a fake that takes its time, the more the larger its input, and finds nobody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from common.settings import ConfigError
from pipeline.config import ContractConfig, StreamConfig
from pipeline.messages import Poses
from pipeline.runtime.load import contract
from pipeline.runtime.load.contract import check_contract, steps_for
from pipeline.runtime.load.load_control import Timing
from pipeline.stream import Stream
from tests.support.painted import painted_model
from tests.support.running_stream import SeesNobody, running
from tests.support.waiting import wait_until

SIDE = 192


def stream_of(
    *sources: dict[str, Any],
    seconds: float | list[float],
    settings: dict[str, Any],
    sinks: dict[str, Callable[[Poses], None]] | None = None,
) -> tuple[Stream, Callable[[], set[int]]]:
    """A stream of live patterns; and the input sizes that its network has met since last asked."""
    tree = {
        "sources": [{"input": f"testsrc={SIDE}x{SIDE}@8", "pace": True, **s} for s in sources],
        "preprocess": {"input_size": SIDE, "size_multiple": 32},
        "inference": {"engine": "torch", "threads": 1},
        **settings,
    }
    met: list[int] = []

    def seconds_of(images: Tensor) -> float:
        """As asked for SIDE x SIDE, fewer for smaller pictures."""
        batch, _, height, width = images.shape
        met.append(height)
        whole = seconds[0] if isinstance(seconds, list) else seconds
        return whole * batch * height * width / SIDE**2

    model = replace(painted_model(), net=SeesNobody(seconds_of).eval(), size_multiple=32)
    stream = Stream(StreamConfig.model_validate(tree), model=model, sinks=sinks)

    def sizes() -> set[int]:
        since, met[:] = set(met), []
        return since

    return stream, sizes


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Timing:
    timing = Timing(tick_s=0.5, settle_s=1.0, watch_s=2.0, calm_s=3.0, period_s=4.0)
    monkeypatch.setattr(contract, "TIMING", timing)
    return timing


def test_a_stream_steps_down_and_comes_back(
    quick: Timing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Four cameras are twice too much; one alone on a quicker machine is next to nothing."""
    caplog.set_level(logging.INFO, "pipeline.runtime.load.contract")
    sources = [{"name": f"cam{i}"} for i in range(4)]
    settings = {"contract": {"target_fps": 4}, "recorder": {"jsonl": str(tmp_path / "out.jsonl")}}
    seconds = [0.12]
    stream, sizes = stream_of(*sources, seconds=seconds, settings=settings)
    with running(stream):

        def load() -> Any:
            return stream.stats.snapshot()["load"]

        assert load()["step"] == 0
        wait_until(lambda: load()["step"] > 0)
        wait_until(lambda: max(sizes(), default=SIDE) < SIDE)
        status = stream.status()["cam0"].degraded
        assert status is not None
        assert status["input_size"] < SIDE
        assert "4 sources should give" in status["reason"]
        assert f"input {load()['input_size']}" in load()["text"]
        seconds[0] = 0.01
        for source in sources[1:]:
            stream.remove_source(source["name"])
        wait_until(lambda: load()["step"] == 0)
        wait_until(lambda: sizes() == {SIDE})
        assert stream.status()["cam0"].degraded is None
        assert load()["changes"] >= 2
    snapshot = stream.stats.snapshot()
    cam0 = snapshot["sources"]["cam0"]
    frames = snapshot["stages"]["decoder:cam0"]["frames"]
    assert cam0["results"] + sum(cam0["dropped"].values()) == frames
    assert cam0["dropped"]["over_rate"] > 0  # it offers 8
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    numbers = [line["frame"] for line in lines if line["stream"] == "cam0"]
    assert len(numbers) == cam0["results"]
    assert all(later > earlier for earlier, later in pairwise(numbers))
    said = [record.getMessage() for record in caplog.records if "load: " in record.getMessage()]
    assert len(said) == load()["changes"]
    assert f"input {SIDE} -> input" in said[0]


def test_where_nothing_else_is_left_every_camera_gives_the_same_share(quick: Timing) -> None:
    sources = [{"name": f"cam{i}"} for i in range(4)]
    settings = {"contract": {"target_fps": 6, "smallest_input": 1.0}, "poses": {"refine": "off"}}
    stream, sizes = stream_of(*sources, seconds=0.08, settings=settings)
    with running(stream):
        wait_until(lambda: (stream.stats.snapshot()["load"] or {"step": 0})["step"] > 0)
        before = _results(stream)
        wait_until(lambda: sum(_results(stream)) - sum(before) > 60)
        gained = [after - b for b, after in zip(before, _results(stream), strict=True)]
    assert sizes() == {SIDE}
    assert min(gained) >= 0.8 * max(gained) > 0, gained
    assert all(s["dropped"]["over_rate"] > 0 for s in stream.stats.snapshot()["sources"].values())


def _results(stream: Stream) -> list[int]:
    return [source["results"] for source in stream.stats.snapshot()["sources"].values()]


def test_without_too_much_to_do_a_camera_gets_what_was_asked_for(quick: Timing) -> None:
    captured_ns: list[int] = []
    stream, _ = stream_of(
        {"name": "cam"}, seconds=0.005, settings={"contract": {"target_fps": 5}},
        sinks={"note": lambda poses: captured_ns.append(poses.frame.captured_ns)},
    )  # fmt: skip
    with running(stream):
        wait_until(lambda: len(captured_ns) >= 20)
    snapshot = stream.stats.snapshot()
    assert snapshot["load"] is not None
    assert snapshot["load"]["changes"] == 0
    # By the camera's own times, which is as many as it offers where the machine makes it late.
    fps = (len(captured_ns) - 1) / (captured_ns[-1] - captured_ns[0]) * 1e9
    frames = snapshot["stages"]["decoder:cam"]["frames"]
    offered_fps = fps * frames / len(captured_ns)
    assert min(5.0, offered_fps) * 0.8 < fps < 5.0 * 1.15


def test_frames_that_come_too_late_are_counted_and_none_is_lost() -> None:
    """Three cameras want 400 ms each of every 500, so some frames wait too long; each has turns."""
    sources = [{"name": f"cam{i}", "input": f"testsrc={SIDE}x{SIDE}@2"} for i in range(3)]
    settings = {"contract": {"max_age_ms": 200}}
    stream, _ = stream_of(*sources, seconds=0.4, settings=settings)

    def too_old() -> int:
        return sum(
            s["dropped"].get("too_old", 0) for s in stream.stats.snapshot()["sources"].values()
        )

    with running(stream):
        wait_until(lambda: len(_results(stream)) == len(sources) and all(_results(stream)))
        wait_until(too_old)
    snapshot = stream.stats.snapshot()
    for name, source in snapshot["sources"].items():
        frames = snapshot["stages"][f"decoder:{name}"]["frames"]
        assert source["results"] + sum(source["dropped"].values()) == frames


def test_what_the_contract_cannot_hold_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target_fps .* is for live sources"):
        check_contract(ContractConfig(target_fps=10), [True, False])
    with pytest.raises(ConfigError, match=r"max_age_ms .* is for live sources"):
        check_contract(ContractConfig(max_age_ms=100), [False, False])
    check_contract(ContractConfig(), [False])
    check_contract(ContractConfig(target_fps=10, max_age_ms=100), [True])


def test_of_files_beside_cameras_every_frame_is_worked_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pipeline.runtime.load.contract")
    check_contract(ContractConfig(max_age_ms=100), [True, False])
    assert "of files every frame is worked on" in caplog.text


def test_a_canvas_keeps_its_size() -> None:
    steps = steps_for(
        ContractConfig(), input_size=512, size_multiple=64, canvas=(384, 640), refine="quarter"
    )
    assert {step.input_size for step in steps} == {384}
    assert [step.refine for step in steps[:3]] == ["quarter", "off", "off"]
