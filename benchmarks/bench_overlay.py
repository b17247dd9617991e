"""Drawing 10 people at 720p, and writing the drawn pictures as video.

Drawing is compared with the plain way to draw a skeleton, one call a limb and one a keypoint,
without edges, labels and widths that follow the size; writing with OpenCV's own VideoWriter.

    python -m benchmarks.bench_overlay
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from nets.skeletons import COCO
from pipeline.messages import Poses
from pipeline.sinks.overlay import SIDE_COLORS, draw_poses
from pipeline.sinks.video.video_writer import VideoWriter
from pipeline.sources.demo import picture
from tests.support.people import crowd, poses_of, standing_person

ROUNDS = 60
NUM_PICTURES = 90
SIZES = {"360p": (360, 640), "720p": (720, 1280), "2160p": (2160, 3840)}


def draw_plainly(image: np.ndarray, poses: Poses) -> None:
    for person in poses.keypoints:
        points = np.round(person[:, :2] * 16).astype(int).tolist()
        for a, b in COCO.limbs:
            cv2.line(image, points[a], points[b], SIDE_COLORS[COCO.side(a)], 3, cv2.LINE_AA, 4)
        for k, point in enumerate(points):
            cv2.circle(image, point, 64, SIDE_COLORS[COCO.side(k)], -1, cv2.LINE_AA, 4)


def interleaved_ms(*ways: Callable[[], object]) -> list[list[float]]:
    """Milliseconds of every round of each way, in turns so that a busy moment hits all."""
    times: list[list[float]] = [[] for _ in ways]
    for round_number in range(ROUNDS + 5):
        for way, entry in zip(ways, times, strict=True):
            started = time.perf_counter()
            way()
            if round_number >= 5:  # the first ones warm up
                entry.append((time.perf_counter() - started) * 1e3)
    return times


def report(name: str, times: list[float]) -> dict[str, float]:
    median, p95 = (round(float(np.percentile(times, q)), 3) for q in (50, 95))
    print(f"{name:44s} median {median:8.2f} ms   p95 {p95:8.2f} ms")
    return {"median_ms": median, "p95_ms": p95}


def bench_drawing(label: str, size: tuple[int, int], keypoints: np.ndarray) -> dict[str, object]:
    poses = poses_of(keypoints, size=size)
    image = np.full((*size, 3), 90, dtype=np.uint8)
    ours, plain = interleaved_ms(
        lambda: draw_poses(image, poses, COCO), lambda: draw_plainly(image, poses)
    )
    figures = {"ours": report(f"draw, {label}", ours), "plain": report("  plainly", plain)}
    ratio = round(figures["ours"]["median_ms"] / figures["plain"]["median_ms"], 2)
    return {**figures, "ratio": ratio}


def bench_writing(folder: Path) -> dict[str, object]:
    """Milliseconds a picture and bytes a picture, of pictures that move."""
    pictures = [picture(index) for index in range(NUM_PICTURES)]
    nobody = np.zeros((0, COCO.num_keypoints, 3))
    frames = [poses_of(nobody, index=i, pts_seconds=i / 30).frame for i in range(NUM_PICTURES)]
    ours = VideoWriter(folder / "ours.mp4")
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    peer = cv2.VideoWriter(str(folder / "peer.mp4"), fourcc, 30, (1280, 720))
    times: dict[str, list[float]] = {"ours": [], "opencv": []}
    for image, frame in zip(pictures, frames, strict=True):
        for name, write in (
            ("ours", lambda: ours.write(image, frame)),  # noqa: B023
            ("opencv", lambda: peer.write(image)),  # noqa: B023
        ):
            started = time.perf_counter()
            write()
            times[name].append((time.perf_counter() - started) * 1e3)
    ours.close()
    peer.release()
    figures = {
        "ours": report("write 720p, H.264 (ours)", times["ours"][10:]),
        "opencv": report("  cv2.VideoWriter, MPEG-4", times["opencv"][10:]),
    }
    for name, file in (("ours", "ours.mp4"), ("opencv", "peer.mp4")):
        figures[name]["kilobytes"] = round((folder / file).stat().st_size / 1000)
        print(f"  {name}: {figures[name]['kilobytes']} kB for {NUM_PICTURES} pictures")
    return dict(figures)


def main() -> None:
    device = f"{platform.processor() or platform.machine()}, OpenCV {cv2.__version__}"
    print(f"device: {device}; 10 people of 17 keypoints; {ROUNDS} rounds")
    result: dict[str, object] = {"benchmark": "overlay", "device": device}
    for name, size in SIZES.items():
        result[f"draw_{name}"] = bench_drawing(f"crowd, {name}", size, crowd(10, size))
    row = np.stack([standing_person(70 + 125 * i, 10, 700) for i in range(10)])
    result["draw_720p_full_height"] = bench_drawing("all 700 pixels high, 720p", (720, 1280), row)
    with tempfile.TemporaryDirectory() as folder:
        result["write_720p"] = bench_writing(Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
