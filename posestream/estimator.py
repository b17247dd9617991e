"""One picture, or a list of them, in; poses out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import count
from os import PathLike
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.estimator import frame_of_picture, make_estimator
from pipeline.messages import PixelFormat
from pipeline.options import config_of_options
from posestream.frame import Order, checked_image
from posestream.poses import Poses

_PIXEL_FORMAT: dict[Order, PixelFormat] = {"bgr": "bgr24", "rgb": "rgb24"}

Image = NDArray[np.uint8]


class PoseEstimator:
    """Finds the people of single pictures, with the stages and settings of a stream.

    Loading takes seconds: make one and keep it. Any thread may call it; calls from several threads
    wait for each other. People have no ids, because a picture has no past: see posestream.stream.

    Args:
        weights: a file of ours (.safetensors), official .pth, or mmpose 0.x; by default the model
            in the box.
        device: cpu, cuda, cuda:N; by default a GPU if there is one.
        engine: torch, openvino, tensorrt; by default the fastest installed.
        precision: fp32, bf16, fp16; by default what the hardware has.
        input_size: short side of the network input in pixels, or one letterboxed canvas as
            "WIDTHxHEIGHT"; by default the size the weights were trained for.
        flip_test: average with the mirrored picture: slightly better, half the speed.
        threads: CPU threads of the engine; by default all cores.
        order: of the channels of the pictures: "bgr" as OpenCV reads them, or "rgb".
        settings: any other setting by its name in pipeline/config.py, for example
            {"poses.refine": "off"}.
    Raises:
        ValueError: a setting, weights or device that cannot be used; one line says what to do.
    """

    def __init__(
        self,
        *,
        weights: str | PathLike[str] | None = None,
        device: str | None = None,
        engine: str | None = None,
        precision: str | None = None,
        input_size: int | str | None = None,
        flip_test: bool = False,
        threads: int | None = None,
        order: Order = "bgr",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if order not in _PIXEL_FORMAT:
            raise ValueError(f"order must be 'bgr' or 'rgb', got {order!r}")
        config = config_of_options(
            {
                "weights": weights,
                "device": device,
                "engine": engine,
                "precision": precision,
                "input_size": input_size,
                "flip_test": flip_test,
                "threads": threads,
            },
            settings={"tracker.enabled": False, **(settings or {})},
        )
        self._estimate = make_estimator(config)
        self._order = order
        self._numbers = count()
        self._lock = threading.Lock()

    @overload
    def __call__(self, image: Image) -> Poses: ...

    @overload
    def __call__(self, image: Sequence[Image]) -> list[Poses]: ...

    def __call__(self, image: Image | Sequence[Image]) -> Poses | list[Poses]:
        """The people of a picture; of a list of pictures, a list in the same order.

        Args:
            image: (height, width, 3) uint8; not copied, and poses.frame refers to it.
        Raises:
            TypeError, ValueError: it is no such picture; says what was given and what to do.
        """
        if isinstance(image, list | tuple):
            named = ((f"images[{i}]", each) for i, each in enumerate(image))
            return self._poses([checked_image(each, name=name) for name, each in named])
        (poses,) = self._poses([checked_image(image)])
        return poses

    def _poses(self, images: Sequence[Image]) -> list[Poses]:
        with self._lock:
            frames = [
                frame_of_picture(
                    image,
                    source="image",
                    index=next(self._numbers),
                    pixel_format=_PIXEL_FORMAT[self._order],
                )
                for image in images
            ]
            return [Poses(found, self._order) for found in self._estimate(frames)]
