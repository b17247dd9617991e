"""Bodies that are followed: where they will be, how alike somebody seen is, what was learnt.

    predicted -> likeness -> (the tracker's assignment) -> moved, begun

A body moves at a constant velocity and its limbs with it. What is uncertain of that (a Kalman
filter in body sizes, so that pixels and frame rates do not matter) widens the OKS: somebody newly
seen, or hidden for long, is looked for in a wider circle. This file knows nothing of ids' rules,
sources or frames; every function returns new arrays.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kernels.oks import BODY_SHARE_OF_BOX, oks_matrix
from kernels.one_euro import OneEuro
from pipeline.messages import Poses

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]

NO_ID = -1

# Of a body's motion, in body sizes (the root of its area; somebody 1.7 m tall measures 0.75 m).
# Chosen on the scenes of tests/support/crossings.py; twice or half of each changes little.
_POSITION_SD = 0.05  # sizes: jitter of a pose as a whole
_FIRST_SPEED_SD = 1.5  # sizes a second: people walk at about 1.8
_ACCELERATION = 1.0  # sizes^2 / s^3: how fast velocities wander off
_POSE_SECONDS = 0.1  # in which limbs follow what is seen of them: a stolen one does less harm
_FAR_SDS = 3.0  # standard deviations: further off, a keypoint is somebody else's
_STRANGE_SECONDS = 0.5  # what stays there for longer is believed
_OKS_SLACK = 4.0  # keypoints: three that fit by chance count less than a whole body that fits well

_LEAST_SIDE = 0.3  # a body seen edge-on or in part: size at least this share of its longer side
_LEAST_SIZE_PX = 8.0


class Tracks(NamedTuple):
    """N bodies that are followed; a row of every array is one of them."""

    ids: Rows
    """(N,) from 1 up, -1 while unconfirmed."""
    times_seen: Rows
    """(N,)"""
    seen_at: Floats
    """(N,) seconds: when the body was seen last."""
    keypoints: Floats
    """(N, K, 2) pixels: where they are now; those not seen move along with the body."""
    keypoint_seen_at: Floats
    """(N, K) seconds; -inf where never."""
    size: Floats
    """(N,) pixels: root of the body's area."""
    velocity: Floats
    """(N, 2) pixels a second."""
    spread: Floats
    """(N, 3) variance of position, covariance, variance of velocity, in sizes and seconds."""
    calm: OneEuro
    """The keypoints' filter."""

    @classmethod
    def none(cls, num_keypoints: int) -> Self:
        """Nobody is followed."""
        return cls(
            ids=np.zeros(0, np.int64),
            times_seen=np.zeros(0, np.int64),
            seen_at=np.zeros(0),
            keypoints=np.zeros((0, num_keypoints, 2)),
            keypoint_seen_at=np.zeros((0, num_keypoints)),
            size=np.zeros(0),
            velocity=np.zeros((0, 2)),
            spread=np.zeros((0, 3)),
            calm=OneEuro.empty(0, num_keypoints),
        )

    def only(self, rows: Rows | Bools) -> Tracks:
        """These rows, by their numbers or by a mask."""
        if rows.dtype == np.bool_ and rows.all():
            return self
        *arrays, calm = self
        return Tracks._make([*(array[rows] for array in arrays), calm.only(rows)])

    def and_these(self, others: Tracks) -> Tracks:
        """All of these, then all of the others."""
        if len(others.ids) == 0:
            return self
        *ours, calm = self
        *theirs, other_calm = others
        joined = [np.concatenate(pair) for pair in zip(ours, theirs, strict=True)]
        return Tracks._make([*joined, calm.and_these(other_calm)])


class Seen(NamedTuple):
    """The people of one frame, as the tracker looks at them."""

    keypoints: Floats
    """(P, K, 2) pixels."""
    present: Bools
    """(P, K): found or filled."""
    found: Bools
    """(P, K): a peak stands behind it."""
    scores: Floats
    """(P,)"""

    @classmethod
    def of(cls, poses: Poses) -> Self:
        """The people of poses."""
        present = poses.keypoints[..., 2] > 0
        return cls(
            keypoints=poses.keypoints[..., :2].astype(np.float64),
            present=present,
            found=present & ~poses.filled,
            scores=poses.scores.astype(np.float64),
        )


def predicted(tracks: Tracks, seconds: float) -> Tracks:
    """Every body so much later: it went on at its velocity, and less is known of it."""
    step = tracks.velocity * seconds
    position, both, speed = tracks.spread.T
    spread = np.stack(
        [
            position + seconds * (2 * both + seconds * speed) + _ACCELERATION * seconds**3 / 3,
            both + seconds * speed + _ACCELERATION * seconds**2 / 2,
            speed + _ACCELERATION * seconds,
        ],
        axis=1,
    )
    return tracks._replace(keypoints=tracks.keypoints + step[:, None], spread=spread)


def oks_cost(tracks: Tracks, seen: Seen, sigmas: Floats, now: float, max_lost_s: float) -> Floats:
    """(N, P) OKS of where every body should be with who is seen, by the keypoints found in both."""
    known = now - tracks.keypoint_seen_at <= max_lost_s
    return oks_matrix(
        tracks.keypoints, known, seen.keypoints, seen.found, variances=_variances(tracks, sigmas),
        slack=_OKS_SLACK,
    )  # fmt: skip


def _variances(tracks: Tracks, sigmas: Floats) -> Floats:
    """(N, K) pixels^2: how far keypoints may be from where they are expected, squared."""
    doubt = tracks.spread[:, :1] + _POSITION_SD**2
    return np.asarray(tracks.size[:, None] ** 2 * ((2 * sigmas) ** 2 + doubt))


def moved(
    tracks: Tracks, seen: Seen, sigmas: Floats, pairs: tuple[Rows, Rows], now: float
) -> Tracks:
    """The tracks after some of them were seen: rows and people that belong together."""
    rows, people = pairs
    before = tracks.only(rows)
    where, found = seen.keypoints[people], seen.found[people]
    found = found & ~_strange(before, where, found, _variances(before, sigmas), now)
    off = _displacement(before, where, found)
    position, both, speed = before.spread.T
    whole = position + _POSITION_SD**2
    position_gain, speed_gain = position / whole, both / whole
    with_body = before.keypoints + off[:, None]
    follow = 1 - np.exp((before.keypoint_seen_at - now) / _POSE_SECONDS)  # 1: never seen
    aside = np.where(found, follow, 0)[..., None] * (where - with_body)
    keypoint_seen_at = np.where(found, now, before.keypoint_seen_at)

    result = Tracks._make([*(array.copy() for array in tracks[:-1]), tracks.calm])
    result.times_seen[rows] += 1
    result.seen_at[rows] = now
    result.keypoints[rows] = with_body + aside
    result.keypoint_seen_at[rows] = keypoint_seen_at
    result.size[rows] = body_size(with_body + aside, np.isfinite(keypoint_seen_at))
    result.velocity[rows] += speed_gain[:, None] * off
    result.spread[rows] = np.stack(
        [(1 - position_gain) * position, (1 - position_gain) * both, speed - speed_gain * both],
        axis=1,
    )
    return result


def _strange(tracks: Tracks, where: Floats, found: Bools, variances: Floats, now: float) -> Bools:
    """(n, K): keypoints far from where they should be, for a moment.

    They may well be a neighbour's: a net gives half of one person to another now and then. What
    stays there is believed, and so is everything where less than half is as expected.
    """
    squared = ((where - tracks.keypoints) ** 2).sum(axis=-1)
    judged = found & (now - tracks.keypoint_seen_at < _STRANGE_SECONDS)
    strange = judged & (squared > _FAR_SDS**2 * variances)
    strange[2 * strange.sum(axis=1) > judged.sum(axis=1)] = False
    return np.asarray(strange)


def _displacement(tracks: Tracks, seen: Floats, found: Bools) -> Floats:
    """(n, 2) pixels from where bodies should be to where they are: median over common keypoints."""
    common = found & np.isfinite(tracks.keypoint_seen_at)
    off = np.sort(np.where(common[..., None], seen - tracks.keypoints, np.nan), axis=1)
    people, number = np.arange(len(off)), common.sum(axis=1)  # the rest is NaN, at the end
    return np.asarray((off[people, (number - 1) // 2] + off[people, number // 2]) / 2)


def begun(seen: Seen, people: Rows, now: float) -> Tracks:
    """New tracks of these people."""
    number, found, keypoints = len(people), seen.found[people], seen.keypoints[people]
    return Tracks(
        ids=np.full(number, NO_ID, np.int64),
        times_seen=np.ones(number, np.int64),
        seen_at=np.full(number, now),
        keypoints=keypoints,
        keypoint_seen_at=np.where(found, now, -np.inf),
        size=body_size(keypoints, found),
        velocity=np.zeros((number, 2)),
        spread=np.tile([_POSITION_SD**2, 0.0, _FIRST_SPEED_SD**2], (number, 1)),
        calm=OneEuro.empty(number, keypoints.shape[1]),
    )


def body_size(keypoints: Floats, known: Bools) -> Floats:
    """(N,) pixels: root of a body's area, by the extent of its keypoints (N, K, 2)."""
    inside = known[..., None]
    low = np.where(inside, keypoints, np.inf).min(axis=1)
    high = np.where(inside, keypoints, -np.inf).max(axis=1)
    sides = high - low
    root = np.sqrt(BODY_SHARE_OF_BOX * sides[:, 0] * sides[:, 1])
    return np.asarray(np.maximum(np.maximum(root, _LEAST_SIDE * sides.max(axis=1)), _LEAST_SIZE_PX))
