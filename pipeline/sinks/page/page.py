"""The sink of `--serve`: what the page's viewers look at, and nothing that nobody looks at.

    Poses -> wanted by whom? -> picture, shrunk -> JPEG, once for each size -> page_server.py
             nobody: done                      '-> drawn upon (/mjpeg) -> JPEG

It runs in the sink's own thread, so the event loop that serves the page never waits for a JPEG.
In privacy mode no picture is ever looked at: the browser and /mjpeg get skeletons on black.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from nets.skeletons import SKELETONS
from pipeline.config import PageConfig
from pipeline.messages import Poses
from pipeline.sinks.overlay import draw_poses
from pipeline.sinks.page.api import PageSubject
from pipeline.sinks.page.server import PageServer
from pipeline.sinks.page.viewers import View
from pipeline.sinks.schema import encode_json, new_session, pose_message

_HEADER = struct.Struct(">I")


class Page:
    """Serves the page until it is closed. The address is bound when it is made."""

    def __init__(
        self,
        config: PageConfig,
        subject: PageSubject,
        *,
        privacy: bool = False,
        session: str | None = None,
        min_keypoint_score: float = 0.1,
    ) -> None:
        """Bind and serve, so that an address that cannot be used is known at once.

        Args:
            config: where, to whom, how.
            subject: what the page tells of: the stream's counts, its stages, its sources.
            privacy: no pixel is shown.
            session: shared with other sinks of this run; by default a new one.
            min_keypoint_score: see pipeline.sinks.overlay.draw_poses.
        Raises:
            ValueError: the address cannot be bound.
        """
        self._privacy = privacy
        self._quality = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
        self._min_keypoint_score = min_keypoint_score
        self._session = session or new_session()
        # By source, kept when one goes: under its name `seq` may not begin again in this session.
        self._num_messages: Counter[str] = Counter()
        self._server = PageServer(
            config, subject, privacy=privacy, min_keypoint_score=min_keypoint_score
        )
        self.url = self._server.url
        """With the token, where one is asked for."""

    def __call__(self, poses: Poses) -> None:
        self._server.check()
        source = poses.frame.source
        views = self._server.audience.wanted(source)
        if not views:
            return
        shrunk = _Shrunk(poses, privacy=self._privacy)
        message = self._message(poses) if any(view.kind == "message" for view in views) else b""
        bodies = {view: self._body(view, message, shrunk, poses) for view in views}
        self._server.deliver(source, bodies)

    def close(self) -> None:
        """Say goodbye to everybody; waits a moment at most."""
        self._server.close()

    def _message(self, poses: Poses) -> bytes:
        """`pose/1` behind its length; a JPEG may follow."""
        source = poses.frame.source
        message = pose_message(poses, session=self._session, seq=self._num_messages[source])
        self._num_messages[source] += 1
        text = encode_json(message)
        return _HEADER.pack(len(text)) + text

    def _body(self, view: View, message: bytes, shrunk: _Shrunk, poses: Poses) -> bytes:
        if view.kind == "message":
            has_picture = view.width and not self._privacy
            return message + self._jpeg(shrunk.to(view.width)) if has_picture else message
        image = shrunk.to(view.width).copy()
        height, width = poses.frame.size
        scaled = _scaled(poses, np.array([image.shape[1] / width, image.shape[0] / height]))
        skeleton = SKELETONS[poses.skeleton]
        return self._jpeg(
            draw_poses(image, scaled, skeleton, min_keypoint_score=self._min_keypoint_score)
        )

    def _jpeg(self, image: np.ndarray) -> bytes:
        done, jpeg = cv2.imencode(".jpg", image, self._quality)
        assert done, "OpenCV encodes every uint8 BGR picture"
        return bytes(jpeg)


class _Shrunk:
    """One frame's picture at the widths that are asked for, each made once."""

    def __init__(self, poses: Poses, *, privacy: bool) -> None:
        self._frame = poses.frame
        self._privacy = privacy
        self._full: np.ndarray | None = None
        self._by_width: dict[int, np.ndarray] = {}

    def to(self, width: int) -> np.ndarray:
        """(height, width, 3) BGR no wider than this, and never enlarged; not to be written to."""
        height, full_width = self._frame.shown_size
        width = min(width, full_width)
        if width not in self._by_width:
            size = (max(1, round(height * width / full_width)), width)
            if self._privacy:
                self._by_width[width] = np.zeros((*size, 3), np.uint8)
            else:
                self._by_width[width] = self._resized(size)
        return self._by_width[width]

    def _resized(self, size: tuple[int, int]) -> np.ndarray:
        if self._full is None:
            self._full = self._frame.to_host()
        if self._full.shape[:2] == size:
            return self._full
        height, width = size
        shrunk: np.ndarray = cv2.resize(self._full, (width, height), interpolation=cv2.INTER_AREA)
        return shrunk


def _scaled(poses: Poses, scale: np.ndarray) -> Poses:
    """The same people in a picture that was resized by (x, y); pixel centres are at integers."""

    def moved(xy: np.ndarray) -> np.ndarray:
        return np.asarray((xy + 0.5) * scale - 0.5, np.float32)

    changes: dict[str, Any] = {
        "keypoints": np.concatenate(
            [moved(poses.keypoints[..., :2]), poses.keypoints[..., 2:]], axis=-1
        )
    }
    if poses.smoothed is not None:
        changes["smoothed"] = moved(poses.smoothed)
    return replace(poses, **changes)
