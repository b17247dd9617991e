"""A tiny data set of painted people, as COCO files: what the tests of training learn from."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nets.skeletons import COCO, Skeleton
from tests.support.painted import paint


def people_in(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Two people (2, 17, 2) side by side, their keypoints on a shaken 3-wide grid."""
    height, width = size
    k = np.arange(COCO.num_keypoints)
    people = []
    for middle in (width * 0.27, width * 0.73):
        step = rng.uniform(0.11, 0.13, size=2) * (width, height)
        grid = np.stack([(k % 3 - 1) * step[0], (k // 3 - 2.5) * step[1]], axis=1)
        shake = rng.uniform(-0.1, 0.1, size=grid.shape) * step
        people.append(grid + shake + (middle, height / 2 + rng.uniform(-0.1, 0.1) * height))
    return np.clip(np.stack(people), 3, np.array([width, height]) - 4)


def write_set(
    folder: Path,
    *,
    count: int = 8,
    size: tuple[int, int] = (160, 160),
    skeleton: Skeleton = COCO,
    seed: int = 0,
    name: str = "painted",
) -> Path:
    """Write `count` pictures and their labels; the path of the annotation file."""
    rng = np.random.default_rng(seed)
    pictures = folder / name
    pictures.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        people = people_in(size, rng)
        cv2.imwrite(str(pictures / f"{number}.png"), paint(size, people))
        image = {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
        images.append(image)
        annotations += [
            _annotation(len(annotations) + p, number, person[: skeleton.num_keypoints])
            for p, person in enumerate(people, 1)
        ]
    category = {"id": 1, "name": "person", "keypoints": list(skeleton.keypoint_names)}
    tree = {"images": images, "annotations": annotations, "categories": [category]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return path


def _annotation(number: int, image: int, keypoints: np.ndarray) -> dict[str, Any]:
    labelled = np.concatenate([keypoints, np.full((len(keypoints), 1), 2)], axis=1)
    x, y = keypoints.min(axis=0)
    width, height = np.ptp(keypoints, axis=0)
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "keypoints": np.round(labelled, 2).ravel().tolist(),
        "num_keypoints": len(keypoints),
        "bbox": np.round([x, y, width, height], 2).tolist(),
        "area": float(width * height),
    }
