"""Files of poses: what is in them, and that they can be read at any moment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from pipeline.sinks.files import CocoResults, JsonLines, OpenPoseFolder
from tests.support.full_disk import files_no_larger_than
from tests.support.people import crowd, poses_of
from tests.support.places import ROOT

SIZE = (720, 1280)


def schema() -> jsonschema.Draft202012Validator:
    text = (ROOT / "docs" / "pose-1.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def test_json_lines_hold_one_message_a_frame_and_count_each_stream(tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"
    sink = JsonLines(str(path), session="s")
    for i in range(4):
        for source in ("a", "b"):
            sink(poses_of(crowd(i, SIZE), source=source, index=2 * i))
        # A line is there as soon as it was written.
        assert len(path.read_bytes().splitlines()) == 2 * i + 2
    sink.close()
    sink.close()
    messages = [json.loads(line) for line in path.read_text().splitlines()]
    for message in messages:
        schema().validate(message)
    of_b = [message for message in messages if message["stream"] == "b"]
    assert [message["seq"] for message in of_b] == [0, 1, 2, 3]
    assert [message["frame"] for message in of_b] == [0, 2, 4, 6]
    assert [len(message["people"]) for message in of_b] == [0, 1, 2, 3]
    assert {message["session"] for message in messages} == {"s"}


FILE_SINKS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "jsonl": ("poses.jsonl", lambda path: JsonLines(str(path), session="s")),
    "openpose": ("openpose", OpenPoseFolder),
    "coco": ("1.json", CocoResults),
}


def frames_in(name: str, path: Path) -> list[int]:
    """The indices of the frames that a sink wrote; what is there must be readable."""
    if name == "jsonl":
        return [json.loads(line)["frame"] for line in path.read_bytes().splitlines()]
    if name == "coco":
        rows = json.loads(path.read_bytes() or b"[]")
        return list(dict.fromkeys(row["image_id"] for row in rows))
    files = sorted(path.rglob("*")) if path.exists() else []
    for file in files:
        assert json.loads(file.read_bytes())["version"] == 1.3
    return [int(file.stem.split("_")[-2]) for file in files]


@pytest.mark.parametrize("name", FILE_SINKS)
@pytest.mark.parametrize("num_before", [0, 1])
def test_a_full_disk_is_a_state_and_what_is_there_stays_readable(
    name: str,
    num_before: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit on files stops a write in the middle, as a disk does; also the very first one."""
    monkeypatch.setattr("pipeline.sinks.unwritten.CALM_SECONDS", 0.0)
    file_name, make = FILE_SINKS[name]
    path = tmp_path / file_name
    sink = make(path)
    for index in range(num_before):
        sink(poses_of(crowd(2, SIZE), source="a", index=index))
    size = path.stat().st_size if path.is_file() else 0
    with files_no_larger_than(max(100, size + 100)):
        for index in range(10, 13):
            sink(poses_of(crowd(2, SIZE), source="a", index=index))
            frames_in(name, path)
    for index in range(20, 22):
        sink(poses_of(crowd(2, SIZE), source="a", index=index))
    reason = next(iter(sink.unwritten()["a"]))
    assert sink.unwritten() == {"a": {reason: 3}}
    assert reason in ("disk_full", "file_too_large")
    sink.close()
    assert frames_in(name, path) == [*range(num_before), 20, 21]
    failed, again = caplog.messages
    assert f"{file_name}: cannot be written: " in failed
    assert "can be written again; 3 frames are missing" in again


def test_json_lines_on_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sink = JsonLines("-")
    sink(poses_of(crowd(2, SIZE)))
    sink.close()
    schema().validate(json.loads(capfdbinary.readouterr().out))
    print("standard output is still open")


def test_openpose_files_are_named_and_laid_out_as_its_readers_expect(tmp_path: Path) -> None:
    folder = tmp_path / "openpose"
    sink = OpenPoseFolder(folder)
    people = crowd(2, SIZE)
    sink(poses_of(people, source="clip", index=12, ids=np.array([-1, 4])))
    sink(poses_of(people[:0], source="clip", index=13))
    sink(poses_of(people, source="photos", index=1, image_name="beach.jpg"))
    sink.close()
    assert sorted(path.name for path in folder.iterdir()) == [
        "beach_000000000001_keypoints.json",
        "clip_000000000012_keypoints.json",
        "clip_000000000013_keypoints.json",
    ]
    written = json.loads((folder / "clip_000000000012_keypoints.json").read_text())
    assert written["version"] == 1.3
    assert [person["person_id"] for person in written["people"]] == [[-1], [4]]
    for person, truth in zip(written["people"], people, strict=True):
        flat = np.array(person["pose_keypoints_2d"])
        assert flat.shape == (51,)
        np.testing.assert_allclose(flat.reshape(17, 3), truth, atol=6e-4)
        assert person["face_keypoints_2d"] == []
    empty = json.loads((folder / "clip_000000000013_keypoints.json").read_text())
    assert empty["people"] == []


def test_openpose_gives_every_source_a_folder_and_never_mixes_two_runs(tmp_path: Path) -> None:
    folder = tmp_path / "openpose"
    sink = OpenPoseFolder(folder, per_source=True)
    for source in ("a", "b"):
        sink(poses_of(crowd(1, SIZE), source=source, image_name="1.jpg"))
    assert len(list(folder.glob("[ab]/1_000000000000_keypoints.json"))) == 2
    with pytest.raises(ValueError, match="earlier run"):
        OpenPoseFolder(folder)


def test_coco_results_are_valid_json_after_every_frame(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    sink = CocoResults(path)
    total = 0
    for index, num_people in enumerate([0, 2, 0, 1, 3]):
        sink(poses_of(crowd(num_people, SIZE, seed=index), index=index))
        total += num_people
        assert len(json.loads(path.read_text())) == total
    sink.close()
    sink.close()
    rows = json.loads(path.read_text())
    assert [row["image_id"] for row in rows] == [1, 1, 3, 4, 4, 4]
    truth = crowd(1, SIZE, seed=3)
    assert {row["category_id"] for row in rows} == {1}
    np.testing.assert_allclose(np.array(rows[2]["keypoints"]).reshape(17, 3), truth[0], atol=6e-3)
    assert rows[2]["score"] == pytest.approx(truth[0, :, 2].mean(), abs=1e-5)


def test_coco_results_of_several_sources_go_to_several_files(tmp_path: Path) -> None:
    sink = CocoResults(tmp_path / "results.json", per_source=True)
    for source in ("a", "b"):
        sink(poses_of(crowd(2, SIZE), source=source))
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results-a.json", "results-b.json"]
    assert len(json.loads((tmp_path / "results-b.json").read_text())) == 2


def test_pictures_are_numbered_and_a_table_says_which_is_which(tmp_path: Path) -> None:
    sink = CocoResults(tmp_path / "results.json")
    for index, name in [(0, "left_0007.jpg"), (2, "right_0007.jpg")]:
        sink(poses_of(crowd(1, SIZE), index=index, image_name=name))
    sink.close()
    assert [row["image_id"] for row in json.loads((tmp_path / "results.json").read_text())] == [
        0,
        2,
    ]
    assert json.loads((tmp_path / "results-images.json").read_text()) == [
        {"id": 0, "file_name": "left_0007.jpg"},
        {"id": 2, "file_name": "right_0007.jpg"},
    ]


def test_coco_ids_come_from_an_annotation_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [{"id": 9, "file_name": "a.jpg"}, {"id": 4, "file_name": "sub/b.jpg"}]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"images": images}))
    sink = CocoResults(tmp_path / "results.json", ids_from=labels)
    for index, name in enumerate(["a.jpg", "b.jpg", "c.jpg"]):
        sink(poses_of(crowd(1, SIZE), index=index, image_name=name))
    sink.close()
    assert [row["image_id"] for row in json.loads((tmp_path / "results.json").read_text())] == [
        9,
        4,
    ]
    assert "1 pictures are not in" in caplog.text
    assert not (tmp_path / "results-images.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no COCO annotation file"),
        ('{"images": [{"id": 1}]}', "no COCO annotation file"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "share"),
        ('{"images": [{"id": 1, "file_name": "a/c"}, {"id": 2, "file_name": "b/c"}]}', "share"),
    ],
)
def test_ids_that_are_no_ids_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        CocoResults(tmp_path / "results.json", ids_from=tmp_path / "labels.json")


def write_one(folder: Path, *, live: bool) -> None:
    """A run of one frame with one person, into all kinds of files."""
    sinks: list[JsonLines | OpenPoseFolder | CocoResults] = [
        JsonLines(str(folder / "poses.jsonl"), live=live),
        OpenPoseFolder(folder / "openpose", live=live),
        CocoResults(folder / "results.json", live=live),
    ]
    for sink in sinks:
        sink(poses_of(crowd(1, SIZE), live=live))
        sink.close()


def test_a_live_stream_started_again_keeps_what_it_wrote_before(tmp_path: Path) -> None:
    for _ in range(2):
        write_one(tmp_path, live=True)
    with (tmp_path / "poses.jsonl").open("ab") as file:
        file.write(b'{"schema": "po')  # where a disk was full
    write_one(tmp_path, live=True)
    lines = (tmp_path / "poses.jsonl").read_text().splitlines()
    assert [line[:14] for line in lines].count('{"schema": "po') == 1
    sessions = {json.loads(line)["session"] for line in (lines[0], lines[1], lines[3])}
    assert len(sessions) == 3
    assert len(list(tmp_path.glob("results*.json"))) == 3
    assert len(list(tmp_path.glob("openpose*/*.json"))) == 3


def test_of_files_that_can_be_played_again_the_last_run_is_kept(tmp_path: Path) -> None:
    write_one(tmp_path, live=False)
    (tmp_path / "openpose").rename(tmp_path / "before")
    write_one(tmp_path, live=False)
    assert len((tmp_path / "poses.jsonl").read_text().splitlines()) == 1
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_nothing_changes_before_the_first_frame(tmp_path: Path) -> None:
    old = [tmp_path / "poses.jsonl", tmp_path / "results.json"]
    for path in old:
        path.write_text("old\n")
    for name in ("poses", "new"):
        sinks: list[JsonLines | OpenPoseFolder | CocoResults] = [
            JsonLines(str(tmp_path / f"{name}.jsonl")),
            OpenPoseFolder(tmp_path / name),
            CocoResults(tmp_path / ("results.json" if name == "poses" else "new.json")),
        ]
        for sink in sinks:
            sink.close()
    assert sorted(tmp_path.iterdir()) == sorted(old)
    assert [path.read_text() for path in old] == ["old\n", "old\n"]


ENDLESS = """
import sys
from pathlib import Path
from tests.support.full_disk import files_no_larger_than
from tests.support.people import crowd, poses_of
from pipeline.sinks.files import CocoResults, JsonLines, OpenPoseFolder

folder = Path(sys.argv[1])
sinks = [
    JsonLines(str(folder / "poses.jsonl")),
    OpenPoseFolder(folder / "openpose"),
    CocoResults(folder / "results.json"),
]
people = crowd(3, (720, 1280))
index = 0
while True:
    poses = poses_of(people, index=index)
    for sink in sinks:
        sink(poses)
    index += 1
    if index == 50:
        print("go on", flush=True)
"""


def test_what_was_written_is_readable_after_a_kill(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"go on\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    files = [json.loads(p.read_text()) for p in (tmp_path / "openpose").glob("*.json")]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert min(len(lines), len(files), len(rows) // 3) >= 50
    assert max(len(lines), len(files), len(rows) // 3) - min(len(lines), len(rows) // 3) <= 1


def test_paths_that_cannot_be_written_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refusals: list[Callable[[], object]] = [
        lambda: JsonLines(str(tmp_path / "nowhere" / "a.jsonl")),
        lambda: JsonLines(str(tmp_path)),
        lambda: JsonLines("/proc/a.jsonl"),
        lambda: OpenPoseFolder(tmp_path / "file"),
        lambda: OpenPoseFolder(tmp_path / "nowhere" / "deeper"),
        lambda: CocoResults(tmp_path / "results.txt"),
        lambda: CocoResults(tmp_path / "nowhere" / "a.json"),
    ]
    for refused in refusals:
        with pytest.raises(ValueError, match=r"^\S.*") as refusal:
            refused()
        assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
