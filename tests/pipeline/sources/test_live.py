"""Cameras and streams: a real RTSP server, a real HTTP server, sockets that misbehave."""

from __future__ import annotations

import http.server
import logging
import math
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path

import av
import av.container
import cv2
import numpy as np
import pytest

from pipeline.sources.live import LiveSource, refused_seconds
from pipeline.sources.source import SourceError, SourceSettings
from pipeline.sources.video_reader import Picture
from tests.support.clips import (
    SIZE,
    grey,
    number_of,
    open_with,
    read,
    read_cut_off,
    reading,
    write_clip,
    written,
)
from tests.support.rtsp_server import RtspServer, why_unavailable
from tests.support.scripted_rtmp import scripted_rtmp
from tests.support.scripted_rtsp import scripted_rtsp
from tests.support.waiting import PATIENCE_SECONDS, wait_until

needs_rtsp_server = pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())


def test_a_refused_connection_is_an_error_without_reconnect() -> None:
    with pytest.raises(SourceError) as raised:
        read("rtsp://me:geheim@127.0.0.1:1/live", reconnect=False)
    assert "connection refused" in str(raised.value)
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("path", ["live", "clip.mp4"])
def test_a_name_that_does_not_resolve_is_said_so(path: str) -> None:
    with pytest.raises(SourceError, match=r"the name host\.invalid does not resolve") as raised:
        read(f"http://me:geheim@host.invalid/{path}", reconnect=False)
    assert "geheim" not in str(raised.value)


def test_a_server_that_hangs_up_is_tried_again_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = open_with(f"rtsp://me:geheim@127.0.0.1:{listener.getsockname()[1]}/live")
        with reading(source):
            for _ in range(3):
                listener.accept()[0].close()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "trying again" in caplog.text
    assert "geheim" not in caplog.text


# --- RTSP ----------------------------------------------------------------------------------------


@needs_rtsp_server
def test_rtsp_goes_on_after_a_kill_and_after_a_freeze(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RtspServer(clip) as server:
        source = open_with(server.url, read_timeout_seconds=0.5)
        assert source.live

        def once_lost(mend: Callable[[], None]) -> None:
            wait_until(lambda: source.status.state == "reconnecting")
            mend()

        numbers = []
        for frame in source.frames():
            numbers.append(frame.index)
            assert frame.size == SIZE
            assert frame.live
            if frame.index == 10:
                server.kill()
                threading.Thread(target=once_lost, args=(server.start,)).start()
            if frame.index == 50:
                server.freeze()
                threading.Thread(target=once_lost, args=(server.thaw,)).start()
            if frame.index == 80:
                source.stop()
    assert numbers == list(range(81))
    assert source.fps == 25.0
    lines = [record.getMessage() for record in caplog.records]
    assert next(line for line in lines if "connected" in line).endswith("128x96")
    assert "the stream ended" in caplog.text
    assert "no data for 0.5 seconds" in caplog.text
    assert caplog.text.count("connected again after") >= 2


@needs_rtsp_server
def test_a_connection_that_a_restarting_server_forgets_is_given_up_early(clip: Path) -> None:
    with RtspServer(clip) as server:
        source = open_with(server.url, open_timeout_seconds=10 * PATIENCE_SECONDS)
        with reading(source) as numbers:
            wait_until(lambda: bool(numbers))
            server.kill()
            with socket.create_server(("127.0.0.1", server.port)) as listener:
                forgotten = [listener.accept()[0] for _ in range(2)]
                before = len(numbers)
            server.start()
            wait_until(lambda: len(numbers) > before)
            for connection in forgotten:
                connection.close()


def test_a_camera_that_has_answered_is_given_more_time_with_every_try() -> None:
    source = LiveSource("cam", "rtsp://127.0.0.1:1/live", SourceSettings())

    def waits(answered_in_seconds: float) -> list[float]:
        source._answered_in_seconds = answered_in_seconds
        seconds = []
        for source._left in range(3):
            seconds.append(source._patience_seconds())
        return seconds

    assert waits(0.1) == [math.inf] * 3  # it has never worked
    source._note_picture(Picture(planes=(np.zeros(SIZE, np.uint8),)), 25.0)
    assert waits(0.1) == [1.5, 3.0, 6.0]
    assert waits(1.2) == [pytest.approx(seconds) for seconds in (3.6, 7.2, 14.4)]


@needs_rtsp_server
def test_rtsp_passwords_open_the_stream_and_stay_secret(
    clip: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("pipeline.sources.live.refused_seconds", lambda _: 10 * PATIENCE_SECONDS)
    with RtspServer(clip, user="me", password="geheim") as server:
        right, wrong = (server.url.replace("//", f"//me:{word}@") for word in ("geheim", "falsch"))
        assert len(read(right, max_frames=5)) == 5
        with pytest.raises(SourceError, match="401") as raised:
            read(wrong, reconnect=False)
        with pytest.raises(SourceError, match="404"):
            read(right.replace("live", "nothing"), reconnect=False)
        source = open_with(wrong)
        # It waits long before it tries again (a camera would lock it out), yet stops now.
        with reading(source):
            wait_until(lambda: source.status.state == "refused")
    for text in (str(raised.value), caplog.text, source.name):
        assert "geheim" not in text
        assert "falsch" not in text


@needs_rtsp_server
def test_rtsp_pictures_may_change_size_and_be_damaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (12, *SIZE, 3), np.uint8)
    small = write_clip(tmp_path / "small.mp4", list(noise))
    large = write_clip(tmp_path / "large.mp4", [grey(0, (144, 192))] * 12)
    with RtspServer(small, large, corrupt=0.2) as server:
        frames = read(server.url, max_frames=60)
    assert {frame.size for frame in frames} == {SIZE, (144, 192)}
    assert all(frame.planes[0].shape == frame.size for frame in frames)


@needs_rtsp_server
def test_stop_ends_a_silent_stream(clip: Path) -> None:
    with RtspServer(clip) as server:
        source = open_with(server.url, read_timeout_seconds=0.5)
        with reading(source):
            wait_until(lambda: source.status.state == "live")
            server.freeze()


@needs_rtsp_server
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("digest", [False, True])
def test_rtsp_opens_with_either_kind_of_password(clip: Path, transport: str, digest: bool) -> None:
    with RtspServer(clip, user="me", password="geheim", digest=digest) as server:
        url = server.url.replace("//", "//me:geheim@")
        assert len(read(url, transport=transport, max_frames=3)) == 3


@needs_rtsp_server
def test_pictures_with_bit_errors_are_tainted_until_the_next_key_frame(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (20, *SIZE, 3), np.uint8)
    path = write_clip(tmp_path / "noise.mp4", list(noise))
    sent = {frame.planes[0].tobytes() for frame in read(path)}
    with RtspServer(path, corrupt=0.1) as server:
        source = open_with(server.url, max_frames=80)
        frames = list(source.frames())
    tainted = [frame for frame in frames if frame.tainted]
    assert 0 < len(tainted) < len(frames)
    assert source.status.tainted == len(tainted)
    damaged = [frame for frame in frames if frame.planes[0].tobytes() not in sent]
    # Not all: a flipped bit may make another valid picture, which no decoder can tell.
    assert len(damaged) > 3
    assert np.mean([frame.tainted for frame in damaged]) > 0.7
    assert any(a.tainted and not b.tainted for a, b in pairwise(frames))


@needs_rtsp_server
def test_times_rise_when_the_cameras_go_back_and_when_it_restarts(clip: Path) -> None:
    with RtspServer(clip, jump_seconds=-0.9) as server:
        seconds: list[float] = []
        for frame in open_with(server.url, max_frames=80, read_timeout_seconds=0.5).frames():
            assert frame.pts_seconds is not None
            seconds.append(frame.pts_seconds)
            if frame.index == 40:
                server.kill()
                server.start()
    assert all(later > earlier for earlier, later in pairwise(seconds))


@needs_rtsp_server
def test_a_stream_that_is_not_there_yet_is_picked_up_and_its_states_are_told(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = RtspServer(clip)
    source = open_with(server.url)
    seen: list[str] = []

    def state_is(state: str) -> bool:
        now = source.status.state
        if not seen or seen[-1] != now:
            seen.append(now)
        return now == state

    with server, reading(source):
        server.kill()
        wait_until(lambda: source.status.retries.get("connection_refused", 0) > 1)
        assert state_is("connecting")
        assert source.status.reason == "connection refused"
        server.start()
        wait_until(lambda: state_is("live"))
        assert source.status.reason == ""
        server.freeze()
        wait_until(lambda: state_is("stalled"))
        wait_until(lambda: state_is("reconnecting"))
        assert source.status.reason == "no data for 2 seconds"
        server.thaw()
        wait_until(lambda: state_is("live"))
    told = [state for state, _ in groupby(state for state in seen if state != "stalled")]
    assert told == ["connecting", "live", "reconnecting", "live"]
    assert "stalled" in seen
    assert caplog.text.count("connection refused") == 1


@needs_rtsp_server
def test_mpegts_in_rtsp_tells_its_streams_late_and_is_read(clip: Path) -> None:
    with RtspServer(clip, mpegts=True) as server:
        frames = read(server.url, max_frames=5)
    assert [frame.size for frame in frames] == [SIZE] * 5


def test_where_a_quick_look_finds_no_video_a_longer_one_is_taken(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of sound stands in for what FFmpeg sees in too short a time."""
    caplog.set_level(logging.INFO)
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    seen: list[Path] = []

    def open_(source: LiveSource) -> av.container.InputContainer:
        seen.append(sound if source._quick or not clip.exists() else clip)
        return av.open(str(seen[-1]))

    monkeypatch.setattr(LiveSource, "_open", open_)
    source = LiveSource("cam", "rtsp://camera/live", SourceSettings(max_frames=40))
    assert len(list(source.frames())) == 40  # the clip has 30, so it connects twice
    assert seen == [sound, clip, clip]
    assert caplog.text.count("a quick look finds no video; taking a longer one") == 1
    clip.unlink()
    deaf = LiveSource("cam", "rtsp://camera/live", SourceSettings(reconnect=False))
    with pytest.raises(SourceError, match="the stream carries no video"):
        list(deaf.frames())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("wanted", "offered"), [("tcp", "udp"), ("udp", "tcp")])
def test_rtsp_that_does_not_offer_a_transport_is_asked_for_the_other(
    wanted: str, offered: str, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted_rtsp(offered=offered) as (url, asked):
        source = open_with(url, transport=wanted, read_timeout_seconds=0.2)
        with reading(source):
            wait_until(lambda: "PLAY" in asked)
    assert caplog.text.count(f"does not offer RTSP over {wanted}; trying {offered}") == 1


# --- what a camera may answer --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "state", "word"),
    [
        ("401 Unauthorized", "refused", "unauthorized"),
        ("403 Forbidden", "refused", "forbidden"),
        ("404 Not Found", "refused", "not_found"),
        ("453 Not Enough Bandwidth", "refused", "refused"),
        ("500 Internal Error", "connecting", "failed"),
        ("nonsense", "connecting", "invalid"),
    ],
)
def test_a_no_is_told_and_not_asked_again_at_once(answer: str, state: str, word: str) -> None:
    with scripted_rtsp(answer) as (url, asked):
        source = open_with(url.replace("//", "//me:geheim@"))
        with reading(source):
            wait_until(lambda: source.status.retries.get(word, 0) > 0)
            assert source.status.state == state
            assert "geheim" not in source.status.reason
            before = list(asked)
            if state == "refused":
                failing = scripted_rtsp("500 Internal Error")  # which is tried every second
                with failing as (other, others), reading(open_with(other)):
                    wait_until(lambda: others.count("DESCRIBE") > 2)
                assert asked == before
            else:
                wait_until(lambda: len(asked) > len(before))


def test_the_time_between_refusals_grows_to_five_minutes_and_is_never_the_same() -> None:
    waits = np.array([[refused_seconds(refusals) for refusals in range(8)] for _ in range(50)])
    assert waits.min() >= 30
    assert waits.max() <= 300
    expected = np.minimum(30 * 2.0 ** np.arange(8), 300)
    assert np.all(np.abs(waits - expected) <= 0.1 * expected + 1e-9)
    assert np.all(waits.std(axis=0) > 0)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_camera_that_promises_and_sends_nothing_is_silent(transport: str) -> None:
    with scripted_rtsp() as (url, asked):
        source = open_with(
            url, transport=transport, open_timeout_seconds=0.3, read_timeout_seconds=0.3
        )
        with reading(source):
            wait_until(lambda: source.status.retries.get("silent", 0) > 1)
    assert asked.count("PLAY") >= 2


def test_stop_does_not_wait_for_a_camera_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        source = open_with(
            f"rtsp://127.0.0.1:{port}/live", open_timeout_seconds=10 * PATIENCE_SECONDS
        )
        with reading(source):  # which would lose its patience long before
            listener.accept()


def test_a_flood_of_failures_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = LiveSource("cam", "rtsp://127.0.0.1:1/live", SourceSettings())
    picture = Picture(planes=(np.zeros(SIZE, np.uint8),))
    for _ in range(100):
        source._connected = False
        source._note_picture(picture, 25.0)
        source._note_lost(None)
    assert 2 <= len(caplog.records) <= 6


# --- cameras -------------------------------------------------------------------------------------


def test_a_camera_is_read_through_its_input_device() -> None:
    """FFmpeg's synthetic input device stands in for a camera, which no test machine has."""
    pattern = "testsrc2=size=128x96:rate=30"
    settings = SourceSettings(max_frames=5)
    source = LiveSource("camera0", pattern, settings, format_name="lavfi")
    frames = list(source.frames())
    assert [frame.size for frame in frames] == [SIZE] * 5
    assert source.live
    assert source.fps == 30.0


def test_a_camera_that_cannot_be_opened_is_an_error_even_with_reconnect(tmp_path: Path) -> None:
    no_device = written(tmp_path / "video0", b"")
    source = LiveSource("camera0", str(no_device), SourceSettings(), format_name="v4l2")
    with pytest.raises(SourceError, match="cannot be read"):
        list(source.frames())


# --- HTTP ----------------------------------------------------------------------------------------


_PLAYLIST = """#EXTM3U
#EXT-X-VERSION:3
#EXT-X-TARGETDURATION:1
#EXTINF:0.32,
{segment}
#EXT-X-ENDLIST
"""


@pytest.fixture
def web(clip: Path) -> Iterator[str]:
    """A web server: /camera is a motion-JPEG camera that hangs up after 8 pictures; /fine.m3u8 is
    HLS, /evil.m3u8 the same with a file of this machine for a segment; /whole.mp4 is a video,
    /cut.mp4 the same, but the connection breaks at its half; /rubbish is a camera whose pictures
    are none."""
    faststart = clip.with_name("faststart.mp4")
    noise = np.random.default_rng(2).integers(0, 255, (30, *SIZE, 3), np.uint8)
    write_clip(faststart, list(noise), container_options={"movflags": "faststart"})
    video = faststart.read_bytes()
    ts = write_clip(clip.with_name("segment.ts"), [grey(i) for i in range(8)])
    jpegs = [cv2.imencode(".jpg", grey(i))[1].tobytes() for i in range(8)]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path.endswith(".m3u8"):
                segment = f"file://{ts}" if self.path == "/evil.m3u8" else "segment.ts"
                self._send(_PLAYLIST.format(segment=segment).encode())
                return
            if self.path == "/segment.ts":
                self._send(ts.read_bytes())
                return
            if self.path == "/rubbish":
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for _ in range(3000):  # or until the client hangs up
                    self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n")
                    self.wfile.write(b"Content-Length: 40\r\n\r\n\xff\xd8" + bytes(38) + b"\r\n")
                    time.sleep(0.01)
                return
            if self.path in ("/camera", "/slow"):
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for jpeg in jpegs * (2 if self.path == "/slow" else 1):
                    time.sleep(0.1 if self.path == "/slow" else 0.0)
                    length = f"Content-Length: {len(jpeg)}\r\n\r\n".encode()
                    self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n" + length)
                    self.wfile.write(jpeg + b"\r\n")
                return
            self.send_header("Content-Length", str(len(video)))
            self.end_headers()
            self.wfile.write(video if self.path == "/whole.mp4" else video[: len(video) // 2])

        def _send(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence on standard error."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may hang up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_motion_jpeg_camera_is_live_and_comes_back(web: str) -> None:
    source = open_with(f"{web}/camera", max_frames=12)
    assert source.live
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(12))
    assert all(frame.full_range for frame in frames)
    assert [number_of(frame) for frame in frames] == [*range(8), *range(4)]


def test_motion_jpeg_is_timed_by_arrival(web: str) -> None:
    """FFmpeg says 25 frames a second, however fast they come."""
    frames = read(f"{web}/slow", max_frames=10)
    published = np.array([frame.pts_seconds for frame in frames])
    captured = np.array([frame.captured_ns / 1e9 for frame in frames])
    assert captured[-1] - captured[0] > 0.5
    np.testing.assert_allclose(published - published[0], captured - captured[0], atol=0.2)


def test_rtmp_is_live_and_comes_back_and_its_stream_key_stays_secret(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with scripted_rtmp(clip) as url:
        source = open_with(url, max_frames=60)
        assert source.live
        frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(60))
    assert all(frame.size == SIZE for frame in frames)
    assert [number_of(frame) for frame in frames] == 2 * list(range(30))
    assert "connected again after" in caplog.text
    assert "secret-key" not in caplog.text
    assert "secret-key" not in source.name


def test_data_without_a_picture_counts_as_lost(
    web: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.sources.live._PATIENCE_SECONDS", 0.3)
    caplog.set_level(logging.INFO)
    source = open_with(f"{web}/rubbish")
    with reading(source) as numbers:
        wait_until(lambda: source.status.retries.get("no_picture", 0) >= 2)
        assert source.status.state == "connecting"
        assert source.status.reason == "data comes, but no picture for 0.3 s"
    assert numbers == []
    assert set(source.status.retries) == {"no_picture"}
    assert caplog.text.count("no picture for 0.3 s; trying again") == 1


def test_a_video_on_a_web_server_is_a_file(web: str, tmp_path: Path) -> None:
    source = open_with(f"{web}/whole.mp4")
    assert not source.live
    assert source.num_frames == 30
    assert len(list(source.frames())) == 30
    half = (tmp_path / "faststart.mp4").read_bytes()
    half = half[: len(half) // 2]
    local = read_cut_off(written(tmp_path / "half.mp4", half))
    remote = read_cut_off(f"{web}/cut.mp4")
    # The broken connection is an error while reading: what the decoder still holds comes out too.
    assert len(remote) in (len(local) - 1, len(local))


def test_hls_is_read_but_cannot_name_a_file_of_this_machine(web: str) -> None:
    assert len(read(f"{web}/fine.m3u8", max_frames=8)) == 8
    with pytest.raises(SourceError, match="not a video that can be read"):
        read(f"{web}/evil.m3u8", options={"protocol_whitelist": "http,tcp,file"})


# --- packets without a server --------------------------------------------------------------------


@contextmanager
def _sending(url: str, container_format: str) -> Iterator[av.container.OutputContainer]:
    """A camera that sends grey pictures at 25 a second to an address, whoever listens there."""
    done = threading.Event()
    container = av.open(url, "w", format=container_format, options={"pkt_size": "1316"})
    options = {"bf": "0", "g": "5", "tune": "zerolatency", "preset": "ultrafast"}
    stream = container.add_stream("libx264", rate=25, options=options)
    stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
    container.start_encoding()

    def send() -> None:
        while not done.wait(0.04):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(7), format="bgr24")))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield container
    finally:
        done.set()
        sender.join()
        container.close()


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1]) & ~1  # RTP takes an even one


@pytest.mark.timeout(90)
def test_a_transport_stream_over_udp_is_live() -> None:
    url = f"udp://127.0.0.1:{_free_udp_port()}"
    with _sending(url, "mpegts"):
        frames = read(url, max_frames=8)
    assert [number_of(frame) for frame in frames] == [7] * 8
    assert frames[0].live


@pytest.mark.timeout(90)
def test_rtp_is_read_by_its_sdp_file(tmp_path: Path) -> None:
    port = _free_udp_port()
    description = (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=door\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 packetization-mode=1\n"
    )
    path = written(tmp_path / "door.sdp", description.encode())
    with _sending(f"rtp://127.0.0.1:{port}", "rtp"):
        frames = read(path, max_frames=8)
    assert {(frame.source, frame.live, number_of(frame)) for frame in frames} == {("door", True, 7)}
