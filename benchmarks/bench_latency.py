"""Glass to glass: from a picture's entering the camera's encoder to its poses at a subscriber.

    python -m benchmarks.bench_latency [--fps 15 25 30] [--sizes 360 720] [--transports tcp udp]

    coded_camera.py --RTSP--> run_stream.py --ZeroMQ--> this process           (three processes)
    coded_camera.py --RTSP--> plain_loop.py --pipe----> this process           (the peer, in turn)

The time code is where the person of the picture stands: a photograph takes another of 60 places in
each picture, and the default network itself reads it, as the place of a nose in the published
message. The camera notes the wall clock of each picture when its encoder gets it; on one machine
clocks agree. So

    camera    encoder (x264 zerolatency), RTP over loopback, FFmpeg's decoder: pushed -> captured
    network   captured -> poses found, as the message says
    publish   -> in this process's hands, parsed

Not in it: exposure and readout of a real sensor, a real network's way, and an encoder's lookahead,
which a camera set to low latency has not. A message whose code does not follow from the others' by
its frame number is counted as misread and dropped. The loop (cv2.VideoCapture, the same engine)
has no such numbers: there the first picture is taken to be less than a round old (60 pictures),
and each to follow the one before by less than half a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zmq

from pipeline.sources.demo import photograph

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_PYTHON = "/usr/bin/python3"
COLUMNS, ROWS = 20, 3
NUM_CODES = COLUMNS * ROWS
NOSE = (223.0, 122.0)  # (x, y) in the photograph of 512x512, as the network has it
WARM_UP_SECONDS = 3.0
START_SECONDS = 300


@dataclass(frozen=True)
class Layout:
    """Where the person stands in pictures of so many lines."""

    height: int

    @property
    def width(self) -> int:
        return self.height * 16 // 9

    @property
    def side(self) -> int:
        """Of the photograph, in pixels of the picture."""
        return self.height * 7 // 10

    @property
    def step(self) -> float:
        """Between two places; half of it is what a keypoint may be wrong by."""
        return self.height / 30

    def corner(self, code: int) -> tuple[int, int]:
        """(x, y) of the photograph's upper left corner."""
        row, column = divmod(code, COLUMNS)
        column = COLUMNS - 1 - column if row % 2 else column  # to and fro, without leaps
        return round((1 + column) * self.step), round((1 + 2 * row) * self.step)

    def picture(self, code: int, photo: np.ndarray) -> np.ndarray:
        """(height, width, 3) BGR."""
        image = np.full((self.height, self.width, 3), (120, 128, 118), np.uint8)
        x, y = self.corner(code)
        size = (self.side, self.side)
        image[y : y + size[0], x : x + size[1]] = cv2.resize(
            photo, size, interpolation=cv2.INTER_AREA
        )
        return image

    def code(self, noses: Sequence[Sequence[float]]) -> int | None:
        """Of the picture whose poses have these noses (x, y, score); None if that cannot be."""
        if not noses:
            return None
        x, y, _ = max(noses, key=lambda nose: nose[2])
        scale = self.side / 512
        column = round((x - scale * NOSE[0]) / self.step) - 1
        row = round(((y - scale * NOSE[1]) / self.step - 1) / 2)
        inside = 0 <= column < COLUMNS and 0 <= row < ROWS
        column = COLUMNS - 1 - column if row % 2 else column
        return row * COLUMNS + column if inside else None


@dataclass(frozen=True)
class Seen:
    """One picture's poses, as they reached this process. Wall clock, in seconds."""

    code: int | None
    received: float
    frame: int = 0
    captured: float = 0.0
    found: float = 0.0


@contextmanager
def camera(folder: Path, layout: Layout, fps: int) -> Iterator[tuple[str, Path]]:
    """(URL, log) of a camera that is ready."""
    pictures = folder / f"{layout.height}.yuv"
    if not pictures.exists():
        write_pictures(pictures, layout)
    port, log = free_port(), folder / "pushed.txt"
    script = Path(__file__).with_name("coded_camera.py")
    command = [SYSTEM_PYTHON, str(script), str(pictures), str(log)]
    for name, value in {
        "width": layout.width, "height": layout.height, "fps": fps, "port": port,
    }.items():  # fmt: skip
        command += [f"--{name}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the camera did not start; see .ci/system-packages, and for x264: "
                               "apt-get install gstreamer1.0-plugins-ugly")  # fmt: skip
        yield f"rtsp://127.0.0.1:{port}/live", log
    finally:
        process.kill()
        process.wait()


def write_pictures(path: Path, layout: Layout) -> None:
    with path.open("wb") as file:
        for code in range(NUM_CODES):
            yuv = cv2.cvtColor(layout.picture(code, photograph()), cv2.COLOR_BGR2YUV_I420)
            file.write(np.ascontiguousarray(yuv).tobytes())


def of_stream(url: str, layout: Layout, transport: str, seconds: float) -> list[Seen]:
    """What a subscriber of run_stream.py gets, for so many seconds after the warm-up."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, str(ROOT / "run_stream.py"), url, "--publish", endpoint]
    command += ["--transport", transport, "--quiet"]
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        subscriber.rcvhwm = 2
        subscriber.subscribe("pose/")
        subscriber.connect(endpoint)
        process = subprocess.Popen(command)
        try:
            if not subscriber.poll(START_SECONDS * 1000):
                raise RuntimeError("the stream published nothing")
            return list(messages(subscriber, layout, seconds))
        finally:
            process.terminate()
            process.wait(30)


def messages(subscriber: zmq.Socket[bytes], layout: Layout, seconds: float) -> Iterator[Seen]:
    begins = time.time() + WARM_UP_SECONDS
    while time.time() < begins + seconds:
        if not subscriber.poll(1000):
            continue
        message = json.loads(subscriber.recv().partition(b"\0")[2])
        received = time.time()
        captured = message["captured_unix_s"]
        if received >= begins:
            noses = [person["keypoints"][0] for person in message["people"]]
            yield Seen(
                layout.code(noses), received, message["frame"], captured,
                captured + message["latency_ms"] / 1e3,
            )  # fmt: skip


def of_loop(url: str, layout: Layout, transport: str, seconds: float) -> list[Seen]:
    """The same of the plain loop."""
    command = [sys.executable, "-m", "benchmarks.plain_loop", url]
    environment = os.environ | {"OPENCV_FFMPEG_CAPTURE_OPTIONS": f"rtsp_transport;{transport}"}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    watchdog = threading.Timer(START_SECONDS + seconds, process.kill)
    watchdog.start()
    seen: list[Seen] = []
    begins = 0.0
    try:
        assert process.stdout is not None
        for line in process.stdout:
            result, received = json.loads(line), time.time()
            begins = begins or received + WARM_UP_SECONDS
            if received >= begins:
                seen.append(Seen(layout.code(result["noses"]), received, found=result["unix_s"]))
            if received >= begins + seconds:
                break
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()
    if not seen:
        raise RuntimeError("the plain loop found nothing")
    return seen


def pushed_times(log: Path) -> np.ndarray:
    """(N,) wall clock at which picture number i went into the encoder."""
    lines = [line.split() for line in log.read_text().splitlines() if line.count(" ") == 1]
    return np.array([float(seconds) for _, seconds in lines])


def numbered(seen: Sequence[Seen], pushed: np.ndarray) -> list[tuple[int, Seen]]:
    """The picture's number in the camera's log, of all that were read and fit."""
    read = [(one.code, one) for one in seen if one.code is not None]
    if not read:
        return []
    if read[0][1].captured:
        # Frame and picture numbers differ by the same amount all the time.
        votes = Counter((code - one.frame) % NUM_CODES for code, one in read)
        offset, _ = votes.most_common(1)[0]
        read = [(code, one) for code, one in read if (code - one.frame) % NUM_CODES == offset]
    first_code, first = read[0]
    number = int(np.searchsorted(pushed, first.captured or first.received)) - 1
    number -= (number - first_code) % NUM_CODES
    result = []
    for code, one in read:
        step = (code - number) % NUM_CODES
        if step < NUM_CODES // 2:
            number += step
            result.append((number, one))
    return result


def summary(seen: Sequence[Seen], pushed: np.ndarray, fps: int) -> dict[str, Any]:
    """Median and p95 of each part of the way, in ms."""
    fit = numbered(seen, pushed)
    parts: dict[str, list[float]] = {"total": []}
    for number, one in fit:
        parts["total"].append(one.received - pushed[number])
        if one.captured:
            parts.setdefault("camera", []).append(one.captured - pushed[number])
            parts.setdefault("network", []).append(one.found - one.captured)
            parts.setdefault("publish", []).append(one.received - one.found)
    elapsed = seen[-1].received - seen[0].received
    return {
        "fps": round((len(seen) - 1) / elapsed, 1),
        "camera_fps": fps,
        "pictures": len(fit),
        "misread": len(seen) - len(fit),
        **{f"{name}_ms": p50_p95(values) for name, values in parts.items()},
    }


def p50_p95(seconds: Sequence[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(np.array(seconds) * 1e3, (50, 95))
    return round(float(p50), 1), round(float(p95), 1)


def report(case: str, way: str, row: dict[str, Any]) -> None:
    shown = "  ".join(
        f"{name} {row[f'{name}_ms'][0]:.0f} ({row[f'{name}_ms'][1]:.0f})"
        for name in ("camera", "network", "publish", "total")
        if f"{name}_ms" in row
    )
    print(
        f"{case:16} {way:7} {row['fps']:5.1f} fps  {row['misread']:3d} misread  {shown}", flush=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fps", type=int, nargs="+", default=(15, 25, 30))
    parser.add_argument("--sizes", type=int, nargs="+", default=(360, 720), help="lines, 16:9")
    parser.add_argument("--transports", nargs="+", default=("tcp", "udp"), choices=("tcp", "udp"))
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}; median (p95) ms")
    result: dict[str, Any] = {
        "bench": "latency",
        "cores": os.cpu_count(),
        "load": load,
        "cases": {},
    }
    ways = {"stream": of_stream, "loop": of_loop}
    with tempfile.TemporaryDirectory(prefix="posestream-") as folder:
        for height in options.sizes:
            for fps in options.fps:
                for transport in options.transports:
                    case, layout = f"{height}p {fps} {transport}", Layout(height)
                    result["cases"][case] = {}
                    for way, measure in ways.items():
                        with camera(Path(folder), layout, fps) as (url, log):
                            seen = measure(url, layout, transport, options.seconds)
                            row = summary(seen, pushed_times(log), fps)
                        report(case, way, row)
                        result["cases"][case][way] = row
    print(json.dumps(result))


if __name__ == "__main__":
    main()
