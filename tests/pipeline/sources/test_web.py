"""What a URL is, by what its server answers: real servers, HLS in all its forms, pages."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.sources.open import is_live, open_source
from pipeline.sources.source import SourceError, SourceSettings
from pipeline.sources.web import ask, index_is_at_the_end
from tests.support.clips import grey, number_of, open_with, read, write_clip, written

MASTER = """#EXTM3U
#EXT-X-STREAM-INF:BANDWIDTH=900000,AVERAGE-BANDWIDTH=999,RESOLUTION=64x48,CODECS="avc1.1,x"
small.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=100000,RESOLUTION=128x96
large.m3u8
#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1,RESOLUTION=999x999,URI="evil.m3u8"
"""


class _Site:
    """Pages by path: a body, or a function that answers; notes what was asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.kinds: dict[str, str] = {}
        self.asked: list[str] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[_Site]:
    with _serving(_Site()) as running:
        yield running


@contextmanager
def _serving(site: _Site) -> Iterator[_Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            page = site.pages.get(self.path)
            if page is None:
                self.send_error(404)
            elif callable(page):
                page(self)
            else:
                self.send_response(200)
                self.send_header("Content-Type", site.kinds.get(self.path, "video/mp4"))
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Silence on standard error."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may hang up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def _segment(folder: Path, first: int, *, size: tuple[int, int] = (96, 128)) -> bytes:
    """Ten pictures of a second, as the `first`-th of a transport stream."""
    path = folder / f"{first}-{size[0]}.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "g": "10"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(grey((first + i) % 30, size), format="bgr24")
            frame.pts = first + i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _playlist(names: list[str], *, sequence: int = 0, is_over: bool = True) -> bytes:
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{sequence}"]
    for name in names:
        lines += ["#EXTINF:1.0,", name]
    return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if is_over else []), ""]).encode()


@pytest.mark.timeout(60)
def test_a_finished_playlist_is_a_file(site: _Site, tmp_path: Path) -> None:
    site.pages = {
        "/vod.m3u8": _playlist(["0.ts", "1.ts"]),
        "/0.ts": _segment(tmp_path, 0),
        "/1.ts": _segment(tmp_path, 10),
    }
    source = open_with(f"{site.url}/vod.m3u8")
    assert not source.live
    assert [number_of(frame) for frame in source.frames()] == list(range(20))
    assert source.status.state == "ended"


@pytest.mark.timeout(60)
def test_of_variants_only_the_best_is_downloaded(site: _Site, tmp_path: Path) -> None:
    site.pages = {
        "/master.m3u8": MASTER.encode(),
        "/small.m3u8": _playlist(["s.ts"]),
        "/large.m3u8": _playlist(["l.ts"]),
        "/s.ts": _segment(tmp_path, 0, size=(48, 64)),
        "/l.ts": _segment(tmp_path, 0),
    }
    assert {frame.size for frame in read(f"{site.url}/master.m3u8")} == {(96, 128)}
    assert site.asked.count("/l.ts") == 1
    assert "/s.ts" not in site.asked
    assert {frame.size for frame in read(f"{site.url}/master.m3u8", video_stream=0)} == {(48, 64)}


@pytest.mark.timeout(60)
def test_a_live_playlist_is_paced_and_ends_when_it_says_so(site: _Site, tmp_path: Path) -> None:
    for i in range(4):
        site.pages[f"/{i}.ts"] = _segment(tmp_path, 10 * i)
    site.pages["/live.m3u8"] = _playlist(["0.ts", "1.ts", "2.ts"], is_over=False)
    source = open_with(f"{site.url}/live.m3u8", read_timeout_seconds=0.2)
    assert source.live
    captured = []
    for frame in source.frames():
        captured.append((frame.captured_ns / 1e9, frame.pts_seconds))
        if frame.index == 15:
            names = ["1.ts", "2.ts", "3.ts"]
            site.pages["/live.m3u8"] = _playlist(names, sequence=1, is_over=True)
    moments, pts = np.array(captured).T
    assert len(moments) == 40
    np.testing.assert_allclose(np.diff(pts), 0.1, atol=1e-3)
    # Never early; a busy machine may be late.
    assert ((moments - moments[0]) - (pts - pts[0]) > -0.05).all()
    assert not source.status.retries


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "text/html", "web page, not a video"),
        (b"\n <html><body>camera</body></html>", "application/octet-stream", "yt-dlp -g"),
        (b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">', "application/dash+xml", "DASH"),
        (b'{"error": 1}', "application/json", "answers with application/json"),
    ],
)
def test_what_is_no_video_is_one_line(site: _Site, body: bytes, kind: str, words: str) -> None:
    site.pages["/live"], site.kinds["/live"] = body, kind
    with pytest.raises(SourceError, match=words) as raised:
        open_source(site.url.replace("//", "//me:geheim@") + "/live")
    assert "geheim" not in str(raised.value)
    site.pages = {}  # the camera was down when it was added, then shows its page
    source = open_with(f"{site.url}/live")
    site.pages["/live"] = body
    with pytest.raises(SourceError, match=words):
        list(source.frames())


@pytest.mark.timeout(60)
def test_a_video_without_a_telling_name_is_a_file(site: _Site, clip: Path) -> None:
    site.pages["/download?id=7"] = clip.read_bytes()
    source = open_with(f"{site.url}/download?id=7")
    assert not source.live
    assert len(list(source.frames())) == 30
    assert open_with(f"{site.url}/download?id=7", live=True).live


@pytest.mark.timeout(60)
def test_an_index_at_the_end_needs_ranges(site: _Site, tmp_path: Path) -> None:
    noise = list(np.random.default_rng(0).integers(0, 255, (30, 96, 128, 3), np.uint8))
    path = write_clip(tmp_path / "late.mp4", noise)
    assert index_is_at_the_end(path.read_bytes()[:4096])
    site.pages["/late.mp4"] = path.read_bytes()
    with pytest.raises(SourceError, match=r"its index lies at its end.*faststart"):
        open_with(f"{site.url}/late.mp4")
    early = write_clip(tmp_path / "early.mp4", noise, container_options={"movflags": "faststart"})
    site.pages["/early.mp4"] = early.read_bytes()
    assert len(read(f"{site.url}/early.mp4")) == 30


@pytest.mark.timeout(60)
def test_multipart_is_a_camera_and_one_picture_is_a_file(site: _Site) -> None:
    jpeg = cv2.imencode(".jpg", grey(3))[1].tobytes()

    def camera(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        handler.end_headers()

    site.pages = {"/camera": camera, "/snapshot": jpeg}
    site.kinds["/snapshot"] = "image/jpeg"
    assert is_live(f"{site.url}/camera", SourceSettings())
    (frame,) = read(f"{site.url}/snapshot")
    assert number_of(frame) == 3


@pytest.mark.timeout(60)
def test_what_cannot_be_told_says_so_when_it_ends(
    site: _Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = _segment(tmp_path, 0)

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)  # neither a length nor a name
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    site.pages["/stream"] = stream
    frames = read(f"{site.url}/stream", max_frames=15)  # twice the same, for it is read again
    assert frames[0].live
    assert "does not say whether it is a file" in caplog.text


@pytest.mark.timeout(60)
def test_a_password_is_sent_and_goes_to_the_variant_too(site: _Site, tmp_path: Path) -> None:
    login = "Basic " + base64.b64encode(b"me:geh/eim").decode()
    bodies = {"/m.m3u8": MASTER.encode(), "/large.m3u8": _playlist(["l.ts"])}
    bodies["/l.ts"] = _segment(tmp_path, 0)

    def guarded(handler: http.server.BaseHTTPRequestHandler) -> None:
        is_known = handler.headers["Authorization"] == login
        handler.send_response(200 if is_known else 401)
        handler.send_header("WWW-Authenticate", 'Basic realm="camera"')
        body = bodies[handler.path] if is_known else b""
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    site.pages = dict.fromkeys(bodies, guarded)
    assert len(read(site.url.replace("//", "//me:geh%2Feim@") + "/m.m3u8")) == 10


@pytest.mark.timeout(60)
def test_a_playlist_names_no_file_of_ours_and_no_endless_chain(site: _Site, tmp_path: Path) -> None:
    secret = written(tmp_path / "secret.m3u8", _playlist(["0.ts"]))
    head = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n"
    site.pages["/file.m3u8"] = f"{head}file://{secret}\n".encode()
    site.pages["/ring.m3u8"] = f"{head}ring.m3u8?again\n".encode()
    site.pages["/ring.m3u8?again"] = f"{head}ring.m3u8\n".encode()
    for path in ("/file.m3u8", "/ring.m3u8"):
        answer = ask(site.url + path, options={}, timeout_seconds=5)
        assert answer is not None
        assert answer.url.startswith(site.url)
    assert len(site.asked) == 3


@pytest.mark.timeout(60)
def test_who_does_not_answer_is_a_camera_that_is_down() -> None:
    assert ask("http://127.0.0.1:1/live", options={}, timeout_seconds=5) is None
    assert open_with("http://127.0.0.1:1/live").live
