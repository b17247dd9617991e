"""The decode beside its plain definition: 17 maps at 512x512, 1, 5, 20 and 30 people.

Run it as `python -m benchmarks.bench_decode`. The definition is the published one as an ordinary
user writes it (tests/support/reference_decode.py): torch upsampling, max-pooling and top-k, Munkres
in Python, refine of every keypoint over whole maps. Both run in turn on the same maps, and their
people must be identical to the last digit. "missing only" is the definition that spares refine the
keypoints whose result it throws away.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from kernels.checks.scenes import Scene, paint_people
from kernels.decode import PUBLISHED, DecodeSettings, decode, warm_up
from kernels.people import People
from nets.skeletons import COCO
from tests.support.reference_decode import PlainPeople, decode_plain

PEOPLE = (1, 5, 20, 30)
FAST_RUNS_PER_PLAIN = 5
WITHOUT_REFINE = DecodeSettings(refine="off")
CHEAP = DecodeSettings(peaks_at="half", refine="quarter")


def main() -> None:
    parser = argparse.ArgumentParser(description="The decode beside its plain definition.")
    parser.add_argument("--runs", type=int, default=15, help="runs of the plain definition")
    runs = parser.parse_args().runs
    print(f"device: cpu ({platform.processor() or platform.machine()}), ", end="")
    print(f"torch {torch.__version__} on {torch.get_num_threads()} threads, decode on one")
    print("shapes: levels (17, 128, 128) and (17, 256, 256), tags (17, 128, 128, 1), size 512x512")
    warm_up()
    print(f"{'people':>6} {'refine':>12} {'plain ms (p95)':>20} {'ours ms (p95)':>18} {'ratio':>8}")
    rows = [row for people in PEOPLE for row in measure(people, runs)]
    print(json.dumps({"benchmark": "decode", "device": "cpu", "size": [512, 512], "rows": rows}))


def measure(num_people: int, runs: int) -> list[dict[str, float | int | str]]:
    """One table row for each way of refining, each timed against the definition of the same."""
    scene = paint_people(num_people, steps=1024, seed=num_people)
    ways = {
        "off": (WITHOUT_REFINE, {"refine": False}),
        "full": (PUBLISHED, {}),
        "missing only": (PUBLISHED, {"only_missing": True}),
    }
    rows: list[dict[str, float | int | str]] = []
    for refine, (settings, options) in ways.items():
        ours = partial(ours_on, scene, settings)
        plain = partial(plain_on, scene, **options)
        assert_identical(ours(), plain())
        rows.append(report(num_people, refine, *interleaved(ours, plain, runs)))
    cheap = [seconds(lambda: ours_on(scene, CHEAP)) for _ in range(runs * FAST_RUNS_PER_PLAIN)]
    print(f"{num_people:>6} {'(half, quarter: not the published numbers)':>44}", end="")
    print(f" {median_ms(cheap):>9.2f} ({p95_ms(cheap):.2f})")
    return rows


def ours_on(scene: Scene, settings: DecodeSettings) -> People:
    return decode(scene.levels, scene.tags, scene.size, COCO, settings)


def plain_on(scene: Scene, *, refine: bool = True, only_missing: bool = False) -> PlainPeople:
    return decode_plain(
        scene.levels,
        scene.tags,
        scene.size,
        COCO.matching_order,
        refine=refine,
        only_missing=only_missing,
    )


def assert_identical(ours: People, plain: PlainPeople) -> None:
    for name, got, want in zip(ours._fields, ours, plain, strict=True):
        if not np.array_equal(got, want):
            raise AssertionError(f"{name} differs from the plain definition")


def interleaved(
    ours: Callable[[], People], plain: Callable[[], PlainPeople], runs: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turn so that a busy machine slows both."""
    ours_seconds, plain_seconds = [], []
    for _ in range(runs):
        plain_seconds.append(seconds(plain))
        seconds(ours)  # the plain run emptied the cache; a stream's decode follows its network
        ours_seconds += [seconds(ours) for _ in range(FAST_RUNS_PER_PLAIN)]
    return ours_seconds, plain_seconds


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def report(
    num_people: int, refine: str, ours: list[float], plain: list[float]
) -> dict[str, float | int | str]:
    ratio = statistics.median(plain) / statistics.median(ours)
    print(f"{num_people:>6} {refine:>12} {median_ms(plain):>11.1f} ({p95_ms(plain):.1f})", end="")
    print(f" {median_ms(ours):>9.2f} ({p95_ms(ours):.2f}) {ratio:>8.0f}")
    return {
        "people": num_people,
        "refine": refine,
        "plain_ms": round(median_ms(plain), 3),
        "plain_p95_ms": round(p95_ms(plain), 3),
        "ours_ms": round(median_ms(ours), 3),
        "ours_p95_ms": round(p95_ms(ours), 3),
        "ratio": round(ratio, 1),
    }


def median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1e3


def p95_ms(times: list[float]) -> float:
    return float(np.percentile(times, 95)) * 1e3


if __name__ == "__main__":
    main()
