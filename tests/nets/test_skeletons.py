"""Skeletons: sides swap, orders are the published ones."""

import subprocess
import sys

import pytest

from nets.skeletons import COCO, CROWDPOSE, SKELETONS, Skeleton, skeleton_for
from tests.support.places import ROOT


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_mirroring_twice_changes_nothing_and_swaps_the_sides(skeleton: Skeleton) -> None:
    order = skeleton.flip_order
    assert [order[order[k]] for k in range(skeleton.num_keypoints)] == list(
        range(skeleton.num_keypoints)
    )
    other = {"left": "right", "right": "left", "centre": "centre"}
    for keypoint, mirrored in enumerate(order):
        assert skeleton.side(mirrored) == other[skeleton.side(keypoint)]
        assert skeleton.oks_sigmas[mirrored] == skeleton.oks_sigmas[keypoint]


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_limbs_are_symmetric_and_reach_every_keypoint(skeleton: Skeleton) -> None:
    limbs = {frozenset(limb) for limb in skeleton.limbs}
    assert len(limbs) == len(skeleton.limbs)
    assert {frozenset(skeleton.flip_order[k] for k in limb) for limb in limbs} == limbs
    assert set().union(*limbs) == set(range(skeleton.num_keypoints))


def test_orders_are_those_of_the_published_code() -> None:
    assert COCO.flip_order == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert CROWDPOSE.flip_order == (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13)
    assert CROWDPOSE.matching_order == COCO.matching_order[:14]


def test_skeleton_is_found_by_its_number_of_keypoints() -> None:
    assert skeleton_for(17) is COCO
    assert skeleton_for(14) is CROWDPOSE
    with pytest.raises(ValueError, match=r"no skeleton has 16 keypoints; known: 17 \(coco17\), 14"):
        skeleton_for(16)


def test_skeletons_alone_do_not_import_torch() -> None:
    """A process that only draws or publishes needs no torch in memory."""
    code = "import sys, nets.skeletons; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
