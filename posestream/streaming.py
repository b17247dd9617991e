"""Poses of a video, camera or URL: as an iterator, or as a stream with sinks of one's own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from common.settings import ConfigError
from pipeline import messages
from pipeline import stream as pipeline_stream
from pipeline.config import StreamConfig, load_config
from pipeline.options import config_of_options
from pipeline.sources.source import SourceError
from posestream.poses import Poses

Source = str | int | PathLike[str]
Sink = Callable[[Poses], object]

_SINK = "python"


class Stream(pipeline_stream.Stream):
    """A stream with sinks of your own beside those that the configuration asks for.

    run() returns when the sources have ended, or after stop() from another thread.

    Args:
        config: a YAML file, its content as a dict, or a StreamConfig.
        sinks: callables by name, each called with every Poses in a thread of its own. `close()` and
            `forget_source(name)` are called where a sink has them. What one raises ends the stream.
        more: as pipeline.stream.Stream takes it: capacity, model, engines.
    Raises:
        ValueError: bad input; one line.
    """

    def __init__(
        self,
        config: StreamConfig | Mapping[str, Any] | str | PathLike[str],
        *,
        sinks: Mapping[str, Sink] | None = None,
        **more: Any,
    ) -> None:
        own = {name: _OwnSink(name, sink) for name, sink in (sinks or {}).items()}
        super().__init__(_checked(_config(config)), sinks=own, **more)


class _OwnSink:
    """A sink of the user's, who gets the Poses of this package."""

    def __init__(self, name: str, sink: Sink) -> None:
        if not callable(sink):
            raise ConfigError(f"sink {name!r} must be something to call, got {sink!r}")
        self._sink = sink
        self.needs_pixels = getattr(sink, "needs_pixels", True)

    def __call__(self, found: messages.Poses) -> None:
        self._sink(Poses(found))

    def forget_source(self, name: str) -> None:
        getattr(self._sink, "forget_source", lambda _: None)(name)

    def close(self) -> None:
        getattr(self._sink, "close", lambda: None)()


def _config(config: StreamConfig | Mapping[str, Any] | str | PathLike[str]) -> StreamConfig:
    if isinstance(config, StreamConfig):
        return config
    if not isinstance(config, Mapping):
        return load_config(Path(config))
    settings = dict(config)
    sources = settings.pop("sources", [])
    given = sources if isinstance(sources, list | tuple) else [sources]
    return load_config(sources=given, settings=settings)


def _checked(config: StreamConfig) -> StreamConfig:
    """What only run_stream.py can do: it has the main thread, and starts processes."""
    if config.viewer.show:
        raise ConfigError(
            "a window needs the main thread and run_stream.py --show; here, use "
            "cv2.imshow('poses', poses.draw())"
        )
    if config.queues != type(config.queues)():
        raise ConfigError("a stream in Python is one process; leave queues at inproc")
    return config


def stream(
    source: Source | Sequence[Source] = (),
    *,
    config: str | PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Poses]:
    """The poses of every frame, while the stages work ahead in threads of their own.

    Of a file every frame comes, in order. From a camera or URL the newest one comes: what a slow
    loop misses is dropped, and `poses.frame.index` has gaps. Such a source reconnects for ever.
    Leaving the loop ends the stream in order: what it records is finished.

    Args:
        source: whatever run_stream.py takes: a video or image file, a folder of images, a camera
            index, an rtsp/http URL, "demo", "testsrc"; or several of them, told apart by
            `poses.frame.source`.
        config: YAML file with settings, as run_stream.py --config.
        settings: by their names in pipeline/config.py, as run_stream.py --set.
        options: those of run_stream.py, by the same names: max_frames=100, device="cpu",
            save="poses.mp4", no_track=True.
    Raises:
        ValueError: bad input, at once; or, after the last frame there was, that a source could not
            be read to its end.
        pipeline.runtime.stage.StageError: a stage failed; the reason is in its `__cause__`.
    """
    several = [source] if isinstance(source, str | int | PathLike) else source
    complete = config_of_options(
        options,
        path=None if config is None else Path(config),
        sources=[str(each) for each in several],
        settings=settings,
    )
    if not complete.sources:
        raise ConfigError("no source given; try: posestream.stream('demo')")
    handover = _Handover()
    return _poses_of(Stream(complete, sinks={_SINK: handover}), handover)


def _poses_of(running: Stream, handover: _Handover) -> Iterator[Poses]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            running.run()
        except BaseException as error:  # for the loop's thread to raise
            failures.append(error)
        finally:
            handover.end()

    thread = threading.Thread(target=run, name="posestream", daemon=True)
    thread.start()
    try:
        yield from handover
    finally:
        handover.leave()
        running.stop()
        thread.join()
    if failures:
        raise failures[0]
    if running.error is not None:
        cause = running.error.__cause__
        raise cause if isinstance(cause, SourceError) else running.error


class _Handover:
    """From the sink's thread to that of the loop, one by one.

    The sink returns when the loop asks for more, and only then takes the next poses off its queue.
    So a slow loop gets the newest poses of a camera, not those that waited for it.
    """

    def __init__(self) -> None:
        self._poses: queue.SimpleQueue[Poses | None] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._left = False

    def __call__(self, poses: Poses) -> None:
        if not self._left:
            self._poses.put(poses)
            self._wanted.acquire()

    def __iter__(self) -> Iterator[Poses]:
        while (poses := self._poses.get()) is not None:
            yield poses
            self._wanted.release()

    def end(self) -> None:
        """No more will come."""
        self._poses.put(None)

    def leave(self) -> None:
        """Nobody will ask for more."""
        self._left = True
        self._wanted.release()
