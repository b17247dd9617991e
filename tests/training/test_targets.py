"""Heatmaps and tag indices: equal to the published code's, to the formulas, and at every border."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nets import build_net
from nets.double_higher_net import DoubleHigherNetSettings
from nets.higher_hrnet import HigherHRNetSettings
from tests.support.places import DATA
from training.config import SizeSigmaConfig, TargetConfig
from training.losses import heatmaps_of
from training.targets import (
    Plan,
    draw_heatmaps,
    mixed_heatmaps,
    sigmas_by_size,
    tag_index,
    target_plan,
)

CASES = dict(np.load(DATA / "target_cases.npz"))

Keypoints = NDArray[np.float64]


def some_people(seed: int, *, people: int, num_keypoints: int, size: tuple[int, int]) -> Keypoints:
    """Keypoints in and around a map; a third of them unlabelled (v = 0) or unknown (v = -1)."""
    rng = np.random.default_rng(seed)
    height, width = size
    keypoints = rng.uniform(-4, 4 + max(size), (people, num_keypoints, 3))
    keypoints[..., 0] *= (width + 4) / (max(size) + 4)
    keypoints[..., 1] *= (height + 4) / (max(size) + 4)
    keypoints[..., 2] = rng.choice([-1, 0, 1, 1, 2, 2], (people, num_keypoints))
    return keypoints


def one_keypoint(x: float, y: float, v: float = 2) -> Keypoints:
    return np.array([[[x, y, v]]])


def pixels_of(keypoints: Keypoints, k: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(x, y) of everybody's keypoint k that is labelled and inside."""
    pixels = [(int(x), int(y)) for x, y, v in keypoints[:, k] if v > 0]
    return [(x, y) for x, y in pixels if 0 <= x < size[1] and 0 <= y < size[0]]


# --- heatmaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["t00", "t01", "t02"])
def test_heatmaps_equal_the_published_code_to_the_bit(case: str) -> None:
    _, size, sigma = (int(number) for number in CASES[f"{case}_meta"])
    drawn = draw_heatmaps(CASES[f"{case}_joints"], size, sigma=sigma)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, CASES[f"{case}_heatmap"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 4), st.sampled_from([(24, 24), (16, 40), (33, 9)]))
def test_heatmaps_are_the_highest_gaussian_of_the_published_square(
    seed: int, people: int, size: tuple[int, int]
) -> None:
    keypoints = some_people(seed, people=people, num_keypoints=3, size=size)
    expected = np.zeros((3, *size))
    for k in range(3):
        for x, y in pixels_of(keypoints, k, size):
            for row in range(size[0]):
                for column in range(size[1]):
                    if max(abs(row - y), abs(column - x)) <= 7:  # side 6 * sigma + 3 = 15
                        value = math.exp(-((row - y) ** 2 + (column - x) ** 2) / 8)
                        expected[k, row, column] = max(expected[k, row, column], value)
    drawn = draw_heatmaps(keypoints, size, sigma=2)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(10.0, 1), (7.0, 1), (10.0, 2), (7.0, 2), (10.0, 4), (7.0, 4), (2.5, 1)]),
    st.sampled_from([7.0, 3.0]),
)
def test_cut_hats_follow_the_formula(seed: int, cut: tuple[float, int], sigma: float) -> None:
    """DoubleHigherNet: exp(-d^2 / sigma^2) up to and with d = tau, in map or in input pixels."""
    tau, stride = cut
    size = (20, 28)
    keypoints = some_people(seed, people=2, num_keypoints=2, size=size)
    expected = np.zeros((2, *size))
    for k in range(2):
        for x, y in pixels_of(keypoints, k, size):
            for row in range(size[0]):
                for column in range(size[1]):
                    squared = stride**2 * ((row - y) ** 2 + (column - x) ** 2)
                    if squared <= tau**2:
                        value = math.exp(-squared / sigma**2)
                        expected[k, row, column] = max(expected[k, row, column], value)
    drawn = draw_heatmaps(keypoints, size, sigma=sigma, tau=tau, unit_stride=stride)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_the_cut_includes_its_radius() -> None:
    for tau, floor in [(10, math.exp(-100 / 49)), (7, math.exp(-1))]:
        (drawn,) = draw_heatmaps(one_keypoint(20, 20), 41, sigma=7, tau=tau)
        assert drawn[20, 20] == 1
        assert drawn[20, 20 + tau] == drawn[20 - tau, 20] == np.float32(floor)
        assert drawn[20, 20 + tau + 1] == 0
    (drawn,) = draw_heatmaps(one_keypoint(20, 20), 41, sigma=7, tau=10)
    assert drawn[26, 28] == np.float32(math.exp(-100 / 49))  # 6, 8: exactly 10 away
    assert drawn[27, 28] == 0


def test_a_gaussian_in_input_pixels_is_narrower_on_coarse_maps() -> None:
    keypoints = one_keypoint(20, 20)
    (at_a_quarter,) = draw_heatmaps(keypoints, 41, sigma=8, unit_stride=4)
    (published,) = draw_heatmaps(keypoints, 41, sigma=2)
    np.testing.assert_array_equal(at_a_quarter, published)
    (narrow,) = draw_heatmaps(keypoints, 41, sigma=2, unit_stride=4)
    assert narrow[20, 21] == np.float32(math.exp(-2))
    assert narrow[20, 20] == 1


@pytest.mark.parametrize(("sigma", "tau"), [(2, None), (7, 10)])
@pytest.mark.parametrize("x", [0, 3, 15])
@pytest.mark.parametrize("y", [0, 8, 11])
def test_a_hat_at_the_border_is_a_part_of_the_whole_one(
    x: int, y: int, sigma: float, tau: float | None
) -> None:
    (inner,) = draw_heatmaps(one_keypoint(40, 40), 81, sigma=sigma, tau=tau)
    (drawn,) = draw_heatmaps(one_keypoint(x, y), (12, 16), sigma=sigma, tau=tau)
    np.testing.assert_array_equal(drawn, inner[40 - y : 52 - y, 40 - x : 56 - x])


@pytest.mark.parametrize(
    ("x", "y", "column", "row"), [(-0.9, 3, 0, 3), (3.99, 0, 3, 0), (15.99, 11.99, 15, 11)]
)
def test_a_keypoint_belongs_to_the_pixel_of_its_truncated_coordinates(
    x: float, y: float, column: int, row: int
) -> None:
    (drawn,) = draw_heatmaps(one_keypoint(x, y), (12, 16), sigma=2)
    assert np.unravel_index(drawn.argmax(), drawn.shape) == (row, column)
    index = tag_index(one_keypoint(x, y), (12, 16), max_people=1)
    assert index.tolist() == [[[row * 16 + column, 1]]]


@pytest.mark.parametrize(
    ("x", "y", "v"),
    [
        (-1, 3, 2),
        (16, 3, 2),
        (3, 12, 2),
        (3, -1, 2),
        (3, 3, 0),
        (3, 3, -1),
        (math.nan, 3, 2),
        (3, math.inf, 2),
        (1e30, 3, 2),
    ],
)
def test_outside_unlabelled_and_unknown_keypoints_leave_nothing(x: float, y: float, v: int) -> None:
    assert not draw_heatmaps(one_keypoint(x, y, v), (12, 16), sigma=2).any()
    assert not tag_index(one_keypoint(x, y, v), (12, 16), max_people=2).any()


def test_every_hat_has_its_own_sigma_and_height() -> None:
    """Several people in one map are the highest of the maps of each alone."""
    keypoints = some_people(3, people=4, num_keypoints=3, size=(24, 30))
    sigmas = np.array([1, 2.5, 1, 3], np.float32)
    heights = np.random.default_rng(0).uniform(0, 1, (4, 3)).astype(np.float32)
    drawn = draw_heatmaps(keypoints, (24, 30), sigma=sigmas, heights=heights)
    alone = [
        draw_heatmaps(keypoints[[p]], (24, 30), sigma=float(sigmas[p])) * heights[p][:, None, None]
        for p in range(4)
    ]
    np.testing.assert_array_equal(drawn, np.max(alone, axis=0))
    assert 0 < drawn.max() < 1


@pytest.mark.parametrize(("unit", "stride"), [("heatmap", 4), ("heatmap", 2), ("input", 4)])
def test_sigma_follows_the_root_of_the_area_between_its_limits(
    unit: Literal["heatmap", "input"], stride: int
) -> None:
    by_size = SizeSigmaConfig(share=0.1, least=1, most=4)
    target = TargetConfig(sigma_by_size=by_size, unit=unit)
    sides = np.array([4, 80, 100, 120, 4000], np.float32)
    sigmas = sigmas_by_size(sides**2, stride, target)
    unit_px = stride if unit == "heatmap" else 1
    np.testing.assert_allclose(sigmas, np.clip(0.1 * sides / unit_px, 1, 4), atol=1 / 16)
    assert sigmas_by_size(sides**2, stride, TargetConfig(sigma=3)) == 3


def test_labels_and_a_teacher_are_mixed_where_both_know() -> None:
    rng = np.random.default_rng(0)
    drawn, taught = rng.random((2, 5, 6, 7), np.float32)
    mask = rng.integers(0, 2, (5, 6, 7), np.uint8)
    share = rng.choice(np.array([0, 0.3, 1], np.float32), (1, 6, 7))
    mixed, known = mixed_heatmaps(drawn.copy(), mask, taught.copy(), share)
    for k, y, x in np.ndindex(drawn.shape):
        labelled, of_teacher = bool(mask[k, y, x]), float(share[0, y, x])
        assert known[k, y, x] == (labelled or of_teacher > 0)
        if labelled:
            expected = (1 - of_teacher) * drawn[k, y, x] + of_teacher * taught[k, y, x]
        else:
            expected = taught[k, y, x] if of_teacher else drawn[k, y, x]
        assert mixed[k, y, x] == pytest.approx(expected, abs=1e-6)


def test_both_kinds_of_visibility_count_alike() -> None:
    seen = draw_heatmaps(one_keypoint(5, 5, 2), 16, sigma=2)
    np.testing.assert_array_equal(draw_heatmaps(one_keypoint(5, 5, 1), 16, sigma=2), seen)
    assert seen.max() == 1


def test_nobody_gives_empty_targets() -> None:
    nobody = np.zeros((0, 17, 3), np.float32)
    assert draw_heatmaps(nobody, 16, sigma=2).shape == (17, 16, 16)
    assert not draw_heatmaps(nobody, 16, sigma=2).any()
    index = tag_index(nobody, 16, max_people=30)
    assert index.shape == (30, 17, 2)
    assert not index.any()


def test_float32_views_and_float64_arrays_give_the_same() -> None:
    keypoints = some_people(3, people=4, num_keypoints=17, size=(32, 32)).astype(np.float32)
    turned = np.ascontiguousarray(keypoints.transpose(2, 1, 0)).transpose(2, 1, 0)
    expected = draw_heatmaps(keypoints.astype(np.float64), 32, sigma=2)
    np.testing.assert_array_equal(draw_heatmaps(turned, 32, sigma=2), expected)


def test_drawing_twice_starts_from_nothing() -> None:
    first = draw_heatmaps(one_keypoint(3, 3), 16, sigma=2)
    first[:] = 9  # neither the hat nor the map is kept
    assert draw_heatmaps(one_keypoint(3, 3), 16, sigma=2).max() == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(P, K, 3\) x, y, v, got shape \(17, 3\)"):
        draw_heatmaps(np.zeros((17, 3)), 16, sigma=2)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        draw_heatmaps(one_keypoint(3, 3), 16, sigma=0)


# --- tag indices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["t00", "t01", "t02"])
def test_tag_index_equals_the_published_code(case: str) -> None:
    size = int(CASES[f"{case}_meta"][1])
    index = tag_index(CASES[f"{case}_joints"], size, max_people=30)
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, CASES[f"{case}_index"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 6), st.sampled_from([(24, 24), (16, 40), (33, 9)]))
def test_tag_index_says_keypoint_and_pixel(seed: int, people: int, size: tuple[int, int]) -> None:
    keypoints = some_people(seed, people=people, num_keypoints=5, size=size)
    index = tag_index(keypoints, size, max_people=6)
    for person in range(6):
        expected: list[tuple[int, int, int]] = []
        if person < people:
            for k in range(5):
                expected += [
                    (k, y, x) for x, y in pixels_of(keypoints[person : person + 1], k, size)
                ]
        count = len(expected)
        assert index[person, :, 1].tolist() == [1] * count + [0] * (5 - count)
        places = np.unravel_index(index[person, :count, 0], (5, *size))
        assert list(zip(*places, strict=True)) == expected
        assert not index[person, count:].any()


def many_people(count: int, *, inside: set[int]) -> Keypoints:
    """One keypoint each, person n in column n; those not in `inside` stand below the map."""
    return np.array([[[n, 0 if n in inside else 99, 2]] for n in range(count)], float)


def columns_of(index: NDArray[Any]) -> list[int]:
    return [int(place) for place, used in index[:, 0] if used]


def test_of_too_many_people_only_those_in_the_picture_count() -> None:
    inside = {1, 4, 5, 8, 11, 12}
    index = tag_index(many_people(14, inside=inside), (1, 40), max_people=6)
    assert columns_of(index) == sorted(inside)
    index = tag_index(many_people(14, inside=inside), (1, 40), max_people=4)
    assert columns_of(index) == [1, 4, 5, 8]
    rng = np.random.default_rng(0)
    index = tag_index(many_people(14, inside=inside), (1, 40), max_people=6, rng=rng)
    assert columns_of(index) == sorted(inside)


def test_of_too_many_people_some_are_drawn_at_random() -> None:
    inside = set(range(2, 12))
    keypoints = many_people(14, inside=inside)
    drawn = set()
    for seed in range(60):
        index = tag_index(keypoints, (1, 40), max_people=4, rng=np.random.default_rng(seed))
        columns = columns_of(index)
        assert len(columns) == 4
        assert columns == sorted(columns)
        drawn |= set(columns)
        again = tag_index(keypoints, (1, 40), max_people=4, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(index, again)
    assert drawn == inside


# --- which heatmaps a network learns -------------------------------------------------------------


CUT = TargetConfig(kind="truncated", sigma=7)


@pytest.mark.parametrize(
    ("net", "target", "expected"),
    [
        (HigherHRNetSettings(deconvs=0), TargetConfig(), [(4, None)]),
        (HigherHRNetSettings(), TargetConfig(), [(4, None), (2, None)]),
        (HigherHRNetSettings(deconvs=2), TargetConfig(), [(4, None), (2, None), (1, None)]),
        (HigherHRNetSettings(), CUT, [(4, 7), (2, 7)]),
        (DoubleHigherNetSettings(), CUT, [(4, 10), (2, 10), (4, 7), (2, 7)]),
        (
            DoubleHigherNetSettings(),
            TargetConfig(kind="truncated", tau=(7, 7)),
            [(4, 7), (2, 7), (4, 7), (2, 7)],
        ),
        (
            DoubleHigherNetSettings(),
            TargetConfig(),
            [(4, None), (2, None), (4, None), (2, None)],
        ),
    ],
)
def test_plans_of_networks(
    net: HigherHRNetSettings | DoubleHigherNetSettings,
    target: TargetConfig,
    expected: list[tuple[int, float | None]],
) -> None:
    assert target_plan(net, target) == tuple(Plan(*plan) for plan in expected)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hrnet_w32", {}),
        ("higher_hrnet_lite", {"deconvs": 2}),
        ("double_higher_net_lite", {}),
        ("higher_mobile", {}),
    ],
)
def test_plans_have_the_strides_of_what_the_networks_say(name: str, changes: Any) -> None:
    small: dict[str, Any] = {} if name == "higher_mobile" else {"width": 8, "modules": (1, 1, 1)}
    net = build_net(name, **small, **changes).eval()
    with torch.inference_mode():
        output = net(torch.zeros(1, 3, 64, 64))
    strides = [64 // stack.shape[-1] for stack in heatmaps_of(output)]
    assert [plan.stride for plan in target_plan(net.settings, TargetConfig())] == strides
