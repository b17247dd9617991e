"""training.annotations and training.labels: what files say, and which pixels are supervised."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from nets.skeletons import COCO, CROWDPOSE
from tests.support.labelled import (
    SIZE,
    annotation,
    coco_tree,
    people_of_picture,
    tree_of,
    write_json,
    write_pictures,
    write_set,
)
from tests.support.painted import paint
from training.annotations import _region_of, load_labelled_set
from training.config import DatasetConfig
from training.image_store import ImageError
from training.labels import LabelledImage, Rle, decode_rle, supervised_pixels, taught_pixels

PERSON = people_of_picture(1, 1)[0]
IMAGE = {"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}


def loaded(folder: Path, tree: dict[str, Any], **settings: Any) -> LabelledImage:
    """The first image of a tree, read from disk; its picture is never looked at."""
    (folder / "images").mkdir(exist_ok=True)
    config = DatasetConfig(annotations=write_json(folder / "some.json", tree), **settings)
    return load_labelled_set(config, COCO).images[0]


# --- reading labels ------------------------------------------------------------------------------


def test_people_boxes_and_areas_are_those_of_the_file(tmp_path: Path) -> None:
    some = load_labelled_set(DatasetConfig(annotations=write_set(tmp_path, 3)), COCO)
    assert [image.image_id for image in some.images] == [1, 2, 3]
    for image in some.images:
        people = people_of_picture(image.image_id, 2)
        np.testing.assert_allclose(image.keypoints[..., :2], people)
        assert (image.keypoints[..., 2] == 2).all()
        assert (image.boxes[:, :2] < people.min(axis=1)).all()
        np.testing.assert_allclose(image.areas, image.boxes[:, 2] * image.boxes[:, 3])
        np.testing.assert_array_equal(some.read(image), paint(SIZE, people))
        assert (supervised_pixels(image) == 255).all()


def test_crowdpose_has_14_keypoints_no_area_and_masks_nothing(tmp_path: Path) -> None:
    tree = coco_tree(2, skeleton=CROWDPOSE)
    tree["annotations"].append(annotation(99, 1, np.zeros((14, 3))))
    write_json(tmp_path / "json" / "crowdpose_train.json", tree)
    write_pictures(tmp_path / "images", tree)
    config = DatasetConfig(annotations=tmp_path / "json" / "crowdpose_train.json")
    some = load_labelled_set(config, CROWDPOSE)
    assert some.store.path == tmp_path / "images"
    image = some.images[0]
    assert image.keypoints.shape == (2, 14, 3)
    np.testing.assert_allclose(image.areas, 0.53 * image.boxes[:, 2] * image.boxes[:, 3])
    assert (supervised_pixels(image) == 255).all()


def test_v_zero_is_background_or_unknown_as_told(tmp_path: Path) -> None:
    points = np.hstack([PERSON, np.full((17, 1), 2.0)])
    points[[3, 8]] = 0
    tree = tree_of([IMAGE], [annotation(1, 1, points)])
    assert (loaded(tmp_path, tree).keypoints[0, [3, 8], 2] == 0).all()
    unknown = loaded(tmp_path, tree, missing_keypoints="unknown").keypoints[0, :, 2]
    assert (unknown[[3, 8]] == -1).all()
    assert (np.delete(unknown, [3, 8]) == 2).all()


def test_face_teacher_gives_only_points_that_are_sure_and_missing(tmp_path: Path) -> None:
    points = np.hstack([PERSON, np.full((17, 1), 2.0)])
    points[1:5] = 0
    teacher = [[1, 2, 0.9], [3, 4, 0.5], [5, 6, 0.2], [7, 8, 0.3], [9, 10, 0.1]]
    entry = annotation(1, 1, points) | {"face_teacher": np.ravel(teacher).tolist()}
    taken = loaded(
        tmp_path, tree_of([IMAGE], [entry]), min_face_score=0.3, missing_keypoints="unknown"
    ).keypoints[0, :5]
    np.testing.assert_allclose(taken[0], points[0])  # a human label stays
    np.testing.assert_allclose(taken[[1, 3]], [(3, 4, 1), (7, 8, 1)])
    assert (taken[[2, 4], 2] == -1).all()
    nothing = entry | {"face_teacher": None}
    untaught = loaded(tmp_path, tree_of([IMAGE], [nothing]), min_face_score=0.3)
    assert (untaught.keypoints[0, 1:5, 2] == 0).all()


def test_annotations_with_less_agreement_become_ignored_regions(tmp_path: Path) -> None:
    good, bad = people_of_picture(1, 2)
    entries = [annotation(1, 1, good) | {"agree": 0.8}, annotation(2, 1, bad) | {"agree": 0.4}]
    image = loaded(tmp_path, tree_of([IMAGE], entries), min_agree=0.5)
    np.testing.assert_allclose(image.keypoints[:, :, :2], [good])
    assert image.ignore == (tuple(entries[1]["bbox"]),)


def taught_points(people: np.ndarray, score: float) -> np.ndarray:
    """(P, 17, 3): these places, all of one score."""
    return np.concatenate([people, np.full((*people.shape[:2], 1), score)], axis=2)


def test_a_teacher_says_its_keypoints_of_people_with_and_without_labels(tmp_path: Path) -> None:
    """Of the ignored boxes it knows one, a pixel's rounding off; of the people not the last."""
    first, second = people_of_picture(1, 2)
    crowd = annotation(3, 1, PERSON) | {"iscrowd": 1, "bbox": [0, 0, 10, 10]}
    image_entry = IMAGE | {"ignore_boxes": [[200, 20, 40, 50], [100, 150, 30, 30]]}
    tree = tree_of([image_entry], [annotation(1, 1, first), annotation(2, 1, second), crowd])
    said = taught_points(np.stack([first + 2, second]), 0.75)
    teacher = {
        "annotations": {"1": said[0].tolist(), "3": said[1].tolist()},
        "ignore_boxes": {"1": [[[200.3, 19.8, 40, 50], said[1].tolist()]]},
    }
    config = {"keypoints": write_json(tmp_path / "teacher.json", teacher), "share": 0.25}
    image = loaded(tmp_path, tree, teacher=config)
    taught = image.taught
    assert taught is not None
    assert taught.share == 0.25
    np.testing.assert_allclose(taught.keypoints, said[[1, 0]])
    np.testing.assert_allclose(taught.areas, [0.53 * 40 * 50, tree["annotations"][0]["area"]])
    expected = np.full(SIZE, 255, np.uint8)
    expected[150:180, 100:130] = expected[:10, :10] = 0
    x, y, w, h = tree["annotations"][1]["bbox"]
    expected[round(y) : round(y + h), round(x) : round(x + w)] = 0
    np.testing.assert_array_equal(taught_pixels(image), expected)
    assert (supervised_pixels(image)[20:70, 200:240] == 0).all()  # labels say nothing there


def test_a_teacher_may_stand_in_the_annotations(tmp_path: Path) -> None:
    said = taught_points(people_of_picture(1, 1), 0.5)
    entry = annotation(7, 1, PERSON) | {"teacher": said.ravel().tolist()}
    image = loaded(tmp_path, tree_of([IMAGE], [entry]), teacher={"share": 1})
    assert image.taught is not None
    np.testing.assert_allclose(image.taught.keypoints, said)
    assert (taught_pixels(image) == 255).all()
    untaught = loaded(tmp_path, tree_of([IMAGE], [entry]))
    assert untaught.taught is None
    assert not taught_pixels(untaught).any()


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"annotations": {"8": [[1, 2, 0.5]] * 17}}, "know none of its annotations"),
        ({"annotations": {"7": [[1, 2, 0.5]] * 14}}, "annotation 7 has 42 numbers, expected 51"),
        ({"ignore_boxes": {"1": [[[1, 2, 3], [[1, 2, 0.5]] * 17]]}}, "teacher.json: .*values"),
        (None, "no annotation has a field `teacher`"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_clear_line(
    tmp_path: Path, teacher: Any, said: str
) -> None:
    config: dict[str, Any] = {}
    if teacher is not None:
        config["keypoints"] = write_json(tmp_path / "teacher.json", teacher)
    with pytest.raises(ValueError, match=said) as error:
        loaded(tmp_path, tree_of([IMAGE], [annotation(7, 1, PERSON)]), teacher=config)
    assert "some.json" in str(error.value)
    assert "\n" not in str(error.value)


# --- what is supervised --------------------------------------------------------------------------


def test_ignore_boxes_and_people_without_keypoints_are_not_supervised(tmp_path: Path) -> None:
    nobody = annotation(2, 1, np.zeros((17, 3))) | {"bbox": [100, 50, 20, 30]}
    square = annotation(3, 1, np.zeros((17, 3)))
    square["segmentation"] = [[200, 10, 220, 10, 220, 30, 200, 30], [250, 10, 260, 10, 260, 19]]
    image_entry = IMAGE | {"ignore_boxes": [[5, 150, 10, 10], [290, 190, 50, 50], [-9, 0, 4, 4]]}
    image = loaded(tmp_path, tree_of([image_entry], [annotation(1, 1, PERSON), nobody, square]))
    assert len(image.keypoints) == 1
    expected = np.full(SIZE, 255, np.uint8)
    expected[150:160, 5:15] = 0
    expected[190:, 290:] = 0
    expected[50:80, 100:120] = 0
    expected[10:31, 200:221] = 0
    for y in range(10):
        expected[10 + y, 250 + y : 261] = 0
    got = supervised_pixels(image)
    assert (got != expected).sum() < 15  # along the slanted edge of the triangle
    np.testing.assert_array_equal(got[:, :245], expected[:, :245])


def test_rings_that_overlap_or_are_empty(tmp_path: Path) -> None:
    two, none = (annotation(i, 1, np.zeros((17, 3))) for i in (2, 3))
    two["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30], [20, 20, 40, 20, 40, 40, 20, 40]]
    none |= {"segmentation": [[], [5, 5, 9, 9]], "bbox": [100, 50, 20, 30]}
    image = loaded(tmp_path, tree_of([IMAGE], [annotation(1, 1, PERSON), two, none]))
    expected = np.full(SIZE, 255, np.uint8)
    expected[10:31, 10:31] = expected[20:41, 20:41] = 0
    expected[50:80, 100:120] = 0
    np.testing.assert_array_equal(supervised_pixels(image), expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_crowds_are_not_supervised(tmp_path: Path, compressed: bool) -> None:
    inside = np.zeros(SIZE, np.uint8)
    inside[20:90, 200:280] = 1
    inside[150:, 3:5] = 1
    crowd = annotation(2, 1, np.zeros((17, 3))) | {"iscrowd": 1}
    crowd["segmentation"] = {"size": list(SIZE), "counts": run_lengths(inside)}
    if compressed:
        crowd["segmentation"]["counts"] = coco_mask.encode(np.asfortranarray(inside))[
            "counts"
        ].decode()
    image = loaded(tmp_path, tree_of([IMAGE], [annotation(1, 1, PERSON), crowd]))
    np.testing.assert_array_equal(supervised_pixels(image) == 0, inside == 1)


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths, counted one pixel after the other."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


@given(
    st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0, 0.1, 0.5, 1])
)
def test_run_lengths_equal_those_of_pycocotools(h: int, w: int, seed: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random((h, w)) < share).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    for counts in (text, run_lengths(mask)):
        entry = annotation(1, 1, np.zeros((17, 3)))
        entry["segmentation"] = {"size": [h, w], "counts": counts}
        region = _region_of(entry, (h, w))
        assert isinstance(region, Rle)
        assert region.counts == text.encode()
        np.testing.assert_array_equal(decode_rle(region), mask == 1)


@pytest.mark.parametrize("counts", [[100, 100], [901], [-5, 905], "01n000", "~~~", [0.5, 899.5]])
def test_run_lengths_that_do_not_cover_the_image_are_refused(counts: object) -> None:
    entry = annotation(7, 1, np.zeros((17, 3)))
    entry["segmentation"] = {"size": [30, 30], "counts": counts}
    with pytest.raises(ValueError, match="segmentation of annotation 7 cannot be read"):
        _region_of(entry, (30, 30))


def test_only_the_grown_box_is_supervised_where_others_have_no_labels(tmp_path: Path) -> None:
    image_entry = IMAGE | {"other_people_unlabelled": True}
    entry = annotation(1, 1, PERSON) | {"bbox": [50, 60, 40, 100]}
    image = loaded(tmp_path, tree_of([image_entry], [entry]))
    expected = np.zeros(SIZE, np.uint8)
    expected[50:170, 46:94] = 255
    np.testing.assert_array_equal(supervised_pixels(image), expected)
    empty = loaded(tmp_path, tree_of([image_entry], [entry | {"agree": 0.1}]), min_agree=0.5)
    assert not supervised_pixels(empty).any()


# --- files that cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"images": [], "annotations": []}, "lists no images"),
        ([], "has no list `images`"),
        ({"images": [IMAGE]}, "has no list `annotations`"),
        (tree_of([IMAGE], [annotation(7, 1, PERSON[:14])]), "annotation 7 .* 42 numbers .* 51"),
        (tree_of([IMAGE], [annotation(1, 5, PERSON)]), "for image 5, which is not listed"),
        (tree_of([IMAGE, IMAGE], []), "2 images have the id 1"),
        (tree_of([{"id": 1, "file_name": "a"}], []), "lacks the field 'height'"),
        (tree_of([IMAGE], [annotation(3, 1, PERSON * np.nan)]), "annotation 3 .* no number"),
        (
            {"images": [IMAGE], "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]},
            "no annotation has keypoints",
        ),
        (
            tree_of(
                [IMAGE],
                [
                    annotation(4, 1, np.zeros((17, 3)))
                    | {"iscrowd": 1, "segmentation": {"size": [9, 9], "counts": [81]}}
                ],
            ),
            r"segmentation of annotation 4 is of size \[9, 9\]",
        ),
    ],
)
def test_unusable_annotations_are_one_clear_line(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"some\.json.*{message}") as error:
        loaded(tmp_path, tree)
    assert "\n" not in str(error.value)


def test_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    for text, message in ((b"{", "is not JSON"), (b"\xff\xfe", "is not JSON")):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=rf"some\.json: {message}"):
            load_labelled_set(DatasetConfig(annotations=path), COCO)
    with pytest.raises(ValueError, match=r"gone\.json: cannot be read: No such file"):
        load_labelled_set(DatasetConfig(annotations=tmp_path / "gone.json"), COCO)
    with pytest.raises(ValueError, match="min_face_score is for coco17"):
        load_labelled_set(DatasetConfig(annotations=path, min_face_score=0.1), CROWDPOSE)


def test_a_picture_of_another_size_than_its_labels_is_refused(tmp_path: Path) -> None:
    path = write_set(tmp_path, 1)
    tree = json.loads(path.read_text())
    tree["images"][0]["width"] = 640
    write_json(path, tree)
    some = load_labelled_set(DatasetConfig(annotations=path), COCO)
    with pytest.raises(ImageError, match=r"000001\.png .* is \(200, 300\).*\(200, 640\)"):
        some.read(some.images[0])


def test_the_helper_paints_what_it_labels() -> None:
    """Every labelled keypoint of the test sets lies on a dot inside its picture."""
    for number in range(1, 11):
        people = people_of_picture(number, 2)
        picture = paint(SIZE, people)
        x, y = people.reshape(-1, 2).astype(int).T
        assert (picture[y, x, 1:].max(axis=1) > 100).all()
