"""Identity switches, jitter, lag and cost of the tracker, on made-up crossings.

The peer is ByteTrack on the boxes of the same people, by the `trackers` package. It needs another
OpenCV than ours, hence an environment of its own:

    python -m venv peer && peer/bin/pip install trackers==2.6.1
    python -m benchmarks.bench_tracker --peer-python peer/bin/python
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import SmoothConfig, TrackerConfig
from pipeline.tracker import Tracker, warm_up
from tests.support.crossings import SCRIPTS, Faults, Sighting, id_switches, play, share_with_id
from tests.support.people import crowd, poses_of

SEEDS = 20
FPS = (30.0, 10.0)
SIZE = (1080, 1920)
_WARM_UP = 30  # frames
FAULTS = {
    "10 % missed": Faults(stolen=0.0),
    "10 % missed, twice the jitter": Faults(stolen=0.0, jitter=0.024),
    "10 % missed, 20 % of close keypoints swapped": Faults(),
}
Scene = list[Sighting]


def our_ids(scene: Scene) -> list[np.ndarray]:
    tracker = Tracker(TrackerConfig(), SmoothConfig())
    return [tracker(sighting.poses).ids for sighting in scene]


def peer_ids(
    python: str, scenes: list[tuple[float, Scene]]
) -> tuple[list[list[np.ndarray]], float]:
    """ByteTrack's ids, with our own patience, confirmation and thresholds; and its median ms."""
    ours = TrackerConfig()
    settings = {
        "lost_track_buffer": round(30 * ours.max_lost_s),  # in frames of 1/30 s
        "minimum_consecutive_frames": ours.min_frames,
        "track_activation_threshold": ours.confident_score,
        "high_conf_det_threshold": ours.confident_score,
    }
    task = {"settings": settings, "scenes": [_boxes(fps, scene) for fps, scene in scenes]}
    child = Path(__file__).with_name("bytetrack_peer.py")
    done = subprocess.run(
        [python, str(child)], input=json.dumps(task), capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    return [[np.array(ids, int) for ids in scene] for scene in answer["ids"]], answer["median_ms"]


def _boxes(fps: float, scene: Scene) -> dict[str, Any]:
    frames = []
    for sighting in scene:
        keypoints = sighting.poses.keypoints
        seen = keypoints[..., 2:] > 0
        low = np.where(seen, keypoints[..., :2], np.inf).min(axis=1)
        high = np.where(seen, keypoints[..., :2], -np.inf).max(axis=1)
        boxes = np.concatenate([low, high], axis=1)
        frames.append({"boxes": boxes.tolist(), "scores": sighting.poses.scores.tolist()})
    return {"fps": fps, "frames": frames}


def bench_identity(peer_python: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for label, faults in FAULTS.items():
        scenes = [
            (script, fps, play(script, seed=seed, fps=fps, faults=faults))
            for script in SCRIPTS
            for fps in FPS
            for seed in range(SEEDS)
        ]
        ids = {"ours": [our_ids(scene) for *_, scene in scenes]}
        if peer_python is not None:
            ids["bytetrack"], _ = peer_ids(peer_python, [(fps, scene) for _, fps, scene in scenes])
        result[label] = {name: _figures(scenes, given) for name, given in ids.items()}
        for name, figures in result[label].items():
            print(f"{label}; {name}: {figures}")
    return result


def _figures(
    scenes: list[tuple[str, float, Scene]], ids: list[list[np.ndarray]]
) -> dict[str, float]:
    """Switches by script, all of them, and the share of people that had an id."""
    switches = dict.fromkeys(SCRIPTS, 0)
    for (script, _, scene), given in zip(scenes, ids, strict=True):
        switches[script] += id_switches([sighting.who for sighting in scene], given)
    share = float(np.mean([share_with_id(given) for given in ids]))
    return {**switches, "all": sum(switches.values()), "share_with_id": round(share, 3)}


def bench_calm() -> dict[str, float]:
    """Jitter of people who stand, and lag of people who walk, before and after the filter."""
    still = play("meeting", seed=0, seconds=10.0, faults=Faults(missed=0, stolen=0))
    walking = play("crossing", seed=0, faults=Faults(missed=0, stolen=0))
    raw, calm, truth = _one_person([s for s in still if 2.2 < _seconds(s) < 3.0])
    jitter = float(np.diff(raw - truth, axis=0).std()), float(np.diff(calm - truth, axis=0).std())
    raw, calm, truth = _one_person([s for s in walking if _seconds(s) < 4.0])
    figures = {
        "jitter_px": round(jitter[0], 3),
        "jitter_smoothed_px": round(jitter[1], 3),
        "walking_error_px": round(float(np.abs(raw - truth)[15:].mean()), 3),
        "walking_error_smoothed_px": round(float(np.abs(calm - truth)[15:].mean()), 3),
        "lag_frames": _lag_frames(calm[15:], truth[15:]),
    }
    print(f"calm, people of about 320 px at 30 fps: {figures}")
    return figures


def _seconds(sighting: Sighting) -> float:
    return sighting.poses.frame.pts_seconds or 0.0


def _one_person(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw, smoothed and true trunk (F, 4, 2) of walker 0, in frames that show all of it."""
    trunk = [5, 6, 11, 12]
    tracker = Tracker(TrackerConfig(), SmoothConfig())
    rows = []
    for sighting in scene:
        poses = tracker(sighting.poses)
        assert poses.smoothed is not None
        for i in np.flatnonzero(sighting.who == 0):
            if (poses.keypoints[i, trunk, 2] > 0).all():
                raw, true = poses.keypoints[i, trunk, :2], sighting.true_keypoints[i, trunk]
                rows.append((raw, poses.smoothed[i, trunk], true))
    raw, calm, truth = (np.stack(part) for part in zip(*rows, strict=True))
    return raw, calm, truth


def _lag_frames(calm: np.ndarray, truth: np.ndarray) -> float:
    """How far behind the truth, along the way it goes, in frames."""
    step = np.diff(truth[..., 0], axis=0)
    behind = (truth[1:, :, 0] - calm[1:, :, 0]) * np.sign(step)
    return round(float(behind.mean() / np.abs(step).mean()), 3)


def bench_cost(peer_python: str | None) -> dict[str, dict[str, float]]:
    """Milliseconds a frame; of the peer only the median, in its own process."""
    result = {}
    for people in (1, 10, 30):
        scene = _crowd_that_moves(people)
        tracker = Tracker(TrackerConfig(), SmoothConfig())
        wall, cpu = [], []
        for sighting in scene:
            started, worked = time.perf_counter(), time.thread_time()
            tracker(sighting.poses)
            cpu.append((time.thread_time() - worked) * 1e3)
            wall.append((time.perf_counter() - started) * 1e3)
        figures = {
            "median_ms": round(float(np.median(wall[_WARM_UP:])), 3),
            "p95_ms": round(float(np.percentile(wall[_WARM_UP:], 95)), 3),
            "median_cpu_ms": round(float(np.median(cpu[_WARM_UP:])), 3),
        }
        if peer_python is not None:
            _, median_ms = peer_ids(peer_python, [(30.0, scene)])
            figures["bytetrack_median_ms"] = round(median_ms, 3)
        print(f"cost, {people} people: {figures}")
        result[str(people)] = figures
    return result


def _crowd_that_moves(people: int) -> Scene:
    chance = np.random.default_rng(people)
    base = crowd(people, SIZE)
    scene = []
    for i in range(300 + _WARM_UP):
        keypoints = base.copy()
        keypoints[..., :2] += chance.normal(0, 1, (people, 17, 2)) + i
        poses = poses_of(keypoints, size=SIZE, index=i, pts_seconds=i / 30)
        scene.append(Sighting(poses, np.arange(people), keypoints[..., :2]))
    return scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="a Python with `trackers`; none: no comparison")
    options = parser.parse_args()
    if options.peer_python is None:
        print("ByteTrack is not compared: pass --peer-python (see this file's first lines)")
    warm_up()
    device = platform.processor() or platform.machine()
    print(f"device: {device}; {len(SCRIPTS)} scripts x {FPS} fps x {SEEDS} seeds of 5 s")
    result = {
        "benchmark": "tracker",
        "device": device,
        "identity": bench_identity(options.peer_python),
        "calm": bench_calm(),
        "cost": bench_cost(options.peer_python),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
