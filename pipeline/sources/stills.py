"""Sources of still pictures: files in a given order, folders in natural order, animations.

    f1.jpg f2.jpg f10.jpg  ->  Picture 0, 1, 2        a file that cannot be read leaves its number

Pictures stand upright as every viewer shows them: EXIF's eight orientations are obeyed, unless the
user gave a rotation.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from pathlib import Path

import cv2
import numpy as np

from pipeline.sources.source import NumberedSource, SourceError, SourceSettings
from pipeline.sources.video_reader import Picture

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_ANIMATED_SUFFIXES = {".webp", ".png"}
_USUAL_FRAME_MS = 100  # where an animation says 0, as browsers do
_SKIPPED_NAMED = 3


class ImageFiles(NumberedSource):
    """Images in the order given; the i-th file is frame i, whatever becomes of the others."""

    def __init__(self, name: str, paths: list[Path], settings: SourceSettings) -> None:
        if settings.pace:
            raise SourceError(f"{paths[0].parent}: images have no speed to pace; leave pace out")
        super().__init__(name, settings, num_frames=len(paths))
        self._paths = paths
        self._first_number = 0  # of this pass; with loop there are several

    def _pictures(self) -> Generator[Picture, None, None]:
        unreadable = []
        first, self._first_number = self._first_number, self._first_number + len(self._paths)
        for number, path in enumerate(self._paths, start=first):
            bgr = _read(path, self._settings)
            if bgr is None:
                unreadable.append(path.name)
                _logger.warning("%s: %s cannot be read, skipped", self.name, path.name)
                continue
            yield Picture(planes=(bgr,), image_name=path.name, number=number)
        if len(unreadable) == len(self._paths):
            raise SourceError(f"{self._paths[0]}: cannot be read as an image, nor any other given")
        if unreadable:
            _logger.warning(
                "%s: %d of %d images could not be read",
                self.name, len(unreadable), len(self._paths),
            )  # fmt: skip


class Animation(NumberedSource):
    """An animated WebP or PNG: a short video."""

    def __init__(self, path: Path, name: str, settings: SourceSettings) -> None:
        frames, durations = _animation(path)
        seconds = [(ms or _USUAL_FRAME_MS) / 1e3 for ms in durations]
        fps = len(frames) / sum(seconds)
        super().__init__(name, settings, num_frames=len(frames), fps=fps)
        self._frames = frames
        self._starts = np.cumsum([0.0, *seconds[:-1]]).tolist()

    def _pictures(self) -> Generator[Picture, None, None]:
        for bgr, start in zip(self._frames, self._starts, strict=True):
            yield Picture(planes=(bgr,), pts_seconds=start)


def open_still(path: Path, name: str, settings: SourceSettings) -> NumberedSource:
    """One image file; its pictures, where it is an animation."""
    if path.suffix.lower() in _ANIMATED_SUFFIXES and len(_animation(path)[0]) > 1:
        return Animation(path, name, settings)
    return ImageFiles(name, [path], settings)


def open_folder(folder: Path, name: str, settings: SourceSettings) -> ImageFiles:
    """The images that lie in a folder, f2 before f10. What else lies there is said in one line."""
    return _images(
        list(folder.iterdir()), name, settings, where=f"{folder}: no images in this folder"
    )


def open_pattern(pattern: Path, name: str | None, settings: SourceSettings) -> ImageFiles:
    """The images whose names fit a pattern such as "shots/*.jpg", which no shell has expanded."""
    fitting = list(pattern.parent.glob(pattern.name)) if pattern.parent.is_dir() else []
    where = f"{pattern}: no image fits this pattern"
    name = name or pattern.parent.resolve().name or "images"
    return _images(fitting, name, settings, where=where)


def _images(entries: list[Path], name: str, settings: SourceSettings, *, where: str) -> ImageFiles:
    entries = sorted(entries, key=lambda path: natural_key(path.name))
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise SourceError(f"{where}; looked for {kinds}")
    others = [path for path in entries if path not in set(images) and path.name[0] != "."]
    if others:
        _logger.warning("%s: %s", name, _skipped(others))
    return ImageFiles(name, images, settings)


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts numbers in names by their value, letters without regard to case."""
    parts = re.split(r"(\d+)", name.casefold())
    # What stands at an odd place is a number; an empty text before it keeps the places.
    numbers = [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
    return numbers, name


def _skipped(others: list[Path]) -> str:
    num_folders = sum(path.is_dir() for path in others)
    kinds = [(len(others) - num_folders, "other file"), (num_folders, "folder")]
    counts = [f"{count} {kind}{'s' * (count > 1)}" for count, kind in kinds if count]
    names = ", ".join(path.name for path in others[:_SKIPPED_NAMED])
    more = ", ..." if len(others) > _SKIPPED_NAMED else ""
    return (
        f"skipping {' and '.join(counts)} in it ({names}{more}); "
        "give videos and folders as sources of their own"
    )


def _read(path: Path, settings: SourceSettings) -> np.ndarray | None:
    """(height, width, 3) BGR; None where it is no image that can be read."""
    flags = cv2.IMREAD_COLOR
    if settings.rotation is not None:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        data = np.fromfile(path, np.uint8)  # not by OpenCV, which takes names in UTF-8 only
        bgr = cv2.imdecode(data, flags) if data.size else None
    except (OSError, cv2.error):  # too large for OpenCV, for example
        return None
    return None if bgr is None else np.asarray(bgr)


def _animation(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """Its pictures, (height, width, 3) BGR, and their milliseconds; empty where it is none."""
    try:
        done, animation = cv2.imdecodeanimation(np.fromfile(path, np.uint8))
    except (OSError, cv2.error):
        return [], []
    if not done:
        return [], []
    frames = [np.ascontiguousarray(frame[..., :3]) for frame in animation.frames]
    return frames, list(animation.durations)
