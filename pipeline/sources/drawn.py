"""Sources that a function draws: the demo scene and the test pattern. No file, no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from itertools import count, islice

import numpy as np

from pipeline.sources.source import NumberedSource, SourceError, SourceSettings
from pipeline.sources.video_reader import Picture


class DrawnSource(NumberedSource):
    """Pictures that a function draws: the demo scene, the test pattern."""

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        draw: Callable[[int], np.ndarray],
        *,
        fps: float,
        num_frames: int | None,
    ) -> None:
        super().__init__(name, settings, num_frames=num_frames, fps=fps)
        self._draw = draw
        self._length = num_frames

    def _pictures(self) -> Generator[Picture, None, None]:
        for index in islice(count(), self._length):
            yield Picture(planes=(self._draw(index),), pts_seconds=index / self._rate)


class TestPattern:
    """Coloured checks that slide to the left, under a row of cells that spells the frame number.

    Cell i of 24 is white where bit i of the number is set, so that the number can be read back
    from a picture, even one that was compressed.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._height, self._width = size
        cell = max(4, self._height // 9)
        y, x = np.mgrid[: self._height, : 2 * self._width].astype(np.int32)
        x %= self._width  # twice the same picture side by side: any window of it is a rotation
        wave = (255 * x // self._width, 255 * y // self._height, 96 * ((x // cell + y // cell) % 2))
        self._wide = np.stack(wave, axis=-1).astype(np.uint8)

    def picture(self, index: int) -> np.ndarray:
        """A new (height, width, 3) uint8 BGR array."""
        left = 4 * index % self._width
        picture = self._wide[:, left : left + self._width].copy()
        bits = (index >> np.arange(24)) & 1
        row = np.repeat(bits * 255, self._width // 24).astype(np.uint8)
        picture[: self._height // 12, : len(row)] = row[:, None]
        return picture


def parse_test_pattern(text: str) -> tuple[tuple[int, int], float]:
    """ "testsrc=1280x720@30" -> ((720, 1280), 30.0); both parts may be left out."""
    match = re.fullmatch(r"testsrc(?:=(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?)?", text)
    if not match:
        raise SourceError(f"{text}: write testsrc, testsrc=1280x720 or testsrc=1280x720@30")
    width, height, fps = int(match[1] or 1280), int(match[2] or 720), float(match[3] or 30)
    if width < 48 or height < 48 or fps <= 0:
        raise SourceError(f"{text}: at least 48x48 pixels and more than 0 frames a second")
    return (height, width), fps
