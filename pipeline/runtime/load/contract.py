"""The latency contract: how old a frame may be, and what to give up when a load does not fit.

    Stats, Shedding -- what the last second was like --> LoadControl -- a step -->  preprocess: size
          ^                                                                         poses: refine
          '---- the step, for status, metrics and page -----------------------      Shedding: fps

Joins what others do: shedding.py leaves frames, load_control.py decides, the stages obey between
two messages. Driven by the stream's tick; no thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from common.settings import ConfigError
from pipeline.config import ContractConfig
from pipeline.runtime.load.load_control import (
    Change,
    LoadControl,
    LoadStep,
    Observation,
    Refine,
    Timing,
    steps_down,
)
from pipeline.runtime.load.shedding import Shedding
from pipeline.runtime.stage import Stage
from pipeline.runtime.stats import LoadSnapshot, Stats

if TYPE_CHECKING:  # their libraries take seconds to import
    from pipeline.poses import FindPoses
    from pipeline.preprocess import Preprocess

TIMING = Timing()

_NETWORK = ("preprocess", "inference")  # they take turns where sources are live

_log = logging.getLogger(__name__)


class LoadWatch:
    """Once a second: measures, lets LoadControl decide, has the step applied, says so.

    Args:
        steps: the best one first, as steps_down makes them.
        target_fps: results a second of every live source.
        stats: where work and results are counted; told the step.
        shedding: knows what is offered, and how long a source's turn was waited for.
        apply: brings a step about, a StepTaker; called from the thread that calls tick().
    """

    def __init__(
        self,
        steps: tuple[LoadStep, ...],
        *,
        target_fps: float,
        stats: Stats,
        shedding: Shedding,
        apply: Callable[[LoadStep, Callable[[], None]], None],
    ) -> None:
        self._control = LoadControl(steps, target_fps=target_fps, timing=TIMING)
        self._target_fps = target_fps
        self._stats = stats
        self._shedding = shedding
        self._apply = apply
        self._before: _Counts | None = None
        self._lock = threading.Lock()  # of _told
        self._told = self._tell(changes=0, reason="")
        stats.watch_load(self.snapshot)

    def tick(self) -> None:
        """Look, if a second has passed."""
        now = time.monotonic()
        if self._before is not None and now < self._before.now + TIMING.tick_s:
            return
        counts = _count(self._stats, now, waited_ms=self._shedding.waited_ms())
        if self._before is not None:
            seen = _since(self._before, counts, tuple(self._shedding.offered_fps().values()))
            change = self._control.observe(now, seen)
            if change is not None:
                self._make(change, len(seen.offered_fps))
        self._before = counts

    def snapshot(self) -> LoadSnapshot:
        """The step and why; from any thread."""
        with self._lock:
            return self._told

    def _make(self, change: Change, num_sources: int) -> None:
        reason = _reason(change, num_sources)
        is_down = change.expected < change.load
        level = logging.WARNING if is_down else logging.INFO
        _log.log(level, "load: %s: %s", _difference(change, self._target_fps), reason)
        most = self._target_fps * change.after.share
        self._apply(change.after, partial(self._shedding.limit, most))
        told = self._tell(changes=self.snapshot()["changes"] + 1, reason=reason)
        with self._lock:
            self._told = told

    def _tell(self, *, changes: int, reason: str) -> LoadSnapshot:
        step = self._control.step
        return {
            "step": self._control.number,
            "changes": changes,
            "input_size": step.input_size,
            "refine": step.refine,
            "fps": round(self._target_fps * step.share, 2),
            "reason": reason if self._control.number else "",
            "text": _words(step, self._target_fps),
        }


class StepTaker:
    """Brings a step about, in the stages' threads, between two of their messages.

    Args:
        stages: those of the network.
        preprocess, find_poses: what two of them do.
    """

    def __init__(
        self, stages: Sequence[Stage], preprocess: Preprocess, find_poses: FindPoses
    ) -> None:
        by_name = {stage.name: stage for stage in stages}
        self._preprocess = (by_name["preprocess"], preprocess)
        self._poses = (by_name["poses"], find_poses)

    def __call__(self, step: LoadStep, limit: Callable[[], None]) -> None:
        """Take the step; `limit` is done with the change of size, before the next frame."""
        stage, preprocess = self._preprocess
        stage.post(partial(preprocess.set_input_size, step.input_size))
        stage.post(limit)
        stage, find_poses = self._poses
        stage.post(partial(find_poses.set_refine, step.refine))


def steps_for(
    config: ContractConfig,
    *,
    input_size: int,
    size_multiple: int,
    canvas: tuple[int, int] | None,
    refine: Refine,
) -> tuple[LoadStep, ...]:
    """What may be given up, in order; with a canvas, which has one size, the input stays."""
    if canvas is not None:
        _log.info("load: the canvas %dx%d keeps its size", canvas[1], canvas[0])
    return steps_down(
        input_size=input_size if canvas is None else min(canvas),
        size_multiple=size_multiple,
        smallest=config.smallest_input if canvas is None else 1.0,
        refine=refine,
    )


def check_contract(config: ContractConfig, live: list[bool]) -> None:
    """Say what the contract cannot hold for.

    Raises:
        ConfigError: it is asked for where it has no meaning; one line.
    """
    if config.target_fps is not None and not all(live):
        raise ConfigError(
            "target_fps (--target-fps) is for live sources, and a file takes all the time there "
            "is; play it as a camera would (pace: true, --pace), or leave target_fps out"
        )
    if config.max_age_ms is not None and not any(live):
        raise ConfigError(
            "max_age_ms (--max-age-ms) is for live sources, and of a file every frame is worked "
            "on, however long it takes; play it as a camera would (pace: true, --pace)"
        )
    if config.max_age_ms is not None and not all(live):
        _log.info("max_age_ms holds for the live sources; of files every frame is worked on")


@dataclass(frozen=True, slots=True)
class _Counts:
    """What has been counted up to a moment."""

    now: float
    results: dict[str, int]
    network_ms: float
    poses_ms: float
    waited_ms: float
    is_starting: bool


def _count(stats: Stats, now: float, *, waited_ms: float) -> _Counts:
    snapshot = stats.snapshot()
    work = {name: stage["total_ms"] for name, stage in snapshot["stages"].items()}
    return _Counts(
        now=now,
        results={name: source["results"] for name, source in snapshot["sources"].items()},
        network_ms=sum(work.get(name, 0.0) for name in _NETWORK),
        poses_ms=work.get("poses", 0.0),
        waited_ms=waited_ms,
        is_starting=any(
            source["results"] == 0 and source["state"] in ("", "live")  # "": in another process
            for source in snapshot["sources"].values()
        ),
    )


def _since(before: _Counts, after: _Counts, offered_fps: tuple[float, ...]) -> Observation:
    seconds = after.now - before.now
    new = (count - before.results.get(name, 0) for name, count in after.results.items())
    return Observation(
        offered_fps=offered_fps,
        results_fps=sum(max(0, count) for count in new) / seconds,  # fewer: counted anew
        network=(after.network_ms - before.network_ms) / seconds / 1e3,
        poses=(after.poses_ms - before.poses_ms) / seconds / 1e3,
        waited=min(1.0, (after.waited_ms - before.waited_ms) / seconds / 1e3),
        is_starting=after.is_starting,
    )


def _words(step: LoadStep, target_fps: float) -> str:
    return ", ".join(_parts(step, target_fps))


def _parts(step: LoadStep, target_fps: float) -> tuple[str, str, str]:
    refine = f"refine {step.refine}"
    return f"input {step.input_size}", refine, f"{target_fps * step.share:.3g} fps each"


def _difference(change: Change, target_fps: float) -> str:
    """What changes: `input 512 -> input 384, refine full -> refine off`."""
    parts = zip(_parts(change.before, target_fps), _parts(change.after, target_fps), strict=True)
    return ", ".join(f"{before} -> {after}" for before, after in parts if before != after)


def _reason(change: Change, num_sources: int) -> str:
    sources = f"{num_sources} source" + ("" if num_sources == 1 else "s")
    return (
        f"{sources} should give {change.due_fps:.1f} results a second and give "
        f"{change.results_fps:.1f}; that takes {change.load:.0%} of the time there is, "
        f"then {change.expected:.0%}"
    )
