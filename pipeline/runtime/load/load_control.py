"""How far a stream steps down when its load does not fit, and when it comes back.

    step   0             1, 2 ..          then          then
           as asked      smaller input    refine off    fewer frames a second of every camera

           offered, results, busy shares, once a second -> LoadControl.observe -> a change, or none

Where to go is estimated from what the stages' work on a frame took and how many pixels a step has;
once a step was tried, from what it took there. So one change is usually enough, two are the most
that any minute sees, and one is always left for taking a return back. Nothing here knows frames,
threads or the time of day: it is told what is measured, and when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

Refine = Literal["full", "quarter", "off"]

_SHARE = 0.8  # of the step before, of the frames a second
_SMALLEST_SHARE = 0.05
_POSES_WITHOUT_REFINE = 0.5  # of the work of `poses`, until it is measured

_MISSING = 0.05  # of the results due: more, with the stages busy, mean that the load does not fit
_BUSY = 0.6  # share of the time; below it results are missing for another reason
_FIT_DOWN = 0.92  # expected load at which a step down is far enough
_FIT_UP = 0.85  # and at which a return is tried
_LESS = 0.8  # of what was due when a return failed: the failure says nothing any more
_TRIAL_PERIODS = 10.0  # after which a return counts as one that has held


@dataclass(frozen=True, slots=True)
class LoadStep:
    """What a stream makes do with."""

    input_size: int
    """Short side of the network input, in pixels."""
    refine: Refine
    share: float = 1.0
    """Of the frames a second that every camera should get."""


class Observation(NamedTuple):
    """The second that has just passed."""

    offered_fps: tuple[float, ...]
    """Frames a second of each live source."""
    results_fps: float
    """Results a second of all of them together."""
    network: float
    """Share of the time that preprocess and inference, which take turns, worked."""
    poses: float
    """Share of the time that poses worked, beside them."""
    waited: float = 0.0
    """Share of the time that the network was kept waiting for a source's turn (turns.py)."""
    is_starting: bool = False
    """Whether a source that is there has not given one result so far."""


@dataclass(frozen=True, slots=True)
class Change:
    """From one step to another, and why."""

    before: LoadStep
    after: LoadStep
    due_fps: float
    """Results a second that all sources together should get."""
    results_fps: float
    """That they got."""
    load: float
    """Share of its time that the busiest stage needs for what is due; over 1 it does not fit."""
    expected: float
    """The same on the step that is taken."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a LoadControl is; seconds."""

    tick_s: float = 1.0
    """How often it is told."""
    settle_s: float = 5.0
    """After a change, and after the first result of a source, before anything is believed: its size
    is compiled, queues run through."""
    watch_s: float = 5.0
    """Overload must last so long."""
    calm_s: float = 15.0
    """Room for a better step must last so long."""
    period_s: float = 60.0
    """At most two changes in any such time; a return needs one without any."""
    longest_wait_s: float = 1800.0
    """After returns that failed again and again."""


def steps_down(
    *, input_size: int, size_multiple: int, smallest: float, refine: Refine
) -> tuple[LoadStep, ...]:
    """All steps in their order, beginning with what was asked for.

    Args:
        input_size: short side of the network input.
        size_multiple: by which it shrinks from step to step.
        smallest: fraction of input_size that it does not go below.
        refine: as asked for.
    """
    sizes = range(input_size, 0, -size_multiple)
    steps = [LoadStep(size, refine) for size in sizes if size >= smallest * input_size]
    last = steps[-1]
    if refine != "off":
        last = LoadStep(last.input_size, "off")
        steps.append(last)
    share = _SHARE
    while share > _SMALLEST_SHARE:
        steps.append(LoadStep(last.input_size, "off", share))
        share *= _SHARE
    return tuple(steps)


class LoadControl:
    """Chooses the step; tell it once a second what was measured.

    Args:
        steps: as steps_down makes them, the best one first.
        target_fps: results a second that every live source should get, if it offers as many.
        timing: how patient it is.
    """

    def __init__(
        self, steps: Sequence[LoadStep], *, target_fps: float, timing: Timing | None = None
    ) -> None:
        self._steps = tuple(steps)
        self._target_fps = target_fps
        self._timing = timing or Timing()
        self._costs = _Costs(self._steps)
        self._index = 0
        self._begun: float | None = None  # at this step; None before the first results
        self._seen: deque[tuple[float, Observation]] = deque()  # at this step, once settled
        self._changes: deque[float] = deque(maxlen=2)  # moments
        self._is_trial = False  # whether this step is a return that has not held for long
        self._failed: _FailedReturn | None = None

    @property
    def step(self) -> LoadStep:
        return self._steps[self._index]

    @property
    def number(self) -> int:
        """Of the step; 0 is what was asked for."""
        return self._index

    def observe(self, now: float, seen: Observation) -> Change | None:
        """Take note of the last second; the change that is due now, if any (it counts as made).

        Args:
            now: in seconds, by any clock that rises.
        """
        if seen.is_starting:  # what its first frame takes, minutes at worst, says nothing
            self._begin(None)
        elif self._begun is None and seen.results_fps > 0:
            self._begin(now)
        if self._begun is None:
            return None
        if now < self._begun + self._timing.settle_s:
            return None
        self._seen.append((now, seen))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._timing.calm_s:
            self._seen.popleft()  # one stays that is older: it shows that there is so much
        recent = self._last_seconds(now, self._timing.watch_s)
        if recent is None or recent.results_fps <= 0:
            return None
        self._costs.learn(self._index, recent)
        self._is_trial = self._is_trial and not self._has_been_quiet(now, _TRIAL_PERIODS)
        if len(self._changes) == 2 and now - self._changes[0] <= self._timing.period_s:
            return None
        if recent.is_short:
            return self._step_down(now, recent)
        return self._step_up(now, recent)

    def _begin(self, now: float | None) -> None:
        self._begun = now
        self._seen.clear()

    def _last_seconds(self, now: float, seconds: float) -> _Window | None:
        """What was seen, twice at least; None where that is less."""
        recent = [seen for moment, seen in self._seen if moment > now - seconds]
        if len(recent) < 2 or self._seen[0][0] > now - 0.9 * seconds:  # clocks are not exact
            return None
        # In both halves and at their end: where a camera has just gone, one of them is in order.
        middle, end = len(recent) // 2, max(1, len(recent) // 3)
        parts = (recent[:middle], recent[middle:], recent[-end:])
        return _Window(recent, is_short=all(self._is_short(part) for part in parts))

    def _has_been_quiet(self, now: float, periods: float) -> bool:
        return not self._changes or now - self._changes[-1] > periods * self._timing.period_s

    def _due_fps(self, seen: Sequence[Observation], step: int) -> float:
        """Results a second that all sources together should get on a step."""
        most = self._target_fps * self._steps[step].share
        return fmean(sum(min(offered, most) for offered in one.offered_fps) for one in seen)

    def _is_short(self, seen: Sequence[Observation]) -> bool:
        """Whether results are missing because stages have no more time."""
        means, due = _Window(seen), self._due_fps(seen, self._index)
        # A source may be a frame behind at the moment; with few frames a second that is much.
        excused = len(seen[-1].offered_fps) / self._timing.watch_s
        missing = due - means.results_fps
        return self._is_busy(means, due) and missing > max(excused, _MISSING * due)

    def _is_busy(self, means: _Window, due: float) -> bool:
        """Waiting is no work: it counts where the work on all that is due would not fit either."""
        does_not_fit = due * means.busy > means.results_fps
        return means.busy > _BUSY or (does_not_fit and means.busy + means.waited > _BUSY)

    def _expected(self, step: int, window: _Window) -> float:
        """The load on that step: the busiest stage's share of the time for what is due there."""
        busy = max(self._costs.on(step, window, at=self._index))
        if window.is_short:  # a stage's time is all there is, also that between messages
            busy /= window.busy + window.waited
        return self._due_fps(window.seen, step) / window.results_fps * busy

    def _step_down(self, now: float, recent: _Window) -> Change | None:
        worse = range(self._index + 1, len(self._steps))
        if not worse:
            return None
        fitting = (step for step in worse if self._expected(step, recent) <= _FIT_DOWN)
        if self._is_trial:
            self._note_failure(now, recent)
        return self._change(now, next(fitting, worse[-1]), recent, is_trial=False)

    def _step_up(self, now: float, recent: _Window) -> Change | None:
        if self._index == 0 or not self._has_been_quiet(now, 1):
            return None
        calm = self._last_seconds(now, self._timing.calm_s)
        if calm is None or calm.is_short:
            return None
        for step in range(self._index):
            if not self._may_try(step, now, recent):
                continue
            # Over both times: a camera may just have come.
            if all(self._expected(step, window) <= _FIT_UP for window in (calm, recent)):
                return self._change(now, step, recent, is_trial=True)
        return None

    def _note_failure(self, now: float, recent: _Window) -> None:
        wait = self._timing.period_s if self._failed is None else 2 * self._failed.wait_s
        wait = min(wait, self._timing.longest_wait_s)
        self._failed = _FailedReturn(self._index, now + wait, wait, self._due_fps(recent.seen, 0))

    def _may_try(self, step: int, now: float, recent: _Window) -> bool:
        """Not what failed, nor better, before its time; unless there is clearly less to do."""
        if (
            self._failed is not None
            and self._due_fps(recent.seen, 0) < _LESS * self._failed.due_fps
        ):
            self._failed = None
        return self._failed is None or step > self._failed.step or now >= self._failed.until

    def _change(self, now: float, step: int, recent: _Window, *, is_trial: bool) -> Change:
        change = Change(
            before=self.step,
            after=self._steps[step],
            due_fps=self._due_fps(recent.seen, self._index),
            results_fps=recent.results_fps,
            load=self._expected(self._index, recent),
            expected=self._expected(step, recent),
        )
        self._costs.leave(self._index, recent)
        self._index, self._is_trial = step, is_trial
        self._changes.append(now)
        self._begin(now)
        return change


class _Window:
    """What was seen in the last seconds, and its means."""

    def __init__(self, seen: Sequence[Observation], *, is_short: bool = False) -> None:
        self.seen = seen
        self.is_short = is_short
        self.results_fps = fmean(one.results_fps for one in seen)
        self.network = fmean(one.network for one in seen)
        self.poses = fmean(one.poses for one in seen)
        self.busy = max(self.network, self.poses)
        self.waited = fmean(one.waited for one in seen)


class _FailedReturn(NamedTuple):
    """A return that did not hold."""

    step: int
    until: float
    """Not to be tried again before."""
    wait_s: float
    due_fps: float
    """What was due then on the best step."""


class _Costs:
    """What a frame costs on each step, compared with the others, in both lanes of the work.

    Begins with the number of pixels. Cameras are the same on two steps that follow each other, so
    what a frame took before and after a change says how the two compare. A step's share changes
    nothing of what a frame costs: steps that differ in it alone are of one kind.
    """

    def __init__(self, steps: Sequence[LoadStep]) -> None:
        kinds = list(dict.fromkeys((step.input_size, step.refine) for step in steps))
        self._kinds = [kinds.index((step.input_size, step.refine)) for step in steps]
        self._known = [_costs_by_pixels(kind, kinds[0]) for kind in kinds]  # (network, poses)
        self._left: tuple[int, float, float] | None = None  # the kind before, a frame's cost there

    def on(self, step: int, seen: _Window, *, at: int) -> tuple[float, float]:
        """The busy shares (network, poses) seen at one step, as they would be on another."""
        here, there = self._weights(at), self._weights(step)
        return seen.network * there[0] / here[0], seen.poses * there[1] / here[1]

    def leave(self, step: int, seen: _Window) -> None:
        """The step is left; this is what it was like."""
        network, poses = seen.network / seen.results_fps, seen.poses / seen.results_fps
        self._left = (self._kinds[step], network, poses)

    def learn(self, step: int, seen: _Window) -> None:
        """Compare with the step that was left, once for each change."""
        if self._left is None:
            return
        (left, *before), kind = self._left, self._kinds[step]
        self._left = None
        if left == kind:
            return
        after = (seen.network / seen.results_fps, seen.poses / seen.results_fps)
        network, poses = (
            weight * _ratio(new, old, is_worse=kind > left)
            for weight, new, old in zip(self._known[left], after, before, strict=True)
        )
        self._known[kind] = (network, poses)

    def _weights(self, step: int) -> tuple[float, float]:
        """A better step never costs less than a worse one, whatever was measured."""
        known = self._known[self._kinds[step] :]
        return max(network for network, _ in known), max(poses for _, poses in known)


def _costs_by_pixels(kind: tuple[int, Refine], best: tuple[int, Refine]) -> tuple[float, float]:
    """(network, poses) of a frame, compared with the best step, before anything is measured."""
    pixels = (kind[0] / best[0]) ** 2
    return pixels, pixels * (1.0 if kind[1] == best[1] else _POSES_WITHOUT_REFINE)


def _ratio(after: float, before: float, *, is_worse: bool) -> float:
    """Of a frame's cost on two steps; what contradicts their order was something else."""
    if before <= 0 or after <= 0:
        return 1.0
    ratio = after / before
    return min(ratio, 1.0) if is_worse else max(ratio, 1.0)
