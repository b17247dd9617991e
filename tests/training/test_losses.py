"""Losses: equal to the published code in value and gradient, to plain loops, and never NaN."""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nets import build_net
from nets.aggregation import tag_ramp
from nets.double_higher_net import DoubleHigherNetOutput
from nets.higher_hrnet import HigherHRNetOutput
from tests.support.places import DATA
from training.config import LossConfig, TargetConfig
from training.losses import (
    Losses,
    add_ramp,
    heatmap_loss,
    heatmaps_of,
    tag_loss,
    tags_of,
    total_loss,
)
from training.targets import draw_heatmaps, tag_index, target_plan

CASES = dict(np.load(DATA / "loss_cases.npz"))

CLOSE = 2e-6
"""Relative. The published code sums in another order: 17 * 32 * 32 float32 terms added pairwise are
off by about 15 roundings of 2^-24 at worst, 1e-6, on either side."""

Kind = Literal["exp", "max"]
KINDS: tuple[Kind, ...] = ("exp", "max")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny arrays on one thread: beside other work, two threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Targets(NamedTuple):
    heatmaps: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    tag_index: Tensor


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    """Of the sum of a loss."""
    (of_x,) = torch.autograd.grad(loss.sum(), x)
    return of_x


def fixture(case: str, name: str) -> Tensor:
    return torch.from_numpy(CASES[f"{case}_{name}"])


def published_outputs(case: str) -> tuple[HigherHRNetOutput, Targets]:
    low, high = fixture(case, "out0"), fixture(case, "out1")
    heatmaps, tags = low[:, :17].clone(), low[:, 17:].clone()
    output = HigherHRNetOutput(
        (heatmaps.requires_grad_(), high.clone().requires_grad_()), tags.requires_grad_()
    )
    masks = tuple(fixture(case, f"mask{level}")[:, None] for level in (0, 1))
    targets = (fixture(case, "gt0"), fixture(case, "gt1"))
    return output, Targets(targets, masks, fixture(case, "index0"))


def some_index(seed: int, shape: tuple[int, int, int], *, people: int, rows: int = 5) -> Tensor:
    """(1, rows, K, 2) for tags of shape (K, h, w); every keypoint is labelled or not at random."""
    num_keypoints, height, width = shape
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(0, 1, (people, num_keypoints, 3)) * (width, height, 1)
    keypoints[..., 2] = rng.integers(0, 3, (people, num_keypoints))
    return torch.from_numpy(tag_index(keypoints, (height, width), max_people=rows))[None]


def index_of(*people: list[int], num_keypoints: int, rows: int = 6) -> Tensor:
    """(1, rows, K, 2) from the places of each person's tags."""
    index = torch.zeros(1, rows, num_keypoints, 2, dtype=torch.int32)
    for row, places in enumerate(people):
        for slot, place in enumerate(places):
            index[0, row, slot] = torch.tensor([place, 1])
    return index


# --- the published code --------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["l0", "l1"])
def test_total_loss_equals_the_published_code(case: str) -> None:
    """l0 has two and three people, l1 none and one."""
    output, targets = published_outputs(case)
    losses = total_loss(output, targets, LossConfig(), num_keypoints=17)
    torch.testing.assert_close(losses.total.double(), fixture(case, "total"), rtol=CLOSE, atol=0)
    for level in (0, 1):
        expected = fixture(case, f"heat{level}").mean()
        torch.testing.assert_close(losses.heatmap[level], expected, rtol=CLOSE, atol=0)
    # The fixtures hold push and pull with their weight.
    for got, name in [(losses.push, "push"), (losses.pull, "pull")]:
        torch.testing.assert_close(1e-3 * got, fixture(case, name).mean(), rtol=CLOSE, atol=0)


@pytest.mark.parametrize("case", ["l0", "l1"])
def test_gradient_equals_the_published_code(case: str) -> None:
    output, targets = published_outputs(case)
    losses = total_loss(output, targets, LossConfig(), num_keypoints=17)
    parts = (output.heatmaps[0], output.tags, output.heatmaps[1])
    gradients = torch.autograd.grad(losses.total, parts)
    expected = fixture(case, "grad_tag")
    # A tag's gradient is a difference of terms as large as the largest gradient.
    atol = CLOSE * float(expected.abs().max())
    torch.testing.assert_close(gradients[1], expected, rtol=CLOSE, atol=atol)
    norms = torch.stack([part.double().norm() for part in gradients])
    torch.testing.assert_close(norms, fixture(case, "grad_norms"), rtol=CLOSE, atol=0)


@pytest.mark.parametrize("case", ["l0", "l1"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_kinds_of_push_equal_the_published_code(case: str, kind: Kind) -> None:
    tags = fixture(case, "out0")[:, 17:].clone().requires_grad_()
    push, pull = tag_loss(tags, fixture(case, "index0"), num_keypoints=17, kind=kind)
    torch.testing.assert_close(push, fixture(case, f"{kind}_push"), rtol=CLOSE, atol=0)
    torch.testing.assert_close(pull, fixture(case, f"{kind}_pull"), rtol=CLOSE, atol=0)
    # The fixture's norm is that of this sum.
    norm = gradient(push + 2 * pull, tags).double().norm()
    torch.testing.assert_close(norm, fixture(case, f"{kind}_gradnorm"), rtol=CLOSE, atol=0)


# --- heatmaps ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1.0, 10.0]),
    st.sampled_from([1, 3]),
    st.sampled_from([torch.uint8, torch.bool, torch.float32]),
)
def test_heatmap_loss_is_the_formula(
    seed: int, foreground: float, mask_channels: int, mask_type: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    predicted, target = rng.normal(size=(2, 2, 3, 4, 5))
    mask = rng.integers(0, 2, (2, mask_channels, 4, 5))
    expected = [0.0, 0.0]
    for b, k, y, x in np.ndindex(2, 3, 4, 5):
        t, m = target[b, k, y, x], mask[b, min(k, mask_channels - 1), y, x]
        expected[b] += (predicted[b, k, y, x] - t) ** 2 * m * (1 + foreground * t) / 60
    loss = heatmap_loss(
        torch.from_numpy(predicted),
        torch.from_numpy(target),
        torch.from_numpy(mask).to(mask_type),
        foreground=foreground,
    )
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("foreground", [0.0, 5.0])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_heatmap_gradient_is_that_of_finite_differences(
    foreground: float, memory_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.rand(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 4, 5, generator=generator) > 0.3
    predicted = predicted.contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: heatmap_loss(x, target, mask, foreground=foreground), (predicted,)
    )


def test_masked_pixels_have_no_loss_and_no_gradient() -> None:
    predicted = torch.randn(2, 3, 8, 8).requires_grad_()
    target, mask = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8) > 0.5
    loss = heatmap_loss(predicted, target, mask, foreground=2)
    of_predicted = gradient(loss, predicted)
    masked = ~mask.expand_as(predicted)
    assert (of_predicted[masked] == 0).all()
    assert (of_predicted[~masked] != 0).all()
    changed = torch.where(masked, 100.0, predicted)
    torch.testing.assert_close(heatmap_loss(changed, target, mask, foreground=2), loss)


def test_heatmap_loss_leaves_its_arguments_as_they_are() -> None:
    predicted, target = torch.rand(1, 2, 4, 4).requires_grad_(), torch.rand(1, 2, 4, 4)
    before = predicted.detach().clone(), target.clone()
    gradient(heatmap_loss(predicted, target, torch.ones(1, 1, 4, 4), foreground=3), predicted)
    assert torch.equal(predicted.detach(), before[0])
    assert torch.equal(target, before[1])


def test_foreground_weighs_a_keypoint_more_and_the_background_alike() -> None:
    target = torch.from_numpy(draw_heatmaps(np.array([[[8, 8, 2]]]), 17, sigma=2))[None]
    mask = torch.ones(1, 1, 17, 17)

    def gradient_with(foreground: float) -> Tensor:
        predicted = torch.full_like(target, 0.5, requires_grad=True)
        return gradient(heatmap_loss(predicted, target, mask, foreground=foreground), predicted)

    ratio = (gradient_with(9) / gradient_with(0))[0, 0]
    assert ratio[8, 8] == pytest.approx(10)  # 1 + 9 * 1
    assert ratio[8, 10] == pytest.approx(1 + 9 * math.exp(-0.5))
    assert ratio[0, 0] == pytest.approx(1)


# --- tags ----------------------------------------------------------------------------------------


def looped_tag_loss(tags: Tensor, index: Tensor, num_keypoints: int, kind: Kind) -> list[float]:
    """Push and pull of one image, tags (T * K, h, w) and index (N, K, 2), in plain loops."""
    numbers = tags.reshape(-1, num_keypoints * tags[0].numel()).double().numpy()
    people = []
    for row in index.tolist():
        found = [numbers[:, place] for place, used in row if used]
        if found:
            people.append(np.stack(found))
    means = [found.mean(axis=0) for found in people]
    pulls = [
        np.mean([np.sum((tag - mean) ** 2) for tag in found])
        for found, mean in zip(people, means, strict=True)
    ]
    push = 0.0
    for n, one in enumerate(means):
        for m, other in enumerate(means):
            if n != m:
                gap = float(np.linalg.norm(one - other))
                push += math.exp(-(gap**2)) if kind == "exp" else max(0.0, 1 - gap)
    pairs = len(means) * (len(means) - 1)
    return [0.5 * push / pairs if pairs else 0.0, float(np.mean(pulls)) if pulls else 0.0]


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 10**6),
    st.integers(0, 5),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(KINDS),
)
def test_tag_loss_is_the_formula(seed: int, people: int, numbers: int, kind: Kind) -> None:
    generator = torch.Generator().manual_seed(seed)
    tags = torch.randn(1, numbers * 4, 6, 7, generator=generator, dtype=torch.float64)
    index = some_index(seed, (4, 6, 7), people=people)
    push, pull = tag_loss(tags, index, num_keypoints=4, kind=kind)
    expected = looped_tag_loss(tags[0], index[0], 4, kind)
    assert [push.item(), pull.item()] == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [1, 2])
@pytest.mark.parametrize("people", [1, 2, 4])
def test_tag_gradient_is_that_of_finite_differences(kind: Kind, numbers: int, people: int) -> None:
    generator = torch.Generator().manual_seed(people)
    tags = torch.randn(1, numbers * 3, 4, 5, generator=generator, dtype=torch.float64)
    index = some_index(people, (3, 4, 5), people=people)
    assert index[..., 1].sum() > 0
    assert torch.autograd.gradcheck(
        lambda x: tag_loss(x, index, num_keypoints=3, kind=kind), (tags.requires_grad_(),)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_do_not_touch_each_other(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(1)
    tags = torch.randn(4, 8, 6, 7, generator=generator)
    index = torch.cat([some_index(n, (4, 6, 7), people=n) for n in (0, 1, 3, 5)])
    push, pull = tag_loss(tags, index, num_keypoints=4, kind=kind)
    for image in range(4):
        alone = tag_loss(
            tags[image : image + 1], index[image : image + 1], num_keypoints=4, kind=kind
        )
        torch.testing.assert_close(torch.stack([push[image], pull[image]]), torch.cat(alone))


def test_empty_rows_between_people_and_their_order_do_not_matter() -> None:
    tags = torch.randn(1, 3, 4, 5)
    places = ([1, 25, 44], [7], [30, 50])
    packed = tag_loss(tags, index_of(*places, num_keypoints=3), num_keypoints=3)
    spread = index_of(places[2], [], places[0], [], [], places[1], num_keypoints=3)
    torch.testing.assert_close(tag_loss(tags, spread, num_keypoints=3), packed)
    assert packed[0] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [1, 2])
def test_nobody_and_people_at_one_place_have_finite_gradients(kind: Kind, numbers: int) -> None:
    """Equal mean tags have distance 0, whose root has no derivative."""
    index = torch.cat(
        [
            index_of(num_keypoints=2),  # nobody
            index_of([3], num_keypoints=2),  # a person of one keypoint
            index_of([3, 20], [3, 20], num_keypoints=2),  # two on the same pixels
            index_of([3], [4], [5], num_keypoints=2),  # equal tags
        ]
    )
    tags = torch.full((4, numbers * 2, 4, 4), 0.5, requires_grad=True)
    push, pull = tag_loss(tags, index, num_keypoints=2, kind=kind)
    assert gradient(push + pull, tags).isfinite().all()
    assert push.tolist() == [0, 0, 0.5, 0.5]  # the most there can be
    assert pull.tolist() == [0, 0, 0, 0]


def test_what_no_keypoint_reads_has_no_gradient_even_where_it_is_nan() -> None:
    """Unused slots point at place 0."""
    tags = torch.randn(1, 2, 4, 4)
    tags[0, 0, 0, 0] = math.nan
    tags.requires_grad_()
    index = index_of([3, 20], [9, 31], num_keypoints=2)
    push, pull = tag_loss(tags, index, num_keypoints=2)
    assert push.isfinite().all()
    read = torch.zeros(32, dtype=torch.bool)
    read[[3, 20, 9, 31]] = True
    assert torch.equal(gradient(push + pull, tags).flatten() != 0, read)


def test_tags_far_apart_do_not_overflow() -> None:
    tags = torch.zeros(1, 1, 4, 4)
    tags[0, 0, 0, 1], tags[0, 0, 0, 2] = 1e6, -1e6
    tags.requires_grad_()
    push, pull = tag_loss(tags, index_of([1], [2], num_keypoints=1), num_keypoints=1)
    assert (push.item(), pull.item()) == (0, 0)
    assert (gradient(push + pull, tags) == 0).all()


def test_pull_draws_together_and_push_apart() -> None:
    tags = torch.zeros(1, 1, 1, 4)
    tags[0, 0, 0] = torch.tensor([0.0, 1.0, 0.4, 1.4])
    tags.requires_grad_()
    index = index_of([0, 1], [2, 3], num_keypoints=2)
    push, pull = tag_loss(tags.expand(1, 2, 1, 4), index, num_keypoints=2)
    (apart,) = torch.autograd.grad(push.sum(), tags, retain_graph=True)
    towards = gradient(pull, tags)
    assert (-towards[0, 0, 0]).sign().tolist() == [1, -1, 1, -1]
    assert (-apart[0, 0, 0]).sign().tolist() == [-1, -1, 1, 1]


def test_autocast_and_half_tags_give_float32_losses() -> None:
    """In bfloat16 tags near 60 are 0.25 apart: a pull of 0.01 is nothing there."""
    tags = torch.full((1, 1, 1, 2), 60.0)
    tags[0, 0, 0, 1] += 0.2
    index = index_of([0, 1], num_keypoints=2)
    two = tags.expand(1, 2, 1, 2)
    heat = torch.rand(1, 2, 4, 4)
    target = torch.rand(1, 2, 4, 4)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    plain = (*tag_loss(two, index, num_keypoints=2), heatmap_loss(heat, target, mask))
    with torch.autocast("cpu", torch.bfloat16):
        inside = (*tag_loss(two, index, num_keypoints=2), heatmap_loss(heat, target, mask))
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))
    assert plain[1].item() == pytest.approx(0.01, rel=1e-4)
    half = heat.bfloat16().requires_grad_()
    loss = heatmap_loss(half, target, mask)
    assert loss.dtype == torch.float32
    assert gradient(loss, half).dtype == torch.bfloat16
    torch.testing.assert_close(loss, heatmap_loss(half.detach().float(), target, mask))
    assert tag_loss(two.bfloat16(), index, num_keypoints=2)[1].dtype == torch.float32


def test_adaptive_weights_follow_the_paper_and_count_as_given() -> None:
    """SWAHR: t^gamma |1 - p| + (1 - t^gamma) |p|; its derivative is that of a weighted square."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    target = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    target[target < 0.5] = 0
    mask = (torch.rand(2, 1, 5, 6, generator=generator) > 0.3).to(torch.uint8)
    near = torch.where(target > 0, target**0.01, 0)
    weights = near * (1 - predicted).abs() + (1 - near) * predicted.abs()
    weights = weights * mask * (1 + 4 * target)
    expected = (weights * (predicted - target) ** 2).mean(dim=(1, 2, 3))
    predicted.requires_grad_()
    loss = heatmap_loss(predicted, target, mask, foreground=4, adaptive=0.01)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        gradient(loss, predicted), 2 * weights * (predicted.detach() - target) / (3 * 5 * 6)
    )


def test_what_does_not_fit_is_refused() -> None:
    index = index_of([0], num_keypoints=3)
    with pytest.raises(ValueError, match=r"T \* K channels with K = 3, got shape \(1, 4, 4, 4\)"):
        tag_loss(torch.zeros(1, 4, 4, 4), index, num_keypoints=3)
    with pytest.raises(ValueError, match="kind must be exp or max, got 'min'"):
        tag_loss(torch.zeros(1, 3, 4, 4), index, num_keypoints=3, kind="min")  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [1, 2])
def test_ramp_is_the_one_that_the_stream_adds(numbers: int) -> None:
    tags = torch.randn(2, numbers * 3, 5, 6)
    ramped = add_ramp(tags, 32, 3)
    ramp = tag_ramp((5, 6), numbers, ramp_px=32, stride=4)
    for number in range(numbers):
        for k in range(3):
            channel = number * 3 + k
            expected = tags[:, channel] + ramp[..., number]
            torch.testing.assert_close(ramped[:, channel], expected, rtol=0, atol=0)
    assert add_ramp(tags, 0, 3) is tags
    assert add_ramp(tags.bfloat16(), 32, 3).dtype == torch.float32


# --- all together --------------------------------------------------------------------------------


def some_targets(net_name: str, keypoints: np.ndarray, target: TargetConfig, size: int) -> Targets:
    """Targets of one example with people's keypoints (P, K, 3) in input pixels."""
    net = build_net(net_name, keypoints.shape[1], width=8, modules=(1, 1, 1))
    heatmaps = []
    for plan in target_plan(net.settings, target):
        scaled = keypoints / (plan.stride, plan.stride, 1)
        heatmaps.append(
            draw_heatmaps(scaled, size // plan.stride, sigma=target.sigma, tau=plan.tau)
        )
    maps = tuple(torch.from_numpy(stack)[None] for stack in heatmaps)
    masks = tuple(torch.ones(1, 1, *stack.shape[2:], dtype=torch.uint8) for stack in maps)
    index = tag_index(keypoints / (4, 4, 1), size // 4, max_people=4)
    return Targets(maps, masks, torch.from_numpy(index)[None])


def test_double_higher_net_is_four_heatmap_losses_and_two_tag_losses() -> None:
    generator = torch.Generator().manual_seed(0)

    def stack(channels: int, size: int) -> Tensor:
        return torch.rand(2, channels, size, size, generator=generator)

    output = DoubleHigherNetOutput(
        (stack(3, 8), stack(3, 16)), stack(3, 8), (stack(3, 8), stack(3, 16)), stack(3, 8)
    )
    sizes = (8, 16, 8, 16)
    index = torch.cat([some_index(seed, (3, 8, 8), people=3) for seed in (0, 1)])
    targets = Targets(
        tuple(stack(3, size) for size in sizes),
        tuple((stack(1, size) > 0.2).to(torch.uint8) for size in sizes),
        index,
    )
    weights = LossConfig(heatmap=2, push=0.3, pull=0.5)
    losses = total_loss(output, targets, weights, num_keypoints=3)
    coarse, fine = output.coarse_heatmaps, output.fine_heatmaps
    expected = [
        heatmap_loss(predicted, target, mask).mean()
        for predicted, target, mask in zip(
            (coarse[0], coarse[1], fine[0], fine[1]), targets.heatmaps, targets.masks, strict=True
        )
    ]
    torch.testing.assert_close(losses.heatmap, tuple(expected))
    (push, pull), (fine_push, fine_pull) = (
        tag_loss(tags, index, num_keypoints=3) for tags in (output.coarse_tags, output.fine_tags)
    )
    torch.testing.assert_close(losses.push, (push + fine_push).mean())
    torch.testing.assert_close(losses.pull, (pull + fine_pull).mean())
    total = 2 * sum(expected) + 0.3 * losses.push + 0.5 * losses.pull
    torch.testing.assert_close(losses.total, total)


@pytest.mark.parametrize("net_name", ["higher_hrnet_w32", "double_higher_net_w32", "hrnet_w32"])
def test_every_weight_of_a_network_gets_a_finite_gradient(net_name: str) -> None:
    keypoints = np.random.default_rng(0).uniform(0, 64, (3, 5, 3))
    keypoints[..., 2] = 2
    targets = some_targets(net_name, keypoints, TargetConfig(kind="truncated", sigma=7), 64)
    torch.manual_seed(0)
    net = build_net(net_name, 5, width=8, modules=(1, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        output = net(torch.rand(1, 3, 64, 64))
    losses = total_loss(output, targets, LossConfig(), num_keypoints=5, tag_ramp_px=32)
    assert [tuple(stack.shape) for stack in heatmaps_of(output)] == [
        tuple(stack.shape) for stack in targets.heatmaps
    ]
    assert len(tags_of(output)) == (2 if "double" in net_name else 1)
    assert losses.total.dtype == torch.float32
    names, weights = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(losses.total, weights)  # fails where a weight has none
    for name, of_weight in zip(names, gradients, strict=True):
        assert of_weight.isfinite().all(), name


def test_a_missing_stack_of_targets_is_noticed() -> None:
    output, targets = published_outputs("l0")
    with pytest.raises(ValueError, match="zip"):
        total_loss(
            output, targets._replace(masks=targets.masks[:1]), LossConfig(), num_keypoints=17
        )


def test_the_ramp_is_part_of_the_tags() -> None:
    output, targets = published_outputs("l0")
    plain = total_loss(output, targets, LossConfig(), num_keypoints=17)
    ramped = total_loss(output, targets, LossConfig(), num_keypoints=17, tag_ramp_px=32)
    itself = output._replace(tags=add_ramp(output.tags, 32, 17))
    expected = total_loss(itself, targets, LossConfig(), num_keypoints=17)
    torch.testing.assert_close(tuple(ramped), tuple(expected))
    assert ramped.pull > plain.pull


def test_parts_are_unweighted_and_without_gradient() -> None:
    output, targets = published_outputs("l0")
    losses: Losses = total_loss(
        output, targets, LossConfig(heatmap=0, push=0, pull=7), num_keypoints=17
    )
    torch.testing.assert_close(losses.total, 7 * losses.pull)
    assert losses.total.requires_grad
    assert not any(part.requires_grad for part in (*losses.heatmap, losses.push, losses.pull))
    assert all(part > 0 for part in (*losses.heatmap, losses.push, losses.pull))
