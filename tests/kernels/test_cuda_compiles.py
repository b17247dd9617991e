"""Every CUDA file compiles for every GPU, within its means: see tests/support/cuda_budget.py."""

import re

import pytest

from tests.support.cuda_budget import (
    ARCHITECTURES,
    KERNELS,
    MAX_STATIC_SHARED_BYTES,
    budgets,
    cuda_files,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", cuda_files())
def test_kernels_compile_without_spills(file: str, architecture: int) -> None:
    rows = list(budgets(file, architecture))
    text = (KERNELS / file).read_text(encoding="utf-8")
    assert len(rows) == len(re.findall(r'^extern\s+"C"\s+__global__', text, re.MULTILINE))
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.stack_bytes == 0, row  # local memory: arrays that registers could not hold
        assert row.shared_bytes <= MAX_STATIC_SHARED_BYTES, row
        assert row.blocks >= 1, row  # its threads' registers fit into a multiprocessor
