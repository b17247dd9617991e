"""kernels/preprocess.py against the published geometry, OpenCV, swscale and plain definitions."""

import json
import math
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import preprocess as module
from kernels.geometry import capped_size, invert, net_from_image, network_size
from kernels.preprocess import bgr_from_planes, preprocess, warm_up
from tests.support.places import DATA

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = json.loads((DATA / "affine_cases.json").read_text())
MATRICES = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}
RANGES = {True: ColorRange.JPEG, False: ColorRange.MPEG}
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""Without these flags swscale repeats chroma and rounds down."""
FORMATS = ["bgr24", "rgb24", "yuv420p", "nv12"]
Size = tuple[int, int]
Planes = tuple[np.ndarray, ...]

sizes = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
small_sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))


def noise(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def smooth_picture(size: Size, seed: int = 0, *, low: int = 0, high: int = 255) -> np.ndarray:
    """(h, w, 3) uint8 BGR without sharp edges, so that interpolations hardly differ."""
    coarse = np.random.default_rng(seed).uniform(low, high, (4, 5, 3))
    picture = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(picture.round(), np.uint8)


def yuv_planes(bgr: np.ndarray, space: str = "bt601", full_range: bool = False) -> Planes:
    """Y, U and V by swscale, as padded views."""
    frame = VideoReformatter().reformat(
        av.VideoFrame.from_ndarray(bgr, format="bgr24"),
        format="yuv420p",
        dst_colorspace=MATRICES[space],
        dst_color_range=RANGES[full_range],
        interpolation=EXACT,
    )
    return tuple(
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : plane.height, : plane.width
        ]
        for plane in frame.planes
    )


def random_planes(size: Size, pixel_format: str, seed: int = 0) -> Planes:
    h, w = size
    half = ((h + 1) // 2, (w + 1) // 2)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "yuv420p": [size, half, half],
        "nv12": [size, (*half, 2)],
    }
    chosen = shapes.get(pixel_format, [(h, w, 3)])
    return tuple(noise(shape, seed + i) for i, shape in enumerate(chosen))


def resize(
    planes: Planes, pixel_format: str, matrix: np.ndarray, size: Size, **others: Any
) -> np.ndarray:
    arguments: dict[str, Any] = {
        "color_space": "bt601",
        "full_range": False,
        "mean": MEAN,
        "std": STD,
        "prefilter": False,
    } | others
    return preprocess(
        planes, pixel_format=pixel_format, net_from_image=matrix, net_size=size, **arguments
    )


def grey_levels(normalized: np.ndarray) -> np.ndarray:
    """Network input (3, H, W) back to a float (H, W, 3) BGR picture, 0..255."""
    rgb = normalized.transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)
    return np.asarray(rgb[:, :, ::-1] * 255)


def scaled(factor: float, shift_x: float = 0.0, shift_y: float = 0.0) -> np.ndarray:
    return np.array([[factor, 0, shift_x], [0, factor, shift_y]])


def plain_weights(length: int, source_length: int, factor: float, shift: float) -> np.ndarray:
    """(length, source_length): two taps a pixel, black outside, by definition."""
    position = (np.arange(length)[:, None] - shift) / factor
    return np.asarray(np.maximum(0, 1 - abs(np.arange(source_length) - position)))


def wide_weights(length: int, source_length: int, factor: float, shift: float) -> np.ndarray:
    """Triangle over 1 / factor source pixels, its share inside the picture scaled to 1."""
    position = (np.arange(length)[:, None] - shift) / factor
    triangle = np.maximum(0, 1 - abs(np.arange(source_length) - position) * factor)
    coverage = plain_weights(length, source_length, factor, shift).sum(axis=1, keepdims=True)
    total = triangle.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(triangle, total, where=total > 0, out=0 * triangle) * coverage)


def plain_resize(picture: np.ndarray, matrix: np.ndarray, size: Size, *, wide: bool) -> np.ndarray:
    """(h, w, C) -> (H, W, C) in float64, with the whole weight matrices."""
    weights = wide_weights if wide else plain_weights
    h, w = picture.shape[:2]
    rows = weights(size[0], h, matrix[1, 1], matrix[1, 2])
    columns = weights(size[1], w, matrix[0, 0], matrix[0, 2])
    return np.asarray(np.einsum("yi,xj,ijc->yxc", rows, columns, picture.astype(np.float64)))


def plain_bgr(planes: Planes, space: str, full_range: bool) -> np.ndarray:
    """Y, U, V -> (h, w, 3) float64 BGR, unclipped; chroma linear between its sites, ends repeat."""
    luma, u, v = (plane.astype(np.float64) for plane in planes)
    h, w = luma.shape
    rows = np.interp(np.arange(h), 2 * np.arange(len(u)) + 0.5, np.arange(len(u)))
    columns = np.interp(np.arange(w), 2 * np.arange(u.shape[1]), np.arange(u.shape[1]))

    def raised(chroma: np.ndarray) -> np.ndarray:
        at_rows = np.array([np.interp(rows, np.arange(len(c)), c) for c in chroma.T]).T
        return np.array([np.interp(columns, np.arange(len(c)), c) for c in at_rows]) - 128

    # Decimal coefficients as printed in BT.601 and BT.709 for analogue R'G'B'.
    red, green_u, green_v, blue = {
        "bt601": (1.402, 0.344136, 0.714136, 1.772),
        "bt709": (1.5748, 0.187324, 0.468124, 1.8556),
    }[space]
    cb, cr = raised(u), raised(v)
    if not full_range:
        luma, cb, cr = (luma - 16) * 255 / 219, cb * 255 / 224, cr * 255 / 224
    return np.stack([luma + blue * cb, luma - green_u * cb - green_v * cr, luma + red * cr], -1)


# ---- geometry


@pytest.mark.parametrize("case", CASES["cases"])
def test_published_geometry(case: dict[str, Any]) -> None:
    w, h = case["image_wh"]
    net_size = network_size(
        (h, w), input_size=case["input_size"], scale=case["s"], min_scale=min(case["scales"])
    )
    assert net_size == tuple(case["resized_wh"][::-1])
    forward = net_from_image((h, w), net_size)
    np.testing.assert_allclose(forward, case["forward"], atol=1e-9)
    back = np.array(CASES["points"]) @ invert(forward)[:, :2].T + invert(forward)[:, 2]
    np.testing.assert_allclose(back, case["points_back"], atol=1e-6)


@pytest.mark.parametrize(
    ("image_size", "net_size"),
    [
        ((998, 999), (512, 512)),  # 0.5 pixel over 512 is dropped, not rounded up to 576
        ((999, 998), (512, 512)),
        ((300, 7), (21952, 512)),
        ((481, 641), (512, 704)),
        ((1, 1), (512, 512)),
    ],
)
def test_published_rounding(image_size: Size, net_size: Size) -> None:
    assert network_size(image_size, input_size=512) == net_size


def test_odd_sides_round_the_centre_up() -> None:
    matrix = net_from_image((481, 641), (512, 704))
    np.testing.assert_allclose(matrix @ [321, 241, 1], [352, 256])


def test_the_short_side_decides_the_factor() -> None:
    # So half a pixel of the long side falls outside.
    np.testing.assert_allclose(net_from_image((998, 999), (512, 512))[0, 0], 512 / 998)
    np.testing.assert_allclose(net_from_image((999, 998), (512, 512))[0, 0], 512 / 998)


def test_hd_at_288_fits_without_padding() -> None:
    size = network_size((720, 1280), input_size=288, size_multiple=32)
    assert size == (288, 512)
    np.testing.assert_allclose(net_from_image((720, 1280), size), scaled(0.4), atol=1e-12)


def test_long_side_has_a_limit() -> None:
    assert network_size((100, 400), input_size=512, max_long_side=2048) == (512, 2048)
    with pytest.raises(ValueError, match=r"a 401x100 picture needs .* 2112x512.*max_long_side"):
        network_size((100, 401), input_size=512, max_long_side=2048)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_empty_picture_is_refused(size: Size) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        network_size(size, input_size=512)


@given(sizes, st.sampled_from([32, 64]), st.integers(64, 2048))
def test_capped_size_holds_the_picture(size: Size, multiple: int, limit: int) -> None:
    net_size = capped_size(size, max_long_side=limit, size_multiple=multiple)
    assert max(net_size) == limit // multiple * multiple
    assert min(net_size) >= multiple
    assert all(side % multiple == 0 for side in net_size)
    factor = net_from_image(size, net_size, letterbox=True)[0, 0]
    assert math.isclose(factor, max(net_size) / max(size))  # the long side decides
    assert min(size) * factor > min(net_size) - multiple - 1e-6  # no block of padding to spare


def test_capped_size_needs_room() -> None:
    with pytest.raises(ValueError, match="max_long_side 63 is below size_multiple 64"):
        capped_size((10, 10), max_long_side=63)


@given(sizes, sizes)
def test_letterbox_holds_the_picture_centred(size: Size, canvas: Size) -> None:
    matrix = net_from_image(size, canvas, letterbox=True)
    factor = matrix[0, 0]
    assert factor == matrix[1, 1] == min(canvas[0] / size[0], canvas[1] / size[1])
    middle = matrix @ [size[1] / 2, size[0] / 2, 1]
    # The rounded centre may stand half a picture pixel off.
    assert (abs(middle - [canvas[1] / 2, canvas[0] / 2]) <= factor / 2 + 1e-6).all()


@given(sizes, sizes)
def test_invert_undoes(size: Size, canvas: Size) -> None:
    matrix = net_from_image(size, canvas)
    point = np.array([12.5, -3.25])
    there = matrix[:, :2] @ point + matrix[:, 2]
    inverse = invert(matrix)
    np.testing.assert_allclose(inverse[:, :2] @ there + inverse[:, 2], point, atol=1e-6)


# ---- resize


@pytest.mark.parametrize(
    ("size", "input_size"),
    [((480, 640), 512), ((720, 1280), 288), ((333, 217), 256), ((100, 75), 256), ((481, 641), 512)],
)
def test_equals_opencv_warp(size: Size, input_size: int) -> None:
    picture = smooth_picture(size) // 2 + noise((*size, 3)) // 2
    net_size = network_size(size, input_size=input_size, size_multiple=32)
    matrix = net_from_image(size, net_size)
    warped = cv2.warpAffine(picture, matrix, net_size[::-1], flags=cv2.INTER_LINEAR)
    ours = grey_levels(resize((picture,), "bgr24", matrix, net_size))
    # OpenCV rounds coordinates to 1/32 pixel, so single pixels of the noise may differ more.
    assert abs(ours - warped).mean() < 1


@settings(deadline=None)
@given(
    small_sizes,
    small_sizes,
    st.floats(0.05, 4),
    st.tuples(st.floats(-8, 8), st.floats(-8, 8)),
    st.booleans(),
)
def test_equals_the_definition(
    size: Size, net_size: Size, factor: float, shift: tuple[float, float], prefilter: bool
) -> None:
    picture, matrix = noise((*size, 3)), scaled(factor, *shift)
    ours = grey_levels(resize((picture,), "bgr24", matrix, net_size, prefilter=prefilter))
    wide = prefilter and factor < 0.5
    expected = plain_resize(picture, matrix, net_size, wide=wide)
    np.testing.assert_allclose(ours, expected, atol=2e-3)


@settings(deadline=None)
@given(
    small_sizes,
    small_sizes,
    st.floats(0.1, 3),
    st.booleans(),
    st.tuples(st.sampled_from(["bt601", "bt709"]), st.booleans()),
)
def test_yuv_equals_conversion_then_resize(
    size: Size, net_size: Size, factor: float, prefilter: bool, colour: tuple[str, bool]
) -> None:
    space, full_range = colour
    # Mild values: no RGB clips, so that converting before and after the resize is the same.
    planes = tuple(110 + plane // 8 for plane in random_planes(size, "yuv420p"))
    matrix = scaled(factor, 1.3, -2.6)
    ours = resize(
        planes, "yuv420p", matrix, net_size,
        prefilter=prefilter, color_space=space, full_range=full_range,
    )  # fmt: skip
    wide = prefilter and factor < 0.5
    expected = plain_resize(plain_bgr(planes, space, full_range), matrix, net_size, wide=wide)
    np.testing.assert_allclose(grey_levels(ours), expected, atol=5e-3)


@pytest.mark.parametrize("size", [(720, 1280), (361, 641)])
def test_yuv_equals_bgr_then_opencv_warp(size: Size) -> None:
    planes = yuv_planes(smooth_picture(size))
    net_size = network_size(size, input_size=288, size_multiple=32)
    matrix = net_from_image(size, net_size)
    bgr = bgr_from_planes(planes, pixel_format="yuv420p", color_space="bt601", full_range=False)
    warped = cv2.warpAffine(bgr, matrix, net_size[::-1], flags=cv2.INTER_LINEAR)
    difference = abs(grey_levels(resize(planes, "yuv420p", matrix, net_size)) - warped)
    assert difference.mean() < 0.5
    assert difference.max() < 3


@pytest.mark.parametrize("prefilter", [False, True])
@pytest.mark.parametrize("size", [(90, 160), (91, 161), (3, 2)])
def test_formats_agree(size: Size, prefilter: bool) -> None:
    matrix, net_size = scaled(0.4, 2.2, 1.1), (40, 70)
    bgr = noise((*size, 3))
    both = [
        resize((picture,), name, matrix, net_size, prefilter=prefilter)
        for name, picture in (("bgr24", bgr), ("rgb24", bgr[:, :, ::-1]))
    ]
    np.testing.assert_array_equal(both[0], both[1])
    luma, u, v = random_planes(size, "yuv420p")
    planar = resize((luma, u, v), "yuv420p", matrix, net_size, prefilter=prefilter)
    paired = resize((luma, np.stack([u, v], -1)), "nv12", matrix, net_size, prefilter=prefilter)
    np.testing.assert_array_equal(planar, paired)


def test_yuv_looks_like_the_bgr_it_was_made_from() -> None:
    bgr = smooth_picture((360, 640), low=40, high=215)
    matrix = net_from_image((360, 640), (288, 512))
    from_bgr = grey_levels(resize((bgr,), "bgr24", matrix, (288, 512)))
    from_yuv = grey_levels(resize(yuv_planes(bgr), "yuv420p", matrix, (288, 512)))
    assert abs(from_bgr - from_yuv).mean() < 1.5


@settings(deadline=None, max_examples=30)
@given(
    st.floats(30, 130),
    st.floats(30, 80),
    st.sampled_from([0.3, 0.45, 0.8, 1.7]),
    st.booleans(),
    st.sampled_from(FORMATS),
)
def test_a_blob_lands_where_the_map_says(
    x: float, y: float, factor: float, prefilter: bool, pixel_format: str
) -> None:
    size, net_size = (111, 161), (220, 300)
    ys, xs = np.mgrid[: size[0], : size[1]]
    blob = 200 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 5.0**2))
    luma = (16 + blob).round().astype(np.uint8)
    grey = np.full((56, 81, 2), 128, np.uint8)
    planes = {
        "yuv420p": (luma, grey[:, :, 0], grey[:, :, 1]),
        "nv12": (luma, grey),
    }.get(pixel_format, (np.repeat(blob.round().astype(np.uint8)[:, :, None], 3, axis=2),))
    matrix = scaled(factor, 4.6, 7.3)
    image = grey_levels(resize(planes, pixel_format, matrix, net_size, prefilter=prefilter))
    weight = image[:, :, 1] - image[:, :, 1].min()
    ys, xs = np.mgrid[: net_size[0], : net_size[1]]
    found = [(weight * xs).sum() / weight.sum(), (weight * ys).sum() / weight.sum()]
    np.testing.assert_allclose(found, matrix @ [x, y, 1], atol=0.08)


def test_prefilter_turns_a_checkerboard_grey() -> None:
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    picture = np.repeat(board[:, :, None], 3, axis=2)
    inside = np.s_[2:-2, 2:-2]
    matrix = scaled(0.25)
    filtered = grey_levels(resize((picture,), "bgr24", matrix, (64, 64), prefilter=True))[inside]
    aliased = grey_levels(resize((picture,), "bgr24", matrix, (64, 64), prefilter=False))[inside]
    np.testing.assert_allclose(filtered, 127.5, atol=1)
    assert abs(aliased - 127.5).min() > 100


def test_prefilter_only_below_one_half() -> None:
    picture = noise((40, 60, 3))
    two_taps = resize((picture,), "bgr24", scaled(0.5), (20, 30), prefilter=False)
    at_half = resize((picture,), "bgr24", scaled(0.5), (20, 30), prefilter=True)
    below = resize((picture,), "bgr24", scaled(0.49), (20, 30), prefilter=True)
    np.testing.assert_array_equal(at_half, two_taps)
    assert abs(below - two_taps).max() > 0.1


@pytest.mark.parametrize("prefilter", [False, True])
@pytest.mark.parametrize("pixel_format", FORMATS)
def test_white_stays_white_to_the_rim(pixel_format: str, prefilter: bool) -> None:
    h, w = 101, 140
    white = {
        "yuv420p": (
            np.full((h, w), 235, np.uint8),
            np.full((51, 70), 128, np.uint8),
            np.full((51, 70), 128, np.uint8),
        ),
        "nv12": (np.full((h, w), 235, np.uint8), np.full((51, 70, 2), 128, np.uint8)),
    }.get(pixel_format, (np.full((h, w, 3), 255, np.uint8),))
    matrix = scaled(0.4, 10, 6)
    image = grey_levels(resize(white, pixel_format, matrix, (60, 90), prefilter=prefilter))
    # Picture pixels 0 and last map to 10 and 65.6, 6 and 46.
    np.testing.assert_allclose(image[6:47, 10:66], 255, atol=0.01)
    np.testing.assert_allclose(image[:6], 0, atol=0.01)
    np.testing.assert_allclose(image[47:], 0, atol=0.01)
    np.testing.assert_allclose(image[:, :10], 0, atol=0.01)
    np.testing.assert_allclose(image[:, 66:], 0, atol=0.01)


def test_border_blends_with_black() -> None:
    picture = np.full((8, 8, 3), 200, np.uint8)
    image = grey_levels(resize((picture,), "bgr24", scaled(1, 2.75, 0), (8, 16)))
    np.testing.assert_allclose(image[4, 1:4, 0], [0, 50, 200], atol=0.01)
    np.testing.assert_allclose(image[4, 9:12, 0], [200, 150, 0], atol=0.01)


@settings(deadline=None)
@given(small_sizes, small_sizes, st.floats(0.01, 9), st.sampled_from(FORMATS), st.integers(0, 1000))
def test_grey_levels_stay_in_range(
    size: Size, net_size: Size, factor: float, pixel_format: str, seed: int
) -> None:
    planes = random_planes(size, pixel_format, seed)
    image = grey_levels(resize(planes, pixel_format, scaled(factor), net_size, prefilter=True))
    assert image.min() > -0.01
    assert image.max() < 255.01


# ---- whole picture


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("space", ["bt601", "bt709"])
def test_bgr_equals_swscale(space: str, full_range: bool) -> None:
    bgr = smooth_picture((360, 640), low=20, high=235)
    planes = yuv_planes(bgr, space, full_range)
    ours = bgr_from_planes(
        planes, pixel_format="yuv420p", color_space=space, full_range=full_range
    ).astype(int)
    frame = VideoReformatter().reformat(
        av.VideoFrame.from_numpy_buffer(_i420(planes), format="yuv420p"),
        format="bgr24",
        src_colorspace=MATRICES[space],
        src_color_range=RANGES[full_range],
        dst_color_range=ColorRange.JPEG,
        interpolation=EXACT,
    )
    difference = abs(ours - frame.to_ndarray())
    assert difference.mean() < 1
    assert difference.max() <= 3
    assert abs(ours - bgr.astype(int)).mean() < 1


def _i420(planes: Planes) -> np.ndarray:
    return np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, planes[0].shape[1])


@settings(deadline=None)
@given(small_sizes, st.sampled_from(["bt601", "bt709"]), st.booleans(), st.integers(0, 1000))
def test_bgr_equals_the_definition(size: Size, space: str, full_range: bool, seed: int) -> None:
    luma, u, v = random_planes(size, "yuv420p", seed)
    expected = plain_bgr((luma, u, v), space, full_range).clip(0, 255)
    kw = {"color_space": space, "full_range": full_range}
    planar = bgr_from_planes((luma, u, v), pixel_format="yuv420p", **kw)  # type: ignore[arg-type]
    np.testing.assert_allclose(planar, expected, atol=0.51)  # rounding
    paired = (luma, np.stack([u, v], -1))
    paired_bgr = bgr_from_planes(paired, pixel_format="nv12", **kw)  # type: ignore[arg-type]
    np.testing.assert_array_equal(planar, paired_bgr)


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_bgr_is_new_and_writable(pixel_format: str) -> None:
    planes = random_planes((10, 12), pixel_format)
    for plane in planes:
        plane.flags.writeable = False
    kw: dict[str, Any] = {"color_space": "bt601", "full_range": False}
    bgr = bgr_from_planes(planes, pixel_format=pixel_format, **kw)
    assert bgr.shape == (10, 12, 3)
    assert bgr.dtype == np.uint8
    assert bgr.flags.c_contiguous
    bgr[:] = 7  # must not reach the planes
    again = bgr_from_planes(planes, pixel_format=pixel_format, **kw)
    assert (again != 7).any()


def test_packed_formats_are_copied_in_bgr_order() -> None:
    picture = noise((5, 7, 3))
    kw: dict[str, Any] = {"color_space": "bt601", "full_range": False}
    np.testing.assert_array_equal(bgr_from_planes((picture,), pixel_format="bgr24", **kw), picture)
    np.testing.assert_array_equal(
        bgr_from_planes((picture[:, :, ::-1],), pixel_format="rgb24", **kw), picture
    )


# ---- memory and errors


def padded(plane: np.ndarray) -> np.ndarray:
    wide = np.zeros((plane.shape[0], plane.shape[1] + 5, *plane.shape[2:]), np.uint8)
    wide[:, : plane.shape[1]] = plane
    return wide[:, : plane.shape[1]]


def spread(plane: np.ndarray) -> np.ndarray:
    wide = np.zeros((plane.shape[0], 2 * plane.shape[1], *plane.shape[2:]), np.uint8)
    wide[:, ::2] = plane
    return wide[:, ::2]


def upside_down(plane: np.ndarray) -> np.ndarray:
    return plane[::-1].copy()[::-1]


def frozen(plane: np.ndarray) -> np.ndarray:
    plane = plane.copy()
    plane.flags.writeable = False
    return plane


@pytest.mark.parametrize("layout", [padded, spread, upside_down, frozen, np.asfortranarray])
@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("size", [(17, 23), (17, 1), (1, 23)])
def test_layout_of_memory_does_not_matter(size: Size, pixel_format: str, layout: Any) -> None:
    planes = random_planes(size, pixel_format)
    strange = tuple(layout(plane) for plane in planes)
    matrix, net_size = scaled(0.7, 1, 2), (15, 20)
    np.testing.assert_array_equal(
        resize(strange, pixel_format, matrix, net_size),
        resize(planes, pixel_format, matrix, net_size),
    )
    kw: dict[str, Any] = {"color_space": "bt709", "full_range": True}
    np.testing.assert_array_equal(
        bgr_from_planes(strange, pixel_format=pixel_format, **kw),
        bgr_from_planes(planes, pixel_format=pixel_format, **kw),
    )


def test_padded_rows_are_not_copied() -> None:
    plane = padded(noise((30, 40)))
    pixels, stride, width = module._flat(plane)
    assert np.shares_memory(pixels, plane)
    assert (stride, width) == (45, 40)


def test_warm_up_compiles_everything_once() -> None:
    warm_up()
    kernels: list[Any] = [module._resize_packed, module._resize_yuv, module._bgr_from_yuv]
    compiled = [len(kernel.signatures) for kernel in kernels]
    matrix = net_from_image((17, 23), (32, 64), letterbox=True)
    for pixel_format in FORMATS:
        for layout in (padded, spread, frozen):
            planes = tuple(layout(plane) for plane in random_planes((17, 23), pixel_format))
            resize(planes, pixel_format, matrix.astype(np.float32), (np.int64(32), 64))  # type: ignore[arg-type]
            resize(planes, pixel_format, matrix, (32, 64), prefilter=1, full_range=1)
            bgr_from_planes(
                planes, pixel_format=pixel_format, color_space="bt601", full_range=False
            )
    assert [len(kernel.signatures) for kernel in kernels] == compiled == [1, 1, 1]


def test_out_is_filled_and_returned() -> None:
    picture, matrix = noise((20, 30, 3)), scaled(0.5)
    batch = np.full((2, 3, 10, 15), np.nan, np.float32)
    result = resize((picture,), "bgr24", matrix, (10, 15), out=batch[1])
    assert result.base is batch
    assert np.isnan(batch[0]).all()
    np.testing.assert_array_equal(batch[1], resize((picture,), "bgr24", matrix, (10, 15)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_format": "gray8"}, "pixel_format must be one of"),
        ({"pixel_format": "nv12"}, "nv12 has 2 planes"),
        ({"planes": random_planes((9, 9), "bgr24")}, "yuv420p has 3 planes"),
        ({"planes": (noise((9, 9)), noise((4, 5)), noise((5, 5)))}, "must be"),
        ({"planes": tuple(p.astype(float) for p in random_planes((9, 9), "yuv420p"))}, "uint8"),
        ({"color_space": "bt2020"}, "color_space must be one of"),
        ({"net_from_image": np.array([[0.0, 1, 0], [1, 0, 0]])}, "only scale and shift"),
        ({"net_from_image": -np.eye(2, 3)}, "only scale and shift"),
        ({"out": np.empty((3, 8, 9), np.float32)}, "out must be contiguous float32"),
        ({"out": np.empty((3, 8, 8))}, "out must be contiguous float32"),
        ({"out": np.empty((3, 8, 16), np.float32)[:, :, ::2]}, "out must be contiguous float32"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "planes": random_planes((9, 9), "yuv420p"),
        "pixel_format": "yuv420p",
        "color_space": "bt601",
        "full_range": False,
        "net_from_image": np.eye(2, 3),
        "net_size": (8, 8),
        "mean": MEAN,
        "std": STD,
        "prefilter": False,
    } | changes
    planes = arguments.pop("planes")
    with pytest.raises(ValueError, match=message):
        preprocess(planes, **arguments)
