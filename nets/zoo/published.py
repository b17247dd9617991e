"""Weights that others published, by name: where they lie, what they are, how they were measured.

A table and nothing else. How a name becomes a file on this disk is in weights_files.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SERVER = "https://download.openmmlab.com/"
"""Of OpenMMLab, who publish all of them. POSESTREAM_WEIGHTS_URL names another place."""

Decode = Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class Published:
    """One file."""

    path: str
    """Below SERVER."""
    sha256: str
    """The first hex digits of its SHA-256; mmpose puts eight of them into the file's name."""
    data: str
    """What it was trained on."""
    input_size: int
    """Short side of the network input in pixels that it was measured with."""
    ap: float | None = None
    """As stated by the publisher, one scale, flip test: COCO val2017, CrowdPose test."""
    ap_scales: float | None = None
    """The same with scales 0.5, 1, 2 (CrowdPose: 1, 2)."""
    megabytes: int | None = None
    """About; 4 bytes for each number of the net, because the file itself was never seen."""
    decode: Decode = field(default_factory=dict)
    """Where the stated AP was measured with another decode than the official code's: the fields of
    kernels.decode.DecodeSettings that differ. They hold unless the user says otherwise."""
    backbone_only: bool = False
    """No heads for keypoints: a training starts from it, nobody is found with it."""
    source: str = "mmpose"
    licence: str = "Apache-2.0"

    @property
    def file(self) -> str:
        """Its name, which no other file of the table has."""
        return self.path.rpartition("/")[2]


# mmpose 0.x upsamples every level straight to input size. The official code goes by the size of the
# highest level. On CrowdPose mmpose hands out keypoints by index, not in the official order.
_HIGHER: Decode = {"one_step": True}
_HIGHER_CROWDPOSE: Decode = {"one_step": True, "matching_order": "index"}

# Addresses and AP: mmpose 0.29, configs/body/2d_kpt_sview_rgb_img/associative_embedding/*.md.
PUBLISHED: dict[str, Published] = {
    "higher_hrnet_w32": Published(
        "mmpose/bottom_up/higher_hrnet32_coco_512x512-8ae85183_20200713.pth",
        "8ae85183", "COCO", 512, ap=0.677, ap_scales=0.706, megabytes=115, decode=_HIGHER,
    ),
    "higher_hrnet_w32_640": Published(
        "mmpose/bottom_up/higher_hrnet32_coco_640x640-a22fe938_20200712.pth",
        "a22fe938", "COCO", 640, ap=0.686, ap_scales=0.706, megabytes=115, decode=_HIGHER,
    ),
    "higher_hrnet_w48": Published(
        "mmpose/bottom_up/higher_hrnet48_coco_512x512-60fedcbc_20200712.pth",
        "60fedcbc", "COCO", 512, ap=0.686, ap_scales=0.716, megabytes=256, decode=_HIGHER,
    ),
    "higher_hrnet_w32_crowdpose": Published(
        "mmpose/bottom_up/higher_hrnet32_crowdpose_512x512-1aa4a132_20201017.pth",
        "1aa4a132", "CrowdPose", 512, ap=0.655, ap_scales=0.661, megabytes=115,
        decode=_HIGHER_CROWDPOSE,
    ),
    "hrnet_w32": Published(
        "mmpose/bottom_up/hrnet_w32_coco_512x512-bcb8c247_20200816.pth",
        "bcb8c247", "COCO", 512, ap=0.654, ap_scales=0.698, megabytes=114,
    ),
    "hrnet_w48": Published(
        "mmpose/bottom_up/hrnet_w48_coco_512x512-cf72fcdf_20200816.pth",
        "cf72fcdf", "COCO", 512, ap=0.665, ap_scales=0.712, megabytes=255,
    ),
    "imagenet_hrnet_w32": Published(
        "mmpose/pretrain_models/hrnet_w32-36af842e.pth",
        "36af842e", "ImageNet", 224, backbone_only=True,
    ),
    "imagenet_hrnet_w48": Published(
        "mmpose/pretrain_models/hrnet_w48-8ef0771d.pth",
        "8ef0771d", "ImageNet", 224, backbone_only=True,
    ),
}  # fmt: skip


def published_with(sha256: str) -> Published | None:
    """The entry of a file with that SHA-256 (64 hex digits), whatever the file is called."""
    for entry in PUBLISHED.values():
        if sha256.startswith(entry.sha256):
            return entry
    return None
