"""Made-up people who walk, cross, hide and turn back, with the truth beside what a net would see.

A net's faults are made up too: it misses people and keypoints, trembles, and gives keypoints of
somebody in front to somebody behind. Benchmarks and tests of the tracker take their scenes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kernels.munkres import munkres
from nets.skeletons import COCO
from pipeline.messages import Poses
from tests.support.people import poses_of, standing_person

SIZE = (720, 1280)
_STRIDES_HZ = 0.9
_SWING = {"wrist": 0.09, "elbow": 0.05, "knee": 0.05, "ankle": 0.11}  # of the height
_LEAST_KEYPOINTS = 4


@dataclass(frozen=True)
class Walker:
    """One person: where the feet are, over time, and how tall."""

    height: float
    """Pixels; who is taller stands nearer to the camera."""
    path: Callable[[float], tuple[float, float]]
    """Seconds -> (x, y) of the feet, pixels."""
    phase: float = 0.0
    """Of the stride, in strides."""


@dataclass(frozen=True)
class Faults:
    """What the net does wrong."""

    jitter: float = 0.012
    """Standard deviation of every coordinate, in heights."""
    missed: float = 0.1
    """Share of people that are missed."""
    missed_keypoints: float = 0.05
    """Share of keypoints that are missed."""
    stolen: float = 0.2
    """Where two people's same keypoint lie near each other: how often they swap it."""


@dataclass(frozen=True)
class Sighting:
    """One frame."""

    poses: Poses
    who: np.ndarray
    """(P,) number of the walker behind every person of poses."""
    true_keypoints: np.ndarray
    """(P, K, 2) where their keypoints really are."""


def pose_at(walker: Walker, seconds: float) -> np.ndarray:
    """(K, 2) pixels: the true keypoints of a walking person."""
    x, feet = walker.path(seconds)
    pose = standing_person(x, feet - walker.height, walker.height)[:, :2].astype(np.float64)
    ahead = walker.path(seconds + 0.05)[0] - x
    stride = np.sin(2 * np.pi * (_STRIDES_HZ * seconds + walker.phase))
    pace = min(1.0, abs(ahead) / 0.05 / (0.3 * walker.height))  # who stands still swings nothing
    for k, name in enumerate(COCO.keypoint_names):
        part = name.split("_")[-1]
        if part in _SWING:
            sign = 1 if (COCO.side(k) == "left") == (part in ("wrist", "elbow")) else -1
            pose[k, 0] += sign * stride * pace * _SWING[part] * walker.height
    return pose


def scene(
    walkers: list[Walker],
    *,
    seconds: float,
    fps: float,
    faults: Faults,
    seed: int,
    walls: tuple[tuple[float, float], ...] = (),
) -> Iterator[Sighting]:
    """What a net sees of these people, frame by frame.

    Args:
        walkers: the people.
        seconds, fps: how long, and how often.
        faults: of the net.
        seed: of every chance.
        walls: (left, right) pixels between which nobody is seen.
    """
    chance = np.random.default_rng(seed)
    for index in range(round(seconds * fps)):
        now = index / fps
        truth = np.stack([pose_at(walker, now) for walker in walkers])
        seen, belongs_to = _stolen(truth, walkers, faults, chance)
        heights = np.array([walker.height for walker in walkers])
        seen += chance.normal(0, faults.jitter, seen.shape) * heights[:, None, None]
        visible = _visible(truth, walkers, walls) & (
            chance.random(truth.shape[:2]) >= faults.missed_keypoints
        )
        there = (visible.sum(axis=1) >= _LEAST_KEYPOINTS) & (
            chance.random(len(walkers)) >= faults.missed
        )
        bodies = chance.permutation(np.flatnonzero(there))
        who = belongs_to[bodies]
        keypoints = np.zeros((len(who), COCO.num_keypoints, 3))
        keypoints[..., :2] = seen[bodies]
        keypoints[..., 2] = chance.uniform(0.4, 0.95, keypoints.shape[:2])
        keypoints[~visible[bodies]] = 0
        captured_ns = round(now * 1e9)
        poses = poses_of(
            keypoints, size=SIZE, index=index, pts_seconds=now, captured_ns=captured_ns,
            ids=np.full(len(who), -1),
        )  # fmt: skip
        yield Sighting(poses, who, truth[who])


def _visible(
    truth: np.ndarray, walkers: list[Walker], walls: tuple[tuple[float, float], ...]
) -> np.ndarray:
    """(P, K): not behind a wall, and not behind the trunk of somebody nearer."""
    visible = np.ones(truth.shape[:2], np.bool_)
    for left, right in walls:
        visible &= ~((truth[..., 0] > left) & (truth[..., 0] < right))
    trunk = [COCO.keypoint_names.index(f"{s}_{p}") for s in ("left", "right")
             for p in ("shoulder", "hip")]  # fmt: skip
    for near, walker in enumerate(walkers):
        low, high = truth[near, trunk].min(axis=0), truth[near, :].max(axis=0)
        right = truth[near, trunk].max(axis=0)[0]
        x, y = truth[..., 0], truth[..., 1]
        hidden = (x > low[0]) & (x < right) & (y > low[1]) & (y < high[1])
        hidden[[other.height >= walker.height for other in walkers]] = False
        visible &= ~hidden
    return visible


def _stolen(
    truth: np.ndarray, walkers: list[Walker], faults: Faults, chance: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(P, K, 2) keypoints, some swapped between people, and (P,) who most of a body belongs to."""
    seen = truth.copy()
    owner = np.repeat(np.arange(len(walkers))[:, None], truth.shape[1], axis=1)
    for a in range(len(walkers)):
        for b in range(a):
            near = np.linalg.norm(seen[a] - seen[b], axis=-1) < 0.12 * walkers[a].height
            swap = near & (chance.random(len(near)) < faults.stolen)
            seen[[a, b]] = np.where(swap[:, None], seen[[b, a]], seen[[a, b]])
            owner[[a, b]] = np.where(swap, owner[[b, a]], owner[[a, b]])
    share = (owner[:, :, None] == np.arange(len(walkers))).sum(axis=1)  # (seen, owners)
    return seen, munkres(-share.astype(np.float64))


# ---- scripts -----------------------------------------------------------------------------------


def crossing(chance: np.random.Generator) -> list[Walker]:
    """Two people walk past each other."""
    heights = chance.uniform(250, 400, 2)
    speed = chance.uniform(0.5, 1.0, 2) * heights
    return [
        Walker(heights[0], lambda t: (200 + speed[0] * t, 620), 0.1),
        Walker(heights[1], lambda t: (1080 - speed[1] * t, 600), 0.6),
    ]


def overtaking(chance: np.random.Generator) -> list[Walker]:
    """One catches up with two others who walk ahead of them the same way."""
    heights = chance.uniform(280, 360, 3)
    speed = np.array([1.1, 0.6, 0.55]) * heights * chance.uniform(0.9, 1.1, 3)
    starts = (40, 240, 330)
    return [
        Walker(heights[i], lambda t, i=i: (starts[i] + speed[i] * t, 600 + 8 * i), 0.3 * i)  # type: ignore[misc]
        for i in range(3)
    ]


def meeting(chance: np.random.Generator) -> list[Walker]:
    """Two meet, stand for a second, turn round and go back: no constant velocity."""
    heights = chance.uniform(280, 360, 2)
    apart = chance.uniform(0.18, 0.3) * heights.max()

    def path(side: int) -> Callable[[float], tuple[float, float]]:
        def at(t: float) -> tuple[float, float]:
            away = max(0.0, 2.0 - t, t - 3.0) * 0.7 * heights[side]
            return 640 + (2 * side - 1) * (apart / 2 + away), 610

        return at

    return [Walker(heights[0], path(0)), Walker(heights[1], path(1), 0.5)]


def group(chance: np.random.Generator) -> list[Walker]:
    """Six people cross one place in all directions."""
    heights = chance.uniform(200, 340, 6)
    start = np.where(np.arange(6) % 2 == 0, chance.uniform(0, 300, 6), chance.uniform(980, 1280, 6))
    speed = np.where(np.arange(6) % 2 == 0, 1, -1) * chance.uniform(0.5, 1.0, 6) * heights
    drift = chance.uniform(-20, 20, 6)
    return [
        Walker(
            heights[i],
            lambda t, i=i: (start[i] + speed[i] * t, 400 + 0.7 * heights[i] + drift[i] * t),  # type: ignore[misc]
            float(chance.random()),
        )
        for i in range(6)
    ]


def hiding(chance: np.random.Generator) -> list[Walker]:
    """Two walk behind a wall, a third comes out from behind it the other way: see WALLS."""
    heights = chance.uniform(260, 330, 3)
    speed = np.array([0.8, 0.6, -0.7]) * heights * chance.uniform(0.85, 1.15, 3)
    starts = (150, 330, 1150)
    return [
        Walker(heights[i], lambda t, i=i: (starts[i] + speed[i] * t, 600), 0.4 * i)  # type: ignore[misc]
        for i in range(3)
    ]


SCRIPTS = {
    "crossing": crossing,
    "overtaking": overtaking,
    "meeting": meeting,
    "group": group,
    "hiding": hiding,
}
WALLS = {"hiding": ((560.0, 720.0),)}


def play(
    script: str, *, seed: int = 0, seconds: float = 5.0, fps: float = 30.0,
    faults: Faults | None = None,
) -> list[Sighting]:  # fmt: skip
    """A whole script, by its name in SCRIPTS."""
    walkers = SCRIPTS[script](np.random.default_rng(seed))
    return list(
        scene(
            walkers, seconds=seconds, fps=fps, faults=faults or Faults(), seed=seed,
            walls=WALLS.get(script, ()),
        )
    )  # fmt: skip


# ---- figures -----------------------------------------------------------------------------------


def id_switches(who: list[np.ndarray], ids: list[np.ndarray]) -> int:
    """How often somebody's id differs from their last one; being without one does not count."""
    last: dict[int, int] = {}
    switches = 0
    for people, given in zip(who, ids, strict=True):
        for person, identity in zip(people.tolist(), given.tolist(), strict=True):
            if identity >= 0:
                switches += last.get(person, identity) != identity
                last[person] = identity
    return switches


def share_with_id(ids: list[np.ndarray]) -> float:
    """Of all people seen."""
    return float(np.mean(np.concatenate(ids) >= 0))
