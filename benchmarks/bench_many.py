"""Many cameras, one network: what 1, 4, 8 and 16 of 640x360 at 15 fps get, and what decoding costs.

    python -m benchmarks.bench_many [--sources 1 4 8 16] [--max-batch 1 8] [--quick]

The measure is one unlimited source: the same clip as fast as the network takes it. Its rounds and
those of the cameras take turns, so a busy moment meets them all, and ratios are those of one round.
Cameras are files played at their own speed, decoded whether there is time for their frames or not.
The gate: 8 cameras together get at least 0.85 of the unlimited source's results a second, and no
camera less than 0.8 of another's. Cameras are decoded whatever the network takes, so where other
programs leave this one little, decoding takes much of it, and the gate is not judged: it needs 0.8
of the cores ("cores" says how much there was).

The network is higher_mobile at 512x288 with random weights, on which its speed does not depend,
and people painted over its maps (bench_stream.ShowsPeople). "decoding" is its share of the CPU time
of all threads, counted by the system, thread by thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import median

import av
import cv2

from benchmarks.bench_stream import NET_SIZE, SIZE_MULTIPLE, ShowsPeople
from nets.checkpoints import Model
from pipeline.config import InferenceConfig, PreprocessConfig, SourceConfig, StreamConfig
from pipeline.runtime.stats import Snapshot
from pipeline.sources import demo
from pipeline.stream import Stream
from tests.support.random_model import random_model

SIZE = (360, 640)
FPS = 15
GATE_SOURCES, GATE_RESULTS, GATE_SHARE = 8, 0.85, 0.8
WARM_UP_SECONDS = 3.0
NUM_CORES = len(os.sched_getaffinity(0))
FREE_ENOUGH = 0.8


@dataclass(frozen=True)
class Round:
    """What one run has shown."""

    results_per_second: float
    least_share: float
    """Results of the source that got the fewest, by those of the one that got the most."""
    p50_ms: float
    p95_ms: float
    """Capture to poses: the median of the sources' own."""
    decoding: float
    """Share of the CPU time."""
    cores: float
    """CPU seconds a second, of this process."""


def main() -> int:
    options = _options()
    seconds, rounds = (4.0, 4) if options.quick else (20.0, 3)
    clip, model = _clip(), _model()
    plans = [(0, 1), *((n, batch) for batch in options.max_batch for n in options.sources)]
    print(
        f"{platform.processor() or platform.machine()}, {NUM_CORES} cores, load "
        f"{os.getloadavg()[0]:.1f}; {model.name} at {NET_SIZE[1]}x{NET_SIZE[0]}; "
        f"{rounds} rounds of {seconds:g} s each"
    )
    found: dict[tuple[int, int], list[Round]] = {plan: [] for plan in plans}
    for _ in range(rounds):
        for sources, max_batch in plans:
            measured = _run(model, clip, sources, max_batch, seconds)
            found[sources, max_batch].append(measured)
    report = _report(found)
    print(json.dumps(report))
    return 0 if report["passed"] or not report["judged"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Many cameras, one network.")
    parser.add_argument("--sources", type=int, nargs="+", default=[1, 4, 8, 16], metavar="N")
    parser.add_argument("--max-batch", type=int, nargs="+", default=[1], choices=(1, 2, 4, 8))
    parser.add_argument("--quick", action="store_true", help="four rounds of 4 s")
    return parser.parse_args()


def _report(found: dict[tuple[int, int], list[Round]]) -> dict[str, object]:
    unlimited = found[0, 1]
    rows = []
    header = f"{'sources':>9}{'batch':>6}{'results/s':>11}{'of one':>8}{'least share':>13}"
    print(f"{header}{'p50 ms':>8}{'p95 ms':>8}{'decoding':>10}{'cores':>7}")
    for (sources, max_batch), rounds in found.items():
        of_one = median(
            r.results_per_second / one.results_per_second
            for r, one in zip(rounds, unlimited, strict=True)
        )
        row = {
            "sources": sources or "unlimited",
            "max_batch": max_batch,
            "of_one": round(of_one, 3),
            **{
                name: round(median(getattr(r, name) for r in rounds), 3)
                for name in Round.__dataclass_fields__
            },
        }
        rows.append(row)
        print(
            f"{row['sources']:>9}{max_batch:>6}{row['results_per_second']:>11.1f}{of_one:>8.2f}"
            f"{row['least_share']:>13.2f}{row['p50_ms']:>8.0f}"
            f"{row['p95_ms']:>8.0f}"
            f"{row['decoding']:>10.1%}{row['cores']:>7.2f}"
        )
    is_free = median(r.cores for r in unlimited) >= FREE_ENOUGH * NUM_CORES
    passed = all(
        float(row["of_one"]) >= GATE_RESULTS and float(row["least_share"]) >= GATE_SHARE
        for row in rows
        if row["sources"] == GATE_SOURCES
    )
    return {"benchmark": "many", "rows": rows, "judged": is_free, "passed": passed}


def _run(model: Model, clip: Path, sources: int, max_batch: int, seconds: float) -> Round:
    """`sources` cameras, or with 0 the file as fast as it goes."""
    configs = tuple(
        SourceConfig(input=str(clip), name=f"cam{i}", loop=True, pace=sources > 0)
        for i in range(sources or 1)
    )
    stream = Stream(
        StreamConfig(
            sources=configs,
            preprocess=PreprocessConfig(input_size=NET_SIZE[0], size_multiple=SIZE_MULTIPLE),
            inference=InferenceConfig.model_validate({"max_batch": max_batch}),
        ),
        model=model,
    )
    with _running(stream):
        time.sleep(WARM_UP_SECONDS)
        before, decoding_before = stream.stats.snapshot(), _decoding_seconds()
        started, cpu_before = time.monotonic(), time.process_time()
        time.sleep(seconds)
        after, decoding = stream.stats.snapshot(), _decoding_seconds() - decoding_before
        elapsed, cpu = time.monotonic() - started, time.process_time() - cpu_before
    return _round(before, after, elapsed=elapsed, decoding=decoding, cpu=cpu)


def _round(
    before: Snapshot, after: Snapshot, *, elapsed: float, decoding: float, cpu: float
) -> Round:
    counts = [
        source["results"] - before["sources"][name]["results"]
        for name, source in after["sources"].items()
    ]
    latencies = [source["latency_ms"] for source in after["sources"].values()]
    return Round(
        results_per_second=sum(counts) / elapsed,
        # One more or less is a matter of where the window cuts.
        least_share=min(1.0, (min(counts) + 1) / max(1, *counts)),
        p50_ms=median(latency["p50"] for latency in latencies),
        p95_ms=median(latency["p95"] for latency in latencies),
        decoding=decoding / cpu,
        cores=cpu / elapsed,
    )


@contextmanager
def _running(stream: Stream) -> Iterator[None]:
    thread = threading.Thread(target=stream.run)
    thread.start()
    try:
        yield
    finally:
        stream.sources.stop()
        thread.join()


def _decoding_seconds() -> float:
    """CPU time so far of the sources' threads, and of FFmpeg's own that decode for them."""
    decoders = {t.native_id for t in threading.enumerate() if t.name.startswith("decoder:")}
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        if int(task.name) in decoders or name.startswith("av:"):
            user, system = rest.split()[11:13]
            ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def _model() -> Model:
    model = random_model("higher_mobile")
    return replace(
        model,
        net=ShowsPeople(model.net).eval(),
        weights_sha256=f"{model.weights_sha256}-with-people",
    )


def _clip() -> Path:
    """The demo scene as H.264, once for all runs."""
    folder = Path(tempfile.gettempdir()) / "posestream-bench"
    folder.mkdir(exist_ok=True)
    path = folder / f"demo-{SIZE[0]}p-{FPS}fps.mp4"
    if not path.exists():
        unfinished = path.with_suffix(f".{os.getpid()}.mp4")
        _write_clip(unfinished)
        unfinished.replace(path)
    return path


def _write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(demo.NUM_FRAMES):
            picture = cv2.resize(demo.picture(index), SIZE[::-1], interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    sys.exit(main())
