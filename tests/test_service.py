"""examples/posestream.service as shipped: its user, environment and file system; no systemd here.

What systemd forbids beyond that (system calls, address families) is not tried.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from common.cache import cache_folder
from tests.support.places import ROOT
from tests.support.places_of_others import STRANGER, needs_root, run_as

_CONFIG = Path("/run/posestream-stream.yaml")


def unit() -> dict[str, str]:
    """The unit's settings, the last of each name."""
    lines = (ROOT / "examples" / "posestream.service").read_text(encoding="utf-8").splitlines()
    settings = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return dict(settings)


def command(settings: dict[str, str], *, options: str, sources: str) -> list[str]:
    """ExecStart with its variables, this machine's Python and a configuration of ours."""
    line = settings["ExecStart"]
    line = line.replace("$POSESTREAM_OPTIONS", options).replace("$POSESTREAM_SOURCES", sources)
    program, *arguments = shlex.split(line)
    assert program == f"{settings['WorkingDirectory']}/.venv/bin/python"
    config = arguments.index("/etc/posestream/stream.yaml")
    return [sys.executable, *arguments[:config], str(_CONFIG), *arguments[config + 1 :]]


def warm_cache(folder: Path) -> Path:
    """A copy of what this machine's tests have compiled, so that a cold start is not tried again.

    It lies where a service's XDG_CACHE_HOME has it.
    """
    ours = cache_folder("numba")
    assert ours is not None
    shutil.copytree(ours.parent, folder / "cache" / "posestream")
    return folder / "cache"


@needs_root
@pytest.mark.timeout(600)
def test_the_service_starts_as_shipped(tmp_path: Path) -> None:
    settings = unit()
    warm = warm_cache(tmp_path)
    assert (settings["ProtectSystem"], settings["ProtectHome"]) == ("strict", "yes")
    assert (settings["PrivateTmp"], settings["CacheDirectory"]) == ("yes", "posestream")
    environment = dict(pair.split("=") for pair in settings["Environment"].split())
    assert environment["XDG_CACHE_HOME"] == "/var/cache/posestream"
    # The user's home is the clone, which belongs to root.
    environment |= {"HOME": str(ROOT), "USER": settings["User"]}
    mounts = (
        "mount -t tmpfs none /run",
        f"echo 'sources: []' > {_CONFIG}",
        "mount -t tmpfs none /var/cache",
        f"cp -r {warm} /var/cache/posestream",
        f"chown -R {STRANGER}:{STRANGER} /var/cache/posestream",
        "mount -t tmpfs -o mode=1777 none /tmp",  # PrivateTmp
        "mount -o remount,bind,ro / /",  # ProtectSystem
        f"umask {settings['UMask']}",
    )
    result = run_as(
        STRANGER,
        command(settings, options="--max-frames 2 --jsonl -", sources="demo"),
        environment,
        mounts=mounts,
        timeout_seconds=500,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"schema":"pose/1"') == 2
    assert result.stderr == ""
