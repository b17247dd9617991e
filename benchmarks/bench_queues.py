"""What it costs to pass a frame on: our queues against plain PUSH/PULL, in the same run.

    python -m benchmarks.bench_queues

Two threads (inproc) or two processes (ipc, tcp) on one machine. Messages: a 1080p yuv420p frame
(3.1 MB) and a small one (64x64). Throughput: as fast as the receiver takes them. Latency: paced,
from the call of send() until the receiver has touched every page. The peer sends the same header
and planes as copied multipart messages with a high-water mark of 4.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import socket as sockets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import zmq

from pipeline.messages import Frame
from pipeline.runtime.queues.connection import process_context
from pipeline.runtime.queues.credit import END
from pipeline.runtime.queues.receiver import Receiver
from pipeline.runtime.queues.sender import Sender

SIZES = {"1080p": (1080, 1920), "small": (64, 64)}
COUNTS = {"1080p": 400, "small": 4000}
PACED = 150
PACE_S = 1 / 120
WARM_UP = 30
ROUNDS = 2


class Case(NamedTuple):
    """One line of the table."""

    way: str
    """queue or push_pull."""
    scheme: str
    size: str
    address: str


class Result(NamedTuple):
    messages_per_s: float
    latencies_ms: list[float]


def make_frame(size: tuple[int, int]) -> Frame:
    height, width = size
    chroma = np.zeros((height // 2, width // 2), np.uint8)
    return Frame(
        source="bench",
        index=0,
        pts_seconds=0.0,
        captured_ns=0,
        captured_unix_s=0.0,
        size=size,
        planes=(np.zeros(size, np.uint8), chroma, chroma.copy()),
        pixel_format="yuv420p",
    )


def stamped(frame: Frame) -> Frame:
    """The frame with the time of sending, where no queue moves it."""
    return Frame(
        source=frame.source,
        index=frame.index,
        pts_seconds=time.monotonic(),
        captured_ns=0,
        captured_unix_s=0.0,
        size=frame.size,
        planes=frame.planes,
        pixel_format=frame.pixel_format,
    )


def touch(planes: tuple[np.ndarray, ...]) -> None:
    for plane in planes:
        plane.reshape(-1)[::4096].max()


def send_everything(case: Case, send: Callable[[Frame], None]) -> None:
    frame = make_frame(SIZES[case.size])
    for _ in range(WARM_UP + COUNTS[case.size]):
        send(stamped(frame))
    time.sleep(0.2)  # until the receiver has taken them all
    due = time.monotonic()
    for _ in range(PACED):
        send(stamped(frame))
        due += PACE_S
        time.sleep(max(0.0, due - time.monotonic()))


def send_by_queue(case: Case) -> None:
    with Sender(case.address) as sender:
        send_everything(case, sender.send)


def send_by_push(case: Case) -> None:
    socket = process_context().socket(zmq.PUSH)
    socket.sndhwm = 4
    socket.bind(case.address)

    def send(frame: Frame) -> None:
        header, planes = frame.to_parts()
        header["shapes"] = [plane.shape for plane in planes]
        parts: list[Any] = [msgpack.packb(header), *planes]
        socket.send_multipart(parts)

    send_everything(case, send)
    socket.close(linger=5000)


def frames_of_queue(case: Case) -> Iterator[Frame]:
    with Receiver(case.address) as receiver:
        while (frame := receiver.receive(timeout_seconds=30)) is not END:
            yield frame


def frames_of_pull(case: Case) -> Iterator[Frame]:
    socket = process_context().socket(zmq.PULL)
    socket.rcvhwm = 4
    socket.connect(case.address)
    for _ in range(WARM_UP + COUNTS[case.size] + PACED):
        packed, *parts = socket.recv_multipart()
        header = msgpack.unpackb(packed)
        shapes = header.pop("shapes")
        planes = [
            np.frombuffer(part, np.uint8).reshape(shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        yield Frame.from_parts(header, planes)
    socket.close(linger=0)


def receive_everything(case: Case) -> Result:
    frames = frames_of_queue(case) if case.way == "queue" else frames_of_pull(case)
    latencies_ms = []
    started = finished = 0.0
    for number, frame in enumerate(frames):
        touch(frame.planes)
        now = time.monotonic()
        if number == WARM_UP - 1:
            started = now
        if number == WARM_UP + COUNTS[case.size] - 1:
            finished = now
        if number >= WARM_UP + COUNTS[case.size]:
            latencies_ms.append((now - (frame.pts_seconds or 0.0)) * 1e3)
        del frame
    return Result(COUNTS[case.size] / (finished - started), latencies_ms)


def run(case: Case) -> Result:
    """Receive here; send from a thread (inproc) or another process."""
    target = send_by_queue if case.way == "queue" else send_by_push
    context = multiprocessing.get_context("spawn")
    sender: Any = (
        threading.Thread(target=target, args=(case,))
        if case.scheme == "inproc"
        else context.Process(target=target, args=(case,))
    )
    sender.start()
    result = receive_everything(case)
    sender.join()
    return result


def compare(size: str, scheme: str, folder: Path) -> dict[str, Any]:
    """Both ways in turn, each on an address of its own; prints a line for each."""
    results: dict[str, list[Result]] = {"queue": [], "push_pull": []}
    for number in range(ROUNDS):
        for way, found in results.items():
            address = {
                "inproc": f"inproc://{size}-{way}-{number}",
                "ipc": f"ipc://{folder}/{size}-{way}-{number}",
                "tcp": f"tcp://127.0.0.1:{free_port()}",
            }[scheme]
            found.append(run(Case(way, scheme, size, address)))
    summary = {way: summarise(found) for way, found in results.items()}
    for way, numbers in summary.items():
        rate, p50_ms, p95_ms = numbers.values()
        print(f"{size:8} {scheme:7} {way:10} {rate:9.0f} {p50_ms:8.3f} {p95_ms:8.3f}", flush=True)
    ours, plain = summary["queue"], summary["push_pull"]
    return {
        **summary,
        "rate_ratio": round(ours["messages_per_s"] / plain["messages_per_s"], 2),
        "p50_ratio": round(plain["p50_ms"] / ours["p50_ms"], 2),
    }


def summarise(found: list[Result]) -> dict[str, float]:
    latencies_ms = [ms for result in found for ms in result.latencies_ms]
    p50_ms, p95_ms = np.percentile(latencies_ms, [50, 95])
    return {
        "messages_per_s": round(float(np.median([result.messages_per_s for result in found])), 1),
        "p50_ms": round(float(p50_ms), 4),
        "p95_ms": round(float(p95_ms), 4),
    }


def free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{ROUNDS} rounds, the two ways in turn; latency of {PACED} messages paced at 120/s")
    print("message  scheme  way            msg/s   p50 ms   p95 ms")
    summary: dict[str, Any] = {"benchmark": "queues", "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for scheme in ("inproc", "ipc", "tcp"):
                summary[f"{size}_{scheme}"] = compare(size, scheme, Path(folder))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
