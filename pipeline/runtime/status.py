"""How each source of a stream does, as the publisher, the page and a program are told.

Stats -- snapshot --> statuses() --> StreamStatus by source
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from pipeline.runtime.stats import LoadSnapshot, Snapshot, SourceSnapshot


class Degraded(TypedDict):
    """What a stream gives up under a load that does not fit; all its sources alike."""

    step: int
    input_size: int
    refine: str
    fps: float
    reason: str


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How one source is doing; what a status message says of it."""

    state: str
    """In one word, one of pipeline.sources.status.SourceState; see docs/schema.md."""
    fps: float
    """Frames with poses a second, lately."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Frames that did not become poses since the start, by reason."""
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """Capture-to-pose latency, lately: p50, p95, p99."""
    reason: str = ""
    """Why the source is in that state; empty while all is well."""
    since_unix_s: float | None = None
    """Wall clock at which the state began; None where the source is in another process."""
    retries: Mapping[str, int] = field(default_factory=dict)
    """How often its connection was lost or did not come about, by reason in one word."""
    tainted: int = 0
    """Frames that were damaged, or predicted from damaged ones."""
    degraded: Degraded | None = None
    """What is given up because the load does not fit; None while nothing is."""


def statuses(snapshot: Snapshot) -> dict[str, StreamStatus]:
    """The status of every source, by name."""
    given_up = _degraded(snapshot["load"])
    return {name: _status(source, given_up) for name, source in snapshot["sources"].items()}


def _status(source: SourceSnapshot, given_up: Degraded | None) -> StreamStatus:
    return StreamStatus(
        # Of a source in another process only its results are known.
        state=source["state"] or ("live" if source["fps"] > 0 else "stalled"),
        reason=source["reason"],
        since_unix_s=source["since_unix_s"] if source["state"] else None,
        retries=source["retries"],
        tainted=source["tainted"],
        fps=source["fps"],
        dropped=source["dropped"],
        latency_ms=source["latency_ms"],
        degraded=given_up,
    )


def _degraded(load: LoadSnapshot | None) -> Degraded | None:
    """None where nothing is given up."""
    if load is None or load["step"] == 0:
        return None
    return {
        "step": load["step"],
        "input_size": load["input_size"],
        "refine": load["refine"],
        "fps": load["fps"],
        "reason": load["reason"],
    }
