"""Poses on this machine's screen, for `--show`.

    sink's thread: Poses -> drawn picture -> newest of each source -> main thread: window

Windows belong to the main thread (OpenCV's toolkits insist on it), so the sink only leaves its
newest picture behind and `Window.run`, called by the main thread, shows it. Knows nothing of how
a stream is stopped but the event that says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import cv2
import numpy as np

from pipeline.messages import Poses
from pipeline.sinks.overlay import Draw, drawn_picture, with_square_pixels

_ESCAPE = 27
_WAIT_SECONDS = 0.02  # between looks at the keyboard
_WIDEST, _HIGHEST = 1280, 800  # pixels that a window takes at first; it can be resized


class Window:
    """One window for each source. Keys q and Esc, and closing a window, stop the stream."""

    def __init__(
        self,
        title: str = "posestream",
        *,
        draw: Draw = drawn_picture,
    ) -> None:
        """Make sure that a window can be opened.

        Args:
            title: of the windows, before the source's name.
            draw: makes the pictures.
        Raises:
            ValueError: there is no screen, or OpenCV was built without windows.
        """
        check_display()
        self._title = title
        self._draw = draw
        self._changed = threading.Condition()
        self._newest: dict[str, np.ndarray] = {}  # by window title
        self._ended = False
        self._gone: set[str] = set()
        self._shown: set[str] = set()  # used by the main thread only

    def __call__(self, poses: Poses) -> None:
        image = with_square_pixels(self._draw(poses), poses.frame)
        with self._changed:
            self._newest[f"{self._title}: {poses.frame.source}"] = image
            self._changed.notify()

    def forget_source(self, name: str) -> None:
        """A source has gone: its window closes."""
        with self._changed:
            self._newest.pop(f"{self._title}: {name}", None)
            self._gone.add(f"{self._title}: {name}")

    def close(self) -> None:
        """No more pictures will come; `run` returns."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def run(self, stop: threading.Event, *, meanwhile: Callable[[], None] | None = None) -> None:
        """Show pictures until the stream ends or is stopped. Only the main thread may call it.

        Args:
            stop: ends the loop, and is set by it when the user has seen enough.
            meanwhile: what else the main thread has to look after; called many times a second.
        """
        assert threading.current_thread() is threading.main_thread()
        try:
            while not stop.is_set():
                with self._changed:
                    self._changed.wait_for(lambda: self._newest or self._ended, _WAIT_SECONDS)
                    pictures, self._newest = self._newest, {}
                    gone, self._gone = self._gone, set()
                    ended = self._ended
                for name in gone & self._shown:
                    self._shown.discard(name)
                    cv2.destroyWindow(name)
                for name, image in pictures.items():
                    self._show(name, image)
                if self._user_is_done():
                    stop.set()
                if meanwhile is not None:
                    meanwhile()
                if ended:
                    return
        finally:
            cv2.destroyAllWindows()
            cv2.waitKey(1)  # lets the toolkit take them down

    def _show(self, name: str, image: np.ndarray) -> None:
        if name not in self._shown:
            height, width = image.shape[:2]
            scale = min(1.0, _WIDEST / width, _HIGHEST / height)
            flags = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
            cv2.namedWindow(name, flags)
            cv2.resizeWindow(name, max(1, round(width * scale)), max(1, round(height * scale)))
            self._shown.add(name)
        cv2.imshow(name, image)

    def _user_is_done(self) -> bool:
        if not self._shown:
            return False
        if cv2.waitKey(1) & 0xFF in (ord("q"), _ESCAPE):
            return True
        return any(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1 for name in self._shown)


def check_display() -> None:
    """Make sure that OpenCV can open a window here, else ValueError.

    Without a screen OpenCV does not raise but aborts the process, so first the environment is
    asked and then a process that may die.
    """
    if not cv2.currentUIFramework():
        raise ValueError(
            "this OpenCV was built without windows; for --show run `pip uninstall "
            "opencv-python-headless`, `pip install --force-reinstall opencv-python` and, on "
            "Debian or Ubuntu, `apt-get install libgl1 libglib2.0-0`"
        )
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise ValueError(
            "--show needs a screen, but neither DISPLAY nor WAYLAND_DISPLAY is set; run it in a "
            "desktop session or use --save"
        )
    probe = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, timeout=30, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError("the screen does not answer; --show cannot open a window") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ValueError(f"--show cannot open a window: {lines[0]}")
