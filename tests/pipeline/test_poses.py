"""The way back to the picture, and which decode setting wins."""

from typing import Any

import numpy as np
import pytest

from kernels.geometry import invert, net_from_image
from nets.skeletons import COCO
from pipeline.config import load_config
from pipeline.messages import NetOutput
from pipeline.poses import FindPoses, decode_settings, to_picture
from tests.support.painted import painted_model
from tests.support.queue_peer import make_frame


def test_keypoints_return_to_where_they_came_from() -> None:
    forward = net_from_image((481, 643), (512, 704))
    picture = np.random.default_rng(1).uniform(0, 480, (3, 17, 2))
    keypoints = np.ones((3, 17, 3), np.float32)
    keypoints[..., :2] = picture @ forward[:, :2].T + forward[:, 2]
    result = to_picture(keypoints, invert(forward))
    np.testing.assert_allclose(result[..., :2], picture, atol=1e-3)
    assert result.dtype == np.float32


def test_missing_keypoints_stay_zero() -> None:
    keypoints = np.zeros((1, 17, 3), np.float32)
    assert not to_picture(keypoints, np.array([[2.0, 0, -30], [0, 2.0, -40]])).any()


def test_the_user_wins_over_the_weights_and_the_weights_over_the_papers() -> None:
    model = painted_model(detection_threshold=0.3, min_person_score=0.2)
    config = load_config(overrides=["poses.min_person_score=0.5", "poses.refine=off"]).poses
    settings = decode_settings(config, model)
    assert settings.detection_threshold == 0.3
    assert settings.min_person_score == 0.5
    assert settings.refine == "off"
    assert settings.tag_threshold == 1.0


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        ({"refin": "off"}, "an unknown decode setting 'refin'; did you mean 'refine'?"),
        ({"nonsense": 1}, "an unknown decode setting 'nonsense'; known: detection_threshold, "),
        ({"tag_threshold": "wide"}, "a decode setting that cannot be used: tag_threshold must be"),
    ],
)
def test_what_weights_say_wrongly_is_one_line(decode: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r"^the weights of paint_reader have ") as error:
        decode_settings(load_config().poses, painted_model(**decode))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_without_any_word_the_decode_is_the_published_one() -> None:
    settings = decode_settings(load_config().poses, painted_model())
    assert (settings.detection_threshold, settings.tag_threshold) == (0.1, 1.0)
    assert (settings.refine, settings.peaks_at) == ("full", "full")
    assert settings.min_person_score == pytest.approx(0)


def test_refine_can_be_switched_off_and_on_between_two_frames() -> None:
    """A keypoint without a peak is filled, or left missing; the rest stays what it is."""
    find_poses = FindPoses(COCO, decode_settings(load_config().poses, painted_model()))
    levels = np.zeros((1, 17, 16, 16), np.float32)
    levels[0, np.arange(16), np.arange(16) % 4 * 4, np.arange(16)] = 0.9
    levels[0, 16, 8, 8] = 0.05  # too weak for a peak
    output = NetOutput(
        frames=(make_frame(0),), levels=(levels,), tags=np.ones((1, 17, 16, 16, 1), np.float32),
        net_size=(64, 64), image_from_net=np.array([[[1.0, 0, 0], [0, 1.0, 0]]]),
    )  # fmt: skip
    [full] = find_poses(output)
    find_poses.set_refine("off")
    [off] = find_poses(output)
    find_poses.set_refine("full")
    [again] = find_poses(output)
    assert full.filled.any()
    assert not off.filled.any()
    np.testing.assert_array_equal(off.keypoints[~full.filled], full.keypoints[~full.filled])
    np.testing.assert_array_equal(again.keypoints, full.keypoints)
