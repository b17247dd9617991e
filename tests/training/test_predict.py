"""A model as evaluation runs it, in the painted world where every keypoint is known."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.decode import DecodeSettings
from kernels.geometry import network_size
from kernels.people import People
from nets.aggregation import Maps
from nets.engines.load import load_engine
from nets.skeletons import COCO
from pipeline.inference import Inference
from pipeline.messages import Frame
from pipeline.poses import FindPoses
from pipeline.preprocess import Preprocess
from tests.support.painted import grid_people, paint, painted_model
from training.data import ImageStore
from training.predict import (
    STAGES,
    PictureMaps,
    Predictor,
    PredictSettings,
    coco_results,
    evaluation_decode,
    predict_images,
)

SIZE = (256, 384)
MODEL = painted_model()
SETTINGS = PredictSettings(input_size=256, size_multiple=32)


def predictor(settings: PredictSettings = SETTINGS) -> Predictor:
    return Predictor(load_engine(MODEL, engine="torch"), MODEL, settings)


def assert_found(people: People, expected: np.ndarray, *, within_px: float) -> None:
    """Each expected person (P, K, 2) is found, and nobody else."""
    assert people.keypoints.shape == (*expected.shape[:2], 3)
    order = np.argsort(people.keypoints[:, 0, 0])
    distance = np.abs(people.keypoints[order, :, :2] - expected).max()
    assert distance < within_px


def test_painted_people_are_found_in_picture_pixels() -> None:
    people = grid_people(3)
    prediction = predictor()(paint(SIZE, people))
    assert_found(prediction.people, people, within_px=2)
    assert tuple(prediction.stage_ms) == STAGES
    assert all(ms > 0 for ms in prediction.stage_ms.values())


@pytest.mark.parametrize("size", [(256, 384), (300, 411), (515, 377)])
def test_people_are_those_of_the_streams_stages(size: tuple[int, int]) -> None:
    picture = paint(size, grid_people(2))
    frame = Frame("test", 0, None, 0, 0.0, size, (picture,))
    engine = load_engine(MODEL, engine="torch")
    preprocess = Preprocess(
        input_size=256, mean=MODEL.mean, std=MODEL.std, size_multiple=32, prefilter=False
    )
    (net_input,) = preprocess([frame])
    (output,) = Inference(engine)(net_input)
    (poses,) = FindPoses(COCO, DecodeSettings())(output)
    prediction = predictor()(picture)
    np.testing.assert_array_equal(prediction.people.keypoints, poses.keypoints)
    np.testing.assert_array_equal(prediction.people.scores, poses.scores)


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
    """A grouping that keeps the maps it is given and finds nobody."""

    maps: PictureMaps

    def __call__(self, maps: PictureMaps) -> People:
        self.maps = maps
        empty = np.zeros((0, 17, 3), np.float32)
        none = np.zeros(0, np.float32)
        return People(empty, none, np.zeros((0, 17), np.bool_), np.zeros((0, 1), np.float32))


def run_recorded(settings: PredictSettings, size: tuple[int, int]) -> tuple[Recorder, PictureMaps]:
    engine, keeper = Recorder(), Keeper()
    run = Predictor(engine, MODEL, settings)  # type: ignore[arg-type]  # a name of its own
    run(np.zeros((*size, 3), np.uint8), grouping=keeper)
    return engine, keeper.maps


def test_scales_have_the_published_sizes_and_meet_at_scale_one() -> None:
    settings = PredictSettings(input_size=512, size_multiple=64, scales=(0.5, 1, 2))
    engine, maps = run_recorded(settings, (480, 640))
    assert sorted(size[2:] for size in engine.sizes) == [(256, 384), (512, 768), (1024, 1536)]
    assert maps.net_size == (512, 768)
    assert [level.shape for level in maps.levels] == [(17, 512, 768)]
    assert maps.tags.shape == (17, 512, 768, 1)


def test_the_flip_test_runs_the_mirror_and_doubles_the_tags() -> None:
    settings = PredictSettings(input_size=256, size_multiple=64, flip=True)
    engine, maps = run_recorded(settings, (256, 256))
    assert engine.sizes == [(2, 3, 256, 256)]
    assert maps.tags.shape == (17, 64, 64, 2)


def test_several_scales_find_painted_people() -> None:
    people = grid_people(2)
    settings = PredictSettings(input_size=256, size_multiple=32, scales=(1, 2))
    assert_found(predictor(settings)(paint(SIZE, people)).people, people, within_px=3)


def test_an_elongated_picture_fits_where_it_is_told_to() -> None:
    people = grid_people(2)
    size = (256, 1024)
    picture = paint(size, people)
    capped = PredictSettings(input_size=256, size_multiple=32, max_long_side=768)
    assert max(network_size(size, input_size=256, size_multiple=32)) > 768
    assert_found(predictor(capped)(picture).people, people, within_px=3)


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


def test_coco_results_hold_every_person_whole() -> None:
    people = predictor()(paint(SIZE, grid_people(2))).people
    rows = coco_results(42, people)
    assert [row["score"] for row in rows] == people.scores.tolist()
    assert {(row["image_id"], row["category_id"]) for row in rows} == {(42, 1)}
    flat = np.array([row["keypoints"] for row in rows])
    np.testing.assert_array_equal(flat.reshape(-1, 17, 3), people.keypoints)


def test_what_cannot_be_read_is_named_and_counted(tmp_path: Path) -> None:
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), paint(SIZE, grid_people(i)))
    (tmp_path / "3.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "4.png"), paint((300, 300), grid_people(1)))
    images = [
        {"id": 10 * i, "file_name": f"{i}.png", "height": 256, "width": 384} for i in range(1, 6)
    ]
    watched: list[tuple[int, bool, bool]] = []
    done = predict_images(
        predictor(),
        ImageStore(tmp_path),
        images,
        watch=lambda image, picture, prediction: watched.append(
            (image["id"], picture is not None, prediction is not None)
        ),
    )
    assert done.failed == ["3.png", "4.png", "5.png"]  # damaged, of another size, not there
    assert done.num_people == [1, 2]
    assert [row["image_id"] for row in done.results] == [10, 20, 20]
    assert {name: len(ms) for name, ms in done.stage_ms.items()} == dict.fromkeys(STAGES, 2)
    assert watched == [(10, True, True), (20, True, True)] + [
        (10 * i, False, False) for i in (3, 4, 5)
    ]
