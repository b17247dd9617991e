"""What a stream's process holds at a moment (memory, files, threads), and what its sources count.

    /proc --------------------.
    /api/streams, /metrics ----+--> Meter.sample() --> soak_verdicts.Sample

Asks from outside, as a monitor would. Linux only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support.soak_verdicts import Sample, SourceCount

_ALIKE_SECONDS = 1.5  # that all cameras have been live
_AT_ONCE = 40  # requests: more than the page's pool has threads
_ANSWER_SECONDS = 30.0

Metrics = dict[str, list[tuple[dict[str, str], float]]]
"""(labels, value) by name."""


class Meter:
    """Looks at the stream's process, and asks its page, over one connection."""

    def __init__(self, pid: int, page: str) -> None:
        self._process = psutil.Process(pid)
        address = urlsplit(page)
        self._connection = http.client.HTTPConnection(
            str(address.hostname), address.port, _ANSWER_SECONDS
        )
        _fill_pool(page)

    def close(self) -> None:
        self._connection.close()

    def all_live(self, seconds: float) -> bool:
        return _all_live(self._streams(), seconds)

    def sample(self, now: float) -> Sample:
        streams, metrics = self._streams(), _metrics(self._get("/metrics").decode())
        family = [self._process, *self._process.children(recursive=True)]
        return Sample(
            seconds=now,
            rss_mb=self._process.memory_info().rss / 1e6,
            tree_mb=sum(member.memory_info().rss for member in family) / 1e6,
            descriptors=self._descriptors(),
            threads=self._process.num_threads(),
            all_live=_all_live(streams, _ALIKE_SECONDS),
            sources={stream["name"]: _source_count(stream, metrics) for stream in streams},
            overflows=sum(stream["overflows"] for stream in streams),
        )

    def _descriptors(self) -> Counter[str]:
        """Open files by what they are, without the numbers of sockets and pipes."""
        kinds: Counter[str] = Counter()
        for path in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                what = os.readlink(path)
                kinds["video" if what.endswith(".mp4") else re.sub(r"\[\d+\]", "", what)] += 1
        return kinds

    def _streams(self) -> list[dict[str, Any]]:
        streams: list[dict[str, Any]] = json.loads(self._get("/api/streams"))["streams"]
        return streams

    def _get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        return self._connection.getresponse().read()


def _fill_pool(page: str) -> None:
    """Many requests at once: the page's pool makes a thread for each until it has all it may have,
    which would look like a leak were it done little by little."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(urlopen, [page + "healthz"] * 2 * _AT_ONCE))
    for answer in answers:
        answer.close()


def _all_live(streams: list[dict[str, Any]], seconds: float) -> bool:
    return all(s["state"] == "live" and s["for_seconds"] >= seconds for s in streams)


def _metrics(text: str) -> Metrics:
    """(labels, value) by name."""
    found: Metrics = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _source_count(stream: dict[str, Any], metrics: Metrics) -> SourceCount:
    name = stream["name"]

    def total(metric: str, **wanted: str) -> int:
        wanted["stream"] = name
        values = metrics.get(metric, [])
        return int(sum(value for labels, value in values if wanted.items() <= labels.items()))

    for_sinks = total("pose_frames_dropped_total", stage="poses")
    return SourceCount(
        state=stream["state"],
        frames=total("pose_frames_total", stage=f"decoder:{name}"),
        results=total("pose_end_to_end_latency_seconds_count"),
        dropped=total("pose_frames_dropped_total") - for_sinks,
        dropped_results=for_sinks,
        p50_ms=stream["latency_ms"].get("p50", 0.0),
        p99_ms=stream["latency_ms"].get("p99", 0.0),
    )
