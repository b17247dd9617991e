"""What a program does with a Stream that runs in a thread: idle, add, remove, status, stop."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import zmq

from common.settings import ConfigError
from nets.engines.load import load_engine
from pipeline.config import SourceConfig, StreamConfig
from pipeline.messages import Poses
from pipeline.runtime import source_set
from pipeline.stream import Stream
from tests.support.painted import painted_model
from tests.support.running_stream import SeesNobody
from tests.support.waiting import PATIENCE_SECONDS, wait_until


def config_of(*names: str, **settings: Any) -> StreamConfig:
    tree = {
        "sources": [{"input": "testsrc=128x64@30", "name": n, "pace": True} for n in names],
        "preprocess": {"input_size": 64},
        "inference": {"engine": "torch"},
        **settings,
    }
    return StreamConfig.model_validate(tree)


def camera(name: str) -> SourceConfig:
    return SourceConfig(input="testsrc=128x64@30", name=name, pace=True)


@contextmanager
def running(stream: Stream) -> Iterator[None]:
    """In a thread; at the end it must have been stopped, with exit code 0."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(stream.run()))
    thread.start()
    try:
        yield
    finally:
        stream.stop()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert codes == [0]


def _has_results(seen: list[Poses], source: str) -> bool:
    return any(poses.frame.source == source for poses in seen)


def test_a_stream_idles_without_sources_and_takes_them_as_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_set, "_LINGER_SECONDS", 0.1)
    seen: list[Poses] = []
    stream = Stream(config_of(), capacity=2, sinks={"mine": seen.append}, model=painted_model())
    with running(stream):
        assert stream.status() == {}
        for name in ("first", "second"):  # one after the other; it idles in between
            stream.add_source(camera(name))
            wait_until(partial(_has_results, seen, name))
            assert stream.status()[name].state == "live"
            stream.remove_source(name)
            wait_until(lambda: not stream.status())
        assert stream.error is None


def test_no_more_sources_than_the_capacity() -> None:
    stream = Stream(config_of("a"), capacity=2, model=painted_model())
    with running(stream):
        stream.add_source(camera("b"))
        with pytest.raises(ConfigError, match="the stream is full: capacity is 2 sources"):
            stream.add_source(camera("c"))
        with pytest.raises(ConfigError, match="frames may be dropped"):
            Stream(config_of(), capacity=1, model=painted_model()).add_source(
                SourceConfig(input="testsrc=128x64@30")
            )


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_capacity_below_the_sources_that_there_are_is_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match=f"the number of sources \\(2\\), got {capacity}"):
        Stream(config_of("a", "b"), capacity=capacity, model=painted_model())


def test_stop_lets_what_is_under_way_arrive() -> None:
    seen: list[int] = []
    stream = Stream(
        config_of("cam"), sinks={"mine": lambda p: seen.append(p.frame.index)},
        model=painted_model(),
    )  # fmt: skip
    with running(stream):
        wait_until(lambda: seen)
    assert len(seen) == stream.stats.snapshot()["sources"]["cam"]["results"]


def test_stop_twice_ends_a_network_that_is_busy() -> None:
    slow = replace(painted_model(), net=SeesNobody(lambda images: 0.2).eval())
    stream = Stream(config_of("cam"), model=slow)
    with running(stream):
        wait_until(lambda: "inference" in stream.stats.snapshot()["stages"])
        stream.stop()
        stream.stop()


def test_stop_before_run_ends_it_at_once() -> None:
    stream = Stream(config_of("cam"), capacity=1, model=painted_model())
    stream.stop()
    assert stream.run() == 0


def test_the_bound_endpoint_is_known_before_the_stream_runs() -> None:
    assert Stream(config_of("cam"), model=painted_model()).publisher_endpoint is None
    config = config_of("cam", publisher={"endpoint": "tcp://127.0.0.1:*"})
    stream = Stream(config, model=painted_model())
    assert stream.publisher_endpoint is not None
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber, running(stream):
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.connect(stream.publisher_endpoint)
        subscriber.subscribe("pose/cam/")
        assert subscriber.poll(round(PATIENCE_SECONDS * 1e3))


def test_a_loaded_engine_serves_stream_after_stream() -> None:
    model = painted_model()
    engine = load_engine(model, engine="torch", device="cpu")
    for _ in range(2):
        seen: list[Poses] = []
        config = StreamConfig.model_validate(
            {
                "sources": [{"input": "testsrc=128x64@25", "max_frames": 3}],
                "preprocess": {"input_size": 64},
                "inference": {"device": "cuda:7"},  # which the engine's device replaces
            }
        )
        stream = Stream(config, sinks={"mine": seen.append}, model=model, engines=[engine])
        assert stream.run() == 0
        assert [poses.frame.index for poses in seen] == [0, 1, 2]


def test_an_engine_without_its_model_is_refused() -> None:
    engine = load_engine(painted_model(), engine="torch", device="cpu")
    with pytest.raises(ConfigError, match="pass model="):
        Stream(config_of("cam"), engines=[engine])
