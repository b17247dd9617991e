"""What a sink is told of a stream, where there is none."""

from collections.abc import Sequence
from typing import Any

from pipeline.config import StreamConfig
from pipeline.runtime.stats import Stats
from pipeline.sinks.table import SinkContext


def context_of(
    config: StreamConfig, *, names: Sequence[str] = ("cam",), **changes: Any
) -> SinkContext:
    """Of a stream with sources of these names, which are files."""
    fields: dict[str, Any] = {
        "config": config,
        "session": "s",
        "names": names,
        "any_live": False,
        "per_source": len(names) > 1,
        "max_streams": len(names),
        "stats": Stats(),
        "status": dict,
        "stages": dict,
        "add_source": None,
        "remove_source": None,
    }
    return SinkContext(**{**fields, **changes})
