"""GpuDecoder, run on the CPU, against kernels.decode.decode: the same people to the digit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.checks.scenes import Scene, paint_people
from kernels.decode import PUBLISHED, DecodeSettings, Skeleton, decode
from kernels.gpu_decode import GpuDecoder
from kernels.people import People
from kernels.sampling import FloatArray
from nets.skeletons import COCO
from tests.support.cuda_on_cpu.emulator import EmulatedGpu

CASES = [f"c{case:03d}" for case in range(6)]


@dataclass(frozen=True)
class SixKeypoints:
    matching_order: tuple[int, ...] = (0, 3, 1, 5, 2, 4)
    oks_sigmas: tuple[float, ...] = (0.1,) * 6


SMALL = SixKeypoints()


def small_scene(num_people: int, **more: Any) -> Scene:
    settings = {"size": (64, 96), "level_sizes": ((16, 24), (32, 48)), "num_keypoints": 6}
    return paint_people(num_people, **{**settings, **more})


def stacked(scenes: Sequence[Scene]) -> tuple[list[FloatArray], FloatArray]:
    levels = [np.stack(maps) for maps in zip(*(scene.levels for scene in scenes), strict=True)]
    return levels, np.stack([scene.tags for scene in scenes])


def decode_on_gpu(
    gpu: EmulatedGpu,
    scenes: Sequence[Scene],
    skeleton: Skeleton = SMALL,
    settings: DecodeSettings = PUBLISHED,
) -> list[People]:
    decoder = GpuDecoder(gpu, skeleton, settings)
    return decoder.people(decoder.enqueue(*stacked(scenes), scenes[0].size))


def assert_same_people(people: People, expected: People) -> None:
    for got, want in zip(people, expected, strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype


def assert_decodes_as_cpu(
    gpu: EmulatedGpu,
    scenes: Sequence[Scene],
    skeleton: Skeleton = SMALL,
    settings: DecodeSettings = PUBLISHED,
) -> list[People]:
    found = decode_on_gpu(gpu, scenes, skeleton, settings)
    for scene, people in zip(scenes, found, strict=True):
        expected = decode(scene.levels, scene.tags, scene.size, skeleton, settings)
        assert_same_people(people, expected)
    return found


@pytest.mark.parametrize("case", CASES)
def test_published_scenes_are_reproduced(case: str, data_folder: Path) -> None:
    data = np.load(data_folder / "decode_direct.npz")
    heat, tags = data[f"{case}_det"], data[f"{case}_tag"]
    decoder = GpuDecoder(EmulatedGpu(), COCO, PUBLISHED)
    (people,) = decoder.people(decoder.enqueue([heat], tags, heat.shape[2:]))
    np.testing.assert_array_equal(people.keypoints, data[f"{case}_ref"][:, :, :3])
    np.testing.assert_array_equal(people.scores, data[f"{case}_scores"])
    assert_same_people(people, decode([heat[0]], tags[0], heat.shape[2:], COCO))


@pytest.mark.parametrize("steps", [256, None])
@pytest.mark.parametrize("num_tags", [1, 2])
def test_two_hundred_scenes(steps: int | None, num_tags: int) -> None:
    """Of zero to eight people; with steps sums are exact and ties are real."""
    scenes = [
        small_scene(index % 9, num_tags=num_tags, steps=steps, noise=0.03, seed=index)
        for index in range(50)
    ]
    found = assert_decodes_as_cpu(EmulatedGpu(), scenes)
    assert sum(people.filled.sum() for people in found) > 50


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_dozen_scenes_in_other_orders_of_threads(seed: int) -> None:
    scenes = [small_scene(index % 6, seed=index) for index in range(12)]
    assert_decodes_as_cpu(EmulatedGpu(seed=seed), scenes)


def test_full_size_with_twenty_people() -> None:
    scene = paint_people(20, seed=3)
    (people,) = assert_decodes_as_cpu(EmulatedGpu(), [scene], COCO)
    assert len(people.scores) >= 20
    assert people.filled.any()


@pytest.mark.parametrize("steps", [256, None])
@pytest.mark.parametrize(
    "settings",
    [
        DecodeSettings(refine="off"),
        DecodeSettings(refine="quarter"),
        DecodeSettings(peaks_at="half"),
        DecodeSettings(peaks_at="half", refine="quarter", adjust=False),
        DecodeSettings(one_step=True),
        DecodeSettings(max_people=2, max_peaks=7, nms_kernel=3, tag_threshold=0.5),
        DecodeSettings(detection_threshold=0.3, max_people=40),
        DecodeSettings(min_keypoints=3, min_keypoint_score=0.05, duplicate_oks=0.7),
    ],
)
def test_every_setting(settings: DecodeSettings, steps: int | None) -> None:
    scenes = [small_scene(people, steps=steps, seed=people) for people in (1, 4, 6)]
    assert_decodes_as_cpu(EmulatedGpu(), scenes, SMALL, settings)


def test_other_shapes_of_pyramids() -> None:
    for level_sizes in (((32, 48),), ((16, 24), (32, 48), (64, 96)), ((13, 20), (29, 41))):
        scenes = [small_scene(3, level_sizes=level_sizes, steps=None, seed=seed) for seed in (0, 1)]
        assert_decodes_as_cpu(EmulatedGpu(), scenes)


def test_a_batch_is_its_images_one_by_one() -> None:
    scenes = [small_scene(people, seed=people) for people in (2, 0, 5)]
    batch = decode_on_gpu(EmulatedGpu(), scenes)
    for scene, people in zip(scenes, batch, strict=True):
        assert_same_people(people, decode_on_gpu(EmulatedGpu(), [scene])[0])


def test_nobody_at_all() -> None:
    scene = small_scene(0, noise=0.0)
    for people in decode_on_gpu(EmulatedGpu(), [scene, scene]):
        assert people.keypoints.shape == (0, 6, 3)
        assert people.tags.shape == (0, 1)


def test_more_people_than_the_first_copy_holds() -> None:
    """48 of them in one image, a few in its neighbour, and again after that."""
    crowd = small_scene(48, size=(192, 192), level_sizes=((48, 48), (96, 96)), noise=0.0)
    few = small_scene(3, size=(192, 192), level_sizes=((48, 48), (96, 96)), noise=0.0)
    settings = DecodeSettings(max_people=64, max_peaks=64)
    decoder = GpuDecoder(EmulatedGpu(), SMALL, settings)
    for scenes in ([few, crowd], [few, few], [crowd, few]):
        found = decoder.people(decoder.enqueue(*stacked(scenes), (192, 192)))
        for scene, people in zip(scenes, found, strict=True):
            expected = decode(scene.levels, scene.tags, scene.size, SMALL, settings)
            assert (len(expected.scores) > 32) == (scene is crowd)
            assert_same_people(people, expected)


def test_people_stay_when_the_next_batch_comes() -> None:
    first, second = small_scene(4, seed=1), small_scene(4, seed=2)
    decoder = GpuDecoder(EmulatedGpu(), SMALL, PUBLISHED)
    (people,) = decoder.people(decoder.enqueue(*stacked([first]), first.size))
    decoder.people(decoder.enqueue(*stacked([second]), second.size))
    assert_same_people(people, decode(first.levels, first.tags, first.size, SMALL))


def test_flipped_passes_are_averaged_and_their_tags_put_side_by_side() -> None:
    """Maps of a mirrored picture, mirrored back, are those of the plain one: so it is painted."""
    flip_order = (0, 2, 1, 4, 3, 5)
    scene = small_scene(4, seed=5)
    mirrored = [level[flip_order, :, ::-1] for level in scene.levels]
    levels = [np.stack(pair) for pair in zip(scene.levels, mirrored, strict=True)]
    tags = np.stack([scene.tags, scene.tags[flip_order, :, ::-1]])
    decoder = GpuDecoder(EmulatedGpu(), SMALL, PUBLISHED, flip_order=flip_order)
    (people,) = decoder.people(decoder.enqueue(levels, tags, scene.size))
    both_tags = np.concatenate([scene.tags, scene.tags], axis=3)
    assert_same_people(people, decode(scene.levels, both_tags, scene.size, SMALL))


def test_half_levels_decode_as_the_same_numbers_in_float() -> None:
    scenes = [small_scene(3, steps=None, seed=seed) for seed in range(2)]
    half = [[level.astype(np.float16) for level in scene.levels] for scene in scenes]
    levels, tags = [np.stack(maps) for maps in zip(*half, strict=True)], stacked(scenes)[1]
    for settings in (PUBLISHED, DecodeSettings(refine="quarter")):
        decoder = GpuDecoder(EmulatedGpu(), SMALL, settings)
        found = decoder.people(decoder.enqueue(levels, tags, scenes[0].size))
        for image, people in enumerate(found):
            rounded = [level.astype(np.float32) for level in half[image]]
            expected = decode(rounded, tags[image], scenes[0].size, SMALL, settings)
            assert_same_people(people, expected)


def test_a_skeleton_of_other_keypoints_is_refused() -> None:
    scene = small_scene(1)
    decoder = GpuDecoder(EmulatedGpu(), COCO, PUBLISHED)
    with pytest.raises(ValueError, match="names 17 keypoints, peaks have 6"):
        decoder.enqueue(*stacked([scene]), scene.size)
