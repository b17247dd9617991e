"""PoseEstimator against its own parts called by hand: what the Python API costs.

Run it as `python -m benchmarks.bench_api`. By hand means: kernels.preprocess, the engine, and
kernels.decode, the fewest lines that turn a 720p picture into people. Both ways take turns, picture
by picture, with one engine, so whatever else the machine does meets both. The claim is a median of
ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from statistics import median

import cv2
import numpy as np
import torch

import posestream
from common.places import DEFAULT_WEIGHTS
from kernels.decode import decode
from kernels.geometry import invert, net_from_image, network_size
from kernels.preprocess import preprocess
from nets.checkpoints import load_model
from nets.engines.load import load_engine
from pipeline.config import PosesConfig
from pipeline.poses import decode_settings, to_picture
from pipeline.sources import demo

SIZE = (720, 1280)
MAX_COST = 1.05


def by_hand(threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """Picture -> keypoints (P, K, 3), without frames and stages."""
    model = load_model(DEFAULT_WEIGHTS)
    engine = load_engine(model, device="cpu", threads=threads)
    settings = decode_settings(PosesConfig(), model)
    net_size = network_size(SIZE, input_size=model.input_size, size_multiple=model.size_multiple)
    matrix = net_from_image(SIZE, net_size)

    def run(picture: np.ndarray) -> np.ndarray:
        image = preprocess(
            (picture,),
            pixel_format="bgr24",
            color_space="bt601",
            full_range=False,
            net_from_image=matrix,
            net_size=net_size,
            mean=model.mean,
            std=model.std,
            prefilter=True,
        )
        maps = engine(torch.from_numpy(image)[None])
        levels = [level[0].numpy() for level in maps.levels]
        people = decode(levels, maps.tags[0].numpy(), net_size, model.skeleton, settings=settings)
        return to_picture(people.keypoints, invert(matrix))

    return run


def measure(repeats: int, threads: int | None) -> dict[str, float]:
    """Median milliseconds of both ways, and the median of the ratios of neighbours."""
    hand, estimate = by_hand(threads), posestream.PoseEstimator(device="cpu", threads=threads)
    pictures = [np.asarray(cv2.resize(demo.picture(i), SIZE[::-1]), np.uint8) for i in range(8)]
    for picture in pictures:  # warm, and equal
        poses = estimate(picture)
        np.testing.assert_allclose(poses.keypoints, hand(picture)[..., :2], atol=0.1)
    hand_ms: list[float] = []
    api_ms: list[float] = []
    for i in range(repeats):
        picture = pictures[i % len(pictures)]
        ways: list[tuple[Callable[[np.ndarray], object], list[float]]]
        ways = [(hand, hand_ms), (estimate, api_ms)]
        for way, times in ways if i % 2 else reversed(ways):
            started = time.perf_counter()
            way(picture)
            times.append((time.perf_counter() - started) * 1e3)
    ratios = [api / by for api, by in zip(api_ms, hand_ms, strict=True)]
    return {"by_hand_ms": median(hand_ms), "api_ms": median(api_ms), "ratio": median(ratios)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="of the engine; default: all")
    options = parser.parse_args()
    figures = measure(options.repeats, options.threads)
    print(f"{platform.processor() or platform.machine()}, 720p BGR, {options.repeats} pictures")
    print(f"by hand {figures['by_hand_ms']:.2f} ms, PoseEstimator {figures['api_ms']:.2f} ms")
    print(f"cost: {figures['ratio'] - 1:+.1%}; at most {MAX_COST - 1:.0%}")
    print(json.dumps({"bench": "api", **figures}))
    return 0 if figures["ratio"] <= MAX_COST else 1


if __name__ == "__main__":
    raise SystemExit(main())
