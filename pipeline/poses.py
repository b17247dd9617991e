"""Heatmaps, tags -> people in pixels of the upright picture. The decode is kernels.decode."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from kernels.decode import DecodeSettings, decode, first_unknown
from kernels.people import People
from nets.checkpoints import Model
from nets.skeletons import Skeleton
from pipeline.config import PosesConfig
from pipeline.messages import NetOutput, Poses


class FindPoses:
    """Decodes the frames of a batch, in its order: one by one, or on a GPU all at once."""

    def __init__(self, skeleton: Skeleton, settings: DecodeSettings) -> None:
        self._skeleton = skeleton
        self._settings = settings

    def set_refine(self, refine: Literal["full", "quarter", "off"]) -> None:
        """From the next batch on; between two batches, in their thread."""
        self._settings = dataclasses.replace(self._settings, refine=refine)

    def __call__(self, output: NetOutput) -> Iterator[Poses]:
        found = self._people(output)
        for i in range(len(output.frames)):
            started = time.perf_counter()
            yield poses_in_picture(next(found), output, i, self._skeleton, started=started)

    def _people(self, output: NetOutput) -> Iterator[People]:
        """Of one frame after the other, in network-input pixels."""
        if output.held_slot is not None:
            # The one copy from the GPU to the host, and the one wait.
            stream_slot = output.held_slot.stream_slot
            yield from stream_slot.people(
                output.levels, output.tags, output.net_size, self._settings
            )
            return
        for i in range(len(output.frames)):
            yield decode(
                [level[i] for level in output.levels],
                output.tags[i],
                output.net_size,
                self._skeleton,
                settings=self._settings,
            )


def poses_in_picture(
    people: People, output: NetOutput, i: int, skeleton: Skeleton, *, started: float
) -> Poses:
    """People found on the maps of a batch's i-th frame, as that frame's poses.

    Args:
        people: in network-input pixels.
        started: time.perf_counter() when the search for them began.
    """
    return Poses(
        frame=output.frames[i],
        skeleton=skeleton.name,
        keypoints=to_picture(people.keypoints, output.image_from_net[i]),
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
    """What holds for a stream: the published decode, changed by the weights, then by the user.

    Raises:
        ValueError: the weights' header says what cannot be used (config is checked already).
    """
    unknown = first_unknown(model.decode)
    if unknown is not None:
        raise ValueError(f"the weights of {model.name} have an unknown decode setting {unknown}")
    said: dict[str, Any] = {**model.decode}
    try:
        of_weights = dataclasses.replace(DecodeSettings(), **said)
    except ValueError as error:
        raise ValueError(
            f"the weights of {model.name} have a decode setting that cannot be used: {error}"
        ) from None
    chosen = {key: value for key, value in config.model_dump().items() if value is not None}
    return dataclasses.replace(of_weights, **chosen)
