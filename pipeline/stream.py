"""Which stage runs where: builds the stages, starts them, watches them, stops them all.

    sources --frames--> network --poses--> sinks          three parts, joined by two queues

Parts that no cut keeps apart share this process; the others are child processes (processes.py), or
are started by hand with `--part`. What a user can get wrong is found in the main thread, before the
first stage starts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pipeline.config import ConfigError, SourceConfig, StreamConfig
from pipeline.gpu.placement import Placement, cuda_devices
from pipeline.messages import NetOutput, Poses
from pipeline.runtime.counted import Counted, CountedSink, give_present
from pipeline.runtime.load.contract import LoadWatch, StepTaker, check_contract, degraded, steps_for
from pipeline.runtime.load.shedding import Shedding
from pipeline.runtime.meeting import Awaited, check_addresses
from pipeline.runtime.processes import PARTS, Children, Part, endpoint, is_child, is_orphan
from pipeline.runtime.progress import Progress, start_logging
from pipeline.runtime.queues.credit import Policy
from pipeline.runtime.queues.queue import Queue
from pipeline.runtime.source_set import SourceSet
from pipeline.runtime.stage import Stage
from pipeline.runtime.stats import Stats
from pipeline.runtime.stop import StopRequest
from pipeline.sinks.files import CocoResults, JsonLines, OpenPoseFolder
from pipeline.sinks.overlay import Draw, SharedPictures, drawn_picture, picture
from pipeline.sinks.page.api import PageSubject
from pipeline.sinks.page.page import Page
from pipeline.sinks.publisher.publisher import Publisher
from pipeline.sinks.schema import StreamStatus, new_session
from pipeline.sinks.video.sink import VideoSink
from pipeline.sinks.window import Window
from pipeline.sources.open import is_live
from pipeline.sources.source import SourceError

if TYPE_CHECKING:
    from nets.checkpoints import Model
    from pipeline.network import Network

_DRAIN_SECONDS = 10.0  # after a request to stop: how long a part without sources waits for the end
_SILENCE_SECONDS = 3.0  # after which a stream with a failed child counts as stuck
_TICK_SECONDS = 0.1
_STREAMS_OF_A_PAGE = 64  # as many as it may add without subscribers losing messages

_log = logging.getLogger(__name__)
_stream_numbers = count()


@runtime_checkable
class ForgetsSources(Protocol):
    """A sink (or the tracker) that keeps something of each source."""

    def forget_source(self, name: str) -> None:
        """Finish what belongs to a source that has gone; another may come under its name."""


class Sink(Protocol):
    """What a sink is: called with every Poses, closed at the end, whatever the end was."""

    def __call__(self, poses: Poses) -> None: ...

    def close(self) -> None: ...


def run(config: StreamConfig, *, part: Part | None = None, quiet: bool = False) -> int:
    """Run a stream until its sources end or somebody stops it.

    Args:
        config: what to run.
        part: of a cut stream, only this part and what shares its process; None starts the other
            parts as child processes.
        quiet: no progress line; warnings and errors only.
    Returns:
        The exit code: 0 done or stopped, 1 a stage failed, 2 a source could not be read (to the
        end).
    Raises:
        ValueError: bad input, found before the first stage started; one line.
    """
    start_logging(quiet=quiet)
    if not config.sources:
        raise ConfigError("no source given; try: run_stream.py demo --save demo.mp4")
    children = Children(config, part)
    stream = Stream(children.config, parts=children.parts)
    with children:
        return stream.run(children, quiet=quiet)


class Stream:
    """The stages of this process.

    Args:
        config: what to run.
        parts: those that run here; by default all.
        model: in place of the configured weights.
    Raises:
        ValueError: bad input; one line.
    """

    def __init__(
        self,
        config: StreamConfig,
        *,
        parts: tuple[Part, ...] = ("sources", "network", "sinks"),
        model: Model | None = None,
    ) -> None:
        self.stats = Stats()
        self._stop = threading.Event()  # ends every stage at once
        self._placement = Placement(cuda_devices(config.inference) if "network" in parts else ())
        self.sources = SourceSet(
            stats=self.stats, stop=self._stop, queue=self._frames_queue, placement=self._placement
        )
        self._config = config
        self._parts = parts
        self._window: Window | None = None
        self._calls_seen = -1  # by all stages, when it was last looked at
        self._moved_at = 0.0
        self._number = next(_stream_numbers)
        self._live = [_is_live(source) for source in config.sources]
        self._sink_names = _sink_names(config)
        self._draw = _draw(config)
        self._stages: list[Stage] = []  # without those of the sources
        self._forgetting: list[tuple[Stage, Callable[[str], None]]] = []  # after each has gone
        self._load_watch: LoadWatch | None = None
        _check_outputs(config)
        check_contract(config.contract, self._live)
        num_queues = {"frames": len(config.sources), "poses": len(self._sink_names)}
        check_addresses(config.queues, parts, num_queues)
        # Sinks last: what else is refused should not have been seen at a port meanwhile.
        if "sources" in parts:
            for source in config.sources:
                self.sources.add(source)
        if "network" in parts:
            self._add_network(model)
        if "sinks" in parts:
            self._add_sinks()
        self._awaited = Awaited(config.queues, parts, num_queues)

    # --- building ------------------------------------------------------------------------------

    def _add_network(self, model: Model | None) -> None:
        # Imported here: torch takes seconds and 200 MB, which the other parts do without.
        from pipeline.network import make_network

        config = self._config
        network = make_network(config, model, stop=self._stop, placement=self._placement)
        poses = Counted(
            network.find_poses, network.tracker, self.stats, self.sources.departed,
            privacy=config.privacy,
        )  # fmt: skip
        frames = [self._frames_queue(i, source) for i, source in enumerate(config.sources)]
        # Live, a frame is taken only when the network is free, so that it is the newest; on a GPU
        # when the upload of the next batch may begin.
        ahead = not any(self._live)
        devices = range(len(network.inferences))
        inputs = [Queue(f"inproc://{self._number}-inputs-{i}", ahead=ahead) for i in devices]
        outputs = [Queue(f"inproc://{self._number}-outputs-{i}") for i in devices]
        shedding = Shedding(
            stats=self.stats,
            max_age_ms=config.contract.max_age_ms,
            max_fps=config.contract.target_fps,
        )
        preprocess = self._add(
            "preprocess", network.preprocess, inputs=frames, outputs=inputs,
            batch=network.max_batch, admit=shedding.admit, route=attrgetter("gpu"),
        )  # fmt: skip
        self._forgetting.append((preprocess, shedding.forget_source))
        for i, inference in enumerate(network.inferences):
            self._add(
                "inference" if i == 0 else f"inference:{i}", inference,
                inputs=[inputs[i]], outputs=[outputs[i]], admit=shedding.admit_batches,
            )  # fmt: skip
        sinks = [self._poses_queue(j) for j in range(len(self._sink_names))]
        last = self._add(
            "poses", partial(_each, poses), inputs=outputs, outputs=sinks, batch=len(outputs)
        )
        if network.tracker is not None:
            self._forgetting.append((last, network.tracker.forget_source))
        self._watch_load(network, shedding)

    def _watch_load(self, network: Network, shedding: Shedding) -> None:
        config = self._config
        if config.contract.target_fps is None:
            return
        steps = steps_for(
            config.contract, input_size=network.input_size, size_multiple=network.size_multiple,
            canvas=config.preprocess.canvas, refine=network.decode.refine,
        )  # fmt: skip
        self._load_watch = LoadWatch(
            steps, target_fps=config.contract.target_fps, stats=self.stats, shedding=shedding,
            apply=StepTaker(self._stages, network.preprocess, network.find_poses),
        )  # fmt: skip

    def _add_sinks(self) -> None:
        session = new_session()
        with ExitStack() as opened:  # if one cannot be opened, those before it are closed
            for j, name in enumerate(self._sink_names):
                sink = opened.enter_context(closing(self._sink(name, session)))
                work: Any = partial(give_present, sink, self.sources.departed)
                if j == 0 and "network" not in self._parts:
                    work = CountedSink(sink, self.stats)
                self._add(name, work, inputs=[self._poses_queue(j)], close=sink.close)
                if isinstance(sink, ForgetsSources):
                    self._forgetting.append((self._stages[-1], sink.forget_source))
            opened.pop_all()

    def _sink(self, name: str, session: str) -> Sink:
        config = self._config
        per_source = len(config.sources) > 1
        overlay = config.overlay
        if name in ("overlay", "clean"):
            path = overlay.path if name == "overlay" else overlay.clean
            assert path is not None
            video = VideoSink(
                path, self._draw if name == "overlay" else picture, per_source=per_source,
                segment_s=overlay.segment_s, keep_gb=overlay.keep_gb, keep_hours=overlay.keep_hours,
            )  # fmt: skip
            self.stats.watch_unwritten(name, video.unwritten)
            return video
        if name == "viewer":
            self._window = Window(draw=self._draw)
            return self._window
        if name == "publisher":
            assert config.publisher.endpoint is not None
            publisher = Publisher(
                config.publisher.endpoint, format=config.publisher.format, session=session,
                status=self._status, num_streams=self._room_for_streams(),
                curve_dir=config.publisher.curve_dir,
            )  # fmt: skip
            names = [source.name for source in self.sources]
            if names:  # else they are known in another process
                _log.info("topics: pose/<stream>/ and status/<stream>/ of %s", ", ".join(names))
            self.stats.watch_overflows(publisher.overflows)
            return publisher
        if name == "page":
            return Page(
                config.page, self._page_subject(), privacy=config.privacy, session=session,
                min_keypoint_score=overlay.min_keypoint_score,
            )  # fmt: skip
        return self._recorder(name, session)

    def _room_for_streams(self) -> int:
        """How many the publisher's queues must take: they cannot grow when the page adds some."""
        page_adds = self._parts == PARTS and self._config.page.serve is not None
        return max(len(self._config.sources), _STREAMS_OF_A_PAGE if page_adds else 1)

    def _recorder(self, name: str, session: str) -> Sink:
        recorder, per_source = self._config.recorder, len(self._config.sources) > 1
        live = any(self._live)
        if name == "jsonl":
            assert recorder.jsonl is not None
            return JsonLines(recorder.jsonl, session=session, live=live)
        if name == "openpose":
            assert recorder.openpose is not None
            return OpenPoseFolder(recorder.openpose, per_source=per_source, live=live)
        assert recorder.coco is not None
        return CocoResults(recorder.coco, per_source=per_source, live=live)

    def _page_subject(self) -> PageSubject:
        can_change = self._parts == PARTS
        return PageSubject(
            stats=self.stats,
            status=self._status,
            stages=lambda: {stage.name: stage.error is None for stage in self._stages},
            add_source=self.add_source if can_change else None,
            remove_source=self.remove_source if can_change else None,
        )

    def _add(self, name: str, work: Any = None, **arguments: Any) -> Stage:
        stage = Stage(name, work, stats=self.stats, stop=self._stop, **arguments)
        self._stages.append(stage)
        return stage

    def _frames_queue(self, i: int, source: SourceConfig) -> Queue:
        live = _is_live(source)
        return Queue(
            endpoint(self._config.queues.frames, f"{self._number}-frames", i),
            policy=_policy(live=live),
            # Inproc the newest frame is found all the same, and those of all cameras at once.
            ahead=not live or self._config.queues.frames == "inproc",
        )

    def _poses_queue(self, j: int) -> Queue:
        return Queue(
            endpoint(self._config.queues.poses, f"{self._number}-poses", j),
            policy=_policy(live=all(self._live)),
            pixels=self._config.shows_pictures(self._sink_names[j]),
        )

    # --- sources that come and go ----------------------------------------------------------------

    def add_source(self, config: SourceConfig) -> str:
        """Add a source while the stream runs (or before); from any thread.

        Returns:
            Its name.
        Raises:
            ValueError: the name is taken, there is nothing to read, the stream is at its end, is
                cut into processes, or its sources are live and this one is a file; one line.
        """
        if self._parts != PARTS:
            raise ConfigError("sources come and go only in a stream that is one process")
        if all(self._live) and not _is_live(config):
            raise ConfigError(
                "frames may be dropped from live streams, so no file can be added to one; "
                "play it as a camera would: pace: true"
            )
        preprocess = self._stages[0]
        return self.sources.add(config, connect=preprocess.add_input)

    def remove_source(self, name: str) -> None:
        """End a source and forget it a few seconds later; from any thread. Returns at once.

        Raises:
            ValueError: there is none of that name, it is the last one, or the stream is cut.
        """
        if self._parts != PARTS:
            raise ConfigError("sources come and go only in a stream that is one process")
        self.sources.remove(name)

    def _forget_removed(self) -> None:
        for name in self.sources.forget_ended():
            self.stats.forget_source(name)
            for stage, forget in self._forgetting:
                stage.post(partial(forget, name))

    # --- running -------------------------------------------------------------------------------

    def run(self, children: Children | None = None, *, quiet: bool = True) -> int:
        """Start the stages, watch them, join them. Returns the exit code, as run() above."""
        stop_request = StopRequest(parent_repeats=is_child())
        with stop_request as request, Progress(self.stats, list(self.sources), quiet=quiet):
            self.sources.start()
            for stage in self._stages:
                stage.start()
            react = partial(self._react, request, children)
            while any(stage.is_alive() for stage in self._all_stages):
                react()
                self._wait(react, request)
            for stage in self._all_stages:
                stage.join()
        if children is not None and self._stop.is_set():
            children.stop_now()
        return max(self._exit_code(), 0 if children is None else children.wait())

    @property
    def _all_stages(self) -> list[Stage]:
        return [*self.sources.stages, *self._stages]

    def _react(self, request: StopRequest, children: Children | None) -> None:
        """A first request ends the sources, and the rest follows; a second one ends everything."""
        self._forget_removed()
        if children is not None and children.by_hand:
            self._awaited.tick(self._unheard)
        if self._load_watch is not None and request.seconds is None:
            self._load_watch.tick()
        if request.seconds is not None or self._stop.is_set():
            self.sources.stop()  # each may be waiting for its camera
        if request.seconds is not None:
            if children is not None:
                children.request_stop()
            if not self.sources and request.seconds > _DRAIN_SECONDS:
                _log.warning("no end of stream came after %.0f s: stopping", _DRAIN_SECONDS)
                self._stop.set()
        if request.is_urgent or is_orphan() or self._is_stuck(children):
            self._stop.set()

    def _unheard(self) -> list[str]:
        living = (stage for stage in self._all_stages if stage.is_alive())
        return [address for stage in living for address in stage.unheard]

    def _is_stuck(self, children: Children | None) -> bool:
        """Whether a child has ended and for a while its end was missed.

        Without sinks that is at once: a live stream would drop its results and run on for nobody.
        Without sources it is when nothing moves, or never did: what they sent may be under way.
        """
        if children is None:
            return False
        no_sinks = children.has_ended("sinks")
        if not no_sinks and children.exit_code == 0:
            return False
        calls = sum(stage["calls"] for stage in self.stats.snapshot()["stages"].values())
        if calls == 0:
            return True
        is_first_look = self._calls_seen < 0
        if is_first_look or (calls != self._calls_seen and not no_sinks):
            self._calls_seen, self._moved_at = calls, time.monotonic()
        return time.monotonic() - self._moved_at > _SILENCE_SECONDS

    def _wait(self, react: Callable[[], None], request: StopRequest) -> None:
        if self._window is None:
            time.sleep(_TICK_SECONDS)
        else:
            self._window.run(request.event, meanwhile=react)  # till its end or the user's
            self._window = None

    def _exit_code(self) -> int:
        errors = [stage.error for stage in self._all_stages if stage.error is not None]
        codes = [0]
        for error in errors:
            is_input = isinstance(error.__cause__, SourceError)
            # A bug deserves its traceback; bad input is one line.
            trace = None if is_input or isinstance(error.__cause__, ValueError) else error.__cause__
            _log.error("%s", error.__cause__ if is_input else error, exc_info=trace)
            codes.append(2 if is_input else 1)
        return max(codes)

    def _status(self) -> Mapping[str, StreamStatus]:
        """For the publisher: how each source does."""
        snapshot = self.stats.snapshot()
        given_up = degraded(snapshot["load"])
        return {
            name: StreamStatus(
                # Of a source in another process only its results are known.
                state=source["state"] or ("live" if source["fps"] > 0 else "stalled"),
                reason=source["reason"],
                since_unix_s=source["since_unix_s"] if source["state"] else None,
                retries=source["retries"],
                tainted=source["tainted"],
                fps=source["fps"],
                dropped=source["dropped"],
                latency_ms=source["latency_ms"],
                degraded=given_up,
            )
            for name, source in snapshot["sources"].items()
        }


def _each(work: Callable[[NetOutput], Iterator[Poses]], batch: list[NetOutput]) -> Iterator[Poses]:
    """The results of several messages, one of each GPU, one after the other."""
    for output in batch:
        yield from work(output)


def _is_live(source: SourceConfig) -> bool:
    return is_live(source.input, pace=source.pace)


def _policy(*, live: bool) -> Policy:
    return "drop_oldest" if live else "wait"


def _sink_names(config: StreamConfig) -> list[str]:
    """The sinks that a configuration asks for, in the order of their queues."""
    asked = {
        "overlay": config.overlay.path is not None,
        "clean": config.overlay.clean is not None,
        "jsonl": config.recorder.jsonl is not None,
        "openpose": config.recorder.openpose is not None,
        "coco": config.recorder.coco is not None,
        "publisher": config.publisher.endpoint is not None,
        "viewer": config.viewer.show,
        "page": config.page.serve is not None,
    }
    return [name for name, is_asked in asked.items() if is_asked]


def _draw(config: StreamConfig) -> Draw:
    """How poses are drawn; where two sinks show the same, each picture is drawn once."""
    overlay = config.overlay
    draw: Draw = partial(
        drawn_picture, min_keypoint_score=overlay.min_keypoint_score, colors=overlay.colors,
        on_black=not config.shows_pictures("overlay"), smoothed=overlay.smoothed,
    )  # fmt: skip
    return SharedPictures(draw) if overlay.path is not None and config.viewer.show else draw


def _check_outputs(config: StreamConfig) -> None:
    """No output may replace an input, or another output."""
    overlay, recorder = config.overlay, config.recorder
    asked = (overlay.path, overlay.clean, recorder.jsonl, recorder.openpose, recorder.coco)
    outputs = [Path(path).resolve() for path in asked if path is not None and path != "-"]
    inputs = {Path(source.input).resolve() for source in config.sources}
    for i, path in enumerate(outputs):
        if path in inputs:
            raise ConfigError(f"{path} is an input; give the output another name")
        if path in outputs[:i]:
            raise ConfigError(f"two outputs would write {path}; give them different names")
