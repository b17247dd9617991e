"""The sources of a stream, which come and go while it runs: opened, named, started, forgotten.

    add ---> open, name, one stage and one queue ---> receiver in the network's first stage
    remove -> stop -> its stage ends, END passes ---> two seconds on: forgotten, the name is free

The two seconds let the last frames leave at the other end and the status `ended` reach subscribers.
What is later still (a sink that hung) is recognised by Departed and left out. This file starts no
sink and knows no network.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from common.settings import ConfigError
from pipeline.config import SourceConfig
from pipeline.gpu.nvdec import decoding_device
from pipeline.gpu.placement import Placement
from pipeline.messages import Frame
from pipeline.runtime.queues.queue import Queue
from pipeline.runtime.stage import Stage
from pipeline.runtime.stats import Stats
from pipeline.sources.open import open_source, settings_of
from pipeline.sources.source import Source

_LINGER_SECONDS = 2.0
_KEEP_DEPARTED_SECONDS = 600.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Member:
    source: Source
    stage: Stage
    removed: bool = False
    ended_at: float | None = None  # time.monotonic() when that was first seen


class Departed:
    """Sources that are forgotten: what they captured before comes too late. From any thread."""

    def __init__(self) -> None:
        self._at_ns: dict[str, int] = {}

    def add(self, name: str) -> None:
        now = time.monotonic_ns()
        horizon = now - round(_KEEP_DEPARTED_SECONDS * 1e9)
        recent = {other: at for other, at in self._at_ns.items() if at > horizon}
        self._at_ns = {**recent, name: now}  # replaced whole: others read it meanwhile

    def had(self, frame: Frame) -> bool:
        """Whether the frame is of a source that has gone since; it may be back under its name."""
        return frame.captured_ns < self._at_ns.get(frame.source, 0)


class SourceSet:
    """All sources of this process.

    Args:
        stats: where their stages count.
        stop: the stream's stop event.
        queue: the i-th source's queue towards the network.
        placement: the GPUs that run the network in this process, which may decode as well.
        may_be_empty: the last source can be removed too.
        opened: sources that need no opening, by their `input` in a configuration.
    """

    def __init__(
        self,
        *,
        stats: Stats,
        stop: threading.Event,
        queue: Callable[[int, SourceConfig], Queue],
        placement: Placement,
        may_be_empty: bool = False,
        opened: Mapping[str, Source] | None = None,
    ) -> None:
        self.departed = Departed()
        self._stats = stats
        self._stop = stop
        self._queue = queue
        self._placement = placement
        self._may_be_empty = may_be_empty
        self._opened = opened or {}
        self._numbers = count()
        self._lock = threading.Lock()
        self._members: dict[str, _Member] = {}
        self._running = False

    def __iter__(self) -> Iterator[Source]:
        """Those that are not forgotten, in the order in which they came."""
        return iter([member.source for member in self._members.copy().values()])

    def __len__(self) -> int:
        return len(self._members)

    @property
    def stages(self) -> list[Stage]:
        return [member.stage for member in self._members.copy().values()]

    def add(self, config: SourceConfig, *, connect: Callable[[Queue], bool] | None = None) -> str:
        """Open a source, and start it if the others run.

        Args:
            config: of the source.
            connect: makes the network receive from the queue; False where it is at its end. None:
                it knows of the queue already.
        Returns:
            Its name: as configured, or made from the input and unlike all others.
        Raises:
            ConfigError: the configured name is taken, the stream has ended, or a GPU is to decode
                and cannot.
            SourceError: there is nothing to read.
        """
        gpu = self._placement.emptiest()
        source = self._opened.get(config.input) or self._open(config, gpu)
        with self._lock:
            self._give_name(source, wanted=config.name)
            queue = self._queue(next(self._numbers), config)
            # Not fatal: the others go on, and what this one gave is finished.
            stage = Stage(
                f"decoder:{source.name}", frames=source.frames, outputs=[queue], fatal=False,
                stats=self._stats, stop=self._stop,
            )  # fmt: skip
            if connect is not None and not connect(queue):
                raise ConfigError("the stream has ended; nothing can be added to it")
            self._members[source.name] = _Member(source, stage)
            self._placement.put(source.name, gpu)
            self._stats.watch_source(source.name, partial(getattr, source, "status"))
            if self._running:
                stage.start()
        return source.name

    def _open(self, config: SourceConfig, gpu: int | None) -> Source:
        settings = replace(
            settings_of(config), device=decoding_device(config.decode, self._placement.device(gpu))
        )
        return open_source(config.input, name=config.name, settings=settings)

    def start(self) -> None:
        with self._lock:
            self._running = True
            for stage in self.stages:
                stage.start()

    def remove(self, name: str) -> None:
        """End a source; returns at once. forget_ended() does the rest.

        Raises:
            ConfigError: there is none of that name, or it is the last one.
        """
        with self._lock:
            member = self._members.get(name)
            if member is None or member.removed:
                known = ", ".join(other for other, m in self._members.items() if not m.removed)
                raise ConfigError(f"there is no source named {name!r}; known: {known}")
            others = (other for other in self._members.values() if other is not member)
            if not self._may_be_empty and all(map(self._is_ending, others)):
                raise ConfigError(
                    f"{name!r} is the last source; add another one first, or stop the stream"
                )
            member.removed = True
        member.source.stop()
        _log.info("%s: removed", name)

    def stop(self) -> None:
        """Ask all of them to end."""
        for source in self:
            source.stop()

    def forget_ended(self) -> list[str]:
        """Forget removed sources that ended two seconds ago; their names, which are free now."""
        gone = []
        with self._lock:
            for name, member in self._members.items():
                if not member.removed or member.stage.is_alive():
                    continue
                if member.ended_at is None:
                    member.ended_at = time.monotonic()
                elif time.monotonic() - member.ended_at > _LINGER_SECONDS:
                    gone.append(name)
            for name in gone:
                error = self._members.pop(name).stage.error
                if error is not None:
                    _log.warning("%s: %s", name, error.__cause__ or error)
                self.departed.add(name)
                self._placement.forget_source(name)
        return gone

    def _is_ending(self, member: _Member) -> bool:
        return member.removed or (self._running and not member.stage.is_alive())

    def _give_name(self, source: Source, *, wanted: str | None) -> None:
        if wanted is None:
            source.name = _free_name(source.name, self._members)
        elif wanted in self._members:
            removed = self._members[wanted].removed
            state = "is just being removed; try again in a moment" if removed else "is taken"
            raise ConfigError(f"the source name {wanted!r} {state}")


def _free_name(wanted: str, taken: Collection[str]) -> str:
    """The name, or with -2, -3, ... where it is taken."""
    numbered = (f"{wanted}-{number}" for number in count(2))
    return wanted if wanted not in taken else next(n for n in numbered if n not in taken)
