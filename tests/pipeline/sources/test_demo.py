"""The demo scene: always the same, and its geometry is what copies() says."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from pipeline.sources import demo

_CORNERS = np.array([[0, 0, 1], [511, 0, 1], [0, 511, 1], [511, 511, 1]], float)


def _box(copy: demo.Copy) -> tuple[np.ndarray, np.ndarray]:
    corners = _CORNERS @ copy.picture_from_astronaut.T
    return corners.min(axis=0), corners.max(axis=0)


def _overlap(one: demo.Copy, other: demo.Copy) -> bool:
    (low, high), (other_low, other_high) = _box(one), _box(other)
    return bool(np.all(np.minimum(high, other_high) > np.maximum(low, other_low)))


def test_pictures_are_deterministic_and_repeat() -> None:
    first = demo.picture(17)
    assert first.shape == (720, 1280, 3)
    assert first.dtype == np.uint8
    again = demo.picture(17 + demo.NUM_FRAMES)
    assert again is not first
    np.testing.assert_array_equal(again, first)
    assert np.any(demo.picture(18) != first)


@pytest.mark.parametrize("index", [0, 75, 150, 220])
def test_every_visible_print_lies_where_copies_says(index: int) -> None:
    """Pull each print back by its matrix: that must give the photograph, wherever it is visible."""
    photo = demo.photograph()
    picture = demo.picture(index)
    hidden = np.zeros(picture.shape[:2], np.uint8)
    for copy in reversed(demo.copies(index)):  # from the front one backwards
        matrix = copy.picture_from_astronaut
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        found = cv2.warpAffine(picture, matrix, (512, 512), flags=flags)
        covered = cv2.warpAffine(hidden, matrix, (512, 512), flags=flags)
        inside = cv2.warpAffine(np.full_like(hidden, 255), matrix, (512, 512), flags=flags)
        seen = (covered == 0) & (inside == 255)
        seen[:8], seen[-8:], seen[:, :8], seen[:, -8:] = False, False, False, False
        assert seen.mean() > 0.25
        # The print was shrunk, so details may differ, but neither on average nor when blurred.
        blurred = cv2.GaussianBlur(found, (0, 0), 3).astype(float)
        wanted = cv2.GaussianBlur(photo, (0, 0), 3).astype(float)
        assert np.abs(blurred - wanted)[seen].mean() < 4.0
        shifted = np.abs(np.roll(blurred, 6, axis=1) - wanted)[seen].mean()
        assert shifted > 1.5 * np.abs(blurred - wanted)[seen].mean()
        # Whatever lies behind is hidden by this print, its rim and its shadow.
        rim = 40
        outline = np.array([[-rim, -rim, 1], [511 + rim, -rim, 1], [511 + rim] * 2 + [1],
                            [-rim, 511 + rim, 1]], float) @ matrix.T  # fmt: skip
        cv2.fillConvexPoly(hidden, np.rint(outline).astype(np.int32), 255)


def test_one_of_three_sizes_is_mirrored() -> None:
    copies = demo.copies(40)
    areas = [np.linalg.det(copy.picture_from_astronaut[:, :2]) for copy in copies]
    assert [copy.mirrored for copy in copies] == [area < 0 for area in areas]
    assert sum(copy.mirrored for copy in copies) == 1
    scales = sorted(np.sqrt(np.abs(areas)))
    assert all(larger > 1.3 * smaller for smaller, larger in pairwise(scales))


def test_motion_is_smooth_and_stays_in_the_picture() -> None:
    rounds = range(demo.NUM_FRAMES + 1)
    centres = np.array(
        [
            [copy.picture_from_astronaut @ (255.5, 255.5, 1) for copy in demo.copies(i)]
            for i in rounds
        ]
    )  # (frames, copies, 2)
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
    assert steps.max() < 10.0
    assert np.all(np.ptp(centres, axis=0) > 20.0)  # every one moves, along both axes
    assert np.all((centres > 0) & (centres < (1280, 720)))


def test_two_prints_overlap_exactly_once() -> None:
    met = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        overlap = [
            _overlap(copies[one], copies[other])
            for copies in map(demo.copies, range(demo.NUM_FRAMES))
        ]
        met.append(sum(now and not before for before, now in pairwise(overlap)))
        assert not overlap[0]
    assert met == [0, 0, 1]
