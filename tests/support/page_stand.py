"""A page without a stream: two cameras whose pictures and states the test says, a real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np

from pipeline.config import PageConfig, SourceConfig
from pipeline.messages import Poses
from pipeline.runtime.stats import Stats
from pipeline.runtime.status import StreamStatus
from pipeline.sinks.page.api import PageSubject
from pipeline.sinks.page.page import Page
from tests.support.people import poses_of, standing_person

SIZE = (360, 640)
COLOR_BGR = (150, 60, 120)
"""Of the pictures: no skeleton has a colour like it."""
LIVE = StreamStatus(
    state="live", fps=15.0, latency_ms={"p50": 31.0, "p95": 44.0, "p99": 61.0}, dropped={"newer": 3}
)
LOST = StreamStatus(
    state="reconnecting", fps=0.0, reason="Connection refused", since_unix_s=1_795_300_000.0
)


class Stand:
    """What the page tells of, and a feeder that plays the stream."""

    def __init__(self) -> None:
        self.statuses: dict[str, StreamStatus] = {"cam1": LIVE, "door": LIVE}
        self.stages = {"inference": True, "page": True}
        self.added: list[SourceConfig] = []
        self.removed: list[str] = []
        self.stats = Stats()
        self.index = 0

    def subject(self, *, can_change: bool = True) -> PageSubject:
        return PageSubject(
            stats=self.stats,
            status=self._status,
            stages=lambda: self.stages,
            add_source=self._add if can_change else None,
            remove_source=self._remove if can_change else None,
        )

    def poses(self, source: str = "cam1", *, image: np.ndarray | None = None) -> Poses:
        """The next frame: two people, one with an id, walking over a plain picture."""
        self.index += 1
        if image is None:
            image = np.full((*SIZE, 3), COLOR_BGR, np.uint8)
        height, width = image.shape[:2]
        x = width * (0.3 + 0.002 * (self.index % 200))
        people = np.stack(
            [
                standing_person(x, 0.1 * height, 0.8 * height),
                standing_person(x + 0.25 * width, 0.2 * height, 0.6 * height),
            ]
        )
        smoothed = people[..., :2] + np.float32(1)
        return poses_of(
            people,
            image=image,
            source=source,
            index=self.index,
            captured_ns=time.time_ns() - 1_795_300_000_123_400_000,  # its wall clock is now
            ids=np.array([7, -1]),
            smoothed=smoothed,
        )

    def _status(self) -> Mapping[str, StreamStatus]:
        return dict(self.statuses)

    def _add(self, config: SourceConfig) -> str:
        if config.name in self.statuses:
            raise ValueError(f"the source name {config.name!r} is taken")
        self.added.append(config)
        return config.name or "camera"

    def _remove(self, name: str) -> None:
        self.removed.append(name)


@contextmanager
def serving(
    stand: Stand, *, privacy: bool = False, can_change: bool = True, **config: Any
) -> Iterator[Page]:
    """A page at a free port."""
    settings = PageConfig(**{"serve": "127.0.0.1:0", **config})
    page = Page(settings, stand.subject(can_change=can_change), privacy=privacy)
    try:
        yield page
    finally:
        page.close()


@contextmanager
def feeding(page: Page, stand: Stand, *sources: str, fps: float = 20.0) -> Iterator[None]:
    """Frames of these cameras, until the block ends."""
    stop = threading.Event()

    def feed() -> None:
        while not stop.wait(1 / fps):
            for source in sources:
                page(stand.poses(source))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def split_body(body: bytes) -> tuple[dict[str, Any], bytes]:
    """(message, JPEG) of a frame as the WebSocket brings it."""
    length = int.from_bytes(body[:4], "big")
    return json.loads(body[4 : 4 + length]), body[4 + length :]


def picture_of(jpeg: bytes) -> np.ndarray:
    """(h, w, 3) int BGR."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None, "no JPEG"
    return np.asarray(picture).astype(int)
