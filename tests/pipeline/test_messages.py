"""Messages as parts and back: nothing is lost, and what should be refused is."""

import math
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.messages import ColorSpace, Frame, NetInput, PixelFormat, Poses

SKELETONS = {"coco17": 17, "crowdpose14": 14}


def planes_of(pixel_format: str, height: int, width: int, seed: int) -> tuple[np.ndarray, ...]:
    chance = np.random.default_rng(seed)
    half = (math.ceil(height / 2), math.ceil(width / 2))
    shapes: dict[str, list[tuple[int, ...]]] = {
        "bgr24": [(height, width, 3)],
        "rgb24": [(height, width, 3)],
        "yuv420p": [(height, width), half, half],
        "nv12": [(height, width), (*half, 2)],
    }
    return tuple(chance.integers(0, 256, shape, np.uint8) for shape in shapes[pixel_format])


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    pixel_format: PixelFormat = draw(st.sampled_from(get_args(PixelFormat)))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rotation = draw(st.sampled_from([0, 90, 180, 270]))
    return Frame(
        source=draw(st.text(max_size=10)),
        index=draw(st.integers(0, 2**40)),
        pts_seconds=draw(st.none() | st.floats(0, 1e6)),
        captured_ns=draw(st.integers(0, 2**60)),
        captured_unix_s=draw(st.floats(0, 4e9)),
        size=(height, width) if rotation % 180 == 0 else (width, height),
        planes=planes_of(pixel_format, height, width, draw(st.integers(0, 99))),
        pixel_format=pixel_format,
        color_space=draw(st.sampled_from(get_args(ColorSpace))),
        full_range=draw(st.booleans()),
        rotation=rotation,
        image_name=draw(st.text(max_size=10)),
        live=draw(st.booleans()),
    )


@st.composite
def poses(draw: st.DrawFn) -> Poses:
    skeleton = draw(st.sampled_from(sorted(SKELETONS)))
    people, keypoints = draw(st.integers(0, 5)), SKELETONS[skeleton]
    chance = np.random.default_rng(draw(st.integers(0, 99)))
    return Poses(
        frame=draw(frames()),
        skeleton=skeleton,
        keypoints=chance.random((people, keypoints, 3), np.float32),
        scores=chance.random(people, np.float32),
        filled=chance.random((people, keypoints)) < 0.5,
        ids=chance.integers(-1, 99, people),
        completed_ns=draw(st.integers(0, 2**60)),
        stage_ms=draw(st.dictionaries(st.text(max_size=8), st.floats(0, 1e4), max_size=4)),
        smoothed=draw(st.sampled_from([None, chance.random((people, keypoints, 2), np.float32)])),
    )


def assert_same(left: Any, right: Any) -> None:
    """Field by field; arrays in dtype, shape and value."""
    assert type(left) is type(right)
    for name in type(left).__dataclass_fields__:
        ours, theirs = getattr(left, name), getattr(right, name)
        if isinstance(ours, Frame):
            assert_same(ours, theirs)
        elif isinstance(ours, np.ndarray):
            assert_same_arrays((ours,), (theirs,))
        elif name == "planes":
            assert_same_arrays(ours, theirs)
        else:
            assert ours == theirs, name
            assert type(ours) is type(theirs), name


def assert_same_arrays(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> None:
    assert [array.dtype for array in left] == [array.dtype for array in right]
    assert all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


@settings(deadline=None, max_examples=50)
@given(message=frames() | poses())
def test_parts_and_msgpack_give_the_message_back(message: Frame | Poses) -> None:
    header, arrays = message.to_parts()
    travelled = msgpack.unpackb(msgpack.packb(header))
    assert_same(message, type(message).from_parts(travelled, arrays))


@settings(deadline=None, max_examples=20)
@given(message=frames() | poses(), shift_ns=st.integers(-(10**15), 10**15))
def test_ageing_moves_the_clock_and_nothing_else(message: Frame | Poses, shift_ns: int) -> None:
    aged = message.aged(shift_ns)
    frame, aged_frame = (
        (message.frame, aged.frame)
        if isinstance(message, Poses) and isinstance(aged, Poses)
        else (message, aged)
    )
    assert isinstance(frame, Frame)
    assert isinstance(aged_frame, Frame)
    assert aged_frame.captured_ns - frame.captured_ns == shift_ns
    if isinstance(message, Poses) and isinstance(aged, Poses):
        assert aged.latency_ms == pytest.approx(message.latency_ms, abs=1e-3)
    assert_same(message, aged.aged(-shift_ns))


@settings(deadline=None, max_examples=20)
@given(message=poses())
def test_without_pixels_all_else_stays(message: Poses) -> None:
    bare = message.without_pixels()
    assert message.frame.has_pixels
    assert not bare.frame.has_pixels
    assert bare.frame.size == message.frame.size
    assert bare.keypoints is message.keypoints
    with pytest.raises(ValueError, match="carries no pixels"):
        bare.frame.to_host()


def test_printing_a_message_shows_shapes_and_no_pixels() -> None:
    frame = Frame(
        source="cam1",
        index=3,
        pts_seconds=None,
        captured_ns=0,
        captured_unix_s=0.0,
        size=(2160, 3840),
        planes=planes_of("bgr24", 2160, 3840, 0),
    )
    batch = NetInput((frame,), np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 2, 3)))
    assert repr(frame) in repr(batch)
    assert "(2160, 3840, 3)" in repr(frame)
    assert len(repr(batch)) < 200


def test_a_frame_refuses_a_rotation_that_is_none() -> None:
    with pytest.raises(ValueError, match="rotation must be 0, 90, 180 or 270, got 45"):
        Frame("cam1", 0, None, 0, 0.0, (1, 1), (), rotation=45)
