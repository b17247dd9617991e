"""The page: capture to canvas in a real browser with 1 and 4 viewers, and nobody looking.

    python -m benchmarks.bench_page [SECONDS]

720p pictures with two people at 30 a second, each with the wall clock of its capture in its
message; the browser notes the clock when it has drawn it, on the same machine.
"""

from __future__ import annotations

import json
import platform
import sys
import threading
import time
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import Browser, sync_playwright

from pipeline.sinks.page.page import Page
from tests.support.page_stand import Stand, serving

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZE = (720, 1280)
FPS = 30.0
CALLS = 2000
NOTE_DRAWN = """() => {
    window.drawn = [];
    document.querySelector("canvas").addEventListener("drawn", ({ detail }) => {
        const now = performance.timeOrigin + performance.now();
        window.drawn.push([now, now - 1000 * detail.captured_unix_s]);
    });
}"""
"""Of every picture: when it was drawn, and how old it was then; ms."""


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    print(f"device: {platform.machine()}, {psutil.cpu_count()} cores; {SIZE[1]}x{SIZE[0]} at {FPS}")
    image = np.random.default_rng(0).normal(110, 12, (*SIZE, 3)).clip(0, 255).astype(np.uint8)
    results: dict[str, Any] = {"benchmark": "page", "size": SIZE, "fps": FPS}
    results["idle_us"] = nobody_looking(image)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        print(f"{'viewers':>8} {'median ms':>10} {'p95 ms':>8} {'fps':>6} {'server CPU':>11}")
        for viewers in (0, 1, 4):
            results[f"{viewers} viewers"] = watched(browser, image, viewers, seconds)
        browser.close()
    print(json.dumps(results))


def nobody_looking(image: np.ndarray) -> dict[str, float]:
    """Microseconds of the sink for a frame that nobody looks at; and of an empty sink."""
    stand = Stand()
    poses = stand.poses("cam1", image=image)
    times: dict[str, list[float]] = {"page": [], "nothing": []}
    with serving(stand) as page:
        for _ in range(CALLS):
            for name, sink in (("page", page), ("nothing", lambda poses: None)):
                started = time.perf_counter_ns()
                sink(poses)
                times[name].append((time.perf_counter_ns() - started) / 1e3)
    medians = {name: round(float(np.median(values)), 2) for name, values in times.items()}
    print(f"nobody looks: {medians['page']} us a frame (an empty sink: {medians['nothing']})")
    return medians


def watched(
    browser: Browser, image: np.ndarray, viewers: int, seconds: float
) -> dict[str, float | None]:
    """Latency of all viewers together; the server's share of one core, its feeder included."""
    stand = Stand()
    with serving(stand) as page:
        contexts = [browser.new_context(viewport={"width": 1280, "height": 800})] * bool(viewers)
        contexts += [browser.new_context() for _ in range(viewers - 1)]
        tabs = [context.new_page() for context in contexts]
        feeder = Feeder(page, stand, image)
        feeder.start()
        for tab in tabs:
            tab.goto(page.url)
            tab.wait_for_selector("article")
        for tab in tabs:
            tab.wait_for_timeout(1000)
            tab.evaluate(NOTE_DRAWN)
        for tab in tabs:
            tab.evaluate("() => { window.drawn = []; }")
        process = psutil.Process()
        before, started = process.cpu_times(), time.monotonic()
        time.sleep(seconds)
        spent = process.cpu_times()
        elapsed = time.monotonic() - started
        drawn = [np.reshape(tab.evaluate("window.drawn"), (-1, 2)) for tab in tabs]
        feeder.stop.set()
        feeder.join()
        for context in contexts:
            context.close()
    share = (spent.user + spent.system - before.user - before.system) / elapsed
    ages = np.concatenate([each[:, 1] for each in drawn]) if drawn else np.empty(0)
    median, p95 = np.percentile(ages, (50, 95)) if len(ages) else (np.nan, np.nan)
    fps = float(np.mean([fps_of(each[:, 0]) for each in drawn])) if drawn else 0.0
    print(f"{viewers:>8} {median:>10.1f} {p95:>8.1f} {fps:>6.1f} {share:>10.1%}")
    return {
        "median_ms": round(float(median), 1) if len(ages) else None,
        "p95_ms": round(float(p95), 1) if len(ages) else None,
        "fps": round(fps, 1),
        "server_cpu": round(share, 3),
    }


def fps_of(drawn_ms: np.ndarray) -> float:
    """Pictures a second that one viewer saw, from its first to its last one."""
    if len(drawn_ms) < 2:
        return 0.0
    return (len(drawn_ms) - 1) / float(drawn_ms[-1] - drawn_ms[0]) * 1e3


class Feeder(threading.Thread):
    """The sink's thread: frames at their own pace."""

    def __init__(self, page: Page, stand: Stand, image: np.ndarray) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self._page, self._stand, self._image = page, stand, image

    def run(self) -> None:
        due = time.monotonic()
        while not self.stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / FPS
            self._page(self._stand.poses("cam1", image=self._image))


if __name__ == "__main__":
    main()
