"""Stages joined by real queues: everything reaches every sink, and every end is an orderly one."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pipeline.messages import Frame
from pipeline.runtime.queues import handles
from pipeline.runtime.queues.queue import Queue
from pipeline.runtime.stage import Stage, StageError
from pipeline.runtime.stats import Stats
from tests.support.queue_peer import make_frame
from tests.support.waiting import PATIENCE_SECONDS, wait_until


class Stream:
    """The stages of one test, with what they share."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.stats = Stats()
        self.stages: list[Stage] = []
        self.closed: list[str] = []
        """Names of the stages whose close hook has run, in that order."""

    def add(self, name: str, work: Callable[[Any], Any] | None = None, **settings: Any) -> Stage:
        settings.setdefault("close", lambda: self.closed.append(name))
        stage = Stage(name, work, stats=self.stats, stop=self.stop, **settings)
        self.stages.append(stage)
        return stage

    def start(self) -> None:
        for stage in self.stages:
            stage.start()
        for stage in self.stages:
            assert stage.ready.wait(PATIENCE_SECONDS)

    def join(self) -> None:
        for stage in self.stages:
            stage.join(PATIENCE_SECONDS)
            assert not stage.is_alive(), stage.name

    def run(self) -> None:
        self.start()
        self.join()


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.stop.set()
    made.join()
    assert len(handles.in_transit) == 0
    assert made.stats.snapshot()["queues"] == {}


def frames(count: int) -> Callable[[], Iterator[Frame]]:
    return lambda: (make_frame(index, height=4, width=4) for index in range(count))


def endless() -> Iterator[Frame]:
    for index in range(10**9):
        yield make_frame(index, height=4, width=4)
        time.sleep(0.001)


def queue(name: str, **settings: Any) -> Queue:
    return Queue(f"inproc://stage-{name}", **settings)


def test_every_frame_reaches_every_sink_in_order(stream: Stream) -> None:
    seen: dict[str, list[tuple[int, int]]] = {"saved": [], "shown": [], "published": []}
    outputs = [queue(name) for name in seen]

    def work(frame: Frame) -> Iterator[tuple[int, int]]:
        yield (frame.index, 0)
        yield (frame.index, 1)

    stream.add("source", frames=frames(500), outputs=[queue("frames")])
    stream.add("work", work, inputs=[queue("frames")], outputs=outputs)
    for name, output in zip(seen, outputs, strict=True):
        stream.add(name, seen[name].append, inputs=[output])
    stream.run()
    expected = [(index, part) for index in range(500) for part in range(2)]
    assert all(messages == expected for messages in seen.values())
    assert [stage.error for stage in stream.stages] == [None] * 5
    # Whoever gets END may count on the files of those before: hooks run in the frames' order.
    assert stream.closed[:2] == ["source", "work"]
    assert sorted(stream.closed[2:]) == sorted(seen)
    stages = stream.stats.snapshot()["stages"]
    assert stages["source"]["frames"] == stages["work"]["frames"] == 500
    assert not stream.stop.is_set()


def test_a_batch_takes_one_of_each_source_and_ends_with_the_last(stream: Stream) -> None:
    counts = [10, 40, 25]
    inputs = [queue(f"camera{number}") for number in range(3)]
    batches: list[list[tuple[int, int]]] = []

    def source_of(number: int) -> Callable[[], Iterator[Frame]]:
        def iterate() -> Iterator[Frame]:
            for index in range(counts[number]):
                yield make_frame(index * 3 + number, height=4, width=4)

        return iterate

    def work(batch: Sequence[Frame]) -> None:
        batches.append([(frame.index % 3, frame.index // 3) for frame in batch])
        time.sleep(0.001)

    for number, output in enumerate(inputs):
        stream.add(f"source{number}", frames=source_of(number), outputs=[output])
    stream.add("work", work, inputs=inputs, batch=2)
    stream.run()
    assert all(len({number for number, _ in batch}) == len(batch) <= 2 for batch in batches)
    assert max(len(batch) for batch in batches) == 2
    flat = [entry for batch in batches for entry in batch]
    for number, count in enumerate(counts):
        assert [index for source, index in flat if source == number] == list(range(count))
    assert stream.stats.snapshot()["stages"]["work"]["frames"] == sum(counts)


@pytest.mark.parametrize("batch", [None, 2])
def test_what_is_not_admitted_is_neither_worked_on_nor_counted(
    stream: Stream, batch: int | None
) -> None:
    seen: list[int] = []

    def odd(messages: Sequence[Any]) -> list[Any]:
        return [frame for frame in messages if frame.index % 2]

    def work(message: Any) -> None:
        seen.extend(frame.index for frame in (message if batch else [message]))

    stream.add("source", frames=frames(21), outputs=[queue("frames")])
    stream.add("work", work, inputs=[queue("frames")], batch=batch, admit=odd)
    stream.run()
    assert seen == list(range(1, 21, 2))
    counts = stream.stats.snapshot()["stages"]["work"]
    assert (counts["calls"], counts["frames"]) == (10, 10)


def test_who_was_not_admitted_keeps_its_turn(stream: Stream) -> None:
    """All sources send at once, and of each such round only the first that is taken is in time."""
    names = [f"in-turn{number}" for number in range(3)]
    taken, worked_on = [0], [0, 0, 0]
    gate = threading.Barrier(4)

    def rounds(number: int) -> Callable[[], Iterator[Frame]]:
        def iterate() -> Iterator[Frame]:
            for _ in range(30):
                gate.wait(PATIENCE_SECONDS)
                yield make_frame(number, height=4, width=4)

        return iterate

    def first_of_a_round(messages: Sequence[Any]) -> list[Any]:
        is_first = taken[0] % 3 == 0
        taken[0] += 1
        if taken[0] % 3 == 0 and taken[0] < 90:
            gate.wait(PATIENCE_SECONDS)
            wait_until(lambda: all(receiver._socket.poll(0) for receiver in stage._receivers))
        return list(messages) if is_first else []

    def work(batch: Sequence[Frame]) -> None:
        worked_on[batch[0].index] += 1

    for number, name in enumerate(names):
        stream.add(name, frames=rounds(number), outputs=[queue(name)])
    inputs = [queue(name) for name in names]
    stage = stream.add("work", work, inputs=inputs, batch=1, admit=first_of_a_round)
    stream.start()
    gate.wait(PATIENCE_SECONDS)
    stream.join()
    assert sum(worked_on) == 30
    assert min(worked_on) >= 9, worked_on


def test_a_failing_stage_stops_the_stream_and_names_itself_and_the_message(
    stream: Stream,
) -> None:
    saved: list[Any] = []

    def work(frame: Frame) -> list[Frame]:
        if frame.index == 7:
            raise KeyError("no such weight")
        return [frame]

    stream.add("source", frames=endless, outputs=[queue("frames")])
    failing = stream.add("inference", work, inputs=[queue("frames")], outputs=[queue("poses")])
    stream.add("recorder", saved.append, inputs=[queue("poses")])
    stream.start()
    stream.join()
    assert isinstance(failing.error, StageError)
    assert str(failing.error) == (
        "inference failed on Frame('cam1', index=7, size=(4, 4), "
        "planes=[(4, 4), (2, 2), (2, 2)]): KeyError: 'no such weight'"
    )
    assert isinstance(failing.error.__cause__, KeyError)
    assert [stage.error for stage in stream.stages if stage is not failing] == [None, None]
    assert sorted(stream.closed) == ["inference", "recorder", "source"]  # files are finished
    assert [frame.index for frame in saved] == list(range(len(saved)))


def test_a_failing_source_of_several_ends_alone(stream: Stream) -> None:
    def broken() -> Iterator[Frame]:
        yield make_frame(1000, height=4, width=4)
        raise ConnectionError("the camera is gone")

    seen: list[int] = []
    inputs = [queue("good"), queue("bad")]
    stream.add("good", frames=frames(50), outputs=inputs[:1], fatal=False)
    bad = stream.add("bad", frames=broken, outputs=inputs[1:], fatal=False)
    stream.add(
        "sink",
        lambda batch: seen.extend(frame.index for frame in batch),
        inputs=inputs,
        batch=2,
    )
    stream.run()
    assert sorted(seen) == [*range(50), 1000]
    assert str(bad.error) == "bad failed: ConnectionError: the camera is gone"
    assert not stream.stop.is_set()


@pytest.mark.parametrize("where", ["open", "close", "queue"])
def test_a_failure_at_either_end_of_a_stage_is_its_error(stream: Stream, where: str) -> None:
    def fail() -> None:
        raise OSError("disk full")

    hooks = {where: fail} if where != "queue" else {}
    address = "inproc://stage-frames" if where != "queue" else "ipc:///no/such/folder/q"
    source = stream.add("source", frames=frames(3), outputs=[Queue(address)])
    sink = stream.add("sink", lambda _: None, inputs=[queue("frames")], **hooks)
    for stage in stream.stages:
        stage.start()
    # Also of a stage that failed: nobody waits for it in vain.
    assert sink.ready.wait(PATIENCE_SECONDS)
    stream.join()
    if where == "queue":
        assert "cannot bind ipc:///no/such/folder/q" in str(source.error)
        assert stream.closed.count("source") == 1
    else:
        assert str(sink.error) == "sink failed: OSError: disk full"
        assert ("sink" in stream.closed) == (where == "open")
    assert stream.stop.is_set()


def test_the_first_failure_is_the_one_that_is_told(stream: Stream) -> None:
    def fail(message: object = None) -> None:
        raise ValueError("first" if message is not None else "second")

    stream.add("source", frames=frames(3), outputs=[queue("frames")])
    sink = stream.add("sink", fail, inputs=[queue("frames")], close=fail)
    stream.run()
    assert "first" in str(sink.error)


def test_stop_joins_every_stage_and_finishes_its_files(stream: Stream) -> None:
    entered = threading.Event()

    def slow(_: object) -> None:
        entered.set()
        stream.stop.wait(PATIENCE_SECONDS)  # busy until the stop

    waiting = queue("never")  # its sender never comes
    stream.add("source", frames=endless, outputs=[queue("frames")])
    stream.add("live", frames=endless, outputs=[queue("live", policy="drop_oldest")])
    stream.add("slow", slow, inputs=[queue("frames")], outputs=[queue("poses")])
    stream.add("idle", lambda _: None, inputs=[queue("poses")])
    stream.add("lonely", lambda _: None, inputs=[waiting, queue("live")], batch=1)
    stream.start()
    assert entered.wait(PATIENCE_SECONDS)
    stream.stop.set()
    stream.join()
    assert [stage.error for stage in stream.stages] == [None] * 5
    assert sorted(stream.closed) == ["idle", "live", "lonely", "slow", "source"]


def test_drops_and_results_are_all_the_frames(stream: Stream) -> None:
    """While the work is at one frame, a live source gives four more: each is accounted for."""
    seen: list[int] = []
    given = [0]

    def work(frame: Frame) -> list[Frame]:
        wait_until(lambda: given[0] > min(frame.index + 4, 199))
        return [frame]

    def live() -> Iterator[Frame]:
        for index in range(200):
            yield make_frame(index, height=4, width=4)
            given[0] += 1

    stream.add("camera", frames=live, outputs=[queue("frames", policy="drop_oldest")])
    stream.add("work", work, inputs=[queue("frames")], outputs=[queue("poses")])
    stream.add("sink", lambda frame: seen.append(frame.index), inputs=[queue("poses")])
    stream.run()
    dropped = stream.stats.snapshot()["sources"]["cam1"]["dropped_at"]
    assert set(dropped) == {"camera"}
    assert dropped["camera"]["newer"] + len(seen) == 200
    assert seen == sorted(set(seen))
    assert seen[-1] == 199
    assert dropped["camera"]["newer"] > 50


def test_the_time_of_work_is_not_that_of_waiting(stream: Stream) -> None:
    """Lazy work beside a sink that takes much longer: only the work counts as work."""
    work_ms: list[float] = []
    sink_ms: list[float] = []

    def sleep(ms: float, slept_ms: list[float]) -> None:
        started_ns = time.perf_counter_ns()
        time.sleep(ms / 1e3)
        slept_ms.append((time.perf_counter_ns() - started_ns) / 1e6)

    def work(frame: Frame) -> Iterator[Frame]:
        for _ in range(2):
            sleep(2.0, work_ms)
            yield frame

    stream.add("source", frames=frames(10), outputs=[queue("frames")])
    stream.add("work", work, inputs=[queue("frames")], outputs=[queue("poses")])
    stream.add("sink", lambda _: sleep(20.0, sink_ms), inputs=[queue("poses")])
    stream.run()
    counted_ms = stream.stats.snapshot()["stages"]["work"]["total_ms"]
    # The work waited for all but the first and the last few of the sink's messages.
    assert sum(work_ms) <= counted_ms < sum(work_ms) + sum(sink_ms) / 2


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_cut_changes_nothing_but_the_endpoint(
    stream: Stream, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("q")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"ipc://{folder}/frames" if scheme == "ipc" else f"tcp://127.0.0.1:{port}"
    cut = Queue(address, slots=2)
    held: list[int] = []

    def work(frame: Frame) -> list[Frame]:
        return [frame]

    stream.add("source", frames=large_frames, outputs=[cut])
    stream.add("work", work, inputs=[cut], outputs=[queue("poses")])
    stream.add("sink", lambda frame: held.append(frame.index), inputs=[queue("poses")])
    stream.run()  # with two slots this ends only if no stage keeps a frame that it is done with
    assert held == list(range(60))


def large_frames() -> Iterator[Frame]:
    for index in range(60):
        yield make_frame(index)
