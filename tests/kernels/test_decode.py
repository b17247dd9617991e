"""decode: published scenes to the digit, painted ones against the plain code, its settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import averaging, grouping, peaks
from kernels.checks.scenes import Scene, paint_people
from kernels.decode import PUBLISHED, DecodeSettings, decode, hide, warm_up
from kernels.people import People
from kernels.refine import refine
from nets.skeletons import COCO, CROWDPOSE
from tests.support.reference_decode import decode_plain, refine_plain

CASES = [f"c{case:03d}" for case in range(6)]


def small_scene(num_people: int, *, seed: int = 0, num_tags: int = 1, **more: float) -> Scene:
    return paint_people(
        num_people,
        size=(192, 256),
        level_sizes=((48, 64), (96, 128)),
        seed=seed,
        num_tags=num_tags,
        **more,  # type: ignore[arg-type]
    )


def assert_same_people(people: People, expected: People) -> None:
    for got, want in zip(people, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("raw", DecodeSettings(adjust=False, refine="off")),
        ("adj", DecodeSettings(refine="off")),
        ("ref", PUBLISHED),
    ],
)
def test_published_scenes_are_reproduced(
    case: str, stage: str, settings: DecodeSettings, data_folder: Path
) -> None:
    data = np.load(data_folder / "decode_direct.npz")
    heat, tags = data[f"{case}_det"][0], data[f"{case}_tag"][0]
    people = decode([heat], tags, heat.shape[1:], COCO, settings)
    np.testing.assert_array_equal(people.keypoints, data[f"{case}_{stage}"][:, :, :3])
    np.testing.assert_array_equal(people.scores, data[f"{case}_scores"])
    found = data[f"{case}_raw"][:, :, 2] > 0
    np.testing.assert_array_equal(people.filled, (people.keypoints[:, :, 2] > 0) & ~found)


@pytest.mark.parametrize("num_people", [0, 1, 2, 5, 12, 20, 30, 40])
def test_painted_scenes_decode_as_the_plain_code_decodes_them(num_people: int) -> None:
    num_tags = 1 if num_people in (0, 2, 12, 40) else 2
    scene = small_scene(num_people, num_tags=num_tags, seed=num_people)
    expected = decode_plain(
        scene.levels,
        scene.tags,
        scene.size,
        COCO.matching_order,
        only_missing=num_people > 5,  # the same people, sooner
    )
    people = decode(scene.levels, scene.tags, scene.size, COCO)
    assert_same_people(people, People(*expected))


def test_two_deconvolutions_and_crowdpose() -> None:
    scene = paint_people(
        4,
        size=(96, 128),
        level_sizes=((24, 32), (48, 64), (96, 128)),
        num_keypoints=14,
        steps=None,
        seed=5,
    )
    expected = decode_plain(scene.levels, scene.tags, scene.size, CROWDPOSE.matching_order)
    people = decode(scene.levels, scene.tags, scene.size, CROWDPOSE)
    assert len(people.scores) == len(expected.scores) == 4
    np.testing.assert_allclose(people.keypoints, expected.keypoints, atol=1e-5)


def test_keypoints_may_be_handed_out_by_index_as_mmpose_does_with_crowdpose() -> None:
    scene = paint_people(
        6,
        size=(96, 128),
        level_sizes=((24, 32), (48, 64)),
        num_keypoints=14,
        steps=None,
        seed=8,
    )
    levels = [level + 0.2 * np.random.default_rng(3).random(level.shape, np.float32)
              for level in scene.levels]  # fmt: skip
    found = {
        order: decode(
            levels, scene.tags, scene.size, CROWDPOSE, DecodeSettings(matching_order=order)
        )
        for order in ("skeleton", "index")
    }
    for order, expected in (("skeleton", CROWDPOSE.matching_order), ("index", range(14))):
        plain = decode_plain(levels, scene.tags, scene.size, expected)
        np.testing.assert_allclose(found[order].keypoints, plain.keypoints, atol=1e-5)
    assert not np.array_equal(found["skeleton"].scores, found["index"].scores)


def test_one_step_raises_every_level_straight_to_size() -> None:
    scene = small_scene(3, seed=6)
    expected = decode_plain(
        scene.levels, scene.tags, scene.size, COCO.matching_order, one_step=True
    )
    people = decode(scene.levels, scene.tags, scene.size, COCO, DecodeSettings(one_step=True))
    assert_same_people(people, People(*expected))


def nearest_person(people: People, scene: Scene, person: int) -> int:
    """The decoded person whose found keypoints fit best."""
    distance = np.abs(people.keypoints[:, :, :2] - 0.5 - scene.xy[person]).max(axis=2)
    visible = scene.visible[person]
    return int(np.argmin(np.median(distance[:, visible], axis=1)))


@pytest.mark.parametrize(
    ("settings", "found_px", "filled_px"),
    [
        (PUBLISHED, 1.0, 4.0),
        (DecodeSettings(peaks_at="half"), 1.0, 4.0),
        (DecodeSettings(refine="quarter"), 1.0, 8.0),
        (DecodeSettings(peaks_at="half", refine="quarter"), 1.0, 8.0),
    ],
)
def test_every_mode_finds_and_fills_the_painted_people(
    settings: DecodeSettings, found_px: float, filled_px: float
) -> None:
    """Missing keypoints are painted too faintly to be found; refine sees them."""
    for seed in range(3):
        scene = paint_people(4, noise=0.002, steps=None, seed=seed)
        people = decode(scene.levels, scene.tags, scene.size, COCO, settings)
        assert len(people.scores) == 4
        for person in range(4):
            match = nearest_person(people, scene, person)
            np.testing.assert_array_equal(people.filled[match], ~scene.visible[person])
            places = people.keypoints[match, :, :2] - 0.5
            error = np.abs(places - scene.xy[person]).max(axis=1)
            assert error[scene.visible[person]].max() < found_px
            assert (error[~scene.visible[person]] < filled_px).all()


@pytest.mark.parametrize("num_people", [3, 12])
def test_quarter_refine_searches_all_of_the_lowest_level(num_people: int) -> None:
    scene = small_scene(num_people, seed=8)
    raw = decode(scene.levels, scene.tags, scene.size, COCO, DecodeSettings(refine="off"))
    people = decode(scene.levels, scene.tags, scene.size, COCO, DecodeSettings(refine="quarter"))
    assert people.filled.any()
    for person, rows in enumerate(raw.keypoints):
        expected = rows.copy()
        refine_plain(expected, raw.tags[person], scene.levels[0], scene.tags)
        expected[people.filled[person], :2] *= 4  # network-input pixels in one of that level's
        np.testing.assert_array_equal(people.keypoints[person], expected)


def test_refine_off_leaves_missing_keypoints_zero() -> None:
    scene = small_scene(3, seed=1)
    people = decode(scene.levels, scene.tags, scene.size, COCO, DecodeSettings(refine="off"))
    missing = people.keypoints[:, :, 2] == 0
    assert missing.any()
    assert not people.filled.any()
    assert not people.keypoints[missing].any()


# ---- hiding ------------------------------------------------------------------------------------


def three_people() -> People:
    """A person, its near copy with a lower score, and somebody else; some keypoints filled."""
    rng = np.random.default_rng(0)
    keypoints = np.empty((3, 17, 3), np.float32)
    keypoints[0, :, :2] = rng.uniform(100, 200, (17, 2))
    keypoints[1, :, :2] = keypoints[0, :, :2] + 1
    keypoints[2, :, :2] = rng.uniform(300, 400, (17, 2))
    keypoints[:, :, 2] = 0.5
    keypoints[2, 10:, 2] = 0.05
    filled = np.zeros((3, 17), np.bool_)
    filled[2, 8:] = True
    scores = np.array([0.4, 0.3, 0.2], np.float32)
    return People(keypoints, scores, filled, np.array([[1.0], [1.1], [5.0]], np.float32))


def test_the_published_settings_hide_nothing() -> None:
    people = three_people()
    assert hide(people, COCO, PUBLISHED) is people


def test_weak_keypoints_become_missing_found_or_filled() -> None:
    people = three_people()
    shown = hide(people, COCO, DecodeSettings(min_keypoint_score=0.1))
    np.testing.assert_array_equal(shown.keypoints[:2], people.keypoints[:2])
    assert not shown.keypoints[2, 10:].any()
    assert not shown.filled[2, 10:].any()
    assert shown.filled[2, 8:10].all()
    assert people.filled[2, 8:].all()  # what was given is not changed


def test_people_with_few_found_keypoints_or_low_scores_are_dropped() -> None:
    people = three_people()
    np.testing.assert_array_equal(
        hide(people, COCO, DecodeSettings(min_keypoints=8)).scores, people.scores
    )
    np.testing.assert_array_equal(
        hide(people, COCO, DecodeSettings(min_keypoints=9)).scores, people.scores[:2]
    )
    shown = hide(people, COCO, DecodeSettings(min_person_score=0.25))
    np.testing.assert_array_equal(shown.scores, people.scores[:2])
    np.testing.assert_array_equal(shown.tags, people.tags[:2])


def test_the_worse_of_two_copies_is_dropped() -> None:
    people = three_people()
    shown = hide(people, COCO, DecodeSettings(duplicate_oks=0.7))
    np.testing.assert_array_equal(shown.scores, people.scores[[0, 2]])
    swapped = people._replace(scores=people.scores[[1, 0, 2]])
    shown = hide(swapped, COCO, DecodeSettings(duplicate_oks=0.7))
    np.testing.assert_array_equal(shown.keypoints, people.keypoints[1:])


def test_oks_follows_its_formula() -> None:
    """One common keypoint, 3 px apart; the larger box of found keypoints is 40 x 20."""
    keypoints = np.zeros((2, 17, 3), np.float32)
    keypoints[0, [0, 5, 6]] = [10, 10, 1], [50, 10, 1], [50, 30, 1]
    keypoints[1, [0, 7]] = [13, 10, 1], [14, 11, 1]
    found = np.zeros((2, 17), np.bool_)
    people = People(
        keypoints, np.array([0.9, 0.8], np.float32), found, np.zeros((2, 1), np.float32)
    )
    oks = np.exp(-9 / (2 * 0.53 * 40 * 20 * (2 * COCO.oks_sigmas[0]) ** 2))
    assert 0 < oks < 1
    assert len(hide(people, COCO, DecodeSettings(duplicate_oks=oks * 1.01)).scores) == 2
    assert len(hide(people, COCO, DecodeSettings(duplicate_oks=oks * 0.99)).scores) == 1


def test_decode_hides_by_its_settings() -> None:
    scene = small_scene(5, seed=2)
    settings = DecodeSettings(min_keypoints=14, min_keypoint_score=0.05, min_person_score=0.3)
    everybody = decode(scene.levels, scene.tags, scene.size, COCO)
    shown = decode(scene.levels, scene.tags, scene.size, COCO, settings)
    assert 0 < len(shown.scores) < len(everybody.scores)
    assert_same_people(shown, hide(everybody, COCO, settings))


def test_hiding_nobody_at_all_works() -> None:
    scene = small_scene(0, noise=0.0)
    settings = DecodeSettings(
        min_keypoints=3, min_keypoint_score=0.1, min_person_score=0.1, duplicate_oks=0.5
    )
    assert decode(scene.levels, scene.tags, scene.size, COCO, settings).keypoints.shape == (
        0,
        17,
        3,
    )


# ---- settings and compilation ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"refine": "half"}, "refine must be one of full, quarter, off, got 'half'"),
        ({"peaks_at": "quarter"}, "peaks_at must be one of full, half"),
        ({"nms_kernel": 4}, "nms_kernel must be odd, got 4"),
        ({"max_people": 0}, "max_people must be a whole number, at least 1, got 0"),
        ({"max_peaks": 2.5}, "max_peaks must be a whole number, at least 1, got 2.5"),
        ({"detection_threshold": float("nan")}, "detection_threshold must be a number, from 0 to"),
        ({"detection_threshold": 5}, "detection_threshold must be a number, from 0 to 1, got 5"),
        ({"tag_threshold": "low"}, "tag_threshold must be a number, at least 0, got 'low'"),
        ({"duplicate_oks": None}, "duplicate_oks must be a number, at least 0, got None"),
        ({"min_keypoints": True}, "min_keypoints must be a whole number, at least 0, got True"),
        ({"adjust": "no"}, "adjust must be true or false, got 'no'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeSettings(**wrong)  # type: ignore[arg-type]


def test_after_warm_up_nothing_more_is_compiled() -> None:
    warm_up()
    compiled: list[Any] = [peaks._find, peaks._adjust_full, peaks._adjust_half]
    compiled += [
        averaging._average,
        averaging._measure,
        grouping._match,
        grouping._assemble,
        refine,
    ]
    before = [len(function.signatures) for function in compiled]
    scene = small_scene(3, num_tags=2)
    for settings in (PUBLISHED, DecodeSettings(peaks_at="half", refine="quarter")):
        decode(scene.levels, scene.tags, scene.size, COCO, settings)
        decode(scene.levels[1:], scene.tags, scene.size, COCO, settings)
    assert [len(function.signatures) for function in compiled] == before
