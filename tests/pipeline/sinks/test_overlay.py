"""Drawing: what is drawn where, in which colour, and how often."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nets.skeletons import COCO, CROWDPOSE
from pipeline.messages import Poses
from pipeline.sinks.overlay import (
    SIDE_COLORS,
    SharedPictures,
    draw_poses,
    drawn_picture,
    line_width,
)
from tests.support.people import crowd, poses_of, standing_person

GREY = 90
LEFT_ELBOW, RIGHT_ELBOW = 7, 8


def grey(height: int = 360, width: int = 480) -> np.ndarray:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def changed(image: np.ndarray) -> np.ndarray:
    """(h, w) bool: where the drawing left the grey."""
    return np.asarray(np.any(image != GREY, axis=-1))


def draw(image: np.ndarray, keypoints: np.ndarray, **options: object) -> np.ndarray:
    filled = options.pop("filled", None)
    ids = options.pop("ids", None)
    calm = options.pop("calm", None)
    poses = poses_of(keypoints, size=image.shape[:2], filled=filled, ids=ids, smoothed=calm)  # type: ignore[arg-type]
    return draw_poses(image, poses, COCO, **options)  # type: ignore[arg-type]


def one(centre_x: float = 240, top: float = 40, height: float = 300) -> np.ndarray:
    return standing_person(centre_x, top, height)[None]


def test_draws_in_place_and_nobody_leaves_the_picture_alone() -> None:
    image = grey()
    assert draw(image, one()) is image
    assert changed(image).any()
    untouched = grey()
    draw(untouched, np.zeros((0, 17, 3)), boxes=True)
    assert not changed(untouched).any()


def test_limbs_have_the_colour_of_their_side() -> None:
    person = one()
    image = draw(grey(), person)
    for a, b, side in ((7, 9, "left"), (8, 10, "right"), (11, 12, "centre"), (13, 15, "left")):
        x, y = person[0, [a, b], :2].mean(axis=0).round().astype(int)
        assert tuple(image[y, x].tolist()) == SIDE_COLORS[side], (a, b)


def test_limbs_may_have_the_colour_of_their_person_instead() -> None:
    people = np.concatenate([one(120), one(360)])
    image = draw(grey(), people, ids=np.array([1, 2]), colors="id", labels=False)
    colors = []
    for person in people:
        places = [person[[a, b], :2].mean(axis=0).round().astype(int) for a, b in ((7, 9), (8, 10))]
        left, right = (tuple(image[y, x].tolist()) for x, y in places)
        assert left == right
        colors.append(left)
    assert colors[0] != colors[1]


def test_smoothed_keypoints_are_drawn_where_there_are_any_unless_raw_ones_are_asked_for() -> None:
    raw, moved = one(120), one(360)
    calm = moved[..., :2]
    options = {"labels": False}
    np.testing.assert_array_equal(
        draw(grey(), raw, calm=calm, **options), draw(grey(), moved, **options)
    )
    np.testing.assert_array_equal(
        draw(grey(), raw, calm=calm, smoothed=False, **options), draw(grey(), raw, **options)
    )


def test_keypoints_below_their_threshold_and_missing_ones_are_not_drawn() -> None:
    person = one()
    person[0, 9] = 0  # the left wrist is missing
    person[0, 10, 2] = 0.2
    without = person.copy()
    without[0, 10] = 0
    image = draw(grey(), person, min_keypoint_score=0.3, labels=False)
    np.testing.assert_array_equal(image, draw(grey(), without, labels=False))
    assert not changed(image)[:20, :20].any(), "a missing keypoint was drawn at (0, 0)"
    assert changed(draw(grey(), person, labels=False)).sum() > changed(image).sum()
    assert not changed(draw(grey(), person, min_keypoint_score=0.95)).any()
    assert changed(draw(grey(), np.zeros((1, 17, 3)), min_keypoint_score=0.0)).sum() == 0


@pytest.mark.parametrize("x", [100.0, 100.25, 100.5, 100.8125])
def test_a_keypoint_is_drawn_where_it_is_to_a_fraction_of_a_pixel(x: float) -> None:
    lone = np.zeros((1, 17, 3), dtype=np.float32)
    lone[0, 5] = x, 80.375, 0.9
    image = draw(np.zeros((160, 200, 3), dtype=np.uint8), lone, labels=False)
    weight = image.sum(axis=-1, dtype=np.float64)
    rows, columns = np.indices(weight.shape)
    assert (columns * weight).sum() / weight.sum() == pytest.approx(x, abs=0.13)
    assert (rows * weight).sum() / weight.sum() == pytest.approx(80.375, abs=0.13)


def test_a_filled_keypoint_is_hollow_and_its_limbs_are_thin() -> None:
    person = one()
    filled = np.zeros((1, 17), dtype=bool)
    filled[0, LEFT_ELBOW] = True
    plain, hollow = draw(grey(), person), draw(grey(), person, filled=filled)
    x, y = person[0, LEFT_ELBOW, :2].round().astype(int)
    assert plain[y, x].min() > 200
    assert hollow[y, x].max() < 60
    # The other arm is the same in both; the filled one covers less.
    left, right = np.s_[:, 255:], np.s_[:, :230]
    np.testing.assert_array_equal(plain[right], hollow[right])
    color = np.array(SIDE_COLORS["left"])
    assert (hollow[left] == color).all(-1).sum() < 0.8 * (plain[left] == color).all(-1).sum()


def test_lines_are_wider_for_nearer_people_and_larger_pictures() -> None:
    sizes = [20, 60, 150, 400, 900]
    for picture in ((360, 640), (720, 1280), (2160, 3840)):
        widths = [line_width(size, picture) for size in sizes]
        assert widths == sorted(widths)
        assert widths[0] >= max(1, picture[0] // 600)
    assert line_width(20, (2160, 3840)) > line_width(20, (360, 640))
    assert line_width(5000, (360, 640)) <= 8


@pytest.mark.parametrize("corner", [(0, 0), (480, 0), (0, 350), (480, 350), (-300, 100)])
def test_labels_stay_inside_the_picture(corner: tuple[int, int]) -> None:
    person = one(float(corner[0]), float(corner[1]))
    with_label = draw(grey(), person)
    without = draw(grey(), person, labels=False)
    plate = (with_label != without).any(axis=-1)
    middle = draw(grey(), one())
    whole = (middle != draw(grey(), one(), labels=False)).any(axis=-1)
    assert plate.sum() == pytest.approx(whole.sum(), rel=0.15)


def test_labels_of_people_in_one_place_do_not_cover_each_other() -> None:
    both = np.concatenate([one(), one(250)])
    together = draw(grey(), both)
    for i in range(2):
        alone = draw(grey(), both[i : i + 1], ids=np.array([i]))
        color = alone[changed(alone)][0]  # the plate is what is highest up
        assert (together == color).all(-1).sum() == (alone == color).all(-1).sum()


def test_whatever_the_numbers_drawing_does_not_fail() -> None:
    people = crowd(6, (360, 480))
    people[0, 3, 0] = np.nan
    people[1, 4, 1] = np.inf
    people[2, 5, :2] = 3e38
    people[3, :, :2] -= 5000
    people[4, 1:] = 0  # a single keypoint: a box without extent
    draw(grey(), people, boxes=True)
    draw(grey(4, 3), people, boxes=True)


def test_crowdpose_has_its_own_limbs() -> None:
    person = np.zeros((1, 14, 3), dtype=np.float32)
    person[0, :, 2] = 0.9
    person[0, :, 0] = np.linspace(50, 400, 14)
    person[0, :, 1] = 100 + 80 * (np.arange(14) % 3)
    image = draw_poses(grey(), poses_of(person, size=(360, 480)), CROWDPOSE, labels=False)
    assert changed(image).sum() > 1000


def test_a_picture_that_several_sinks_show_is_drawn_once_and_cannot_be_changed() -> None:
    drawn: list[Poses] = []

    def count(poses: Poses) -> np.ndarray:
        drawn.append(poses)
        return drawn_picture(poses)

    shared = SharedPictures(count)
    frames = [
        poses_of(one(), image=grey(), source=source, index=index)
        for index in range(3)
        for source in ("cam1", "cam2")
    ]
    first = [shared(poses) for poses in frames[:4]]
    for poses, image in zip(frames[:4], first, strict=True):
        assert shared(poses) is image
        np.testing.assert_array_equal(image, drawn_picture(poses))
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0] = 0
    assert len(drawn) == 4
    for poses in frames[4:]:
        shared(poses)
    assert shared(frames[0]) is not first[0], "pictures are kept for ever"


def test_two_sinks_in_two_threads_get_one_picture() -> None:
    calls: list[int] = []

    def slow(poses: Poses) -> np.ndarray:
        calls.append(poses.frame.index)
        time.sleep(0.02)
        return drawn_picture(poses)

    shared = SharedPictures(slow)
    poses = poses_of(one(), image=grey())
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(shared, [poses] * 4))
    assert calls == [0]
    assert all(image is images[0] for image in images)
