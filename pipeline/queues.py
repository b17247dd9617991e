"""The queues of a stream on paper: who sends, who receives, what happens to a slow receiver.

    name     from        to          a slow receiver                            cut by
    frames   decoder     preprocess  is waited for; of live sources it misses   queues.frames
                                     frames, and takes the newest
    inputs   preprocess  inference   is waited for                              -
    outputs  inference   poses       is waited for                              -
    poses    poses       each sink   is waited for, unless all sources are      queues.poses
                                     live: then it misses frames

A queue that is cut leads to another process. Stages make their ends in runtime/queues/.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pipeline.config import SourceConfig, StreamConfig
from pipeline.runtime.processes import endpoint
from pipeline.runtime.queues.queue import Queue
from pipeline.sources.open import is_live, settings_of
from pipeline.sources.web import is_web

_stream_numbers = count()  # tell the inproc queues of one process apart


class StreamQueues:
    """Those of one stream.

    Args:
        config: of the stream.
        sinks: for each sink, in order: whether it needs pixels.
    """

    def __init__(self, config: StreamConfig, sinks: Sequence[bool]) -> None:
        self._cuts = config.queues
        self._sinks = sinks
        self._number = next(_stream_numbers)
        self.live = [source_is_live(source) for source in config.sources] or [True]
        """Of each source; where there is none yet, those that come will be live."""
        self.counts = {"frames": len(config.sources), "poses": len(sinks)}
        """How many queues each cut has at the start."""

    def frames(self, i: int, source: SourceConfig) -> Queue:
        """From the i-th source."""
        live = source_is_live(source)
        return Queue(
            endpoint(self._cuts.frames, f"{self._number}-frames", i),
            policy="drop_oldest" if live else "wait",
            # Inproc the newest frame is found all the same, and those of all cameras at once.
            ahead=not live or self._cuts.frames == "inproc",
        )

    def inputs(self, device: int) -> Queue:
        """To the inference of a device. Live, a frame is taken only when the network is free, so
        that it is the newest; on a GPU when the upload of the next batch may begin."""
        return Queue(f"inproc://{self._number}-inputs-{device}", ahead=not any(self.live))

    def outputs(self, device: int) -> Queue:
        """From the inference of a device."""
        return Queue(f"inproc://{self._number}-outputs-{device}")

    def poses(self) -> list[Queue]:
        """One to each sink."""
        return [
            Queue(
                endpoint(self._cuts.poses, f"{self._number}-poses", j),
                policy="drop_oldest" if all(self.live) else "wait",
                pixels=needs_pixels,
            )
            for j, needs_pixels in enumerate(self._sinks)
        ]


def source_is_live(source: SourceConfig) -> bool:
    """Whether frames of it may be dropped."""
    return is_live(source.input, settings_of(source))


def told_apart(source: SourceConfig) -> SourceConfig:
    """The same source; one that only its web server can tell is asked, once, and says `live`."""
    if source.live is not None or source.pace or not is_web(source.input):
        return source
    return source.model_copy(update={"live": source_is_live(source)})
