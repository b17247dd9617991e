"""What the page tells and takes as JSON: streams, health, metrics; nothing of HTTP itself.

    GET /api/streams  streams()      how every source does
    POST, DELETE      add(), remove()   network sources only, options from a list
    GET /healthz      health()       whether every stage lives, and which camera is down
    GET /metrics      metrics()      Prometheus

Anybody who may see the page may use it, so it takes no path of this machine, and tells no URL.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from common.redaction import redact
from pipeline.config import SourceConfig
from pipeline.runtime.stats import Stats
from pipeline.runtime.status import StreamStatus
from pipeline.sources.status import SourceState

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp")
"""What a source that is added from outside may be."""
OPTIONS = ("input", "name", "transport", "max_fps", "roi", "rotation")
"""What may be said of it."""
_LONGEST_INPUT = 2048
_LONGEST_NAME = 64
_FINE = (SourceState.LIVE, SourceState.ENDED)


class ApiError(Exception):
    """A request that cannot be met: HTTP's status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class PageSubject:
    """What the page tells of; every callable may be called from another thread."""

    stats: Stats
    status: Callable[[], Mapping[str, StreamStatus]]
    """How each source does, by name."""
    stages: Callable[[], Mapping[str, bool]]
    """Whether each stage that the stream cannot do without is well, by name."""
    add_source: Callable[[SourceConfig], str] | None = None
    """Add a source while the stream runs, and say its name; ValueError: it cannot be, and why.
    None: this stream cannot do that."""
    remove_source: Callable[[str], None] | None = None
    """End a source; ValueError: it cannot be. None: this stream cannot do that."""


class PageApi:
    """The subject as JSON."""

    def __init__(self, subject: PageSubject) -> None:
        self._subject = subject

    def names(self) -> list[str]:
        return list(self._subject.status())

    def streams(self) -> dict[str, Any]:
        """Every source's state, in the units of docs/schema.md."""
        now = time.time()
        snapshot = self._subject.stats.snapshot()
        overflows, load = snapshot["overflows"], snapshot["load"]
        return {
            "unix_s": round(now, 3),
            "can_change": self._subject.add_source is not None,
            "load": None if load is None else dict(load),
            "streams": [
                {
                    "name": name,
                    "state": status.state,
                    "reason": redact(status.reason),
                    "for_seconds": _age(status.since_unix_s, now),
                    "fps": round(status.fps, 2),
                    "latency_ms": {key: round(ms, 1) for key, ms in status.latency_ms.items()},
                    "dropped": dict(status.dropped),
                    "retries": dict(status.retries),
                    "tainted": status.tainted,
                    "overflows": overflows.get(name, 0),
                }
                for name, status in self._subject.status().items()
            ],
        }

    def add(self, body: bytes) -> dict[str, Any]:
        """Add the source that a JSON object describes; ApiError says why not."""
        if self._subject.add_source is None:
            raise ApiError(501, "this stream's sources cannot be changed while it runs")
        config = source_from_json(body)
        try:
            return {"name": self._subject.add_source(config)}
        except ValueError as error:
            raise ApiError(409, redact(error)) from None

    def remove(self, name: str) -> dict[str, Any]:
        """End a source; ApiError says why not."""
        if self._subject.remove_source is None:
            raise ApiError(501, "this stream's sources cannot be changed while it runs")
        if name not in self.names():
            raise ApiError(404, "there is no stream of that name")
        try:
            self._subject.remove_source(name)
        except ValueError as error:
            raise ApiError(409, redact(error)) from None
        return {"name": name}

    def health(self, *, in_detail: bool) -> tuple[int, dict[str, Any]]:
        """(HTTP status, answer): 200 while every stage lives, cameras that are down or not."""
        stages = self._subject.stages()
        is_well = all(stages.values())
        answer: dict[str, Any] = {"status": "ok" if is_well else "failed"}
        if in_detail:
            states = {name: status.state for name, status in self._subject.status().items()}
            answer["stages"] = {name: "ok" if good else "failed" for name, good in stages.items()}
            answer["streams"] = states
            answer["down"] = [name for name, state in states.items() if state not in _FINE]
        return (200 if is_well else 503), answer

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """(text, content type) for Prometheus."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self._subject.stats.prometheus_registry()), content_type


def source_from_json(body: bytes) -> SourceConfig:
    """The source that somebody outside asks for; ApiError (400) where it may not be."""
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body must be JSON") from None
    if not isinstance(wanted, dict) or not isinstance(wanted.get("input"), str):
        raise ApiError(400, 'the body must be an object such as {"input": "rtsp://camera/live"}')
    unknown = set(wanted) - set(OPTIONS)
    if unknown:
        raise ApiError(400, f"unknown option; known: {', '.join(OPTIONS)}")
    _check_input(wanted["input"])
    name = wanted.get("name")
    if isinstance(name, str) and (len(name) > _LONGEST_NAME or not name.isprintable()):
        raise ApiError(400, f"a name has at most {_LONGEST_NAME} characters that can be seen")
    try:
        return SourceConfig.model_validate(wanted)
    except ValidationError as error:
        problem = error.errors()[0]  # without its input, which may hold a password
        key = ".".join(str(part) for part in problem["loc"])
        raise ApiError(400, f"{key}: {problem['msg']}") from None


def _check_input(text: str) -> None:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in SCHEMES or not rest.strip("/"):
        raise ApiError(400, f"input must be a URL of {', '.join(SCHEMES)}")
    if len(text) > _LONGEST_INPUT or not text.isprintable() or " " in text:
        raise ApiError(400, "input must be a URL: no spaces, at most 2048 characters")


def _age(since_unix_s: float | None, now: float) -> float | None:
    return None if since_unix_s is None else round(max(0.0, now - since_unix_s), 1)
