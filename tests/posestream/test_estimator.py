"""PoseEstimator on painted people whose keypoints are known."""

import threading

import numpy as np
import pytest

import posestream
from tests.support.painted import grid_people, paint

SIZE = (256, 384)


@pytest.fixture(scope="module")
def people() -> np.ndarray:
    return grid_people(3)


def estimator(**more: object) -> posestream.PoseEstimator:
    return posestream.PoseEstimator(engine="torch", device="cpu", **more)  # type: ignore[arg-type]


def assert_found(poses: posestream.Poses, people: np.ndarray) -> None:
    assert len(poses) == len(people)
    order = np.argsort(poses.keypoints[:, 0, 0])
    assert np.abs(poses.keypoints[order] - people).max() < 2


def test_people_of_one_picture(people: np.ndarray) -> None:
    poses = estimator()(paint(SIZE, people))
    assert_found(poses, people)
    assert poses.scores.shape == (3, 17)
    assert poses.person_scores.shape == (3,)
    assert poses.ids.tolist() == [-1, -1, -1]
    assert poses.frame.size == SIZE


def test_a_list_gives_a_list_in_its_order(people: np.ndarray) -> None:
    pictures = [paint(SIZE, people[:2]), paint((300, 411), people), np.zeros((64, 64, 3), np.uint8)]
    estimate = estimator()
    assert [len(poses) for poses in estimate(pictures)] == [2, 3, 0]
    assert estimate([]) == []


def test_rgb_pictures_stay_rgb(people: np.ndarray) -> None:
    bgr = paint(SIZE, people)
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    of_bgr, of_rgb = estimator()(bgr), estimator(order="rgb")(rgb)
    np.testing.assert_array_equal(of_rgb.keypoints, of_bgr.keypoints)
    np.testing.assert_array_equal(of_rgb.frame.image, rgb)
    np.testing.assert_array_equal(of_rgb.draw()[..., ::-1], of_bgr.draw())


@pytest.mark.parametrize("kind", ["view", "read-only", "mirrored", "columns first"])
def test_arrays_as_they_come(people: np.ndarray, kind: str) -> None:
    picture = paint(SIZE, people)
    wide = np.zeros((SIZE[0] + 10, SIZE[1] + 10, 3), np.uint8)
    wide[3:-7, 3:-7] = picture
    read_only = picture.copy()
    read_only.flags.writeable = False
    given = {
        "view": wide[3:-7, 3:-7],
        "read-only": read_only,
        "mirrored": picture[:, ::-1].copy()[:, ::-1],
        "columns first": np.asfortranarray(picture),
    }[kind]
    assert_found(estimator()(given), people)


def test_what_is_no_picture_is_refused(people: np.ndarray) -> None:
    estimate = estimator()
    with pytest.raises(TypeError, match=r"^image must be .* got None"):
        estimate(None)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^images\[1\] must be .* drop the fourth channel"):
        estimate([paint(SIZE, people), np.zeros((4, 5, 4), np.uint8)])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order": "gbr"}, "order must be 'bgr' or 'rgb', got 'gbr'"),
        ({"input_size": 5}, "input_size"),
        ({"settings": {"poses.refin": 1}}, "did you mean 'poses.refine'"),
        ({"precision": "int4"}, "precision"),
        ({"device": "cuda:0,cuda:1"}, "device"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], said: str) -> None:
    arguments = {"device": "cpu", "engine": "torch", **settings}
    with pytest.raises(ValueError, match=said):
        posestream.PoseEstimator(**arguments)  # type: ignore[arg-type]


def test_several_threads_may_share_one(people: np.ndarray) -> None:
    estimate = estimator()
    pictures = [paint(SIZE, people[:n]) for n in (1, 2, 3)]
    counts: dict[int, list[int]] = {}

    def work(number: int) -> None:
        counts[number] = [len(estimate(pictures[number])) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {0: [1] * 3, 1: [2] * 3, 2: [3] * 3}


def test_every_picture_has_a_number_of_its_own(people: np.ndarray) -> None:
    estimate = estimator()
    picture = paint(SIZE, people)
    numbers = [poses.frame.index for poses in [estimate(picture), *estimate([picture, picture])]]
    assert numbers == [0, 1, 2]
