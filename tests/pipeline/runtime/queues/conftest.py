"""Addresses that are free, and proof that a test of queues leaves nothing behind."""

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.runtime.queues import handles
from pipeline.runtime.queues.slots import sweep_leftovers
from tests.support.queue_ends import own_segments


@pytest.fixture
def endpoint() -> Iterator[Callable[[str], str]]:
    """Makes addresses that nobody uses; short ones, for a Unix socket's path is limited."""
    folder = Path(tempfile.mkdtemp(prefix="q"))
    numbers = iter(range(1000))

    def make(scheme: str) -> str:
        number = next(numbers)
        if scheme == "inproc":
            return f"inproc://{folder.name}-{number}"
        if scheme == "ipc":
            return f"ipc://{folder}/{number}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    yield make
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test leaves no thread, no handle and no shared memory behind."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    # The helper of pyzmq's zero-copy sends is one for each process and stays.
    assert [thread for thread in left if type(thread).__name__ != "GarbageCollectorThread"] == []
    assert len(handles.in_transit) == 0
    assert own_segments() == []
    sweep_leftovers()  # of the processes that the test has killed
