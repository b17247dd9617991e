"""How fast the engines run a network, against torch as most people call it.

    python -m benchmarks.bench_engines --net higher_hrnet_w32 --size 512x512 --runs 20

Plain torch is the peer: inference_mode, float32, the usual NCHW order. All engines run in turn
within every round, so a busy neighbour slows all of them alike; a ratio is the median of the
rounds' ratios. The weights are random (He et al. 2015, norms that do nothing): speed does not
depend on them. Converted networks come from the user's cache where it has them. The last line is
JSON.
"""

import argparse
import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines.load import load_engine
from tests.support.random_model import random_model

PEER = "plain torch"


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    height, width = arguments.size
    model = he_initialised(arguments.net)
    images = torch.randn(arguments.batch, 3, height, width)
    runners, starts = make_runners(model)
    print(f"{arguments.net}, images {tuple(images.shape)}, {cpu_name()}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.runs} rounds")

    for name in runners:  # warm up: compile, allocate
        started = time.perf_counter()
        runners[name](images)
        starts[name] += time.perf_counter() - started
    times_ms = time_rounds(runners, images, rounds=arguments.runs)
    errors = {name: mean_error(run(images), runners[PEER](images)) for name, run in runners.items()}
    report(times_ms, starts, errors)
    print(json.dumps(summary(arguments, times_ms, starts, errors)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--net", default="higher_hrnet_w32", help="a name nets.build_net knows")
    parser.add_argument("--size", type=parse_size, default=(512, 512), help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20, help="rounds; each runs every engine once")
    return parser.parse_args()


def parse_size(text: str) -> tuple[int, int]:
    height, width = text.lower().split("x")
    return int(height), int(width)


def he_initialised(name: str) -> Model:
    """Random weights under which activations grow, but without norms that amplify rounding."""
    model = random_model(name)
    for module in model.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return replace(model, weights_sha256=f"{model.weights_sha256}-he", tag_ramp_px=0.0)


def make_runners(model: Model) -> tuple[dict[str, Callable[[Tensor], Maps]], dict[str, float]]:
    """What is compared, and the seconds each took to be made."""
    net: Any = model.net

    def plain(images: Tensor) -> Maps:
        with torch.inference_mode():
            maps: Maps = net.maps(net(images))
        return maps

    runners: dict[str, Callable[[Tensor], Maps]] = {PEER: plain}
    starts = {PEER: 0.0}
    for engine, precision in (("torch", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
        started = time.perf_counter()
        try:
            runner = load_engine(model, engine=engine, precision=precision)
        except ValueError as error:
            print(f"{engine} {precision} is skipped: {error}")
            continue
        name = f"{engine} {precision}"
        runners[name], starts[name] = runner, time.perf_counter() - started
    return runners, starts


def time_rounds(
    runners: dict[str, Callable[[Tensor], Maps]], images: Tensor, *, rounds: int
) -> dict[str, np.ndarray]:
    times_ms: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            started = time.perf_counter()
            run(images)
            times_ms[name].append((time.perf_counter() - started) * 1e3)
    return {name: np.array(values) for name, values in times_ms.items()}


def mean_error(maps: Maps, expected: Maps) -> float:
    """Mean difference in units of the expected deviation, of the worst output."""
    pairs = zip((*maps.levels, maps.tags), (*expected.levels, expected.tags), strict=True)
    return max(float((x - y).abs().mean() / y.std()) for x, y in pairs)


def report(
    times_ms: dict[str, np.ndarray], starts: dict[str, float], errors: dict[str, float]
) -> None:
    print(f"\n{'':16}{'median':>10}{'p95':>10}{'fps':>8}{'ratio':>8}{'start':>8}{'error':>10}")
    for name, values in times_ms.items():
        median, p95 = np.percentile(values, (50, 95))
        ratio = np.median(times_ms[PEER] / values)
        print(
            f"{name:16}{median:7.1f} ms{p95:7.1f} ms{1e3 / median:8.1f}{ratio:7.2f}x"
            f"{starts[name]:6.1f} s{errors[name]:10.1e}"
        )


def summary(
    arguments: argparse.Namespace,
    times_ms: dict[str, np.ndarray],
    starts: dict[str, float],
    errors: dict[str, float],
) -> dict[str, Any]:
    engines = {
        name: {
            "median_ms": round(float(np.median(values)), 2),
            "p95_ms": round(float(np.percentile(values, 95)), 2),
            "times_faster_than_plain_torch": round(float(np.median(times_ms[PEER] / values)), 2),
            "start_s": round(starts[name], 2),
            "mean_error": errors[name],
        }
        for name, values in times_ms.items()
    }
    result: dict[str, Any] = {
        "benchmark": "engines",
        "net": arguments.net,
        "batch": arguments.batch,
        "size": list(arguments.size),
        "runs": arguments.runs,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "engines": engines,
    }
    if "openvino bf16" in times_ms:
        ratios = times_ms["torch fp32"] / times_ms["openvino bf16"]
        result["openvino_bf16_over_torch_engine"] = round(float(np.median(ratios)), 2)
    return result


def cpu_name() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
