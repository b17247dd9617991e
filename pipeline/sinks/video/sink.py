"""The sink that makes videos: every source's pictures, drawn upon or as they came, in files.

    Poses -> picture (overlay.py, or the frame's own) -> Recording (segments.py) of its source

Knows nothing of how pictures are drawn or encoded.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pipeline.messages import Poses
from pipeline.sinks.outputs import Claims, OutputNames, check_output_file
from pipeline.sinks.overlay import Draw
from pipeline.sinks.video.segment_index import SegmentIndex
from pipeline.sinks.video.segments import Recording
from pipeline.sinks.video.video_writer import VIDEO_SUFFIXES


def index_path(path: Path) -> Path:
    """Where the segments of a video are listed."""
    return path.with_name(path.name + ".jsonl")


class VideoSink:
    """The sink of `--save` and `--save-clean`."""

    def __init__(
        self,
        path: Path,
        draw: Draw,
        *,
        per_source: bool = False,
        segment_s: float | None = None,
        keep_gb: float | None = None,
        keep_hours: float | None = None,
    ) -> None:
        """Check the path; files are opened with the first frame, whose size they take.

        Args:
            path: .mp4 or .mkv; a file that is there will be replaced, but not by a live source;
                segments are added to.
            draw: makes the pictures, for example overlay.drawn_picture.
            per_source: put each source's name before the suffix; for more than one source.
            segment_s: seconds after which a new file begins, the UTC time in its name, and listed
                in an index: the path with `.jsonl` behind. None: see Recording.
            keep_gb, keep_hours: see SegmentIndex.
        Raises:
            ValueError: the file cannot be written there, or is by another stream.
        """
        check_output_file(path, suffixes=VIDEO_SUFFIXES)
        self._draw = draw
        self._names = OutputNames(path, per_source=per_source)
        self._segment_s = segment_s
        self._index: SegmentIndex | None = None
        if segment_s is not None:
            check_output_file(index_path(path))
            self._index = SegmentIndex(index_path(path), keep_gb=keep_gb, keep_hours=keep_hours)
        self._recordings: dict[str, Recording] = {}
        self._claims = Claims()
        if not per_source and segment_s is None:  # names of segments are always new
            self._claims.take(path)

    def __call__(self, poses: Poses) -> None:
        source = poses.frame.source
        recording = self._recordings.get(source)
        if recording is None:
            path = self._names.for_source(source)
            if self._segment_s is None:
                self._claims.take(path)
            recording = Recording(path, segment_s=self._segment_s, index=self._index)
            self._recordings[source] = recording
        recording.write(self._draw(poses), poses.frame)
        for other in self._recordings.values():  # of cameras that are down, or were removed
            other.close_if_silent()

    def forget_source(self, name: str) -> None:
        """Finish the file of a source that has gone; should it come back, it gets another."""
        recording = self._recordings.pop(name, None)
        self._names.forget_source(name)
        if recording is not None:
            recording.close()

    def unwritten(self) -> dict[str, dict[str, int]]:
        """Pictures that are in no file, by source and reason; from any thread."""
        counts = {name: dict(entry.unwritten) for name, entry in self._recordings.copy().items()}
        return {name: count for name, count in counts.items() if count}

    def close(self) -> None:
        """Finish every file, also where finishing another one failed."""
        with ExitStack() as closing:
            closing.callback(self._claims.close)
            for recording in self._recordings.values():
                closing.callback(recording.close)
