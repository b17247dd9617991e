"""CSV and Parquet: the rows are what messages say, and can be read whatever happens."""

import csv
import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from nets.skeletons import COCO
from pipeline.messages import Poses
from pipeline.sinks.schema import pose_message
from pipeline.sinks.tables import CsvTable, ParquetTable, RowsOf
from tests.support.full_disk import files_no_larger_than
from tests.support.people import crowd, poses_of
from tests.support.places import ROOT
from tests.support.stream_process import running, wait_for_lines
from tests.support.waiting import wait_until

SIZE = (720, 1280)


def people(index: int, *, source: str = "cam", count: int = 2, smoothed: bool = True) -> Poses:
    """Some with all a person can have: missing and filled keypoints, an id or none."""
    rng = np.random.default_rng(index)
    keypoints = crowd(count, SIZE, seed=index)
    keypoints[rng.random(keypoints.shape[:2]) < 0.2] = 0
    filled = (rng.random(keypoints.shape[:2]) < 0.3) & (keypoints[..., 2] > 0)
    return poses_of(
        keypoints,
        source=source,
        index=index,
        pts_seconds=None if index % 2 else index / 25,
        filled=filled,
        ids=np.arange(count) - 1,
        smoothed=keypoints[..., :2] + 1 if smoothed else None,
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert None not in row, "more cells than names"
        assert None not in row.values(), "fewer cells than names"
    return rows


def _holds_parts(folder: Path, count: int) -> bool:
    return len(list(folder.glob("*.parquet"))) >= count


def read_parquet(folder: Path) -> list[dict[str, Any]]:
    """As pandas, DuckDB and Spark do: every file of the folder."""
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    rows: list[dict[str, Any]] = table.to_pylist()
    return sorted(rows, key=lambda row: (row["frame"], row["person"]))


def expected_rows(batch: list[Poses]) -> list[dict[str, Any]]:
    """From the messages that subscribers see, to the digits of a message."""
    rows = []
    for poses in batch:
        message = pose_message(poses, session="s", seq=0)
        for number, person in enumerate(message["people"]):
            row = {
                "stream": message["stream"],
                "session": "s",
                "frame": message["frame"],
                "pts_seconds": message["pts_seconds"],
                "captured_unix_s": message["captured_unix_s"],
                "height": message["size"][0],
                "width": message["size"][1],
                "tainted": message["tainted"],
                "latency_ms": message["latency_ms"],
                "skeleton": "coco17",
                "person": number,
                "id": person["id"],
                "score": person["score"],
            }
            box = person["bbox"] or [None] * 4
            row |= {f"bbox_{side}": box[i] for i, side in enumerate("xywh")}
            for k, name in enumerate(COCO.keypoint_names):
                x, y, score = person["keypoints"][k]
                smooth = person["smoothed"][k] if person["smoothed"] else [None, None]
                is_there = score > 0
                row |= {
                    f"{name}_x": x if is_there else None,
                    f"{name}_y": y if is_there else None,
                    f"{name}_score": score,
                    f"{name}_filled": bool(person["filled"][k]),
                    f"{name}_smoothed_x": smooth[0] if is_there else None,
                    f"{name}_smoothed_y": smooth[1] if is_there else None,
                }
            rows.append(row)
    return rows


def assert_equal(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert float(row[name]) == pytest.approx(value, abs=0.06), name
        else:
            assert row[name] == value, name


def plain(row: dict[str, str]) -> dict[str, Any]:
    """A CSV row with empty cells as None and whole numbers as such."""
    made: dict[str, Any] = {}
    for name, cell in row.items():
        number = cell.lstrip("-").isdecimal() and name not in ("session", "stream")
        made[name] = None if cell == "" else int(cell) if number else cell
        if made[name] is not None and (name.endswith("_filled") or name == "tainted"):
            made[name] = bool(made[name])
    return made


@pytest.mark.parametrize("smoothed", [True, False])
def test_rows_say_what_messages_say(tmp_path: Path, smoothed: bool) -> None:
    batch = [people(i, source="ab"[i % 2], count=i % 4, smoothed=smoothed) for i in range(9)]
    csv_table = CsvTable(tmp_path / "t.csv", session="s")
    parquet = ParquetTable(tmp_path / "t.parquet", session="s")
    for poses in batch:
        csv_table(poses)
        parquet(poses)
    csv_table.close()
    parquet.close()
    expected = expected_rows(batch)
    for rows in ([plain(r) for r in read_csv(tmp_path / "t.csv")], read_parquet(parquet._folder)):
        assert len(rows) == len(expected) == sum(i % 4 for i in range(9))
        for row, wanted in zip(rows, expected, strict=True):
            assert_equal(row, wanted)


def test_a_row_a_keypoint_holds_the_same_numbers(tmp_path: Path) -> None:
    tables = {}
    kinds: list[RowsOf] = ["person", "keypoint"]
    for rows_of in kinds:
        table = ParquetTable(tmp_path / rows_of, session="s", rows_of=rows_of)
        for i in range(4):
            table(people(i))
        table.close()
        tables[rows_of] = read_parquet(tmp_path / rows_of)
    assert len(tables["keypoint"]) == 17 * len(tables["person"]) == 17 * 8
    by_person = {(row["frame"], row["person"]): row for row in tables["person"]}
    for row in tables["keypoint"]:
        person, name = by_person[row["frame"], row["person"]], row["keypoint"]
        assert row["keypoint_score"] == person[f"{name}_score"]
        for word in ("x", "y", "filled", "smoothed_x", "smoothed_y"):
            assert row[word] == person[f"{name}_{word}"]
        for word in ("id", "score", "bbox_x", "pts_seconds", "stream"):
            assert row[word] == person[word]


def test_types_are_those_of_the_numbers(tmp_path: Path) -> None:
    table = ParquetTable(tmp_path / "t", session="s")
    table(people(1, smoothed=False))  # nothing smoothed, no time: still numbers, not nothing
    table.close()
    (part,) = (tmp_path / "t").iterdir()
    schema = pyarrow.parquet.read_schema(part)
    assert schema.field("id").type == schema.field("frame").type == pa.int64()
    assert schema.field("pts_seconds").type == schema.field("captured_unix_s").type == pa.float64()
    assert schema.field("nose_x").type == schema.field("nose_smoothed_x").type == pa.float32()
    assert schema.field("nose_filled").type == schema.field("tainted").type == pa.bool_()


def test_csv_is_there_frame_by_frame_and_quotes_what_needs_it(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "t.csv", session="s")
    for i in range(3):
        table(people(i, source='gate, "left"'))
        rows = read_csv(tmp_path / "t.csv")
        assert [row["frame"] for row in rows[::2]] == [str(j) for j in range(i + 1)]
    assert {row["stream"] for row in rows} == {'gate, "left"'}
    table(people(3, count=0))
    assert len(read_csv(tmp_path / "t.csv")) == 6
    table.close()
    table.close()


def test_a_parquet_file_comes_in_time_also_where_no_more_poses_do(tmp_path: Path) -> None:
    table = ParquetTable(tmp_path / "t", session="s", part_s=0.05)
    for i in range(2):
        table(people(i))
        wait_until(partial(_holds_parts, tmp_path / "t", i + 1))
    assert len(read_parquet(tmp_path / "t")) == 4
    table.close()


def test_rows_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sinks.tables._MOST_ROWS", 10)
    table = ParquetTable(tmp_path / "t", session="s", part_s=1e6)
    for i in range(23):
        table(people(i, count=1))
    assert sorted(len(pyarrow.parquet.read_table(p)) for p in (tmp_path / "t").iterdir()) == [
        10,
        10,
    ]
    table.close()
    assert len(read_parquet(tmp_path / "t")) == 23
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_files_are_replaced_and_folders_refused(tmp_path: Path) -> None:
    for _ in range(2):
        table = CsvTable(tmp_path / "t.csv", session="s")
        table(people(1))
        table.close()
    assert len(read_csv(tmp_path / "t.csv")) == 2
    first = ParquetTable(tmp_path / "t", session="s")
    first(people(1))
    first.close()
    with pytest.raises(ValueError, match="holds the poses of an earlier run; remove it or"):
        ParquetTable(tmp_path / "t", session="s2")


def test_live_streams_add_to_what_is_there(tmp_path: Path) -> None:
    for session in ("one", "two"):
        for table in (
            CsvTable(tmp_path / "t.csv", session=session, live=True),
            ParquetTable(tmp_path / "t", session=session, live=True),
        ):
            table(people(1))
            table.close()
    sessions = ["one", "one", "two", "two"]
    assert [row["session"] for row in read_csv(tmp_path / "t.csv")] == sessions
    assert sorted(row["session"] for row in read_parquet(tmp_path / "t")) == sessions


def test_a_table_of_other_columns_stays_beside_the_new_one(tmp_path: Path) -> None:
    kinds: list[RowsOf] = ["person", "keypoint"]
    for rows_of in kinds:
        for table in (
            CsvTable(tmp_path / "t.csv", session="s", rows_of=rows_of, live=True),
            ParquetTable(tmp_path / "t", session="s", rows_of=rows_of, live=True),
        ):
            table(people(1))
            table(people(2))
            table.close()
    new_file, old_file = sorted(tmp_path.glob("t*.csv"))
    new_folder, old_folder = sorted((p for p in tmp_path.iterdir() if p.is_dir()), reverse=True)
    assert (old_file.name, old_folder.name) == ("t.csv", "t")
    assert (len(read_csv(old_file)), len(read_csv(new_file))) == (4, 4 * 17)
    assert (len(read_parquet(old_folder)), len(read_parquet(new_folder))) == (4, 4 * 17)


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_full_disk_is_a_state_and_what_is_there_stays_readable(
    tmp_path: Path, num_before: int
) -> None:
    file = CsvTable(tmp_path / "t.csv", session="s")
    folder = ParquetTable(tmp_path / "t", session="s")
    for i in range(num_before):
        file(people(i))
        folder(people(i))
        folder._on_time()  # each frame a file
    size = file._path.stat().st_size if file._path.exists() else 0
    for table in (file, folder):
        with files_no_larger_than(size + 200):
            for i in range(10, 13):
                table(people(i))
                folder._on_time()
        table(people(20))
        folder._on_time()
        table.close()
        (counts,) = table.unwritten().values()
        assert sum(counts.values()) == 3
    frames = [*([0, 0] if num_before else []), 20, 20]
    assert [int(row["frame"]) for row in read_csv(tmp_path / "t.csv")] == frames
    assert [row["frame"] for row in read_parquet(tmp_path / "t")] == frames
    assert not list(tmp_path.rglob("*.part"))


def test_a_bug_in_the_timers_thread_ends_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ParquetTable(tmp_path / "t", session="s")
    table(replace(people(1), skeleton="no such"))
    table._on_time()
    with pytest.raises(KeyError, match="no such"):
        table(people(2))


def test_paths_that_cannot_be_written_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for refused in (
        partial(CsvTable, Path("-")),
        partial(CsvTable, tmp_path),
        partial(CsvTable, tmp_path / "nowhere" / "t.csv"),
        partial(ParquetTable, tmp_path / "file"),
        partial(ParquetTable, tmp_path / "nowhere" / "deeper"),
    ):
        with pytest.raises(ValueError, match=r"^\S.*$"):
            refused(session="s")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"^--parquet needs pyarrow: pip install pyarrow .*$"):
        ParquetTable(tmp_path / "t", session="s")
    assert list(tmp_path.iterdir()) == []


ENDLESS = """
import sys
from pathlib import Path
from tests.pipeline.sinks.test_tables import people
from pipeline.sinks.tables import CsvTable, ParquetTable

folder = Path(sys.argv[1])
tables = [
    CsvTable(folder / "t.csv", session="s"),
    ParquetTable(folder / "t", session="s", part_s=0.02),
]
some = [people(i, source="ab"[i % 2]) for i in range(1000)]
while True:
    for poses in some:
        for table in tables:
            table(poses)
"""


def test_what_was_written_is_readable_after_a_kill(tmp_path: Path) -> None:
    """Many times, so that some kill hits a write; both sources' rows are there, none is half."""
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(folder)], cwd=ROOT)
        wait_until(partial(_holds_parts, folder / "t", 4 + number))
        process.send_signal(signal.SIGKILL)
        process.wait()
        in_csv, in_parquet = read_csv(folder / "t.csv"), read_parquet(folder / "t")
        assert len(in_csv) >= len(in_parquet) > 0
        assert {row["stream"] for row in in_csv} == {row["stream"] for row in in_parquet}
        assert all(len(row) == len(in_csv[0]) for row in in_csv)


def test_a_stream_of_two_sources_that_is_killed_leaves_both_tables(tmp_path: Path) -> None:
    jsonl, csv_path, folder = (tmp_path / name for name in ("p.jsonl", "t.csv", "t.parquet"))
    saving = ("--csv", csv_path, "--parquet", folder, "--jsonl", jsonl)
    parts = ("--set", "recorder.parquet_part_s=0.3", "--input-size", "128")
    with running("demo", "demo", "--loop", "--quiet", *saving, *parts) as process:
        wait_for_lines(jsonl, 10)
        wait_until(partial(_holds_parts, folder, 2))
        process.kill()
        process.wait(30)
    people_in_messages = {
        (message["stream"], message["frame"]): len(message["people"])
        for message in map(json.loads, jsonl.read_text().splitlines())
    }
    rows = read_csv(csv_path)
    assert {row["stream"] for row in rows} == {"demo", "demo-2"}
    counted: dict[tuple[str, int], int] = {}
    for row in rows:
        key = row["stream"], int(row["frame"])
        counted[key] = counted.get(key, 0) + 1
    for key in counted.keys() & people_in_messages.keys():
        assert counted[key] == people_in_messages[key]
    assert 0 < len(read_parquet(folder)) <= len(rows)
