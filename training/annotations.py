"""Annotation files -> LabelledSet: COCO's and CrowdPose's, as they are published.

annotations.json --load_labelled_set--> LabelledSet: LabelledImage, LabelledImage, ...
folder, .tar, .zip ------ImageStore---------^ .read(image) -> picture
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.oks import BODY_SHARE_OF_BOX
from nets.skeletons import COCO, CROWDPOSE, Skeleton
from training.config import DatasetConfig, TeacherKeypointsConfig
from training.image_store import ImageError, ImageStore, Picture, find_images
from training.labels import Box, LabelledImage, LabelRegion, Polygons, Rle, TaughtPeople, decode_rle
from training.teacher_keypoints import (
    BoxNumbers,
    TeacherKeypoints,
    read_teacher_keypoints,
    teacher_keypoints_in,
)

_log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
Json = Mapping[str, Any]

_SUPERVISED_GROWTH = 0.2
"""A person's box is made wider and higher by this share where only its inside is supervised."""
_SAME_BOX_PX = 0.5
"""Edges of one box in two files differ by at most so much: files round."""


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
    ignore: list[LabelRegion] = [Box(*box) for box in image.get("ignore_boxes", ())]
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
    ignore: list[LabelRegion] = [
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


def _region_of(annotation: Json, size: tuple[int, int]) -> LabelRegion:
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
