"""Damaged files: frames, or one line that says why not; see tests/support/fuzz_files.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT


@pytest.mark.timeout(400)
def test_a_damaged_file_gives_frames_or_one_clear_line(tmp_path: Path, fuzz_seconds: float) -> None:
    command = [sys.executable, "-m", "tests.support.fuzz_files", str(tmp_path)]
    done = subprocess.run(
        [*command, "--seconds", str(fuzz_seconds)],
        cwd=ROOT, capture_output=True, text=True, timeout=200 + 2 * fuzz_seconds, check=False,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"after {last}: {done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    outcomes = dict(re.findall(r"'([a-z ]+)': (\d+)", last[0]))
    assert sum(map(int, outcomes.values())) >= 30
    assert {"read", "refused"} <= set(outcomes), last
