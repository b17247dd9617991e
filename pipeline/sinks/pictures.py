"""The sink that makes still pictures: `--save out.jpg`, or one file a frame in a folder.

    Poses -> picture (overlay.py, or the frame's own) -> out.jpg, or poses/<file name>.jpg

Knows nothing of how pictures are drawn.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from common.files import write_atomically
from pipeline.messages import Frame, Poses
from pipeline.sinks.outputs import OutputNames, check_output_file, check_output_folder, file_word
from pipeline.sinks.overlay import Draw, with_square_pixels
from pipeline.sinks.unwritten import Unwritten

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def is_for_pictures(path: Path) -> bool:
    """Whether pictures are asked for: by the suffix of one, or by a folder."""
    return path.suffix.lower() in PICTURE_SUFFIXES or path.is_dir() or not path.suffix


class PictureSink:
    """Pictures of square pixels. One that finds no room on the disk is missing, and counted."""

    def __init__(self, path: Path, draw: Draw, *, per_source: bool = False) -> None:
        """Check the path; files that are there are replaced as their frames come.

        Args:
            path: a file; from its second frame on a source puts the frame's index before the
                suffix. Without a suffix it is a folder, which is made: pictures of a folder keep
                their names there, frames of a video have their index.
            draw: makes the pictures, for example overlay.drawn_picture.
            per_source: every source gets a file name or folder of its own.
        Raises:
            ValueError: nothing can be written there.
        """
        self._is_folder = path.suffix.lower() not in PICTURE_SUFFIXES
        if self._is_folder:
            check_output_folder(path if path.exists() else path.absolute().parent)
        else:
            check_output_file(path)
        self._path = path
        self._draw = draw
        self._per_source = per_source
        self._names = OutputNames(path, per_source=per_source)
        self._of_source: dict[str, Path] = {}
        self._unwritten = Unwritten(path)

    def __call__(self, poses: Poses) -> None:
        frame = poses.frame
        picture = with_square_pixels(self._draw(poses), frame)
        path = self._in_folder(frame) if self._is_folder else self._beside(frame)
        self._unwritten.attempt(frame.source, partial(_write_whole, path, picture))

    def unwritten(self) -> dict[str, dict[str, int]]:
        """See Unwritten.counts."""
        return self._unwritten.counts()

    def close(self) -> None:
        """Nothing is left open: every file was finished when it was written."""

    def _in_folder(self, frame: Frame) -> Path:
        folder = self._path / file_word(frame.source) if self._per_source else self._path
        if not frame.image_name:
            return folder / f"{file_word(frame.source)}_{frame.index:012d}.jpg"
        name = frame.image_name
        return folder / (name if Path(name).suffix.lower() in PICTURE_SUFFIXES else f"{name}.jpg")

    def _beside(self, frame: Frame) -> Path:
        path = self._of_source.get(frame.source)
        if path is None:
            path = self._of_source[frame.source] = self._names.for_source(frame.source)
            return path
        return path.with_name(f"{path.stem}-{frame.index}{path.suffix}")


def _write_whole(path: Path, picture: np.ndarray) -> None:
    done, coded = cv2.imencode(path.suffix.lower(), picture)
    assert done, "OpenCV encodes every uint8 BGR picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, bytes(coded))
