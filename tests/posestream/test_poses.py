"""Poses: arrays, tables, messages and drawings of the same people."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from pipeline.estimator import frame_of_picture
from pipeline.sinks.files import CocoResults
from posestream.poses import Poses
from tests.support.people import crowd, poses_of
from tests.support.places import ROOT

SCHEMA = json.loads((ROOT / "docs" / "pose-1.schema.json").read_text(encoding="utf-8"))


def some_poses(num_people: int = 3) -> Poses:
    keypoints = crowd(num_people, (240, 320))
    if num_people:
        keypoints[0, 4] = 0
    ids = np.array([7, -1, 0, *range(1, num_people)])[:num_people]
    found = poses_of(keypoints, ids=ids, index=12, pts_seconds=0.4)
    picture = np.full((240, 320, 3), 90, np.uint8)
    picture[..., 2] = 30
    decoded = frame_of_picture(picture, source="cam1", index=12)
    return Poses(replace(found, frame=replace(decoded, pts_seconds=0.4)))


def test_arrays_say_what_the_stages_found() -> None:
    poses = some_poses()
    np.testing.assert_array_equal(poses.keypoints, poses.found.keypoints[..., :2])
    np.testing.assert_array_equal(poses.scores, poses.found.keypoints[..., 2])
    assert poses.ids.tolist() == [7, -1, 0]
    assert poses.filled.shape == (3, 17)
    assert len(poses.keypoint_names) == 17
    assert (len(poses), poses.skeleton) == (3, "coco17")
    assert "3 people, coco17" in repr(poses)


def test_boxes_hold_the_keypoints_found() -> None:
    poses = some_poses()
    seen = poses.scores > 0
    for box, xy, is_seen in zip(poses.boxes, poses.keypoints, seen, strict=True):
        low, high = xy[is_seen].min(axis=0), xy[is_seen].max(axis=0)
        np.testing.assert_allclose(box, [*low, *(high - low)], rtol=1e-5)


def test_nobody_at_all() -> None:
    poses = some_poses(0)
    assert poses.boxes.shape == (0, 4)
    assert poses.keypoints.shape == (0, 17, 2)
    assert poses.to_rows() == poses.to_coco() == poses.to_dict()["people"] == []
    np.testing.assert_array_equal(poses.draw(), poses.frame.image)


def test_a_person_without_keypoints_has_no_box() -> None:
    poses = some_poses()
    poses.found.keypoints[1] = 0
    assert np.isnan(poses.boxes).all(axis=1).tolist() == [False, True, False]


def test_the_dict_is_a_message_of_the_published_schema() -> None:
    message = json.loads(json.dumps(some_poses().to_dict()))
    jsonschema.Draft202012Validator(SCHEMA).validate(message)
    assert (message["stream"], message["frame"]) == ("cam1", 12)
    assert [person["id"] for person in message["people"]] == [7, None, 0]


def test_coco_results_are_those_of_the_file_to_its_rounding(tmp_path: Path) -> None:
    poses = some_poses()
    path = tmp_path / "results.json"
    sink = CocoResults(path)
    sink(poses.found)
    sink.close()
    for ours, written in zip(poses.to_coco(), json.loads(path.read_text()), strict=True):
        assert ours["image_id"] == written["image_id"] == 12
        np.testing.assert_allclose(ours["keypoints"], written["keypoints"], atol=6e-3)
    assert poses.to_coco(image_id=5)[0]["image_id"] == 5


def test_rows_hold_every_keypoint_found_once() -> None:
    poses = some_poses()
    rows = poses.to_rows()
    assert len(rows) == (poses.scores > 0).sum() == 3 * 17 - 1
    names = [row["keypoint"] for row in rows if row["person"] == 0]
    assert "right_ear" not in names  # keypoint 4, which was not found
    assert {row["id"] for row in rows} == {7, None, 0}
    first = rows[0]
    assert (first["source"], first["frame"], first["pts_seconds"]) == ("cam1", 12, 0.4)
    assert (first["x"], first["y"]) == tuple(poses.keypoints[0, 0].tolist())
    assert json.loads(json.dumps(rows)) == rows


def test_drawing_leaves_the_picture_as_it_was() -> None:
    poses = some_poses()
    picture = np.zeros((240, 320, 3), np.uint8)
    drawn = poses.draw(picture, labels=False, boxes=True)
    assert not picture.any()
    assert drawn.any()
    assert (poses.draw() != poses.frame.image).any()


def test_order_is_that_of_the_channels_given_and_returned() -> None:
    bgr = some_poses()
    rgb = Poses(bgr.found, "rgb")
    np.testing.assert_array_equal(rgb.frame.image, bgr.frame.image[..., ::-1])
    np.testing.assert_array_equal(rgb.draw(rgb.frame.image), bgr.draw()[..., ::-1])


def test_a_frame_without_pixels_says_so() -> None:
    poses = Poses(some_poses().found.without_pixels())
    with pytest.raises(ValueError, match="carries no pixels"):
        poses.draw()
    with pytest.raises(ValueError, match="must be a NumPy array"):
        poses.draw(np.zeros((5, 5), np.uint8))
