"""Publishing: JSON against msgpack, a slow subscriber beside a fast one, and one that is dead.

Run it as `python -m benchmarks.bench_publish [SECONDS]`; SECONDS (60) is how long the dead
subscriber, a process under SIGSTOP, is published to.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import zmq

from pipeline.sinks.publisher.publisher import Publisher
from pipeline.sinks.schema import encode_json, encode_msgpack, pose_message
from tests.support.people import crowd, poses_of

SIZE = (720, 1280)
REPEATS = 300
MESSAGES = 400
INTERVAL_SECONDS = 0.01
SLOW_SECONDS = 0.05  # a message
FAST, SLOW, DEAD = "fast", "fast beside slow", "fast beside dead"


def main() -> None:
    dead_seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    print(f"device: {platform.machine()}, {psutil.cpu_count()} cores; libzmq {zmq.zmq_version()}")
    results: dict[str, Any] = {"benchmark": "publish", "formats": formats()}
    results["latency"] = latency()
    results["dead"] = dead_subscriber(dead_seconds)
    print(json.dumps(results))


def formats() -> dict[str, dict[str, float]]:
    """Size and time of one message; the formats take turns."""
    print(f"{'people':>6} {'format':>8} {'bytes':>7} {'median ms':>10} {'p95 ms':>8}")
    results: dict[str, dict[str, float]] = {}
    encoders: dict[str, Callable[[Any], bytes]] = {"json": encode_json, "msgpack": encode_msgpack}
    for num_people in (1, 5, 20):
        message = pose_message(poses_of(crowd(num_people, SIZE)), session="9f2c04d1", seq=1042)
        times: dict[str, list[float]] = {name: [] for name in encoders}
        for _ in range(REPEATS):
            for name, encode in encoders.items():
                start = time.perf_counter()
                encode(message)
                times[name].append(1e3 * (time.perf_counter() - start))
        for name, encode in encoders.items():
            median, p95 = np.percentile(times[name][REPEATS // 10 :], (50, 95))
            num_bytes = len(encode(message))
            print(f"{num_people:>6} {name:>8} {num_bytes:>7} {median:>10.4f} {p95:>8.4f}")
            results[f"{num_people} {name}"] = {"bytes": num_bytes, "median_ms": round(median, 4)}
    return results


class Reader(threading.Thread):
    """A subscriber in a context of its own; notes the age of each message in ms."""

    def __init__(self, endpoint: str, *, pause_seconds: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.ages_ms: list[float] = []
        self.ready = threading.Event()
        self.stop = threading.Event()
        self._endpoint, self._pause_seconds = endpoint, pause_seconds

    def run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as sub:
            sub.setsockopt(zmq.LINGER, 0)
            sub.setsockopt(zmq.RCVHWM, 2)
            sub.setsockopt(zmq.RCVBUF, 16384)
            sub.subscribe("pose/")
            sub.connect(self._endpoint)
            while not self.stop.is_set():
                if not sub.poll(50):
                    continue
                frame = json.loads(sub.recv().partition(b"\0")[2])["frame"]
                self.ages_ms.append((time.monotonic_ns() - frame) / 1e6)
                self.ready.set()
                time.sleep(self._pause_seconds)


DEAD_READER = """
import sys, zmq
sub = zmq.Context().socket(zmq.SUB)
sub.subscribe("")
sub.connect(sys.argv[1])
sub.recv()
print("ready", flush=True)
while True:
    sub.recv()
"""


def latency() -> dict[str, dict[str, float]]:
    """From the call to the fast subscriber's hands, 100 messages of 20 people a second."""
    print(f"{'subscribers':>18} {'median ms':>10} {'p95 ms':>8} {'got':>5} {'not taken':>10}")
    rounds: dict[str, list[float]] = {FAST: [], SLOW: [], DEAD: []}
    got: dict[str, int] = dict.fromkeys(rounds, 0)
    overflows: dict[str, int] = dict.fromkeys(rounds, 0)
    for round_ in range(2):  # the cases take turns, both ways
        for case in list(rounds)[:: -1 if round_ else 1]:
            ages_ms, not_taken = _latency_of(case)
            rounds[case] += ages_ms
            got[case] += len(ages_ms)
            overflows[case] += not_taken
    results = {}
    for case, ages_ms in rounds.items():
        median, p95 = np.percentile(ages_ms, (50, 95))
        print(f"{case:>18} {median:>10.2f} {p95:>8.2f} {got[case]:>5} {overflows[case]:>10}")
        results[case] = {
            "median_ms": round(float(median), 3), "p95_ms": round(float(p95), 3),
            "got": got[case], "overflows": overflows[case],
        }  # fmt: skip
    return results


def _latency_of(case: str) -> tuple[list[float], int]:
    publisher = Publisher("tcp://127.0.0.1:*")
    readers = [Reader(publisher.endpoint)]
    if case == SLOW:
        readers.append(Reader(publisher.endpoint, pause_seconds=SLOW_SECONDS))
    dead = _dead_reader(publisher) if case == DEAD else None
    people = crowd(20, SIZE)
    for reader in readers:
        reader.start()
    while not all(reader.ready.is_set() for reader in readers):
        publisher(poses_of(people, index=time.monotonic_ns()))
        time.sleep(0.02)
    time.sleep(0.5)
    before = len(readers[0].ages_ms)
    for _ in range(MESSAGES):
        publisher(poses_of(people, index=time.monotonic_ns()))
        time.sleep(INTERVAL_SECONDS)
    time.sleep(0.2)
    for reader in readers:
        reader.stop.set()
        reader.join()
    not_taken = publisher.overflows().get("cam1", 0)
    if dead is not None:
        dead.kill()
        dead.wait()
    publisher.close()
    return readers[0].ages_ms[before:], not_taken


def _dead_reader(publisher: Publisher) -> subprocess.Popen[str]:
    reader = subprocess.Popen(
        [sys.executable, "-c", DEAD_READER, publisher.endpoint], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    ready = threading.Thread(target=reader.stdout.readline)
    ready.start()
    while ready.is_alive():
        publisher(poses_of(crowd(1, SIZE)))
        time.sleep(0.02)
    reader.send_signal(signal.SIGSTOP)
    return reader


def dead_subscriber(seconds: float) -> dict[str, float]:
    """Memory of the publisher's process while a subscriber is connected that never reads."""
    publisher = Publisher("tcp://127.0.0.1:*")
    reader = _dead_reader(publisher)
    people = crowd(20, SIZE)
    process = psutil.Process()
    memory_mb: list[float] = []
    start = time.monotonic()
    sent = 0
    while time.monotonic() < start + seconds:
        publisher(poses_of(people))
        sent += 1
        if sent % 50 == 0:
            memory_mb.append(process.memory_info().rss / 1e6)
        time.sleep(INTERVAL_SECONDS)
    not_taken = publisher.overflows()["cam1"]
    reader.kill()
    reader.wait()
    publisher.close()
    early, last = memory_mb[len(memory_mb) // 6], memory_mb[-1]
    print(f"dead subscriber, {seconds:.0f} s: {sent} messages sent, {not_taken} not taken;")
    print(f"memory {early:.1f} MB after a sixth, {last:.1f} MB at the end")
    return {
        "seconds": seconds, "sent": sent, "overflows": not_taken,
        "early_mb": round(early, 2), "last_mb": round(last, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
