"""Heatmaps, tags -> people in pixels of the upright picture. The decode is kernels.decode."""

import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from kernels.decode import DecodeSettings, decode
from nets.checkpoints import Model
from nets.skeletons import Skeleton
from pipeline.config import PosesConfig
from pipeline.messages import NetOutput, Poses


class FindPoses:
    """Decodes every frame of a batch, one by one, in the order of the batch."""

    def __init__(self, skeleton: Skeleton, settings: DecodeSettings) -> None:
        self._skeleton = skeleton
        self._settings = settings

    def __call__(self, output: NetOutput) -> Iterator[Poses]:
        for i, frame in enumerate(output.frames):
            started = time.perf_counter()
            people = decode(
                [level[i] for level in output.levels],
                output.tags[i],
                output.net_size,
                self._skeleton,
                settings=self._settings,
            )
            keypoints = to_picture(people.keypoints, output.image_from_net[i])
            yield Poses(
                frame=frame,
                skeleton=self._skeleton.name,
                keypoints=keypoints,
                scores=people.scores,
                filled=people.filled,
                ids=np.full(len(people.scores), -1, dtype=np.int64),
                completed_ns=time.monotonic_ns(),
                stage_ms={**output.stage_ms, "poses": (time.perf_counter() - started) * 1e3},
            )


def to_picture(keypoints: np.ndarray, image_from_net: np.ndarray) -> np.ndarray:
    """Keypoints (P, K, 3) from network-input pixels to picture pixels.

    A missing keypoint (score 0) stays all zero; the published evaluation would map its (0, 0) to
    the corner of the padding, where nobody has a use for it.
    """
    mapped = keypoints.copy()
    mapped[..., :2] = keypoints[..., :2] @ image_from_net[:, :2].T + image_from_net[:, 2]
    mapped[keypoints[..., 2] == 0] = 0
    return mapped


def decode_settings(config: PosesConfig, model: Model) -> DecodeSettings:
    """What holds for a stream: the published decode, changed by the weights, then by the user."""
    chosen = {key: value for key, value in config.model_dump().items() if value is not None}
    return dataclasses.replace(DecodeSettings(), **{**model.decode, **chosen})
