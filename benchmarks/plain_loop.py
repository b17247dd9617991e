"""The loop that people write first, as a peer for bench_latency: read, run, print; one thread.

    python -m benchmarks.plain_loop rtsp://camera/live

cv2.VideoCapture as it comes, then the stream's own preprocessing, engine and decode, so that what
differs is only how frames wait. A line of JSON for each picture: when its poses were there, and its
people's noses.
"""

from __future__ import annotations

import json
import sys
import time

import cv2
import numpy as np

from common.places import DEFAULT_WEIGHTS
from nets.checkpoints import load_model
from nets.engines.load import load_engine
from pipeline.config import PosesConfig
from pipeline.inference import Inference
from pipeline.messages import Frame
from pipeline.poses import FindPoses, decode_settings
from pipeline.preprocess import Preprocess


def main() -> None:
    model = load_model(DEFAULT_WEIGHTS)
    preprocess = Preprocess(
        input_size=model.input_size, mean=model.mean, std=model.std,
        size_multiple=model.size_multiple,
    )  # fmt: skip
    inference = Inference(load_engine(model))
    find_poses = FindPoses(model.skeleton, decode_settings(PosesConfig(), model))

    def noses_in(image: np.ndarray) -> list[list[float]]:
        frame = Frame(
            source="camera", index=0, pts_seconds=None, captured_ns=time.monotonic_ns(),
            captured_unix_s=time.time(), size=(image.shape[0], image.shape[1]), planes=(image,),
        )  # fmt: skip
        (batch,) = preprocess([frame])
        (output,) = inference(batch)
        (poses,) = find_poses(output)
        noses: list[list[float]] = poses.keypoints[:, 0].tolist()
        return noses

    # Compiled before the camera is opened: what arrives meanwhile would wait, and never catch up.
    noses_in(np.zeros((720, 1280, 3), np.uint8))
    capture = cv2.VideoCapture(sys.argv[1], cv2.CAP_FFMPEG)
    if not capture.isOpened():
        sys.exit(f"{sys.argv[1]} cannot be opened")
    while True:
        there_is_one, image = capture.read()
        if not there_is_one:
            return
        noses = noses_in(np.asarray(image))
        print(json.dumps({"unix_s": time.time(), "noses": noses}), flush=True)


if __name__ == "__main__":
    main()
