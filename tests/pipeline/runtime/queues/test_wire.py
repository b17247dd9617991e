"""Messages as bytes: whole with and without shared memory, and junk is refused."""

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.messages import Frame
from pipeline.runtime.queues import wire
from pipeline.runtime.queues.wire import ClockOffset, WireError
from tests.support.queue_peer import is_intact, make_frame


class Memory:
    """Stands for one segment of shared memory."""

    def __init__(self) -> None:
        self.data = np.zeros(1 << 22, np.uint8)

    def write(self, arrays: Sequence[np.ndarray]) -> tuple[str, list[int]]:
        offsets, end = [], 0
        for array in arrays:
            offsets.append(end)
            self.data[end : end + array.nbytes] = np.ascontiguousarray(array).reshape(-1)
            end += array.nbytes
        return "segment", offsets

    def open(self, name: str) -> np.ndarray:
        assert name == "segment"
        return self.data


def as_buffers(parts: Sequence[Any]) -> list[memoryview]:
    return [memoryview(part) for part in parts]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("size", [(2, 2), (288, 512), (720, 1280)])
def test_a_frame_comes_back_whole(size: tuple[int, int], in_memory: bool) -> None:
    memory = Memory()
    frame = make_frame(9, height=size[0], width=size[1])
    parts = wire.pack(frame, write=memory.write if in_memory else None)
    again = wire.unpack(as_buffers(parts), open_segment=memory.open if in_memory else None)
    assert isinstance(again, Frame)
    assert again.index == 9
    assert is_intact(again)
    assert not any(plane.flags.writeable for plane in again.planes)
    large = sum(plane.nbytes > wire.INLINE_BYTES for plane in frame.planes)
    assert len(parts) == 1 + 3 - (large if in_memory else 0)


def header_of(frame: Frame, **changes: Any) -> list[memoryview]:
    parts = wire.pack(frame)
    header = msgpack.unpackb(bytes(parts[0]))
    header.update(changes)
    return as_buffers([msgpack.packb(header), *parts[1:]])


SMALL = make_frame(1, height=4, width=4)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(as_buffers([b""]), id="nothing"),
        pytest.param(as_buffers([b"\xc1\xff\x00"]), id="no msgpack"),
        pytest.param(as_buffers([msgpack.packb([1, 2])]), id="no header"),
        pytest.param(header_of(SMALL, type="Secret"), id="unknown type"),
        pytest.param(header_of(SMALL)[:2], id="arrays missing"),
        pytest.param(header_of(SMALL, fields={"index": 3}), id="fields missing"),
        pytest.param(header_of(SMALL, arrays=[["|u1", [99, 99], None]]), id="larger than sent"),
        pytest.param(header_of(SMALL, arrays=[["|u1", [-1, 4], None]]), id="negative"),
        pytest.param(header_of(SMALL, arrays=[["|O", [1], None]]), id="objects"),
        pytest.param(header_of(SMALL, arrays=[["|u1", [2, 2], 0]]), id="place without segment"),
    ],
)
def test_junk_is_refused(parts: list[memoryview]) -> None:
    with pytest.raises(WireError, match="received"):
        wire.unpack(parts)


@pytest.mark.parametrize("offset", [-1, 1 << 22, 1 << 70])
def test_a_place_outside_the_segment_is_refused(offset: int) -> None:
    memory = Memory()
    place = float(offset) if offset > 1 << 60 else offset
    parts = header_of(SMALL, segment="segment", arrays=[["|u1", [2, 2], place]])
    with pytest.raises(WireError, match="does not fit"):
        wire.unpack(parts, open_segment=memory.open)


def test_another_version_is_named() -> None:
    with pytest.raises(WireError, match=f"version 99, this one {wire.VERSION}; update both"):
        wire.unpack(header_of(SMALL, version=99))


def test_only_frames_and_poses_cross() -> None:
    with pytest.raises(ValueError, match="only Frame and Poses can cross to another process"):
        wire.pack({"a": 1})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=100)
@given(
    offset_ns=st.integers(-(10**15), 10**15),
    ways_ns=st.lists(
        st.tuples(*[st.integers(10**4, 10**6)] * 2, *[st.integers(0, 10**9)] * 2),
        min_size=1,
        max_size=80,
    ),
)
def test_the_clocks_offset_is_right_to_half_a_round_trip(
    offset_ns: int, ways_ns: list[tuple[int, int, int, int]]
) -> None:
    """Each message: its credit travels, the sender thinks, it travels, it waits in the socket."""
    clock = ClockOffset()
    now_ns = 10**15
    for there_ns, back_ns, thinking_ns, waiting_ns in ways_ns:
        granted_ns = now_ns
        left_ns = granted_ns + there_ns + thinking_ns  # by the receiver's clock
        now_ns = left_ns + back_ns + waiting_ns
        estimate_ns = clock.update(granted_ns, left_ns - offset_ns, now_ns)
    recent = ways_ns[-64:]
    before = min(there + thinking for there, _, thinking, _ in recent)
    after = min(back + waiting for _, back, _, waiting in recent)
    assert abs(estimate_ns - offset_ns) <= max(before, after) // 2 + 1
