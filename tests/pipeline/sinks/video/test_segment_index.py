"""The list of segments: what a kill, a full disk or a stranger's line does to it, and removal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.sinks.video.segment_index import SegmentIndex, read_index


def add(
    index: SegmentIndex, folder: Path, name: str, *, start: float, end: float, num_bytes: int = 100
) -> None:
    index.begin(folder / name, stream="cam1", start_unix_s=start)
    (folder / name).write_bytes(b"x" * num_bytes)
    index.end(folder / name, num_pictures=7, end_unix_s=end)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.mp4"))


def test_every_line_is_written_at_once_and_the_last_one_of_a_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    index = SegmentIndex(path)
    index.begin(tmp_path / "a.mp4", stream="cam1", start_unix_s=5.0)
    (tmp_path / "a.mp4").write_bytes(b"12345")
    assert read_index(path)["a.mp4"].bytes is None
    index.end(tmp_path / "a.mp4", num_pictures=3, end_unix_s=8.5)
    assert [json.loads(line)["pictures"] for line in path.read_text().splitlines()] == [None, 3]
    segment = read_index(path)["a.mp4"]
    assert (segment.stream, segment.start_unix_s, segment.end_unix_s) == ("cam1", 5.0, 8.5)
    assert (segment.pictures, segment.bytes) == (3, 5)


def test_a_torn_line_and_strangers_lines_are_left_out_and_cleared_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "rec"
    folder.mkdir()
    (tmp_path / "outside.mp4").touch()
    path = folder / "i.jsonl"
    add(SegmentIndex(path), folder, "a.mp4", start=1, end=2)
    good = path.read_text().splitlines()[-1]
    fields = json.loads(good)
    strange = [
        json.dumps({**fields, "file": "../outside.mp4"}),
        json.dumps({**fields, "file": str(tmp_path / "outside.mp4")}),
        json.dumps({**fields, "start_unix_s": "soon"}),
        json.dumps({**fields, "start_unix_s": 1e999}),
        json.dumps({**fields, "end_unix_s": [1]}),
        json.dumps({"file": "a.mp4"}),
        "17",
        "null",
        "\x00\xff",
        good[: len(good) // 2],
    ]
    path.write_text("\n".join([good, *strange]))
    assert list(read_index(path)) == ["a.mp4"]
    assert len(caplog.records) == len(strange)
    add(SegmentIndex(path, keep_hours=1e-6), folder, "b.mp4", start=1000, end=1001)
    assert (tmp_path / "outside.mp4").exists(), "a line made it remove a file elsewhere"
    assert names(folder) == ["b.mp4"]
    assert {json.loads(line)["file"] for line in path.read_text().splitlines()} == {"b.mp4"}


def test_the_oldest_go_when_all_take_too_much(tmp_path: Path) -> None:
    index = SegmentIndex(tmp_path / "i.jsonl", keep_gb=450e-9)
    (tmp_path / "mine.mp4").write_bytes(b"x" * 5000)  # not on the list, so not touched
    for i in range(8):
        add(index, tmp_path, f"{i}.mp4", start=i, end=i + 1)
    assert names(tmp_path) == ["3.mp4", "4.mp4", "5.mp4", "6.mp4", "7.mp4", "mine.mp4"]
    again = SegmentIndex(tmp_path / "i.jsonl", keep_gb=250e-9)
    add(again, tmp_path, "8.mp4", start=8, end=9)
    assert names(tmp_path) == ["6.mp4", "7.mp4", "8.mp4", "mine.mp4"]
    assert list(read_index(tmp_path / "i.jsonl")) == ["6.mp4", "7.mp4", "8.mp4"]


def test_what_is_older_goes_but_never_a_file_that_is_being_written(tmp_path: Path) -> None:
    clock = [0.0]
    index = SegmentIndex(tmp_path / "i.jsonl", keep_hours=1, now=lambda: clock[0])
    index.begin(tmp_path / "long.mp4", stream="cam2", start_unix_s=0)
    (tmp_path / "long.mp4").touch()
    for start in (0, 600, 3000, 5000, 7000):
        clock[0] = float(start)
        add(index, tmp_path, f"{start}.mp4", start=start, end=start + 60)
    assert names(tmp_path) == ["5000.mp4", "7000.mp4", "long.mp4"]
    index.end(tmp_path / "long.mp4", num_pictures=1, end_unix_s=7000)
    add(index, tmp_path, "7100.mp4", start=7100, end=7160)
    assert "long.mp4" in names(tmp_path)


def test_a_wall_clock_that_is_set_ages_nothing(tmp_path: Path) -> None:
    clock = [0.0]
    path = tmp_path / "i.jsonl"
    add(SegmentIndex(path), tmp_path, "earlier.mp4", start=1_000, end=1_060)
    index = SegmentIndex(path, keep_hours=1, now=lambda: clock[0])
    wall = [2_000.0, 2_060.0, 9e8, 9e8 + 60, 500.0, 560.0]  # set ahead, then back
    for number, start in enumerate(wall):
        clock[0] = 60.0 * number
        add(index, tmp_path, f"{number}.mp4", start=start, end=start + 60)
    assert len(names(tmp_path)) == 7
    clock[0] = 3_700.0
    add(index, tmp_path, "last.mp4", start=4_000, end=4_060)
    assert names(tmp_path) == ["2.mp4", "3.mp4", "4.mp4", "5.mp4", "last.mp4"]


def test_no_segment_ends_before_it_begins(tmp_path: Path) -> None:
    """The wall clock was set back while it was written."""
    index = SegmentIndex(tmp_path / "i.jsonl")
    add(index, tmp_path, "a.mp4", start=5_000, end=1_400)
    segment = read_index(tmp_path / "i.jsonl")["a.mp4"]
    assert (segment.start_unix_s, segment.end_unix_s) == (5_000, 5_000)


def test_a_segment_without_pictures_is_not_listed(tmp_path: Path) -> None:
    index = SegmentIndex(tmp_path / "i.jsonl")
    index.begin(tmp_path / "a.mp4", stream="cam1", start_unix_s=0)
    index.end(tmp_path / "a.mp4", num_pictures=0, end_unix_s=1)
    assert (tmp_path / "i.jsonl").read_text() == ""


def test_what_could_not_be_listed_is_listed_later(tmp_path: Path) -> None:
    folder = tmp_path / "usb"
    folder.mkdir()
    index = SegmentIndex(folder / "i.jsonl")
    add(index, folder, "a.mp4", start=0, end=1)
    folder.rename(tmp_path / "unplugged")
    index.begin(folder / "b.mp4", stream="cam1", start_unix_s=1)
    (tmp_path / "unplugged").rename(folder)
    (folder / "b.mp4").touch()
    index.end(folder / "b.mp4", num_pictures=2, end_unix_s=2)
    assert {name: s.pictures for name, s in read_index(folder / "i.jsonl").items()} == {
        "a.mp4": 7,
        "b.mp4": 2,
    }


def test_an_index_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "i.jsonl").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        SegmentIndex(tmp_path / "i.jsonl")
