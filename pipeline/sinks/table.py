"""All sinks: what asks for each, what it writes, whether it gets pixels, how it is made.

A new sink is a file in this room, a row here and the line of its setting in pipeline/config.py.
The command line, the output checks, the queues and the stages follow from the row.

All sinks share one rule of when they wait: of files nothing is lost, so the stream waits for the
slowest sink; where all sources are live, a sink that is slow misses frames (pipeline/queues.py).

Sinks are imported where they are made: --help answers at once, and a process imports only the
libraries of the sinks that it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipeline.config import SourceConfig, StreamConfig
    from pipeline.runtime.stats import Stats
    from pipeline.runtime.status import StreamStatus
    from pipeline.sinks.overlay import Draw
    from pipeline.sinks.sink import Sink

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SinkContext:
    """What a sink may know of its stream, and ask of it. Callables may be called by any thread."""

    config: StreamConfig
    session: str
    """Tells this run from others; shared by all sinks."""
    names: Sequence[str]
    """Of the sources, as far as this process knows them."""
    any_live: bool
    """Whether some source is live: what it showed before cannot be recorded again."""
    per_source: bool
    """Whether there are, or may be, several sources."""
    max_streams: int
    """How many sources there may be at a time."""
    stats: Stats
    status: Callable[[], Mapping[str, StreamStatus]]
    """How each source does, by name."""
    stages: Callable[[], Mapping[str, bool]]
    """Whether each stage that the stream cannot do without is well, by name."""
    add_source: Callable[[SourceConfig], str] | None
    """None: sources of this stream do not come and go."""
    remove_source: Callable[[str], None] | None

    @cached_property
    def draw(self) -> Draw:
        """How poses are drawn; where several sinks show the same, each picture is drawn once."""
        from pipeline.sinks.overlay import SharedPictures, drawn_picture

        overlay = self.config.overlay
        draw: Draw = partial(
            drawn_picture, min_keypoint_score=overlay.min_keypoint_score, colors=overlay.colors,
            on_black=self.config.privacy or not overlay.picture, smoothed=overlay.smoothed,
        )  # fmt: skip
        is_shared = sum(row.pixels == "drawn" for row in asked_rows(self.config)) > 1
        return SharedPictures(draw) if is_shared else draw


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the command line that sets a setting."""

    flag: str
    setting: str
    """By its dotted name."""
    metavar: str | None
    """None: a switch."""
    help: str
    type: Callable[[str], Any] = str

    @property
    def dest(self) -> str:
        """argparse's name for it."""
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class SinkRow:
    """One sink."""

    name: str
    """Of the sink and its stage."""
    options: tuple[Option, ...]
    """The setting of the first one asks for the sink; its value goes to `make` and `outputs`."""
    make: Callable[[Any, SinkContext], Sink]
    """Raises ValueError, one line, where the sink cannot begin; files change with the first Poses.
    """
    outputs: Callable[[Any, SinkContext], list[Path]]
    """The files and folders that it will write, as far as they are known."""
    pixels: Literal["none", "drawn", "always"] = "none"
    """drawn: of the picture that is drawn on, which may be black. Never with `privacy`."""

    def value(self, config: StreamConfig) -> Any:
        """Of the setting that asks for it; None or False: it is not asked for."""
        return attrgetter(self.options[0].setting)(config)

    def needs_pixels(self, config: StreamConfig) -> bool:
        if config.privacy or self.pixels == "none":
            return False
        return self.pixels == "always" or config.overlay.picture


def asked_rows(config: StreamConfig) -> list[SinkRow]:
    """The sinks that a configuration asks for, in the order of their queues."""
    return [row for row in ROWS if row.value(config) not in (None, False)]


def check_outputs(context: SinkContext) -> None:
    """Make sure that no output replaces an input or another output, else ValueError."""
    config = context.config
    inputs = {Path(source.input).resolve() for source in config.sources}
    inputs |= {Path(config.weights).resolve()} if config.weights is not None else set()
    taken: set[Path] = set()
    for row in asked_rows(config):
        for output in row.outputs(row.value(config), context):
            path = output.resolve()
            if path in inputs:
                raise ValueError(f"{path} is an input; give the output another name")
            if path in taken:
                raise ValueError(f"two outputs would write {path}; give them different names")
            taken.add(path)


# --- what they write -----------------------------------------------------------------------------


def _nothing(value: object, context: SinkContext) -> list[Path]:
    return []


def _one_path(value: str | Path, context: SinkContext) -> list[Path]:
    return [] if value == "-" else [Path(value)]


def _path_of_each_source(path: Path, context: SinkContext) -> list[Path]:
    from pipeline.sinks.outputs import OutputNames

    names = OutputNames(path, per_source=context.per_source)
    return [names.for_source(name) for name in context.names] or [path]


def _videos(path: Path, context: SinkContext) -> list[Path]:
    from pipeline.sinks.video.sink import index_path

    has_index = context.config.video.segment_s is not None
    return _path_of_each_source(path, context) + ([index_path(path)] if has_index else [])


# --- how they are made ---------------------------------------------------------------------------


def _overlay(path: Path, context: SinkContext) -> Sink:
    return _video(path, context.draw, context)


def _clean(path: Path, context: SinkContext) -> Sink:
    from pipeline.sinks.overlay import picture

    return _video(path, picture, context)


def _video(path: Path, draw: Draw, context: SinkContext) -> Sink:
    from pipeline.sinks.pictures import PictureSink, is_for_pictures
    from pipeline.sinks.video.sink import VideoSink

    if is_for_pictures(path):
        return PictureSink(path, draw, per_source=context.per_source)
    video = context.config.video
    return VideoSink(
        path, draw, per_source=context.per_source, segment_s=video.segment_s,
        keep_gb=video.keep_gb, keep_hours=video.keep_hours,
    )  # fmt: skip


def _jsonl(path: str, context: SinkContext) -> Sink:
    from pipeline.sinks.files import JsonLines

    return JsonLines(path, session=context.session, live=context.any_live)


def _openpose(folder: Path, context: SinkContext) -> Sink:
    from pipeline.sinks.files import OpenPoseFolder

    return OpenPoseFolder(folder, per_source=context.per_source, live=context.any_live)


def _coco(path: Path, context: SinkContext) -> Sink:
    from pipeline.sinks.files import CocoResults

    return CocoResults(
        path, ids_from=context.config.recorder.coco_ids, per_source=context.per_source,
        live=context.any_live,
    )  # fmt: skip


def _csv(path: Path, context: SinkContext) -> Sink:
    from pipeline.sinks.tables import CsvTable

    rows_of = context.config.recorder.rows_of
    return CsvTable(path, session=context.session, rows_of=rows_of, live=context.any_live)


def _parquet(folder: Path, context: SinkContext) -> Sink:
    from pipeline.sinks.tables import ParquetTable

    recorder = context.config.recorder
    return ParquetTable(
        folder, session=context.session, rows_of=recorder.rows_of, live=context.any_live,
        part_s=recorder.parquet_part_s,
    )  # fmt: skip


def _publisher(endpoint: str, context: SinkContext) -> Sink:
    from pipeline.sinks.publisher.publisher import Publisher

    config = context.config.publisher
    publisher = Publisher(
        endpoint, format=config.format, session=context.session, status=context.status,
        num_streams=context.max_streams, curve_dir=config.curve_dir,
    )  # fmt: skip
    if context.names:  # else they are known in another process
        names = ", ".join(context.names)
        _log.info("topics: pose/<stream>/ and status/<stream>/ of %s", names)
    context.stats.watch_overflows(publisher.overflows)
    return publisher


def _viewer(_: bool, context: SinkContext) -> Sink:
    from pipeline.sinks.window import Window

    return Window(draw=context.draw)


def _page(_: str, context: SinkContext) -> Sink:
    from pipeline.sinks.page.api import PageSubject
    from pipeline.sinks.page.page import Page

    config = context.config
    subject = PageSubject(
        stats=context.stats, status=context.status, stages=context.stages,
        add_source=context.add_source, remove_source=context.remove_source,
    )  # fmt: skip
    return Page(
        config.page, subject, privacy=config.privacy, session=context.session,
        min_keypoint_score=config.overlay.min_keypoint_score,
    )  # fmt: skip


# --- the table -----------------------------------------------------------------------------------

ROWS: tuple[SinkRow, ...] = (
    SinkRow(
        "overlay",
        (
            Option("--save", "video.path", "VIDEO",
                   "skeletons over the picture: .mp4, .mkv, .jpg or a folder"),
            Option("--segment-s", "video.segment_s", "S", "begin new video files every S seconds",
                   float),
        ),
        _overlay, _videos, "drawn",
    ),
    SinkRow(
        "clean",
        (
            Option("--save-clean", "video.clean", "VIDEO",
                   "the pictures as they came, likewise"),
        ),
        _clean, _videos, "always",
    ),
    SinkRow(
        "jsonl",
        (
            Option("--jsonl", "recorder.jsonl", "FILE",
                   "poses, one JSON message a line; - is standard output"),
        ),
        _jsonl, _one_path,
    ),
    SinkRow(
        "openpose",
        (
            Option("--openpose", "recorder.openpose", "FOLDER",
                   "poses as OpenPose JSON, one file a frame"),
        ),
        _openpose, _one_path,
    ),
    SinkRow(
        "coco",
        (Option("--coco", "recorder.coco", "FILE", "poses as COCO keypoint results"),),
        _coco, _path_of_each_source,
    ),
    SinkRow(
        "csv",
        (Option("--csv", "recorder.csv", "FILE", "poses as a table, a row a person and frame"),),
        _csv, _one_path,
    ),
    SinkRow(
        "parquet",
        (
            Option("--parquet", "recorder.parquet", "FOLDER",
                   "the same table as Parquet files; needs pyarrow"),
        ),
        _parquet, _one_path,
    ),
    SinkRow(
        "publisher",
        (
            Option("--publish", "publisher.endpoint", "ENDPOINT",
                   "poses over ZeroMQ, for example tcp://127.0.0.1:5556"),
            Option("--curve-dir", "publisher.curve_dir", "DIR",
                   "keys for --publish (pipeline/sinks/publisher/curve.py makes some)"),
        ),
        _publisher, _nothing,
    ),
    SinkRow(
        "viewer",
        (Option("--show", "viewer.show", None, "a window on this screen"),),
        _viewer, _nothing, "drawn",
    ),
    SinkRow(
        "page",
        (
            Option("--serve", "page.serve", "HOST:PORT",
                   "a page in the browser, for example 127.0.0.1:8000"),
        ),
        _page, _nothing, "always",
    ),
)  # fmt: skip
