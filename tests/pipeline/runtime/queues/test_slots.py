"""Slots of shared memory: what is held is never overwritten, and nothing is left behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.runtime.queues import slots
from pipeline.runtime.queues.slots import SlotReader, SlotWriter, sweep_leftovers
from tests.support.places import ROOT

SHM = Path("/dev/shm")


@pytest.fixture
def writer() -> Iterator[SlotWriter]:
    made = SlotWriter()
    yield made
    made.close()
    assert list(SHM.glob(f"posestream-{os.getpid()}-*")) == []


def test_arrays_arrive_aligned_and_read_only(writer: SlotWriter) -> None:
    arrays: list[np.ndarray] = [
        np.arange(100, dtype=np.uint8)[::3],
        np.arange(50_000, dtype=np.float32).reshape(100, 500)[:, 7:].T,
        np.zeros((0, 17, 3), np.float32),
        np.arange(5),
    ]
    name, offsets = writer.write(0, arrays)
    memory = SlotReader(1).open(0, name)
    for array, offset in zip(arrays, offsets, strict=True):
        assert offset % 64 == 0
        place = np.ndarray(array.shape, array.dtype, buffer=memory, offset=offset)
        assert np.array_equal(place, array)
        assert not place.flags.writeable


def test_a_slot_is_free_when_the_last_view_is_gone(writer: SlotWriter) -> None:
    reader = SlotReader(2)
    assert (reader.reserve(), reader.reserve(), reader.reserve()) == (0, 1, None)
    reader.give_back(1)
    assert reader.reserve() == 1
    name, _ = writer.write(0, [np.arange(64, dtype=np.uint8)])
    memory = reader.open(0, name)
    picture = np.ndarray((8, 8), np.uint8, buffer=memory)
    corner = picture[2:4, ::2].T
    buffer = corner.data
    for held in ("memory", "picture", "corner"):
        assert reader.reserve() is None, held
        if held == "memory":
            del memory
        elif held == "picture":
            del picture
        else:
            del corner
    assert reader.reserve() is None
    del buffer
    gc.collect()
    assert reader.reserve() == 0


def test_a_slot_may_be_freed_by_any_thread_and_after_the_reader(writer: SlotWriter) -> None:
    reader = SlotReader(1)
    reader.reserve()
    name, _ = writer.write(0, [np.full(64, 5, np.uint8)])
    held = [reader.open(0, name)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert reader.reserve() == 0
    memory = reader.open(0, name)
    del reader
    writer.close()
    assert (memory[:64] == 5).all()
    del memory


def test_a_slot_grows_and_its_old_segment_goes(writer: SlotWriter) -> None:
    small, _ = writer.write(3, [np.zeros(1000, np.uint8)])
    same, _ = writer.write(3, [np.zeros(60_000, np.uint8)])
    large, _ = writer.write(3, [np.zeros(10_000_000, np.uint8)])
    kept, _ = writer.write(3, [np.zeros(10, np.uint8)])
    assert small == same != large == kept
    assert not (SHM / small).exists()
    assert (SHM / large).stat().st_size >= 10_000_000
    assert (SHM / large).stat().st_mode & 0o077 == 0  # nobody else may look at the pictures


def test_a_full_memory_is_an_error_and_not_the_end_of_the_process(writer: SlotWriter) -> None:
    room = os.statvfs(SHM).f_bavail * os.statvfs(SHM).f_frsize
    before = set(SHM.iterdir())
    with pytest.raises(OSError, match=r"no room for another slot of .* MB; enlarge it"):
        slots._create(room + (1 << 30))
    assert set(SHM.iterdir()) == before


def test_only_segments_of_ours_are_opened() -> None:
    for name in ("../../etc/passwd", "posestream-/../../../etc/passwd", "sem.other"):
        with pytest.raises(ValueError, match="a segment's name must be"):
            SlotReader(1).open(0, name)


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_stay() -> None:
    script = """if True:
        import numpy, sys
        from pipeline.runtime.queues.slots import SlotWriter
        writer = SlotWriter()
        print(writer.write(0, [numpy.zeros(9, numpy.uint8)])[0], flush=True)
        sys.stdin.read()
        writer.close()
    """
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    killed, living = (
        subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
        for _ in range(2)
    )
    dead_name, living_name = (process.stdout.readline().strip() for process in (killed, living))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    # The same process number in another PID namespace (a container) is another process.
    elsewhere = SHM / f"posestream-{killed.pid}-1-{os.getpid()}"
    elsewhere.touch()
    try:
        assert (SHM / dead_name).exists()
        sweep_leftovers()
        assert not (SHM / dead_name).exists()
        assert (SHM / living_name).exists()
        assert elsewhere.exists()
    finally:
        elsewhere.unlink()
        living.communicate()
    assert not (SHM / living_name).exists()
