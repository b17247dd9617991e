"""Poses as tables, CSV and Parquet: one row a person and frame, or one a keypoint (docs/tables.md).

    Poses -> columns() -> CSV: lines at the end of a file, frame by frame
                       '-> Parquet: a folder of files, a whole one every few seconds

What was written stays readable after a kill: CSV holds every frame up to it, Parquet all but the
last seconds. All sources share a table; frames without people have no row.
"""

from __future__ import annotations

import csv
import io
import math
import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from common.files import write_atomically
from nets.skeletons import SKELETONS
from pipeline.messages import Poses
from pipeline.sinks.line_file import LineFile
from pipeline.sinks.outputs import beside, check_output_folder
from pipeline.sinks.schema import person_boxes
from pipeline.sinks.unwritten import Unwritten

RowsOf = Literal["person", "keypoint"]
"""What has a row of its own."""

_MOST_ROWS = 50_000  # of a Parquet file; bounds the memory that waits to be written


class Column(NamedTuple):
    """One column of a table."""

    name: str
    values: np.ndarray
    """(rows,): text, integers, booleans or floats, where NaN says that there is no value; integers
    below 0 say that, too."""
    digits: int = 0
    """After the point, in CSV."""


def columns(batch: Sequence[Poses], *, session: str, rows_of: RowsOf = "person") -> list[Column]:
    """The people of some frames of one skeleton as columns, rows in the order of the frames."""
    people = [
        *_frame_columns(batch, session, [len(poses.scores) for poses in batch]),
        *_person_columns(batch),
    ]
    keypoints = _Keypoints(batch)
    if rows_of == "person":
        return people + keypoints.side_by_side()
    num_keypoints = len(keypoints.names)
    repeated = [c._replace(values=np.repeat(c.values, num_keypoints)) for c in people]
    return repeated + keypoints.one_below_the_other()


def _frame_columns(batch: Sequence[Poses], session: str, num_people: list[int]) -> list[Column]:
    frames = [poses.frame for poses in batch]
    no_time = float("nan")
    times = [no_time if frame.pts_seconds is None else frame.pts_seconds for frame in frames]
    once = [
        Column("stream", np.array([frame.source for frame in frames], object)),
        Column("session", np.array([session] * len(frames), object)),
        Column("frame", np.array([frame.index for frame in frames], np.int64)),
        Column("pts_seconds", np.array(times, np.float64), 6),
        Column("captured_unix_s", np.array([f.captured_unix_s for f in frames], np.float64), 3),
        Column("width", np.array([frame.size[1] for frame in frames], np.int32)),
        Column("height", np.array([frame.size[0] for frame in frames], np.int32)),
        Column("tainted", np.array([frame.tainted for frame in frames], np.bool_)),
        Column("latency_ms", np.array([poses.latency_ms for poses in batch], np.float32), 1),
        Column("skeleton", np.array([poses.skeleton for poses in batch], object)),
    ]
    return [column._replace(values=np.repeat(column.values, num_people)) for column in once]


def _person_columns(batch: Sequence[Poses]) -> list[Column]:
    nobody = np.full(4, np.nan)
    boxes = [
        nobody if box is None else box
        for poses in batch
        for box in person_boxes(poses.keypoints, poses.filled)
    ]
    numbers = [np.arange(len(poses.scores), dtype=np.int32) for poses in batch]
    box = np.array(boxes, np.float32).reshape(-1, 4)
    return [
        Column("person", np.concatenate(numbers)),
        Column("id", np.concatenate([poses.ids for poses in batch])),
        Column("score", np.concatenate([poses.scores for poses in batch]), 4),
        *(Column(f"bbox_{side}", box[:, i], 2) for i, side in enumerate("xywh")),
    ]


class _Keypoints:
    """The keypoints of all rows' people, as columns in two layouts."""

    def __init__(self, batch: Sequence[Poses]) -> None:
        self.names = SKELETONS[batch[0].skeleton].keypoint_names
        raw = np.concatenate([poses.keypoints for poses in batch])
        missing = raw[..., 2] <= 0
        smoothed = [
            np.full((*poses.filled.shape, 2), np.nan) if poses.smoothed is None else poses.smoothed
            for poses in batch
        ]
        xy = np.where(missing[..., None], np.nan, raw[..., :2])
        smoothed_xy = np.where(missing[..., None], np.nan, np.concatenate(smoothed))
        filled = np.concatenate([poses.filled for poses in batch])
        self._columns = {  # each (rows, K)
            "x": (xy[..., 0].astype(np.float32), 2),
            "y": (xy[..., 1].astype(np.float32), 2),
            "score": (raw[..., 2], 4),
            "filled": (filled, 0),
            "smoothed_x": (smoothed_xy[..., 0].astype(np.float32), 2),
            "smoothed_y": (smoothed_xy[..., 1].astype(np.float32), 2),
        }

    def side_by_side(self) -> list[Column]:
        return [
            Column(f"{name}_{word}", values[:, k], digits)
            for k, name in enumerate(self.names)
            for word, (values, digits) in self._columns.items()
        ]

    def one_below_the_other(self) -> list[Column]:
        num_people = len(self._columns["x"][0])
        names = np.tile(np.array(self.names, object), num_people)
        words = {"score": "keypoint_score"}  # `score` is the person's
        return [
            Column("keypoint", names),
            *(
                Column(words.get(word, word), values.reshape(-1), digits)
                for word, (values, digits) in self._columns.items()
            ),
        ]


class CsvTable:
    """A CSV file with a line of names; every frame's rows are there as soon as it was written."""

    def __init__(
        self, path: Path, *, session: str, rows_of: RowsOf = "person", live: bool = False
    ) -> None:
        """Claim the file; it changes with the first people.

        Args:
            path: the file.
            session: tells this run from others.
            rows_of: what has a row of its own.
            live: some source is: rows are added to those that are there. Where that file has other
                columns, a new one is made beside it, the UTC time in its name.
        Raises:
            ValueError: the file cannot be written, or is by another stream.
        """
        if str(path) == "-":
            raise ValueError("--csv writes a file; for standard output use --jsonl -")
        self._path = path
        self._session = session
        self._rows_of = rows_of
        self._file = LineFile(path, keep=live)
        self._header: bytes | None = None  # None: nothing written so far
        self._unwritten = Unwritten(path)

    def __call__(self, poses: Poses) -> None:
        if len(poses.scores):
            self._unwritten.attempt(poses.frame.source, partial(self._write, poses))

    def unwritten(self) -> dict[str, dict[str, int]]:
        """See Unwritten.counts."""
        return self._unwritten.counts()

    def close(self) -> None:
        self._file.close()

    def _write(self, poses: Poses) -> None:
        table = columns([poses], session=self._session, rows_of=self._rows_of)
        lines = _csv_lines(zip(*(_words(column) for column in table), strict=True))
        if self._header is None:
            header = _csv_lines([[column.name for column in table]])
            lines = self._begin(header) + lines
            self._file.write(lines)
            self._header = header
        else:
            self._file.write(lines)

    def _begin(self, header: bytes) -> bytes:
        """What comes before the first row: the names, where they are not there."""
        there = self._file.first_line()
        if there == header:
            return b""
        if there:
            self._file.close()
            self._file = LineFile(beside(self._path), keep=False)
        return header


def _words(column: Column) -> list[Any]:
    """A column's values as CSV shows them; None where there is none."""
    kind, values = column.values.dtype.kind, column.values.tolist()
    if kind == "f":  # a frame has few people: Python's round() is faster than NumPy's here
        return [None if math.isnan(v) else round(v, column.digits) + 0.0 for v in values]
    if kind == "i":
        return [None if value < 0 else value for value in values]
    return [int(value) for value in values] if kind == "b" else values


def _csv_lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class ParquetTable:
    """A folder of Parquet files that readers take as one table.

    A Parquet file can be read only when it is finished, and a file that is finished cannot grow. So
    there is a new one every few seconds, made under another name and then renamed: a kill costs
    the seconds since the last one, and nothing that is in the folder is ever half a file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        session: str,
        rows_of: RowsOf = "person",
        live: bool = False,
        part_s: float = 10.0,
    ) -> None:
        """Check the folder; it is made with the first people.

        Args:
            folder: of the files.
            session: tells this run from others; it is in the files' names.
            rows_of: what has a row of its own.
            live: some source is: files are added to those that are there. Where those have other
                columns, a new folder is made beside this one, the UTC time in its name.
            part_s: how long rows wait for their file, at most.
        Raises:
            ValueError: pyarrow is missing, or the folder cannot be written or holds an earlier run.
        """
        self._arrow = _pyarrow()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; a Parquet table is a folder of files")
        check_output_folder(folder if folder.exists() else folder.parent)
        if not live and _parts(folder):
            raise ValueError(
                f"folder {folder} holds the poses of an earlier run; remove it or choose another "
                "name"
            )
        self._folder = folder
        self._session = session
        self._rows_of = rows_of
        self._part_s = part_s
        self._numbers = count()
        self._waiting: list[Poses] = []
        self._num_waiting = 0  # rows
        self._has_begun = False
        self._timer: threading.Timer | None = None
        self._failure: Exception | None = None  # of the timer's thread
        self._lock = threading.Lock()
        self._unwritten = Unwritten(folder)

    def __call__(self, poses: Poses) -> None:
        if not len(poses.scores):
            return
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._waiting.append(poses.without_pixels())
            self._num_waiting += (
                poses.filled.size if self._rows_of == "keypoint" else len(poses.ids)
            )
            if self._num_waiting >= _MOST_ROWS:
                self._write_part()
            elif self._timer is None:
                self._timer = _started(threading.Timer(self._part_s, self._on_time))

    def unwritten(self) -> dict[str, dict[str, int]]:
        """See Unwritten.counts."""
        return self._unwritten.counts()

    def close(self) -> None:
        """Write what waits; may be called again."""
        with self._lock:
            self._write_part()

    def _on_time(self) -> None:
        with self._lock:
            try:
                self._write_part()
            except Exception as error:
                self._failure = error  # the next call raises it where the stream can see it

    def _write_part(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting, self._num_waiting = self._waiting, [], 0
        if batch:
            num_frames = Counter(poses.frame.source for poses in batch)
            self._unwritten.attempt_all(num_frames, partial(self._write, batch))

    def _write(self, batch: list[Poses]) -> None:
        arrow = self._arrow
        table = self._table(columns(batch, session=self._session, rows_of=self._rows_of))
        if not self._has_begun:
            self._begin(table.schema)
        name = f"part-{self._session}-{next(self._numbers):06d}.parquet"
        write_atomically(self._folder / name, partial(arrow.parquet.write_table, table))

    def _begin(self, schema: Any) -> None:
        parts = _parts(self._folder)
        if parts and self._arrow.parquet.read_schema(parts[0]) != schema:
            self._folder = beside(self._folder)
        self._folder.mkdir(exist_ok=True)
        self._has_begun = True

    def _table(self, table: list[Column]) -> Any:
        return self._arrow.table(
            [_arrow_array(self._arrow, column) for column in table],
            names=[column.name for column in table],
        )


def _arrow_array(arrow: Any, column: Column) -> Any:
    values = column.values
    if values.dtype.kind == "f":
        return arrow.array(values, mask=np.isnan(values))
    if values.dtype.kind == "i":
        return arrow.array(values, mask=values < 0)
    return arrow.array(values)


def _started(timer: threading.Timer) -> threading.Timer:
    timer.daemon = True
    timer.start()
    return timer


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("--parquet needs pyarrow: pip install pyarrow (or use --csv)") from None
    return pyarrow
