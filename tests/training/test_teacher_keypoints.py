"""Files of another model's keypoints: what is read, and what is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.labelled import write_json
from training.teacher_keypoints import read_teacher_keypoints, teacher_keypoints_in

POINTS: list[list[float]] = [[1, 2, 0.5], [3, 4, 1]]


def test_people_are_found_by_annotation_and_by_image(tmp_path: Path) -> None:
    tree = {
        "note": "who made it",
        "annotations": {"12": POINTS, "13": np.ravel(POINTS).tolist()},
        "ignore_boxes": {"5": [[[1, 2, 3, 4], POINTS], [[5, 6, 7, 8], POINTS]]},
    }
    read = read_teacher_keypoints(write_json(tmp_path / "teacher.json", tree), 2)
    assert set(read.of_annotation) == {12, 13}
    np.testing.assert_array_equal(read.of_annotation[12], POINTS)
    np.testing.assert_array_equal(read.of_annotation[13], POINTS)
    assert [box for box, _ in read.of_ignored[5]] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    np.testing.assert_array_equal(read.of_ignored[5][1][1], POINTS)


def test_a_maximum_a_little_above_one_counts_as_one() -> None:
    annotations: list[dict[str, Any]] = [
        {"id": 3, "teacher": [1, 2, 1.02, 3, 4, 0.2]},
        {"id": 4},
        {"id": 5, "teacher": None},
    ]
    read = teacher_keypoints_in(annotations, 2)
    assert set(read.of_annotation) == {3}
    np.testing.assert_allclose(read.of_annotation[3][:, 2], [1, 0.2])


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ([], "expected an object"),
        ({"annotations": []}, "the object `annotations`"),
        ({"annotations": {"x": POINTS}}, "invalid literal"),
        ({"annotations": {"1": POINTS[:1]}}, "annotation 1 has 3 numbers, expected 6"),
        ({"annotations": {"1": [[1, 2, 80], [3, 4, 90]]}}, "annotation 1 needs .* scores in 0..1"),
        ({"annotations": {"1": [[1, 2, -0.1], [3, 4, 1]]}}, "scores in 0..1"),
        ({"annotations": {"1": [[float("nan"), 2, 0.1], [3, 4, 1]]}}, "finite places"),
        ({"annotations": {"1": [["a", 2, 0.1], [3, 4, 1]]}}, "teacher.json"),
        ({"ignore_boxes": {"1": [[[1, 2, 3, 4]]]}}, "teacher.json"),
        (
            {"ignore_boxes": {"1": [[[1, 2, 3, 4], POINTS[:1]]]}},
            "a person of image 1 has 3 numbers",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, tree: Any, said: str) -> None:
    path = write_json(tmp_path / "teacher.json", tree)
    with pytest.raises(ValueError, match=said) as error:
        read_teacher_keypoints(path, 2)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_no_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.json cannot be read: No such file"):
        read_teacher_keypoints(tmp_path / "nowhere.json", 2)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.json are not JSON"):
        read_teacher_keypoints(tmp_path / "bad.json", 2)
