"""A 720p H.264 file to poses: the stream against a plain loop of its parts and its engine alone.

    python -m benchmarks.bench_stream [--net higher_mobile] [--only throughput paced] [--quick]

throughput   the engine alone, one sequential loop (decode, preprocess, inference, poses; no
             queues), the stream without sinks, with --jsonl and with --save; they take turns, so
             a busy moment meets them all, and ratios are those of the same round
paced        the file as a 25 fps camera: capture-to-pose latency against the sum of the stages'
             medians in that very run
overload     a camera three times too fast: latency stays flat, results + drops = frames
memory       thousands of frames in a process of their own: resident memory, and none is lost

Network input is 512x288, the precision is what the CPU is best at. The clip is the demo scene,
written once to the system's folder for temporary files. higher_mobile runs its own weights.
higher_hrnet_lite has random ones, on which its speed does not depend; but the decode's time does
depend on the maps, so fixed people are painted over its outputs (see ShowsPeople). Frames a second
are counted between results, after a warm-up; a stage's time is its work alone, without waiting for
queues, and "cpu ms" is what a frame costs in all threads together. Each section says how much
of the cores other processes (and other virtual machines) took: much above 5 %, only ratios count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.places import DEFAULT_WEIGHTS
from kernels import decode as decode_kernels
from kernels import preprocess as preprocess_kernels
from kernels.checks.scenes import paint_people
from nets.aggregation import Maps
from nets.checkpoints import Model, load_model
from nets.engines.engine import Engine
from nets.engines.load import load_engine
from pipeline.config import PreprocessConfig, SourceConfig, StreamConfig
from pipeline.inference import Inference
from pipeline.messages import Frame
from pipeline.poses import FindPoses, decode_settings
from pipeline.preprocess import Preprocess
from pipeline.sources import demo
from pipeline.sources.open import open_source
from pipeline.sources.source import SourceSettings
from pipeline.stream import Stream
from tests.support.random_model import random_model

NETS = ("higher_hrnet_lite", "higher_mobile")
SECTIONS = ("throughput", "paced", "overload", "memory")
NET_SIZE = (288, 512)
SIZE_MULTIPLE = 32
BIT_RATE = 4_000_000  # at 30 frames a second
PACED_FPS = 25
OVERLOAD = 3
PAINTED_PEOPLE = 5
WARM_UP = 30  # frames at the head of every run that do not count

LIMITS = {
    "lite_fps": 50.0,
    "over_loop": 0.95,
    "over_engine": 0.65,
    "latency_over_stages": 1.3,
    "memory_mb": 1200.0,
    "memory_growth": 0.02,
    "overload_last_over_first_third": 1.25,
}

Row = dict[str, Any]


# --- what is run ---------------------------------------------------------------------------------


class ShowsPeople(nn.Module):
    """A net that costs what it costs, but whose maps show known people.

    Random weights make noise: thousands of peaks or, above a higher threshold, none. Here the net's
    outputs are made faint (too little to be a peak, and enough to be computed) and maps of people,
    a fifth of their keypoints missing, are added.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net
        height, width = NET_SIZE
        scene = paint_people(
            PAINTED_PEOPLE,
            size=NET_SIZE,
            level_sizes=((height // 4, width // 4), (height // 2, width // 2)),
            steps=None,
        )
        for i, level in enumerate(scene.levels):
            self.register_buffer(f"level_{i}", torch.from_numpy(level)[None])
        self.register_buffer("tags", torch.from_numpy(scene.tags[..., 0])[None])

    def forward(self, images: Tensor) -> Any:
        return self.net(images)

    def maps(self, output: Any) -> Maps:
        maps: Maps = self.net.maps(output)
        levels = tuple(
            self._shown(level, self.get_buffer(f"level_{i}")) for i, level in enumerate(maps.levels)
        )
        return Maps(levels, self._shown(maps.tags[..., 0], self.get_buffer("tags"))[..., None])

    def _shown(self, predicted: Tensor, painted: Tensor) -> Tensor:
        # Resized only when the engine checks itself on another shape.
        return 1e-3 * predicted + F.interpolate(painted, size=predicted.shape[-2:])


@cache
def model_of(net: str) -> Model:
    if net == "higher_mobile":
        return load_model(DEFAULT_WEIGHTS)
    model = random_model(net)
    return replace(
        model,
        net=ShowsPeople(model.net).eval(),
        weights_sha256=f"{model.weights_sha256}-{PAINTED_PEOPLE}-people",
    )


@cache
def clip_of(fps: int) -> Path:
    """The demo scene as H.264, as cameras and phones make it; written where it is not there yet."""
    folder = Path(tempfile.gettempdir()) / "posestream-bench"
    folder.mkdir(exist_ok=True)
    path = folder / f"demo-720p-{fps}fps.mp4"
    if not path.exists():
        unfinished = path.with_suffix(f".{os.getpid()}.mp4")
        _write_clip(unfinished, fps)
        unfinished.replace(path)
    return path


def _write_clip(path: Path, fps: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        stream.height, stream.width = demo.SIZE
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = BIT_RATE * fps // 30
        for index in range(demo.NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(demo.picture(index), format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def stream_config(
    clip: Path, num_frames: int, *, pace: bool = False, **others: Any
) -> StreamConfig:
    source = SourceConfig(
        input=str(clip), pace=pace, loop=num_frames > demo.NUM_FRAMES, max_frames=num_frames
    )
    preprocess = PreprocessConfig(input_size=NET_SIZE[0], size_multiple=SIZE_MULTIPLE)
    return StreamConfig(sources=(source,), preprocess=preprocess, **others)


@dataclass
class Run:
    """What one way from the file to poses has shown."""

    finished: list[float] = field(default_factory=list)
    """time.perf_counter() at every result."""
    latency_ms: list[float] = field(default_factory=list)
    """Capture to poses, of every result."""
    people: list[int] = field(default_factory=list)
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    """p50 and p95 in ms, by stage."""
    dropped: int = 0
    cpu_seconds: list[float] = field(default_factory=list)
    """time.process_time() at every result: of all threads, so waiting does not count."""

    @property
    def fps(self) -> float:
        counted = self.finished[WARM_UP:]
        return (len(counted) - 1) / (counted[-1] - counted[0])

    @property
    def cpu_ms(self) -> float:
        """CPU time of a frame, all threads together."""
        counted = self.cpu_seconds[WARM_UP:]
        return (counted[-1] - counted[0]) * 1e3 / (len(counted) - 1)

    def add(self, latency_ms: float, people: int) -> None:
        self.finished.append(time.perf_counter())
        self.cpu_seconds.append(time.process_time())
        self.latency_ms.append(latency_ms)
        self.people.append(people)


def run_stream(model: Model, config: StreamConfig) -> Run:
    """The stream as run_stream.py runs it, with a note of every result."""
    run = Run()
    stream = Stream(config, model=model)
    count = stream.stats.finished

    def note(source: str, *, latency_ms: float, people: int) -> None:
        run.add(latency_ms, people)
        count(source, latency_ms=latency_ms, people=people)

    stream.stats.finished = note  # type: ignore[method-assign]
    exit_code = stream.run()
    if exit_code:
        raise RuntimeError(f"the stream ended with exit code {exit_code}")
    snapshot = stream.stats.snapshot()
    for name, stage in snapshot["stages"].items():
        run.stages[name.partition(":")[0]] = (stage["p50_ms"], stage["p95_ms"])
    run.dropped = sum(sum(s["dropped"].values()) for s in snapshot["sources"].values())
    return run


class Loop:
    """The same parts, called one after the other by one thread."""

    def __init__(self, model: Model) -> None:
        self.engine: Engine = load_engine(model)
        self.preprocess = Preprocess(
            input_size=NET_SIZE[0], mean=model.mean, std=model.std, size_multiple=SIZE_MULTIPLE
        )
        self._inference = Inference(self.engine)
        self._find_poses = FindPoses(
            model.skeleton, decode_settings(stream_config(Path(), 1).poses, model)
        )

    def run(self, clip: Path, num_frames: int) -> Run:
        run = Run()
        times: dict[str, list[float]] = {"decoder": []}
        frames = read_frames(clip, num_frames)
        while True:
            started = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                break
            times["decoder"].append((time.perf_counter() - started) * 1e3)
            for batch in self.preprocess([frame]):
                for output in self._inference(batch):
                    for poses in self._find_poses(output):
                        run.add(poses.latency_ms, len(poses.scores))
                        for stage, ms in poses.stage_ms.items():
                            times.setdefault(stage, []).append(ms)
        run.stages = {stage: p50_p95(values[WARM_UP:]) for stage, values in times.items()}
        return run


def read_frames(clip: Path, num_frames: int) -> Iterator[Frame]:
    settings = SourceSettings(loop=num_frames > demo.NUM_FRAMES, max_frames=num_frames)
    return iter(open_source(str(clip), settings=settings).frames())


# --- the sections --------------------------------------------------------------------------------


def bench_throughput(net: str, *, rounds: int, num_frames: int) -> Row:
    """The engine, the loop and three streams, in turn, for some rounds."""
    model, clip = model_of(net), clip_of(30)
    loop = Loop(model)
    inputs = [
        torch.from_numpy(batch.images)
        for frame in read_frames(clip, 8)
        for batch in loop.preprocess([frame])
    ]
    engine_ms: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(prefix="posestream-") as folder:
        ways: dict[str, dict[str, Any]] = {
            "stream": {},
            "stream --jsonl": {"recorder": {"jsonl": f"{folder}/poses.jsonl"}},
            "stream --save": {"video": {"path": f"{folder}/poses.mp4"}},
        }
        runs: dict[str, list[Run]] = {way: [] for way in ("loop", *ways)}
        for number in range(rounds):
            engine_ms.append(engine_times(loop.engine, inputs, num_frames))
            # There and back again: what a machine that slowly changes does to one, it does to all.
            for way in list(runs)[:: -1 if number % 2 else 1]:
                if way == "loop":
                    runs[way].append(loop.run(clip, num_frames))
                else:
                    config = stream_config(clip, num_frames, **ways[way])
                    runs[way].append(run_stream(model, config))
    engine_fps = [1e3 / values.mean() for values in engine_ms]
    row = throughput_row(engine_fps, runs)
    row["engine"] = f"{loop.engine.name} {loop.engine.precision}"
    row["engine_ms"] = p50_p95(np.concatenate(engine_ms))
    return row


def engine_times(engine: Engine, inputs: Sequence[Tensor], num_calls: int) -> np.ndarray:
    times = []
    for i in range(num_calls):
        started = time.perf_counter()
        engine(inputs[i % len(inputs)])
        times.append((time.perf_counter() - started) * 1e3)
    return np.array(times[WARM_UP:])


def throughput_row(engine_fps: list[float], runs: dict[str, list[Run]]) -> Row:
    fps = {way: [run.fps for run in of_way] for way, of_way in runs.items()}
    row: Row = {
        "fps": {"engine": median(engine_fps)} | {way: median(v) for way, v in fps.items()},
        "over_loop": {},
        "over_engine": {},
        "cpu_ms": {way: median(run.cpu_ms for run in of_way) for way, of_way in runs.items()},
        "ms": {},
    }
    for way, values in fps.items():
        row["over_loop"][way] = float(np.median(np.divide(values, fps["loop"])))
        row["over_engine"][way] = float(np.median(np.divide(values, engine_fps)))
        stages = [run.stages for run in runs[way]]
        row["ms"][way] = {
            name: tuple(median(column) for column in zip(*(s[name] for s in stages), strict=True))
            for name in stages[0]
        }
        row["ms"][way]["latency"] = p50_p95([ms for run in runs[way] for ms in run.latency_ms])
    row["people"] = median(n for of_way in runs.values() for run in of_way for n in run.people)
    return row


def bench_paced(net: str, *, num_frames: int) -> Row:
    """A camera that the stream keeps up with: how much latency queues and waking up add."""
    run = run_stream(model_of(net), stream_config(clip_of(PACED_FPS), num_frames, pace=True))
    stages_ms = sum(run.stages[name][0] for name in ("preprocess", "inference", "poses"))
    latency = p50_p95(run.latency_ms[WARM_UP:])
    return {
        "fps": run.fps,
        "latency_ms": latency,
        "stages_ms": run.stages,
        "sum_of_medians_ms": stages_ms,
        "latency_over_stages": latency[0] / stages_ms,
        "dropped": run.dropped,
    }


def bench_overload(net: str, *, num_frames: int) -> Row:
    """A camera with three times the rate that the stream reaches on its own."""
    own = run_stream(model_of(net), stream_config(clip_of(30), demo.NUM_FRAMES // 2))
    fps = round(OVERLOAD * own.fps, -1)
    run = run_stream(model_of(net), stream_config(clip_of(int(fps)), num_frames, pace=True))
    latency = run.latency_ms[WARM_UP:]
    third = len(latency) // 3
    first, last = p50_p95(latency[:third]), p50_p95(latency[-third:])
    return {
        "source_fps": fps,
        "fps": run.fps,
        "frames": num_frames,
        "results": len(run.finished),
        "dropped": run.dropped,
        "latency_ms": {"first third": first, "last third": last},
        "last_over_first_third": last[0] / first[0],
    }


def bench_memory(net: str, *, num_frames: int) -> Row:
    """In a fresh process because memory that other sections left is not the stream's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as process:
        return process.submit(_bench_memory, net, num_frames).result()


def _bench_memory(net: str, num_frames: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="posestream-") as folder:
        jsonl = Path(folder) / "poses.jsonl"
        config = stream_config(clip_of(30), num_frames, recorder={"jsonl": str(jsonl)})
        with memory_samples() as samples:
            run = run_stream(model_of(net), config)
        with jsonl.open() as lines:
            arrived = [json.loads(line)["frame"] for line in lines]
    seconds, mb = np.array(samples).T
    # From a fifth on everything is compiled, allocated and was used many times.
    steady = (seconds > run.finished[num_frames // 5]) & (seconds < run.finished[-1])
    slope = np.polyfit(seconds[steady], mb[steady], 1)[0]  # MB a second
    early, late = np.array_split(mb[steady], 4)[::3]
    return {
        "frames": num_frames,
        "in_order": arrived == list(range(num_frames)),
        "fps": run.fps,
        "max_mb": float(mb.max()),
        "steady_mb": float(np.median(mb[steady])),
        "mb_per_1000_frames": float(slope * 1000 / run.fps),
        "growth": float(np.median(late) / np.median(early) - 1),
    }


@contextmanager
def memory_samples() -> Iterator[list[tuple[float, float]]]:
    """(time.perf_counter(), resident MB) of this process, ten times a second while inside."""
    process = psutil.Process()
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            samples.append((time.perf_counter(), process.memory_info().rss / 1e6))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def p50_p95(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    p50, p95 = np.percentile(values, (50, 95))
    return float(p50), float(p95)


# --- what is printed -----------------------------------------------------------------------------


def report_throughput(row: Row) -> None:
    print(f"  {'':15}{'fps':>7}{'/ loop':>8}{'/ engine':>9}{'cpu ms':>8}   median (p95) ms")
    print(f"  {'engine alone':15}{row['fps']['engine']:7.1f}{'':25}   {_shown(row['engine_ms'])}")
    for way, stages in row["ms"].items():
        times = "  ".join(f"{name} {_shown(ms)}" for name, ms in stages.items())
        print(
            f"  {way:15}{row['fps'][way]:7.1f}{row['over_loop'][way]:8.3f}"
            f"{row['over_engine'][way]:9.3f}{row['cpu_ms'][way]:8.1f}   {times}"
        )
    print(f"  {row['engine']}; people in a frame (median): {row['people']:g}")


def report_paced(row: Row) -> None:
    times = "  ".join(f"{name} {_shown(ms)}" for name, ms in row["stages_ms"].items())
    print(
        f"  source {PACED_FPS} fps: capture to poses {_shown(row['latency_ms'])} ms, sum of the "
        f"stages' medians {row['sum_of_medians_ms']:.1f}, ratio {row['latency_over_stages']:.2f}; "
        f"{row['dropped']} dropped\n  median (p95) ms: {times}"
    )


def report_overload(row: Row) -> None:
    first, last = (_shown(row["latency_ms"][third]) for third in ("first third", "last third"))
    print(
        f"  source {row['source_fps']:.0f} fps, stream {row['fps']:.1f}: {row['frames']} frames = "
        f"{row['results']} results + {row['dropped']} dropped; latency {first} ms in the first "
        f"third, {last} in the last"
    )


def report_memory(row: Row) -> None:
    order = "all arrived in order" if row["in_order"] else "FRAMES ARE MISSING"
    print(
        f"  {row['frames']} frames at {row['fps']:.1f} fps, {order}: resident at most "
        f"{row['max_mb']:.0f} MB, steady {row['steady_mb']:.0f}; slope "
        f"{row['mb_per_1000_frames']:+.2f} MB in 1,000 frames, last quarter over first "
        f"{row['growth']:+.2%}"
    )


def _shown(p50_and_p95: tuple[float, float]) -> str:
    return "{:.1f} ({:.1f})".format(*p50_and_p95)


def gates_of(net: str, section: str, row: Row) -> dict[str, bool]:
    """What this section promises, and whether it holds."""
    if section == "throughput":
        gates = {name: row[name]["stream"] >= LIMITS[name] for name in ("over_loop", "over_engine")}
        if net == "higher_hrnet_lite":
            gates["lite_fps"] = row["fps"]["stream"] >= LIMITS["lite_fps"]
        return gates
    if section == "paced":
        return {"latency_over_stages": row["latency_over_stages"] <= LIMITS["latency_over_stages"]}
    if section == "overload":
        limit = LIMITS["overload_last_over_first_third"]
        return {
            "latency_is_flat": row["last_over_first_third"] <= limit,
            "results_and_drops_are_all": row["results"] + row["dropped"] == row["frames"],
        }
    return {
        "in_order": row["in_order"],
        "memory_mb": row["max_mb"] <= LIMITS["memory_mb"],
        "memory_is_flat": row["growth"] <= LIMITS["memory_growth"],
    }


def cpu_name() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--net", choices=NETS, nargs="+", default=NETS, help="default: both")
    add("--only", choices=SECTIONS, nargs="+", default=SECTIONS, help="default: all sections")
    add("--rounds", type=int, default=6, help="of throughput")
    add("--frames", type=int, default=100, help="of every run of throughput, beside the warm-up")
    add("--paced-frames", type=int, default=250)
    add("--overload-frames", type=int, default=1000)
    add("--memory-frames", type=int, default=5000)
    add("--quick", action="store_true", help="a look in a minute; its numbers say little")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.frames, options.paced_frames = 1, 60, 75
        options.overload_frames, options.memory_frames = 300, 300
    return options


def main() -> None:
    options = parse_arguments()
    preprocess_kernels.warm_up()
    decode_kernels.warm_up()
    load = os.getloadavg()[0]
    height, width = NET_SIZE
    print(f"{cpu_name()}, {os.cpu_count()} cores, load {load:.1f} before the start")
    print(f"1280x720 H.264 -> (1, 3, {height}, {width})")
    result: Row = {"bench": "stream", "device": cpu_name(), "cores": os.cpu_count(), "load": load}
    gates: dict[str, bool] = {}
    for net in options.net:
        # These two are about queues and memory: one net shows them.
        sections = [
            s for s in options.only if s not in ("overload", "memory") or net == options.net[-1]
        ]
        for section in sections:
            print(f"{net}, {section}")
            row = run_section(net, section, options)
            print(f"  other processes took {row['others']:.0%} of the cores")
            result.setdefault(net, {})[section] = row
            held = gates_of(net, section, row)
            missed = [name for name, holds in held.items() if not holds]
            print(f"  {'MISSED: ' + ', '.join(missed) if missed else 'every promise holds'}")
            gates |= {f"{net}.{name}": holds for name, holds in held.items()}
    print(json.dumps(rounded(result | {"gates": gates, "limits": LIMITS})))


def run_section(net: str, section: str, options: argparse.Namespace) -> Row:
    started, busy, own = time.perf_counter(), cpu_of_all(), cpu_of_us()
    row = run_and_report(net, section, options)
    seconds = (time.perf_counter() - started) * (os.cpu_count() or 1)
    row["others"] = max(0.0, (cpu_of_all() - busy - (cpu_of_us() - own)) / seconds)
    return row


def cpu_of_all() -> float:
    """Seconds that all cores together were busy, also for other virtual machines."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def cpu_of_us() -> float:
    """Seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_and_report(net: str, section: str, options: argparse.Namespace) -> Row:
    if section == "throughput":
        frames = WARM_UP + options.frames
        row = bench_throughput(net, rounds=options.rounds, num_frames=frames)
        report_throughput(row)
    elif section == "paced":
        row = bench_paced(net, num_frames=options.paced_frames)
        report_paced(row)
    elif section == "overload":
        row = bench_overload(net, num_frames=options.overload_frames)
        report_overload(row)
    else:
        row = bench_memory(net, num_frames=options.memory_frames)
        report_memory(row)
    return row


def rounded(value: Any) -> Any:
    """The same with numbers that a person can read."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
