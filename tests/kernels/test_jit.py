"""The cache of compiled kernels: found again, damaged, full."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

_PROGRAM = """
import logging
logging.basicConfig(format="%(message)s")
from kernels.taps import axis_taps
first, weights = axis_taps((4, 8, 0.5, 0.0, False))
assert first.shape == (4,), first
print(sum(axis_taps.stats.cache_hits.values()))
"""


def run(cache: Path, *before: str) -> tuple[int, str]:
    """Compiled code found in the cache, and the log, of a program with this cache folder."""
    result = subprocess.run(
        ["bash", "-c", "; ".join([*before, 'exec "$@"']), "bash", sys.executable, "-c", _PROGRAM],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cache), "XDG_CACHE_HOME": str(cache)},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout), result.stderr


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_compiled_code_is_kept_and_damaged_files_are_replaced(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path) == (0, "")
    assert run(tmp_path) == (1, "")
    for path in tmp_path.rglob(kind):
        path.write_bytes(path.read_bytes()[:-40])  # torn by a power cut
    hits, log = run(tmp_path)
    assert hits == 0
    assert log.count("\n") == 1
    assert "made again" in log
    assert run(tmp_path) == (1, "")


@pytest.mark.timeout(240)
def test_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    hits, log = run(tmp_path, "ulimit -f 8")  # KiB in one file: enough to look, not to keep
    assert hits == 0
    assert log.count("\n") == 1
    assert "not kept" in log
