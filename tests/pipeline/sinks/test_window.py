"""The window: refused where it cannot be, and really shown on a virtual screen (Xvfb)."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.sinks.overlay import SIDE_COLORS
from pipeline.sinks.window import Window, check_display
from tests.support.places import ROOT
from tests.support.waiting import PATIENCE_SECONDS

WIDTH, HEIGHT = 1000, 700


def test_without_a_screen_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "QT")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match="neither DISPLAY nor WAYLAND_DISPLAY"):
        Window()


def test_a_screen_that_is_not_there_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not cv2.currentUIFramework():
        pytest.skip("OpenCV without windows")
    monkeypatch.setenv("DISPLAY", ":9876")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match="cannot open a window") as refusal:
        check_display()
    assert "\n" not in str(refusal.value)


def test_headless_opencv_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "")
    with pytest.raises(ValueError, match=r"--force-reinstall opencv-python"):
        check_display()


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A virtual screen; its pixels are in the file $FRAMEBUFFER."""
    if shutil.which("Xvfb") is None or not cv2.currentUIFramework():
        pytest.skip("needs Xvfb and an OpenCV with windows")
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", f"{WIDTH}x{HEIGHT}x24", "-fbdir", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    display = server.stdout.readline().strip()
    framebuffer = str(tmp_path / "Xvfb_screen0")
    yield {**os.environ, "DISPLAY": f":{display}", "FRAMEBUFFER": framebuffer}
    server.terminate()
    server.wait()


def run_window(script: str, environment: dict[str, str]) -> str:
    """Run a script whose main thread owns the window; `feed` shows pictures from another."""
    start = """
        import os, shutil, sys, threading, time
        import cv2
        import numpy as np
        from tests.support.people import poses_of, standing_person
        from pipeline.sinks.window import Window

        stop = threading.Event()
        window = Window("test")
        image = np.full((400, 600, 3), 90, np.uint8)

        def feed(num_pictures, sources=("cam1",)):
            for index in range(num_pictures):
                for source in sources:
                    person = standing_person(300, 20, 360)[None]
                    window(poses_of(person, image=image, source=source, index=index))
                if stop.wait(0.05):
                    break
            window.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(script)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def screen_pixels(framebuffer: Path) -> np.ndarray:
    """(h, w, 3) BGR of an Xvfb framebuffer, which is an XWD file (X11/XWDFile.h)."""
    data = framebuffer.read_bytes()
    header = struct.unpack(">25I", data[:100])
    header_size, row_bytes, num_colors = header[0], header[12], header[19]
    pixels = np.frombuffer(data, np.uint8, HEIGHT * row_bytes, header_size + 12 * num_colors)
    return pixels.reshape(HEIGHT, row_bytes // 4, 4)[:, :WIDTH, :3]


def test_the_window_shows_the_drawn_picture_until_the_stream_ends(
    screen: dict[str, str],
) -> None:
    script = """
        def feed_and_look():
            feed_thread.start()
            copy = os.environ["FRAMEBUFFER"] + ".copy"
            seen = False
            while feed_thread.is_alive() and not seen:  # a busy machine opens windows late
                time.sleep(0.2)
                shutil.copy(os.environ["FRAMEBUFFER"], copy)
                with open(copy, "rb") as file:
                    seen = file.read().count(90) > 300_000
        feed_thread = threading.Thread(target=feed, args=(120,))
        looker = threading.Thread(target=feed_and_look)
        looker.start()
        turns = []
        window.run(stop, meanwhile=lambda: turns.append(1))
        looker.join()
        feed_thread.join()
        print("stopped" if stop.is_set() else "ended", len(turns) > 20)
    """
    assert run_window(script, screen) == "ended True\n"
    pixels = screen_pixels(Path(screen["FRAMEBUFFER"] + ".copy")).astype(int)
    assert (pixels == 90).all(axis=-1).sum() > 100_000, "the picture is not on the screen"
    for color in SIDE_COLORS.values():
        assert (np.abs(pixels - color).max(axis=-1) < 8).sum() > 100, color


@pytest.mark.parametrize("key", [ord("q"), 27])
def test_q_and_escape_stop_the_stream(screen: dict[str, str], key: int) -> None:
    script = f"""
        wait_key, calls = cv2.waitKey, []
        def pressed_at_the_fifth(ms):
            calls.append(wait_key(ms))
            return {key} if len(calls) == 5 else calls[-1]
        cv2.waitKey = pressed_at_the_fifth
        feeder = threading.Thread(target=feed, args=(10_000,))
        feeder.start()
        window.run(stop)
        feeder.join()
        print("stopped" if stop.is_set() else "ended")
    """
    assert run_window(script, screen) == "stopped\n"


def test_closing_one_of_two_windows_stops_the_stream(screen: dict[str, str]) -> None:
    script = """
        show, shown = cv2.imshow, []
        def closed_by_the_user(name, picture):
            show(name, picture)
            shown.append(name)
            if shown.count("test: cam2") == 3:
                cv2.destroyWindow("test: cam2")
        cv2.imshow = closed_by_the_user
        feeder = threading.Thread(target=feed, args=(10_000, ("cam1", "cam2")))
        feeder.start()
        window.run(stop)
        feeder.join()
        print(sorted(set(shown)), "stopped" if stop.is_set() else "ended")
    """
    assert run_window(script, screen) == "['test: cam1', 'test: cam2'] stopped\n"
