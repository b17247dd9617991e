"""Small data sets of painted people on disk, in COCO's and CrowdPose's formats."""

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from nets.skeletons import COCO, CROWDPOSE, Skeleton
from tests.support.painted import DOT_RADIUS_PX, grid_people, paint

StoreKind = Literal["folder", "tar", "zip"]
SIZE = (200, 300)
"""(h, w) of every picture."""


def people_of_picture(number: int, num_people: int) -> np.ndarray:
    """(P, K, 2): where the painted people of a picture are; every picture is a little different."""
    return grid_people(num_people, origin=(30 + 3 * (number % 10), 20 + 2 * (number % 10)))


def annotation(number: int, image_id: int, keypoints: np.ndarray) -> dict[str, Any]:
    """COCO's entry for a person with keypoints (K, 2) or (K, 3); all are visible without a v."""
    visible = np.full((len(keypoints), 1), 2.0)
    points = np.hstack([keypoints[:, :2], keypoints[:, 2:] if keypoints.shape[1] > 2 else visible])
    low = points[:, :2].min(axis=0) - 2 * DOT_RADIUS_PX
    width, height = points[:, :2].max(axis=0) + 2 * DOT_RADIUS_PX - low
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": int((points[:, 2] > 0).sum()),
        "keypoints": points.ravel().tolist(),
        "bbox": [*low.tolist(), float(width), float(height)],
        "area": float(width * height),
    }


def tree_of(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], skeleton: Skeleton = COCO
) -> dict[str, Any]:
    """A whole annotation file."""
    person = {"id": 1, "name": "person", "keypoints": list(skeleton.keypoint_names)}
    return {"images": images, "annotations": annotations, "categories": [person]}


def coco_tree(
    count: int, *, people: int = 2, skeleton: Skeleton = COCO, first_id: int = 1
) -> dict[str, Any]:
    """Annotations of `count` painted pictures; CrowdPose's have no area but a crowd index."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(first_id, first_id + count):
        image = {"id": number, "file_name": f"{number:06}.png", "height": SIZE[0], "width": SIZE[1]}
        images.append(image)
        for person in people_of_picture(number, people):
            entry = annotation(
                1000 * first_id + len(annotations), number, person[: skeleton.num_keypoints]
            )
            annotations.append(entry)
    if skeleton is CROWDPOSE:
        for image in images:
            image["crowdIndex"] = 0.5
        for entry in annotations:
            del entry["area"]
    return tree_of(images, annotations, skeleton)


def write_pictures(
    place: Path, tree: dict[str, Any], kind: StoreKind = "folder", *, people: int = 2
) -> Path:
    """Paint the pictures of a tree into place (a folder), place.tar or place.zip."""
    pictures = {
        image["file_name"]: cv2.imencode(
            ".png", paint(SIZE, people_of_picture(image["id"], people))
        )[1].tobytes()
        for image in tree["images"]
    }
    return write_store(place, pictures, kind)


def write_store(place: Path, files: dict[str, bytes], kind: StoreKind = "folder") -> Path:
    """Write files into a folder, or an archive place.tar or place.zip (the first file stored)."""
    folder = place if kind == "folder" else place.with_name(f"{place.name}_unpacked")
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if kind == "folder":
        return folder
    archive_path = place.with_name(f"{place.name}.{kind}")
    if kind == "tar":
        with tarfile.open(archive_path, "w") as archive:
            for name in files:
                archive.add(folder / name, name)
    else:
        with zipfile.ZipFile(archive_path, "w") as zipped:
            for number, name in enumerate(files):
                how = zipfile.ZIP_DEFLATED if number else zipfile.ZIP_STORED
                zipped.write(folder / name, name, how)
    return archive_path


def write_set(
    folder: Path,
    count: int,
    *,
    name: str = "train",
    people: int = 2,
    skeleton: Skeleton = COCO,
    kind: StoreKind = "folder",
    first_id: int = 1,
) -> Path:
    """A whole set: folder/name.json with its pictures beside it; the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = coco_tree(count, people=people, skeleton=skeleton, first_id=first_id)
    write_pictures(folder / name, tree, kind, people=people)
    return write_json(folder / f"{name}.json", tree)


def write_json(path: Path, tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path
