"""A batch through an engine: shapes, companions of a batch, the flip test."""

import numpy as np
import torch

from nets.aggregation import Maps
from pipeline.inference import Inference
from pipeline.messages import Frame, NetInput
from tests.support.painted import PaintReader, grid_people, paint


def batch_of(pictures: list[np.ndarray]) -> NetInput:
    images = np.stack([p[..., ::-1].transpose(2, 0, 1) / 255 for p in pictures]).astype(np.float32)
    frames = tuple(
        Frame(
            source=f"camera{i}",
            index=i,
            pts_seconds=None,
            captured_ns=0,
            captured_unix_s=0.0,
            size=picture.shape[:2],
            planes=(picture,),
        )
        for i, picture in enumerate(pictures)
    )
    matrices = np.stack([np.eye(2, 3)] * len(frames))
    return NetInput(frames, images, matrices, {"preprocess": 1.0})


def engine(images: torch.Tensor) -> Maps:
    reader = PaintReader().eval()
    with torch.inference_mode():
        return reader.maps(reader(images))


def test_a_batch_keeps_its_companions() -> None:
    batch = batch_of([paint((128, 192), grid_people(1)), np.zeros((128, 192, 3), np.uint8)])
    (output,) = Inference(engine)(batch)
    assert output.frames is batch.frames
    assert output.net_size == (128, 192)
    assert [level.shape for level in output.levels] == [(2, 17, 32, 48), (2, 17, 64, 96)]
    assert output.tags.shape == (2, 17, 32, 48, 1)
    assert output.levels[0][0].max() > 0.5
    assert output.levels[0][1].max() < 0.1
    assert output.stage_ms["preprocess"] == 1.0
    assert output.stage_ms["inference"] > 0


def test_the_flip_test_averages_with_the_mirrored_picture() -> None:
    batch = batch_of([paint((128, 192), grid_people(1))])
    (plain,) = Inference(engine)(batch)
    order = tuple(range(17))  # paint knows no left and right
    (both,) = Inference(engine, flip_order=order)(batch)
    assert both.tags.shape[-1] == 2
    for level, averaged in zip(plain.levels, both.levels, strict=True):
        np.testing.assert_allclose(averaged, level, atol=1e-5)  # the reader is mirror-symmetric
    swapped = (1, 0, *range(2, 17))
    (other,) = Inference(engine, flip_order=swapped)(batch)
    expected = (plain.levels[0][:, 0] + plain.levels[0][:, 1]) / 2
    np.testing.assert_allclose(other.levels[0][:, 0], expected, atol=1e-5)


def test_the_result_does_not_change_with_the_next_call() -> None:
    inference = Inference(engine)
    (first,) = inference(batch_of([paint((128, 192), grid_people(1))]))
    copies = [level.copy() for level in first.levels]
    list(inference(batch_of([np.zeros((128, 192, 3), np.uint8)])))
    for level, copy in zip(first.levels, copies, strict=True):
        np.testing.assert_array_equal(level, copy)
