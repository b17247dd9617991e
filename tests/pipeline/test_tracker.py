"""Identities that last, on made-up people whose truth is known; and calm keypoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SmoothConfig, TrackerConfig
from pipeline.messages import Frame, Poses
from pipeline.tracker import Clock, Tracker, assign
from tests.support.crossings import Faults, Sighting, id_switches, play, share_with_id
from tests.support.people import poses_of, standing_person

# Without keypoints that change hands: then somebody's identity is never in doubt for long.
FAULTS = Faults(stolen=0.0)


def tracker(**config: object) -> Tracker:
    return Tracker(TrackerConfig.model_validate(config), SmoothConfig())


def ids_of(sightings: Iterable[Sighting], tracked_by: Tracker | None = None) -> list[np.ndarray]:
    track = tracked_by or tracker()
    return [track(sighting.poses).ids for sighting in sightings]


def frame_of(*xs: float, at: float, score: float = 0.9, live: bool = False) -> Poses:
    """People of 300 pixels who stand at these x, seen at a time."""
    keypoints = np.array([standing_person(x, 100, 300) for x in xs]).reshape(-1, 17, 3)
    keypoints[..., 2] = score
    return poses_of(
        keypoints, index=round(at * 1000), pts_seconds=at, captured_ns=round(at * 1e9), live=live,
        ids=np.full(len(xs), -1),
    )  # fmt: skip


def stand(track: Tracker, *xs: float, start: float = 0.0, frames: int = 10) -> np.ndarray:
    """Ids after people stood there for so many frames of 1/10 s."""
    for i in range(frames):
        ids = track(frame_of(*xs, at=start + i / 10)).ids
    return np.asarray(ids)


# ---- identities --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "fps"),
    [
        *itertools.product(["crossing", "meeting", "group"], [30.0, 10.0]),
        ("hiding", 30.0),  # at 10 fps two who meet behind the wall are sometimes confused
    ],
)
def test_nobody_changes_identity_when_people_cross_and_hide(script: str, fps: float) -> None:
    sightings = play(script, seed=3, fps=fps, faults=FAULTS)
    ids = ids_of(sightings)
    who = [sighting.who for sighting in sightings]
    assert id_switches(who, ids) == 0
    assert len(set(np.concatenate(ids)) - {-1}) == len(set(np.concatenate(who)))
    assert share_with_id(ids) > 0.9


def test_any_frame_rate_and_any_dropped_frame_will_do() -> None:
    sightings = play("crossing", seed=1, fps=30, faults=replace(FAULTS, missed=0.0))
    chance = np.random.default_rng(0)
    kept = [s for i, s in enumerate(sightings) if i % 4 == 0 and chance.random() < 0.7]
    assert id_switches([s.who for s in kept], ids_of(kept)) == 0


def test_pixels_do_not_matter() -> None:
    sightings = play("group", seed=0, fps=15)
    large = []
    for sighting in sightings:
        keypoints = sighting.poses.keypoints * np.array([4, 4, 1], np.float32)
        large.append(replace(sighting, poses=replace(sighting.poses, keypoints=keypoints)))
    for small_ids, large_ids in zip(ids_of(sightings), ids_of(large), strict=True):
        np.testing.assert_array_equal(small_ids, large_ids)


def test_the_order_of_people_does_not_matter() -> None:
    sightings = play("group", seed=2, fps=15)
    turned = [
        replace(
            s,
            poses=replace(
                s.poses,
                keypoints=s.poses.keypoints[::-1],
                scores=s.poses.scores[::-1],
                filled=s.poses.filled[::-1],
            ),
        )
        for s in sightings
    ]
    pairs: set[tuple[int, int]] = set()
    for ids, turned_ids in zip(ids_of(sightings), ids_of(turned), strict=True):
        pairs |= set(zip(ids.tolist(), turned_ids[::-1].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_an_id_is_given_once_somebody_was_seen_often_enough() -> None:
    track = tracker(min_frames=3)
    given = [track(frame_of(300, 600, at=i / 10)).ids.tolist() for i in range(4)]
    assert given == [[-1, -1], [-1, -1], [1, 2], [1, 2]]


def test_what_flickers_once_never_has_an_id() -> None:
    track = tracker()
    for i in range(40):
        poses = frame_of(*([300.0, 900.0] if i % 8 == 0 else [300.0]), at=i / 10)
        assert track(poses).ids[1:].tolist() in ([], [-1])


@pytest.mark.parametrize(("hidden_s", "same"), [(0.5, True), (1.8, True), (2.3, False)])
def test_an_identity_outlasts_an_occlusion_of_max_lost_s(hidden_s: float, same: bool) -> None:
    track = tracker(max_lost_s=2.0)
    before = stand(track, 300, 700)
    for i in range(10, round((0.9 + hidden_s) * 10)):
        track(frame_of(300, at=i / 10))
    after = stand(track, 300, 700, start=0.9 + hidden_s)
    assert after[0] == before[0]
    assert bool(after[1] == before[1]) is same


def test_who_walks_on_behind_a_wall_is_awaited_where_they_come_out() -> None:
    track = tracker()
    for i in range(20):
        before = track(frame_of(100 + 20 * i, 1000, at=i / 10)).ids
    for i in range(20, 28):
        track(frame_of(1000, at=i / 10))
    after = track(frame_of(100 + 20 * 28, 1000, at=2.8)).ids
    assert after.tolist() == before.tolist()


def test_weak_people_continue_an_identity_and_never_begin_one() -> None:
    track = tracker(confident_score=0.5)
    first = stand(track, 300)
    for i in range(10, 20):
        poses = frame_of(300, 800, at=i / 10, score=0.3)
        assert track(poses).ids.tolist() == [first[0], -1]


def test_a_sure_person_wins_over_a_weak_one_at_the_same_place() -> None:
    track = tracker(confident_score=0.5)
    first = stand(track, 300)
    poses = frame_of(300, 304, at=1.0)  # the weak one fits a little better
    scores = np.array([0.3, 0.9], np.float32)
    assert track(replace(poses, scores=scores)).ids.tolist() == [-1, first[0]]


def test_filled_keypoints_do_not_vote() -> None:
    track = tracker()
    first = stand(track, 300)
    poses = frame_of(300, at=1.0)
    wild = poses.keypoints.copy()
    wild[:, 5:, :2] = np.random.default_rng(0).uniform(0, 1000, (1, 12, 2))
    filled = np.zeros((1, 17), bool)
    filled[:, 5:] = True
    assert track(replace(poses, keypoints=wild, filled=filled)).ids.tolist() == first.tolist()
    assert stand(track, 300, start=1.1, frames=1).tolist() == first.tolist()


def test_half_of_a_neighbour_for_a_moment_does_no_harm() -> None:
    track = tracker()
    first = stand(track, 300, 700)
    for i in range(10, 13):  # the net gives the legs of the one on the right to the other
        poses = frame_of(300, 700, at=i / 10)
        mixed = poses.keypoints.copy()
        mixed[0, 11:] = poses.keypoints[1, 11:]
        mixed[1, 11:] = 0
        assert track(replace(poses, keypoints=mixed)).ids.tolist() == first.tolist()
    # Only the upper body of the right one is seen now: still the same person.
    alone = frame_of(700, at=1.3)
    assert track(alone).ids.tolist() == first[1:].tolist()


def test_every_source_has_a_state_of_its_own() -> None:
    scenes = {name: play(name, seed=1, fps=10) for name in ("crossing", "meeting")}
    alone = {name: ids_of(scene) for name, scene in scenes.items()}
    track = tracker()
    for i in range(50):
        for name, scene in scenes.items():
            poses = scene[i].poses
            together = track(replace(poses, frame=replace(poses.frame, source=name))).ids
            np.testing.assert_array_equal(together, alone[name][i])


def test_a_new_size_and_a_new_start_make_new_people_and_no_id_twice() -> None:
    track = tracker()
    first = stand(track, 300)
    small = frame_of(300, at=1.0)
    small = replace(small, frame=replace(small.frame, size=(480, 640)))
    assert track(small).ids.tolist() == [-1]
    second = stand(track, 300, start=1.1)
    third = stand(track, 300, start=0.0)  # the index begins again
    assert len({*first.tolist(), *second.tolist(), *third.tolist()}) == 3


def test_a_source_that_was_forgotten_gives_no_id_twice() -> None:
    track = tracker()
    assert stand(track, 300, 600).tolist() == [1, 2]
    for start, expected in ((10, 3), (20, 4)):
        track.forget_source("cam1")
        track.forget_source("never came")
        assert stand(track, 300, start=start).tolist() == [expected]


def test_an_empty_picture_is_no_trouble() -> None:
    track = tracker()
    first = stand(track, 300)
    empty = track(frame_of(at=1.0))
    assert empty.ids.shape == (0,)
    assert empty.smoothed is not None
    assert empty.smoothed.shape == (0, 17, 2)
    assert stand(track, 300, start=1.1).tolist() == first.tolist()


# ---- time --------------------------------------------------------------------------------------


def frame(index: int, pts: float | None, captured_s: float, *, live: bool) -> Frame:
    nobody = np.zeros((0, 17, 3))
    captured_ns = round(captured_s * 1e9)
    return poses_of(
        nobody, index=index, pts_seconds=pts, captured_ns=captured_ns, live=live
    ).frame  # fmt: skip


@pytest.mark.parametrize(
    ("live", "pts", "step", "restarted"),
    [
        (False, [0.0, 0.5], 0.5, False),
        (True, [0.0, 0.5], 0.5, False),
        (True, [None, 0.5], 0.1, False),
        (True, [0.5, None], 0.1, False),
        (True, [0.5, 0.5], 0.1, False),
        (True, [0.5, 0.4], 0.1, False),
        (True, [50.0, 0.0], 0.1, False),
        (True, [0.0, 50.0], 0.1, False),
        (False, [0.0, 50.0], 50.0, False),
        (False, [50.0, 0.0], 0.1, True),
    ],
)
def test_time_goes_by_pts_where_they_make_sense(
    live: bool, pts: list[float | None], step: float, restarted: bool
) -> None:
    clock = Clock()
    assert not clock.advance(frame(0, pts[0], 7.0, live=live))
    before = clock.seconds
    assert clock.advance(frame(1, pts[1], 7.1, live=live)) is restarted
    assert clock.seconds - before == pytest.approx(step)


# ---- calm --------------------------------------------------------------------------------------


def test_raw_keypoints_stay_and_smoothed_ones_tremble_less() -> None:
    chance = np.random.default_rng(1)
    track, raw, calm = tracker(), [], []
    for i in range(90):
        poses = frame_of(600, at=i / 30)
        noisy = poses.keypoints.copy()
        noisy[..., :2] += chance.normal(0, 2, (1, 17, 2))
        result = track(replace(poses, keypoints=noisy))
        np.testing.assert_array_equal(result.keypoints, noisy)
        assert result.smoothed is not None
        raw.append(noisy[0, :, :2])
        calm.append(result.smoothed[0])
    assert np.diff(calm[20:], axis=0).std() < 0.35 * np.diff(raw[20:], axis=0).std()


@pytest.mark.parametrize("sizes_a_second", [1.0, 2.0, 5.0])
def test_who_walks_is_shown_at_most_a_frame_late(sizes_a_second: float) -> None:
    size = np.sqrt(0.53 * 0.4 * 300 * 0.885 * 300)  # of somebody standing 300 pixels high
    speed = sizes_a_second * size
    track = tracker()
    for i in range(60):
        poses = frame_of(100 + speed * i / 30, at=i / 30)
        result = track(poses)
    assert result.smoothed is not None
    behind = poses.keypoints[0, :, 0] - result.smoothed[0, :, 0]
    assert (behind / speed < 1 / 30).all()


def test_missing_keypoints_are_zero_and_nothing_is_nan() -> None:
    track = tracker()
    for sighting in play("group", seed=4, fps=15):
        poses = track(sighting.poses)
        assert poses.smoothed is not None
        assert np.isfinite(poses.smoothed).all()
        missing = sighting.poses.keypoints[..., 2] == 0
        np.testing.assert_array_equal((poses.smoothed == 0).all(axis=-1), missing)


def test_without_smoothing_there_are_ids_alone() -> None:
    track = Tracker(TrackerConfig(), SmoothConfig(enabled=False))
    for i in range(3):
        poses = track(frame_of(300, at=i / 10))
    assert poses.smoothed is None
    assert poses.ids.tolist() == [1]


# ---- assignment --------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(rows=st.integers(0, 5), columns=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_the_assignment_is_the_best_of_all(rows: int, columns: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    alike = chance.random((rows, columns)) * (chance.random((rows, columns)) < 0.6)
    chosen_rows, chosen_columns = assign(alike.copy())
    assert len(set(chosen_rows)) == len(set(chosen_columns)) == len(chosen_rows)
    assert (alike[chosen_rows, chosen_columns] > 0).all()
    side = max(rows, columns)
    square = np.zeros((side, side))
    square[:rows, :columns] = alike
    best = max(square[range(side), order].sum() for order in itertools.permutations(range(side)))
    assert alike[chosen_rows, chosen_columns].sum() == pytest.approx(best, abs=1e-5)
