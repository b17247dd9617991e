"""A stream: its stages built in the order of a frame's way, started, watched, stopped together.

    sources --frames--> network --poses--> sinks          three parts, joined by two queues

Parts that no cut keeps apart share this process; the others are child processes (processes.py), or
are started by hand with `--part`. What a user can get wrong is found in the main thread, before the
first stage starts. stages.py makes the stages, queues.py says what joins them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from common.settings import ConfigError
from pipeline.config import SourceConfig, StreamConfig
from pipeline.gpu.placement import Placement, cuda_devices
from pipeline.queues import StreamQueues, source_is_live, told_apart
from pipeline.runtime.load.contract import LoadWatch, check_contract
from pipeline.runtime.meeting import Awaited, check_addresses
from pipeline.runtime.processes import PARTS, Children, Part, is_child, is_orphan
from pipeline.runtime.progress import ProgressLine, start_logging
from pipeline.runtime.source_set import SourceSet
from pipeline.runtime.stage import Stage, StageError
from pipeline.runtime.stats import Stats
from pipeline.runtime.status import StreamStatus, statuses
from pipeline.runtime.stop import StopRequest
from pipeline.sinks.schema import new_session
from pipeline.sinks.sink import Adapted, NeedsMainThread, OwnSink, Sink
from pipeline.sinks.table import ROWS, SinkContext, asked_rows, check_outputs
from pipeline.sources.source import Source, SourceError
from pipeline.stages import Shared, network_stages, sink_stages

if TYPE_CHECKING:
    from nets.checkpoints import Model
    from nets.engines.engine import Engine

_DRAIN_SECONDS = 10.0  # after a request to stop: how long a part without sources waits for the end
_SILENCE_SECONDS = 3.0  # after which a stream with a failed child counts as stuck
_TICK_SECONDS = 0.1
_STREAMS_OF_A_PAGE = 64  # as many as it may add without subscribers losing messages

_log = logging.getLogger(__name__)


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
    children = Children(_told_apart(config), part)
    stream = Stream(children.config, parts=children.parts)
    with children:
        return stream.run(children, quiet=quiet)


class Stream:
    """The stages of this process: run() them, from other threads look at them and stop() them.

    Args:
        config: what to run.
        sources: of your own, by the word that stands for them as `input` in config.
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
        sources: Mapping[str, Source] | None = None,
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
        self._config = config = _told_apart(_on_devices_of(engines, config))
        self._own_sinks, self._capacity, self._parts = own_sinks, capacity, parts
        self._rows = asked_rows(config)
        needs_pixels = [row.needs_pixels(config) for row in self._rows]
        self._queues = queues = StreamQueues(config, [*needs_pixels, *(False for _ in own_sinks)])
        check_contract(config.contract, queues.live)
        check_addresses(config.queues, parts, queues.counts)

        self.stats = Stats()
        self._stop = threading.Event()  # ends every stage at once
        self._request = StopRequest(parent_repeats=is_child())
        self._placement = Placement(cuda_devices(config.inference) if "network" in parts else ())
        self.sources = SourceSet(
            stats=self.stats, stop=self._stop, queue=queues.frames, placement=self._placement,
            may_be_empty=capacity is not None, opened=sources,
        )  # fmt: skip
        self._stages: list[Stage] = []  # without those of the sources
        self._load_watch: LoadWatch | None = None
        self._sinks: dict[str, Sink] = {}
        self._window_is_over = False
        self._calls_seen = -1  # by all stages, when it was last looked at
        self._moved_at = 0.0
        self._build(model, engines)
        self._awaited = Awaited(config.queues, parts, queues.counts)

    def _build(self, model: Model | None, engines: Sequence[Engine]) -> None:
        """Sources, network, sinks: in the order of a frame's way."""
        if "sources" in self._parts:
            for source in self._config.sources:
                self.sources.add(source)
        context = self._sink_context()
        check_outputs(context)
        shared = Shared(
            self._config, self._queues, self._placement, self.sources.departed, self.stats,
            self._stop,
        )  # fmt: skip
        if "network" in self._parts:
            self._stages, self._load_watch = network_stages(
                shared, model, engines, idle=self._capacity is not None
            )
        # Sinks last: what else is refused should not have been seen at a port meanwhile.
        if "sinks" in self._parts:
            makers = [*self._makers(context), *_as_they_are(self._own_sinks)]
            counts = "network" not in self._parts
            stages, self._sinks = sink_stages(shared, makers, counts=counts)
            self._stages += stages

    def _makers(self, context: SinkContext) -> Iterator[tuple[str, Callable[[], Sink]]]:
        for row in self._rows:
            yield row.name, partial(row.make, row.value(self._config), context)

    def _sink_context(self) -> SinkContext:
        config, can_change = self._config, self._parts == PARTS
        max_streams = self._capacity or max(
            # The publisher's queues cannot grow when the page adds sources.
            len(config.sources), _STREAMS_OF_A_PAGE if can_change and config.page.serve else 1,
        )  # fmt: skip
        return SinkContext(
            config=config,
            session=new_session(),
            names=[source.name for source in self.sources],
            any_live=any(self._queues.live),
            per_source=len(config.sources) > 1 or self._capacity is not None,
            max_streams=max_streams,
            stats=self.stats,
            status=self.status,
            stages=lambda: {stage.name: stage.error is None for stage in self._stages},
            add_source=self.add_source if can_change else None,
            remove_source=self.remove_source if can_change else None,
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
        config = told_apart(config)
        if all(self._queues.live) and not source_is_live(config):
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
            for stage in self._stages:
                stage.forget_source(name)

    # --- running -------------------------------------------------------------------------------

    def run(self, children: Children | None = None, *, quiet: bool = True) -> int:
        """Start the stages, watch them, join them; once. Returns the exit code, as run() above.

        In the main thread Ctrl-C and SIGTERM are a stop().
        """
        with self._request as request, ProgressLine(self.stats, list(self.sources), quiet=quiet):
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
        windows = [sink for sink in self._sinks.values() if isinstance(sink, NeedsMainThread)]
        if windows and not self._window_is_over:
            windows[0].run(request.event, meanwhile=react)  # till its end or the user's
            self._window_is_over = True
        else:
            time.sleep(_TICK_SECONDS)

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
        return getattr(self._sinks.get("publisher"), "endpoint", None)

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


def _check_own_sinks(
    config: StreamConfig, own_sinks: Mapping[str, Adapted], parts: tuple[Part, ...]
) -> None:
    for name in own_sinks:
        if name in {row.name for row in ROWS} | {"preprocess", "inference", "poses"}:
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


def _told_apart(config: StreamConfig) -> StreamConfig:
    """Once for all processes and queues: a server that is asked twice may answer twice."""
    sources = tuple(told_apart(source) for source in config.sources)
    return config.model_copy(update={"sources": sources})


def _on_devices_of(engines: Sequence[Engine], config: StreamConfig) -> StreamConfig:
    """The configuration, its device that of the engines, where there are some."""
    if not engines:
        return config
    devices = ",".join(engine.device for engine in engines)
    inference = config.inference.model_copy(update={"device": devices})
    return config.model_copy(update={"inference": inference})


def _as_they_are(sinks: Mapping[str, Sink]) -> Iterator[tuple[str, Callable[[], Sink]]]:
    for name, sink in sinks.items():
        yield name, partial(_itself, sink)


def _itself(sink: Sink) -> Sink:
    return sink
