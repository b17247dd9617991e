"""What a stream has done so far: work and latency, drops with their reason, queue depth.

    stages -- worked, dropped, finished --> Stats -- snapshot() --> progress line, status messages
    queues, sources <-- asked when read ----'  '-- prometheus_registry() --> a metrics page

Memory is bounded: counters for ever, percentiles over the last few hundred. Safe to call from any
thread, and about a microsecond a call. This file knows nothing of sockets and threads.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

from pipeline.sources.status import SourceState, SourceStatus

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_RECENT = 512  # values that percentiles and rates are taken from
_RATE_SECONDS = 5.0
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)


class StageSnapshot(TypedDict):
    """One stage's work."""

    calls: int
    """Messages worked on; a batch is one."""
    frames: int
    """Frames in them."""
    fps: float
    """Frames a second, lately."""
    total_ms: float
    mean_ms: float
    """Of one call since the start."""
    p50_ms: float
    p95_ms: float
    """Of one call, lately."""


class SourceSnapshot(TypedDict):
    """One source's results."""

    state: str
    """As the source itself says (source_state.py); empty where it is in another process."""
    reason: str
    """Why, in words; empty while all is well."""
    since_unix_s: float
    """Wall clock at which the state began."""
    retries: dict[str, int]
    """How often a connection was lost or did not come about, by reason in one word."""
    tainted: int
    """Frames that were damaged, or predicted from damaged ones."""
    left_out: int
    """Frames that max_fps kept back; they are not counted as dropped."""
    results: int
    """Frames that became poses."""
    fps: float
    """Of these a second, lately."""
    people: int
    """In the last of them."""
    latency_ms: dict[str, float]
    """Capture to poses, lately: p50, p95, p99; empty before the first result."""
    dropped: dict[str, int]
    """Frames that became no poses, by reason."""
    dropped_at: dict[str, dict[str, int]]
    """These and results_dropped, by the stage that sent or left them, then by reason."""
    results_dropped: dict[str, int]
    """Results that some sink had no time for, by reason; each sink counts."""


class LoadSnapshot(TypedDict):
    """What a stream with target_fps makes do with; see load_control.py."""

    step: int
    """0: all that was asked for; the higher, the more is given up."""
    changes: int
    """Of the step, since the start."""
    input_size: int
    """Short side of the network input, in pixels."""
    refine: str
    fps: float
    """Results a second that a live source gets at most."""
    reason: str
    """Why, in numbers; empty at step 0."""
    text: str
    """The step in words."""


class Snapshot(TypedDict):
    """The whole stream at one moment."""

    seconds: float
    """Since the start."""
    stages: dict[str, StageSnapshot]
    sources: dict[str, SourceSnapshot]
    queues: dict[str, int]
    """Messages waiting or in flight, by the queue's endpoint."""
    overflows: dict[str, int]
    """Published messages that some subscriber could not take, by source."""
    unwritten: dict[str, dict[str, dict[str, int]]]
    """Pictures that are in no file though they should, by video sink, source and reason."""
    load: LoadSnapshot | None
    """None without target_fps, and where the network is in another process."""


class Stats:
    """Counts for one stream; see the module's docstring.

    Args:
        now: the clock, in seconds; tests give their own.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = now()
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}
        self._sources: dict[str, _Source] = {}
        self._queues: dict[str, Callable[[], int]] = {}
        self._overflows: Callable[[], dict[str, int]] = dict
        self._unwritten: dict[str, Callable[[], dict[str, dict[str, int]]]] = {}
        self._statuses: dict[str, Callable[[], SourceStatus]] = {}
        self._load: Callable[[], LoadSnapshot] | None = None

    def worked(self, stage: str, ms: float, sources: Sequence[str]) -> None:
        """A stage has worked on one message for so many milliseconds; the source of each frame."""
        now = self._now()
        with self._lock:
            entry = self._stages.get(stage)
            if entry is None:
                entry = self._stages[stage] = _Stage()
            entry.add(ms, sources, now)

    def dropped(self, stage: str, source: str, reason: str, *, has_poses: bool = False) -> None:
        """A frame of this source will not come further than this stage.

        has_poses: it has become a result before; a sink had no time for it.
        """
        with self._lock:
            if self._statuses and source not in self._sources:
                return  # too late: it was removed
            entry = self._source(source)
            entry.drops[stage, reason] += 1
            if has_poses:
                entry.results_dropped[reason] += 1

    def finished(self, source: str, *, latency_ms: float, people: int) -> None:
        """A frame of this source has become poses, so long after its capture."""
        now = self._now()
        with self._lock:
            self._source(source).add(latency_ms, people, now)

    def watch_queue(self, name: str, depth: Callable[[], int]) -> None:
        """Ask this for a queue's depth whenever somebody wants to know; from any thread."""
        with self._lock:
            self._queues[name] = depth

    def unwatch_queue(self, name: str) -> None:
        """The queue is closed."""
        with self._lock:
            self._queues.pop(name, None)

    def watch_overflows(self, overflows: Callable[[], dict[str, int]]) -> None:
        """Ask the publisher what subscribers could not take whenever somebody wants to know."""
        self._overflows = overflows

    def watch_unwritten(self, sink: str, counts: Callable[[], dict[str, dict[str, int]]]) -> None:
        """Ask a sink what it could not write (by source and reason) whenever wanted."""
        with self._lock:
            self._unwritten[sink] = counts

    def watch_load(self, load: Callable[[], LoadSnapshot]) -> None:
        """Ask this what is given up whenever somebody wants to know."""
        self._load = load

    def watch_source(self, name: str, status: Callable[[], SourceStatus]) -> None:
        """Ask this for a source's status whenever somebody wants to know; from any thread."""
        with self._lock:
            self._source(name)
            self._statuses[name] = status

    def forget_source(self, name: str) -> None:
        """A source was removed: nothing is told of it any more."""
        with self._lock:
            self._sources.pop(name, None)
            self._statuses.pop(name, None)
            self._stages.pop(f"decoder:{name}", None)
            for stage in self._stages.values():
                stage.frames.pop(name, None)
                stage.durations.pop(name, None)

    def snapshot(self) -> Snapshot:
        """All of it at this moment, as plain numbers."""
        now = self._now()
        with self._lock:
            return {
                "seconds": now - self._started,
                "stages": {name: stage.snapshot(now) for name, stage in self._stages.items()},
                "sources": {
                    name: source.snapshot(now, self._status(name))
                    for name, source in self._sources.items()
                },
                "queues": {name: depth() for name, depth in self._queues.items()},
                "overflows": self._overflows(),
                "unwritten": {sink: counts() for sink, counts in self._unwritten.items()},
                "load": None if self._load is None else self._load(),
            }

    def prometheus_registry(self) -> CollectorRegistry:
        """A registry that reads these counts whenever it is scraped. Times are in seconds."""
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()
        registry.register(_Collector(self))
        return registry

    def _source(self, name: str) -> _Source:
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = _Source()
        return source

    def _status(self, name: str) -> SourceStatus | None:
        return self._statuses[name]() if name in self._statuses else None


class _Histogram:
    """Counts by bucket, for Prometheus."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def cumulated(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), the last bound being +Inf."""
        bounds = [*(str(bound) for bound in _BUCKETS_S), "+Inf"]
        total = 0
        pairs: list[tuple[str, float]] = []
        for bound, count in zip(bounds, self.counts, strict=True):
            total += count
            pairs.append((bound, total))
        return pairs


class _Rate:
    """Events a second over the last seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_RECENT)

    def add(self, now: float) -> None:
        self._times.append(now)

    def per_second(self, now: float) -> float:
        recent = [moment for moment in self._times if moment > now - _RATE_SECONDS]
        # The first event opens the interval that the others are counted in.
        return (len(recent) - 1) / max(now - recent[0], 1e-9) if len(recent) > 1 else 0.0


class _Stage:
    """One stage; guarded by the lock of Stats, like all below."""

    def __init__(self) -> None:
        self.calls = 0
        self.num_frames = 0
        self.total_ms = 0.0
        self.recent_ms: deque[float] = deque(maxlen=_RECENT)
        self.rate = _Rate()
        self.frames: Counter[str] = Counter()  # by source
        self.durations: dict[str, _Histogram] = {}  # of the calls that held a source's frame

    def add(self, ms: float, sources: Sequence[str], now: float) -> None:
        self.calls += 1
        self.num_frames += len(sources)
        self.total_ms += ms
        self.recent_ms.append(ms)
        for source in sources:
            self.rate.add(now)
            self.frames[source] += 1
            histogram = self.durations.get(source)
            if histogram is None:
                histogram = self.durations[source] = _Histogram()
            histogram.add(ms / 1e3)

    def snapshot(self, now: float) -> StageSnapshot:
        p50_ms, p95_ms = _percentiles(self.recent_ms, (0.50, 0.95))
        return {
            "calls": self.calls,
            "frames": self.num_frames,
            "fps": self.rate.per_second(now),
            "total_ms": self.total_ms,
            "mean_ms": self.total_ms / self.calls,
            "p50_ms": p50_ms,
            "p95_ms": p95_ms,
        }


class _Source:
    def __init__(self) -> None:
        self.results = 0
        self.people = 0
        self.recent_ms: deque[float] = deque(maxlen=_RECENT)
        self.rate = _Rate()
        self.latency = _Histogram()
        self.drops: Counter[tuple[str, str]] = Counter()  # by stage and reason
        self.results_dropped: Counter[str] = Counter()  # those of them that had poses, by reason

    def add(self, latency_ms: float, people: int, now: float) -> None:
        self.results += 1
        self.people = people
        self.recent_ms.append(latency_ms)
        self.rate.add(now)
        self.latency.add(latency_ms / 1e3)

    def snapshot(self, now: float, status: SourceStatus | None) -> SourceSnapshot:
        dropped: Counter[str] = Counter()
        dropped_at: dict[str, dict[str, int]] = {}
        for (stage, reason), count in self.drops.items():
            dropped[reason] += count
            dropped_at.setdefault(stage, {})[reason] = count
        latency_ms = {}
        if self.recent_ms:
            values = _percentiles(self.recent_ms, (0.50, 0.95, 0.99))
            latency_ms = dict(zip(("p50", "p95", "p99"), values, strict=True))
        told = status or SourceStatus()
        return {
            "state": "" if status is None else told.state.value,
            "reason": told.reason,
            "since_unix_s": told.since_unix_s,
            "retries": dict(told.retries),
            "tainted": told.tainted,
            "left_out": told.left_out,
            "results": self.results,
            "fps": self.rate.per_second(now),
            "people": self.people,
            "latency_ms": latency_ms,
            "dropped": dict(dropped - self.results_dropped),
            "dropped_at": dropped_at,
            "results_dropped": dict(self.results_dropped),
        }


def _percentiles(values: Iterable[float], fractions: Sequence[float]) -> list[float]:
    """The nearest-rank percentiles of one or more values."""
    ordered = sorted(values)
    return [ordered[round(fraction * (len(ordered) - 1))] for fraction in fractions]


class _Collector:
    """Hands the counts to prometheus_client when a page is asked for."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        with stats._lock:
            metrics = [
                *_stage_metrics(stats._stages),
                *_source_metrics(stats._sources),
                _queue_metric(stats._queues),
                _overflow_metric(stats._overflows()),
                _unwritten_metric({sink: read() for sink, read in stats._unwritten.items()}),
                *_status_metrics({name: read() for name, read in stats._statuses.items()}),
                *([] if stats._load is None else _load_metrics(stats._load())),
            ]
        yield from metrics


def _stage_metrics(stages: dict[str, _Stage]) -> Iterator[Metric]:
    from prometheus_client.core import (
        CounterMetricFamily,
        HistogramMetricFamily,
    )

    labels = ["stream", "stage"]
    durations = HistogramMetricFamily(
        "pose_stage_duration_seconds", "Work on one message with a frame of the stream", None, None,
        labels,
    )  # fmt: skip
    frames = CounterMetricFamily("pose_frames", "Frames a stage has worked on", None, labels)
    for name, stage in stages.items():
        for source, histogram in stage.durations.items():
            durations.add_metric([source, name], histogram.cumulated(), histogram.total_s)
            frames.add_metric([source, name], stage.frames[source])
    yield durations
    yield frames


def _source_metrics(sources: dict[str, _Source]) -> Iterator[Metric]:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    latency = HistogramMetricFamily(
        "pose_end_to_end_latency_seconds", "Capture to poses", None, None, ["stream"]
    )
    people = GaugeMetricFamily("pose_persons", "People in the last frame", None, ["stream"])
    drops = CounterMetricFamily(
        "pose_frames_dropped", "Frames that came no further", None, ["stream", "stage", "reason"]
    )
    for name, source in sources.items():
        latency.add_metric([name], source.latency.cumulated(), source.latency.total_s)
        people.add_metric([name], source.people)
        for (stage, reason), count in source.drops.items():
            drops.add_metric([name, stage, reason], count)
    yield from (latency, people, drops)


def _queue_metric(queues: dict[str, Callable[[], int]]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    depths = GaugeMetricFamily("pose_queue_depth", "Messages waiting or in flight", None, ["queue"])
    for name, depth in queues.items():
        depths.add_metric([name], depth())
    return depths


def _overflow_metric(overflows: dict[str, int]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    metric = CounterMetricFamily(
        "pose_messages_overflowed", "Messages that some subscriber could not take", None, ["stream"]
    )
    for name, count in overflows.items():
        metric.add_metric([name], count)
    return metric


def _unwritten_metric(unwritten: dict[str, dict[str, dict[str, int]]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    metric = CounterMetricFamily(
        "pose_frames_unwritten", "Frames that a sink could not write to its disk", None,
        ["stream", "sink", "reason"],
    )  # fmt: skip
    for sink, sources in unwritten.items():
        for name, counts in sources.items():
            for reason, count in counts.items():
                metric.add_metric([name, sink, reason], count)
    return metric


def _load_metrics(load: LoadSnapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    yield GaugeMetricFamily("pose_load_step", "0: nothing is given up", value=load["step"])
    yield CounterMetricFamily("pose_load_changes", "Changes of the step", value=load["changes"])
    yield GaugeMetricFamily("pose_load_input_size", "Short side, pixels", value=load["input_size"])
    yield GaugeMetricFamily("pose_load_fps", "Results a second of a source", value=load["fps"])


def _status_metrics(statuses: dict[str, SourceStatus]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ["stream"]
    up = GaugeMetricFamily("pose_source_up", "1 while frames come", None, labels)
    states = GaugeMetricFamily(
        "pose_source_state", "1 for the state that the source is in", None, ["stream", "state"]
    )
    retries = CounterMetricFamily(
        "pose_source_retries", "Connections lost or not made", None, ["stream", "reason"]
    )
    tainted = CounterMetricFamily(
        "pose_frames_tainted", "Frames damaged, or predicted from damaged ones", None, labels
    )
    left_out = CounterMetricFamily(
        "pose_frames_left_out", "Frames that max_fps kept back", None, labels
    )
    for name, status in statuses.items():
        up.add_metric([name], float(status.state is SourceState.LIVE))
        for state in SourceState:
            states.add_metric([name, state.value], float(status.state is state))
        for word, count in status.retries.items():
            retries.add_metric([name, word], count)
        tainted.add_metric([name], status.tainted)
        left_out.add_metric([name], status.left_out)
    yield from (up, states, retries, tainted, left_out)
