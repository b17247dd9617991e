"""Another model's keypoints of the pictures of an annotation file.

    teacher.json ----------- read_teacher_keypoints --.
                                                       +--> TeacherKeypoints
    annotations[].teacher -- teacher_keypoints_in ----'

docs/training.md describes the file. A keypoint is x, y in pixels of the picture and a score in
0..1, which becomes the height of its hat.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
BoxNumbers = tuple[float, float, float, float]
"""x, y, width, height in pixels."""


_HIGHEST_SCORE = 1.5
"""A maximum of a learnt heatmap may lie a little above 1, and counts as 1."""


class TeacherKeypoints(NamedTuple):
    """What the other model says; keypoints are (K, 3) x, y, score."""

    of_annotation: Mapping[int, FloatArray]
    """By the annotation's id."""
    of_ignored: Mapping[int, tuple[tuple[BoxNumbers, FloatArray], ...]]
    """By the image's id: people who have a box and no annotation."""


def read_teacher_keypoints(path: Path, num_keypoints: int) -> TeacherKeypoints:
    """Read a file of keypoints with scores.

    Raises:
        ValueError: one line that names the file, and the person where it is one.
    """
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"teacher's keypoints {path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"teacher's keypoints {path} are not JSON: {error}") from None
    try:
        return TeacherKeypoints(
            _by_id(_group(tree, "annotations"), num_keypoints),
            {
                int(image_id): tuple(
                    (_box(box), _keypoints(points, num_keypoints, f"a person of image {image_id}"))
                    for box, points in people
                )
                for image_id, people in _group(tree, "ignore_boxes").items()
            },
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"teacher's keypoints {path}: {error}") from None


def teacher_keypoints_in(
    annotations: Iterable[Mapping[str, Any]], num_keypoints: int
) -> TeacherKeypoints:
    """The field `teacher` of the annotations that have one; raises ValueError."""
    found = {a["id"]: a["teacher"] for a in annotations if a.get("teacher") is not None}
    if not found:
        raise ValueError("no annotation has a field `teacher`; name a file with teacher.keypoints")
    return TeacherKeypoints(_by_id(found, num_keypoints), {})


def _group(tree: Any, name: str) -> dict[str, Any]:
    group = tree.get(name, {}) if isinstance(tree, dict) else None
    if not isinstance(group, dict):
        raise ValueError(f"expected an object with the object `{name}`, see docs/training.md")
    return group


def _by_id(people: Mapping[Any, Any], num_keypoints: int) -> dict[int, FloatArray]:
    return {
        int(number): _keypoints(points, num_keypoints, f"annotation {number}")
        for number, points in people.items()
    }


def _box(numbers: Any) -> BoxNumbers:
    x, y, width, height = (float(number) for number in numbers)
    return x, y, width, height


def _keypoints(numbers: Any, num_keypoints: int, whose: str) -> FloatArray:
    """(K, 3) from nested or flat numbers."""
    flat = np.array(numbers, np.float32).ravel()
    if flat.size != 3 * num_keypoints:
        raise ValueError(
            f"{whose} has {flat.size} numbers, expected {3 * num_keypoints} "
            f"(x, y, score of {num_keypoints} keypoints)"
        )
    points = flat.reshape(num_keypoints, 3)
    scores = points[:, 2]
    if not np.isfinite(points).all() or scores.min() < 0 or scores.max() > _HIGHEST_SCORE:
        raise ValueError(
            f"{whose} needs finite places and scores in 0..1, got scores {scores.tolist()}"
        )
    np.minimum(scores, 1, out=scores)
    return points
