"""Small videos with known content, and readers of sources, for tests of the decoder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.messages import Frame
from pipeline.sources.open import open_source
from pipeline.sources.source import Source, SourceError, SourceSettings
from tests.support.places import ROOT
from tests.support.waiting import PATIENCE_SECONDS

SIZE = (96, 128)


def grey(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that tells its number, up to 30, by its brightness."""
    return np.full((*size, 3), 20 + 7 * index, np.uint8)


def number_of(frame: Frame) -> int:
    return round((float(frame.to_host().mean()) - 20) / 7)


def patches(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Four corners of different colours: shows turns, mirroring and wrong colour matrices."""
    height, width = size
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (40, 50, 200)
    picture[: height // 2, width // 2 :] = (60, 190, 50)
    picture[height // 2 :, : width // 2] = (200, 80, 60)
    picture[height // 2 :, width // 2 :] = (230, 230, 230)
    return picture


def write_clip(
    path: Path,
    pictures: list[np.ndarray],
    *,
    fps: int = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "crf": "12", "g": "10", "bf": "0"}
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def read(text: object, **settings: Any) -> list[Frame]:
    return list(open_with(text, **settings).frames())


def open_with(text: object, **settings: Any) -> Source:
    return open_source(str(text), settings=SourceSettings(**settings))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def read_cut_off(text: object) -> list[Frame]:
    """All frames of a file that ends too early, which must be said."""
    frames: list[Frame] = []
    with pytest.raises(SourceError, match="the video is cut off"):
        frames.extend(open_source(str(text)).frames())
    return frames


@contextmanager
def reading(source: Source) -> Iterator[list[int]]:
    """Read the source in a thread of its own; stop it at the end of the block, and it must stop."""
    numbers: list[int] = []
    reader = threading.Thread(target=lambda: numbers.extend(f.index for f in source.frames()))
    reader.start()
    try:
        yield numbers
    finally:
        source.stop()
        reader.join(timeout=PATIENCE_SECONDS)
    assert not reader.is_alive()
    assert source.status.state == "ended"


def kill_once_written(script: str, path: Path) -> None:
    """Run a script that is given the path; SIGKILL it when it has said `written`."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
