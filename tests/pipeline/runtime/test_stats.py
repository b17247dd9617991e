"""Counts of a stream: against plain definitions, under threads, and as Prometheus reads them."""

import statistics
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.runtime.stats import LoadSnapshot, Stats
from pipeline.sources.status import SourceState, SourceStatus


class Clock:
    """A clock that stands until told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def samples(stats: Stats) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scrape of the page reads: (name, labels) -> value."""
    text = generate_latest(stats.prometheus_registry()).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(durations_ms=st.lists(st.floats(0, 3000), min_size=1, max_size=600))
def test_a_stages_numbers_are_those_of_its_calls(durations_ms: list[float]) -> None:
    stats = Stats()
    for ms in durations_ms:
        stats.worked("inference", ms, ["cam1", "cam2"])
    stage = stats.snapshot()["stages"]["inference"]
    recent = durations_ms[-512:]
    assert stage["calls"] == len(durations_ms)
    assert stage["frames"] == 2 * len(durations_ms)
    assert stage["total_ms"] == pytest.approx(sum(durations_ms))
    assert stage["mean_ms"] == pytest.approx(statistics.fmean(durations_ms))
    for name, percent in (("p50_ms", 50), ("p95_ms", 95)):
        low, high = (
            np.percentile(recent, percent, method=method) for method in ("lower", "higher")
        )
        assert low <= stage[name] <= high  # type: ignore[literal-required]
    seen = samples(stats)
    labels = (("stage", "inference"), ("stream", "cam1"))
    assert seen["pose_stage_duration_seconds_count", labels] == len(durations_ms)
    total_s = seen["pose_stage_duration_seconds_sum", labels]
    assert total_s == pytest.approx(sum(durations_ms) / 1e3)
    for bound in (0.001, 0.05, 2.0):
        bucket = seen["pose_stage_duration_seconds_bucket", (("le", str(bound)), *labels)]
        assert bucket == sum(ms / 1e3 <= bound for ms in durations_ms)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    stats = Stats(now=clock)
    for fps in (10, 40):
        for _ in range(fps * 8):
            clock.seconds += 1 / fps
            stats.worked("decoder", 1.0, ["cam1"])
            stats.finished("cam1", latency_ms=20.0, people=2)
        assert stats.snapshot()["stages"]["decoder"]["fps"] == pytest.approx(fps, rel=0.02)
        assert stats.snapshot()["sources"]["cam1"]["fps"] == pytest.approx(fps, rel=0.02)
    clock.seconds += 2.5
    assert stats.snapshot()["sources"]["cam1"]["fps"] == pytest.approx(20, rel=0.05)
    clock.seconds += 60
    assert stats.snapshot()["sources"]["cam1"]["fps"] == 0
    assert stats.snapshot()["seconds"] == pytest.approx(78.5)


def test_drops_are_told_by_source_stage_and_reason() -> None:
    stats = Stats()
    for stage, source, reason, count in [
        ("decoder", "cam1", "newer", 3),
        ("decoder", "cam2", "newer", 1),
        ("poses", "cam1", "newer", 2),
        ("poses", "cam1", "lost", 1),
    ]:
        for _ in range(count):
            stats.dropped(stage, source, reason, has_poses=stage == "poses")
    sources = stats.snapshot()["sources"]
    assert sources["cam1"]["dropped"] == {"newer": 3}, "a result is no frame without poses"
    assert sources["cam1"]["results_dropped"] == {"newer": 2, "lost": 1}
    assert sources["cam1"]["dropped_at"] == {
        "decoder": {"newer": 3},
        "poses": {"newer": 2, "lost": 1},
    }
    assert sources["cam2"]["dropped"] == {"newer": 1}
    labels = (("reason", "newer"), ("stage", "poses"), ("stream", "cam1"))
    assert samples(stats)["pose_frames_dropped_total", labels] == 2


def test_results_queues_and_states_are_shown() -> None:
    stats = Stats()
    depth, status = 0, SourceStatus()
    stats.watch_queue("inproc://frames", lambda: depth)
    stats.watch_source("cam1", lambda: status)
    before = stats.snapshot()
    assert before["queues"] == {"inproc://frames": 0}
    assert before["sources"]["cam1"]["state"] == "connecting"
    assert before["sources"]["cam1"]["latency_ms"] == {}
    assert samples(stats)["pose_source_up", (("stream", "cam1"),)] == 0
    depth = 2
    status = SourceStatus(SourceState.LIVE, retries={"ended": 3}, tainted=4, left_out=5)
    for latency_ms in range(101):
        stats.finished("cam1", latency_ms=latency_ms, people=latency_ms % 7)
    source = stats.snapshot()["sources"]["cam1"]
    assert source["latency_ms"] == {"p50": 50, "p95": 95, "p99": 99}
    assert (source["results"], source["people"], source["state"]) == (101, 2, "live")
    seen = samples(stats)
    assert seen["pose_queue_depth", (("queue", "inproc://frames"),)] == 2
    assert seen["pose_source_up", (("stream", "cam1"),)] == 1
    assert seen["pose_source_retries_total", (("reason", "ended"), ("stream", "cam1"))] == 3
    assert seen["pose_frames_tainted_total", (("stream", "cam1"),)] == 4
    assert seen["pose_frames_left_out_total", (("stream", "cam1"),)] == 5
    states = {
        state.value: seen["pose_source_state", (("state", state.value), ("stream", "cam1"))]
        for state in SourceState
    }
    assert [state for state, value in states.items() if value] == ["live"]
    assert seen["pose_persons", (("stream", "cam1"),)] == 2
    assert seen["pose_end_to_end_latency_seconds_count", (("stream", "cam1"),)] == 101
    stats.unwatch_queue("inproc://frames")
    assert stats.snapshot()["queues"] == {}


def test_what_subscribers_could_not_take_is_shown() -> None:
    stats = Stats()
    assert stats.snapshot()["overflows"] == {}
    stats.watch_overflows(lambda: {"cam1": 7})
    assert stats.snapshot()["overflows"] == {"cam1": 7}
    assert samples(stats)["pose_messages_overflowed_total", (("stream", "cam1"),)] == 7


def test_what_could_not_be_recorded_is_shown() -> None:
    stats = Stats()
    assert stats.snapshot()["unwritten"] == {}
    stats.watch_unwritten("overlay", lambda: {"cam1": {"disk_full": 3}})
    stats.watch_unwritten("clean", dict)
    counts = {"overlay": {"cam1": {"disk_full": 3}}, "clean": {}}
    assert stats.snapshot()["unwritten"] == counts
    labels = (("reason", "disk_full"), ("sink", "overlay"), ("stream", "cam1"))
    assert samples(stats)["pose_frames_unwritten_total", labels] == 3


def test_nothing_is_lost_when_many_threads_count() -> None:
    stats = Stats()

    def count(thread: int) -> None:
        for _ in range(2000):
            stats.worked("poses", 1.0, [f"cam{thread % 2}"])
            stats.dropped("decoder", "cam0", "newer")
            stats.finished("cam1", latency_ms=1.0, people=0)

    threads = [threading.Thread(target=count, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        stats.snapshot()  # while they count
        time.sleep(0.001)
    snapshot = stats.snapshot()
    assert snapshot["stages"]["poses"]["frames"] == 8000
    assert snapshot["sources"]["cam0"]["dropped"] == {"newer": 8000}
    assert snapshot["sources"]["cam1"]["results"] == 8000


def test_what_is_given_up_under_load_is_told_and_scraped() -> None:
    stats = Stats()
    assert stats.snapshot()["load"] is None
    assert not [name for name, _ in samples(stats) if name.startswith("pose_load")]
    load: LoadSnapshot = {
        "step": 2, "changes": 5, "input_size": 384, "refine": "off", "fps": 6.4,
        "reason": "too much", "text": "input 384, refine off, 6.4 fps each",
    }  # fmt: skip
    stats.watch_load(lambda: load)
    assert stats.snapshot()["load"] == load
    seen = samples(stats)
    assert seen["pose_load_step", ()] == 2
    assert seen["pose_load_changes_total", ()] == 5
    assert seen["pose_load_input_size", ()] == 384
    assert seen["pose_load_fps", ()] == 6.4
