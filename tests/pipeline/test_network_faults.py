"""A bad network before a real RTSP server: lost packets, a pulled cable, somebody who listens."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.source import SourceError
from tests.support.clips import SIZE, open_with, read, reading, write_clip
from tests.support.lossy_relay import LossyRelay
from tests.support.rtsp_server import RtspServer, why_unavailable
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable()),
]


def test_lost_packets_taint_pictures_and_end_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (25, *SIZE, 3), np.uint8)
    clip = write_clip(tmp_path / "noise.mp4", list(noise))  # many packets a picture
    with RtspServer(clip) as server, LossyRelay(server.port, udp_loss=0.05) as relay:
        source = open_with(relay.url, transport="udp", max_frames=75, read_timeout_seconds=10.0)
        frames = list(source.frames())
        assert relay.num_lost > 20
    tainted = [frame.tainted for frame in frames]
    assert 0 < sum(tainted) < len(tainted)
    assert source.status.tainted == sum(tainted)
    assert source.status.retries == {}
    times = [frame.pts_seconds for frame in frames if frame.pts_seconds is not None]
    assert times == sorted(set(times))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_pulled_cable_is_told_and_plugged_in_again_frames_come(
    clip: Path, transport: str
) -> None:
    with RtspServer(clip) as server, LossyRelay(server.port) as relay:
        source = open_with(
            relay.url, transport=transport, read_timeout_seconds=0.5, open_timeout_seconds=2.0
        )
        with reading(source) as numbers:
            wait_until(lambda: len(numbers) > 10)
            relay.pull()
            wait_until(lambda: source.status.state == "stalled")
            wait_until(lambda: source.status.state == "reconnecting")
            assert source.status.reason == "no data for 0.5 seconds"
            relay.plug()
            already = len(numbers)
            wait_until(lambda: len(numbers) > already + 10)
            assert source.status.state == "live"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_rtsps_is_read_and_its_certificate_checked_if_asked(clip: Path, tmp_path: Path) -> None:
    certificate, key, both = (tmp_path / name for name in ("camera.pem", "key.pem", "both.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=camera", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    with RtspServer(clip, certificate=both) as server:
        assert server.url.startswith("rtsps://")
        assert len(read(server.url, max_frames=5)) == 5
        known = {"tls_verify": "1", "ca_file": str(certificate)}
        assert len(read(server.url, max_frames=5, options=known)) == 5
        with pytest.raises(SourceError):
            read(server.url, max_frames=5, reconnect=False, options={"tls_verify": "1"})
