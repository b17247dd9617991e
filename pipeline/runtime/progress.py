"""The line that a user sees while a stream runs, and the summary at its end. Reads stats alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table

from common.redaction import RedactedFormatter
from pipeline.runtime.stats import SourceSnapshot, Stats
from pipeline.sources.source import Source

_console = Console(stderr=True)


def start_logging(*, quiet: bool) -> None:
    """Log lines go to standard error, above the progress line; quiet leaves warnings and errors."""
    handler: logging.Handler
    if _console.is_terminal:
        handler = RichHandler(console=_console, show_path=False, show_time=False, markup=False)
        handler.setFormatter(RedactedFormatter("%(message)s"))
    else:  # a file or a service's journal: every message one line, however long
        handler = logging.StreamHandler()
        handler.setFormatter(RedactedFormatter("%(levelname)s %(message)s"))
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


class ProgressLine:
    """Shows how each source does, four times a second, where there is a terminal to show it on."""

    def __init__(self, stats: Stats, sources: Sequence[Source], *, quiet: bool) -> None:
        self._stats = stats
        self._totals = {source.name: source.num_frames for source in sources}
        self._quiet = quiet
        self._started = time.monotonic()
        self._live = Live(
            console=_console, get_renderable=self._table, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Self:
        if not self._quiet and _console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if not self._quiet:
            for line in self._summary():
                _console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        snapshot = self._stats.snapshot()
        load = snapshot["load"]
        for name, source in snapshot["sources"].items():
            table.add_row(name, *self._cells(name, source, source["fps"]))
        if load is not None and load["step"]:
            table.add_row("load", f"step {load['step']}", load["text"])
        return table

    def _cells(self, name: str, source: SourceSnapshot, fps: float) -> list[str]:
        total = self._totals.get(name)
        median_ms = source["latency_ms"].get("p50")
        dropped = sum(source["dropped"].values())
        return [
            f"frame {source['results']}" + (f" of {total}" if total else ""),
            f"{fps:.1f} fps",
            "" if median_ms is None else f"{median_ms:.0f} ms",
            f"{source['people']} people",
            f"{dropped} dropped" if dropped else "",
            _trouble(source),
        ]

    def _summary(self) -> list[str]:
        seconds = max(time.monotonic() - self._started, 1e-9)
        snapshot = self._stats.snapshot()
        lines = []
        for name, source in snapshot["sources"].items():
            drops, left_out = _by_reason(source["dropped"]), _by_reason(source["results_dropped"])
            lines.append(
                f"{name}: {source['results']} frames in {seconds:.1f} s, "
                f"{source['results'] / seconds:.1f} fps, latency "
                f"{source['latency_ms'].get('p50', 0.0):.0f} ms (p95 "
                f"{source['latency_ms'].get('p95', 0.0):.0f})"
                + (f", dropped: {drops}" if drops else "")
                + (f"; left out by a busy sink: {left_out}" if left_out else "")
            )
        stages = ", ".join(
            f"{name} {stage['p50_ms']:.1f}" for name, stage in snapshot["stages"].items()
        )
        if stages:
            lines.append(f"median ms by stage: {stages}")
        for sink, sources in snapshot["unwritten"].items():
            lines += [f"{sink}: {name}: {_not_written(n)}" for name, n in sources.items()]
        return lines


def _not_written(counts: dict[str, int]) -> str:
    return f"frames not written: {_by_reason(counts)}"


def _by_reason(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def _trouble(source: SourceSnapshot) -> str:
    """What the source is doing where no frames come, and why; empty while all is well."""
    if source["state"] in ("", "live", "ended"):
        return ""
    return ": ".join(filter(None, (source["state"], source["reason"])))
