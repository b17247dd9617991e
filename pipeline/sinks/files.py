"""Poses written to files: JSON lines, a folder of OpenPose JSON, COCO keypoint results.

Each is a sink: called with every Poses, closed once the stream has ended, failed or been stopped.
What has been written is readable at any moment, also after a kill. Files change with the first
Poses, and what an earlier run wrote about live sources, which cannot be played again, is kept.
Knows nothing of pictures.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections import Counter
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from common.files import write_atomically
from pipeline.messages import Frame, Poses
from pipeline.sinks.line_file import LineFile
from pipeline.sinks.outputs import (
    Claims,
    OutputNames,
    beside,
    check_output_file,
    check_output_folder,
    file_word,
    holds_something,
)
from pipeline.sinks.schema import (
    coco_results,
    encode_json,
    new_session,
    pose_message,
    rounded_keypoints,
)
from pipeline.sinks.unwritten import Unwritten

_log = logging.getLogger(__name__)


class JsonLines:
    """One `pose/1` message a line (docs/schema.md), flushed line by line; all sources together."""

    def __init__(self, path: str, *, session: str | None = None, live: bool = False) -> None:
        """Claim the file; it changes with the first message.

        Args:
            path: a file, or `-` for standard output.
            session: shared with other sinks of this run; by default a new one.
            live: some source is: lines are added to those that are there, not put in their place.
        Raises:
            ValueError: the file cannot be written, or is by another stream.
        """
        self._session = session or new_session()
        self._num_messages: Counter[str] = Counter()
        self._file = None if path == "-" else LineFile(Path(path), keep=live)
        self._unwritten = Unwritten(Path(path))

    def __call__(self, poses: Poses) -> None:
        source = poses.frame.source
        message = pose_message(poses, session=self._session, seq=self._num_messages[source])
        self._num_messages[source] += 1
        line = encode_json(message) + b"\n"
        if self._file is not None:
            self._unwritten.attempt(source, partial(self._file.write, line))
        else:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()

    def unwritten(self) -> dict[str, dict[str, int]]:
        """See Unwritten.counts."""
        return self._unwritten.counts()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class OpenPoseFolder:
    """One file a frame in OpenPose's layout, version 1.3.

    A frame of a video is `<source>_<12-digit index>_keypoints.json`, a picture of a folder
    `<file name>_<12-digit index>_keypoints.json`. Keypoints are flat (x, y, score, ...) in the
    order of this project's skeleton (COCO-17: nose first, see docs/schema.md), not in BODY_25's.
    """

    def __init__(self, folder: Path, *, per_source: bool = False, live: bool = False) -> None:
        """Check the folder; it is made with the first frame.

        Args:
            folder: must not hold the results of an earlier run, or the two would be mixed.
            per_source: every source gets a folder of its own in it.
            live: some source is: beside a folder that holds results a new one is made, the UTC time
                in its name, so that a stream that is started again goes on.
        Raises:
            ValueError: the folder cannot be made or written, or holds results.
        """
        self._folder = folder
        self._per_source = per_source
        self._unwritten = Unwritten(folder)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; OpenPose JSON needs a folder")
        check_output_folder(folder if folder.exists() else folder.parent)
        if next(folder.rglob("*_keypoints.json"), None) is None:
            return
        if not live:
            raise ValueError(
                f"folder {folder} holds the keypoints of an earlier run; remove them or choose "
                "another folder"
            )
        self._folder = beside(folder)

    def __call__(self, poses: Poses) -> None:
        frame = poses.frame
        source = file_word(frame.source)
        folder = self._folder / source if self._per_source else self._folder
        name = Path(frame.image_name).stem if frame.image_name else source
        path = folder / f"{name}_{frame.index:012d}_keypoints.json"
        self._unwritten.attempt(frame.source, partial(self._write, path, poses))

    def unwritten(self) -> dict[str, dict[str, int]]:
        """See Unwritten.counts."""
        return self._unwritten.counts()

    def close(self) -> None:
        """Nothing is left open: every file was finished when it was written."""

    def _write(self, path: Path, poses: Poses) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, encode_json(_openpose(poses)), only_writer=True)


_OPENPOSE_ABSENT = (
    "face_keypoints_2d",
    "hand_left_keypoints_2d",
    "hand_right_keypoints_2d",
    "pose_keypoints_3d",
    "face_keypoints_3d",
    "hand_left_keypoints_3d",
    "hand_right_keypoints_3d",
)
"""OpenPose writes them always, and its readers expect them; empty means not asked for."""


def _openpose(poses: Poses) -> dict[str, Any]:
    absent: dict[str, list[float]] = {key: [] for key in _OPENPOSE_ABSENT}
    keypoints = rounded_keypoints(poses.keypoints, pixel_digits=3)
    people = [
        {"person_id": [identity], "pose_keypoints_2d": _flat(person), **absent}
        for identity, person in zip(poses.ids.tolist(), keypoints, strict=True)
    ]
    return {"version": 1.3, "people": people}


class CocoResults:
    """A list of COCO keypoint results, valid JSON at every moment.

    An image id is the one that an annotation file gives the picture's name; without such a file it
    is the frame's index, and for still pictures a second list beside the first says which id is
    which file: results-images.json. Two pictures never share an id.

    Each frame's people replace the closing bracket, and bring a new one, in a single write. So a
    killed stream leaves a list of whole frames (unless it is killed inside that one write).
    """

    def __init__(
        self,
        path: Path,
        *,
        ids_from: Path | None = None,
        per_source: bool = False,
        live: bool = False,
    ) -> None:
        """Claim the file; it is emptied with the first frame.

        Args:
            path: one file, .json.
            ids_from: a COCO annotation file, whose `images` give the ids; pictures that are not in
                it are left out of the results.
            per_source: every source gets its own file, its name before the suffix; image ids of
                several sources in one list could not be told apart.
            live: some source is: a file that is there stays, and the new one has the UTC time in
                its name.
        Raises:
            ValueError: the file cannot be written, or is by another stream; ids_from is no
                annotation file.
        """
        check_output_file(path, suffixes=(".json",))
        self._ids = None if ids_from is None else read_image_ids(ids_from)
        self._ids_from = ids_from
        self._num_unknown = 0
        self._tables: dict[str, _JsonList] = {}  # by source: which id is which file
        self._names = OutputNames(path, per_source=per_source)
        self._live = live
        self._lists: dict[str, _JsonList] = {}
        self._claims = Claims()
        self._unwritten = Unwritten(path)
        if not per_source:
            self._claims.take(path)

    def __call__(self, poses: Poses) -> None:
        frame = poses.frame
        if frame.source not in self._lists:
            self._open_lists(frame)
        image_id = self._image_id(frame)
        if image_id is not None:
            extend = partial(self._extend, poses, image_id)
            self._unwritten.attempt(frame.source, extend)

    def unwritten(self) -> dict[str, dict[str, int]]:
        """See Unwritten.counts."""
        return self._unwritten.counts()

    def forget_source(self, name: str) -> None:
        """Finish the list of a source that has gone; should it come back, it gets another."""
        self._names.forget_source(name)
        for lists in (self._lists, self._tables):
            rows = lists.pop(name, None)
            if rows is not None:
                rows.close()

    def close(self) -> None:
        if self._num_unknown:
            _log.warning(
                "%d pictures are not in %s, and not in the results",
                self._num_unknown, self._ids_from,
            )  # fmt: skip
        self._num_unknown = 0
        for rows in [*self._lists.values(), *self._tables.values()]:
            rows.close()
        self._claims.close()

    def _extend(self, poses: Poses, image_id: int) -> None:
        frame = poses.frame
        self._lists[frame.source].extend(coco_results(poses, image_id=image_id, rounded=True))
        if frame.source in self._tables:
            row = {"id": image_id, "file_name": frame.image_name}
            self._tables[frame.source].extend([row])

    def _image_id(self, frame: Frame) -> int | None:
        """None where an annotation file gives the ids, but not this one."""
        if self._ids is None:
            return frame.index
        image_id = self._ids.get(frame.image_name)
        self._num_unknown += image_id is None
        return image_id

    def _open_lists(self, frame: Frame) -> None:
        path = self._names.for_source(frame.source)
        self._lists[frame.source] = self._begin(path)
        if frame.image_name and self._ids is None:
            table = path.with_name(f"{path.stem}-images.json")
            self._tables[frame.source] = self._begin(table)

    def _begin(self, path: Path) -> _JsonList:
        self._claims.take(path)
        return _JsonList(beside(path) if self._live and holds_something(path) else path)


class _JsonList:
    """A JSON list in a file that grows at its end."""

    _END = b"\n]\n"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._end = 1  # where the closing bracket's line begins
        self._separator = b"\n"

    def extend(self, rows: list[dict[str, Any]]) -> None:
        """OSError: none of the rows is in the list, which is as it was."""
        file = self._file = self._file or self._begin()
        if not rows:
            return
        text = self._separator + b",\n".join(encode_json(row) for row in rows)
        tail = text + self._END
        written = os.pwrite(file.fileno(), tail, self._end)
        if written < len(tail):  # a disk that is nearly full takes a part
            os.pwrite(file.fileno(), self._END, self._end)
            os.ftruncate(file.fileno(), self._end + len(self._END))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += len(text)
        self._separator = b",\n"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> FileIO:
        """An empty list; on a full disk an empty file, which is tried again."""
        file = FileIO(self._path, "wb")
        if file.write(b"[" + self._END) != 1 + len(self._END):
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file


def read_image_ids(path: Path) -> dict[str, int]:
    """The ids that a COCO annotation file gives to pictures, by file name without folders.

    Raises:
        ValueError: it is no such file, or two of its pictures share a name or an id; one line.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        pairs = [(Path(str(image["file_name"])).name, int(image["id"])) for image in images]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, LookupError):
        raise ValueError(
            f"{path} is no COCO annotation file: images with file_name and id are expected"
        ) from None
    ids = dict(pairs)
    if len(ids) < len(pairs) or len(set(ids.values())) < len(ids):
        raise ValueError(f"{path}: two pictures share a file name or an id; give each its own")
    return ids


def _flat(person: list[list[float]]) -> list[float]:
    return [number for keypoint in person for number in keypoint]
