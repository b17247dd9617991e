"""Annotation files and image archives -> LabelledImage: what is labelled and what must not count.

    annotations.json --load_labelled_set--> LabelledSet: LabelledImage, LabelledImage, ...
    folder, .tar, .zip ------ImageStore---------^ .read(image) -> picture

COCO's and CrowdPose's files are understood as they are published. This file knows nothing of
augmentation, targets or networks.
"""

import json
import logging
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.oks import BODY_SHARE_OF_BOX
from nets.skeletons import COCO, CROWDPOSE, Skeleton
from training.config import DatasetConfig, TeacherKeypointsConfig
from training.teacher_keypoints import (
    BoxNumbers,
    TeacherKeypoints,
    read_teacher_keypoints,
    teacher_keypoints_in,
)

_log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
Picture = NDArray[np.uint8]
"""(h, w, 3) BGR."""
Json = Mapping[str, Any]

_SUPERVISED_GROWTH = 0.2
"""A person's box is made wider and higher by this share where only its inside is supervised."""


_SAME_BOX_PX = 0.5
"""Edges of one box in two files differ by at most so much: files round."""


class ImageError(ValueError):
    """One image cannot be used: says which, where it was looked for and why."""


# --- what is labelled ----------------------------------------------------------------------------


class Box(NamedTuple):
    """Pixels of a box."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """Pixels inside any of the rings."""

    rings: tuple[FloatArray, ...]
    """(N, 2) x, y each."""


@dataclass(frozen=True, slots=True, eq=False)
class Rle:
    """Pixels as COCO's run lengths say."""

    size: tuple[int, int]
    """(h, w)"""
    counts: bytes
    """COCO's compressed text: runs outside, inside, outside, ... down the columns from the left."""


Region = Box | Polygons | Rle


@dataclass(frozen=True, slots=True, eq=False)
class TaughtPeople:
    """The people of one image as another model sees them."""

    keypoints: FloatArray
    """(Q, K, 3) x, y, score in 0..1."""
    areas: FloatArray
    """(Q,) square pixels"""
    ignore: tuple[Region, ...]
    """People and crowds of whom it says nothing."""
    share: float
    """Of the heatmaps, where labels are not masked."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """Everything that is known of one image but its pixels; coordinates are in its pixels."""

    image_id: int
    file_name: str
    size: tuple[int, int]
    """(h, w) as the labels say."""
    keypoints: FloatArray
    """(P, K, 3) x, y, v. v > 0: labelled; 0: there is nothing to learn; -1: somewhere, unknown."""
    boxes: FloatArray
    """(P, 4) x, y, w, h"""
    areas: FloatArray
    """(P,) square pixels"""
    ignore: tuple[Region, ...]
    """Pixels without supervision: crowds, people without keypoints."""
    only: tuple[float, float, float, float] | None
    """x, y, w, h: nothing outside is supervised, for other people there have no labels."""
    taught: TaughtPeople | None = None
    """None: its set has no teacher's keypoints."""


def supervised_pixels(image: LabelledImage) -> NDArray[np.uint8]:
    """(h, w) uint8: 255 where the labels are complete, 0 in ignored regions and outside `only`."""
    return _pixels_without(image, image.ignore)


def taught_pixels(image: LabelledImage) -> NDArray[np.uint8]:
    """(h, w) uint8: 255 where the teacher's keypoints are complete; 0 everywhere without them."""
    if image.taught is None:
        return np.zeros(image.size, np.uint8)
    return _pixels_without(image, image.taught.ignore)


def _pixels_without(image: LabelledImage, ignore: Sequence[Region]) -> NDArray[np.uint8]:
    """(h, w) uint8: 0 in the regions and outside `only`, else 255."""
    mask = np.full(image.size, 255, np.uint8)
    if image.only is not None:
        mask[:] = 0
        _fill_box(mask, Box(*image.only), 255)
    for region in ignore:
        if isinstance(region, Box):
            _fill_box(mask, region, 0)
        elif isinstance(region, Polygons):
            for ring in region.rings:  # one by one: together, what two of them cover stays out
                cv2.fillPoly(mask, [np.rint(ring).astype(np.int32)], 0)
        else:
            mask[decode_rle(region)] = 0
    return mask


def _fill_box(mask: NDArray[np.uint8], box: Box, value: int) -> None:
    left, top = max(round(box.x), 0), max(round(box.y), 0)
    right, bottom = max(round(box.x + box.width), 0), max(round(box.y + box.height), 0)
    mask[top:bottom, left:right] = value


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """(h, w) bool, True inside.

    Raises:
        ValueError: the run lengths do not cover the size.
    """
    from faster_coco_eval import mask

    height, width = rle.size
    pixels = mask.decode({"size": [height, width], "counts": rle.counts})
    return np.asarray(pixels, np.bool_)


# --- images --------------------------------------------------------------------------------------


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


# --- annotation files ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSet:
    """A set of labelled images, those without people too, in the file's order."""

    images: tuple[LabelledImage, ...]
    store: ImageStore
    skeleton: Skeleton
    annotations: Path

    def read(self, image: LabelledImage) -> Picture:
        """The picture of one of the images.

        Raises:
            ImageError: it cannot be read, or has not the size that its labels are for.
        """
        picture = self.store.read(image.file_name)
        if picture.shape[:2] != image.size:
            raise ImageError(
                f"image {image.file_name} in {self.store.path} is {picture.shape[:2]} (height, "
                f"width), its labels in {self.annotations} are for {image.size}; resized copies "
                "need resized labels"
            )
        return picture


def load_labelled_set(config: DatasetConfig, skeleton: Skeleton) -> LabelledSet:
    """Read an annotation file and find its images.

    Crowds and people without keypoints become ignored regions, except in CrowdPose: its published
    training masks nothing. So do images[].ignore_boxes and what `min_agree` leaves out.

    Raises:
        ValueError: one line that names the file, and the annotation where it is one.
    """
    path = config.annotations
    if config.min_face_score is not None and skeleton != COCO:
        raise ValueError(f"{path}: min_face_score is for {COCO.name}, not for {skeleton.name}")
    try:
        tree = read_annotations(path)
        of_image: dict[int, list[Json]] = defaultdict(list)
        for annotation in _people_of(tree):
            of_image[annotation["image_id"]].append(annotation)
        teacher = _teacher_keypoints(config.teacher, of_image, skeleton)
        images = tuple(
            _labelled_image(image, of_image.pop(image["id"], []), config, skeleton, teacher)
            for image in tree["images"]
        )
        if of_image:
            raise ValueError(
                f"annotations are for image {next(iter(of_image))}, which is not listed"
            )
        _refuse_twins((image.image_id for image in images), "images have the id")
    except KeyError as error:
        raise ValueError(f"{path}: an entry lacks the field {error}; is it COCO format?") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    store = ImageStore(find_images(path, config.images))
    people = sum(len(image.keypoints) for image in images)
    _log.info("%s: %d images, %d people; images in %s", path, len(images), people, store.path)
    if config.teacher is not None:
        taught = sum(len(image.taught.keypoints) for image in images if image.taught is not None)
        source = config.teacher.keypoints or "their field `teacher`"
        _log.info(
            "%s: %d people taught by %s, share %g", path, taught, source, config.teacher.share
        )
    return LabelledSet(images, store, skeleton, path)


def read_annotations(path: Path) -> dict[str, Any]:
    """An annotation file's tree, with `images` and `annotations` for certain; raises ValueError."""
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    for name in ("images", "annotations"):
        if not isinstance(tree, dict) or not isinstance(tree.get(name), list):
            raise ValueError(f"has no list `{name}`; expected COCO keypoint format")
    if not tree["images"]:
        raise ValueError("lists no images; nothing can be learnt or measured on it")
    return dict(tree)


def _people_of(tree: Json) -> list[Json]:
    """The annotations of the category that has keypoints; all, where the file names none."""
    annotations: list[Json] = tree["annotations"]
    categories = {c["id"] for c in tree.get("categories", []) if "keypoints" in c}
    if categories:
        annotations = [a for a in annotations if a.get("category_id") in categories]
    if annotations and not any("keypoints" in annotation for annotation in annotations):
        raise ValueError("no annotation has keypoints; COCO's are in person_keypoints_*.json")
    return annotations


def _refuse_twins(values: Iterable[object], what: str) -> None:
    value, count = next(iter(Counter(values).most_common(1)), (None, 0))
    if count > 1:
        raise ValueError(f"{count} {what} {value}; each must be listed once")


# --- one image -----------------------------------------------------------------------------------


def _labelled_image(
    image: Json,
    annotations: Sequence[Json],
    config: DatasetConfig,
    skeleton: Skeleton,
    teacher: TeacherKeypoints | None,
) -> LabelledImage:
    size = int(image["height"]), int(image["width"])
    ignore: list[Region] = [Box(*box) for box in image.get("ignore_boxes", ())]
    keypoints, boxes, areas = [], [], []
    for annotation in annotations:
        points = _keypoints_of(annotation, config, skeleton)
        labelled = bool((points[:, 2] > 0).any())
        trusted = annotation.get("agree", 1.0) >= config.min_agree
        crowd = bool(annotation.get("iscrowd", 0))
        if not trusted or (skeleton != CROWDPOSE and (crowd or not labelled)):
            ignore.append(_region_of(annotation, size))
        if trusted and labelled:
            box = _box_of(annotation, points)
            keypoints.append(points)
            boxes.append(box)
            areas.append(annotation.get("area", BODY_SHARE_OF_BOX * box.width * box.height))
    return LabelledImage(
        image_id=int(image["id"]),
        file_name=str(image["file_name"]),
        size=size,
        keypoints=np.array(keypoints, np.float32).reshape(-1, skeleton.num_keypoints, 3),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        areas=np.array(areas, np.float32),
        ignore=tuple(ignore),
        only=_supervised_box(boxes) if image.get("other_people_unlabelled") else None,
        taught=None
        if config.teacher is None or teacher is None
        else _taught_people(image, annotations, skeleton, teacher, config.teacher.share),
    )


def _teacher_keypoints(
    config: TeacherKeypointsConfig | None,
    of_image: Mapping[int, Sequence[Json]],
    skeleton: Skeleton,
) -> TeacherKeypoints | None:
    if config is None:
        return None
    annotations = [annotation for some in of_image.values() for annotation in some]
    if config.keypoints is None:
        return teacher_keypoints_in(annotations, skeleton.num_keypoints)
    teacher = read_teacher_keypoints(config.keypoints, skeleton.num_keypoints)
    if not any(annotation.get("id") in teacher.of_annotation for annotation in annotations):
        raise ValueError(
            f"teacher's keypoints {config.keypoints} know none of its annotations; "
            "they are those of another file"
        )
    return teacher


def _taught_people(
    image: Json,
    annotations: Sequence[Json],
    skeleton: Skeleton,
    teacher: TeacherKeypoints,
    share: float,
) -> TaughtPeople:
    """Whom the teacher knows; the others, and crowds, are regions of which it says nothing."""
    size = int(image["height"]), int(image["width"])
    unboxed = teacher.of_ignored.get(image["id"], ())
    keypoints = [points for _, points in unboxed]
    areas = [BODY_SHARE_OF_BOX * box[2] * box[3] for box, _ in unboxed]
    ignore: list[Region] = [
        Box(*box)
        for box in image.get("ignore_boxes", ())
        if not any(_same_box(box, known) for known, _ in unboxed)
    ]
    for annotation in annotations:
        points = teacher.of_annotation.get(annotation["id"])
        if points is None or annotation.get("iscrowd", 0) or not points[:, 2].any():
            ignore.append(_region_of(annotation, size))
            continue
        box = _box_of(annotation, points)
        keypoints.append(points)
        areas.append(annotation.get("area", BODY_SHARE_OF_BOX * box.width * box.height))
    return TaughtPeople(
        np.array(keypoints, np.float32).reshape(-1, skeleton.num_keypoints, 3),
        np.array(areas, np.float32),
        tuple(ignore),
        share,
    )


def _same_box(one: Sequence[float], other: BoxNumbers) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= _SAME_BOX_PX


def _keypoints_of(annotation: Json, config: DatasetConfig, skeleton: Skeleton) -> FloatArray:
    """(K, 3) x, y, v as LabelledImage has them."""
    numbers = annotation.get("keypoints") or [0] * (3 * skeleton.num_keypoints)
    if len(numbers) != 3 * skeleton.num_keypoints:
        raise ValueError(
            f"annotation {annotation.get('id')} of image {annotation['image_id']} has "
            f"{len(numbers)} numbers in keypoints, expected {3 * skeleton.num_keypoints} (x, y, v "
            f"of the {skeleton.num_keypoints} keypoints of {skeleton.name}); choose the skeleton "
            "that the file is labelled with"
        )
    keypoints = np.array(numbers, np.float32).reshape(-1, 3)
    if not np.isfinite(keypoints).all():
        raise ValueError(f"annotation {annotation.get('id')} has a keypoint that is no number")
    if config.min_face_score is not None and annotation.get("face_teacher"):
        face = np.array(annotation["face_teacher"], np.float32).reshape(-1, 3)
        taken = (face[:, 2] >= config.min_face_score) & (keypoints[: len(face), 2] == 0)
        keypoints[: len(face)][taken, :2] = face[taken, :2]
        keypoints[: len(face)][taken, 2] = 1
    if config.missing_keypoints == "unknown":
        keypoints[keypoints[:, 2] == 0, 2] = -1
    return keypoints


def _box_of(annotation: Json, keypoints: FloatArray) -> Box:
    """The person's box; that of the labelled keypoints where the file has none."""
    if "bbox" in annotation:
        return Box(*annotation["bbox"])
    labelled = keypoints[keypoints[:, 2] > 0, :2]
    low, high = labelled.min(axis=0), labelled.max(axis=0)
    return Box(*low.tolist(), *(high - low).tolist())


def _supervised_box(boxes: Sequence[Box]) -> tuple[float, float, float, float]:
    """The box around all boxes, grown; an empty one where there is none."""
    if not boxes:
        return 0.0, 0.0, 0.0, 0.0
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    right = max(box.x + box.width for box in boxes)
    bottom = max(box.y + box.height for box in boxes)
    wider, higher = _SUPERVISED_GROWTH * (right - left), _SUPERVISED_GROWTH * (bottom - top)
    return (
        left - wider / 2,
        top - higher / 2,
        right - left + wider,
        bottom - top + higher,
    )


def _region_of(annotation: Json, size: tuple[int, int]) -> Region:
    """The pixels of an annotation: its segmentation, else its box, else where its keypoints are."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return _rle_of(segmentation, size, annotation)
    rings = [np.array(r, np.float32).reshape(-1, 2) for r in segmentation or () if len(r) >= 6]
    if rings:
        return Polygons(tuple(rings))
    if "bbox" not in annotation:
        raise ValueError(
            f"annotation {annotation.get('id')} of image {annotation['image_id']} must be ignored "
            "but has neither segmentation nor bbox; give it one"
        )
    return Box(*annotation["bbox"])


def _rle_of(segmentation: Json, size: tuple[int, int], annotation: Json) -> Rle:
    from faster_coco_eval import mask

    where, counts = f"the segmentation of annotation {annotation.get('id')}", segmentation["counts"]
    if tuple(segmentation["size"]) != size:
        raise ValueError(
            f"{where} is of size {segmentation['size']}, expected that of its image, {list(size)}"
        )
    try:
        if not isinstance(counts, str):
            counts = mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
        rle = Rle(size, counts.encode("ascii") if isinstance(counts, str) else counts)
        decode_rle(rle)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a count that is no number
        raise ValueError(f"{where} cannot be read: {str(error).splitlines()[0]}") from None
    return rle
