"""pipeline/preprocess.py: batches by size, geometry of turned and elongated pictures."""

import dataclasses
import logging
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.messages import Frame, PixelFormat, Region
from pipeline.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROTATIONS = [0, 90, 180, 270]
FORMATS: tuple[PixelFormat, ...] = get_args(PixelFormat)


def stage(**settings: Any) -> Preprocess:
    small: dict[str, Any] = {"input_size": 64, "size_multiple": 32, "mean": MEAN, "std": STD}
    return Preprocess(**(small | settings))


def frame_of(
    planes: tuple[np.ndarray, ...], *, rotation: int = 0, index: int = 0, **others: Any
) -> Frame:
    h, w = planes[0].shape[:2]
    return Frame(
        source="test",
        index=index,
        pts_seconds=None,
        captured_ns=0,
        captured_unix_s=0.0,
        size=(w, h) if rotation in (90, 270) else (h, w),
        planes=planes,
        rotation=rotation,
        **others,
    )


def noise_frame(size: tuple[int, int], index: int = 0, **others: Any) -> Frame:
    picture = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
    return frame_of((picture,), index=index, **others)


def blob_planes(
    size: tuple[int, int], x: float, y: float, pixel_format: PixelFormat
) -> tuple[np.ndarray, ...]:
    """A bright spot on black at (x, y) of the planes as they lie."""
    h, w = size
    ys, xs = np.mgrid[:h, :w]
    blob = 200 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 4.0**2))
    if pixel_format in ("bgr24", "rgb24"):
        return (np.repeat(blob.round().astype(np.uint8)[:, :, None], 3, axis=2),)
    luma = (16 + blob).round().astype(np.uint8)
    grey = np.full(((h + 1) // 2, (w + 1) // 2, 2), 128, np.uint8)
    return (luma, grey) if pixel_format == "nv12" else (luma, grey[:, :, 0], grey[:, :, 1])


def centroid(image: np.ndarray) -> np.ndarray:
    """(x, y, 1) of the light in a (3, H, W) network input."""
    weight = image[1] - image[1].min()
    ys, xs = np.mgrid[: image.shape[1], : image.shape[2]]
    total = weight.sum()
    return np.array([(weight * xs).sum() / total, (weight * ys).sum() / total, 1.0])


def test_frames_are_grouped_by_network_size() -> None:
    wide, tall, also_wide = (
        noise_frame(size, index) for index, size in enumerate([(90, 160), (160, 90), (180, 320)])
    )
    batches = list(stage()([wide, tall, also_wide]))
    assert [batch.frames for batch in batches] == [(wide, also_wide), (tall,)]
    assert [batch.images.shape for batch in batches] == [(2, 3, 64, 128), (1, 3, 128, 64)]
    assert [batch.image_from_net.shape for batch in batches] == [(2, 2, 3), (1, 2, 3)]
    for batch in batches:
        assert batch.images.dtype == np.float32
        assert batch.image_from_net.dtype == np.float64
        assert list(batch.stage_ms) == ["preprocess"]
        assert batch.stage_ms["preprocess"] > 0


def test_no_frames_make_no_batch() -> None:
    assert list(stage()([])) == []


def test_a_batch_is_its_frames_one_by_one() -> None:
    run = stage()
    sizes = [(90, 160), (180, 320), (91, 161), (90, 160)]
    frames = [noise_frame(size, number) for number, size in enumerate(sizes)]
    (together,) = run(frames)
    for i, frame in enumerate(frames):
        (alone,) = run([frame])
        np.testing.assert_array_equal(together.images[i], alone.images[0])
        np.testing.assert_array_equal(together.image_from_net[i], alone.image_from_net[0])


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("size", [(120, 200), (121, 201)])
def test_a_blob_is_found_in_the_upright_picture(
    size: tuple[int, int], pixel_format: PixelFormat, rotation: int
) -> None:
    planes = blob_planes(size, 130, 40, pixel_format)
    frame = frame_of(planes, rotation=rotation, pixel_format=pixel_format)
    (batch,) = stage()([frame])
    found = batch.image_from_net[0] @ centroid(batch.images[0])
    # What people see is the meaning of upright: the brightest pixel of to_host().
    seen = np.unravel_index(frame.to_host()[:, :, 1].argmax(), frame.size)[::-1]
    np.testing.assert_allclose(found, seen, atol=0.3)
    assert batch.images.shape[2:] == ((128, 64) if rotation in (90, 270) else (64, 128))


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("settings", [{}, {"canvas": (96, 64)}, {"max_long_side": 64}])
@pytest.mark.parametrize("size", [(120, 200), (121, 203)])
def test_a_turned_frame_equals_its_upright_picture(
    size: tuple[int, int], settings: dict[str, Any], rotation: int
) -> None:
    frame = noise_frame(size, rotation=rotation)
    upright = frame_of((frame.to_host(),))
    run = stage(**settings)
    (turned,), (plain,) = run([frame]), run([upright])
    np.testing.assert_allclose(turned.images, plain.images, atol=1e-4)
    np.testing.assert_array_equal(turned.image_from_net, plain.image_from_net)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_turned_yuv_frame_equals_its_upright_picture(rotation: int) -> None:
    rng = np.random.default_rng(5)
    luma = rng.integers(100, 140, (121, 203), dtype=np.uint8)
    chroma = rng.integers(118, 138, (2, 61, 102), dtype=np.uint8)
    colour: dict[str, Any] = {"pixel_format": "yuv420p", "color_space": "bt709"}
    frame = frame_of((luma, *chroma), rotation=rotation, **colour)
    (turned,) = stage()([frame])
    (plain,) = stage()([frame_of((frame.to_host(),))])
    # to_host() rounds to grey levels (1 level is 1/58 after normalisation).
    np.testing.assert_allclose(turned.images, plain.images, atol=0.51 / 255 / min(STD))


def test_colour_of_the_frame_is_respected() -> None:
    planes = (np.full((64, 64), 100, np.uint8), *np.full((2, 32, 32), 90, np.uint8))
    greens = []
    for color_space in ("bt601", "bt709"):
        for full_range in (False, True):
            frame = frame_of(
                planes, pixel_format="yuv420p", color_space=color_space, full_range=full_range
            )
            (batch,) = stage(mean=(0, 0, 0), std=(1, 1, 1))([frame])
            np.testing.assert_allclose(
                batch.images[0, ::-1, 30, 30] * 255, frame.to_host()[30, 30], atol=0.51
            )
            greens.append(float(batch.images[0, 1, 30, 30]))
    assert len({round(green, 3) for green in greens}) == 4


def test_a_canvas_takes_every_picture_whole() -> None:
    sizes = [(90, 160), (200, 40), (33, 33), (64, 64)]
    frames = [noise_frame(size, i) for i, size in enumerate(sizes)]
    (batch,) = stage(canvas=(96, 128))(frames)
    assert batch.images.shape == (4, 3, 96, 128)
    for frame, image_from_net in zip(frames, batch.image_from_net, strict=True):
        left, top = image_from_net @ [0, 0, 1]
        right, bottom = image_from_net @ [128, 96, 1]
        assert left <= 0.5
        assert top <= 0.5
        assert right >= frame.size[1] - 0.5
        assert bottom >= frame.size[0] - 0.5


@pytest.mark.parametrize("size", [(20, 700), (700, 20)])
def test_a_very_elongated_picture_shrinks_with_one_warning(
    size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    run = stage(max_long_side=256)
    with caplog.at_level(logging.WARNING):
        first, second = (next(run([noise_frame(size, index)])) for index in (0, 1))
    assert sorted(first.images.shape[2:]) == [32, 256]
    assert second.images.shape == first.images.shape
    assert len(caplog.records) == 1
    assert "max_long_side 256" in caplog.text
    corners = first.image_from_net[0] @ np.array([[0, first.images.shape[3]], [0, 0], [1, 1]])
    assert corners[0, 0] <= 0.5
    assert corners[0, 1] >= size[1] - 0.5


def test_pictures_of_many_sizes_stay_right() -> None:
    run = stage()
    for side in [*range(64, 264), 64]:  # more sizes than are remembered
        (batch,) = run([noise_frame((side, side))])
        np.testing.assert_allclose(batch.image_from_net[0, 0, 0], side / 64)
        assert batch.images.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("prefilter", [True, False])
def test_prefilter_is_a_setting(prefilter: bool) -> None:
    board = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    frame = frame_of((np.repeat(board[:, :, None], 3, axis=2),))
    (batch,) = stage(prefilter=prefilter, mean=(0, 0, 0), std=(1, 1, 1))([frame])
    assert (abs(batch.images[0, :, 8:-8, 8:-8] - 0.5).max() < 0.05) == prefilter


def test_frames_without_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="carries no pixels"):
        list(stage()([noise_frame((90, 160)).without_pixels()]))


def test_planes_of_another_size_are_refused() -> None:
    frame = frame_of((np.zeros((90, 160, 3), np.uint8),))
    lying = Frame(**{name: getattr(frame, name) for name in Frame.__slots__} | {"rotation": 90})
    with pytest.raises(
        ValueError, match=r"size \(90, 160\).* turned by 90 degrees are \(160, 90\)"
    ):
        list(stage()([lying]))


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("roi", [(20, 10, 60, 50), (21, 11, 39, 45), (0, 0, 120, 120)])
def test_the_network_sees_the_region_and_its_map_leads_to_the_whole_picture(
    rotation: int, pixel_format: PixelFormat, roi: Region
) -> None:
    at = x, y = 47.0, 33.0  # of the upright picture, (121, 121)
    lying = {0: (x, y), 90: (y, 120 - x), 180: (120 - x, 120 - y), 270: (120 - y, x)}[rotation]
    planes = blob_planes((121, 121), lying[0], lying[1], pixel_format)
    whole = frame_of(planes, rotation=rotation, pixel_format=pixel_format)
    (batch,) = stage()([dataclasses.replace(whole, roi=roi)])
    found = batch.image_from_net[0] @ centroid(batch.images[0])
    assert found == pytest.approx(at, abs=0.3)
    (all_of_it,) = stage()([whole])
    zoom = np.linalg.norm(all_of_it.image_from_net[0, :, :2])
    zoom /= np.linalg.norm(batch.image_from_net[0, :, :2])
    assert zoom == pytest.approx(121 / min(roi[2:]), rel=0.06)


def test_a_regions_input_is_that_of_the_picture_cut_out() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    part = picture[20:84, 30:118]
    (of_region,) = stage()([frame_of((picture,), roi=(30, 20, 88, 64))])
    (of_part,) = stage()([frame_of((np.ascontiguousarray(part),))])
    np.testing.assert_array_equal(of_region.images, of_part.images)
    shift = of_region.image_from_net[0] - of_part.image_from_net[0]
    np.testing.assert_allclose(shift, [[0, 0, 30], [0, 0, 20]], atol=1e-9)


def test_another_input_size_holds_from_the_next_batch_on() -> None:
    frame, changed = noise_frame((480, 640)), stage(input_size=256)
    [before] = changed([frame])
    changed.set_input_size(128)
    [after] = changed([frame])
    [expected] = stage(input_size=128)([frame])
    assert after.images.shape[2:] != before.images.shape[2:]
    np.testing.assert_array_equal(after.images, expected.images)
    np.testing.assert_array_equal(after.image_from_net, expected.image_from_net)
    changed.set_input_size(256)
    [again] = changed([frame])
    np.testing.assert_array_equal(again.images, before.images)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("aspect", [2.0, 24 / 11, 8 / 9, 0.5])
def test_the_network_sees_square_pixels_and_its_map_leads_to_stored_ones(
    rotation: int, aspect: float
) -> None:
    size, at = (120, 96), (30.0, 80.0)
    planes = blob_planes(size, *at, "bgr24")
    frame = frame_of(planes, rotation=rotation, pixel_aspect=aspect)
    (batch,) = stage()([frame])
    height, width = batch.images.shape[2:]
    shown = frame.shown_size
    assert width / height == pytest.approx(shown[1] / shown[0], rel=0.35)  # multiples of 32
    image_from_net = batch.image_from_net[0]
    # Square on the screen: a step of one network pixel is as long in x as in y.
    assert image_from_net[0, 0] * aspect == pytest.approx(image_from_net[1, 1], rel=0.02)
    found = image_from_net @ centroid(batch.images[0])
    x, y = at
    height, width = size
    upright = {
        0: (x, y),
        90: (height - 1 - y, x),
        180: (width - 1 - x, height - 1 - y),
        270: (y, width - 1 - x),
    }[rotation]
    assert found[:2] == pytest.approx(upright, abs=0.5)
