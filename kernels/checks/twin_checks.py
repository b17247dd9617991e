"""Does a device compute what the CPU computes? Every kernel beside its CPU twin, on known cases.

    random pictures, painted scenes ---> gpu_*.py on a Gpu ---> copied to the host --.
                                  '----> the CPU twin --------------------------------+-- equal?

For a user's own GPU (run_stream.py --selftest), for the tests marked gpu, and on the emulator. A
check takes a Gpu and a seed and raises AssertionError that names the first number that differs.
Equal means equal: no tolerance anywhere.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Gpu, to_host
from kernels.averaging import average_levels
from kernels.checks.scenes import Scene, paint_people
from kernels.decode import PUBLISHED, DecodeSettings, decode
from kernels.gpu_decode import GpuDecoder
from kernels.gpu_grouping import GpuGrouper, people_in
from kernels.gpu_peaks import TILE_SIDE, GpuPeakFinder, GpuPeaks
from kernels.gpu_preprocess import FORMATS, GpuPicture, GpuPreprocess
from kernels.grouping import group_people
from kernels.peaks import Peaks, peaks_of_maps
from kernels.people import People
from kernels.preprocess import preprocess

Check = Callable[[Gpu, int], None]
Size = tuple[int, int]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ROTATIONS = (0, 90, 180, 270)

_PYRAMIDS: tuple[tuple[tuple[Size, ...], Size], ...] = (
    (((16, 24), (32, 48)), (64, 96)),
    (((16, 24),), (64, 96)),
    (((32, 48), (32, 48)), (64, 96)),  # coarse and fine stages
    (((12, 16), (24, 32), (48, 64)), (96, 128)),
    (((19, 23), (41, 37)), (77, 101)),  # no whole ratio anywhere
)
"""Levels, low to high, and network input."""

_MANNERS = (
    PUBLISHED,
    DecodeSettings(refine="off"),
    DecodeSettings(refine="quarter"),
    DecodeSettings(peaks_at="half", refine="quarter", adjust=False),
    DecodeSettings(one_step=True, matching_order="index"),
    DecodeSettings(max_people=2, max_peaks=7, nms_kernel=3, tag_threshold=0.5),
    DecodeSettings(detection_threshold=0.3, max_people=40, duplicate_oks=0.7),
)


@dataclass(frozen=True)
class _Body:
    """A skeleton of K keypoints."""

    matching_order: tuple[int, ...]
    oks_sigmas: tuple[float, ...]


_SIX = _Body((0, 3, 1, 5, 2, 4), (0.1,) * 6)
_SIX_MIRRORED = (0, 2, 1, 4, 3, 5)
_SEVENTEEN = _Body((*range(16, -1, -1),), (0.1,) * 17)


# ---- preprocess ---------------------------------------------------------------------------------


def check_preprocess(gpu: Gpu, seed: int) -> None:
    """Every format, colour space, range and rotation, padded rows, shrunk and enlarged, at once."""
    rng = np.random.default_rng(seed)
    colours = itertools.product(("bt601", "bt709"), (False, True))
    manners = itertools.product(FORMATS, _ROTATIONS, colours)
    pictures = [
        _picture(
            rng,
            (int(rng.integers(1, 70)), int(rng.integers(1, 90))),
            pixel_format,
            factor=float(rng.choice([0.05, 0.3, 0.499, 0.7, 1.0, 2.3])),
            colour=colour,
            rotation=rotation,
        )
        for pixel_format, rotation, colour in manners
    ]
    for kind in (np.float32, np.float16):
        _compare_preprocess(gpu, pictures, (44, 70), kind)


def check_large_pictures(gpu: Gpu, seed: int) -> None:
    """1280x720, as cameras send it, on 288x512."""
    rng = np.random.default_rng(seed)
    pictures = [
        _picture(rng, (720, 1280), pixel_format, factor=0.4, colour=("bt709", False), rotation=0)
        for pixel_format in ("nv12", "bgr24")
    ]
    _compare_preprocess(gpu, pictures, (288, 512), np.float32)


def _picture(
    rng: np.random.Generator,
    size: Size,
    pixel_format: str,
    *,
    factor: float,
    colour: tuple[str, bool],
    rotation: int,
) -> GpuPicture:
    """Noise in host memory, its rows padded, and any shift."""
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "yuv420p": [size, half, half],
        "nv12": [size, (*half, 2)],
    }
    planes = []
    for shape in shapes.get(pixel_format, [(*size, 3)]):
        wide = (shape[0], shape[1] + int(rng.integers(0, 5)), *shape[2:])
        planes.append(rng.integers(0, 256, wide, dtype=np.uint8)[:, : shape[1]])
    shift = rng.uniform(-5, 5, 2)
    matrix = np.array([[factor, 0, shift[0]], [0, factor, shift[1]]])
    return GpuPicture(planes, pixel_format, *colour, matrix, rotation)


def cpu_twin(
    picture: GpuPicture,
    net_size: Size,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    prefilter: bool,
) -> NDArray[np.float32]:
    """What defines GpuPreprocess: the CPU twin on the planes as they lie, then turned clockwise."""
    planes, pixel_format, color_space, full_range, matrix, rotation = picture
    tile = preprocess(
        planes,
        pixel_format=pixel_format,
        color_space=color_space,
        full_range=full_range,
        net_from_image=matrix,
        net_size=net_size[::-1] if rotation in (90, 270) else net_size,
        mean=mean,
        std=std,
        prefilter=prefilter,
    )
    return np.rot90(tile, k=-rotation // 90, axes=(1, 2))


def _compare_preprocess(
    gpu: Gpu, pictures: Sequence[GpuPicture], net_size: Size, kind: type
) -> None:
    launch = GpuPreprocess(gpu, mean=_MEAN, std=_STD, prefilter=True)
    with gpu.stream():
        out = gpu.xp.empty((len(pictures), 3, *net_size), kind)
        on_device = [p._replace(planes=[_uploaded(gpu, x) for x in p.planes]) for p in pictures]
        launch(on_device, net_size=net_size, out=out)
        results = _host(out)
    for picture, result in zip(pictures, results, strict=True):
        want: NDArray[Any] = cpu_twin(
            picture, net_size, mean=_MEAN, std=_STD, prefilter=True
        ).astype(kind)
        size, turned = picture.planes[0].shape[:2], picture.rotation
        what = f"network input of {picture.pixel_format} {size} turned by {turned}"
        _require_equal(result, want, what)


def _uploaded(gpu: Gpu, plane: NDArray[np.uint8]) -> Any:
    """On the device, its rows padded there as well."""
    base = plane.base
    assert isinstance(base, np.ndarray)
    return gpu.xp.asarray(base)[:, : plane.shape[1]]


# ---- peaks, grouping ----------------------------------------------------------------------------


def check_peaks(gpu: Gpu, seed: int) -> None:
    """Averaged maps, their ceilings and all peaks, of pyramids of many shapes, float32 and half."""
    for index, (level_sizes, size) in enumerate(_PYRAMIDS):
        scene = _scene(3, seed + index, size=size, level_sizes=level_sizes, exact=index % 2 == 0)
        kind = np.float16 if index % 3 == 1 else np.float32
        levels = [level.astype(kind) for level in scene.levels]
        at: Literal["full", "half"] = "half" if index % 2 else "full"
        finder = GpuPeakFinder(
            gpu, max_peaks=30, nms_kernel=5, min_score=0.1, at=at, one_step=False
        )
        with gpu.stream():
            maps = finder.average(
                [gpu.xp.asarray(level[None]) for level in levels],
                gpu.xp.asarray(scene.tags[None]),
                size,
            )
            peaks = finder.find(maps)
            heat, ceiling = _host(maps.heat)[0], _host(maps.ceiling)[0]
            found = [_host(array)[0] for array in peaks]
        cpu_maps = average_levels(
            [level.astype(np.float32) for level in levels], scene.tags, size, tile_side=TILE_SIDE
        )
        where = f"levels {level_sizes} of {kind.__name__}"
        _require_equal(heat, cpu_maps.heat, f"averaged heat of {where}")
        _require_equal(ceiling, cpu_maps.tiles.ceiling, f"ceilings of {where}")
        wanted = peaks_of_maps(cpu_maps, max_peaks=30, nms_kernel=5, min_score=0.1, at=at)
        for name, got, want in zip(wanted._fields, found, wanted, strict=True):
            _require_equal(got, want, f"{name} of peaks of {where}")


def check_grouping(gpu: Gpu, seed: int) -> None:
    """Matching alone: tags that tie, more people than max_people, problems of every size."""
    rng = np.random.default_rng(seed)
    for max_peaks, max_people, num_tags in ((5, 2, 1), (12, 30, 2), (30, 30, 1), (40, 40, 1)):
        images = [_random_peaks(rng, max_peaks, num_tags) for _ in range(3)]
        grouper = GpuGrouper(
            gpu,
            matching_order=_SEVENTEEN.matching_order,
            tag_threshold=1.0,
            max_people=max_people,
            adjust=True,
        )
        with gpu.stream():
            stacked = [np.stack(arrays) for arrays in zip(*images, strict=True)]
            found = grouper(GpuPeaks(*(gpu.xp.asarray(array) for array in stacked)), None)
            batch = people_in(_host(found.rows), 17, num_tags)
        for image, peaks in enumerate(images):
            wanted = group_people(
                peaks, matching_order=_SEVENTEEN.matching_order, max_people=max_people
            )
            count = int(batch.count[image])
            got = People(
                batch.keypoints[image, :count],
                batch.scores[image, :count],
                batch.filled[image, :count] != 0,
                batch.tags[image, :count],
            )
            _require_same_people(got, wanted, f"image {image} with {max_peaks} peaks a keypoint")


def _random_peaks(rng: np.random.Generator, max_peaks: int, num_tags: int) -> Peaks:
    """Scores that fall, as peaks have them; tags in steps of 0.4, so that costs tie."""
    score = -np.sort(-rng.uniform(0.1, 1, (17, max_peaks)))
    used = np.arange(max_peaks) < rng.integers(0, max_peaks + 1, (17, 1))
    xy = rng.integers(0, 200, (17, max_peaks, 2))
    tags = 0.4 * rng.integers(0, 40, (17, max_peaks, num_tags))
    offset = rng.choice([-0.25, 0.25], xy.shape)
    arrays = (xy, np.where(used, score, 0), tags, offset)
    return Peaks(*(array.astype(np.float32) for array in arrays))


# ---- the whole decode ---------------------------------------------------------------------------


def check_decode(gpu: Gpu, seed: int) -> None:
    """Small scenes of nobody up to eight people, every way of decoding, batches of nine."""
    for index, settings in enumerate(_MANNERS):
        exact = index % 2 == 0
        scenes = [_scene(people, seed + people, exact=exact) for people in range(9)]
        _compare_decode(gpu, scenes, _SIX, settings)


def check_flip_pairs(gpu: Gpu, seed: int) -> None:
    """Half-precision maps of plain and mirrored pictures in one batch."""
    scenes = [_scene(people, seed + people, exact=True) for people in (1, 4)]
    mirrored = [
        scene._replace(
            levels=[level[_SIX_MIRRORED, :, ::-1] for level in scene.levels],
            tags=scene.tags[_SIX_MIRRORED, :, ::-1],
        )
        for scene in scenes
    ]
    decoder = GpuDecoder(gpu, _SIX, PUBLISHED, flip_order=_SIX_MIRRORED)
    found = _decoded(gpu, decoder, scenes + mirrored, np.float16)
    for scene, people in zip(scenes, found, strict=True):
        # Multiples of 1/256 are the same in half precision, and equal passes average to themselves.
        both_tags = np.concatenate([scene.tags, scene.tags], axis=3)
        levels = [level.astype(np.float16).astype(np.float32) for level in scene.levels]
        wanted = decode(levels, both_tags, scene.size, _SIX)
        _require_same_people(people, wanted, f"{len(scene.xy)} people, plain and mirrored")


def check_large_decode(gpu: Gpu, seed: int) -> None:
    """512x512 with 17 keypoints: twenty people beside one."""
    scenes = [paint_people(people, seed=seed) for people in (20, 1)]
    _compare_decode(gpu, scenes, _SEVENTEEN, PUBLISHED)


def _scene(num_people: int, seed: int, *, exact: bool, **shape: Any) -> Scene:
    """Six keypoints on a small map. Exact: sums are exact in any order, and ties are real."""
    shape = {"size": (64, 96), "level_sizes": ((16, 24), (32, 48))} | shape
    steps = 256 if exact else None
    return paint_people(num_people, num_keypoints=6, noise=0.03, steps=steps, seed=seed, **shape)


def _compare_decode(
    gpu: Gpu, scenes: Sequence[Scene], body: _Body, settings: DecodeSettings
) -> None:
    found = _decoded(gpu, GpuDecoder(gpu, body, settings), scenes, np.float32)
    for scene, people in zip(scenes, found, strict=True):
        wanted = decode(scene.levels, scene.tags, scene.size, body, settings)
        _require_same_people(people, wanted, f"{len(scene.xy)} people, {settings}")


def _decoded(gpu: Gpu, decoder: GpuDecoder, scenes: Sequence[Scene], kind: type) -> list[People]:
    levels = [np.stack(maps) for maps in zip(*(scene.levels for scene in scenes), strict=True)]
    with gpu.stream():
        found = decoder.enqueue(
            [gpu.xp.asarray(level.astype(kind)) for level in levels],
            gpu.xp.asarray(np.stack([scene.tags for scene in scenes])),
            scenes[0].size,
        )
        return decoder.people(found)


# ---- equal? -------------------------------------------------------------------------------------

CHECKS: Mapping[str, Check] = {
    "preprocess": check_preprocess,
    "preprocess, 1280x720": check_large_pictures,
    "average, peaks": check_peaks,
    "grouping": check_grouping,
    "decode": check_decode,
    "decode, flip pairs": check_flip_pairs,
    "decode, 512x512": check_large_decode,
}
"""By what they compare."""


def _host(array: Any) -> NDArray[Any]:
    return to_host(array, np.empty(array.shape, array.dtype))


def _require_same_people(got: People, want: People, where: str) -> None:
    for name, ours, theirs in zip(want._fields, got, want, strict=True):
        _require_equal(ours, theirs, f"{name} of people, {where}")


def _require_equal(got: NDArray[Any], want: NDArray[Any], what: str) -> None:
    if got.shape != want.shape or got.dtype != want.dtype:
        raise AssertionError(
            f"{what}: {got.dtype} {got.shape} on the device, {want.dtype} {want.shape} on the CPU"
        )
    differ = got != want
    if differ.any():
        place = tuple(int(index) for index in np.argwhere(differ)[0])
        raise AssertionError(
            f"{what}: {differ.sum()} of {differ.size} numbers differ, first at {place}: "
            f"{got[place]!r} on the device, {want[place]!r} on the CPU"
        )
