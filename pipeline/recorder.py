"""Poses written to files: JSON lines, a folder of OpenPose JSON, COCO keypoint results.

Each is a sink: called with every Poses, closed once the stream has ended, failed or been stopped.
What has been written is readable at any moment, also after a kill. Knows nothing of pictures.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import IO, Any

from pipeline.messages import Frame, Poses
from pipeline.recording.outputs import (
    OutputNames,
    check_output_file,
    check_output_folder,
    file_word,
)
from pipeline.schema import (
    encode_json,
    new_session,
    pose_message,
    rounded_keypoints,
)


class JsonLines:
    """One `pose/1` message a line (docs/schema.md), flushed line by line; all sources together."""

    def __init__(self, path: str, *, session: str | None = None) -> None:
        """Open the file, emptying one that is there.

        Args:
            path: a file, or `-` for standard output.
            session: shared with other sinks of this run; by default a new one.
        Raises:
            ValueError: the file cannot be written.
        """
        self._session = session or new_session()
        self._num_messages: Counter[str] = Counter()
        self._owns_file = path != "-"
        if self._owns_file:
            check_output_file(Path(path))
            # The buffer holds any whole line, so that a line leaves in one write.
            self._file: IO[bytes] = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
        else:
            self._file = sys.stdout.buffer

    def __call__(self, poses: Poses) -> None:
        source = poses.frame.source
        message = pose_message(poses, session=self._session, seq=self._num_messages[source])
        self._num_messages[source] += 1
        self._file.write(encode_json(message) + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._owns_file:
            self._file.close()


class OpenPoseFolder:
    """One file a frame in OpenPose's layout, version 1.3.

    A frame of a video is `<source>_<12-digit index>_keypoints.json`, a picture of a folder
    `<file name>_<12-digit index>_keypoints.json`. Keypoints are flat (x, y, score, ...) in the
    order of this project's skeleton (COCO-17: nose first, see docs/schema.md), not in BODY_25's.
    """

    def __init__(self, folder: Path, *, per_source: bool = False) -> None:
        """Make the folder.

        Args:
            folder: must not hold the results of an earlier run, or the two would be mixed.
            per_source: every source gets a folder of its own in it.
        Raises:
            ValueError: the folder cannot be made or written, or holds results.
        """
        self._folder = folder
        self._per_source = per_source
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; OpenPose JSON needs a folder")
        if not folder.exists():
            check_output_folder(folder.parent)
            folder.mkdir()
        check_output_folder(folder)
        if next(folder.rglob("*_keypoints.json"), None) is not None:
            raise ValueError(
                f"folder {folder} holds the keypoints of an earlier run; remove them or choose "
                "another folder"
            )

    def __call__(self, poses: Poses) -> None:
        frame = poses.frame
        source = file_word(frame.source)
        folder = self._folder / source if self._per_source else self._folder
        folder.mkdir(exist_ok=True)
        name = Path(frame.image_name).stem if frame.image_name else source
        path = folder / f"{name}_{frame.index:012d}_keypoints.json"
        # Made under another name, then renamed: whoever watches the folder sees whole files only.
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(encode_json(_openpose(poses)))
        unfinished.replace(path)

    def close(self) -> None:
        """Nothing is left open: every file was finished when it was written."""


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

    Each frame's people replace the closing bracket, and bring a new one, in a single write. So a
    killed stream leaves a list of whole frames (unless it is killed inside that one write).
    """

    def __init__(self, path: Path, *, per_source: bool = False) -> None:
        """Check the path and empty the file.

        Args:
            path: one file, .json.
            per_source: every source gets its own file, its name before the suffix; image ids of
                several sources in one list could not be told apart.
        Raises:
            ValueError: the file cannot be written.
        """
        check_output_file(path, suffixes=(".json",))
        self._names = OutputNames(path, per_source=per_source)
        self._lists: dict[str, _JsonList] = {}
        self._first = None if per_source else _JsonList(path)

    def __call__(self, poses: Poses) -> None:
        source = poses.frame.source
        if source not in self._lists:
            path = self._names.for_source(source)
            self._lists[source] = self._first or _JsonList(path)
            self._first = None
        self._lists[source].extend(_coco_rows(poses))

    def forget_source(self, name: str) -> None:
        """Finish the list of a source that has gone; should it come back, it gets another."""
        rows = self._lists.pop(name, None)
        self._names.forget_source(name)
        if rows is not None:
            rows.close()

    def close(self) -> None:
        for rows in self._lists.values():
            rows.close()
        if self._first is not None:
            self._first.close()


class _JsonList:
    """A JSON list in a file that grows at its end."""

    _END = b"\n]\n"

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._file.write(b"[" + self._END)
        self._end = 1  # where the closing bracket's line begins
        self._separator = b"\n"

    def extend(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        text = self._separator + b",\n".join(encode_json(row) for row in rows)
        self._separator = b",\n"
        tail = text + self._END
        written = os.pwrite(self._file.fileno(), tail, self._end)
        if written < len(tail):  # a disk that is nearly full takes a part
            os.pwrite(self._file.fileno(), self._END, self._end)
            os.ftruncate(self._file.fileno(), self._end + len(self._END))
            raise OSError(f"{self._file.name}: disk full after {self._end} bytes")
        self._end += len(text)

    def close(self) -> None:
        self._file.close()


def _coco_rows(poses: Poses) -> list[dict[str, Any]]:
    image_id = coco_image_id(poses.frame)
    keypoints = rounded_keypoints(poses.keypoints, pixel_digits=2)
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "keypoints": _flat(person),
            "score": round(score, 6),
        }
        for person, score in zip(keypoints, poses.scores.tolist(), strict=True)
    ]


def coco_image_id(frame: Frame) -> int:
    """The last number in the picture's name (000000397133.jpg is 397133), else the frame index."""
    numbers = re.findall(r"\d+", Path(frame.image_name).stem)
    return int(numbers[-1]) if numbers else frame.index


def _flat(person: list[list[float]]) -> list[float]:
    return [number for keypoint in person for number in keypoint]
