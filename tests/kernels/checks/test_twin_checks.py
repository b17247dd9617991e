"""The checks of a user's GPU, run here on the emulator, and with a GPU on the GPU."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from kernels.arrays import CudaGpu, Gpu
from kernels.checks.twin_checks import CHECKS
from tests.support.cuda_on_cpu.emulator import EmulatedGpu
from tests.support.places import ROOT
from tests.support.waiting import PATIENCE_SECONDS

DEVICES = [
    pytest.param(lambda: EmulatedGpu(seed=2), id="emulated"),
    pytest.param(lambda: CudaGpu(0), id="gpu", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("device", DEVICES)
def test_equal_to_the_cpu(device: Callable[[], Gpu], name: str) -> None:
    CHECKS[name](device(), 7)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_equal_to_the_cpu_many_times(name: str) -> None:
    for seed in range(100, 120):
        CHECKS[name](CudaGpu(0), seed)


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("preprocess", "p.format == BGR24;", "p.format == NV12;", "network input of"),
        ("average, peaks", "__syncthreads();  // value is complete", "", "of peaks of levels"),
        ("grouping", "zeros.last_before(column)", "zeros.first_from(column)", "of people, image"),
        (
            "decode",
            "if (own < tiles && own != promising)",
            "if (own < promising)",
            "of people, .* people, DecodeSettings",
        ),
        ("decode, flip pairs", "(width - 1 - x)])) * 0.5f", "x])) * 0.5f", "plain and mirrored"),
    ],
)
def test_planted_bugs_are_named(name: str, old: str, new: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=f"{complaint}.* first at"):
        CHECKS[name](EmulatedGpu(replace=[(old, new)]), 0)


@pytest.mark.parametrize(("switch", "exit_code"), [("1", 1), ("0", 0)])
def test_without_a_gpu_the_switch_makes_a_skip_a_failure(switch: str, exit_code: int) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            f"{__file__}::test_equal_to_the_cpu[gpu-grouping]",
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        env=os.environ | {"FAIL_WITHOUT_GPU": switch, "CUDA_VISIBLE_DEVICES": "", "CI": "true"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert result.returncode == exit_code, result.stdout
    assert ("1 error" if switch == "1" else "1 skipped") in result.stdout
    assert ("FAIL_WITHOUT_GPU=1" in result.stdout) == (switch == "1")
