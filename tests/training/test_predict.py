"""A model as evaluation runs it, in the painted world where every keypoint is known."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.decode import DecodeSettings
from kernels.geometry import network_size
from nets.aggregation import Maps
from nets.engines.load import load_engine
from nets.skeletons import COCO
from pipeline.estimator import Estimator, frame_of_picture
from pipeline.inference import Inference
from pipeline.messages import NetOutput, Poses
from pipeline.poses import FindPoses
from pipeline.preprocess import Preprocess
from tests.support.painted import grid_people, paint, painted_model
from training.image_store import ImageStore
from training.predict import (
    STAGES,
    PredictSettings,
    evaluation_decode,
    evaluation_estimator,
    predict_images,
)

SIZE = (256, 384)
MODEL = painted_model()
SETTINGS = PredictSettings(input_size=256, size_multiple=32)


def estimator(settings: PredictSettings = SETTINGS) -> Estimator:
    return evaluation_estimator(load_engine(MODEL, engine="torch"), MODEL, settings)


def poses_of(picture: np.ndarray, settings: PredictSettings = SETTINGS) -> Poses:
    (poses,) = estimator(settings)([frame_of_picture(picture, source="test")])
    return poses


def assert_found(poses: Poses, expected: np.ndarray, *, within_px: float) -> None:
    """Each expected person (P, K, 2) is found, and nobody else."""
    assert poses.keypoints.shape == (*expected.shape[:2], 3)
    order = np.argsort(poses.keypoints[:, 0, 0])
    distance = np.abs(poses.keypoints[order, :, :2] - expected).max()
    assert distance < within_px


def test_painted_people_are_found_in_picture_pixels() -> None:
    people = grid_people(3)
    poses = poses_of(paint(SIZE, people))
    assert_found(poses, people, within_px=2)
    assert tuple(poses.stage_ms) == STAGES


@pytest.mark.parametrize("size", [(256, 384), (300, 411), (515, 377)])
def test_the_decode_of_a_stream_differs_only_in_what_it_hides(size: tuple[int, int]) -> None:
    """With the published settings a stream's stages give the very same numbers."""
    picture = paint(size, grid_people(2))
    stages = Estimator(
        Preprocess(
            input_size=256, mean=MODEL.mean, std=MODEL.std, size_multiple=32, prefilter=False
        ),
        Inference(load_engine(MODEL, engine="torch")),
        FindPoses(COCO, DecodeSettings()),
    )
    (streamed,) = stages([frame_of_picture(picture, source="test")])
    evaluated = poses_of(picture)
    np.testing.assert_array_equal(evaluated.keypoints, streamed.keypoints)
    np.testing.assert_array_equal(evaluated.scores, streamed.scores)


class Recorder:
    """An engine that notes the sizes of its inputs and sees nobody."""

    name, precision, device = "recorder", "fp32", "cpu"

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Maps:
        self.sizes.append(tuple(images.shape))
        batch, _, height, width = images.shape
        levels = [torch.zeros(batch, 17, height // n, width // n) for n in (4, 2)]
        return Maps(tuple(levels), torch.zeros(batch, 17, height // 4, width // 4, 1))


class Keeper:
    """Keeps the maps that the decode would get and finds nobody."""

    output: NetOutput

    def __call__(self, output: NetOutput) -> Iterator[Poses]:
        self.output = output
        return FindPoses(COCO, DecodeSettings())(output)


def run_recorded(settings: PredictSettings, size: tuple[int, int]) -> tuple[Recorder, NetOutput]:
    engine, keeper = Recorder(), Keeper()
    estimate = evaluation_estimator(
        engine,  # type: ignore[arg-type]  # a name of its own
        MODEL,
        settings,
        find_poses=keeper,
    )
    estimate([frame_of_picture(np.zeros((*size, 3), np.uint8), source="test")])
    return engine, keeper.output


def test_scales_have_the_published_sizes_and_meet_at_scale_one() -> None:
    settings = PredictSettings(input_size=512, size_multiple=64, scales=(0.5, 1, 2))
    engine, output = run_recorded(settings, (480, 640))
    assert sorted(size[2:] for size in engine.sizes) == [(256, 384), (512, 768), (1024, 1536)]
    assert output.net_size == (512, 768)
    assert [level.shape for level in output.levels] == [(1, 17, 512, 768)]
    assert output.tags.shape == (1, 17, 512, 768, 1)


def test_a_scale_alone_is_seen_at_the_size_of_scale_one() -> None:
    settings = PredictSettings(input_size=256, size_multiple=64, scales=(2,))
    engine, output = run_recorded(settings, (256, 384))
    assert engine.sizes == [(1, 3, 512, 768)]
    assert output.net_size == (256, 384)
    assert output.image_from_net[0, 0, 0] == pytest.approx(1)


def test_the_flip_test_runs_the_mirror_and_doubles_the_tags() -> None:
    settings = PredictSettings(input_size=256, size_multiple=64, flip=True)
    engine, output = run_recorded(settings, (256, 256))
    assert engine.sizes == [(2, 3, 256, 256)]
    assert output.tags.shape == (1, 17, 64, 64, 2)


def test_several_scales_find_painted_people() -> None:
    people = grid_people(2)
    settings = PredictSettings(input_size=256, size_multiple=32, scales=(1, 2))
    poses = poses_of(paint(SIZE, people), settings)
    assert_found(poses, people, within_px=3)
    assert tuple(poses.stage_ms) == STAGES


def test_an_elongated_picture_fits_where_it_is_told_to() -> None:
    people = grid_people(2)
    size = (256, 1024)
    picture = paint(size, people)
    capped = PredictSettings(input_size=256, size_multiple=32, max_long_side=768)
    assert max(network_size(size, input_size=256, size_multiple=32)) > 768
    assert_found(poses_of(picture, capped), people, within_px=3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scales": (0.5, 2)}, "must include 1"),
        ({"scales": ()}, "different and positive"),
        ({"scales": (1, 1)}, "different and positive"),
        ({"scales": (1, 1.3)}, "scale 1.3 beside 1 makes sides that are multiples of 41.6"),
        ({"input_size": 0}, "must be positive"),
        ({"scales": (1, 2), "max_long_side": 512}, "scale 1 alone"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], complaint: str) -> None:
    fields: dict[str, object] = {"input_size": 256, "size_multiple": 32}
    with pytest.raises(ValueError, match=complaint):
        PredictSettings(**(fields | changes))  # type: ignore[arg-type]


# --- which decode --------------------------------------------------------------------------------


def test_the_weights_choose_but_nothing_is_hidden() -> None:
    model = painted_model(
        detection_threshold=0.3, min_person_score=0.2, min_keypoints=3, duplicate_oks=0.3
    )
    assert evaluation_decode(model) == DecodeSettings(detection_threshold=0.3)
    assert evaluation_decode(MODEL) == DecodeSettings()


def test_what_the_user_says_wins() -> None:
    model = painted_model(detection_threshold=0.3)
    chosen = evaluation_decode(model, {"detection_threshold": 0.2, "duplicate_oks": 0.5})
    assert chosen == DecodeSettings(detection_threshold=0.2, duplicate_oks=0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heat": 0.1}, "no decode setting is called 'heat'; known: detection_threshold"),
        ({"poses.refine": "off"}, "'poses.refine'; did you mean 'refine'"),
        ({"detection_threshold": "low"}, "detection_threshold must be a number"),
    ],
)
def test_decode_settings_that_are_none(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluation_decode(MODEL, changes)


def test_a_decode_setting_of_the_weights_that_is_none() -> None:
    with pytest.raises(ValueError, match="'refin'; did you mean 'refine'"):
        evaluation_decode(painted_model(refin=1))


# --- results and many pictures -------------------------------------------------------------------


def test_what_cannot_be_read_is_named_and_counted(tmp_path: Path) -> None:
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), paint(SIZE, grid_people(i)))
    (tmp_path / "3.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "4.png"), paint((300, 300), grid_people(1)))
    images = [
        {"id": 10 * i, "file_name": f"{i}.png", "height": 256, "width": 384} for i in range(1, 6)
    ]
    watched: list[tuple[int, int | None]] = []
    done = predict_images(
        estimator(),
        ImageStore(tmp_path),
        images,
        watch=lambda image, poses: watched.append(
            (image["id"], None if poses is None else len(poses.scores))
        ),
    )
    assert done.failed == ["3.png", "4.png", "5.png"]  # damaged, of another size, not there
    assert done.num_people == [1, 2]
    assert [row["image_id"] for row in done.results] == [10, 20, 20]
    assert {name: len(ms) for name, ms in done.stage_ms.items()} == dict.fromkeys(STAGES, 2)
    assert watched == [(10, 1), (20, 2)] + [(10 * i, None) for i in (3, 4, 5)]
