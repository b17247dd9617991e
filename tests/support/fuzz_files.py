"""Damaged video files, by the hundred, through the file source and through whole streams.

    python -m tests.support.fuzz_files FOLDER --seconds 600 --seed 1

A process of its own, for a broken file may crash FFmpeg: before each file one line says what is
done to it, and the file stays in FOLDER as `last.*`. A file may give frames and end, or be refused
with one line that names it (SourceError); whatever else comes of it ends the process with a
traceback. Every so many files one goes through a whole stream, whose exit code must be 0 or 2.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np

from pipeline.config import load_config
from pipeline.sources.open import open_source
from pipeline.sources.source import SourceError, SourceSettings
from pipeline.stream import Stream
from tests.support.clips import write_clip
from tests.support.painted import grid_people, paint, painted_model

SIZE = (96, 128)
NUM_FRAMES = 25
MAX_FRAMES = 100  # a damaged file may promise, and give, more than it was made of
STREAM_EVERY = 12
MIN_FILES = 30  # however little time there is
CODECS = {
    "mp4": "libx264", "mkv": "libx264", "mov": "mpeg4", "avi": "mpeg4", "ts": "libx264",
    "webm": "libvpx", "flv": "libx264", "mpg": "mpeg2video",
}  # fmt: skip


def whole_files(folder: Path) -> dict[str, bytes]:
    """A sound file for each container, by its suffix."""
    noise = np.random.default_rng(0).integers(0, 16, (NUM_FRAMES, *SIZE, 3), np.uint8)
    pictures = [paint(SIZE, grid_people(1, origin=(10, 10))) // 2 + picture for picture in noise]
    paths = [
        write_clip(folder / f"whole.{kind}", pictures, codec=codec)
        for kind, codec in CODECS.items()
    ]
    return {path.suffix[1:]: path.read_bytes() for path in paths}


def damaged(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """(what was done, the file): cut off, bits flipped, a piece overwritten, gone or repeated."""
    broken = bytearray(data)
    start = dice.randrange(len(data))
    length = dice.randrange(1, max(2, len(data) // 4))
    match dice.randrange(6):
        case 0:
            return f"cut off at {start}", data[:start]
        case 1:
            share = 10 ** dice.uniform(-5, -2)
            for _ in range(max(1, round(share * len(data)))):
                broken[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            return f"bits flipped, {share:.5f} of the bytes", bytes(broken)
        case 2:  # headers, where sizes and counts are
            for _ in range(dice.randrange(1, 8)):
                broken[dice.randrange(min(1000, len(data)))] = dice.choice((0, 0xFF, 0x7F, 0x80))
            return "extreme bytes in the head", bytes(broken)
        case 3:
            broken[start : start + length] = dice.randbytes(length)
            return f"noise at {start}, {length} bytes", bytes(broken)
        case 4:
            del broken[start : start + length]
            return f"{length} bytes gone at {start}", bytes(broken)
        case _:
            broken[start:start] = broken[start : start + length]
            return f"{length} bytes twice at {start}", bytes(broken)


def read(path: Path) -> str:
    """Read a file as a source; what came of it, in a word."""
    try:
        source = open_source(str(path), settings=SourceSettings(max_frames=MAX_FRAMES))
        for frame in source.frames():
            frame.to_host()
    except SourceError as error:
        if path.name not in str(error) or "\n" in str(error):
            raise
        return "refused"
    return "read"


def stream(path: Path) -> str:
    """The same with everything behind the source."""
    settings = {
        "inference.engine": "torch",
        "preprocess.input_size": min(SIZE),
        "recorder.jsonl": str(path.with_suffix(".jsonl")),
    }
    config = load_config(
        sources=[str(path)], every_source={"max_frames": MAX_FRAMES}, settings=settings
    )
    try:
        code = Stream(config, model=painted_model()).run()
    except SourceError:
        return "stream refused"
    if code not in (0, 2):
        raise RuntimeError(f"exit code {code}")
    return "streamed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    av.logging.set_level(None)
    dice = random.Random(options.seed)
    files = whole_files(options.folder)
    outcomes: Counter[str] = Counter()
    ends = time.monotonic() + options.seconds
    while time.monotonic() < ends or outcomes.total() < MIN_FILES:
        kind = dice.choice(list(files))
        what, data = damaged(files[kind], dice)
        print(f"{kind}: {what}", flush=True)
        path = options.folder / f"last.{kind}"
        path.write_bytes(data)
        is_streamed = outcomes.total() % STREAM_EVERY == 0
        outcomes[stream(path) if is_streamed else read(path)] += 1
    print(f"{outcomes.total()} files: {dict(outcomes)}")


if __name__ == "__main__":
    main()
