"""What a source does under each fault: how soon it tells, and how soon frames come again.

    python -m benchmarks.faults            all rows, about two minutes
    python -m benchmarks.faults kill       the rows whose name holds this word

A real RTSP server (tests/support/rtsp_server.py; GStreamer under the system's Python) is killed,
frozen, restarted and made to send damage; tests/support/scripted_rtsp.py answers what a real one
would not. A row passes when the fault is reported within twice the read timeout and frames come
within 2 s of the camera being there again; a camera that promises and sends
nothing must be reported within 12
s. Lost packets and pulled cables (network_faults.py) need Linux, root, iproute2 and iptables.
docs/reliability.md has the outcome."""

from __future__ import annotations

import json
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.sources.open import open_source
from pipeline.sources.source import Source, SourceSettings
from tests.support.clips import write_clip
from tests.support.rtsp_server import RtspServer, why_unavailable
from tests.support.scripted_rtsp import scripted_rtsp

READ_SECONDS = 2.0  # the defaults of a source
BACK_SECONDS = 2.0
SILENT_SECONDS = 12.0
LATENESS_SECONDS = 0.5  # of this machine's scheduling, in seconds
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Outcome:
    """One row: seconds are None where they do not apply."""

    fault: str
    state: str
    """What the source said of it, and why."""
    told_seconds: float | None
    back_seconds: float | None
    passed: bool


class Watched:
    """A source that is read in a thread, and what came of it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.num_frames = self.num_tainted = 0
        self.sizes: set[tuple[int, int]] = set()
        self.times_rise = True

    def read(self) -> None:
        last = -1.0
        for frame in self.source.frames():
            self.num_tainted += frame.tainted
            self.sizes.add(frame.size)
            assert frame.pts_seconds is not None
            self.times_rise &= frame.pts_seconds > last
            last = frame.pts_seconds
            self.num_frames += 1

    def seconds_until(self, condition: Callable[[], bool]) -> float:
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > _PATIENCE_SECONDS:
                return float("inf")
            time.sleep(0.005)
        return time.monotonic() - started

    def seconds_until_frames(self, number: int = 5) -> float:
        wanted = self.num_frames + number
        return self.seconds_until(lambda: self.num_frames >= wanted)

    def seconds_until_lost(self) -> float:
        """Until the first failure since the start; 0 if that was before the call."""
        return self.seconds_until(lambda: bool(self.source.status.retries))

    @property
    def words(self) -> str:
        status = self.source.status
        return ": ".join(filter(None, (status.state.value, status.reason)))


@contextmanager
def watched(url: str, *, transport: str = "tcp") -> Iterator[Watched]:
    assert transport in ("tcp", "udp")
    settings = SourceSettings(transport="udp" if transport == "udp" else "tcp")
    watch = Watched(open_source(url, settings=settings))
    thread = threading.Thread(target=watch.read)
    thread.start()
    try:
        yield watch
    finally:
        watch.source.stop()
        thread.join(_PATIENCE_SECONDS)
        assert not thread.is_alive(), "stop() did not end the source"


def killed(clip: Path, transport: str) -> Outcome:
    with RtspServer(clip) as server, watched(server.url, transport=transport) as watch:
        watch.seconds_until_frames()
        server.kill()
        told = watch.seconds_until_lost()
        words = watch.words
        time.sleep(1.5)
        server.start()
        back = watch.seconds_until_frames(1)
    return _lost_and_back(f"server killed and started again, {transport}", words, told, back)


def frozen(clip: Path, transport: str) -> Outcome:
    with RtspServer(clip) as server, watched(server.url, transport=transport) as watch:
        watch.seconds_until_frames()
        server.freeze()
        told = watch.seconds_until_lost()
        words = watch.words
        time.sleep(3.0)
        server.thaw()
        back = watch.seconds_until_frames(1)
    return _lost_and_back(f"server frozen and thawed, {transport}", words, told, back)


def ended(clip: Path) -> Outcome:
    """The server starts the clip again for whoever connects, so it is there again at once.

    When exactly the end came only the server knows, so "reported after" is empty.
    """
    with RtspServer(clip, once=True) as server, watched(server.url) as watch:
        watch.seconds_until_frames()
        watch.seconds_until_lost()
        words = watch.words
        back = watch.seconds_until_frames(1)
    return _lost_and_back("orderly end of the stream", words, None, back)


def not_there_yet(clip: Path) -> Outcome:
    server = RtspServer(clip)
    with watched(server.url) as watch:
        told = watch.seconds_until_lost()
        words = watch.words
        with server:
            back = watch.seconds_until_frames(1)
            watch.source.stop()
    return _lost_and_back("nothing listens at the start", words, told, back)


def _lost_and_back(fault: str, words: str, told: float | None, back: float) -> Outcome:
    in_time = (
        told or 0.0
    ) <= 2 * READ_SECONDS + LATENESS_SECONDS and back <= BACK_SECONDS + LATENESS_SECONDS
    return Outcome(fault, words, told, back, in_time)


def refused(answer: str) -> Outcome:
    with scripted_rtsp(answer) as (url, asked), watched(url) as watch:
        told = watch.seconds_until_lost()
        words, before = watch.words, len(asked)
        time.sleep(2.0)
        asked_again = len(asked) > before
    passed = words.startswith("refused") and not asked_again and told <= 2 * READ_SECONDS
    return Outcome(f"answer {answer}", words, told, None, passed)


def wrong_password(clip: Path, digest: bool) -> Outcome:
    kind = "digest" if digest else "basic"
    with RtspServer(clip, user="me", password="right", digest=digest) as server:
        with watched(server.url.replace("//", "//me:right@")) as watch:
            opened = watch.seconds_until_frames(1) < BACK_SECONDS + LATENESS_SECONDS
        with watched(server.url.replace("//", "//me:falsch@")) as watch:
            told, words = watch.seconds_until_lost(), watch.words
    passed = opened and words.startswith("refused") and "falsch" not in words
    return Outcome(f"wrong password, {kind} (the right one opens)", words, told, None, passed)


def silent(transport: str) -> Outcome:
    with scripted_rtsp() as (url, _), watched(url, transport=transport) as watch:
        told, words = watch.seconds_until_lost(), watch.words
    fault = f"agrees to play and sends nothing, {transport}"
    return Outcome(fault, words, told, None, told <= SILENT_SECONDS)


def never_answers() -> Outcome:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/live"
        with watched(url) as watch:
            told, words = watch.seconds_until_lost(), watch.words
    return Outcome("accepts and never answers", words, told, None, told <= SILENT_SECONDS)


def unknown_host() -> Outcome:
    with watched("rtsp://no-such-camera.invalid/live") as watch:
        told, words = watch.seconds_until_lost(), watch.words
    return Outcome("host does not resolve", words, told, None, told <= SILENT_SECONDS)


def damaged(clip: Path, fault: str, **damage: float) -> Outcome:
    with RtspServer(clip, **damage) as server, watched(server.url) as watch:  # type: ignore[arg-type]
        seconds = watch.seconds_until_frames(100)
        retries = dict(watch.source.status.retries)
    words = f"{watch.num_frames} frames, {watch.num_tainted} tainted, lost {retries or 'never'}"
    tainted = watch.num_tainted > 0 if "corrupt" in damage else True
    return Outcome(
        fault, words, None, None, seconds < _PATIENCE_SECONDS and not retries and tainted
    )


def changed_size(clip: Path, other: Path) -> Outcome:
    with RtspServer(clip, other) as server, watched(server.url) as watch:
        watch.seconds_until(lambda: len(watch.sizes) == 2)
        retries = sum(watch.source.status.retries.values())
    words = " and ".join(f"{w}x{h}" for h, w in sorted(watch.sizes))
    return Outcome("size changes within the stream", words, None, None, retries == 0)


def times_go_back(clip: Path) -> Outcome:
    with RtspServer(clip, jump_seconds=-0.9) as server, watched(server.url) as watch:
        watch.seconds_until_frames(100)
    words = "published times rise" if watch.times_rise else "published times fall"
    return Outcome("camera's times go back", words, None, None, watch.times_rise)


def rows(folder: Path) -> dict[str, Callable[[], Outcome]]:
    noise = np.random.default_rng(0).integers(0, 255, (25, 180, 320, 3), np.uint8)
    clip = write_clip(folder / "clip.mp4", list(noise))
    other = write_clip(folder / "other.mp4", list(noise[:, :90, :160]))
    tables: dict[str, Callable[[], Outcome]] = {}
    for transport in ("tcp", "udp"):
        tables[f"kill-{transport}"] = lambda t=transport: killed(clip, t)  # type: ignore[misc]
        tables[f"freeze-{transport}"] = lambda t=transport: frozen(clip, t)  # type: ignore[misc]
        tables[f"silent-{transport}"] = lambda t=transport: silent(t)  # type: ignore[misc]
    for answer in ("401 Unauthorized", "403 Forbidden", "404 Not Found"):
        tables[f"answer-{answer[:3]}"] = lambda a=answer: refused(a)  # type: ignore[misc]
    for digest in (False, True):
        tables[f"password-{digest}"] = lambda d=digest: wrong_password(clip, d)  # type: ignore[misc]
    tables["end"] = lambda: ended(clip)
    tables["down"] = lambda: not_there_yet(clip)
    tables["mute"] = never_answers
    tables["unknown"] = unknown_host
    tables["bits"] = lambda: damaged(clip, "bit errors in 20 % of the pictures", corrupt=0.2)
    tables["drop"] = lambda: damaged(clip, "10 % of the pictures dropped", drop=0.1)
    tables["size"] = lambda: changed_size(clip, other)
    tables["back"] = lambda: times_go_back(clip)
    from benchmarks import network_faults  # which uses this file

    if network_faults.why_not():
        print(f"no rows of lost packets and cables: {network_faults.why_not()}", file=sys.stderr)
        return tables
    for name in network_faults.NAMES:
        tables[name] = lambda n=name: network_faults.in_own_network(n)  # type: ignore[misc]
    return tables


def main(arguments: list[str]) -> int:
    if why_unavailable():
        print(f"benchmarks.faults: {why_unavailable()}", file=sys.stderr)
        return 2
    print(f"{platform.processor() or platform.machine()}; RTSP over loopback, 320x180 at 25 fps")
    print(
        "| fault | the source says | reported after | frames again after | |\n|---|---|---|---|---|"
    )
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, run in rows(Path(folder)).items():
            if arguments and not any(word in name for word in arguments):
                continue
            outcome = run()
            outcomes.append(outcome)
            verdict = "ok" if outcome.passed else "FAILED"
            told, back = _shown(outcome.told_seconds), _shown(outcome.back_seconds)
            print(
                f"| {outcome.fault} | {outcome.state} | {told} | {back} | {verdict} |", flush=True
            )
    failed = [outcome.fault for outcome in outcomes if not outcome.passed]
    told_seconds = [o.told_seconds for o in outcomes if o.told_seconds is not None]
    back_seconds = [o.back_seconds for o in outcomes if o.back_seconds is not None]
    summary = {
        "benchmark": "faults",
        "rows": len(outcomes),
        "failed": failed,
        "told_seconds_median": float(np.median(told_seconds)) if told_seconds else None,
        "back_seconds_median": float(np.median(back_seconds)) if back_seconds else None,
        "back_seconds_p95": float(np.percentile(back_seconds, 95)) if back_seconds else None,
    }
    print(json.dumps(summary))
    return 1 if failed else 0


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
