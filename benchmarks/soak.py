"""A stream left alone with all its troubles: what grows, what hangs, what is lost.

    python -m benchmarks.soak [--minutes 10] [--camera-fps N] [--busy] [--keep FOLDER]

                        a camera killed, frozen or restarted every 20 s, in turn
                                              v
    4 RTSP servers (tests/support/rtsp_server.py) -> run_stream.py -> video in segments
                                              |-> ZeroMQ: a good, a slow and a dead subscriber
                                              '-> page: a WebSocket viewer, a reader of /mjpeg

The cameras offer about three times what this machine makes of one file, measured at the start, or
what --camera-fps says.
Each second the process is looked at; at the end soak_verdicts.py judges. --busy: other programs use
this machine too, so memory and times are judged loosely. The last line is JSON, the exit code 1
when a verdict fails. Needs Debian's gst-rtsp-server (see .ci/system-packages).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import yaml

from pipeline.sinks.video.segment_index import read_index
from pipeline.sources import demo
from tests.support import soak_verdicts as verdicts
from tests.support.clips import write_clip
from tests.support.places import ROOT
from tests.support.rtsp_server import RtspServer, why_unavailable
from tests.support.soak_clients import (
    Fault,
    SlowSubscriber,
    Subscriber,
    Viewers,
    dead_subscriber,
)
from tests.support.soak_meter import Meter
from tests.support.soak_verdicts import Record

CAMERAS = ("cam0", "cam1", "cam2", "cam3")
SIZE = (360, 640)
OVERLOAD = 3
FPS_LIMITS = (15, 60)
NET_SIDE = 288
MEASURED_FRAMES = 60
CLIP_FRAMES = 150
KEY_EVERY = 10  # frames, as write_clip has it
FAULT_KINDS = ("kill", "freeze", "restart")
FAULT_SECONDS = 20.0
DOWN_SECONDS = {"kill": 3.0, "freeze": 5.0, "restart": 0.0}
LIVE_SECONDS = 90.0  # to load the network and connect to all cameras
TICK_SECONDS = 0.05
HURRY = 0.85  # of the run, from when the slow subscriber reads what is there


def main() -> int:
    options = _options()
    if why_unavailable():
        print(f"soak: {why_unavailable()}", file=sys.stderr)
        return 2
    with _folder(options.keep) as folder:
        plan = _plan(folder, seconds=60 * options.minutes, fps=options.camera_fps)
        _say_plan(plan)
        record = _soak(folder, plan)
        _read_segments(folder, record)
    limits = verdicts.BUSY_LIMITS if options.busy else verdicts.Limits()
    return _report(record, verdicts.judge(record, limits), plan)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="posestream-soak-") as name:
        yield Path(name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A stream left alone with all its troubles.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--camera-fps", type=int, metavar="N", help="of each camera; nothing is measured"
    )
    parser.add_argument("--busy", action="store_true", help="judge memory and times loosely")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave log, samples and video in a new folder"
    )
    options = parser.parse_args()
    if options.keep is not None and options.keep.exists():
        parser.error(f"{options.keep} exists; name a folder that does not")
    if options.camera_fps is not None and options.camera_fps < 1:
        parser.error(f"--camera-fps must be at least 1, got {options.camera_fps}")
    if options.minutes < 0.4:
        parser.error(f"--minutes must be at least 0.4, got {options.minutes}")
    return options


# --- how much is too much ------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    seconds: float
    capacity_fps: float | None
    """Results a second of one file as fast as it goes; None: not measured."""
    net_side: int
    """Short side of the network input."""
    fps: int
    """Of each camera."""
    clip: Path

    @property
    def fault_seconds(self) -> float:
        """From one fault to the next; short runs have three, one of each kind."""
        return min(FAULT_SECONDS, self.seconds / 4)


def _plan(folder: Path, *, seconds: float, fps: int | None) -> Plan:
    """Measure this machine, and offer three times that, or so many frames of each camera.

    A machine that does more than 80 a second gets a larger network input instead of more frames, so
    that cameras stay cameras.
    """
    pictures = [
        cv2.resize(demo.picture(index), SIZE[::-1], interpolation=cv2.INTER_AREA)
        for index in range(CLIP_FRAMES)
    ]
    capacity_fps, net_side = None, NET_SIDE
    if fps is None:
        capacity_fps = _capacity_fps(write_clip(folder / "measured.mp4", pictures))
        most_fps = FPS_LIMITS[1] * len(CAMERAS) / OVERLOAD
        growth = max(1.0, capacity_fps / most_fps)
        net_side = 32 * round(NET_SIDE * growth**0.5 / 32)
        fps = round(np.clip(OVERLOAD * capacity_fps / growth / len(CAMERAS), *FPS_LIMITS))
    return Plan(
        seconds=seconds,
        capacity_fps=capacity_fps,
        net_side=net_side,
        fps=fps,
        clip=write_clip(folder / "camera.mp4", pictures, fps=fps),
    )


def _capacity_fps(clip: Path) -> float:
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_stream.py"), str(clip), "--input-size", str(NET_SIDE),
         "--max-frames", str(MEASURED_FRAMES), "--save", str(clip.with_name("drawn.mp4"))],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    found = re.search(r" frames in [\d.]+ s, ([\d.]+) fps", done.stderr)
    assert found is not None, done.stderr
    return float(found[1])


def _say_plan(plan: Plan) -> None:
    measured = ""
    if plan.capacity_fps is not None:
        measured = f"one file as fast as it goes: {plan.capacity_fps:.1f} frames a second; so "
    print(
        f"device: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}\n"
        f"{measured}{len(CAMERAS)} cameras of {SIZE[1]}x{SIZE[0]} at {plan.fps} fps, network input "
        f"{plan.net_side}; {plan.seconds:.0f} s, a fault every {plan.fault_seconds:.1f} s",
        flush=True,
    )


# --- the soak ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """The stream's process and where it is to be found."""

    process: subprocess.Popen[bytes]
    log: Path
    page: str
    endpoint: str


def _soak(folder: Path, plan: Plan) -> Record:
    record = Record(
        seconds=plan.seconds,
        offered_fps=float(plan.fps * len(CAMERAS)),
        keyframe_seconds=KEY_EVERY / plan.fps,
    )
    with ExitStack() as opened:
        servers = [opened.enter_context(RtspServer(plan.clip)) for _ in CAMERAS]
        running = opened.enter_context(_stream(folder, plan, servers))
        meter = Meter(running.process.pid, running.page)
        opened.callback(meter.close)
        good, slow = Subscriber(running.endpoint), SlowSubscriber(running.endpoint)
        good.start()
        slow.start()
        _wait_for(lambda: meter.all_live(0.0), running, "all cameras live")
        opened.enter_context(dead_subscriber(running.endpoint))
        viewers = Viewers(running.page, CAMERAS)
        viewers.start()
        _wait_for(lambda: viewers.pictures["mjpeg"], running, "a picture for a viewer")

        started = time.monotonic()
        good.ages.clear()
        good.num_poses.clear()
        _watch(record, meter, Faults(servers, good, plan, record.faults), slow, started)
        viewers.stop.set()  # before the stream ends their connections
        _end(running, record)
        time.sleep(0.5)  # for the last messages
        good.stop.set()
        slow.stop.set()
        for thread in (good, slow, viewers):
            thread.join(10)
    samples = "".join(json.dumps(vars(sample), default=vars) + "\n" for sample in record.samples)
    (folder / "samples.jsonl").write_text(samples)
    record.log = running.log.read_text(errors="replace").splitlines()
    record.ages = [(at - started, ms) for at, ms in good.ages]
    record.last_frame, record.num_poses = good.last_frame, good.num_poses
    record.gaps, record.problems = good.gaps, good.problems
    record.slow_taken, record.slow_gaps = slow.taken, slow.gaps
    record.pictures, record.view_problems = viewers.pictures, viewers.problems
    return record


@contextmanager
def _stream(folder: Path, plan: Plan, servers: list[RtspServer]) -> Iterator[Running]:
    """run_stream.py with everything that it can do at once, until it serves."""
    config: dict[str, Any] = {
        "sources": [
            {"input": server.url, "name": name}
            for name, server in zip(CAMERAS, servers, strict=True)
        ],
        "preprocess": {"input_size": plan.net_side},
        "video": {
            "path": str(folder / "poses.mp4"),
            "segment_s": max(2.0, min(60.0, plan.seconds / 10)),
        },
        "publisher": {"endpoint": "tcp://127.0.0.1:*"},
        "page": {"serve": "127.0.0.1:0"},
    }
    (folder / "soak.yaml").write_text(yaml.safe_dump(config))
    log = folder / "stream.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_stream.py"), "--config", str(folder / "soak.yaml")],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield Running(
            process, log,
            page=_from_log(process, log, r"INFO page: (http\S+)"),
            endpoint=_from_log(process, log, r"INFO publishing poses at (\S+)"),
        )  # fmt: skip
    finally:
        process.kill()
        process.wait()


def _from_log(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    deadline = time.monotonic() + LIVE_SECONDS
    while (found := re.search(pattern, log.read_text(errors="replace"))) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the stream did not start:\n{log.read_text(errors='replace')}")
        time.sleep(TICK_SECONDS)
    return found[1]


def _wait_for(condition: Callable[[], object], running: Running, what: str) -> None:
    deadline = time.monotonic() + LIVE_SECONDS
    while not condition():
        if running.process.poll() is not None or time.monotonic() > deadline:
            log = running.log.read_text(errors="replace")
            raise RuntimeError(f"{what}: not within {LIVE_SECONDS:.0f} s:\n{log}")
        time.sleep(0.2)


def _watch(
    record: Record, meter: Meter, faults: Faults, slow: SlowSubscriber, started: float
) -> None:
    """The soak itself: faults when they are due, and a sample each second."""
    next_sample = 1.0
    while (now := time.monotonic() - started) < record.seconds:
        faults.happen(now)
        if now >= next_sample:
            next_sample = max(next_sample + 1.0, now)
            record.samples.append(meter.sample(now))
        if now >= HURRY * record.seconds:
            slow.hurry.set()
        time.sleep(TICK_SECONDS)


def _end(running: Running, record: Record) -> None:
    asked = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        record.exit_code = running.process.wait(60.0)
    record.exit_seconds = time.monotonic() - asked


class Faults:
    """What happens to the cameras: one after the other, in each kind of fault in turn.

    None begins so late that its camera could not be back before the end.
    """

    def __init__(
        self, servers: list[RtspServer], good: Subscriber, plan: Plan, faults: list[Fault]
    ) -> None:
        self._servers, self._good, self._faults = servers, good, faults
        self._every = plan.fault_seconds
        self._last_s = plan.seconds - min(FAULT_SECONDS, self._every) * 0.9
        self._ends: list[tuple[float, Fault]] = []

    def happen(self, now: float) -> None:
        number = len(self._faults)
        due = (number + 1) * self._every
        if due <= now and due <= self._last_s:
            camera, kind = number % len(CAMERAS), FAULT_KINDS[number % len(FAULT_KINDS)]
            fault = Fault(CAMERAS[camera], kind, began_s=now, down_seconds=DOWN_SECONDS[kind])
            self._faults.append(fault)
            self._ends.append((now + fault.down_seconds, fault))
            server = self._servers[camera]
            if kind == "freeze":
                server.freeze()
            else:
                server.kill()
        for end in [end for end in self._ends if end[0] <= now]:
            self._ends.remove(end)
            self._mend(end[1])

    def _mend(self, fault: Fault) -> None:
        server = self._servers[CAMERAS.index(fault.camera)]
        if fault.kind == "freeze":
            server.thaw()
        else:
            server.start()
        self._good.await_camera(fault)


def _read_segments(folder: Path, record: Record) -> None:
    """Decode every file that the index lists: each holds as many pictures as it says."""
    index = read_index(folder / "poses.mp4.jsonl")
    record.segments = len(index)
    for name, segment in index.items():
        try:
            with av.open(str(folder / name)) as container:
                num_pictures = sum(1 for _ in container.decode(video=0))
        except (OSError, av.FFmpegError) as error:
            record.segment_problems.append(f"{name}: {error}")
            continue
        record.segment_pictures += num_pictures
        if num_pictures != segment.pictures:
            record.segment_problems.append(f"{name}: {num_pictures}, listed {segment.pictures}")


# --- the report ----------------------------------------------------------------------------------


def _report(record: Record, judged: list[verdicts.Verdict], plan: Plan) -> int:
    ages_ms = [ms for _, ms in record.ages] or [float("nan")]
    p50_ms, p95_ms, p99_ms = (float(v) for v in np.percentile(ages_ms, (50, 95, 99)))
    print(f"capture to publish: median {p50_ms:.0f} ms, p95 {p95_ms:.0f}, p99 {p99_ms:.0f}")
    _print_sources(record)
    for verdict in judged:
        print(f"{'PASS' if verdict.passed else 'FAIL'}  {verdict.name}: {verdict.text}")
    failed = [verdict.name for verdict in judged if not verdict.passed]
    summary = {
        "benchmark": "soak",
        "seconds": record.seconds,
        "capacity_fps": plan.capacity_fps,
        "offered_fps": record.offered_fps,
        "faults": dict(Counter(fault.kind for fault in record.faults)),
        "median_ms": round(p50_ms, 1),
        "p95_ms": round(p95_ms, 1),
        "p99_ms": round(p99_ms, 1),
        "failed": failed,
        "verdicts": {verdict.name: verdict.text for verdict in judged},
    }
    print(json.dumps(summary))
    return 1 if failed else 0


def _print_sources(record: Record) -> None:
    if not record.samples:
        return
    print(
        f"{'':>8}{'frames':>9}{'results':>9}{'dropped':>9}{'no sink':>9}{'p50 ms':>8}{'p99 ms':>8}"
    )
    for name, last in sorted(record.samples[-1].sources.items()):
        seen = [sample.sources[name] for sample in record.samples if name in sample.sources]
        p50_ms, p99_ms = (
            float(np.median([getattr(count, key) for count in seen]))
            for key in ("p50_ms", "p99_ms")
        )
        print(
            f"{name:>8}{last.frames:>9}{last.results:>9}{last.dropped:>9}{last.dropped_results:>9}"
            f"{p50_ms:>8.0f}{p99_ms:>8.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
