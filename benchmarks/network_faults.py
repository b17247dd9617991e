"""Rows of benchmarks/faults.py that need a network of their own: lost packets, a pulled cable.

    faults.py --unshare--> this process, alone in a network   <--veth-->   the camera, in another
                           10.77.0.2; iptables drops here                  10.77.0.1

Both networks are Linux namespaces without a name: they vanish with their processes, whatever
happens. Root is needed, iproute2 and iptables; the kernel's netem is not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.faults import (
    BACK_SECONDS,
    LATENESS_SECONDS,
    READ_SECONDS,
    Outcome,
    watched,
)
from tests.support.clips import write_clip
from tests.support.rtsp_server import RtspServer

NAMES = ("loss-udp", "loss-tcp", "cable-udp", "cable-tcp")
CAMERA, CLIENT = "10.77.0.1", "10.77.0.2"
LOSS = 0.05
_WATCHED_FRAMES = 250
# TCP repeats what was not acknowledged, at longer and longer intervals; so does its handshake.
_TCP_REPEATS_SECONDS = 2.0


def why_not() -> str:
    """Empty where these rows can run; else what is missing."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    missing = [tool for tool in ("unshare", "nsenter", "ip", "iptables") if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)} (apt-get install iproute2 iptables)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "the kernel gives no network namespaces"


def in_own_network(name: str) -> Outcome:
    """Run a row in a process of its own, in a new network."""
    command = ["unshare", "--net", sys.executable, "-m", "benchmarks.network_faults", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def camera_network() -> Iterator[list[str]]:
    """The command that runs another one in the camera's network, which has a cable to ours."""
    keeper = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
    try:
        ours = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{keeper.pid}/ns/net").readlink() == ours:
            time.sleep(0.01)
        within = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net"]
        _run("ip link add client type veth peer name camera")
        _run(f"ip link set camera netns {keeper.pid}")
        _run(f"ip address add {CLIENT}/24 dev client")
        _run("ip link set client up")
        _run("ip link set lo up")
        _run(f"ip address add {CAMERA}/24 dev camera", *within)
        _run("ip link set camera up", *within)
        yield within
    finally:
        keeper.kill()
        keeper.wait()


def _run(command: str, *within: str) -> None:
    subprocess.run([*within, *command.split()], check=True, capture_output=True)


def loss(clip: Path, transport: str) -> Outcome:
    with (
        camera_network() as within,
        RtspServer(clip, address=CAMERA, within=within) as server,
        watched(server.url, transport=transport) as watch,
    ):
        watch.seconds_until_frames()
        _run(
            f"iptables -A INPUT -p {transport} -m statistic --mode random --probability {LOSS}"
            " -j DROP"
        )
        watch.seconds_until_frames(_WATCHED_FRAMES)
        retries = dict(watch.source.status.retries)
    words = f"{watch.num_frames} frames, {watch.num_tainted} tainted, lost {retries or 'never'}"
    passed = not retries and (watch.num_tainted > 0) == (transport == "udp")
    fault = f"{LOSS:.0%} of the packets lost, {transport}"
    return Outcome(fault, words, None, None, passed and watch.num_frames >= _WATCHED_FRAMES)


def cable(clip: Path, transport: str) -> Outcome:
    with (
        camera_network() as within,
        RtspServer(clip, address=CAMERA, within=within) as server,
        watched(server.url, transport=transport) as watch,
    ):
        watch.seconds_until_frames()
        _run("ip link set camera down", *within)
        told = watch.seconds_until_lost()
        words = watch.words
        time.sleep(5.0)
        _run("ip link set camera up", *within)
        back = watch.seconds_until_frames(1)
    told_in_time = told <= 2 * READ_SECONDS + LATENESS_SECONDS
    back_in_time = back <= BACK_SECONDS + _TCP_REPEATS_SECONDS + LATENESS_SECONDS
    fault = f"cable pulled and plugged in again, {transport}"
    return Outcome(fault, words, told, back, told_in_time and back_in_time)


def main(name: str) -> None:
    kind, transport = name.split("-")
    noise = np.random.default_rng(0).integers(0, 255, (25, 180, 320, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.mp4", list(noise))
        outcome = {"loss": loss, "cable": cable}[kind](clip, transport)
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main(sys.argv[1])
