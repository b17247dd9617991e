"""preprocess.cu on the emulator: equal to kernels.preprocess, in any order of threads."""

import itertools
import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.checks import twin_checks
from kernels.geometry import net_from_image, network_size
from kernels.gpu_preprocess import GpuPicture, GpuPreprocess
from pipeline.messages import Frame, Region
from pipeline.preprocess import Preprocess, crop_of, cropped, lying_map
from tests.support.cuda_on_cpu.emulator import (
    EmulatedGpu,
    Sanitizer,
    assert_clean,
    sanitizer_report,
)
from tests.support.places import DATA

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = json.loads((DATA / "affine_cases.json").read_text())["cases"]
FORMATS = ["bgr24", "rgb24", "nv12", "yuv420p"]
ROTATIONS = [0, 90, 180, 270]
COLOURS = list(itertools.product(["bt601", "bt709"], [False, True]))
Size = tuple[int, int]

small_sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def padded_noise(shape: tuple[int, ...], *, padding: int, seed: int) -> np.ndarray:
    """uint8 noise, a view of rows that hold `padding` pixels more."""
    wide = (shape[0], shape[1] + padding, *shape[2:])
    values = np.random.default_rng(seed).integers(0, 256, wide, dtype=np.uint8)
    return values[:, : shape[1]]


def planes_of(
    size: Size, pixel_format: str, *, padding: int = 0, seed: int = 0
) -> tuple[np.ndarray, ...]:
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "yuv420p": [size, half, half],
        "nv12": [size, (*half, 2)],
    }
    chosen = shapes.get(pixel_format, [(*size, 3)])
    return tuple(padded_noise(s, padding=padding, seed=seed + i) for i, s in enumerate(chosen))


def scaled(factor: float, shift_x: float = 0.0, shift_y: float = 0.0) -> np.ndarray:
    return np.array([[factor, 0, shift_x], [0, factor, shift_y]])


def picture_of(
    size: Size,
    pixel_format: str,
    matrix: np.ndarray,
    *,
    padding: int = 0,
    rotation: int = 0,
    colour: tuple[str, bool] = ("bt709", False),
    seed: int = 0,
) -> GpuPicture:
    planes = planes_of(size, pixel_format, padding=padding, seed=seed)
    return GpuPicture(planes, pixel_format, *colour, matrix, rotation)


def run(
    pictures: list[GpuPicture],
    net_size: Size,
    *,
    gpu: EmulatedGpu | None = None,
    prefilter: bool = True,
    dtype: Any = np.float32,
) -> np.ndarray:
    gpu = gpu or EmulatedGpu()
    out: np.ndarray = gpu.xp.empty((len(pictures), 3, *net_size), dtype)
    GpuPreprocess(gpu, mean=MEAN, std=STD, prefilter=prefilter)(
        pictures, net_size=net_size, out=out
    )
    return out


cpu_twin = partial(twin_checks.cpu_twin, mean=MEAN, std=STD, prefilter=True)


def assert_equal_to_cpu(pictures: list[GpuPicture], net_size: Size, **settings: Any) -> None:
    prefilter = settings.get("prefilter", True)
    results = run(pictures, net_size, **settings)
    for index, (result, picture) in enumerate(zip(results, pictures, strict=True)):
        expected = cpu_twin(picture, net_size, prefilter=prefilter).astype(result.dtype)
        np.testing.assert_array_equal(result, expected, err_msg=f"picture {index}")


# ---- equal to the CPU twin


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("pixel_format", FORMATS)
def test_every_colour_and_rotation(pixel_format: str, dtype: Any) -> None:
    pictures = [
        picture_of((61, 83), pixel_format, scaled(0.7, 3.3, -2.2), colour=colour, rotation=rotation)
        for colour, rotation in itertools.product(COLOURS, ROTATIONS)
    ]
    assert_equal_to_cpu(pictures, (44, 70), dtype=dtype)


@pytest.mark.parametrize("prefilter", [False, True])
@pytest.mark.parametrize("pixel_format", FORMATS)
def test_shrinking_and_enlarging(pixel_format: str, prefilter: bool) -> None:
    factors = [3.7, 1.8, 1.0, 0.6, 0.5, 0.499, 0.4, 0.25, 1 / 6, 0.05]
    pictures = [picture_of((75, 101), pixel_format, scaled(f, 1.7, 0.4)) for f in factors]
    assert_equal_to_cpu(pictures, (33, 45), prefilter=prefilter)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (16, 33)])
def test_small_and_odd_sizes(size: Size, pixel_format: str) -> None:
    pictures = [
        picture_of(size, pixel_format, scaled(factor, 2, 1), rotation=rotation)
        for factor, rotation in itertools.product([0.3, 1.0, 4.0], ROTATIONS)
    ]
    assert_equal_to_cpu(pictures, (9, 37))


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_a_tile_whose_source_comes_in_chunks(pixel_format: str) -> None:
    # 32 columns at 0.02 see 1600 pixels, 4800 bytes of BGR; chunks hold 384 bytes.
    pictures = [picture_of((9, 2900), pixel_format, scaled(0.02, 3, 4), padding=p) for p in (0, 3)]
    assert_equal_to_cpu(pictures, (10, 64))
    assert_equal_to_cpu(pictures, (10, 64), prefilter=False)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("padding", [1, 2, 3, 4, 29])
def test_padded_rows(pixel_format: str, padding: int) -> None:
    # With some paddings rows begin at words and are read as such, with others byte by byte.
    pictures = [picture_of((23, 35), pixel_format, scaled(0.8), padding=padding)]
    assert_equal_to_cpu(pictures, (18, 30))


def test_a_letterboxed_canvas_has_black_borders() -> None:
    canvas = (64, 96)
    wide, tall = ((20, 90), (90, 20))
    pictures = [
        picture_of(size, "nv12", net_from_image(size, canvas, letterbox=True), colour=("bt601", f))
        for size, f in itertools.product((wide, tall), (False, True))
    ]
    assert_equal_to_cpu(pictures, canvas)
    black = -np.array(MEAN) / STD
    results = run(pictures, canvas)
    np.testing.assert_allclose(results[0][:, :20, 5], np.repeat(black[:, None], 20, 1), atol=1e-6)
    np.testing.assert_allclose(results[2][:, 5, :20], np.repeat(black[:, None], 20, 1), atol=1e-6)


def test_different_cameras_in_one_launch() -> None:
    net_size = (48, 64)
    cameras: list[tuple[Size, str, int, int]] = [
        ((90, 160), "nv12", 0, 0),
        ((120, 90), "yuv420p", 90, 5),
        ((31, 47), "bgr24", 180, 1),
        ((64, 48), "rgb24", 270, 0),
    ]
    pictures = []
    for seed, (size, pixel_format, rotation, padding) in enumerate(cameras):
        upright = size[::-1] if rotation in (90, 270) else size
        matrix = net_from_image(upright, net_size, letterbox=True)
        matrix = lying_map(matrix, size=upright, net_size=net_size, rotation=rotation)
        pictures.append(
            picture_of(size, pixel_format, matrix, padding=padding, rotation=rotation, seed=seed)
        )
    assert_equal_to_cpu(pictures, net_size)
    assert_equal_to_cpu(pictures[::-1], net_size, dtype=np.float16)


@pytest.mark.parametrize("case", [c for c in CASES if c["s"] == 0.5][::2])
def test_published_geometry(case: dict[str, Any]) -> None:
    w, h = case["image_wh"]
    net_size = network_size(
        (h, w), input_size=case["input_size"], scale=case["s"], min_scale=min(case["scales"])
    )
    matrix = net_from_image((h, w), net_size)
    np.testing.assert_allclose(matrix, case["forward"], atol=1e-9)
    assert_equal_to_cpu([picture_of((h, w), "bgr24", matrix)], net_size, prefilter=False)


@settings(deadline=None, max_examples=60)
@given(
    small_sizes,
    small_sizes,
    st.floats(0.02, 5),
    st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    st.tuples(st.sampled_from(FORMATS), st.sampled_from(ROTATIONS), st.booleans()),
)
def test_any_geometry(
    size: Size,
    net_size: Size,
    factor: float,
    shift: tuple[float, float],
    manner: tuple[str, int, bool],
) -> None:
    pixel_format, rotation, prefilter = manner
    picture = picture_of(size, pixel_format, scaled(factor, *shift), rotation=rotation)
    assert_equal_to_cpu([picture], net_size, prefilter=prefilter)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_of_threads_gives_the_same(seed: int) -> None:
    pictures = [
        picture_of((40, 700), pixel_format, scaled(0.07, 2, 3), rotation=rotation)
        for pixel_format, rotation in zip(FORMATS, ROTATIONS, strict=True)
    ]
    gpu = EmulatedGpu(seed=seed)
    np.testing.assert_array_equal(run(pictures, (20, 50), gpu=gpu), run(pictures, (20, 50)))


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("roi", [None, (11, 7, 40, 50)])
def test_equals_the_stage(rotation: int, roi: Region | None) -> None:
    planes = planes_of((90, 120), "nv12", padding=8)
    frame = Frame(
        source="test",
        index=0,
        pts_seconds=None,
        captured_ns=0,
        captured_unix_s=0.0,
        size=(120, 90) if rotation in (90, 270) else (90, 120),
        planes=planes,
        pixel_format="nv12",
        rotation=rotation,
        roi=roi,
    )
    (batch,) = Preprocess(input_size=64, size_multiple=32, mean=MEAN, std=STD)([frame])
    net_size = batch.images.shape[2:]
    crop = crop_of(frame)
    matrix = lying_map(
        net_from_image(crop.size, net_size), size=crop.size, net_size=net_size, rotation=rotation
    )
    views = cropped(planes, crop.box)
    picture = GpuPicture(views, "nv12", "bt601", False, matrix, rotation)
    np.testing.assert_array_equal(run([picture], net_size), batch.images)


# ---- what stays on the device


class CountingNumpy:
    """gpu.xp that counts what is copied to the device."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self.num_copies = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def asarray(self, *args: Any) -> Any:
        self.num_copies += 1
        return self._xp.asarray(*args)


def test_only_new_planes_cost_a_copy() -> None:
    gpu = EmulatedGpu()
    gpu.xp = xp = CountingNumpy(gpu.xp)
    stage = GpuPreprocess(gpu, mean=MEAN, std=STD, prefilter=True)
    surfaces = [picture_of((36, 64), "nv12", scaled(0.6), seed=seed) for seed in (0, 7)]
    out = np.empty((1, 3, 20, 40), np.float32)
    copies = []
    for picture in surfaces + surfaces:
        picture.planes[0][:] += 1  # the decoder writes into the same surface again
        stage([picture], net_size=(20, 40), out=out)
        np.testing.assert_array_equal(out[0], cpu_twin(picture, (20, 40)))
        copies.append(xp.num_copies)
    # Twelve arrays of taps and a table; then a table for the second surface; then nothing.
    assert copies == [13, 14, 14, 14]


def test_more_geometries_in_a_batch_than_are_kept() -> None:
    factors = np.linspace(0.3, 2, 70)
    pictures = [picture_of((8, 9), "bgr24", scaled(float(factor))) for factor in factors]
    assert_equal_to_cpu(pictures, (6, 7))


# ---- what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_format": "gray8"}, "pixel_format must be one of"),
        ({"planes": planes_of((9, 8), "nv12")[:1]}, "nv12 has 2 planes"),
        ({"planes": planes_of((9, 8), "nv12")[::-1]}, "planes of nv12 must be"),
        ({"planes": [p[:, ::-1] for p in planes_of((9, 8), "nv12")]}, "rows of a plane must be"),
        ({"planes": [p[::-1] for p in planes_of((9, 8), "nv12")]}, "rows of a plane must be"),
        ({"color_space": "bt2020"}, "color_space must be one of"),
        ({"net_from_image": -np.eye(2, 3)}, "only scale and shift"),
        ({"rotation": 45}, "rotation must be 0, 90, 180 or 270, got 45"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    picture = picture_of((9, 8), "nv12", np.eye(2, 3))._replace(**changes)
    with pytest.raises(ValueError, match=message):
        run([picture], (8, 8))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 3, 8, 8), np.float32),
        np.empty((1, 3, 8, 9), np.float32),
        np.empty((1, 3, 8, 8), np.float64),
        np.empty((1, 3, 8, 16), np.float32)[..., ::2],
    ],
)
def test_an_out_that_does_not_fit_is_refused(out: np.ndarray) -> None:
    stage = GpuPreprocess(EmulatedGpu(), mean=MEAN, std=STD, prefilter=True)
    with pytest.raises(ValueError, match="out must be contiguous float32 or float16"):
        stage([picture_of((9, 8), "nv12", np.eye(2, 3))], net_size=(8, 8), out=out)
    with pytest.raises(ValueError, match="at least one picture"):
        stage([], net_size=(8, 8), out=out[:0])


# ---- sanitizers and planted bugs


def small_pictures() -> list[GpuPicture]:
    """Every format and rotation, chunks, rows that begin at words and rows that do not."""
    manners = zip(FORMATS, ROTATIONS, (0, 3, 0, 3), strict=True)
    return [
        picture_of((5, 421), pixel_format, scaled(0.08, 0, 2), padding=padding, rotation=rotation)
        for pixel_format, rotation, padding in manners
    ]


def small_launches(gpu: EmulatedGpu) -> None:
    """Results are compared elsewhere: a sanitizer need not watch the CPU twin."""
    run(small_pictures(), (5, 34), gpu=gpu)
    run(small_pictures()[:1], (5, 34), gpu=gpu, dtype=np.float16)


@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_sanitizers_find_nothing(sanitize: Sanitizer) -> None:
    assert_clean(small_launches, sanitize=sanitize)


@pytest.mark.parametrize(
    ("sanitize", "complaint", "old", "new"),
    [
        ("thread", "data race", "__syncwarp();  // vertical sums are read", ""),
        ("thread", "data race", "__syncthreads();  // turned tile is written", ""),
        ("address", "heap-buffer-overflow", "if (begin + i < plane.row_bytes) word", "word"),
        ("address", "heap-buffer-overflow", "if (weight == 0.0f) continue;", ""),
    ],
)
def test_sanitizers_find_planted_bugs(
    sanitize: Sanitizer, complaint: str, old: str, new: str
) -> None:
    report = sanitizer_report(small_launches, sanitize=sanitize, replace=[(old, new)])
    assert complaint in report


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("__syncwarp();  // vertical sums are written", ""),
        ("__syncthreads();  // turned tile is written", ""),
        ("const float base = -offset * total;", "const float base = -offset;"),
        ("float* sums = tile + row * PITCH;", "float* sums = tile + row % 4 * PITCH;"),
        ("const bool reverse = p.format == BGR24;", "const bool reverse = p.format == NV12;"),
    ],
)
def test_results_show_planted_bugs(old: str, new: str) -> None:
    # Some order of threads shows a missing barrier, not every one.
    assert not all(_passes(EmulatedGpu(seed=seed, replace=[(old, new)])) for seed in (0, 1, 2))


def _passes(gpu: EmulatedGpu) -> bool:
    try:
        assert_equal_to_cpu(small_pictures(), (5, 34), gpu=gpu)
    except AssertionError:
        return False
    return True
