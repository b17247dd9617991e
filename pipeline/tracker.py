"""People -> people with identities that last, and calm keypoints. One state for each source.

    Poses -> clock -> every track predicted to now -> OKS with who is seen -> assignment
                                                                                  |
    ids, smoothed keypoints <- One-Euro <- tracks moved, begun, confirmed, forgotten

Boxes are not compared: keypoints tell people apart where their boxes cover each other. Nor are
tags: between frames they tell neighbours apart little better than chance (docs/performance.md).
What a body does between frames is in tracks.py; this file knows nothing of heatmaps.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kernels.munkres import munkres
from kernels.oks import warm_up as warm_up_oks
from kernels.one_euro import one_euro_step
from nets.skeletons import SKELETONS
from pipeline.config import SmoothConfig, TrackerConfig
from pipeline.messages import Frame, Poses
from pipeline.tracks import NO_ID, Floats, Rows, Seen, Tracks, begun, moved, oks_cost, predicted

_UNCONFIRMED_LOST_S = 0.2
_CLOCKS_DIFFER_S = 1.0


class Tracker:
    """Gives the poses of every source their ids and smoothed keypoints, frame by frame."""

    def __init__(self, config: TrackerConfig, smooth: SmoothConfig) -> None:
        self._config = config
        self._smooth = smooth
        self._sources: dict[str, SourceTracker] = {}
        self._next_ids: dict[str, int] = {}  # of sources that have gone

    def __call__(self, poses: Poses) -> Poses:
        started = time.perf_counter()
        source = poses.frame.source
        if source not in self._sources:
            first_id = self._next_ids.get(source, 1)
            self._sources[source] = SourceTracker(self._config, self._smooth, first_id=first_id)
        ids, smoothed = self._sources[source](poses)
        return replace(
            poses,
            ids=ids,
            smoothed=smoothed,
            completed_ns=time.monotonic_ns(),
            stage_ms={**poses.stage_ms, "tracker": (time.perf_counter() - started) * 1e3},
        )

    def forget_source(self, name: str) -> None:
        """A source has gone; should it come back, it begins anew, but gives no id twice."""
        gone = self._sources.pop(name, None)
        if gone is not None:
            self._next_ids[name] = gone.next_id


class SourceTracker:
    """The tracks of one source."""

    def __init__(self, config: TrackerConfig, smooth: SmoothConfig, *, first_id: int = 1) -> None:
        self._config = config
        self._smooth = smooth
        self._clock = Clock()
        self.next_id = first_id
        """Never used twice, also after a restart."""
        self._size: tuple[int, int] | None = None
        self._skeleton = ""
        self._tracks = Tracks.none(0)

    def __call__(self, poses: Poses) -> tuple[Rows, NDArray[np.float32] | None]:
        """The ids (P,) and, unless smoothing is off, smoothed keypoints (P, K, 2) of one frame."""
        before = self._clock.seconds
        restarted = self._clock.advance(poses.frame)
        now = self._clock.seconds
        if restarted or (poses.frame.size, poses.skeleton) != (self._size, self._skeleton):
            self._size, self._skeleton = poses.frame.size, poses.skeleton
            self._tracks = Tracks.none(poses.keypoints.shape[1])
        seen = Seen.of(poses)
        sigmas = np.asarray(SKELETONS[poses.skeleton].oks_sigmas)
        tracks = predicted(self._tracks, now - before)
        tracks = tracks.only(now - tracks.seen_at <= self._config.max_lost_s)
        rows, people = self._match(tracks, seen, sigmas, now)

        begins = self._begins(seen, people)
        row_of_person = np.full(len(seen.scores), -1, np.int64)
        row_of_person[people] = rows
        row_of_person[begins] = len(tracks.ids) + np.arange(len(begins))
        tracks = moved(tracks, seen, sigmas, (rows, people), now).and_these(
            begun(seen, begins, now)
        )
        tracks = self._confirmed(tracks)
        has_track = row_of_person >= 0
        ids = np.full(len(seen.scores), NO_ID, np.int64)
        ids[has_track] = tracks.ids[row_of_person[has_track]]
        smoothed = None
        if self._smooth.enabled:
            tracks, smoothed = self._calmed(tracks, seen, row_of_person, now)
        flickers = (tracks.ids == NO_ID) & (now - tracks.seen_at > _UNCONFIRMED_LOST_S)
        self._tracks = tracks.only(~flickers)
        return ids, smoothed

    def _match(self, tracks: Tracks, seen: Seen, sigmas: Floats, now: float) -> tuple[Rows, Rows]:
        """Rows of tracks and who was seen of them: sure people first, then the rest."""
        alike = oks_cost(tracks, seen, sigmas, now, self._config.max_lost_s)
        alike[alike < self._config.min_oks] = 0
        sure = seen.scores >= self._config.confident_score
        first_rows, first_people = assign(np.where(sure, alike, 0))
        alike[first_rows] = 0
        alike[:, sure] = 0
        rows, people = assign(alike)
        return np.concatenate([first_rows, rows]), np.concatenate([first_people, people])

    def _begins(self, seen: Seen, matched: Rows) -> Rows:
        """Who begins a track: seen surely and well enough, and nobody known."""
        new = seen.scores >= self._config.confident_score
        new &= seen.found.sum(axis=1) >= self._config.min_keypoints
        new[matched] = False
        return np.flatnonzero(new)

    def _confirmed(self, tracks: Tracks) -> Tracks:
        new = np.flatnonzero((tracks.ids == NO_ID) & (tracks.times_seen >= self._config.min_frames))
        ids = tracks.ids.copy()
        ids[new] = self.next_id + np.arange(len(new))
        self.next_id += len(new)
        return tracks._replace(ids=ids)

    def _calmed(
        self, tracks: Tracks, seen: Seen, row_of_person: Rows, now: float
    ) -> tuple[Tracks, NDArray[np.float32]]:
        people = np.flatnonzero(row_of_person >= 0)
        rows = row_of_person[people]
        measured = np.zeros_like(tracks.keypoints)
        present = np.zeros(measured.shape[:2], np.bool_)
        measured[rows], present[rows] = seen.keypoints[people], seen.present[people]
        calm = one_euro_step(
            tracks.calm,
            measured,
            present,
            now=now,
            sizes=tracks.size,
            min_cutoff_hz=self._smooth.min_cutoff_hz,
            beta=self._smooth.beta,
            d_cutoff_hz=self._smooth.d_cutoff_hz,
            max_gap_s=self._smooth.max_gap_s,
        )
        smoothed = seen.keypoints.copy()  # of somebody without a track: what was seen
        smoothed[people] = calm.smoothed[rows]
        smoothed[~seen.present] = 0
        return tracks._replace(calm=calm), smoothed.astype(np.float32)


class Clock:
    """Seconds of one source, which never go back, whatever its pts do."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last: Frame | None = None

    def advance(self, frame: Frame) -> bool:
        """Go on to a frame; True where the source must have begun anew.

        The time between two frames is that of their pts. Where pts are missing, repeat or go back,
        and where those of a live source run away from the time that really went by, it is the time
        between their captures.
        """
        last, self._last = self._last, frame.without_pixels()
        if last is None:
            return False
        captured = max(0.0, (frame.captured_ns - last.captured_ns) / 1e9)
        by_pts = None
        if frame.pts_seconds is not None and last.pts_seconds is not None:
            by_pts = frame.pts_seconds - last.pts_seconds
        restarted = frame.index <= last.index
        if not frame.live and by_pts is not None and by_pts < -_CLOCKS_DIFFER_S:
            restarted = True
        doubtful = frame.live and by_pts is not None and abs(by_pts - captured) > _CLOCKS_DIFFER_S
        self.seconds += captured if by_pts is None or by_pts <= 0 or doubtful else by_pts
        return restarted


def assign(alike: Floats) -> tuple[Rows, Rows]:
    """Rows and columns that belong together: the greatest sum of likeness, nobody with 0.

    Args:
        alike: (N, P) float64, 0 or more.
    Returns:
        Row and column of every pair; each row and each column at most once.
    """
    rows, columns = np.flatnonzero(alike.any(axis=1)), np.flatnonzero(alike.any(axis=0))
    side = max(len(rows), len(columns))
    if side == 0:
        return rows, columns
    cost = np.zeros((side, side))
    # Whole numbers, so that the algorithm's zeros are exact.
    cost[: len(rows), : len(columns)] = -np.rint(alike[np.ix_(rows, columns)] * 2**20)
    column_of_row = munkres(cost)[: len(rows)]
    real = column_of_row < len(columns)
    rows, columns = rows[real], columns[column_of_row[real]]
    belong = alike[rows, columns] > 0
    return rows[belong], columns[belong]


def warm_up() -> None:
    """Compile what a tracker calls, or load it from the cache, as its first frame would."""
    warm_up_oks()
    assign(np.ones((1, 1)))
