"""run_stream.py as a process that a test looks at while it runs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.places import ROOT


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


def wait_for_lines(path: Path, count: int, *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"{path} did not get {count} lines"
        time.sleep(0.05)
