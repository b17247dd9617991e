"""One end of a queue in a process of its own, for the tests of queues.py to start and to kill.

    python -m tests.support.queue_peer send ENDPOINT --count 100
    python -m tests.support.queue_peer receive ENDPOINT

Every step is a line on standard output: `ready ENDPOINT`, `sent 7`, `got 7`, `end`.
"""

import argparse
import time

import numpy as np

from pipeline.messages import Frame
from pipeline.runtime.queues.credit import END
from pipeline.runtime.queues.receiver import Receiver
from pipeline.runtime.queues.sender import Sender


def make_frame(index: int, *, height: int = 288, width: int = 512) -> Frame:
    """A yuv420p frame whose every byte tells its index; its Y plane has padded rows."""
    value = index % 251
    chroma = np.full((height // 2, width // 2), value, np.uint8)
    return Frame(
        source="cam1",
        index=index,
        pts_seconds=index / 25,
        captured_ns=time.monotonic_ns(),
        captured_unix_s=time.time(),
        size=(height, width),
        planes=(np.full((height, width + 32), value, np.uint8)[:, :width], chroma, chroma.copy()),
        pixel_format="yuv420p",
    )


def is_intact(frame: Frame) -> bool:
    """Whether every pixel is still that of make_frame."""
    return len(frame.planes) == 3 and all(
        bool((plane == frame.index % 251).all()) for plane in frame.planes
    )


def send(endpoint: str, first: int, count: int) -> None:
    with Sender(endpoint) as sender:
        print("ready", sender.endpoint, flush=True)
        for index in range(first, first + count):
            sender.send(make_frame(index))
            print("sent", index, flush=True)


def receive(endpoint: str, delay_seconds: float) -> None:
    with Receiver(endpoint) as receiver:
        print("ready", endpoint, flush=True)
        while (frame := receiver.receive()) is not END:
            print("got" if is_intact(frame) else "broken", frame.index, flush=True)
            time.sleep(delay_seconds)
        print("end", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["send", "receive"])
    parser.add_argument("endpoint")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--delay-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    if arguments.role == "send":
        send(arguments.endpoint, arguments.first, arguments.count)
    else:
        receive(arguments.endpoint, arguments.delay_seconds)


if __name__ == "__main__":
    main()
