"""Flip test, scales and stages: equal to the published code's outputs, and linear."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nets.aggregation import (
    Maps,
    add_tag_ramp,
    average_scales,
    average_stages,
    choose_levels,
    flip_test,
    tag_ramp,
)
from nets.skeletons import COCO
from tests.support.places import DATA

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = dict(np.load(DATA / "aggregate_cases.npz"))
SCALES = {"g00": (1.0,), "g01": (1.0,), "g02": (2.0, 1.0, 0.5), "g03": (2.0, 1.0, 0.5)}


def raw_outputs(case: str, scale: float, mirrored: bool) -> tuple[Tensor, Tensor]:
    key = f"{case}_s{scale:g}_m{int(mirrored)}"
    return torch.from_numpy(CASES[f"{key}_l0"]), torch.from_numpy(CASES[f"{key}_l1"])


def recorded_engine(case: str, scale: float) -> Callable[[Tensor], Maps]:
    """Says what the published net said, of mirrored pictures (they fall from left to right) too."""

    def engine(images: Tensor) -> Maps:
        outputs = [raw_outputs(case, scale, bool(i[0, 0, 0] > i[0, 0, -1])) for i in images]
        low, high = (torch.cat(level) for level in zip(*outputs, strict=True))
        return Maps((low[:, :17], high), low[:, 17:, ..., None])

    return engine


def flipped(case: str, scale: float, *, one_batch: bool = True) -> Maps:
    images = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)  # rises from left to right
    return flip_test(
        recorded_engine(case, scale), images, flip_order=COCO.flip_order, one_batch=one_batch
    )


def size_of(case: str) -> tuple[int, int]:
    """With PROJECT2IMAGE the network input's size at scale 1, else the largest scale's 1/2 size."""
    _, _, project, _, width, height = (int(value) for value in CASES[f"{case}_meta"])
    half = CASES[f"{case}_s{SCALES[case][0]:g}_m0_l1"].shape[2:]
    return (height, width) if project else (int(half[0]), int(half[1]))


@pytest.mark.parametrize("one_batch", [True, False])
@pytest.mark.parametrize("case", SCALES)
def test_flip_and_scales_equal_the_published_evaluation(case: str, one_batch: bool) -> None:
    assert len(SCALES[case]) == CASES[f"{case}_meta"][3]
    maps = {scale: flipped(case, scale, one_batch=one_batch) for scale in SCALES[case]}
    (heatmaps,), tags = average_scales(maps, size=size_of(case))
    np.testing.assert_allclose(heatmaps, CASES[f"{case}_heat"], atol=2e-6)
    np.testing.assert_allclose(tags, CASES[f"{case}_tags"], atol=2e-6)


def test_flipped_levels_of_the_pyramid_give_the_published_full_size_map() -> None:
    """Averaging plain and mirrored at 1/4 and 1/2 is averaging them at full size: all is linear."""
    low, high = flipped("g00", 1.0).levels
    assert low.shape[2:] == (6, 10)
    assert high.shape[2:] == (12, 20)
    half = (F.interpolate(low, size=(12, 20), mode="bilinear") + high) / 2
    full = F.interpolate(half, size=size_of("g00"), mode="bilinear")
    np.testing.assert_allclose(full, CASES["g00_heat"], atol=2e-6)


def test_stages_averaged_level_by_level_equal_stages_averaged_at_full_size() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (
        (
            torch.rand(2, 17, 6, 10, generator=generator),
            torch.rand(2, 17, 12, 20, generator=generator),
        )
        for _ in range(2)
    )

    def full(levels: tuple[Tensor, ...]) -> Tensor:
        maps = {1.0: Maps(levels, torch.zeros(2, 17, 6, 10, 1))}
        return average_scales(maps, size=(24, 40)).levels[0]

    low, high = average_stages(coarse, fine)
    torch.testing.assert_close(low, coarse[0] / 2 + fine[0] / 2)
    torch.testing.assert_close(full((low, high)), (full(coarse) + full(fine)) / 2)


def test_flip_test_of_an_engine_without_a_preferred_side_changes_nothing() -> None:
    """An engine that commutes with mirroring (and swaps sides) says the same twice."""
    order = list(COCO.flip_order)
    kernel = torch.rand(17, 3, generator=torch.Generator().manual_seed(0))

    def engine(images: Tensor) -> Maps:
        plain = torch.einsum("kc,bchw->bkhw", kernel, images)
        mirrored = torch.einsum("kc,bchw->bkhw", kernel, images.flip(-1))
        heat = plain + mirrored[:, order].flip(-1)
        return Maps((heat,), heat[..., None] * 2)

    images = torch.rand(2, 3, 8, 12)
    plain, tested = engine(images), flip_test(engine, images, flip_order=order)
    torch.testing.assert_close(tested.levels, plain.levels)
    torch.testing.assert_close(tested.tags, plain.tags.expand(-1, -1, -1, -1, 2))


def test_tags_of_the_plain_pass_come_first() -> None:
    def engine(images: Tensor) -> Maps:
        return Maps(
            (images[:, :1].expand(-1, 17, -1, -1),),
            images[:, :1, ..., None].expand(-1, 17, -1, -1, 1),
        )

    images = torch.rand(2, 3, 4, 6)
    tags = flip_test(engine, images, flip_order=COCO.flip_order).tags
    assert tags.shape == (2, 17, 4, 6, 2)
    # Mirrored in and mirrored back, so both are the picture.
    assert torch.equal(tags[:, 3, ..., 0], images[:, 0])
    assert torch.equal(tags[:, 3, ..., 1], images[:, 0])


def test_a_ramp_inside_the_engine_is_mirrored_with_its_pass() -> None:
    def engine(images: Tensor) -> Maps:
        nothing = torch.zeros(len(images), 17, 4, 6)
        return add_tag_ramp(Maps((nothing,), nothing[..., None]), ramp_px=8, stride=4)

    tags = flip_test(engine, torch.rand(1, 3, 16, 24), flip_order=COCO.flip_order).tags
    x, y = 2, 3
    assert tags[0, 0, y, x].tolist() == pytest.approx([(x + 0.35 * y) / 2, (5 - x + 0.35 * y) / 2])


def test_ramp_rises_by_one_over_its_length_and_is_float32() -> None:
    maps = Maps((torch.zeros(1, 2, 9, 9),), torch.ones(1, 2, 9, 9, 1, dtype=torch.bfloat16))
    tags = add_tag_ramp(maps, ramp_px=32, stride=4).tags
    assert tags.dtype == torch.float32
    assert tags.shape == maps.tags.shape
    assert tags[0, :, 0, 8, 0].tolist() == [2.0, 2.0]  # 8 pixels of stride 4 are 32 px
    assert tags[0, 1, 8, 0, 0].item() == pytest.approx(1.35)
    assert add_tag_ramp(maps, ramp_px=0, stride=4) is maps


def test_raised_is_the_quarter_level_in_two_steps() -> None:
    low, high = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 8, 10)
    levels = choose_levels((low, high), "raised")
    half = F.interpolate(low, size=(8, 10), mode="bilinear", align_corners=False)
    assert [tuple(level.shape) for level in levels] == [(2, 3, 4, 5), (2, 3, 8, 10)]
    full = average_scales({1: Maps(levels, low[..., None])}, size=(16, 20)).levels[0]
    expected = F.interpolate(half, size=(16, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(full, expected)


def test_a_ramp_of_two_numbers_is_the_place() -> None:
    maps = Maps((torch.zeros(1, 2, 5, 7),), torch.zeros(1, 2, 5, 7, 2))
    tags = add_tag_ramp(maps, ramp_px=16, stride=4).tags
    for y, x in ((0, 0), (3, 1), (4, 6)):
        assert tags[0, 1, y, x].tolist() == [x / 4, y / 8]
    # Unlike with one number, no two places are alike, also not on a diagonal.
    assert len({tuple(tag) for tag in tags[0, 0].reshape(-1, 2).tolist()}) == 35


def test_a_ramp_of_three_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or 2 numbers, got 3"):
        tag_ramp((2, 2), 3, ramp_px=8, stride=4)


def test_only_the_tags_of_scale_1_are_used() -> None:
    def at(scale: int) -> Maps:
        low = torch.full((1, 17, 4 * scale, 4 * scale), float(scale))
        return Maps((low,), low[..., None])

    (heatmaps,), tags = average_scales({1: at(1), 2: at(2)}, size=(16, 16))
    assert (heatmaps == 1.5).all()
    assert (tags == 1).all()
    assert (average_scales({2: at(2)}, size=(16, 16)).tags == 2).all()
    with pytest.raises(ValueError, match=r"must include 1, .* got \[0.5, 2\]"):
        average_scales({0.5: at(1), 2: at(2)}, size=(16, 16))


def test_levels_are_chosen_by_name() -> None:
    low, high = torch.zeros(1), torch.ones(1)
    assert choose_levels((low, high), "on") == (low, high)
    assert choose_levels((low, high), "off") == (low,)
    assert choose_levels((low, high), "highest") == (high,)
    with pytest.raises(ValueError, match="on, off, highest or raised, got 'all'"):
        choose_levels((low, high), "all")  # type: ignore[arg-type]
