"""How fast this machine copies and multiplies, and what no stage can therefore beat.

    copies, matrix products --measured--> Ceilings --floor_of(bytes, operations)--> Floor

A floor says: every input read once, every result written once, at the bandwidth of a plain copy;
every multiply and add at the rate of a large matrix product. The higher of the two counts. This
file knows nothing of stages.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from kernels.arrays import Gpu, pinned_like, to_gpu, to_host
from pipeline.selftest.report import Row

_ENOUGH_S = 0.002
"""Calls are repeated until a reading of the clock is worth it."""
_MOST_CALLS = 100
_FEWEST_READINGS = 3

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Stopwatch:
    """Times calls whose work may go on after they return."""

    synchronise: Callable[[], object] = lambda: None
    """Waits until all work that was begun is done."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds."""
    seconds: float = 0.4
    """How long to go on reading, if that is more than the fewest readings."""

    def median_ms(self, run: Callable[[], object]) -> float:
        """Milliseconds of a call. Short ones are begun several at a time and waited for once, as
        in a stream; the first call is left out, for it may compile and allocate."""
        self._seconds(run, 1)
        once = self._seconds(run, 1)
        calls = min(max(math.ceil(_ENOUGH_S / max(once, 1e-9)), 1), _MOST_CALLS)
        readings: list[float] = []
        end = self.clock() + self.seconds
        while len(readings) < _FEWEST_READINGS or self.clock() < end:
            readings.append(self._seconds(run, calls) / calls)
        return statistics.median(readings) * 1e3

    def _seconds(self, run: Callable[[], object], calls: int) -> float:
        self.synchronise()
        started = self.clock()
        for _ in range(calls):
            run()
        self.synchronise()
        return self.clock() - started


class Floor(NamedTuple):
    """The least time that a piece of work can take."""

    ms: float | None
    """None where nothing was measured to reckon it from."""
    why: str


@dataclass
class Ceilings:
    """What was measured; 0 where it was not."""

    memory: float = 0.0
    """Bytes a second, read and written together, of a copy inside the device's memory."""
    up: float = 0.0
    down: float = 0.0
    """Bytes a second between page-locked host memory and the GPU, one way each."""
    compute: dict[str, float] = field(default_factory=dict)
    """Operations a second by precision; a multiply and an add are two."""


def floor_of(
    *,
    num_bytes: float = 0.0,
    bandwidth: float = 0.0,
    operations: float = 0.0,
    rate: float = 0.0,
) -> Floor:
    """The higher of bytes / bandwidth and operations / rate; what has no ceiling does not count."""
    floors = []
    if bandwidth > 0:
        why = f"floor: {num_bytes / 1e6:.3g} MB at {bandwidth / 1e9:.3g} GB/s"
        floors.append((num_bytes / bandwidth * 1e3, why))
    if rate > 0:
        why = f"floor: {operations / 1e9:.3g} G operations at {rate / 1e12:.3g} T/s"
        floors.append((operations / rate * 1e3, why))
    return Floor(*max(floors)) if floors else Floor(None, "")


def measure_copies_of_gpu(
    gpu: Gpu, stopwatch: Stopwatch, ceilings: Ceilings, *, size: int
) -> list[Row]:
    """To the GPU, on it and back, with bytes that must arrive as they were sent.

    Args:
        size: bytes of a copy; many times a GPU's cache.
    """
    with gpu.stream():
        first, second = gpu.xp.empty(size, np.uint8), gpu.xp.empty(size, np.uint8)
        sent, received = pinned_like(first), pinned_like(first)
        sent[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        pageable = sent.copy()

        up_ms = stopwatch.median_ms(lambda: to_gpu(sent, first))
        slow_ms = stopwatch.median_ms(lambda: gpu.xp.array(pageable))
        inside_ms = stopwatch.median_ms(lambda: gpu.xp.copyto(second, first))
        down_ms = stopwatch.median_ms(lambda: to_host(second, received))
    ceilings.up, ceilings.down = _per_second(size, up_ms), _per_second(size, down_ms)
    ceilings.memory = _per_second(2 * size, inside_ms)
    arrived = bool(np.array_equal(sent, received))
    return [
        Row("copy host to GPU, page-locked", None, up_ms, note=_bandwidth(ceilings.up)),
        Row("copy host to GPU, pageable", None, slow_ms, note=_speed(size, slow_ms)),
        Row("copy GPU to host, page-locked", None, down_ms, note=_bandwidth(ceilings.down)),
        Row("copy GPU to GPU", None, inside_ms, note=f"{_bandwidth(ceilings.memory)} r+w"),
        Row("bytes arrive as they were sent", arrived, note=f"{size / 1e6:.0f} MB"),
    ]


def measure_copies_of_cpu(stopwatch: Stopwatch, ceilings: Ceilings, *, size: int) -> list[Row]:
    first, second = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    ms = stopwatch.median_ms(lambda: second.copy_(first))
    ceilings.memory = _per_second(2 * size, ms)
    return [Row("copy in memory", None, ms, note=f"{_bandwidth(ceilings.memory)} r+w")]


def measure_products(
    device: torch.device,
    stopwatch: Stopwatch,
    ceilings: Ceilings,
    *,
    precisions: tuple[str, ...],
    side: int,
) -> list[Row]:
    """Square matrix products on the device."""
    rows = []
    for precision in precisions:
        dtype = _DTYPES[precision]
        a, b, product = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
        ms = stopwatch.median_ms(lambda a=a, b=b, out=product: torch.mm(a, b, out=out))  # type: ignore[misc]
        ceilings.compute[precision] = 2 * side**3 / (ms / 1e3)
        note = f"{ceilings.compute[precision] / 1e12:.3g} T operations/s"
        rows.append(Row(f"matrix product {side}, {precision}", None, ms, note=note))
    return rows


def timed(
    works: Mapping[str, tuple[Callable[[], object], Floor]], stopwatch: Stopwatch
) -> list[Row]:
    """A row for each piece of work, with its floor."""
    rows = []
    for name, (run, floor) in works.items():
        rows.append(Row(name, None, stopwatch.median_ms(run), floor.ms, floor.why))
    return rows


def _per_second(amount: float, ms: float) -> float:
    return amount / (max(ms, 1e-6) / 1e3)


def _bandwidth(per_second: float) -> str:
    return f"{per_second / 1e9:.3g} GB/s"


def _speed(size: int, ms: float) -> str:
    return _bandwidth(_per_second(size, ms))
