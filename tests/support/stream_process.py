"""run_stream.py as a process that a test looks at while it runs."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.places import ROOT
from tests.support.waiting import wait_until


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The process, its standard error kept; killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_stream.py"), *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_lines(path: Path, count: int) -> None:
    wait_until(
        lambda: path.exists() and path.read_bytes().count(b"\n") >= count,
        f"{path} did not get {count} lines",
    )
