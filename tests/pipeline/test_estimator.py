"""The stages without queues: what comes out is what a stream gives, picture by picture."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import load_config
from pipeline.estimator import Estimator, frame_of_picture, make_estimator
from pipeline.messages import Frame, NetInput
from tests.support.painted import grid_people, paint, painted_model

SETTINGS = {
    "inference.engine": "torch",
    "preprocess.input_size": 256,
    "preprocess.size_multiple": 32,
    "tracker.enabled": False,
}


def estimator(**settings: object) -> Estimator:
    config = load_config(settings=SETTINGS | settings)
    return make_estimator(config, painted_model())


def painted(num_people: int, *, size: tuple[int, int] = (256, 384)) -> Frame:
    return frame_of_picture(paint(size, grid_people(num_people)), source="test", index=num_people)


def test_poses_come_in_the_order_of_the_frames_whatever_their_sizes() -> None:
    frames = [painted(2), painted(1, size=(300, 411)), painted(3), painted(1)]
    found = estimator(**{"inference.max_batch": 4})(frames)
    assert [poses.frame for poses in found] == frames
    assert [len(poses.scores) for poses in found] == [2, 1, 3, 1]


def test_a_batch_gives_what_each_frame_gives_alone() -> None:
    frames = [painted(n) for n in (1, 2, 3)]
    one_by_one, at_once = estimator(), estimator(**{"inference.max_batch": 8})
    for alone, together in zip(
        [one_by_one([frame])[0] for frame in frames], at_once(frames), strict=True
    ):
        np.testing.assert_allclose(together.keypoints, alone.keypoints, atol=1e-3)


def test_the_same_frame_twice_and_no_frame_at_all() -> None:
    frame, estimate = painted(2), estimator()
    assert [len(poses.scores) for poses in estimate([frame, frame])] == [2, 2]
    assert estimate([]) == []


def test_batches_are_no_larger_than_asked_for() -> None:
    sizes: list[int] = []
    inner = estimator()

    def count(batch: NetInput) -> object:
        sizes.append(len(batch.frames))
        return inner._inference(batch)

    counting = Estimator(inner._preprocess, count, inner._find_poses, max_batch=2)  # type: ignore[arg-type]
    counting([painted(1) for _ in range(5)])
    assert sizes == [2, 2, 1]


def test_one_device_at_a_time() -> None:
    with pytest.raises(ValueError, match="device"):
        make_estimator(load_config(settings={"inference.device": "cuda:0,cuda:1"}), painted_model())


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    config = load_config(settings={"weights": tmp_path / "none.safetensors"})
    with pytest.raises(ValueError, match=r"none\.safetensors"):
        make_estimator(config)
