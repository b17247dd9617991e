"""Folders and archives of images: ImageStore reads a picture by the name that annotations use.

zipfile and tarfile share one file position between threads and forked workers: measured, a forked
child reads wrong bytes. So archives are read here at given offsets; the standard library only lists
them.
"""

import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(h, w, 3) BGR."""


class ImageError(ValueError):
    """One image cannot be used: says which, where it was looked for and why."""


class _Entry(NamedTuple):
    """Where an image lies in an archive."""

    offset: int
    """Of a tar: first byte of the image. Of a zip: of the member's own header."""
    size: int
    """Bytes as stored."""
    deflated: bool
    crc: int | None
    """Checksum of the image; a tar has none."""


class ImageStore:
    """A folder, .tar or .zip of images.

    Archives are read at given offsets through one file handle a process, so any number of threads
    and of forked or spawned workers may read at once.

    Raises:
        ValueError: there is no such store, or the archive is broken or compressed as a whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, _Entry] | None = None
        self._handle: tuple[int, int] | None = None  # process id, file descriptor
        self._opening = threading.Lock()
        if path.is_dir():
            return
        index = {".tar": _tar_entries, ".zip": _zip_entries}.get(path.suffix.lower())
        if index is None or not path.is_file():
            raise ValueError(f"images must be a folder, a .tar or a .zip, got {path}")
        self._entries = _with_plain_names(index(path))
        if not self._entries:
            raise ValueError(f"archive {path} holds no files; pass the images' archive")

    def read(self, file_name: str) -> Picture:
        """An image by the name that the annotations use; a possible EXIF rotation is ignored.

        In an archive a folder before the name may be missing, as it is in COCO's.

        Returns:
            (h, w, 3) uint8 BGR.
        Raises:
            ImageError: it is not there or cannot be read.
        """
        data = self._bytes(file_name)
        if not data:
            raise ImageError(f"image {file_name} in {self.path} is empty; fetch it again")
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture: Picture | None
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise ImageError(f"image {file_name} in {self.path} cannot be read: {error}") from None
        if picture is None:
            raise ImageError(
                f"image {file_name} in {self.path} is damaged or no image ({len(data)} bytes); "
                "fetch it again"
            )
        return np.asarray(picture, np.uint8)

    def _bytes(self, file_name: str) -> bytes:
        try:
            if self._entries is None:
                return self._file(file_name).read_bytes()
            entry = self._entries.get(file_name)
            if entry is None:
                entry = self._entries.get(PurePosixPath(file_name).name)
            if entry is None:
                raise FileNotFoundError
            return _read_entry(self._descriptor(), entry)
        except FileNotFoundError:
            raise ImageError(
                f"there is no image {file_name} in {self.path}; is it the right folder or archive?"
            ) from None
        except (OSError, zlib.error) as error:
            raise ImageError(f"image {file_name} in {self.path} cannot be read: {error}") from None

    def _file(self, file_name: str) -> Path:
        name = PurePosixPath(file_name)
        if name.is_absolute() or ".." in name.parts:
            raise ImageError(f"image {file_name!r} must lie inside {self.path}, by a relative name")
        return self.path / name

    def _descriptor(self) -> int:
        """This process's handle; a forked worker must not close its parent's, so it leaves it."""
        with self._opening:
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = os.getpid(), os.open(self.path, os.O_RDONLY)
            return self._handle[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_entries": self._entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handle = None
        self._opening = threading.Lock()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and handle[0] == os.getpid():
            os.close(handle[1])


def _tar_entries(path: Path) -> dict[str, _Entry]:
    end = path.stat().st_size
    entries: dict[str, _Entry] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    entries[member.name] = _Entry(member.offset_data, member.size, False, None)
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{path} is no whole plain tar: {error} after {len(entries)} files; copy it again, "
            "or unpack it if it is compressed"
        ) from None
    return entries


def _zip_entries(path: Path) -> dict[str, _Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no whole zip: {error}; copy it again") from None
    for member in members:
        plain = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not plain or member.flag_bits & 1:
            raise ValueError(
                f"{path} must be stored or deflated and not encrypted, "
                f"{member.filename} is otherwise; unpack it and pass the folder"
            )
    return {
        member.filename: _Entry(
            member.header_offset,
            member.compress_size,
            member.compress_type == zipfile.ZIP_DEFLATED,
            member.CRC,
        )
        for member in members
    }


def _with_plain_names(entries: dict[str, _Entry]) -> dict[str, _Entry]:
    """The entries, those whose last name is the only one of its kind under that name too."""
    names = {str(PurePosixPath(name)): entry for name, entry in entries.items()}
    plain = Counter(PurePosixPath(name).name for name in names)
    alone = {PurePosixPath(name).name: name for name in names}
    return {last: names[full] for last, full in alone.items() if plain[last] == 1} | names


_ZIP_HEADER_BYTES = 30
"""Of a member's own header, before its name and extra field; their lengths end it."""


def _read_entry(descriptor: int, entry: _Entry) -> bytes:
    """An image's bytes. os.pread moves no file position that others could share."""
    offset = entry.offset
    if entry.crc is not None:
        header = os.pread(descriptor, _ZIP_HEADER_BYTES, offset)
        if header[:4] != b"PK\3\4" or len(header) < _ZIP_HEADER_BYTES:
            raise OSError("its header in the zip is damaged")
        name_bytes, extra_bytes = np.frombuffer(header[26:30], "<u2").tolist()
        offset += _ZIP_HEADER_BYTES + name_bytes + extra_bytes
    data = os.pread(descriptor, entry.size, offset)
    if len(data) < entry.size:
        raise OSError("the archive ends inside it")
    if entry.deflated:
        data = zlib.decompress(data, wbits=-zlib.MAX_WBITS)
    if entry.crc is not None and zlib.crc32(data) != entry.crc:
        raise OSError("its checksum is wrong")
    return data


def find_images(annotations: Path, images: Path | None) -> Path:
    """The folder or archive that an annotation file's images are in.

    Args:
        annotations: the JSON file.
        images: where they are; None looks beside the JSON: for its own name as a folder, .tar or
            .zip, then for COCO's layout (annotations/person_keypoints_val2017.json, val2017/) and
            CrowdPose's (json/crowdpose_val.json, images/).
    Raises:
        ValueError: nothing there; says what was tried.
    """
    if images is not None:
        if not images.exists():
            raise ValueError(f"there is no folder or archive {images} with images; check the path")
        return images
    beside, above = annotations.parent, annotations.parent.parent
    places = [beside / annotations.stem]
    split = re.search(r"(train|val|test)20\d\d", annotations.stem)
    if split:
        places += [above / split[0], above / "images" / split[0]]
    places += [above / "images", beside / "images"]
    tried = [
        candidate
        for place in places
        for candidate in (
            place,
            place.with_name(f"{place.name}.tar"),
            place.with_name(f"{place.name}.zip"),
        )
    ]
    for candidate in tried:
        if candidate.is_dir() or (candidate.is_file() and candidate.suffix in (".tar", ".zip")):
            return candidate
    names = ", ".join(str(candidate) for candidate in tried)
    raise ValueError(f"no images found for {annotations}; tried {names}; say where they are")
