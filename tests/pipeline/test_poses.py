"""The way back to the picture, and which decode setting wins."""

import numpy as np
import pytest

from kernels.preprocess import invert, net_from_image
from pipeline.config import load_config
from pipeline.poses import decode_settings, to_picture
from tests.painted import painted_model


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


def test_without_any_word_the_decode_is_the_published_one() -> None:
    settings = decode_settings(load_config().poses, painted_model())
    assert (settings.detection_threshold, settings.tag_threshold) == (0.1, 1.0)
    assert (settings.refine, settings.peaks_at) == ("full", "full")
    assert settings.min_person_score == pytest.approx(0)
