"""`run_stream.py --selftest`: does everything work on this machine, and how near its limits?

    GPU    kernels against their CPU twins, copies, products, engines, kernels' times, a frame
    CPU     painted people, copies, products, engines, kernels' times, a frame

One table; see docs/gpu.md for how to read it. This file says what is done and in which order; what
a check is stands in kernels/checks/twin_checks.py, checks.py and stages.py, how things are timed in
ceilings.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from rich.console import Console

from common.places import DEFAULT_WEIGHTS
from kernels import decode as decode_kernels
from kernels import preprocess as preprocess_kernels
from kernels.arrays import CudaGpu, Gpu
from kernels.checks.twin_checks import CHECKS, Check
from nets.checkpoints import Model, load_model
from nets.engines.engine import Engine
from nets.engines.load import load_engine
from nets.engines.openvino import import_openvino
from nets.engines.tensorrt import import_torch_tensorrt
from pipeline.runtime.progress import start_logging
from pipeline.selftest.ceilings import (
    Ceilings,
    Stopwatch,
    measure_copies_of_cpu,
    measure_copies_of_gpu,
    measure_products,
    timed,
)
from pipeline.selftest.checks import engine_rows, gpus_of, painted_people_row, whole_way_row
from pipeline.selftest.report import Report, Row, failures, guarded
from pipeline.selftest.stages import Case, make_case, works_on_cpu, works_on_gpu

_KERNELS = {
    "preprocess.cu": "preprocess_float",
    "peaks.cu": "find_in_tiles",
    "grouping.cu": "group",
    "refine.cu": "refine",
}
"""A function of every file."""
_PACKAGES = ("torch", "torch-tensorrt", "tensorrt", "cupy-cuda13x", "nvidia-cuda-nvrtc", "openvino")


@dataclass(frozen=True)
class Bench:
    """A device under test."""

    case: Case
    device: torch.device
    gpu: Gpu | None
    """None: the CPU."""
    stopwatch: Stopwatch
    batches: tuple[int, ...]
    """Pictures in a pass of the network."""
    copy_bytes: int
    product_side: int
    checks: Mapping[str, Check] = field(default_factory=lambda: CHECKS)
    longest_build_s: float = 900.0


def run(*, device: str | None = None, weights: str | None = None) -> int:
    """Check this machine, print the table.

    Args:
        device: cpu, cuda, cuda:<index>; None or auto: the first GPU there is, else the CPU.
        weights: a file; None: the weights in the box.
    Returns:
        The exit code: 0, or 1 where a check failed.
    Raises:
        ValueError: no such device, or weights that cannot be used.
    """
    start_logging(quiet=True)
    index = gpu_index(device or "auto", has_gpu=torch.cuda.is_available())
    gpu = None if index is None else CudaGpu(index)
    model = load_model(weights or DEFAULT_WEIGHTS)
    console = Console()
    where = describe_cpu() if index is None else describe_gpu(index)
    for line in (where, describe_packages(), f"weights: {model.name}, input {model.input_size}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    preprocess_kernels.warm_up()
    decode_kernels.warm_up()
    bench = bench_of(model, index, gpu)
    with Report(console) as report:
        for row in rows_of(bench):
            report.add(row)
    return 1 if failures(report.rows) else 0


def gpu_index(device: str, *, has_gpu: bool) -> int | None:
    """Which GPU a user means; None: the CPU.

    Raises:
        ValueError: neither a GPU's name nor the CPU's.
    """
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    kind, _, index = device.partition(":")
    if device == "cpu":
        return None
    if kind != "cuda" or (index and not index.isdecimal()) or device.endswith(":"):
        raise ValueError(
            f"--selftest checks one device: auto, cpu, cuda or cuda:<index>, got {device!r}"
        )
    if not has_gpu and not torch.cuda.is_available():
        CudaGpu(int(index or 0))  # says what is missing, where CuPy knows
        raise ValueError(f"torch {torch.__version__} sees no GPU; install its build for CUDA")
    return int(index or 0)


def bench_of(model: Model, index: int | None, gpu: Gpu | None) -> Bench:
    case = make_case(model)
    if index is None:
        return Bench(
            case,
            torch.device("cpu"),
            None,
            Stopwatch(),
            batches=(1,),
            copy_bytes=1 << 27,
            product_side=1024,
        )
    device = torch.device("cuda", index)
    return Bench(
        case,
        device,
        gpu,
        Stopwatch(partial(torch.cuda.synchronize, device)),
        batches=(1, 8),
        copy_bytes=1 << 28,
        product_side=4096,
    )


def rows_of(bench: Bench) -> Iterator[Row]:
    """All rows of a device, in the order of the table."""
    if bench.gpu is not None:
        yield from _rows_of_gpu(bench, bench.gpu)
    else:
        yield from _rows_of_cpu(bench)


def _rows_of_gpu(bench: Bench, gpu: Gpu) -> Iterator[Row]:
    ceilings, watch = Ceilings(), bench.stopwatch
    yield from guarded("kernels compile", lambda: [compile_row(gpu)])
    for name, check in bench.checks.items():
        yield from guarded(f"equal to the CPU: {name}", partial(_twin_rows, name, check, gpu))
    copies = partial(measure_copies_of_gpu, gpu, watch, ceilings, size=bench.copy_bytes)
    yield from guarded("copies", copies)
    yield from guarded("matrix products", partial(_products, bench, ceilings, ("fp32", "fp16")))

    def stages() -> list[Row]:
        with gpu.stream():
            return timed(works_on_gpu(bench.case, gpu, ceilings), watch)

    yield from guarded("stages", stages)
    yield from _network_rows(bench, ceilings, ("tensorrt", "torch"))


def _rows_of_cpu(bench: Bench) -> Iterator[Row]:
    ceilings, watch = Ceilings(), bench.stopwatch
    yield from guarded(
        "decode of painted people", lambda: [painted_people_row(bench.case.model.skeleton)]
    )
    copies = partial(measure_copies_of_cpu, watch, ceilings, size=bench.copy_bytes)
    yield from guarded("copies", copies)
    yield from guarded("matrix products", partial(_products, bench, ceilings, ("fp32", "bf16")))
    yield from guarded("stages", lambda: timed(works_on_cpu(bench.case, ceilings), watch))
    # Beside itself torch has nothing to show; it is what is left where OpenVINO is missing.
    engines = ("openvino",) if why_no_engine("openvino") is None else ("openvino", "torch")
    yield from _network_rows(bench, ceilings, engines)


def _network_rows(bench: Bench, ceilings: Ceilings, engines: tuple[str, ...]) -> Iterator[Row]:
    """Each engine alone, then a frame's whole way with it."""
    gpus = None
    if bench.gpu is not None:
        gpus = gpus_of(bench.case.model, bench.gpu, bench.device)
    for name in engines:
        loaded: list[Engine] = []
        yield from guarded(f"engine {name}", partial(_engine_rows, bench, ceilings, name, loaded))
        for engine in loaded:
            whole = partial(whole_way_row, bench.case, engine, bench.stopwatch, gpus=gpus)
            yield from guarded(f"frame to poses, {name}", lambda whole=whole: [whole()])  # type: ignore[misc]


def _engine_rows(
    bench: Bench, ceilings: Ceilings, name: str, loaded: list[Engine]
) -> Iterator[Row]:
    """Rows of an engine that is installed; it is left in loaded."""
    why_not = why_no_engine(name)
    if why_not is not None:
        yield Row(f"engine {name}", note=why_not)
        return
    loaded.append(load_engine(bench.case.model, engine=name, device=str(bench.device)))
    yield from engine_rows(
        bench.case,
        loaded[0],
        ceilings,
        bench.stopwatch,
        batches=bench.batches,
        longest_build_s=bench.longest_build_s,
    )


def why_no_engine(name: str) -> str | None:
    """Why an engine is not there, in one line; None where it is."""
    needs: dict[str, Callable[[], object]] = {
        "openvino": import_openvino,
        "tensorrt": import_torch_tensorrt,
    }
    try:
        needs.get(name, lambda: None)()
    except ValueError as error:
        return str(error).splitlines()[0]
    return None


def compile_row(gpu: Gpu) -> Row:
    """Every file of kernels; from the cache where it was compiled before."""
    started = time.perf_counter()
    for file, name in _KERNELS.items():
        gpu.function(file, name)
    ms = (time.perf_counter() - started) * 1e3
    return Row("kernels compile", True, ms, note=f"{', '.join(_KERNELS)}; kept for the next start")


def _twin_rows(name: str, check: Check, gpu: Gpu) -> Iterator[Row]:
    started = time.perf_counter()
    check(gpu, 0)
    ms = (time.perf_counter() - started) * 1e3
    yield Row(f"equal to the CPU: {name}", True, note=f"{ms / 1e3:.1f} s with the CPU's share")


def _products(bench: Bench, ceilings: Ceilings, precisions: tuple[str, ...]) -> list[Row]:
    return measure_products(
        bench.device, bench.stopwatch, ceilings, precisions=precisions, side=bench.product_side
    )


# ---- what is here -------------------------------------------------------------------------------


def describe_gpu(index: int) -> str:
    from cupy.cuda import runtime

    properties = torch.cuda.get_device_properties(index)
    return (
        f"device: cuda:{index}, {properties.name}, compute capability {properties.major}."
        f"{properties.minor}, {properties.total_memory / 2**30:.0f} GiB; driver up to CUDA "
        f"{_cuda(runtime.driverGetVersion())}, runtime {_cuda(runtime.runtimeGetVersion())}"
    )


def describe_cpu() -> str:
    name = platform.processor() or platform.machine()
    return f"device: cpu, {name}, {os.cpu_count()} cores, torch on {torch.get_num_threads()}"


def describe_packages() -> str:
    """Versions of what matters and is installed."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "packages: " + ", ".join(found)


def _cuda(version: int) -> str:
    """13000 is 13.0."""
    return f"{version // 1000}.{version % 1000 // 10}"
