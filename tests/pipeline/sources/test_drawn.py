"""The test pattern and the demo."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sources import demo
from tests.support.clips import open_with, read


def test_the_test_pattern_moves_and_spells_its_number() -> None:
    source = open_with("testsrc=320x240@50", max_frames=40)
    assert (source.name, source.live, source.num_frames, source.fps) == ("testsrc", False, 40, 50.0)
    frames = list(source.frames())
    assert {frame.size for frame in frames} == {(240, 320)}
    assert [frame.pts_seconds for frame in frames] == pytest.approx(np.arange(40) / 50)
    cell = 320 // 24
    for frame in frames:
        bits = frame.planes[0][5, cell // 2 : 24 * cell : cell, 0] > 127
        assert int(bits @ (1 << np.arange(24))) == frame.index
    assert np.any(frames[0].planes[0][40:] != frames[1].planes[0][40:])
    again = read("testsrc=320x240@50", max_frames=40)
    np.testing.assert_array_equal(again[39].planes[0], frames[39].planes[0])
    assert open_with("testsrc").num_frames is None


def test_the_demo_is_a_source() -> None:
    source = open_with("demo")
    assert (source.name, source.live, source.num_frames, source.fps) == ("demo", False, 300, 30.0)
    frames = read("demo", max_frames=3)
    assert [frame.size for frame in frames] == [(720, 1280)] * 3
    np.testing.assert_array_equal(frames[2].to_host(), demo.picture(2))
    assert open_with("demo", max_frames=500).num_frames == 500
