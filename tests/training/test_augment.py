"""Augmentation against independent definitions: dots in pictures, masks looked up at points."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nets.skeletons import COCO
from training.augment import Example, make_example, published_matrix
from training.config import AugmentConfig
from training.image_store import Picture
from training.labels import Box, LabelledImage, TaughtPeople

K = COCO.num_keypoints
STILL: dict[str, Any] = {"rotation_deg": 0, "scale": (1, 1), "translation_px": 0, "flip": 0}


def image_of(
    size: tuple[int, int], people: np.ndarray | None = None, **fields: Any
) -> LabelledImage:
    """An image with people (P, K, 3), or with none."""
    keypoints = np.zeros((0, K, 3)) if people is None else people
    low, high = keypoints[..., :2].min(axis=1), keypoints[..., :2].max(axis=1)
    boxes = np.hstack([low, high - low])
    known: dict[str, Any] = {"ignore": (), "only": None} | fields
    return LabelledImage(
        image_id=1,
        file_name="1.png",
        size=size,
        keypoints=keypoints.astype(np.float32),
        boxes=boxes.astype(np.float32),
        areas=(boxes[:, 2] * boxes[:, 3]).astype(np.float32),
        **known,
    )


def random_people(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """(count, K, 3), all visible and at least 8 px inside the picture."""
    height, width = size
    people = np.full((count, K, 3), 2.0)
    people[..., 0] = rng.uniform(8, width - 9, (count, K))
    people[..., 1] = rng.uniform(8, height - 9, (count, K))
    return people


def soft_dot(size: tuple[int, int], x: float, y: float) -> Picture:
    """A bright spot of a few pixels on black."""
    ys, xs = np.mgrid[: size[0], : size[1]]
    spot = 250 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 2.5**2))
    return np.dstack([spot.astype(np.uint8)] * 3)


def make(
    parts: list[tuple[LabelledImage, Picture]],
    seed: int,
    *,
    levels: tuple[int, ...] = (32, 64),
    **changes: Any,
) -> Example:
    return make_example(
        parts,
        settings=AugmentConfig(**({"size": 128} | changes)),
        level_sizes=levels,
        flip_order=COCO.flip_order,
        rng=np.random.default_rng(seed),
    )


def black(size: tuple[int, int]) -> Picture:
    return np.zeros((*size, 3), np.uint8)


# --- where things go ------------------------------------------------------------------------------


@given(
    st.tuples(st.floats(0, 600), st.floats(0, 600)),
    st.floats(0.2, 8),
    st.floats(-180, 180),
    st.sampled_from([64, 128, 512]),
)
def test_the_published_matrix_is_zoom_then_turn(
    center: tuple[float, float], scale: float, rotation_deg: float, size: int
) -> None:
    """OpenCV turns counter-clockwise for positive angles: minus the angle of the published code."""
    matrix = published_matrix(center=center, scale=scale, rotation_deg=rotation_deg, size=size)
    zoom = size / (200 * scale)
    expected = cv2.getRotationMatrix2D(center, rotation_deg, zoom)
    expected[:, 2] += size / 2 - np.array(center)
    np.testing.assert_allclose(matrix, expected, atol=2e-3)  # its centre is float32


def test_without_chance_the_short_or_long_side_fills_the_crop() -> None:
    size = (100, 200)
    corners = np.full((1, K, 3), 2.0)
    corners[0, :4, :2] = [(0, 0), (200, 0), (0, 100), (200, 100)]
    parts = [(image_of(size, corners), black(size))]
    short = make(parts, 0, levels=(128, 32), **STILL)
    expected = np.array([(-64, 0), (192, 0), (-64, 128), (192, 128)])
    np.testing.assert_allclose(short.keypoints[0][0, :4, :2], expected, atol=1e-4)
    np.testing.assert_allclose(short.keypoints[1][0, :4, :2], expected / 4, atol=1e-4)
    long = make(parts, 0, levels=(128,), **STILL, scale_of="long")
    np.testing.assert_allclose(
        long.keypoints[0][0, :4, :2], [(0, 32), (128, 32), (0, 96), (128, 96)], atol=1e-4
    )


def test_scale_shift_and_turn_stay_in_their_ranges() -> None:
    """Read off three points: the published ranges, all of them used."""
    size = (120, 160)
    people = np.full((1, K, 3), 2.0)
    people[0, :3, :2] = [(80, 60), (81, 60), (80, 61)]
    zooms, angles, shifts = [], [], []
    for seed in range(300):
        middle, right, _ = make([(image_of(size, people), black(size))], seed, flip=0).keypoints[1][
            0, :3, :2
        ]
        step = right - middle
        zooms.append(64 / 120 / np.hypot(*step))
        angles.append(np.degrees(np.arctan2(step[1], step[0])))
        source_shift = np.hypot(*(middle - 32)) / np.hypot(*step)
        shifts.append(source_shift)
        assert source_shift <= np.sqrt(2) * 40 * zooms[-1] * 120 / 200 + 1e-2
    assert 0.749 < min(zooms) < 0.8
    assert 1.45 < max(zooms) < 1.501
    assert -30.1 < min(angles) < -27
    assert 27 < max(angles) < 30.1
    assert max(shifts) > 25


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.sampled_from([1, 4]), flip=st.booleans())
def test_a_dot_is_found_where_its_keypoint_went(seed: int, parts: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    sizes = [tuple(rng.integers(90, 220, 2).tolist()) for _ in range(parts)]
    people = [random_people(rng, size, 2) for size in sizes]
    part, person, k = rng.integers(parts), rng.integers(2), rng.integers(K)
    pictures = [black(size) for size in sizes]
    pictures[part] = soft_dot(sizes[part], *people[part][person, k, :2])
    example = make(
        [
            (image_of(size, some), picture)
            for size, some, picture in zip(sizes, people, pictures, strict=True)
        ],
        seed,
        levels=(128, 32),
        flip=float(flip),
        people_crop=0.5,
    )
    place = COCO.flip_order[k] if flip else k
    x, y, v = example.keypoints[0][2 * part + person, place]
    if v <= 0 or not (12 < x < 115 and 12 < y < 115):
        return  # outside, or cut by the tile's edge: other tests
    light = example.image.astype(np.float64).sum(axis=2)
    ys, xs = np.mgrid[:128, :128]
    if parts == 1 or light[round(y), round(x)] > 0.9 * light.max():
        near = np.hypot(xs - x, ys - y) < 40
        seen = np.where(near, light, 0)
        found = np.array([(xs * seen).sum(), (ys * seen).sum()]) / seen.sum()
        tolerance = 1.0 if parts == 1 else 6.0  # a dot may be cut by the tile's edge
        np.testing.assert_allclose(found, (x, y), atol=tolerance)
    assert light[round(y), round(x)] > 0.6 * light.max()


def test_mirroring_swaps_left_and_right_names() -> None:
    size = (128, 128)
    people = random_people(np.random.default_rng(0), size, 1)
    parts = [(image_of(size, people), soft_dot(size, 30, 40))]
    plain = make(parts, 0, levels=(128, 32), **STILL)
    mirrored = make(parts, 0, levels=(128, 32), **(STILL | {"flip": 1}))
    np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
    for level, side in enumerate((128, 32)):
        for k, name in enumerate(COCO.keypoint_names):
            other = name.replace("left", "?").replace("right", "left").replace("?", "right")
            x, y, v = plain.keypoints[level][0, k]
            np.testing.assert_allclose(
                mirrored.keypoints[level][0, COCO.keypoint_names.index(other)], (side - 1 - x, y, v)
            )


def test_the_picture_comes_out_as_rgb_on_a_black_border() -> None:
    size = (100, 200)
    picture = np.full((*size, 3), (10, 20, 30), np.uint8)  # BGR
    example = make([(image_of(size), picture)], 0, **STILL, scale_of="long")
    assert (example.image[64, 64] == (30, 20, 10)).all()
    assert (example.image[:30] == 0).all()
    assert (example.image[-30:] == 0).all()


def test_a_people_crop_shows_one_person_at_a_useful_size() -> None:
    size = (400, 600)
    rng = np.random.default_rng(0)
    people = random_people(rng, (60, 40), 2)
    people[1, :, :2] += (500, 300)
    image = image_of(size, people)
    heights = []
    for seed in range(200):
        points = make(
            [(image, black(size))], seed, levels=(128,), people_crop=1, translation_px=0, flip=0,
            rotation_deg=0,
        ).keypoints[0]  # fmt: skip
        extent = np.ptp(points[..., :2], axis=1).max(axis=1)
        middle = (points[..., :2].min(axis=1) + points[..., :2].max(axis=1)) / 2
        nearest = np.abs(middle - 64).max(axis=1).argmin()
        np.testing.assert_allclose(middle[nearest], 64, atol=1e-3)
        heights.append(extent[nearest] / 128)
        assert 0.19 < heights[-1] < 0.91
    assert min(heights) < 0.25
    assert max(heights) > 0.8


# --- masks ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.sampled_from([1, 4]))
def test_masks_say_for_every_pixel_whether_its_source_is_supervised(seed: int, parts: int) -> None:
    """The supervised part is painted white, and a level's mask is where the example is white."""
    rng = np.random.default_rng(seed)
    images, pictures = [], []
    for _ in range(parts):
        size = tuple(rng.integers(90, 220, 2).tolist())
        ignored = Box(*rng.integers(0, 60, 2).tolist(), *rng.integers(10, 60, 2).tolist())
        only = (10.0, 5.0, 70.0, 80.0) if rng.random() < 0.5 else None
        images.append(image_of(size, random_people(rng, size, 1), ignore=(ignored,), only=only))
        picture = np.full((*size, 3), 0 if only else 255, np.uint8)
        if only:
            picture[5:85, 10:80] = 255
        y, x = int(ignored.y), int(ignored.x)
        picture[y : y + int(ignored.height), x : x + int(ignored.width)] = 0
        pictures.append(picture)
    example = make(list(zip(images, pictures, strict=True)), seed, levels=(32, 64), flip=0)
    for mask in example.masks:
        assert mask.dtype == np.uint8
        stride = 128 // mask.shape[-1]
        assert mask.shape == (1, 128 // stride, 128 // stride)
        seen = example.image[::stride, ::stride, 0]
        sure = cv2.erode((seen == 255).astype(np.uint8), np.ones((3, 3)))
        never = cv2.erode((seen == 0).astype(np.uint8), np.ones((3, 3)))
        assert (mask[0][sure == 1] == 1).all()
        assert (mask[0][never == 1] == 0).all()


def test_a_mirrored_mask_is_the_mask_mirrored() -> None:
    size = (128, 128)
    people = random_people(np.random.default_rng(0), size, 1)
    people[0, :, 0] /= 2
    people[0, 5, 2] = -1  # the left shoulder is unknown
    image = image_of(size, people, ignore=(Box(100, 0, 28, 128),))
    plain = make([(image, black(size))], 0, **STILL)
    mirrored = make([(image, black(size))], 0, **(STILL | {"flip": 1}))
    for one, other in zip(plain.masks, mirrored.masks, strict=True):
        assert one.shape[0] == K
        np.testing.assert_array_equal(other, one[list(COCO.flip_order)][..., ::-1])
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("seed", range(8))
def test_an_unknown_keypoint_switches_off_its_channel_near_its_person_alone(seed: int) -> None:
    size = (200, 300)
    people = random_people(np.random.default_rng(seed), (80, 80), 2)
    people[1, :, :2] += (200, 100)
    people[0, [0, 3], 2] = -1
    image = image_of(size, people)
    example = make([(image, black(size))], seed, levels=(128, 64), flip=0)
    for mask, points in zip(example.masks, example.keypoints, strict=True):
        known = [k for k in range(K) if k not in (0, 3)]
        np.testing.assert_array_equal(
            mask[known], np.broadcast_to(mask[1], (K - 2, *mask.shape[1:]))
        )
        np.testing.assert_array_equal(mask[0], mask[3])
        side = mask.shape[-1]
        for x, y, _ in points[0]:
            if 0 <= x < side and 0 <= y < side:
                assert mask[0, int(y), int(x)] == 0
        supervised = 0
        for x, y, _ in points[1]:
            if 2 <= x < side - 2 and 2 <= y < side - 2 and mask[1, int(y), int(x)]:
                assert mask[0, int(y), int(x)] == 1
                supervised += 1
        assert mask[1].sum() > mask[0].sum() or supervised == 0


# --- a teacher's keypoints ------------------------------------------------------------------------


def taught_image(rng: np.random.Generator, share: float | None) -> LabelledImage:
    """Two people and an ignored box; a teacher, if any, says of them what the labels say."""
    size = (int(rng.integers(90, 220)), int(rng.integers(90, 220)))
    people = random_people(rng, size, 2)
    ignore = (Box(int(rng.integers(60)), int(rng.integers(60)), 30, 40),)
    image = image_of(size, people, ignore=ignore, only=(10.0, 5.0, 70.0, 80.0))
    if share is None:
        return image
    return replace(image, taught=TaughtPeople(image.keypoints, image.areas, ignore, share))


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("shares", [(0.25,), (0.25, None, 1.0, 0.5)])
def test_what_a_teacher_says_moves_as_labels_do(
    shares: tuple[float | None, ...], flip: int
) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        images = [taught_image(rng, share) for share in shares]
        parts = [(image, black(image.size)) for image in images]
        example = make(parts, seed, levels=(32, 64), flip=flip)
        taught = example.taught
        assert taught is not None
        has_teacher = np.repeat([share is not None for share in shares], 2)
        np.testing.assert_array_equal(taught.areas, example.areas[has_teacher])
        for level in (0, 1):
            said, labels = taught.keypoints[level], example.keypoints[level]
            np.testing.assert_array_equal(said, labels[has_teacher])
            mask, share = example.masks[level], taught.shares[level]
            assert share.shape == mask.shape
            assert set(np.unique(share).tolist()) <= {0, *(s for s in shares if s is not None)}
            assert not share[mask == 0].any()
            if None not in shares:
                assert (share[mask > 0] > 0).all()


def test_without_a_teacher_an_example_has_none() -> None:
    image = taught_image(np.random.default_rng(0), None)
    assert make([(image, black(image.size))], 0).taught is None


def test_areas_grow_with_the_picture() -> None:
    size = (64, 96)
    image = image_of(size, random_people(np.random.default_rng(0), size, 2))
    example = make([(image, black(size))], 0, **STILL)
    np.testing.assert_allclose(example.areas, 4 * image.areas, rtol=1e-5)


# --- mosaics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0, 1])
def test_no_label_of_a_mosaic_lies_on_another_picture(flip: int) -> None:
    """Each picture has one brightness; a label's pixel must have that of its own picture."""
    size = (150, 200)
    labels = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        parts = [
            (
                image_of(size, random_people(rng, size, 2)),
                np.full((*size, 3), 50 * n + 50, np.uint8),
            )
            for n in range(4)
        ]
        example = make(parts, seed, levels=(128, 64, 32), flip=flip)
        for points in (example.keypoints[0], example.keypoints[1], example.keypoints[2]):
            assert len(points) == 8
        for level, side in enumerate((128, 64, 32)):
            # The colour in the middle of the label's level pixel.
            small = example.image.reshape(side, 128 // side, side, 128 // side, 3)
            top, low = small.max(axis=(1, 3, 4)), small.min(axis=(1, 3, 4))
            for number, person in enumerate(example.keypoints[level]):
                own = 50 * (number // 2) + 50
                for x, y, v in person:
                    if v > 0 and top[int(y), int(x)] == low[int(y), int(x)] > 0:
                        assert top[int(y), int(x)] == own
                        labels += 1
    assert labels > 1000


def test_tiles_of_a_mosaic_are_filled_and_people_keep_a_useful_size() -> None:
    size = (240, 320)
    extents = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        people = random_people(rng, (70, 60), 1)
        people[..., :2] += rng.integers(0, 160, 2)
        parts = [(image_of(size, people), np.full((*size, 3), 200, np.uint8)) for _ in range(4)]
        example = make(parts, seed, levels=(128,), flip=0, rotation_deg=0)
        assert (example.image > 0).mean() > 0.75
        for person in example.keypoints[0]:
            extents.append(np.ptp(person[:, :2], axis=0).max() / 128)
            assert (person[:, 2] > 0).mean() > 0.6
    assert np.percentile(extents, 10) > 0.1
    assert np.percentile(extents, 90) < 0.65


def test_mosaics_take_images_without_people() -> None:
    example = make([(image_of((90, 70)), np.full((90, 70, 3), 9, np.uint8))] * 4, 0)
    assert [points.shape for points in example.keypoints] == [(0, K, 3)] * 2
    assert example.masks[0].shape == (1, 32, 32)
    assert (example.image > 0).any()


def test_parts_and_levels_that_do_not_fit_are_refused() -> None:
    part = (image_of((90, 70)), black((90, 70)))
    for parts, levels in (([part] * 2, (32,)), ([part], (33,))):
        with pytest.raises(ValueError, match="1 or 4 images with levels that divide 128"):
            make(parts, 0, levels=levels)


# --- colour --------------------------------------------------------------------------------------


def test_colour_changes_are_off_by_default_and_leave_black_black() -> None:
    size = (128, 128)
    rng = np.random.default_rng(0)
    picture = rng.integers(1, 255, (*size, 3), np.uint8)
    picture[:40] = 0
    plain = make([(image_of(size), picture)], 0, **STILL).image
    changes, grey = [], 0
    for seed in range(100):
        image = make([(image_of(size), picture)], seed, **STILL, color=1).image
        assert (image[:30] == 0).all()
        changes.append(np.abs(image.astype(int) - plain).mean())
        grey += bool((np.ptp(image[60:].astype(int), axis=2) <= 2).all())
    assert min(changes) > 0
    assert 10 < np.mean(changes) < 60
    assert 2 <= grey <= 25
    weak = make([(image_of(size), picture)], 1, **STILL, color=0.1).image
    assert np.abs(weak.astype(int) - plain).mean() < np.mean(changes) / 2
