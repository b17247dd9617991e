"""Half of the decode made perfect: true grouping of predicted peaks, and the reverse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.decode import DecodeSettings
from kernels.people import People
from nets.engines.load import load_engine
from nets.skeletons import COCO
from pipeline.estimator import frame_of_picture
from pipeline.messages import Poses
from tests.support.painted import grid_people, paint, painted_model
from training.labels import LabelledImage
from training.oracle import (
    FindPosesByOracle,
    PictureMaps,
    predicted_peaks_grouped,
    true_keypoints_grouped,
)
from training.predict import PredictSettings, evaluation_estimator

SIZE = (300, 420)
MODEL = painted_model()


def labelled(people: np.ndarray, visible: np.ndarray | None = None) -> LabelledImage:
    """Labels of people (P, K, 2)."""
    v = np.full(people.shape[:2], 2.0) if visible is None else visible
    return LabelledImage(
        image_id=1,
        file_name="1.png",
        size=SIZE,
        keypoints=np.concatenate([people, v[..., None]], axis=2).astype(np.float32),
        boxes=np.zeros((len(people), 4), np.float32),
        areas=np.full(len(people), 4000, np.float32),
        ignore=(),
        only=None,
    )


def decoded(
    group: Callable[..., People],
    image: LabelledImage,
    picture: np.ndarray,
    *,
    without_tags: bool = False,
) -> Poses:
    """Poses in picture pixels, of an oracle that may be denied the tags."""

    def blind(maps: PictureMaps, **arguments: Any) -> People:
        return group(maps._replace(tags=np.zeros_like(maps.tags)), **arguments)

    stage = FindPosesByOracle(
        blind if without_tags else group, {image.image_id: image}, COCO, DecodeSettings()
    )
    engine = load_engine(MODEL, engine="torch")
    settings = PredictSettings(input_size=256, size_multiple=32)
    estimate = evaluation_estimator(engine, MODEL, settings, find_poses=stage)
    (poses,) = estimate([frame_of_picture(picture, source="test", index=image.image_id)])
    return poses


def from_the_left(people: Poses) -> np.ndarray:
    """(P, K, 3) keypoints."""
    return people.keypoints[np.argsort(people.keypoints[:, 0, 0])]


def test_true_keypoints_come_back_whole_and_exact() -> None:
    people = grid_people(3) + 0.3
    found = decoded(true_keypoints_grouped, labelled(people), paint(SIZE, people))
    np.testing.assert_allclose(from_the_left(found)[..., :2], people, atol=1e-3)
    np.testing.assert_array_equal(found.scores, 1)


def test_without_tags_true_keypoints_are_mixed_up() -> None:
    """The order in which they are handed over must not give the answer away."""
    people = grid_people(4)
    found = decoded(
        true_keypoints_grouped, labelled(people), paint(SIZE, people), without_tags=True
    )
    distance = np.abs(from_the_left(found)[:4, :, :2] - people).max(axis=2)
    assert (distance < 1).mean() < 0.6


def test_labels_on_the_edge_and_none_at_all() -> None:
    people = grid_people(1)
    people[0, 3] = (SIZE[1], SIZE[0])  # labels may lie one pixel outside
    found = decoded(true_keypoints_grouped, labelled(people), paint(SIZE, people[:, :3]))
    distance = np.abs(found.keypoints[:, 3, :2] - people[0, 3]).max(axis=1)
    assert distance.min() < 1e-3
    nobody = decoded(true_keypoints_grouped, labelled(people[:0]), paint(SIZE, people))
    assert nobody.keypoints.shape == (0, 17, 3)


def test_unlabelled_keypoints_are_missing() -> None:
    people = grid_people(2)
    visible = np.full((2, 17), 2.0)
    visible[0, 5] = 0
    visible[1, 9] = -1
    for group in (true_keypoints_grouped, predicted_peaks_grouped):
        found = from_the_left(decoded(group, labelled(people, visible), paint(SIZE, people)))
        np.testing.assert_array_equal(found[..., 2] > 0, visible > 0)


def test_predicted_peaks_need_no_tags() -> None:
    people = grid_people(4)
    found = decoded(
        predicted_peaks_grouped, labelled(people), paint(SIZE, people), without_tags=True
    )
    np.testing.assert_allclose(found.keypoints[..., :2], people, atol=2)
    assert (found.scores > 0.1).all()


@pytest.mark.parametrize("shift_px", [4, 60])
def test_peaks_out_of_reach_are_nobodys(shift_px: float) -> None:
    people = grid_people(1, origin=(100, 40))
    found = decoded(
        predicted_peaks_grouped,
        labelled(people + (0, shift_px)),
        paint(SIZE, people),
    )
    assert (found.keypoints[:, :, 2] > 0).any() == (shift_px == 4)
