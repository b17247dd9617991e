"""Made-up people for tests and benchmarks of what happens to poses: drawing, messages, files."""

from __future__ import annotations

import numpy as np

from nets.skeletons import COCO
from pipeline.messages import Frame, Poses

# A standing person of height 1, seen from the front, by keypoint; right is the mirror image.
_STANDING = {
    "nose": (0.0, 0.08),
    "eye": (0.02, 0.065),
    "ear": (0.045, 0.075),
    "shoulder": (0.11, 0.2),
    "elbow": (0.17, 0.34),
    "wrist": (0.2, 0.47),
    "hip": (0.07, 0.5),
    "knee": (0.08, 0.73),
    "ankle": (0.085, 0.95),
}


def standing_person(centre_x: float, top: float, height: float) -> np.ndarray:
    """(17, 3) float32 keypoints of somebody who stands there, all with score 0.9."""
    person = np.empty((COCO.num_keypoints, 3), dtype=np.float32)
    for k, name in enumerate(COCO.keypoint_names):
        x, y = _STANDING[name.split("_")[-1]]
        mirror = -1 if COCO.side(k) == "right" else 1
        person[k] = centre_x + mirror * x * height, top + y * height, 0.9
    return person


def crowd(num_people: int, size: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """(P, 17, 3) float32 people of all sizes and scores all over a picture of (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = size
    people = np.zeros((num_people, COCO.num_keypoints, 3), dtype=np.float32)
    for i in range(num_people):
        tall = rng.uniform(0.15, 0.9) * height
        person = standing_person(
            rng.uniform(0.05, 0.95) * width, rng.uniform(0, height - tall), tall
        )
        person[:, :2] += rng.normal(0, 0.012 * tall, (COCO.num_keypoints, 2))
        person[:, 2] = rng.uniform(0.2, 0.95, COCO.num_keypoints)
        people[i] = person
    return people


def poses_of(
    keypoints: np.ndarray,
    *,
    size: tuple[int, int] = (720, 1280),
    image: np.ndarray | None = None,
    source: str = "cam1",
    index: int = 0,
    pts_seconds: float | None = 0.0,
    captured_ns: int = 0,
    live: bool = False,
    image_name: str = "",
    filled: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    smoothed: np.ndarray | None = None,
) -> Poses:
    """Poses with these keypoints (P, K, 3); a BGR image gives the frame pixels and its size."""
    num_people, num_keypoints = keypoints.shape[:2]
    frame = Frame(
        source=source,
        index=index,
        pts_seconds=pts_seconds,
        captured_ns=captured_ns,
        captured_unix_s=1_795_300_000.1234 + captured_ns / 1e9,
        size=size if image is None else (image.shape[0], image.shape[1]),
        planes=() if image is None else (image,),
        live=live,
        image_name=image_name,
    )
    return Poses(
        frame=frame,
        skeleton="coco17" if num_keypoints == COCO.num_keypoints else "crowdpose14",
        keypoints=keypoints.astype(np.float32),
        scores=keypoints[..., 2].mean(axis=1).astype(np.float32),
        filled=np.zeros((num_people, num_keypoints), bool) if filled is None else filled,
        ids=np.arange(num_people, dtype=np.int64) if ids is None else ids,
        completed_ns=captured_ns + 31_415_926,
        smoothed=None if smoothed is None else smoothed.astype(np.float32),
    )
