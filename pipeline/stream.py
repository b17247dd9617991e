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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import ConfigError, SourceConfig, StreamConfig
from pipeline.gpu.placement import Placement, cuda_devices
from pipeline.messages import NetOutput, Poses
from pipeline.runtime.counted import Counted, CountedSink, give_present
from pipeline.runtime.load.contract import LoadWatch, StepTaker, check_contract, steps_for
from pipeline.runtime.load.shedding import Shedding
from pipeline.runtime.meeting import Awaited, check_addresses
from pipeline.runtime.processes import PARTS, Children, Part, endpoint, is_child, is_orphan
from pipeline.runtime.progress import Progress, start_logging
from pipeline.runtime.queues.credit import Policy
from pipeline.runtime.queues.queue import Queue
from pipeline.runtime.source_set import SourceSet
from pipeline.runtime.stage import Stage, StageError
from pipeline.runtime.stats import Stats
from pipeline.runtime.status import StreamStatus, statuses
from pipeline.runtime.stop import StopRequest
from pipeline.sinks.files import CocoResults, JsonLines, OpenPoseFolder
from pipeline.sinks.overlay import Draw, SharedPictures, drawn_picture, picture
from pipeline.sinks.page.api import PageSubject
from pipeline.sinks.page.page import Page
from pipeline.sinks.publisher.publisher import Publisher
from pipeline.sinks.schema import new_session
from pipeline.sinks.sink import Adapted, ForgetsSources, OwnSink, Sink
from pipeline.sinks.video.sink import VideoSink
from pipeline.sinks.window import Window
from pipeline.sources.open import is_live
from pipeline.sources.source import SourceError

if TYPE_CHECKING:
    from nets.checkpoints import Model
    from nets.engines.engine import Engine
    from pipeline.network import Network

_DRAIN_SECONDS = 10.0  # after a request to stop: how long a part without sources waits for the end
_SILENCE_SECONDS = 3.0  # after which a stream with a failed child counts as stuck
_TICK_SECONDS = 0.1
_STREAMS_OF_A_PAGE = 64  # as many as it may add without subscribers losing messages

_log = logging.getLogger(__name__)
_stream_numbers = count()


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
    """The stages of this process: run() them, from other threads look at them and stop() them.

    Args:
        config: what to run.
        sinks: of your own, by name, beside those of config; see pipeline.sinks.sink.OwnSink.
        capacity: how many sources there may be at a time, which come and go: the stream goes on
            without any, until stop(). None: it ends with its sources.
        model: in place of the configured weights.
        engines: loaded from that model, one for each device, in place of the configured ones; two
            streams may share them, and then take turns.
        parts: those that run here; by default all.
    Raises:
        ValueError: bad input; one line.
    """

    def __init__(
        self,
        config: StreamConfig,
        *,
        sinks: Mapping[str, OwnSink] | None = None,
        capacity: int | None = None,
        model: Model | None = None,
        engines: Sequence[Engine] = (),
        parts: tuple[Part, ...] = PARTS,
    ) -> None:
        own_sinks = {name: Adapted(name, sink) for name, sink in (sinks or {}).items()}
        _check_own_sinks(config, own_sinks, parts)
        _check_capacity(config, capacity, parts)
        if engines and model is None:
            raise ConfigError("engines need the model that they were loaded from: pass model=")
        config = _on_devices_of(engines, config)
        self.stats = Stats()
        self._stop = threading.Event()  # ends every stage at once
        self._request = StopRequest(parent_repeats=is_child())
        self._placement = Placement(cuda_devices(config.inference) if "network" in parts else ())
        self.sources = SourceSet(
            stats=self.stats, stop=self._stop, queue=self._frames_queue,
            placement=self._placement, may_be_empty=capacity is not None,
        )  # fmt: skip
        self._config = config
        self._own_sinks = own_sinks
        self._capacity = capacity
        self._parts = parts
        self._publisher: Publisher | None = None
        self._window: Window | None = None
        self._calls_seen = -1  # by all stages, when it was last looked at
        self._moved_at = 0.0
        self._number = next(_stream_numbers)
        # What will come while it runs is live.
        self._live = [_is_live(source) for source in config.sources] or [True]
        self._sink_names = [*_sink_names(config), *own_sinks]
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
            self._add_network(model, engines)
        if "sinks" in parts:
            self._add_sinks()
        self._awaited = Awaited(config.queues, parts, num_queues)

    # --- building ------------------------------------------------------------------------------

    def _add_network(self, model: Model | None, engines: Sequence[Engine]) -> None:
        # Imported here: torch takes seconds and 200 MB, which the other parts do without.
        from pipeline.network import make_network

        config = self._config
        network = make_network(
            config, model, engines=engines, stop=self._stop, placement=self._placement
        )
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
            idle=self._capacity is not None,
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
        if name in self._own_sinks:
            return self._own_sinks[name]
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
            self._publisher = publisher = Publisher(
                config.publisher.endpoint, format=config.publisher.format, session=session,
                status=self.status, num_streams=self._room_for_streams(),
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
        if self._capacity is not None:
            return self._capacity
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
            status=self.status,
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
            ValueError: the name is taken, there is nothing to read, the stream is full (capacity),
                at its end, or cut into processes, or its sources are live and this one is a file;
                one line.
        """
        if self._parts != PARTS:
            raise ConfigError("sources come and go only in a stream that is one process")
        if self._capacity is not None and len(self.sources) >= self._capacity:
            raise ConfigError(f"the stream is full: capacity is {self._capacity} sources")
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
            ValueError: there is none of that name, it is the last one (and the stream was made
                without capacity), or the stream is cut.
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
        """Start the stages, watch them, join them; once. Returns the exit code, as run() above.

        In the main thread Ctrl-C and SIGTERM are a stop().
        """
        with self._request as request, Progress(self.stats, list(self.sources), quiet=quiet):
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

    def stop(self) -> None:
        """End the sources, and let what is under way arrive; a second time: end everything at once.

        Returns at once; run() returns when all is done. From any thread; also before run().
        """
        self._request.ask()

    @property
    def error(self) -> StageError | None:
        """Why the stream ended with an exit code other than 0; the reason is in `__cause__`.

        None where nothing failed so far. Of several failures the first stage's, on a frame's way.
        """
        return next((stage.error for stage in self._all_stages if stage.error is not None), None)

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
            for stage in self._stages:
                stage.let_end()
        if request.seconds is not None:
            if children is not None:
                children.request_stop()
            if "sources" not in self._parts and request.seconds > _DRAIN_SECONDS:
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
        codes = (
            _log_failure(stage.error, is_own=stage.name in self._own_sinks)
            for stage in self._all_stages
            if stage.error is not None
        )
        return max(codes, default=0)

    @property
    def publisher_endpoint(self) -> str | None:
        """Where poses are published, a port that was left open filled in; None: nowhere."""
        return None if self._publisher is None else self._publisher.endpoint

    def status(self) -> Mapping[str, StreamStatus]:
        """How each source does, by name; from any thread."""
        return statuses(self.stats.snapshot())


def _log_failure(error: StageError, *, is_own: bool) -> int:
    """The exit code. A bug deserves its traceback; bad input is one line."""
    if isinstance(error.__cause__, SourceError):
        _log.error("%s", error.__cause__)
        return 2
    is_input = isinstance(error.__cause__, ValueError) and not is_own
    _log.error("%s", error, exc_info=None if is_input else error.__cause__)
    return 1


def _each(work: Callable[[NetOutput], Iterator[Poses]], batch: list[NetOutput]) -> Iterator[Poses]:
    """The results of several messages, one of each GPU, one after the other."""
    for output in batch:
        yield from work(output)


def _check_own_sinks(
    config: StreamConfig, own_sinks: Mapping[str, Adapted], parts: tuple[Part, ...]
) -> None:
    for name in own_sinks:
        if name in _asked(config) or name in ("preprocess", "inference", "poses"):
            raise ConfigError(f"the stream has a {name!r} already; give your sink another name")
    if own_sinks and (config.queues.poses != "inproc" or not {"network", "sinks"} <= set(parts)):
        raise ConfigError(
            "a sink of your own is called in the process that makes the poses; leave "
            "queues.poses at inproc, or subscribe to the publisher from elsewhere"
        )


def _check_capacity(config: StreamConfig, capacity: int | None, parts: tuple[Part, ...]) -> None:
    if capacity is None:
        return
    if parts != PARTS:
        raise ConfigError("sources come and go only in a stream that is one process")
    if capacity < max(1, len(config.sources)):
        raise ConfigError(
            f"capacity must be at least 1 and at least the number of sources "
            f"({len(config.sources)}), got {capacity}"
        )


def _on_devices_of(engines: Sequence[Engine], config: StreamConfig) -> StreamConfig:
    """The configuration, its device that of the engines, where there are some."""
    if not engines:
        return config
    devices = ",".join(engine.device for engine in engines)
    inference = config.inference.model_copy(update={"device": devices})
    return config.model_copy(update={"inference": inference})


def _is_live(source: SourceConfig) -> bool:
    return is_live(source.input, pace=source.pace)


def _policy(*, live: bool) -> Policy:
    return "drop_oldest" if live else "wait"


def _asked(config: StreamConfig) -> dict[str, bool]:
    """The sinks that a configuration can ask for, in the order of their queues: whether it does."""
    return {
        "overlay": config.overlay.path is not None,
        "clean": config.overlay.clean is not None,
        "jsonl": config.recorder.jsonl is not None,
        "openpose": config.recorder.openpose is not None,
        "coco": config.recorder.coco is not None,
        "publisher": config.publisher.endpoint is not None,
        "viewer": config.viewer.show,
        "page": config.page.serve is not None,
    }


def _sink_names(config: StreamConfig) -> list[str]:
    return [name for name, is_asked in _asked(config).items() if is_asked]


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
