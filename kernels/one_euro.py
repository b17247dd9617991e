"""The One-Euro filter on arrays: keypoints that stand still stop trembling, moving ones keep up.

    speed    = low pass of the change, at d_cutoff
    cutoff   = min_cutoff + beta |speed|            still: strong; moving: weak, hence little lag
    smoothed = low pass of the measurement, at that cutoff

Casiez, Roussel, Vogel: 1 Euro Filter (CHI 2012), with two changes: x and y of a point share one
speed, and speeds are in sizes of the thing that moves, so that the same settings serve a person of
50 pixels and one of 2000. This file knows nothing of people or identities; a row of its arrays is
a row of the caller's.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class OneEuro(NamedTuple):
    """What the filter remembers of N things with K points each."""

    smoothed: Floats
    """(N, K, 2) pixels."""
    velocity: Floats
    """(N, K, 2) pixels a second, low-passed."""
    seen_at: Floats
    """(N, K) seconds of the last measurement; -inf where there was none."""

    @classmethod
    def empty(cls, things: int, points: int) -> Self:
        """A filter that has seen nothing."""
        return cls(
            np.zeros((things, points, 2)),
            np.zeros((things, points, 2)),
            np.full((things, points), -np.inf),
        )

    def only(self, rows: NDArray[np.int64] | Bools) -> OneEuro:
        """The filters of these rows, by their numbers or by a mask."""
        return OneEuro._make([array[rows] for array in self])

    def and_these(self, others: OneEuro) -> OneEuro:
        """All of these, then all of the others."""
        return OneEuro._make([np.concatenate(pair) for pair in zip(self, others, strict=True)])


def one_euro_step(
    before: OneEuro,
    measured: Floats,
    present: Bools,
    *,
    now: float,
    sizes: Floats,
    min_cutoff_hz: float,
    beta: float,
    d_cutoff_hz: float,
    max_gap_s: float,
) -> OneEuro:
    """One measurement later.

    A point without a measurement keeps what it has; one whose last measurement is more than
    max_gap_s old, or that had none, starts again at what is measured. Time that
    stands still or goes back is taken for a repetition: the filter keeps its state.

    Args:
        before: of the same N things.
        measured: (N, K, 2) float64 pixels, finite where present.
        present: (N, K) bool: which of them were measured.
        now: seconds.
        sizes: (N,) float64 pixels, positive: what speeds are measured with.
        min_cutoff_hz: of something that stands still.
        beta: Hz of cutoff for each size a second of speed.
        d_cutoff_hz: of the speed's own low pass.
        max_gap_s: seconds.
    Returns:
        A new state; `smoothed` is the answer where present.
    """
    gap = now - before.seen_at  # inf where nothing was measured yet
    begins = present & (gap > max_gap_s)
    goes_on = present & ~begins & (gap > 0)
    dt = np.where(goes_on, gap, 1.0)[..., None]  # 1: any number that divides

    change = (measured - before.smoothed) / dt
    velocity = before.velocity + _weight(d_cutoff_hz, dt) * (change - before.velocity)
    speed = np.linalg.norm(velocity, axis=-1, keepdims=True) / sizes[:, None, None]
    weight = _weight(min_cutoff_hz + beta * speed, dt)
    smoothed = before.smoothed + weight * (measured - before.smoothed)

    on, new = goes_on[..., None], begins[..., None]
    return OneEuro(
        np.where(on, smoothed, np.where(new, measured, before.smoothed)),
        np.where(on, velocity, np.where(new, 0.0, before.velocity)),
        np.where(goes_on | begins, now, before.seen_at),
    )


def _weight(cutoff_hz: Floats | float, dt: Floats) -> Floats:
    """Of the newest value in a low pass of that cutoff after dt seconds."""
    turned = 2 * np.pi * cutoff_hz * dt
    return np.asarray(turned / (turned + 1))
