"""A trained model teaches heatmaps: where its pixels lie, what is averaged, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.settings import ConfigError
from nets.aggregation import Maps
from nets.checkpoints import save_model
from nets.skeletons import CROWDPOSE
from tests.support.painted_set import write_set
from tests.support.random_model import random_model
from tests.support.tiny import TINY_NET, tiny_config
from training.config import TeacherConfig
from training.examples import Batch
from training.targets import Plan
from training.teacher import Teacher, taught
from training.trainer import train

SIDE = 64


class Pools:
    """An engine whose heatmaps are the red channel, seen through 4x4 and 2x2 pixels."""

    def __init__(self, *strides: int) -> None:
        self._strides = strides
        self.sides: list[int] = []

    def __call__(self, images: Tensor) -> Maps:
        self.sides.append(images.shape[-1])
        levels = tuple(F.avg_pool2d(images[:, :1], stride) for stride in self._strides)
        return Maps(levels, levels[0][..., None])


@pytest.mark.parametrize("levels", [(4,), (4, 2), (2,)])
@pytest.mark.parametrize("scale", [0.5, 1, 2, 3])
def test_every_scale_lies_on_the_pixels_of_the_example(
    levels: tuple[int, ...], scale: float
) -> None:
    """Resampling keeps a slope; its value at a map's pixel is that at the pixel's middle."""
    slope = torch.arange(float(SIDE)) + 3 * torch.arange(float(SIDE))[:, None]
    images = slope.expand(2, 3, SIDE, SIDE)
    found = taught(Pools(*levels), images, [scale], [4, 2])  # type: ignore[arg-type]
    for stride, heatmaps in zip((4, 2), found, strict=True):
        middle = (torch.arange(SIDE // stride) + 0.5) * stride - 0.5
        expected = middle + 3 * middle[:, None]
        assert heatmaps.shape == (2, 1, SIDE // stride, SIDE // stride)
        inner = slice(12 // stride, -12 // stride)  # away from the edge, where values repeat
        assert torch.allclose(heatmaps[0, 0, inner, inner], expected[inner, inner], atol=0.2)


def test_scales_are_averaged_and_the_level_as_fine_as_wanted_is_taken() -> None:
    class Says:
        def __call__(self, images: Tensor) -> Maps:
            """10 at 1/4 and 20 at 1/2 of the network input, and one more for each scale."""
            batch, side = len(images), images.shape[-1]
            levels = tuple(
                torch.full((batch, 1, side // s, side // s), value + side // SIDE)
                for s, value in ((4, 10.0), (2, 20.0))
            )
            return Maps(levels, levels[0][..., None])

    images = torch.zeros(1, 3, SIDE, SIDE)
    quarter, half = taught(Says(), images, [1, 2], [4, 2])  # type: ignore[arg-type]
    # Of scale 2 the 1/4 level has the pixels of the example's 1/2 one: it serves both.
    assert bool((quarter == ((10 + 1) + (10 + 2)) / 2).all())
    assert bool((half == ((20 + 1) + (10 + 2)) / 2).all())


def test_with_flip_a_mirrored_example_is_taught_the_mirrored_heatmaps() -> None:
    class Leans:
        """Two keypoints, a left and a right one, each seen too strongly on the picture's left."""

        def __call__(self, images: Tensor) -> Maps:
            levels = (F.avg_pool2d(images[:, :2], 4) * torch.linspace(2, 1, SIDE // 4),)
            return Maps(levels, levels[0][..., None])

    images = torch.rand(2, 3, SIDE, SIDE)
    (plain,) = taught(Leans(), images, [1], [4])  # type: ignore[arg-type]
    order = {"flip_order": (1, 0)}
    (both,) = taught(Leans(), images, [1], [4], **order)  # type: ignore[arg-type]
    (again,) = taught(Leans(), images.flip(-1), [1], [4], **order)  # type: ignore[arg-type]
    assert torch.allclose(both, again[:, [1, 0]].flip(-1), atol=1e-6)
    assert not torch.allclose(both, plain, atol=1e-2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_model(path, random_model("higher_hrnet_lite", seed=1, **TINY_NET), dtype=torch.float32)
    return path


def a_batch(*, drawn: float, mask: int) -> Batch:
    heatmaps = tuple(torch.full((2, 17, side, side), drawn) for side in (16, 32))
    masks = tuple(torch.full((2, 1, side, side), mask, dtype=torch.uint8) for side in (16, 32))
    images = torch.randn(2, 3, SIDE, SIDE)
    return Batch(
        images, heatmaps, masks, torch.zeros(2, 1, 17, 2), ((1,), (2,)), (("a",), ("b",)), (),
        (0, 0), (0, 2),
    )  # fmt: skip


def a_teacher(weights: Path, *, share: float) -> Teacher:
    student = random_model("higher_hrnet_lite", seed=2, **TINY_NET)
    config = TeacherConfig(weights=weights, scales=(1.0,), share=share)
    plan = [Plan(4, None), Plan(2, None)]
    return Teacher(config, student, plan=plan, device=torch.device("cpu"), threads=1)


def test_a_batch_keeps_all_but_its_heatmaps(weights: Path) -> None:
    batch = a_batch(drawn=7.0, mask=0)
    result = a_teacher(weights, share=1).teach(batch)
    assert [h.shape for h in result.heatmaps] == [h.shape for h in batch.heatmaps]
    assert all((mask == 1).all() for mask in result.masks)
    assert [mask.shape for mask in result.masks] == [mask.shape for mask in batch.masks]
    assert result._replace(heatmaps=batch.heatmaps, masks=batch.masks) == batch
    assert not any(heatmaps.requires_grad for heatmaps in result.heatmaps)


def test_labels_and_teacher_share_a_heatmap_but_for_what_is_masked(weights: Path) -> None:
    batch = a_batch(drawn=7.0, mask=1)
    for mask in batch.masks:
        mask[:, :, :5] = 0
    alone = a_teacher(weights, share=1).teach(batch)
    shared = a_teacher(weights, share=0.25).teach(batch)
    for mine, mixed in zip(alone.heatmaps, shared.heatmaps, strict=True):
        assert torch.equal(mixed[:, :, :5], mine[:, :, :5])
        assert torch.allclose(mixed[:, :, 5:], 0.25 * mine[:, :, 5:] + 0.75 * 7)
    assert all((mask == 1).all() for mask in shared.masks)


def test_another_skeleton_or_input_is_refused(tmp_path: Path, weights: Path) -> None:
    student = random_model("higher_hrnet_lite", seed=2, **TINY_NET)
    other = tmp_path / "crowdpose.safetensors"
    save_model(
        other, random_model("higher_hrnet_lite", num_keypoints=CROWDPOSE.num_keypoints, **TINY_NET)
    )
    options: dict[str, Any] = {"plan": [Plan(4, None)], "device": torch.device("cpu")}
    with pytest.raises(ConfigError, match="another skeleton than the trained net"):
        Teacher(TeacherConfig(weights=other), student, **options)


def test_who_is_taught_by_itself_has_nothing_to_learn_but_tags(
    tmp_path: Path, weights: Path
) -> None:
    """Its own heatmaps are the targets; with drawn ones the loss is a hundred times as large."""
    painted = write_set(tmp_path, count=2, size=(96, 96))

    def first_loss(name: str, **changes: Any) -> list[float]:
        output = tmp_path / name
        config = tiny_config(painted, init=str(weights), freeze_norms=True, **changes)
        train(config, output=output, quiet=True)
        line = (output / "losses.jsonl").read_text().splitlines()[0]
        heatmap: list[float] = json.loads(line)["heatmap"]
        return heatmap

    teacher = {"weights": str(weights), "scales": [1.0]}
    drawn = first_loss("drawn")
    alone = first_loss("alone", teacher=teacher)
    assert all(100 * mine < theirs for mine, theirs in zip(alone, drawn, strict=True))
    # Half of the distance to the labels is left, so a quarter of the squared error.
    halved = first_loss("halved", teacher=teacher | {"share": 0.5})
    assert halved == pytest.approx([loss / 4 for loss in drawn], rel=0.02)
