"""evaluate.py as a user runs it, on painted people whose keypoints are known."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import evaluate
from tests.support.painted import grid_people, paint, painted_model

ROOT = Path(evaluate.__file__).parent
SIZE = (256, 416)
Run = Callable[..., int]


def write_data(folder: Path, counts: tuple[int, ...] = (1, 3, 2), **changes: Any) -> Path:
    """A data set of painted pictures, of so many people each; returns its JSON."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "painted").mkdir()
    for i, count in enumerate(counts, 1):
        people = grid_people(max(count, 1), origin=(40 + 3 * i, 40))[:count]
        picture = paint(SIZE, people) if count else np.zeros((*SIZE, 3), np.uint8)
        name = f"picture_{i}.png"
        cv2.imwrite(str(folder / "painted" / name), picture)
        images.append({"id": 7 * i, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for keypoints in people:
            low, high = keypoints.min(axis=0), keypoints.max(axis=0)
            visible = np.column_stack([keypoints, np.full(len(keypoints), 2.0)])
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": 7 * i, "category_id": 1, "iscrowd": 0,
                    "bbox": [*low.tolist(), *(high - low).tolist()], "area": 4000.0,
                    "num_keypoints": 17, "keypoints": visible.ravel().tolist(),
                }
            )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": []} | changes
    path = folder / "painted.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """evaluate.py in this process, its weights replaced by the paint reader."""
    monkeypatch.setattr("nets.checkpoints.load_model", lambda _: painted_model(min_keypoints=3))
    # It would take the root logger's handlers away from the tests that follow.
    monkeypatch.setattr("training.progress.start_logging", lambda *, quiet: None)
    threads = torch.get_num_threads()

    def main(*arguments: object) -> int:
        always = ["--engine", "torch", "--threads", "1", "--bootstrap", "50"]
        return evaluate.main([*always, *(str(argument) for argument in arguments)])

    yield main
    torch.set_num_threads(threads)


def test_everything_it_writes(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path)
    outputs = {name: tmp_path / name for name in ("out.json", "people.json", "ms.png", "drawn")}
    code = run(
        "--data", data, "--output", outputs["out.json"], "--results", outputs["people.json"],
        "--plot", outputs["ms.png"], "--draw", outputs["drawn"],
    )  # fmt: skip
    assert code == 0
    report = json.loads(outputs["out.json"].read_text())
    assert {"AP", "AP50", "AP75", "APM", "APL", "AR"} <= set(report)
    assert report["AP"] > 0.8
    assert report["APL"] == -1  # nobody is that large
    low, high = report["intervals_95"]["AP"]
    assert 0 <= low <= high <= 1
    assert report["intervals_95"]["APL"] == [None, None]
    assert report["counts"] == {"images": 3, "unreadable": 0, "people_found": 6}
    assert set(report["stage_ms"]) == {"preprocess", "inference", "poses"}
    assert report["settings"]["engine"] == "torch"
    assert report["settings"]["decode"]["min_keypoints"] == 0  # the weights' 3 only hides
    assert len(json.loads(outputs["people.json"].read_text())) == 6
    assert cv2.imread(str(outputs["ms.png"])) is not None
    drawn = sorted(path.name for path in outputs["drawn"].iterdir())
    assert drawn == ["14.jpg", "21.jpg", "7.jpg"]
    assert f"{report['AP']:.3f}" in capsys.readouterr().out


def test_drawings_show_ground_truth_beside_prediction(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path, counts=(1,))
    content = json.loads(data.read_text())
    content["annotations"] = []
    data.write_text(json.dumps(content))
    assert run("--data", data, "--draw", tmp_path / "drawn") == 0
    drawn = cv2.imread(str(tmp_path / "drawn" / "7.jpg"))
    assert drawn is not None
    picture = paint(SIZE, grid_people(1, origin=(43, 40))).astype(int)
    left, right = drawn[-SIZE[0] :, : SIZE[1]], drawn[-SIZE[0] :, -SIZE[1] :]
    changed = [np.abs(side - picture).max(axis=2) > 100 for side in (left, right)]
    assert changed[1].mean() > 2 * changed[0].mean()


@pytest.mark.parametrize("flag", [(), ("--set", "detection_threshold=0.4")])
def test_the_stream_gives_the_same_numbers(run: Run, tmp_path: Path, flag: tuple[str]) -> None:
    data = write_data(tmp_path, counts=(2, 0, 3, 1))
    reports = []
    for extra in ((), ("--through-stream",)):
        output = tmp_path / "out.json"
        assert run("--data", data, "--output", output, *flag, *extra) == 0
        reports.append(json.loads(output.read_text()))
    direct, streamed = reports
    assert direct["AP"] > 0.8
    for name in ("AP", "AP50", "AP75", "APM", "AR"):
        assert streamed[name] == pytest.approx(direct[name], abs=1e-3)
    assert streamed["counts"] == direct["counts"]


@pytest.mark.parametrize("oracle", ["grouping", "peaks"])
def test_oracles_reach_what_painted_maps_allow(run: Run, tmp_path: Path, oracle: str) -> None:
    data, output = write_data(tmp_path), tmp_path / "out.json"
    assert run("--data", data, "--output", output, "--oracle", oracle) == 0
    report = json.loads(output.read_text())
    assert report["AP50"] == pytest.approx(1)
    assert report["settings"]["oracle"] == oracle


def test_two_runs_are_compared(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, people, output = write_data(tmp_path), tmp_path / "a.json", tmp_path / "out.json"
    assert run("--data", data, "--results", people) == 0
    results = json.loads(people.read_text())
    people.write_text(json.dumps(results[1:]))  # the other run found one person less
    assert run("--data", data, "--compare", people, "--output", output) == 0
    difference = json.loads(output.read_text())["differences"]["AR"]
    assert difference["value"] > 0
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert "minus other" in capsys.readouterr().out


def test_images_in_a_tar_beside_the_annotations(run: Run, tmp_path: Path) -> None:
    data, output = write_data(tmp_path), tmp_path / "out.json"
    with tarfile.open(tmp_path / "painted.tar", "w") as archive:
        for path in sorted((tmp_path / "painted").iterdir()):
            archive.add(path, arcname=path.name)
    shutil.rmtree(tmp_path / "painted")
    assert run("--data", data, "--output", output, "--limit", 2) == 0
    assert json.loads(output.read_text())["counts"]["images"] == 2


@pytest.mark.parametrize("through", [(), ("--through-stream",)])
def test_a_corrupt_image_is_counted_and_survived(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], through: tuple[str]
) -> None:
    data, output = write_data(tmp_path), tmp_path / "out.json"
    (tmp_path / "painted" / "picture_2.png").write_bytes(b"\x89PNG but no more")
    assert run("--data", data, "--output", output, *through) == 0
    report = json.loads(output.read_text())
    assert report["unreadable"] == ["picture_2.png"]
    assert report["counts"] == {"images": 3, "unreadable": 1, "people_found": 3}
    assert 0.3 < report["AR"] <= 0.5  # its three people of six are not found
    assert "picture_2.png" in capsys.readouterr().out


def test_a_stream_that_fails_is_exit_code_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.stream.Stream.run", lambda *_, quiet: 1)
    assert run("--data", write_data(tmp_path), "--through-stream") == 1
    assert "the stream failed" in one_line(capsys)


def test_nobody_to_find_and_nobody_found(run: Run, tmp_path: Path) -> None:
    data, output = write_data(tmp_path), tmp_path / "out.json"
    high = ("--set", "detection_threshold=0.999")
    assert run("--data", data, "--output", output, *high) == 0
    report = json.loads(output.read_text())
    assert (report["AP"], report["AR"], report["counts"]["people_found"]) == (0, 0, 0)
    content = json.loads(data.read_text())
    data.write_text(json.dumps({**content, "annotations": []}))
    assert run("--data", data, "--output", output) == 0
    report = json.loads(output.read_text())
    assert (report["AP"], report["AR"]) == (-1, -1)
    assert report["counts"]["people_found"] > 0


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The complaint; there must be one, of one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate")]
    (line,) = lines
    return line


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON"),
        ("{}", "no list `images`"),
        ('{"images": [], "annotations": []}', "lists no images"),
    ],
)
def test_an_empty_annotation_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    data = write_data(tmp_path)
    data.write_text(text)
    assert run("--data", data) == 2
    assert complaint in one_line(capsys)


def test_a_wrong_number_of_keypoints(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path)
    content = json.loads(data.read_text())
    for person in content["annotations"]:
        person["keypoints"] = person["keypoints"][: 3 * 14]
    data.write_text(json.dumps(content))
    assert run("--data", data) == 2
    assert "42 numbers" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "nowhere.tar"], "nowhere.tar"),
        (["--set", "detection=0.3"], "no decode setting is called 'detection'"),
        (["--set", "detection_threshold="], "detection_threshold must be a number"),
        (["--set", "refine"], "--set takes key=value"),
        (["--set", "refine=some"], "refine must be one of"),
        (["--scales", "0.5", "2"], "must include 1"),
        (["--input-size", "0"], "--input-size must be at least 32, got 0"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--through-stream", "--oracle", "peaks"], "cannot go with --oracle"),
        (["--through-stream", "--scales", "1", "2"], "cannot go with --scales"),
        (["--output", "/nowhere/out.json"], "there is no folder"),
        (["--output", "/"], "it is a folder"),
        (["--results", "/proc/people.json"], "/proc/people.json cannot be written: "),
        (["--plot", "plot.txt"], "--plot must end in"),
        (["--compare", "nothing.json"], "nothing.json"),
        (["--precision", "int4"], "precision must be"),
    ],
)
def test_bad_options_are_one_line(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    assert run("--data", write_data(tmp_path), *arguments) == 2
    assert complaint in one_line(capsys)


@pytest.mark.parametrize("wrong", ["labels", "compare"])
def test_what_scoring_would_refuse_is_told_before_images_are_run(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    monkeypatch.setattr(evaluate, "_run", lambda *_: pytest.fail("images were run"))
    data, other = write_data(tmp_path), tmp_path / "other.json"
    content = json.loads(data.read_text())
    if wrong == "labels":
        del content["annotations"][-1]["bbox"]
        data.write_text(json.dumps(content))
        assert run("--data", data) == 2
        assert "has no bbox" in one_line(capsys)
    else:
        keypoints = content["annotations"][0]["keypoints"]
        other.write_text(json.dumps([{"image_id": 5, "keypoints": keypoints, "score": 1}]))
        assert run("--data", data, "--compare", other) == 2
        assert "they belong to another data set" in one_line(capsys)


def test_people_found_are_kept_where_scoring_fails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr("training.evaluation.score", fails)
    people = tmp_path / "people.json"
    assert run("--data", write_data(tmp_path), "--results", people) == 2
    assert len(json.loads(people.read_text())) == 6


@pytest.mark.parametrize("flag", [(), ("--through-stream",)])
def test_a_picture_of_another_size_than_its_labels_is_unreadable(
    run: Run, tmp_path: Path, flag: tuple[str]
) -> None:
    data, output = write_data(tmp_path), tmp_path / "out.json"
    content = json.loads(data.read_text())
    content["images"][0]["height"] = SIZE[0] // 2
    data.write_text(json.dumps(content))
    assert run("--data", data, "--output", output, *flag) == 0
    assert json.loads(output.read_text())["unreadable"] == ["picture_1.png"]


def test_images_that_are_not_there(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path)
    for path in (tmp_path / "painted").iterdir():
        path.unlink()
    assert run("--data", data) == 2
    assert "none of the 3 images could be read" in one_line(capsys)
    shutil.rmtree(tmp_path / "painted")
    assert run("--data", data) == 2
    assert "no images found" in one_line(capsys)


def test_as_a_program_it_exits_with_2_on_bad_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "evaluate.py", "--data", tmp_path / "none.json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "none.json" in done.stderr
    assert "Traceback" not in done.stderr
