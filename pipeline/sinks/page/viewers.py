"""Who looks at which source, and how: the page's audience. Newest wins for each of them.

    viewer: wants {cam1: View, ...} --.
                                      |--> Audience.wanted(cam1) --> the sink makes just these
    sent, not yet acknowledged: <= 2 -'                                     |
    viewer.receive() <------------- Audience.deliver(cam1, {View: bytes}) <-'

A viewer is due a source's frame while fewer than two of them are on their way to it, so a slow one
costs neither memory nor encoding, and never sees what is old. All of this belongs to the event
loop's thread, except wanted(). This file knows neither pictures nor sockets.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

_ON_THEIR_WAY = 2  # frames of one source; one would leave the line idle while it is acknowledged


class View(NamedTuple):
    """How a viewer wants a source's frames."""

    kind: Literal["message", "picture"]
    """A message for the page, which draws itself; or a picture that is drawn upon."""
    width: int
    """Pixels at most; 0: no picture, for a message."""


class Viewer:
    """One client."""

    def __init__(self, audience: Audience, now: Callable[[], float]) -> None:
        self.wants: dict[str, View] = {}
        """By source."""
        self.heard = 0
        """Messages that came from it, lately."""
        self._audience, self._now = audience, now
        self._on_their_way: Counter[str] = Counter()
        self._waiting: list[bytes] = []
        self._changed = asyncio.Event()
        self._waits_since: float | None = None

    def watch(self, wants: Mapping[str, View]) -> None:
        """From now on these sources, so."""
        sources = {*self.wants, *wants}
        self.wants = dict(wants)
        for source in sources:
            self._audience.reckon(source)

    async def receive(self) -> bytes:
        """The next frame for this viewer, as soon as there is one."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.pop(0)

    def acknowledge(self, source: str) -> None:
        """A frame of the source has been seen, so the next one is due."""
        if self._on_their_way[source] > 0:
            self._on_their_way[source] -= 1
            self._waits_since = self._now() if self._on_their_way.total() else None
            self._audience.reckon(source)

    @property
    def silent_seconds(self) -> float:
        """How long it has acknowledged nothing, though something was sent."""
        return 0.0 if self._waits_since is None else self._now() - self._waits_since

    def is_due(self, source: str) -> bool:
        return source in self.wants and self._on_their_way[source] < _ON_THEIR_WAY

    def take(self, source: str, body: bytes) -> None:
        if self._waits_since is None:
            self._waits_since = self._now()
        self._on_their_way[source] += 1
        self._waiting.append(body)
        self._changed.set()


class Audience:
    """All viewers.

    Args:
        now: the clock, in seconds; tests give their own.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._viewers: set[Viewer] = set()
        self._wanted: dict[str, frozenset[View]] = {}  # replaced whole, so any thread may read

    def __len__(self) -> int:
        return len(self._viewers)

    def join(self) -> Viewer:
        viewer = Viewer(self, self._now)
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        for source in viewer.wants:
            self.reckon(source)

    def wanted(self, source: str) -> frozenset[View]:
        """The views that somebody is due of this source; from any thread, in no time."""
        return self._wanted.get(source, frozenset())

    def deliver(self, source: str, bodies: Mapping[View, bytes]) -> None:
        """A frame of the source, to everybody who is due it."""
        for viewer in self._viewers:
            if viewer.is_due(source):
                body = bodies.get(viewer.wants[source])
                if body is not None:
                    viewer.take(source, body)
        self.reckon(source)

    def reckon(self, source: str) -> None:
        """Find out anew what is wanted of the source."""
        views = frozenset(v.wants[source] for v in self._viewers if v.is_due(source))
        if views:
            self._wanted[source] = views
        else:
            self._wanted.pop(source, None)
