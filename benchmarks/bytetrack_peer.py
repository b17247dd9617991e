"""ByteTrack on boxes, for bench_tracker.py: reads scenes on standard input, writes ids.

Runs under a Python of its own that has the `trackers` package (it needs another OpenCV than ours),
so it imports nothing of this project. One JSON document in: {"settings": {...}, "scenes": [{"fps",
"frames": [{"boxes": [[left, top, right, bottom]], "scores": []}]}]}; one out: ids per scene, frame.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import supervision as sv  # type: ignore[import-not-found,unused-ignore]
from trackers import ByteTrackTracker  # type: ignore[import-not-found]


def ids_of(scene: dict[str, Any], settings: dict[str, Any], times: list[float]) -> list[list[int]]:
    tracker = ByteTrackTracker(frame_rate=scene["fps"], **settings)
    result = []
    for frame in scene["frames"]:
        count = len(frame["scores"])
        detections = sv.Detections(
            xyxy=np.array(frame["boxes"], float).reshape(-1, 4),
            confidence=np.array(frame["scores"], float),
            data={"index": np.arange(count)},
        )
        started = time.perf_counter()
        tracked = tracker.update(detections)
        times.append((time.perf_counter() - started) * 1e3)
        ids = np.full(count, -1)
        if count:
            ids[tracked.data["index"]] = tracked.tracker_id
        result.append(ids.tolist())
    return result


def main() -> None:
    task = json.load(sys.stdin)
    times: list[float] = []
    ids = [ids_of(scene, task["settings"], times) for scene in task["scenes"]]
    json.dump({"ids": ids, "median_ms": float(np.median(times))}, sys.stdout)


if __name__ == "__main__":
    main()
