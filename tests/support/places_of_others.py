"""Programs as services and containers run them: another user, no home, a file system to read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.places import ROOT

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"),
    reason="becomes another user: needs root, setpriv and unshare",
)

STRANGER = 54321
"""A user that the system does not know, as in `docker run --user 54321`."""


def run_as(
    user: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    mounts: Sequence[str] = (),
    cwd: Path = ROOT,
    timeout_seconds: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment alone.

    Args:
        mounts: shell commands that change what the process alone sees of the file system.
    """
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
    script = " && ".join([*mounts, f"cd {cwd}", f'exec {" ".join(become)} "$@"'])
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, "bash", *command],
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
