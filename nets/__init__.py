"""The networks, their weights and what is averaged of their outputs; shared by stream and training.

    skeletons      which keypoints there are
    blocks         bricks      hrnet, mobile_fpn                    backbones
                               higher_hrnet, double_higher_net      the papers' heads on a backbone
    named          every network that has a name
    aggregation    flip test, scales, coarse and fine
    checkpoints    weights in and out   zoo: published ones, by name
    engines        what runs a network fast; openvino_engine, tensorrt_engine: two of them
    half_precision, export_program     a net as TensorRT takes it
    movenet        MoveNet's weights, where the small net starts from
    graphs         ONNX and OpenVINO files for other programs; model_card: the page beside them

Nothing here knows of frames, queues or people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nets.named import PoseNet


def build_net(name: str, num_keypoints: int = 17, **settings: Any) -> PoseNet:
    """A network with fresh weights, in training mode.

    Args:
        name: for example higher_hrnet_w32; nets.named.NAMED lists them.
        num_keypoints: K, 17 for COCO, 14 for CrowdPose.
        settings: fields of the net's settings or of its backbone's that shall differ, for example
            width=8, deconvs=2, residual_blocks=0.
    Raises:
        ValueError: no network or no setting has that name.
    """
    from nets.named import build  # here, so that nets.skeletons alone costs no import of torch

    return build(name, num_keypoints, settings)
