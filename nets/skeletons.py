"""Keypoint names, limbs, flip pairs, OKS sigmas and matching order: one place for all of them.

Everything that depends on which keypoints there are (drawing, flip test, matching, OKS, messages)
reads it here. Messages tell skeletons apart by name, weights by their number of keypoints.
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Skeleton:
    """A set of keypoints and how they belong together."""

    name: str
    """The word in messages and weights, for example coco17."""
    keypoint_names: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]
    """Pairs of keypoints joined by a drawn line."""
    matching_order: tuple[int, ...]
    """The order in which the published decode hands keypoints to people (trunk first)."""
    oks_sigmas: tuple[float, ...]
    """Per-keypoint constants of object keypoint similarity."""

    def __post_init__(self) -> None:
        keypoints = set(range(self.num_keypoints))
        assert set(self.matching_order) == keypoints
        assert len(self.oks_sigmas) == len(keypoints)
        assert all(set(limb) <= keypoints for limb in self.limbs)

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoint_names)

    @cached_property
    def flip_order(self) -> tuple[int, ...]:
        """Keypoint that takes each place when the picture is mirrored (left and right swap)."""
        return tuple(self.keypoint_names.index(_mirrored(name)) for name in self.keypoint_names)

    def side(self, keypoint: int) -> str:
        """'left', 'right' or 'centre'; drawing colours follow it."""
        prefix = self.keypoint_names[keypoint].split("_")[0]
        return prefix if prefix in ("left", "right") else "centre"


def _mirrored(name: str) -> str:
    side, _, part = name.partition("_")
    return {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name)


COCO = Skeleton(
    name="coco17",
    keypoint_names=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    limbs=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
        (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    # HRNet/HigherHRNet-Human-Pose-Estimation: trunk first, then limbs outwards.
    matching_order=(0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16),
    # The COCO keypoint challenge's constants.
    oks_sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
        0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip

CROWDPOSE = Skeleton(
    name="crowdpose14",
    keypoint_names=(
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
        "head_top",
        "neck",
    ),
    limbs=(
        (10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 1),
        (0, 2), (1, 3), (2, 4), (3, 5), (12, 13), (13, 0), (13, 1),
    ),
    # The official code uses the first 14 entries of COCO's order, whatever they mean here.
    matching_order=(0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13),
    # Jeff-sjtu/CrowdPose evaluation code.
    oks_sigmas=(
        0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107,
        0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079,
    ),
)  # fmt: skip

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO, CROWDPOSE)}


def skeleton_for(num_keypoints: int) -> Skeleton:
    """The skeleton with that many keypoints; weights without a note of theirs are read by it."""
    for skeleton in SKELETONS.values():
        if skeleton.num_keypoints == num_keypoints:
            return skeleton
    known = ", ".join(f"{s.num_keypoints} ({s.name})" for s in SKELETONS.values())
    raise ValueError(
        f"no skeleton has {num_keypoints} keypoints; known: {known}; add yours to nets/skeletons.py"
    )
