"""What a sink is: something that is called with every Poses. Also one of the user's own.

    class Alarm:
        needs_pixels = False

        def __call__(self, poses: Poses) -> None: ...

    Stream(config, sinks={"alarm": Alarm()})

Each sink has a thread and a queue of its own, so a slow one holds up neither the network of a live
source nor the other sinks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from pipeline.messages import Poses

OwnSink = Callable[[Poses], object]
"""A sink of the user's: anything that can be called with a Poses. Three more things are looked for:

- `close()`: called once after the last Poses, in the sink's thread; always, whatever the end was.
- `forget_source(name)`: a source was removed while the stream runs; see ForgetsSources.
- `needs_pixels`: False, where the sink never looks at a picture: it then gets frames without
  pixels, so that what it keeps takes no memory. By default it gets them. With the setting `privacy`
  no sink does.

What it returns is ignored. What it raises ends the stream; Stream.error says what it was.
"""


class Sink(Protocol):
    """A sink of the stream's: called with every Poses, closed at the end, whatever that was."""

    def __call__(self, poses: Poses) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class ForgetsSources(Protocol):
    """A sink (or the tracker) that keeps something of each source."""

    def forget_source(self, name: str) -> None:
        """Finish what belongs to a source that has gone; another may come under its name."""


@runtime_checkable
class CountsUnwritten(Protocol):
    """A sink that goes on where its disk cannot be written, and counts what is missing."""

    def unwritten(self) -> dict[str, dict[str, int]]:
        """Frames that are in no file, by source and reason; from any thread."""


@runtime_checkable
class NeedsMainThread(Protocol):
    """A sink that shows windows, which only the main thread may do."""

    def run(self, stop: threading.Event, *, meanwhile: Callable[[], None] | None = None) -> None:
        """Work until the stream ends or `stop` is set, which a user can do here too.

        Args:
            meanwhile: what else the main thread has to look after; called many times a second.
        """


class Adapted:
    """A sink of the user's, with all that the stream asks of one."""

    def __init__(self, name: str, sink: OwnSink) -> None:
        """ValueError where it cannot be called."""
        if not callable(sink):
            raise ValueError(
                f"sink {name!r} must be something to call with each Poses, got {sink!r}"
            )
        self._sink = sink
        self._pixels = bool(getattr(sink, "needs_pixels", True))

    def __call__(self, poses: Poses) -> None:
        self._sink(poses if self._pixels else poses.without_pixels())

    def forget_source(self, name: str) -> None:
        forget = getattr(self._sink, "forget_source", None)
        if forget is not None:
            forget(name)

    def close(self) -> None:
        close = getattr(self._sink, "close", None)
        if close is not None:
            close()
