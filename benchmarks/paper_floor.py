"""What a GPU has to move and to compute for one batch, from shapes alone; nothing is measured.

    python -m benchmarks.paper_floor [--net higher_hrnet_w32] [--size 512x512] [--picture 1080x1920]

For each step on the GPU: bytes, operations, and the floor, which is the longer of bytes over the
GPU's memory rate and operations over its compute rate. What bounds a step from below that way is
not what it takes: launches, latency and imperfect overlap come on top. No GPU has run any of it.

Bytes of the network count what each convolution reads and writes, in half precision, as if all
between them were fused. Peaks are looked for in every tile, as if people stood everywhere.
"""

import argparse
import json
from typing import NamedTuple

import torch
from torch import nn

from nets import build_net

K, M, T, PEOPLE = 17, 30, 1, 30


class Gpu(NamedTuple):
    """Rates that the maker states."""

    name: str
    memory_gb_s: float
    half_tflops: float
    """Dense, on tensor cores, accumulating in float32."""
    float_tflops: float
    upload_gb_s: float
    """Of pinned host memory; a Jetson has one memory for both."""


GPUS = (
    Gpu("H100 SXM", 3350, 989, 67, 55),
    Gpu("L4", 300, 121, 30, 25),
    Gpu("Jetson AGX Orin", 204, 42, 5.3, 204),
)


class Step(NamedTuple):
    """One step of a batch."""

    name: str
    megabytes: float
    gigaflops: float
    launches: int
    rate: str
    """Which of the GPU's rates bind it: half, float or upload."""


def steps(net: str, size: tuple[int, int], picture: tuple[int, int], batch: int) -> list[Step]:
    """All steps of a batch of pictures (h, w) as NV12 to poses, at network size (H, W)."""
    height, width = size
    source = 1.5 * picture[0] * picture[1]
    heat = K * (height // 2) * (width // 2)
    low = K * (height // 4) * (width // 4)
    tiles = K * (height // 16) * (width // 16)
    per_picture = [
        Step("upload", source / 1e6, 0, 0, "upload"),
        # two taps an axis: 4 + 2 multiplications a luma value, a quarter of that for each chroma
        Step("preprocess", (source + 12 * height * width) / 1e6, _resize_gflops(size), 1, "float"),
        _network_step(net, size, batch),
        # three operations an axis and level, and the mean
        Step("average", 4 * (low + 2 * heat + tiles) / 1e6, 20 * heat / 1e9, 1, "float"),
        # per output pixel a bilinear value and 24 comparisons
        Step("find", 4 * heat * 1.25 / 1e6, 33 * 4 * heat / 1e9, 1, "float"),
        Step("select", 4 * K * M * (5 + T) * 2 / 1e6, 0, 1, "float"),
        Step("group", 4 * (K * M * (5 + T) + PEOPLE * K * 4) / 1e6, 0, 1, "float"),
        Step("tag ranges", 4 * (low * T + 2 * tiles * T) / 1e6, 0, 1, "float"),
        # a third of all keypoints missing, three bounds a tile
        Step("refine", 4 * tiles * PEOPLE / 1e6, 2.4 * tiles * PEOPLE / 1e9, 1, "float"),
        Step("copy back", 4 * 33 * (K * 4 + T + 1) / 1e6, 0, 0, "upload"),
    ]  # fmt: skip
    return [
        step._replace(megabytes=step.megabytes * batch, gigaflops=step.gigaflops * batch)
        if step.name != "network"
        else step
        for step in per_picture
    ]


def _resize_gflops(size: tuple[int, int]) -> float:
    return 2 * (6 + 2 * 6 / 4 + 9) * size[0] * size[1] / 1e9


def _network_step(name: str, size: tuple[int, int], batch: int) -> Step:
    """Counted by running the net on tensors without content."""
    with torch.device("meta"):
        net = build_net(name).eval()
        images = torch.empty(batch, 3, *size)
    numbers = operations = launches = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal numbers, operations, launches
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        weights = module.weight.numel()
        numbers += inputs[0].numel() + output.numel() + weights
        outer = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        operations += 2 * weights * outer.numel() // outer.shape[1]
        launches += 1

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        net(images)
    return Step("network", 2 * numbers / 1e6, operations / 1e9, launches, "half")


def floor_us(step: Step, gpu: Gpu) -> float:
    """Microseconds below which the step cannot come."""
    if step.rate == "upload":
        return 1e3 * step.megabytes / gpu.upload_gb_s
    compute = gpu.half_tflops if step.rate == "half" else gpu.float_tflops
    return max(1e3 * step.megabytes / gpu.memory_gb_s, 1e3 * step.gigaflops / compute)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="higher_hrnet_w32")
    parser.add_argument("--size", default="512x512", help="of the network input, height x width")
    parser.add_argument("--picture", default="1080x1920", help="height x width")
    options = parser.parse_args()
    size, picture = _size(options.size), _size(options.picture)
    results = []
    for batch in (1, 8):
        print(f"{options.net}, {options.size}, pictures {options.picture} NV12, batch {batch}")
        names = "".join(f"{gpu.name + ' us':>20}" for gpu in GPUS)
        print(f"{'step':<12}{'MB':>10}{'GFLOP':>10}{'launches':>10}{names}")
        total = dict.fromkeys((gpu.name for gpu in GPUS), 0.0)
        for step in steps(options.net, size, picture, batch):
            floors = [floor_us(step, gpu) for gpu in GPUS]
            for gpu, floor in zip(GPUS, floors, strict=True):
                total[gpu.name] += floor
            row = "".join(f"{floor:>20.1f}" for floor in floors)
            size_of = f"{step.megabytes:>10.2f}{step.gigaflops:>10.2f}{step.launches:>10}"
            print(f"{step.name:<12}{size_of}{row}")
        print(f"{'sum':<42}" + "".join(f"{value:>20.1f}" for value in total.values()), end="\n\n")
        results.append({"batch": batch, "floor_us": {k: round(v, 1) for k, v in total.items()}})
    print(json.dumps({"net": options.net, "size": size, "picture": picture, "batches": results}))


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


if __name__ == "__main__":
    main()
