"""How much of a training step the network has, and what reading and augmenting cost it.

The same loop runs twice in turns: on batches as worker processes make them, and on one batch that
is there already. Beside them stands what one process needs to make an example. A folder of JPEG
pictures with painted people is made for it.

    python -m benchmarks.bench_train [--net higher_hrnet_lite] [--size 256] [--batch 16]
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from nets.skeletons import COCO
from training.config import TrainConfig, checked_recipe
from training.examples import Batch, batches
from training.ranks import Ranks
from training.trainer import Training


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="posestream-") as name:
        folder = Path(name)
        annotations = _write_pictures(folder, count=64)
        config = _config(options, annotations)
        ranks = Ranks(0, 1, torch.device(config.device))
        with Training(config, output=folder / "out", resume=False, ranks=ranks) as training:
            result = _measure(training, options)
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", default="higher_hrnet_lite")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24, help="measured, of each kind")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def _config(options: argparse.Namespace, annotations: Path) -> TrainConfig:
    recipe: dict[str, Any] = {
        "net": options.net,
        "data": {"train": [{"annotations": annotations}], "workers": options.workers},
        "augment": {"size": options.size, "color": 0.4, "mosaic": 0.2, "people_crop": 0.2},
        "schedule": {"images_per_epoch": options.batch * 1000},
        "ema": {"decay": 0.999},
        "batch": options.batch,
        "precision": options.precision,
        "device": options.device,
        "tensorboard": False,
    }
    return checked_recipe(recipe)


def _measure(training: Training, options: argparse.Namespace) -> dict[str, Any]:
    stream = batches(
        training.examples,
        training.positions,
        mean=training.model.mean,
        std=training.model.std,
        workers=options.workers,
        device=training.ranks.device,
    )
    training.net.train()
    cached = next(stream)
    for source in (itertools.repeat(cached), stream):  # warm-up
        _steps(training, source, 3)
    from_workers: list[tuple[float, float]] = []
    from_memory: list[tuple[float, float]] = []
    for _ in range(max(1, options.steps // 8)):
        from_memory += _steps(training, itertools.repeat(cached), 8)
        # While the cached batch ran, the workers' queue has filled; empty it first.
        _steps(training, stream, 3 * options.workers + 1)
        from_workers += _steps(training, stream, 8)
    example_ms = _example_ms(training, count=64)
    network_share = 1 - sum(data for _, data in from_workers) / sum(s for s, _ in from_workers)
    ratio = _median(from_memory) / _median(from_workers)
    print(
        f"{options.net}, batch {options.batch} at {options.size}x{options.size}, "
        f"{options.precision} on {options.device}, {options.threads} threads, "
        f"{options.workers} workers"
    )
    for name, steps in (("workers", from_workers), ("one cached batch", from_memory)):
        p95 = float(np.percentile([seconds for seconds, _ in steps], 95))
        print(
            f"{name:>17}: {1e3 * _median(steps):7.1f} ms a step (p95 {1e3 * p95:.1f}), "
            f"{options.batch / _median(steps):6.1f} images/s"
        )
    print(f"      one example: {example_ms:7.2f} ms of one process")
    print(
        f"the step does not wait for data in {network_share:.1%} of the time, and goes at "
        f"{ratio:.1%} of the speed that it has without workers beside it"
    )
    return {
        "bench": "train",
        "device": options.device,
        "net": options.net,
        "batch": options.batch,
        "size": options.size,
        "precision": options.precision,
        "threads": options.threads,
        "workers": options.workers,
        "step_ms": round(1e3 * _median(from_workers), 1),
        "cached_step_ms": round(1e3 * _median(from_memory), 1),
        "example_ms": round(example_ms, 2),
        "images_per_s": round(options.batch / _median(from_workers), 1),
        "network_share": round(network_share, 3),
        "speed_of_cached": round(ratio, 3),
    }


def _steps(training: Training, source: Iterator[Batch], count: int) -> list[tuple[float, float]]:
    """(whole seconds, seconds waited for data) of each step."""
    return [
        (done.seconds, done.data_seconds)
        for done in (training.step(source, over=False) for _ in range(count))
    ]


def _median(steps: list[tuple[float, float]]) -> float:
    return statistics.median(seconds for seconds, _ in steps)


def _example_ms(training: Training, *, count: int) -> float:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    started = time.perf_counter()
    for position in range(count):
        training.examples[0, position]
    cv2.setNumThreads(threads)
    return 1e3 * (time.perf_counter() - started) / count


def _write_pictures(folder: Path, *, count: int) -> Path:
    """640x480 JPEGs of noise with three boxes as people: what they show costs nothing here."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    images, annotations = [], []
    for number in range(count):
        small = rng.integers(0, 255, (30, 40, 3)).astype(np.uint8)
        picture = cv2.resize(small, (640, 480), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "pictures" / f"{number}.jpg"), picture)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640})
        for person in range(3):
            x, y, width, height = 40 + 200 * person, 60, 120, 360
            xy = rng.uniform((x, y), (x + width, y + height), (COCO.num_keypoints, 2))
            labelled = np.concatenate([xy, np.full((COCO.num_keypoints, 1), 2.0)], axis=1)
            annotations.append(
                {
                    "id": 3 * number + person,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "keypoints": labelled.ravel().tolist(),
                    "num_keypoints": COCO.num_keypoints,
                    "bbox": [x, y, width, height],
                    "area": 0.53 * width * height,
                }
            )
    category = {"id": 1, "name": "person", "keypoints": list(COCO.keypoint_names)}
    path = folder / "pictures.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [category]})
    )
    return path


if __name__ == "__main__":
    main()
