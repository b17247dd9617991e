"""The two ends of a queue for tests: in threads, in processes, through a connection that breaks."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.runtime.queues.credit import (
    END,
)
from pipeline.runtime.queues.receiver import Receiver
from pipeline.runtime.queues.sender import Sender
from tests.support.places import ROOT
from tests.support.queue_peer import is_intact
from tests.support.waiting import PATIENCE_SECONDS

SCHEMES = ["inproc", "ipc", "tcp"]


def own_segments() -> list[Path]:
    return list(Path("/dev/shm").glob(f"posestream-{os.getpid()}-*"))


class Background(threading.Thread):
    """A function in a thread; its result or its exception comes out of `result()`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "still running"
        if self._error is not None:
            raise self._error
        return self._value


def take(receiver: Receiver, timeout_seconds: float = PATIENCE_SECONDS) -> Any:
    """The next message (whose fields the test knows) or END."""
    return receiver.receive(timeout_seconds=timeout_seconds)


def send_all(address: str, messages: list[Any], **settings: Any) -> Background:
    """Send everything from another thread; its result is how many were dropped."""

    def run() -> int:
        with Sender(address, **settings) as sender:
            for message in messages:
                sender.send(message)
        return sender.dropped

    return Background(run)


class Peer:
    """A process of queue_peer.py and its lines."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.queue_peer", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.next_line().startswith("ready")

    def next_line(self, timeout_seconds: float = PATIENCE_SECONDS) -> str:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_seconds)
        assert readable or self.lines, "the peer says nothing"
        self.lines.append(self.process.stdout.readline().strip())
        return self.lines[-1]

    def wait_for(self, line: str) -> None:
        while self.next_line() != line:
            assert self.lines[-1], f"the peer ended without saying {line}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.finish()

    def finish(self) -> list[str]:
        """Wait for its end; every line it has said."""
        assert self.process.stdout is not None
        self.process.wait(PATIENCE_SECONDS)
        self.lines += [line.strip() for line in self.process.stdout]
        self.process.stdout.close()
        return self.lines


def indices(lines: list[str], word: str) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(f"{word} ")]


def receive_intact(receiver: Receiver, *, timeout_seconds: float) -> None:
    """Receive whole frames until something else happens."""
    while (frame := take(receiver, timeout_seconds)) is not END:
        assert is_intact(frame)


class Proxy:
    """A TCP connection that leads to another, and that can be cut."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        while self._open:
            shut(self._open.pop())

    def close(self) -> None:
        shut(self._listener)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._forward, args=(source, sink))
                thread.start()
                self._threads.append(thread)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with source:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 14):
                    sink.sendall(data)
            shut(sink)


def shut(open_socket: socket.socket) -> None:
    with contextlib.suppress(OSError):
        open_socket.shutdown(socket.SHUT_RDWR)
    open_socket.close()
