"""Which stage runs where: builds the stages, starts them, watches them, stops them all.

    sources --frames--> network --poses--> sinks          three parts, joined by two queues

Parts that no cut keeps apart share this process; the others are child processes (processes.py), or
are started by hand with `--part`. What a user can get wrong is found in the main thread, before the
first stage starts.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.config import ConfigError, StreamConfig
from pipeline.decoder import Source, SourceError, SourceSettings, is_live, open_source
from pipeline.messages import NetOutput, Poses
from pipeline.overlay import OverlayVideo
from pipeline.processes import ROOT, Children, Part, endpoint, is_orphan
from pipeline.progress import Progress, start_logging
from pipeline.publisher import Publisher
from pipeline.queues import Policy, Queue
from pipeline.recorder import CocoResults, JsonLines, OpenPoseFolder
from pipeline.schema import StreamStatus, new_session
from pipeline.stage import Stage
from pipeline.stats import Stats
from pipeline.viewer import Window

if TYPE_CHECKING:
    from nets.checkpoints import Model

DEFAULT_WEIGHTS = ROOT / "weights" / "higher_mobile.safetensors"

_MAX_BATCH = 8
_DRAIN_SECONDS = 10.0  # after a request to stop: how long a part without sources waits for the end
_SILENCE_SECONDS = 3.0  # after which a stream with a failed child counts as stuck
_TICK_SECONDS = 0.1

_log = logging.getLogger(__name__)
_stream_numbers = count()


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
        self.sources: list[Source] = []
        self._config = config
        self._parts = parts
        self._stop = threading.Event()  # ends every stage at once
        self._window: Window | None = None
        self._calls_seen = -1  # by all stages, when it was last looked at
        self._moved_at = 0.0
        self._number = next(_stream_numbers)
        self._live = [is_live(source.input, pace=source.pace) for source in config.sources]
        self._sink_names = _sink_names(config)
        self._stages: list[Stage] = []
        _check_outputs(config)
        # Sinks last: they empty files, which bad weights must not cost anybody.
        if "sources" in parts:
            self._add_sources()
        if "network" in parts:
            self._add_network(model)
        if "sinks" in parts:
            self._add_sinks()

    # --- building ------------------------------------------------------------------------------

    def _add_sources(self) -> None:
        for i, config in enumerate(self._config.sources):
            settings = SourceSettings(
                pace=config.pace,
                loop=config.loop,
                max_frames=config.max_frames,
                transport=config.transport,
            )
            source = open_source(config.input, name=config.name, settings=settings)
            source.name = _free_name(source.name, [other.name for other in self.sources])
            self.sources.append(source)
            self.stats.watch_source(source.name, partial(getattr, source, "state"))
            # Not fatal: the others go on, and what this one gave is finished.
            self._add(
                f"decoder:{source.name}",
                frames=source.frames,
                outputs=[self._frames_queue(i)],
                fatal=False,
            )

    def _add_network(self, model: Model | None) -> None:
        # Imported here: torch takes seconds and 200 MB, which the other parts do without.
        from kernels import decode as decode_kernels
        from kernels import preprocess as preprocess_kernels
        from nets.checkpoints import load_model
        from nets.engines import load_engine
        from pipeline.inference import Inference
        from pipeline.poses import FindPoses, decode_settings
        from pipeline.preprocess import Preprocess

        config = self._config
        model = model or load_model(config.weights or DEFAULT_WEIGHTS)
        engine = load_engine(
            model,
            engine=config.inference.engine,
            device=config.inference.device,
            precision=config.inference.precision,
            threads=config.inference.threads,
        )
        _log.info("kernels: loading (compiled once for each machine, which takes half a minute)")
        preprocess_kernels.warm_up()
        decode_kernels.warm_up()
        size = config.preprocess.input_size or model.input_size
        multiple = config.preprocess.size_multiple or model.size_multiple
        _log.info("network: %s, short side %d, sides multiples of %d", model.name, size, multiple)
        preprocess = Preprocess(
            input_size=size,
            mean=model.mean,
            std=model.std,
            size_multiple=multiple,
            canvas=config.preprocess.canvas,
            prefilter=config.preprocess.prefilter,
            max_long_side=config.preprocess.max_long_side,
        )
        flip_order = model.skeleton.flip_order if config.inference.flip_test else None
        inference = Inference(engine, flip_order=flip_order)
        poses = _Counted(
            FindPoses(model.skeleton, decode_settings(config.poses, model)), self.stats
        )
        frames = [self._frames_queue(i) for i in range(len(config.sources))]
        # Live, a frame is taken only when the network is free, so that it is the newest.
        inputs = Queue(f"inproc://{self._number}-inputs", ahead=not any(self._live))
        outputs = Queue(f"inproc://{self._number}-outputs")
        self._add(
            "preprocess", preprocess, inputs=frames, outputs=[inputs],
            batch=min(len(frames), _MAX_BATCH),
        )  # fmt: skip
        self._add("inference", inference, inputs=[inputs], outputs=[outputs])
        sinks = [self._poses_queue(j) for j in range(len(self._sink_names))]
        self._add("poses", poses, inputs=[outputs], outputs=sinks)

    def _add_sinks(self) -> None:
        session = new_session()
        with ExitStack() as opened:  # if one cannot be opened, those before it are closed
            for j, name in enumerate(self._sink_names):
                sink = opened.enter_context(closing(self._sink(name, session)))
                work: Any = sink
                if j == 0 and "network" not in self._parts:
                    work = _CountedSink(sink, self.stats)
                self._add(name, work, inputs=[self._poses_queue(j)], close=sink.close)
            opened.pop_all()

    def _sink(self, name: str, session: str) -> Sink:
        config = self._config
        per_source = len(config.sources) > 1
        overlay, recorder = config.overlay, config.recorder
        min_score = overlay.min_keypoint_score
        if name == "overlay":
            assert overlay.path is not None
            return OverlayVideo(
                overlay.path, per_source=per_source, min_keypoint_score=min_score,
                on_black=not overlay.picture,
            )  # fmt: skip
        if name == "viewer":
            self._window = Window(min_keypoint_score=min_score, on_black=not overlay.picture)
            return self._window
        if name == "publisher":
            assert config.publisher.endpoint is not None
            return Publisher(
                config.publisher.endpoint, format=config.publisher.format, session=session,
                status=self._status, num_streams=len(config.sources),
            )  # fmt: skip
        if name == "jsonl":
            assert recorder.jsonl is not None
            return JsonLines(recorder.jsonl, session=session)
        if name == "openpose":
            assert recorder.openpose is not None
            return OpenPoseFolder(recorder.openpose, per_source=per_source)
        assert recorder.coco is not None
        return CocoResults(recorder.coco, per_source=per_source)

    def _add(self, name: str, work: Any = None, **arguments: Any) -> None:
        self._stages.append(Stage(name, work, stats=self.stats, stop=self._stop, **arguments))

    def _frames_queue(self, i: int) -> Queue:
        return Queue(
            endpoint(self._config.queues.frames, f"{self._number}-frames", i),
            policy=_policy(live=self._live[i]),
            ahead=not self._live[i],
        )

    def _poses_queue(self, j: int) -> Queue:
        return Queue(
            endpoint(self._config.queues.poses, f"{self._number}-poses", j),
            policy=_policy(live=all(self._live)),
            pixels=_draws(self._sink_names[j], self._config),
        )

    # --- running -------------------------------------------------------------------------------

    def run(self, children: Children | None = None, *, quiet: bool = True) -> int:
        """Start the stages, watch them, join them. Returns the exit code, as run() above."""
        with _StopRequest() as request, Progress(self.stats, self.sources, quiet=quiet):
            for stage in self._stages:
                stage.start()
            react = partial(self._react, request, children)
            while any(stage.is_alive() for stage in self._stages):
                react()
                self._wait(react, request)
            for stage in self._stages:
                stage.join()
        if children is not None and self._stop.is_set():
            children.stop_now()
        return max(self._exit_code(), 0 if children is None else children.wait())

    def _react(self, request: _StopRequest, children: Children | None) -> None:
        """A first request ends the sources, and the rest follows; a second one ends everything."""
        if request.seconds is not None or self._stop.is_set():
            for source in self.sources:  # each may be waiting for its camera
                source.stop()
        if request.seconds is not None:
            if children is not None:
                children.request_stop()
            if not self.sources and request.seconds > _DRAIN_SECONDS:
                _log.warning("no end of stream came after %.0f s: stopping", _DRAIN_SECONDS)
                self._stop.set()
        if request.is_urgent or is_orphan() or self._is_stuck(children):
            self._stop.set()

    def _is_stuck(self, children: Children | None) -> bool:
        """Whether a child has failed and nothing moves, or never did, in this process."""
        if children is None or children.exit_code == 0:
            return False
        calls = sum(stage["calls"] for stage in self.stats.snapshot()["stages"].values())
        if calls == 0:
            return True
        if calls != self._calls_seen:
            self._calls_seen, self._moved_at = calls, time.monotonic()
        return time.monotonic() - self._moved_at > _SILENCE_SECONDS

    def _wait(self, react: Callable[[], None], request: _StopRequest) -> None:
        if self._window is None:
            time.sleep(_TICK_SECONDS)
        else:
            self._window.run(request.event, meanwhile=react)  # till its end or the user's
            self._window = None

    def _exit_code(self) -> int:
        errors = [stage.error for stage in self._stages if stage.error is not None]
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
        return {
            name: StreamStatus(
                state=source["state"] or "running",
                fps=source["fps"],
                dropped=source["dropped"],
                latency_ms=source["latency_ms"],
            )
            for name, source in self.stats.snapshot()["sources"].items()
        }


class _StopRequest:
    """Ctrl-C, SIGTERM and the viewer's window, in a `with` block of the main thread.

    Outside the main thread (tests) signals are left alone.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        """Set by the first request."""
        self._since: float | None = None
        self._num_signals = 0
        self._former: dict[int, Any] = {}

    @property
    def seconds(self) -> float | None:
        """Since the first request; None before it."""
        if self._since is None and self.event.is_set():
            self._since = time.monotonic()
        return None if self._since is None else time.monotonic() - self._since

    @property
    def is_urgent(self) -> bool:
        """Whether it was said twice."""
        return self._num_signals > 1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._num_signals += 1
        self.event.set()


@dataclass(frozen=True)
class _Counted:
    """FindPoses, its results counted."""

    find_poses: Callable[[NetOutput], Iterator[Poses]]
    stats: Stats

    def __call__(self, output: NetOutput) -> Iterator[Poses]:
        for poses in self.find_poses(output):
            _count(poses, self.stats)
            yield poses


@dataclass(frozen=True)
class _CountedSink:
    """A sink that counts what arrives, for a process in which poses are not made."""

    sink: Sink
    stats: Stats

    def __call__(self, poses: Poses) -> None:
        _count(poses, self.stats)
        self.sink(poses)


def _count(poses: Poses, stats: Stats) -> None:
    stats.finished(poses.frame.source, latency_ms=poses.latency_ms, people=len(poses.scores))


def _policy(*, live: bool) -> Policy:
    return "drop_oldest" if live else "wait"


def _sink_names(config: StreamConfig) -> list[str]:
    """The sinks that a configuration asks for, in the order of their queues."""
    asked = {
        "overlay": config.overlay.path is not None,
        "jsonl": config.recorder.jsonl is not None,
        "openpose": config.recorder.openpose is not None,
        "coco": config.recorder.coco is not None,
        "publisher": config.publisher.endpoint is not None,
        "viewer": config.viewer.show,
    }
    return [name for name, is_asked in asked.items() if is_asked]


def _draws(sink: str, config: StreamConfig) -> bool:
    return sink in ("overlay", "viewer") and config.overlay.picture


def _check_outputs(config: StreamConfig) -> None:
    """No output may replace an input, or another output."""
    recorder = config.recorder
    asked = (config.overlay.path, recorder.jsonl, recorder.openpose, recorder.coco)
    outputs = [Path(path).resolve() for path in asked if path is not None and path != "-"]
    inputs = {Path(source.input).resolve() for source in config.sources}
    for i, path in enumerate(outputs):
        if path in inputs:
            raise ConfigError(f"{path} is an input; give the output another name")
        if path in outputs[:i]:
            raise ConfigError(f"two outputs would write {path}; give them different names")


def _free_name(wanted: str, taken: Collection[str]) -> str:
    """The name, or with -2, -3, ... where it is taken."""
    numbered = (f"{wanted}-{number}" for number in count(2))
    return wanted if wanted not in taken else next(n for n in numbered if n not in taken)
