"""Messages: every one against the published JSON Schema, and the documents against both."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nets.skeletons import SKELETONS
from pipeline.runtime.status import Degraded, StreamStatus
from pipeline.sinks.schema import (
    encode_json,
    encode_msgpack,
    new_session,
    pose_message,
    status_message,
    topic,
)
from tests.support.people import crowd, poses_of, standing_person
from tests.support.places import ROOT

DOCS = ROOT / "docs"
SCHEMA = json.loads((DOCS / "pose-1.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def decoded(message: dict[str, Any]) -> dict[str, Any]:
    """The message as a subscriber gets it, held against the schema."""
    received: dict[str, Any] = json.loads(encode_json(message))
    VALIDATOR.validate(received)
    return received


def status() -> dict[str, Any]:
    state = StreamStatus("running", 24.971, {"newer": 3}, {"p50": 31.44, "p95": 40.0})
    return status_message("cam1", state, session="s", seq=4, unix_s=1.5, overflows=2)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_message_says_what_the_poses_say() -> None:
    keypoints = crowd(3, (720, 1280))
    filled = np.zeros((3, 17), dtype=bool)
    filled[1, 4] = True
    poses = poses_of(keypoints, filled=filled, ids=np.array([7, -1, 0]), index=12, pts_seconds=0.4)
    message = decoded(pose_message(poses, session="s", seq=5))
    assert (message["stream"], message["frame"], message["seq"]) == ("cam1", 12, 5)
    assert (message["size"], message["skeleton"]) == ([720, 1280], "coco17")
    assert message["pts_seconds"] == 0.4
    assert message["captured_unix_s"] == 1795300000.123
    assert message["latency_ms"] == 31.4
    people = message["people"]
    assert [person["id"] for person in people] == [7, None, 0]
    assert people[1]["filled"] == [0] * 4 + [1] + [0] * 12
    for person, truth in zip(people, keypoints, strict=True):
        seen = np.array(person["keypoints"])
        assert np.abs(seen[:, :2] - truth[:, :2]).max() <= 0.0501
        assert np.abs(seen[:, 2] - truth[:, 2]).max() <= 0.000051


def test_smoothed_keypoints_stand_beside_the_raw_ones_or_are_null() -> None:
    keypoints = crowd(2, (720, 1280))
    smoothed = keypoints[..., :2] + 3
    message = decoded(pose_message(poses_of(keypoints, smoothed=smoothed), session="s", seq=0))
    for person, calm in zip(message["people"], smoothed, strict=True):
        assert np.abs(np.array(person["smoothed"]) - calm).max() <= 0.0501
    raw = decoded(pose_message(poses_of(keypoints), session="s", seq=0))
    assert [person["smoothed"] for person in raw["people"]] == [None, None]
    for person, plain in zip(message["people"], raw["people"], strict=True):
        assert person["keypoints"] == plain["keypoints"]


def test_numbers_are_rounded_and_short() -> None:
    text = encode_json(pose_message(poses_of(crowd(5, (720, 1280))), session="s", seq=0)).decode()
    people = text[text.index('"people"') :]
    assert max(len(number.partition(".")[2]) for number in re.findall(r"[\d.]+", people)) <= 4
    assert "e-" not in people
    assert "-0.0" not in people


def test_small_negative_coordinates_are_not_minus_zero() -> None:
    person = standing_person(100, 10, 50)[None]
    person[0, 0, :2] = -0.04, -0.01
    message = pose_message(poses_of(person), session="s", seq=0)
    assert "-0.0" not in encode_json(message).decode()


def test_the_box_is_that_of_found_keypoints_and_of_filled_ones_only_without_others() -> None:
    people = np.zeros((3, 17, 3), dtype=np.float32)
    people[0, :3] = [[10, 20, 0.5], [30, 60, 0.5], [500, 600, 0.5]]
    people[1, :2] = [[100, 100, 0.5], [110, 140, 0.5]]
    filled = np.zeros((3, 17), dtype=bool)
    filled[0, 2] = True
    filled[1] = True
    message = decoded(pose_message(poses_of(people, filled=filled), session="s", seq=0))
    boxes = [person["bbox"] for person in message["people"]]
    assert boxes == [[10, 20, 20, 40], [100, 100, 10, 40], None]


@settings(max_examples=50, deadline=None)
@given(
    num_people=st.integers(0, 4),
    num_keypoints=st.sampled_from([17, 14]),
    seed=st.integers(0, 2**31),
    far=st.sampled_from([1.0, 1e4, 1e-6]),
)
def test_every_message_obeys_the_schema(
    num_people: int, num_keypoints: int, seed: int, far: float
) -> None:
    rng = np.random.default_rng(seed)
    keypoints = rng.normal(0, 100 * far, (num_people, num_keypoints, 3))
    keypoints[..., 2] = rng.uniform(0, 1, keypoints.shape[:2])
    keypoints[rng.random(keypoints.shape[:2]) < 0.3] = 0
    filled = rng.random((num_people, num_keypoints)) < 0.5
    ids = rng.integers(-1, 5, num_people)
    smoothed = keypoints[..., :2] if seed % 2 else None
    poses = poses_of(keypoints, filled=filled, ids=ids, pts_seconds=None, smoothed=smoothed)
    message = pose_message(poses, session=new_session(), seq=seed)
    assert decoded(message)["pts_seconds"] is None
    VALIDATOR.validate(msgpack.unpackb(encode_msgpack(message)))


def test_status_obeys_the_schema_and_msgpack_says_the_same() -> None:
    message = decoded(status())
    assert message["dropped"] == {"newer": 3}
    assert message["fps"] == 24.97
    assert msgpack.unpackb(encode_msgpack(status())) == message


def test_what_is_given_up_under_load_obeys_the_schema() -> None:
    given_up: Degraded = {
        "step": 3, "input_size": 384, "refine": "off", "fps": 6.4, "reason": "too much"
    }  # fmt: skip
    state = StreamStatus("live", 6.4, degraded=given_up)
    message = decoded(status_message("a", state, session="s", seq=0, unix_s=1.5, overflows=0))
    assert message["degraded"] == given_up
    for key in given_up:
        without = {other: value for other, value in message["degraded"].items() if other != key}
        assert not VALIDATOR.is_valid({**message, "degraded": without}), key


@pytest.mark.parametrize("where", ["keypoints", "scores", "smoothed"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_json_cannot_say_is_refused(where: str, number: float) -> None:
    people = crowd(2, (720, 1280))
    poses = poses_of(people, smoothed=people[..., :2])
    spoilt = getattr(poses, where).copy()
    spoilt.flat[4 % spoilt.size] = number
    with pytest.raises(ValueError, match="not finite"):
        pose_message(replace(poses, **{where: spoilt}), session="s", seq=0)


@pytest.mark.parametrize(
    "spoil",
    [
        {"schema": "pose/2"},
        {"seq": -1},
        {"stream": "cam/1"},
        {"size": [720]},
        {"people": None},
        {"skeleton": "crowdpose14"},
        {"captured_unix_s": None},
    ],
)
def test_the_schema_refuses_what_is_wrong(spoil: dict[str, Any]) -> None:
    message = pose_message(poses_of(crowd(1, (720, 1280))), session="s", seq=0)
    VALIDATOR.validate(message)
    assert not VALIDATOR.is_valid({**message, **spoil})
    for field in message:
        without = {key: value for key, value in message.items() if key != field}
        assert not VALIDATOR.is_valid(without), field


def test_schema_document_and_messages_name_the_same_fields() -> None:
    still = poses_of(crowd(1, (720, 1280)), image_name="a.jpg")
    still = replace(still, frame=replace(still.frame, pixel_aspect=2.0))  # with all it can say
    pose = pose_message(still, session="s", seq=0)
    definitions = SCHEMA["$defs"]
    text = (DOCS / "schema.md").read_text(encoding="utf-8")
    for kind, fields in (
        ("pose", pose),
        ("person", pose["people"][0]),
        ("status", status()),
    ):
        assert set(definitions[kind]["properties"]) == set(fields)
        assert set(definitions[kind]["required"]) == set(fields) - {"pixel_aspect", "file"}
        assert [field for field in fields if f"`{field}`" not in text] == []
    assert definitions["pose"]["properties"]["skeleton"]["enum"] == list(SKELETONS)
    for skeleton in SKELETONS.values():
        assert f"| `{skeleton.name}` | {', '.join(skeleton.keypoint_names)} |" in text


def test_a_topic_ends_where_the_name_ends() -> None:
    assert topic("pose", "cam1") == b"pose/cam1/"
    assert not topic("pose", "cam10").startswith(topic("pose", "cam1"))
    for name in ("a/b", "a\0b", ""):
        with pytest.raises(ValueError, match="stream's name"):
            topic("pose", name)
