"""Picture -> network input: kernels.preprocess against swscale and OpenCV, all on one thread.

Run it as `python -m benchmarks.bench_preprocess`. The peers do what a Python program without
such a kernel would do: swscale (PyAV, one context kept) scales and converts in one call, then NumPy
normalises; OpenCV resizes the three planes, converts the small picture and normalises it. A second
OpenCV row is the plain definition: convert the whole picture, warpAffine, normalise.

OpenCV converts BT.601 narrow range only, so that is what everybody gets here.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from kernels.geometry import net_from_image
from kernels.preprocess import bgr_from_planes, preprocess, warm_up

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
NET_SIZE = (288, 512)
PICTURE_SIZES = {"720p": (720, 1280), "1080p": (1080, 1920)}

Planes = tuple[np.ndarray, ...]


def yuv_frame(size: tuple[int, int]) -> av.VideoFrame:
    """A picture of soft colours and some noise, as yuv420p."""
    rng = np.random.default_rng(0)
    soft = cv2.resize(rng.uniform(20, 235, (9, 16, 3)), size[::-1], interpolation=cv2.INTER_CUBIC)
    noisy = (soft + rng.normal(0, 6, soft.shape)).clip(0, 255).astype(np.uint8)
    return VideoReformatter().reformat(
        av.VideoFrame.from_ndarray(noisy, format="bgr24"), format="yuv420p"
    )


def planes_of(frame: av.VideoFrame) -> Planes:
    return tuple(
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : plane.height, : plane.width
        ]
        for plane in frame.planes
    )


def ours(planes: Planes, *, prefilter: bool) -> np.ndarray:
    return preprocess(
        planes,
        pixel_format="yuv420p",
        color_space="bt601",
        full_range=False,
        net_from_image=net_from_image(planes[0].shape, NET_SIZE),
        net_size=NET_SIZE,
        mean=MEAN.tolist(),
        std=STD.tolist(),
        prefilter=prefilter,
    )


def normalized(rgb: np.ndarray) -> np.ndarray:
    gain, bias = 1 / (255 * STD), -MEAN / STD
    return np.ascontiguousarray((rgb * gain + bias).transpose(2, 0, 1))


def swscale(
    frame: av.VideoFrame, reformatter: VideoReformatter, interpolation: Interpolation
) -> np.ndarray:
    small = reformatter.reformat(
        frame, NET_SIZE[1], NET_SIZE[0], "rgb24", interpolation=interpolation, threads=1
    )
    return normalized(small.to_ndarray())


def opencv_planes(planes: Planes, interpolation: int) -> np.ndarray:
    h, w = NET_SIZE
    i420 = np.empty((h * 3 // 2, w), np.uint8)
    cv2.resize(planes[0], (w, h), dst=i420[:h], interpolation=interpolation)
    halves = i420[h:].reshape(2, h // 2, w // 2)
    for plane, half in zip(planes[1:], halves, strict=True):
        cv2.resize(plane, (w // 2, h // 2), dst=half, interpolation=interpolation)
    return normalized(cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420))


def opencv_warp(planes: Planes) -> np.ndarray:
    h, w = planes[0].shape
    i420 = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, w)
    rgb = cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420)
    matrix = net_from_image((h, w), NET_SIZE)
    return normalized(cv2.warpAffine(rgb, matrix, NET_SIZE[::-1], flags=cv2.INTER_LINEAR))


def interleaved_ms(
    calls: dict[str, Callable[[], np.ndarray]], rounds: int
) -> dict[str, np.ndarray]:
    """Milliseconds of every round; the calls take turns, so that a busy moment meets them all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 10):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if i >= 10:  # warm
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def bench(size: tuple[int, int], rounds: int) -> dict[str, float]:
    """Print one row a method and return their medians in ms."""
    frame = yuv_frame(size)
    planes = planes_of(frame)
    # One context for each: a reformatter keeps the last one only.
    area, bilinear, whole = VideoReformatter(), VideoReformatter(), VideoReformatter()
    calls: dict[str, Callable[[], np.ndarray]] = {
        "ours_prefilter": lambda: ours(planes, prefilter=True),
        "swscale_area": lambda: swscale(frame, area, Interpolation.AREA),
        "opencv_planes_area": lambda: opencv_planes(planes, cv2.INTER_AREA),
        "ours_two_taps": lambda: ours(planes, prefilter=False),
        "swscale_bilinear": lambda: swscale(frame, bilinear, Interpolation.FAST_BILINEAR),
        "opencv_planes_linear": lambda: opencv_planes(planes, cv2.INTER_LINEAR),
        "opencv_warp": lambda: opencv_warp(planes),
        "ours_whole_bgr": lambda: bgr_from_planes(
            planes, pixel_format="yuv420p", color_space="bt601", full_range=False
        ),
        "swscale_whole_bgr": lambda: whole.reformat(frame, format="bgr24", threads=1).to_ndarray(),
    }
    times = interleaved_ms(calls, rounds)
    for name, values in times.items():
        print(f"  {name:22} median {np.median(values):6.2f}  p95 {np.percentile(values, 95):6.2f}")
    reference = ours(planes, prefilter=True)
    for name in ("swscale_area", "opencv_planes_area"):
        levels = abs(calls[name]() - reference).mean() * 255 * STD.mean()
        print(f"  {name} differs from ours by {levels:.2f} grey levels on average")
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    warm_up()
    result: dict[str, object] = {"bench": "preprocess", "device": platform.processor() or "cpu"}
    for name, size in PICTURE_SIZES.items():
        print(
            f"cpu, 1 thread: {size[1]}x{size[0]} yuv420p -> (3, {NET_SIZE[0]}, {NET_SIZE[1]}), ms"
        )
        median = bench(size, rounds)
        result[name] = {
            "median_ms": {method: round(ms, 3) for method, ms in median.items()},
            "swscale_area_over_ours": round(median["swscale_area"] / median["ours_prefilter"], 2),
            "opencv_area_over_ours": round(
                median["opencv_planes_area"] / median["ours_prefilter"], 2
            ),
            "opencv_warp_over_ours": round(median["opencv_warp"] / median["ours_two_taps"], 2),
            "swscale_bgr_over_ours": round(
                median["swscale_whole_bgr"] / median["ours_whole_bgr"], 2
            ),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
