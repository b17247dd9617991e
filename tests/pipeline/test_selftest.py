"""The selftest: table, stopwatch and verdicts, and all of it on the CPU and on the emulator."""

import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from kernels.checks.twin_checks import CHECKS
from nets.aggregation import Maps
from pipeline.messages import Frame, Poses
from pipeline.selftest import run as selftest
from pipeline.selftest.ceilings import (
    Ceilings,
    Stopwatch,
    floor_of,
    measure_copies_of_gpu,
)
from pipeline.selftest.checks import (
    LIMITS,
    Tolerances,
    build_row,
    compare_people,
    engine_floor,
    outputs_row,
)
from pipeline.selftest.report import Report, Row, cells, failures, guarded, plain_line, summary
from pipeline.selftest.stages import Case, make_case
from run_stream import main
from tests.support.cuda_on_cpu.emulator import EmulatedGpu
from tests.support.painted import grid_people, paint, painted_model
from tests.support.places import ROOT
from tests.support.waiting import PATIENCE_SECONDS

QUICK = Stopwatch(seconds=0.0)


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed, on machines with a GPU, too."""
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)


@pytest.fixture(scope="module")
def case() -> Case:
    model = replace(painted_model(), input_size=128)
    return make_case(model, paint((240, 320), grid_people(2)))


# ---- the table ----------------------------------------------------------------------------------

ROWS = [
    Row("first", True, 0.0004, 1.25, "good"),
    Row("second", False, 123.456, None, "bad"),
    Row("third", None, 0.25, None, "[red]not markup[/red]"),
]


def test_cells_and_verdict() -> None:
    assert cells(ROWS[0]) == ("first", "PASS", "<0.001", "1.25", "good")
    assert cells(ROWS[1]) == ("second", "FAIL", "123.5", "-", "bad")
    assert cells(ROWS[2])[1:4] == ("-", "0.250", "-")
    assert failures(ROWS) == ["second"]
    assert summary(ROWS) == "1 of 2 checks FAILED: second"
    assert summary(ROWS[::2]) == "all 1 checks passed"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_report_shows_every_row(terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=110)
    with Report(console) as report:
        for row in ROWS:
            report.add(row)
    shown = text.getvalue()
    for expected in ("first", "PASS", "FAIL", "123.5", "[red]not markup[/red]", "1 of 2 checks"):
        assert expected in shown
    assert report.rows == ROWS
    if not terminal:
        assert shown.splitlines()[1] == plain_line(cells(ROWS[0]))
        assert "\x1b" not in shown


def test_a_check_that_raises_is_a_row_that_failed() -> None:
    def check() -> Iterator[Row]:
        yield ROWS[0]
        raise RuntimeError("the GPU is on fire\nand a traceback")

    assert list(guarded("fire", check)) == [
        ROWS[0],
        Row("fire", False, note="RuntimeError: the GPU is on fire"),
    ]


# ---- stopwatch, floors --------------------------------------------------------------------------


class Device:
    """Work that takes its time after the call has returned, and a clock of its own."""

    def __init__(self, work_s: float, *, first_s: float = 0.0) -> None:
        self.now = self._queued = 0.0
        self.calls = 0
        self._work_s, self._first_s = work_s, first_s

    def run(self) -> None:
        self._queued += self._first_s if self.calls == 0 else self._work_s
        self.calls += 1

    def synchronise(self) -> None:
        self.now += self._queued
        self._queued = 0.0

    def stopwatch(self, seconds: float) -> Stopwatch:
        return Stopwatch(self.synchronise, lambda: self.now, seconds)


@pytest.mark.parametrize("work_s", [1e-5, 1e-3, 0.4])
def test_the_stopwatch_waits_for_the_work_and_leaves_the_first_call_out(work_s: float) -> None:
    device = Device(work_s, first_s=10.0)
    assert device.stopwatch(0.0).median_ms(device.run) == pytest.approx(work_s * 1e3)
    assert device.calls >= 5
    if work_s == 0.4:
        assert device.calls == 5  # a slow call is not repeated between two readings


def test_the_stopwatch_goes_on_as_long_as_it_may() -> None:
    device = Device(0.01)
    device.stopwatch(0.5).median_ms(device.run)
    assert 0.5 <= device.now <= 0.6


def test_floors() -> None:
    bytes_count = floor_of(num_bytes=2e9, bandwidth=1e9, operations=1e9, rate=1e12)
    assert bytes_count == (2000.0, "floor: 2e+03 MB at 1 GB/s")
    operations_count = floor_of(num_bytes=1.0, bandwidth=1e9, operations=5e12, rate=1e12)
    assert operations_count.ms == pytest.approx(5000)
    assert "operations" in operations_count.why
    assert floor_of(num_bytes=1.0, operations=1.0).ms is None


def test_copies_must_arrive() -> None:
    gpu, ceilings = EmulatedGpu(), Ceilings()
    rows = measure_copies_of_gpu(gpu, QUICK, ceilings, size=1 << 16)
    assert [row.passed for row in rows] == [None, None, None, None, True]
    assert min(ceilings.up, ceilings.down, ceilings.memory) > 0
    gpu.xp.copyto = lambda target, source: np.copyto(target, source // 2)
    assert failures(measure_copies_of_gpu(gpu, QUICK, ceilings, size=1 << 16))


def test_the_engine_floor_counts_multiplies_and_adds(case: Case) -> None:
    net = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    plain = replace(case, model=replace(case.model, net=net), images=torch.zeros(1, 3, 32, 64))
    ceilings = Ceilings(compute={"fp32": 1e9})
    operations = 2 * 2 * 3 * 8 * 3 * 3 * 32 * 64  # of two pictures
    assert engine_floor(plain, ceilings, "fp32", 2).ms == pytest.approx(operations / 1e6)


# ---- verdicts -----------------------------------------------------------------------------------


def poses_of(keypoints: np.ndarray, filled: np.ndarray | None = None) -> Poses:
    frame = Frame(
        source="a", index=0, pts_seconds=None, captured_ns=0, captured_unix_s=0.0,
        size=(240, 320), planes=(),
    )  # fmt: skip
    count = len(keypoints)
    return Poses(
        frame=frame,
        skeleton="coco17",
        keypoints=keypoints,
        scores=np.ones(count, np.float32),
        filled=np.zeros(keypoints.shape[:2], np.bool_) if filled is None else filled,
        ids=np.full(count, -1),
        completed_ns=0,
        stage_ms={},
    )


def people(count: int) -> np.ndarray:
    xy = grid_people(count)
    return np.concatenate([xy, np.ones((*xy.shape[:2], 1))], axis=2).astype(np.float32)


STRICT, LOOSE = Tolerances(0.0, 0.5, 1.0), Tolerances(0.0, 1.0, 0.9)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_same_people_in_any_order(order: list[int]) -> None:
    same, note = compare_people(
        poses_of(people(3)[order]), poses_of(people(3)), limits=STRICT, scale=2.0
    )
    assert same
    assert "51 of 51 keypoints within 1 px" in note


@pytest.mark.parametrize(
    ("num_moved", "px", "limits", "same"),
    [
        (1, 0.9, STRICT, True),  # half a pixel of the network's, of which one is two
        (1, 1.1, STRICT, False),
        (3, 50.0, LOOSE, True),
        (4, 50.0, LOOSE, False),  # of 34
        (34, 1.9, LOOSE, True),
    ],
)
def test_keypoints_that_moved(num_moved: int, px: float, limits: Tolerances, same: bool) -> None:
    moved = people(2)
    moved.reshape(-1, 3)[:num_moved, 0] += px
    assert compare_people(poses_of(moved), poses_of(people(2)), limits=limits, scale=2.0)[0] == same


def test_filled_keypoints_may_be_anywhere() -> None:
    moved = people(2)
    moved[0, 5, :2] += 80
    filled = np.zeros((2, 17), np.bool_)
    filled[0, 5] = True
    got = poses_of(moved, filled)
    assert compare_people(got, poses_of(people(2)), limits=STRICT, scale=1.0)[0]


def test_other_people_are_not_the_same() -> None:
    twice = people(2)[[0, 0]]
    for got in (people(1), people(3), twice):
        assert not compare_people(poses_of(got), poses_of(people(2)), limits=STRICT, scale=1.0)[0]
    nobody = poses_of(people(2)[:0])
    assert compare_people(nobody, nobody, limits=STRICT, scale=1.0)[0]


def test_in_half_precision_people_who_hardly_are_any_may_come_and_go() -> None:
    want, got = poses_of(people(3)), poses_of(people(2))
    assert not compare_people(got, want, limits=LOOSE, scale=1.0)[0]
    want.scores[2] = 0.4
    assert compare_people(got, want, limits=LOOSE, scale=1.0)[0]
    assert compare_people(want, got, limits=LOOSE, scale=1.0)[0]
    assert not compare_people(got, want, limits=STRICT, scale=1.0)[0]


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        (lambda level: level, True),
        (lambda level: level + 0.005 * level.abs().max(), True),
        (lambda level: level + 0.02 * level.abs().max(), False),
        (lambda level: level * torch.nan, False),
        (lambda level: level[..., :-1], False),
    ],
)
def test_outputs_beside_torchs(
    case: Case, change: Callable[[torch.Tensor], torch.Tensor], passed: bool
) -> None:
    levels = (case.expected.levels[0], change(case.expected.levels[1]))
    row = outputs_row("outputs", Maps(levels, case.expected.tags), case, LIMITS["fp32"])
    assert row.passed is passed


class Building:
    """The part of a TensorRtEngine that is asked about builds."""

    def __init__(self, *, served_after: int, complaint: str = "") -> None:
        self._served_after, self._complaint = served_after, complaint

    def __call__(self, images: torch.Tensor) -> None:
        if self._complaint:
            logging.getLogger("nets.engines.tensorrt").warning(self._complaint)

    def serves(self, shape: tuple[int, int, int]) -> bool:
        assert shape == (2, 64, 96)
        self._served_after -= 1
        return self._served_after < 0


@pytest.mark.parametrize(
    ("building", "passed", "note"),
    [
        (Building(served_after=2), True, "kept for the next start"),
        (Building(served_after=9999), False, "not ready after"),
        (Building(served_after=9999, complaint="no gather"), False, "no gather"),
    ],
)
def test_waiting_for_a_build(building: Any, passed: bool, note: str) -> None:
    row = build_row("build", building, torch.zeros(2, 3, 64, 96), 0.3)
    assert row.passed is passed
    assert note in row.note


# ---- all of it ----------------------------------------------------------------------------------


def emulated(case: Case, gpu: EmulatedGpu) -> selftest.Bench:
    return selftest.Bench(
        case,
        torch.device("cpu"),
        gpu,
        QUICK,
        batches=(1, 2),
        copy_bytes=1 << 20,
        product_side=32,
        checks={"preprocess": CHECKS["preprocess"], "flip": CHECKS["decode, flip pairs"]},
    )


@pytest.mark.usefixtures("no_tensorrt")
def test_every_row_of_a_gpu_on_the_emulator(case: Case) -> None:
    rows = list(selftest.rows_of(emulated(case, EmulatedGpu())))
    assert failures(rows) == []
    by_name = {row.check: row for row in rows}
    for name in ("preprocess", "average, peaks", "group", "group, refine", "people to the host"):
        assert by_name[name].ms is not None
        assert by_name[name].floor_ms is not None
    assert by_name["engine tensorrt"].passed is None
    assert "torch_tensorrt" in by_name["engine tensorrt"].note
    assert by_name["frame to poses, torch fp32"].passed
    assert "2 people, 34 of 34 keypoints" in by_name["frame to poses, torch fp32"].note
    assert sum(row.passed is True for row in rows) == 6


@pytest.mark.usefixtures("no_tensorrt")
def test_a_wrong_kernel_fails_its_rows_and_the_others_go_on(case: Case) -> None:
    bug = ("const bool reverse = p.format == BGR24;", "const bool reverse = p.format == NV12;")
    rows = list(selftest.rows_of(emulated(case, EmulatedGpu(replace=[bug]))))
    # Red and blue are swapped, so the network reads other keypoints and other people.
    assert failures(rows) == ["equal to the CPU: preprocess", "frame to poses, torch fp32"]
    failed = next(row for row in rows if row.passed is False)
    assert "numbers differ, first at" in failed.note


def test_a_cpu_as_people_check_it() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "run_stream.py"), "--selftest", "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    first, *_, last = result.stdout.splitlines()
    assert first.startswith("device: cpu")
    assert last == "all 3 checks passed"
    for line in ("decode of painted people", "copy in memory", "frame to poses, openvino"):
        assert line in result.stdout


def test_a_failed_check_is_exit_code_1(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = replace(emulated(case, EmulatedGpu()), gpu=None)
    monkeypatch.setattr(selftest, "bench_of", lambda *_: bench)
    monkeypatch.setattr(selftest, "rows_of", lambda _: iter(ROWS))
    assert main(["--selftest", "--device", "cpu"]) == 1
    assert "1 of 2 checks FAILED: second" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:0,cuda:1", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line_and_exit_code_2(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--selftest", "--device", device]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("device", "has_gpu", "index"),
    [("auto", False, None), ("auto", True, 0), ("cuda", True, 0), ("cuda:3", True, 3)],
)
def test_which_device_is_meant(device: str, has_gpu: bool, index: int | None) -> None:
    assert selftest.gpu_index(device, has_gpu=has_gpu) == index
    assert selftest.gpu_index("cpu", has_gpu=has_gpu) is None


@pytest.mark.usefixtures("no_tensorrt")
def test_an_engine_that_is_not_installed_says_why() -> None:
    reason = selftest.why_no_engine("tensorrt")
    assert reason is not None
    assert "torch_tensorrt cannot be imported" in reason
    assert selftest.why_no_engine("torch") is None


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy.cuda import runtime

    properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 13020)
    monkeypatch.setattr(runtime, "runtimeGetVersion", lambda: 13000)
    expected = (
        "device: cuda:1, NVIDIA L4, compute capability 8.9, 24 GiB; driver up to CUDA 13.2, "
        "runtime 13.0"
    )
    assert selftest.describe_gpu(1) == expected


@pytest.mark.gpu
@pytest.mark.timeout(2000)  # TensorRT builds take minutes
def test_this_gpu() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "run_stream.py"), "--selftest", "--device", "cuda:0"],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
