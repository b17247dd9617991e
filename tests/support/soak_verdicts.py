"""What a soak must show, judged from what was noted while it ran; plain functions, no processes.

    Record --judge--> [Verdict, Verdict, ...]     each with its numbers in words

Limits are those of a machine that is the soak's own; BUSY_LIMITS are for one that others use too,
where whatever time and memory decide is judged loosely, and everything else as strictly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np

from tests.support.soak_clients import Fault

MARK_SECONDS = 120.0  # "minute 2"
IN_FLIGHT = 8  # frames of one source between its decoder and its poses: a queue is one or two

EXPECTED_LOG = {
    r"WARNING cam\d: the stream ended; ": "a killed server closes its connections",
    r"WARNING cam\d: no data for \d+ seconds; ": "a frozen server",
    r"WARNING cam\d: no answer \(a try waits .*\); ": "a frozen server's backlog takes connections",
    r"WARNING cam\d: connection refused; ": "nothing listens between a kill and the start",
    r"WARNING cam\d: connection reset by peer; ": "killed between two messages of RTSP",
    r"WARNING cam\d: broken pipe; ": "the same",
    r"WARNING cam\d: no answer, or none that is a video stream; ": "killed while it answered",
    r"WARNING a subscriber cannot keep up": "the slow and the dead subscriber",
    r"cam\d: \d+ frames in ": "the summary at the end",
    r"median ms by stage: ": "the summary at the end",
    r"INFO ": "no trouble",
}
"""Lines that a log may hold (regular expressions for their beginning), and why."""

_SUMMARY = re.compile(r"(cam\d): (\d+) frames in .*?(?:, dropped: ([^;]*))?(?:;.*)?$")


@dataclass(frozen=True)
class Limits:
    memory_growth: float = 0.03
    """Of resident memory, from the mark to the end."""
    p99_ratio: float = 1.5
    """Capture-to-publish, last third by second third."""
    back_seconds: float = 2.5
    """From a camera's being there to its first frame, above the time to a key frame; half a second
    of it is for this machine's scheduling, as in benchmarks/faults.py."""
    missed: float = 0.0
    """Share of the messages that the good subscriber may miss."""
    exit_seconds: float = 15.0


BUSY_LIMITS = Limits(
    memory_growth=0.25, p99_ratio=5.0, back_seconds=8.0, missed=0.05, exit_seconds=60.0
)


@dataclass(frozen=True)
class SourceCount:
    """One source at one moment, from /metrics and /api/streams."""

    state: str
    frames: int
    """That its decoder gave."""
    results: int
    dropped: int
    """Before they became poses."""
    dropped_results: int
    """Poses that some sink had no time for; each sink counts."""
    p50_ms: float
    p99_ms: float
    """Capture to poses, lately; 0 before the first result."""


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    seconds: float
    """Since the start of the soak."""
    rss_mb: float
    tree_mb: float
    """Of the process and its children."""
    descriptors: Counter[str]
    """By kind."""
    threads: int
    all_live: bool
    """Every camera has been live for some seconds: moments that are alike."""
    sources: dict[str, SourceCount]
    overflows: int
    """Messages that some subscriber could not take, as the server counts them."""


@dataclass
class Record:
    """All that was noted."""

    seconds: float
    """How long it was to run."""
    offered_fps: float
    """Of all cameras together, while all are there."""
    keyframe_seconds: float
    """Longest time to a key frame."""
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ages: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, capture-to-publish in ms) of every message."""
    last_frame: dict[str, int] = field(default_factory=dict)
    """Number of the last frame that was published, by camera, after the stream's end."""
    num_poses: Counter[str] = field(default_factory=Counter)
    gaps: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    """What the good subscriber complains of."""
    slow_taken: int = 0
    slow_gaps: int = 0
    pictures: Counter[str] = field(default_factory=Counter)
    """That viewers got, by camera and "mjpeg"."""
    view_problems: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    exit_code: int | None = None
    exit_seconds: float = 0.0
    """From SIGTERM; exit_code is None where it did not end in time."""
    segments: int = 0
    segment_pictures: int = 0
    segment_problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    name: str
    passed: bool
    text: str
    """The numbers."""


def judge(record: Record, limits: Limits) -> list[Verdict]:
    judges: dict[str, Callable[[Record, Limits], tuple[bool, str]]] = {
        "overload": _overload,
        "memory": _memory,
        "file descriptors": _descriptors,
        "threads": _threads,
        "latency": _latency,
        "drops + results = frames": _accounts,
        "in flight": _in_flight,
        "cameras come back": _back,
        "no other outage": _other_outages,
        "good subscriber": _good_subscriber,
        "slow and dead subscribers": _bad_subscribers,
        "viewers": _viewers,
        "log": _log,
        "video segments": _segments,
        "exit": _exit,
    }
    return [Verdict(name, *judge_one(record, limits)) for name, judge_one in judges.items()]


def memory_mark(seconds: float) -> float:
    """What the end is compared with: minute 2, in short runs 40 % of the way."""
    return min(MARK_SECONDS, 0.4 * seconds)


def summary_counts(log: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(results, frames dropped before) by camera, from the lines that the stream ends with."""
    counts = {}
    for line in log:
        found = _SUMMARY.match(line)
        if found:
            drops = [int(part.split()[0]) for part in (found[3] or "").split(", ") if part]
            counts[found[1]] = int(found[2]), sum(drops)
    return counts


def thirds_ms(record: Record, percent: float) -> list[float]:
    """That percentile of capture-to-publish in each third of the run."""
    edges = np.linspace(0.0, record.seconds, 4)
    ages = [[ms for at, ms in record.ages if a <= at < b] for a, b in pairwise(edges)]
    return [float(np.percentile(part, percent)) if part else float("inf") for part in ages]


def _window(record: Record, start: float, end: float) -> list[Sample]:
    """Samples between two shares of the run."""
    low, high = start * record.seconds, end * record.seconds
    return [sample for sample in record.samples if low <= sample.seconds <= high]


def _overload(record: Record, _: Limits) -> tuple[bool, str]:
    results_fps = sum(record.num_poses.values()) / record.seconds
    times = record.offered_fps / max(results_fps, 1e-9)
    text = f"{record.offered_fps:.0f} frames a second offered, {results_fps:.1f} results, "
    return times >= 1.5, f"{text}{times:.1f} times too much"


def _memory(record: Record, limits: Limits) -> tuple[bool, str]:
    mark = memory_mark(record.seconds)
    at_mark = _window(record, mark / record.seconds, mark / record.seconds + 0.1)
    at_end = _window(record, 0.9, 1.0)
    if not at_mark or not at_end:
        return False, "no samples"
    before, after = (median(sample.rss_mb for sample in part) for part in (at_mark, at_end))
    growth = after / before - 1
    text = f"{before:.1f} MB at {mark:.0f} s, {after:.1f} MB at the end: {growth:+.1%}"
    if record.seconds < 2 * MARK_SECONDS:
        text += " (a run this short shows only leaks of megabytes a second)"
    return growth <= limits.memory_growth, text


def _descriptors(record: Record, _: Limits) -> tuple[bool, str]:
    """Between two segments a camera's video is closed for a moment, so it counts as open always."""

    def held(sample: Sample) -> Counter[str]:
        video = max(sample.descriptors["video"], len(sample.sources))
        return sample.descriptors | Counter(video=video)

    return _no_more(record, held)


def _threads(record: Record, _: Limits) -> tuple[bool, str]:
    return _no_more(record, lambda sample: Counter(threads=sample.threads))


def _no_more(record: Record, count: Callable[[Sample], Counter[str]]) -> tuple[bool, str]:
    """The least at moments that are alike: a leak raises it, a file being opened does not.

    Alike are those with all cameras live, the second before and after too: one that is just being
    lost has closed its socket before its state is told.
    """
    early, late = (
        [
            count(sample)
            for before, sample, after in zip(part, part[1:], part[2:], strict=False)
            if before.all_live and sample.all_live and after.all_live
        ]
        for part in (_window(record, 0.1, 0.4), _window(record, 0.8, 1.0))
    )
    if not early or not late:
        return False, "no moment with all cameras live to compare"
    before, after = (min(part, key=lambda counts: counts.total()) for part in (early, late))
    more = ", ".join(f"{what} {number:+}" for what, number in (after - before).items())
    text = f"{before.total()} early, {after.total()} late, all cameras live"
    is_right = after.total() <= before.total()
    return is_right, text if is_right else f"{text}: {more}"


def _latency(record: Record, limits: Limits) -> tuple[bool, str]:
    first, second, last = thirds_ms(record, 99)
    text = f"p99 of capture to publish by thirds: {first:.0f}, {second:.0f}, {last:.0f} ms"
    return last <= limits.p99_ratio * second, f"{text}: last by second {last / second:.2f}"


def _accounts(record: Record, _: Limits) -> tuple[bool, str]:
    """After the end: a camera's last frame is always published, and it tells how many there were.

    Numbers go on when a camera comes back, so one sum holds for the whole run.
    """
    counts, words, is_right = summary_counts(record.log), [], bool(record.last_frame)
    for camera, last in sorted(record.last_frame.items()):
        results, dropped = counts.get(camera, (0, 0))
        is_right &= results + dropped == last + 1
        words.append(f"{camera} {results} + {dropped} of {last + 1}")
    return is_right and counts.keys() == record.last_frame.keys(), ", ".join(words)


def _in_flight(record: Record, _: Limits) -> tuple[bool, str]:
    """At every moment: what is neither a result nor dropped is in some queue, and those are few."""
    missing = [
        source.frames - source.results - source.dropped
        for sample in record.samples
        for source in sample.sources.values()
    ]
    if not missing:
        return False, "no samples"
    text = f"{min(missing)} to {max(missing)} frames of a source were on their way"
    return min(missing) >= 0 and max(missing) <= IN_FLIGHT, text


def _back(record: Record, limits: Limits) -> tuple[bool, str]:
    due = [fault for fault in record.faults if fault.there_unix_s is not None]
    seconds = [fault.back_seconds for fault in due if fault.back_seconds is not None]
    if not seconds:
        return False, f"{len(due)} faults, no camera was seen again"
    longest = limits.back_seconds + record.keyframe_seconds
    text = f"{len(seconds)} of {len(due)} after {median(seconds):.1f} s (median), at most "
    is_right = len(seconds) == len(due) and max(seconds) <= longest
    return is_right, f"{text}{max(seconds):.1f} of {longest:.1f}"


def _other_outages(record: Record, limits: Limits) -> tuple[bool, str]:
    """No camera is lost but by a fault of its own; `stalled` is a hiccup and no loss."""
    longest = limits.back_seconds + record.keyframe_seconds + 1.0  # samples are a second apart
    strange = [
        f"{name} {source.state} at {sample.seconds:.0f} s"
        for sample in record.samples
        for name, source in sample.sources.items()
        if source.state not in ("live", "stalled")
        and not any(
            fault.camera == name
            and 0 <= sample.seconds - fault.began_s <= fault.down_seconds + longest
            for fault in record.faults
        )
    ]
    return (
        not strange,
        f"{len(strange)} unexplained seconds of a camera {strange[:3] or ''}".strip(),
    )


def _good_subscriber(record: Record, limits: Limits) -> tuple[bool, str]:
    total = sum(record.num_poses.values())
    complaints = "; ".join(f"{count} times {what}" for what, count in record.problems.items())
    text = f"{total} messages, {record.gaps} missed, {complaints or 'in order and as the schema'}"
    is_right = total > 0 and not record.problems
    return is_right and record.gaps <= limits.missed * total, text


def _bad_subscribers(record: Record, _: Limits) -> tuple[bool, str]:
    overflows = record.samples[-1].overflows if record.samples else 0
    text = f"the slow one took {record.slow_taken} and saw {record.slow_gaps} missing"
    # On a slow machine few results come, and the slow one takes them all: nobody misses anything.
    missed = record.slow_gaps > 0 and overflows > 0
    kept_up = record.slow_gaps == overflows == 0 and record.slow_taken >= record.num_poses.total()
    is_right = record.slow_taken > 0 and (missed or kept_up)
    return is_right, f"{text}; the server counts {overflows} not taken"


def _viewers(record: Record, _: Limits) -> tuple[bool, str]:
    wanted = [*record.last_frame, "mjpeg"]
    text = ", ".join(f"{what} {record.pictures[what]}" for what in sorted(wanted))
    is_right = not record.view_problems and all(record.pictures[what] > 0 for what in wanted)
    return is_right, "; ".join([f"pictures: {text}", *record.view_problems])


def _log(record: Record, _: Limits) -> tuple[bool, str]:
    expected = re.compile("|".join(EXPECTED_LOG))
    strange = [line for line in record.log if line.strip() and not expected.match(line)]
    warnings = sum(line.startswith("WARNING") for line in record.log)
    text = f"{len(record.log)} lines, {warnings} warnings, {len(strange)} unexplained"
    return not strange, " | ".join([text, *strange[:5]])


def _segments(record: Record, _: Limits) -> tuple[bool, str]:
    text = f"{record.segments} files, {record.segment_pictures} pictures, all read"
    is_right = record.segments > 0 and not record.segment_problems
    return is_right, " | ".join([text, *record.segment_problems[:5]])


def _exit(record: Record, limits: Limits) -> tuple[bool, str]:
    is_right = record.exit_code == 0 and record.exit_seconds <= limits.exit_seconds
    return is_right, f"code {record.exit_code}, {record.exit_seconds:.1f} s after SIGTERM"
