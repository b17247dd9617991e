"""Interlaced video -> whole pictures, by FFmpeg's bwdif.

An interlaced frame holds two moments, one in its even lines and one in its odd ones; a moving arm
is a comb. The filter gives one picture for each frame, one frame late. Video that is not interlaced
never meets it.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.error
from av.filter import Graph


class Deinterlacer:
    """Takes decoded frames in order, gives whole ones in the same order."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._layout = (0, 0, "")
        self.is_used = False
        """Whether an interlaced frame has come."""

    def __call__(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """What is ready once this frame has come; None is the end: what was held back."""
        if frame is None:
            yield from self._flushed()
            return
        if not self.is_used and not frame.interlaced_frame:
            yield frame
            return
        self.is_used = True
        layout = (frame.width, frame.height, frame.format.name)
        if self._graph is None or layout != self._layout:
            yield from self._flushed()
            self._graph, self._layout = _graph(frame), layout
        self._graph.push(frame)
        yield from _ready(self._graph)

    def _flushed(self) -> Iterator[av.VideoFrame]:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.push(None)
            yield from _ready(graph)


def _graph(frame: av.VideoFrame) -> Graph:
    """Frames that are not flagged pass unchanged (deint=interlaced)."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph


def _ready(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (BlockingIOError, av.error.EOFError):
            return
        yield frame
