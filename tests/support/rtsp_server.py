"""A real RTSP server for tests, on GStreamer: loops H.264 clips at their own speed.

GStreamer's Python binding belongs to the system's interpreter, not to a virtual environment, so
RtspServer runs this very file with SYSTEM_PYTHON:

    with RtspServer(clip) as server:     starts a process, waits until it listens
        av.open(server.url)
        server.kill(); server.start()    a camera that loses power
        server.freeze()                  a cable that is pulled

Several clips are played one after the other: two sizes make a change of size within the stream.
It can also damage or drop coded pictures, let the times jump, end in order, ask for a password
(basic or digest), encrypt, and send MPEG-TS, which says nothing of its content beforehand.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

SYSTEM_PYTHON = "/usr/bin/python3"
_READY = "ready"
_START_SECONDS = 10.0


@cache
def why_unavailable() -> str:
    """Empty where the server can run here; else what is missing."""
    if not Path(SYSTEM_PYTHON).exists():
        return f"no {SYSTEM_PYTHON}"
    check = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('Gst', '1.0')"
    )
    found = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, check=False)
    return "" if found.returncode == 0 else "needs python3-gi and gir1.2-gst-rtsp-server-1.0"


class RtspServer:
    """The server's process, seen from a test. It keeps its port over kill() and start()."""

    def __init__(
        self,
        *clips: Path,
        user: str = "",
        password: str = "",
        digest: bool = False,
        corrupt: float = 0,
        drop: float = 0,
        jump_seconds: float = 0,
        once: bool = False,
        mpegts: bool = False,
        certificate: Path | None = None,
        address: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        """
        Args:
            certificate: PEM file with a certificate and its key: the server speaks RTSPS.
            address: to listen at.
            within: a command that runs the server's command elsewhere, as nsenter does.
            corrupt, drop: share of the coded pictures that get bit errors, or are left out.
            jump_seconds: added to the presentation times whenever the clips begin anew; below
                zero, times go back.
            once: end in order after the last clip.
        """
        self.port = _free_port()
        self.url = f"{'rtsps' if certificate else 'rtsp'}://{address}:{self.port}/live"
        self._command = [*within, SYSTEM_PYTHON, str(Path(__file__).resolve())]
        self._command += ["--port", str(self.port), "--address", address]
        self._command += ["--corrupt", str(corrupt), "--drop", str(drop)]
        self._command += [f"--jump={jump_seconds}", *map(str, clips)]
        if certificate:
            self._command += ["--certificate", str(certificate)]
        if user:
            self._command += ["--user", user, "--password", password]
        flags = {"--digest": digest, "--once": once, "--mpegts": mpegts}
        self._command += [flag for flag, given in flags.items() if given]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._process = process
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        line = process.stdout.readline() if readable else "silence"
        if line.strip() != _READY:
            self.kill()
            raise RuntimeError(f"the RTSP server did not start: {line!r}")

    def kill(self) -> None:
        """SIGKILL: no farewell reaches the clients but the closing of their connections."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        """The connections stay open, nothing moves any more."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _serve(options: argparse.Namespace) -> None:
    """Run the server until killed. Everything of GStreamer lives in here."""
    import gi  # type: ignore[import-not-found, unused-ignore]

    for name in ("Gst", "GstApp", "GstRtsp", "GstRtspServer"):
        gi.require_version(name, "1.0")
    from gi.repository import (  # type: ignore[import-not-found, unused-ignore]
        GLib,
        Gst,
        GstApp,  # noqa: F401  # gives appsink and appsrc their methods
        GstRtspServer,
    )

    Gst.init(None)
    clips = [_access_units(Gst, clip) for clip in options.clips]
    dice = random.Random(0)

    class Player:
        """Feeds one client session: pushes every access unit when its time has come."""

        def __init__(self, feed: Any) -> None:
            self.feed = feed
            self.alive = True
            self.clip = self.unit = 0
            self.started = -1  # running time at which the current clip began, nanoseconds
            self.jumped = 0  # by how much times are wrong, nanoseconds

        def tick(self) -> bool:
            clock = self.feed.get_clock()
            if clock is None or not self.alive:
                return self.alive
            now = clock.get_time() - self.feed.get_base_time()
            self.started = now if self.started < 0 else self.started
            while self.alive and self.started + clips[self.clip][self.unit][2] <= now:
                self.alive = self.push(*clips[self.clip][self.unit])
                self.unit += 1
                if self.unit == len(clips[self.clip]):
                    self.begin_next_clip()
            return self.alive

        def begin_next_clip(self) -> None:
            self.started += sum(unit[3] for unit in clips[self.clip])
            self.clip, self.unit = (self.clip + 1) % len(clips), 0
            if self.clip == 0:
                self.jumped += round(options.jump * 1e9)
                if options.once:
                    self.feed.emit("end-of-stream")
                    self.alive = False

        def push(self, data: bytes, pts: int, dts: int, duration: int) -> bool:
            if dice.random() < options.drop:
                return True
            hit = dice.random() < options.corrupt
            buffer = Gst.Buffer.new_wrapped(_with_bit_errors(data, dice) if hit else data)
            start = max(0, self.started + self.jumped)
            buffer.pts, buffer.dts = start + pts, start + dts
            buffer.duration = duration
            return bool(self.feed.emit("push-buffer", buffer) == Gst.FlowReturn.OK)

        def end(self, _media: Any) -> None:
            self.alive = False

    payloader = "rtph264pay name=pay0 pt=96"
    if options.mpegts:
        payloader = "mpegtsmux ! rtpmp2tpay name=pay0 pt=33"

    class Factory(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc, unused-ignore]
        def do_create_element(self, _url: Any) -> object:
            return Gst.parse_launch(
                "( appsrc name=feed is-live=true format=time block=false"
                " caps=video/x-h264,stream-format=byte-stream,alignment=au"
                # Parameter sets once, by the parser; asking the payloader too would double frames.
                f" ! h264parse config-interval=-1 ! {payloader} )"
            )

        def do_configure(self, media: Any) -> None:
            player = Player(media.get_element().get_by_name("feed"))
            media.connect("unprepared", player.end)
            GLib.timeout_add(5, player.tick)

    server = GstRtspServer.RTSPServer()
    server.set_address(options.address)
    server.set_service(str(options.port))
    factory = Factory()
    factory.set_shared(True)
    factory.set_latency(0)
    if options.certificate:
        _speak_tls(server, factory, options.certificate)
    if options.user:
        _ask_for_password(server, factory, options)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"cannot listen on port {options.port}")
    print(_READY, flush=True)
    GLib.MainLoop().run()


def _access_units(gst: Any, clip: str) -> list[tuple[bytes, int, int, int]]:
    """The clip's coded pictures: (Annex B bytes, pts, dts, duration), nanoseconds from its start.

    They are read whole beforehand, for a factory that reads the file itself cannot start again.
    """
    pipeline = gst.parse_launch(
        f'filesrc location="{clip}" ! qtdemux ! h264parse config-interval=-1'
        " ! video/x-h264,stream-format=byte-stream,alignment=au ! appsink name=units sync=false"
    )
    sink = pipeline.get_by_name("units")
    pipeline.set_state(gst.State.PLAYING)
    units = []
    while (sample := sink.pull_sample()) is not None:
        buffer = sample.get_buffer()
        data = buffer.extract_dup(0, buffer.get_size())
        dts = buffer.pts if buffer.dts == gst.CLOCK_TIME_NONE else buffer.dts
        units.append((data, buffer.pts, dts, buffer.duration))
    pipeline.set_state(gst.State.NULL)
    start = units[0][2]
    return [(data, pts - start, dts - start, duration) for data, pts, dts, duration in units]


def _with_bit_errors(data: bytes, dice: random.Random) -> bytes:
    """One flipped bit in about 400 bytes, never in the first 40 (the parameter sets)."""
    damaged = bytearray(data)
    for _ in range(max(1, len(data) // 400)):
        damaged[dice.randrange(min(40, len(data) - 1), len(data))] ^= 1 << dice.randrange(8)
    return bytes(damaged)


def _speak_tls(server: Any, factory: Any, certificate: str) -> None:
    """RTSPS: the whole connection is encrypted, pictures too, if they come over TCP."""
    from gi.repository import (  # type: ignore[import-not-found, unused-ignore]
        Gio,
        GstRtsp,
        GstRtspServer,
    )

    auth = GstRtspServer.RTSPAuth()
    auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(certificate))
    anybody = GstRtspServer.RTSPToken()
    anybody.set_string("media.factory.role", "anybody")
    auth.set_default_token(anybody)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_role("anybody")
    for name in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("anybody", name, True)
    factory.set_permissions(permissions)
    factory.set_protocols(GstRtsp.RTSPLowerTrans.TCP)


def _ask_for_password(server: Any, factory: Any, options: argparse.Namespace) -> None:
    """HTTP basic or digest authentication, as cameras have them."""
    from gi.repository import GstRtsp, GstRtspServer  # type: ignore[import-not-found, unused-ignore]

    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth = GstRtspServer.RTSPAuth()
    if options.digest:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(options.user, options.password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_role("user")
    for name in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("user", name, True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Loop H.264 clips over RTSP on 127.0.0.1.")
    parser.add_argument("clips", nargs="+", help="MP4 files")
    parser.add_argument("--port", type=int, default=8554)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--certificate", default="", help="PEM file with its key, for RTSPS")
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    parser.add_argument("--corrupt", type=float, default=0, help="share of damaged pictures")
    parser.add_argument("--drop", type=float, default=0, help="share of pictures left out")
    parser.add_argument("--jump", type=float, default=0, help="seconds, whenever clips begin anew")
    parser.add_argument("--digest", action="store_true", help="digest instead of basic")
    parser.add_argument("--once", action="store_true", help="end after the last clip")
    parser.add_argument("--mpegts", action="store_true", help="H.264 inside of MPEG-TS")
    _serve(parser.parse_args())
