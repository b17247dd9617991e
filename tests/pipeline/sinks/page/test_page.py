"""The page's server as clients meet it: real sockets, friendly, hostile and slow."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import cv2
import numpy as np
import psutil
import pytest

from pipeline.config import SourceConfig
from pipeline.sinks.page.page import Page
from pipeline.sinks.sink import ForgetsSources
from tests.support.page_stand import COLOR_BGR, Stand, feeding, picture_of, serving, split_body
from tests.support.waiting import PATIENCE_SECONDS, wait_until

TOKEN = "a-token-of-twenty-four-c"


def base(page: Page) -> str:
    return page.url.split("/#", maxsplit=1)[0].rstrip("/")


def ask(
    page: Page, method: str, path: str, *, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one request on its own connection."""
    url = urlsplit(base(page))
    assert url.hostname is not None
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=PATIENCE_SECONDS)
    connection.request(
        method, path, body, {name.replace("_", "-"): text for name, text in headers.items()}
    )
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def look(
    page: Page,
    scene: Callable[[aiohttp.ClientWebSocketResponse], Coroutine[Any, Any, Any]],
    **headers: str,
) -> Any:
    """Run a scene on a WebSocket connection."""

    async def run() -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(base(page) + "/live", headers=headers, max_msg_size=0) as connection,
        ):
            return await scene(connection)

    return asyncio.run(run())


async def next_frame(connection: aiohttp.ClientWebSocketResponse) -> tuple[dict[str, Any], bytes]:
    while True:
        message = await connection.receive(timeout=PATIENCE_SECONDS)
        assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
        if message.type is aiohttp.WSMsgType.BINARY:
            return split_body(message.data)


# --- what it shows -------------------------------------------------------------------------------


def test_a_viewer_gets_poses_and_their_picture_in_the_width_it_asked_for() -> None:
    stand = Stand()

    async def scene(connection: aiohttp.ClientWebSocketResponse) -> None:
        assert (await connection.receive_json())["type"] == "hello"
        await connection.send_json({"watch": {"cam1": 300, "door": 0}})
        seen: set[str] = set()
        while seen != {"cam1", "door"}:
            message, jpeg = await next_frame(connection)
            await connection.send_json({"seen": message["stream"]})
            seen.add(message["stream"])
            assert message["schema"] == "pose/1"
            assert [person["id"] for person in message["people"]] == [7, None]
            if message["stream"] == "door":
                assert jpeg == b""
            else:
                picture = picture_of(jpeg)
                assert picture.shape == (180, 320, 3)
                assert np.abs(picture - COLOR_BGR).max() < 6

    with serving(stand) as page, feeding(page, stand, "cam1", "door"):
        look(page, scene)


def test_what_is_not_acknowledged_is_not_followed_by_more() -> None:
    stand = Stand()

    async def scene(connection: aiohttp.ClientWebSocketResponse) -> None:
        await connection.send_json({"watch": {"cam1": 320}})
        first, _ = await next_frame(connection)
        second, _ = await next_frame(connection)
        while stand.index < second["frame"] + 10:
            await asyncio.sleep(0.01)
        await connection.send_json({"seen": "cam1"})
        newest, _ = await next_frame(connection)
        assert second["frame"] - first["frame"] <= 2
        assert newest["frame"] - second["frame"] >= 5, "an old frame was kept"

    with serving(stand) as page, feeding(page, stand, "cam1"):
        look(page, scene)


def test_a_camera_that_was_removed_and_came_again_goes_on_counting() -> None:
    """A browser shows nothing whose `seq` it has passed in this session."""
    stand = Stand()

    async def scene(connection: aiohttp.ClientWebSocketResponse) -> None:
        await connection.send_json({"watch": {"cam1": 0}})
        for expected in range(4):
            while not page._server.audience.wanted("cam1"):  # what was sent is not yet heard
                await asyncio.sleep(0.01)
            if expected == 2 and isinstance(page, ForgetsSources):  # as the stream does
                page.forget_source("cam1")
            page(stand.poses("cam1"))
            message, _ = await next_frame(connection)
            assert message["seq"] == expected
            await connection.send_json({"seen": "cam1"})

    with serving(stand) as page:
        look(page, scene)


def test_with_nobody_looking_no_picture_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    encoded: list[int] = []
    encode = cv2.imencode

    def noted(suffix: str, image: np.ndarray, settings: list[int]) -> Any:
        encoded.append(image.shape[1])
        return encode(suffix, image, settings)

    monkeypatch.setattr(cv2, "imencode", noted)

    async def scene(connection: aiohttp.ClientWebSocketResponse) -> None:
        await connection.send_json({"watch": {"cam1": 320}})
        async with aiohttp.ClientSession() as session:
            other = await session.ws_connect(connection._response.url)
            await other.send_json({"watch": {"cam1": 320}})
            viewers = page._server.audience._viewers
            while sum(viewer.is_due("cam1") for viewer in viewers) < 2:
                await asyncio.sleep(0.01)
            page(stand.poses("cam1"))
            page(stand.poses("door"))
            for viewer in (connection, other):
                await next_frame(viewer)

    with serving(stand) as page:
        page(stand.poses("cam1"))
        assert encoded == []
        look(page, scene)
        assert encoded == [320], "one picture for two viewers, none of what nobody watches"
        wait_until(lambda: not len(page._server.audience))
        page(stand.poses("cam1"))
        assert encoded == [320]


def test_mjpeg_is_drawn_upon_and_keeps_its_shape() -> None:
    stand = Stand()

    async def run(page: Page) -> bytes:
        async with (
            aiohttp.ClientSession() as session,
            session.get(base(page) + "/mjpeg/cam1?width=320") as answer,
        ):
            assert answer.status == 200
            assert answer.content_type == "multipart/x-mixed-replace"
            for _ in range(2):
                head = (await answer.content.readuntil(b"\r\n\r\n")).decode()
                assert head.lstrip().startswith("--posestream-frame\r\nContent-Type: image/jpeg")
                jpeg = await answer.content.readexactly(int(head.split("Content-Length: ")[1]))
            return jpeg

    with serving(stand) as page, feeding(page, stand, "cam1"):
        jpeg = asyncio.run(run(page))
    picture = picture_of(jpeg)
    assert picture.shape == (180, 320, 3)
    assert (np.abs(picture - COLOR_BGR).max(axis=-1) > 60).sum() > 200, "nothing was drawn"


def test_the_json_pages_tell_how_the_stream_does() -> None:
    stand = Stand()
    stand.stats.finished("cam1", latency_ms=30.0, people=2)
    with serving(stand) as page:
        streams = json.loads(ask(page, "GET", "/api/streams")[2])["streams"]
        assert [(stream["name"], stream["fps"]) for stream in streams] == [
            ("cam1", 15.0),
            ("door", 15.0),
        ]
        assert streams[0]["latency_ms"] == {"p50": 31.0, "p95": 44.0, "p99": 61.0}
        assert json.loads(ask(page, "GET", "/healthz")[2])["streams"]["cam1"] == "live"
        stand.stages["inference"] = False
        assert ask(page, "GET", "/healthz")[0] == 503
        status, headers, text = ask(page, "GET", "/metrics")
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
        assert b'pose_persons{stream="cam1"} 2.0' in text


def test_sources_are_added_and_removed_over_http() -> None:
    stand = Stand()
    with serving(stand) as page:
        body = b'{"input": "rtsp://me:geheim@cam/live", "name": "new"}'
        answer = ask(page, "POST", "/api/streams", body=body, Content_Type="application/json")
        assert (answer[0], json.loads(answer[2])) == (201, {"name": "new"})
        assert ask(page, "DELETE", "/api/streams/door")[0] == 200
        assert ask(page, "DELETE", "/api/streams/..%2f..%2fdoor")[0] == 404
    assert stand.removed == ["door"]
    with serving(stand, can_change=False) as page:
        assert ask(page, "DELETE", "/api/streams/door")[0] == 501


def test_an_address_in_use_is_one_line() -> None:
    with serving(Stand()) as page, pytest.raises(ValueError, match="address already in use; stop"):
        serving(Stand(), serve=urlsplit(base(page)).netloc).__enter__()


@pytest.mark.parametrize("serve", ["192.0.2.1:8000", "host.invalid:8000"])
def test_an_address_of_another_machine_is_one_line_with_advice(serve: str) -> None:
    with pytest.raises(ValueError, match="put this machine's own address there") as refusal:
        serving(Stand(), serve=serve).__enter__()
    assert f"cannot serve the page at {serve}: " in str(refusal.value)
    assert "another port" not in str(refusal.value)


# --- who gets in ---------------------------------------------------------------------------------

EVERYTHING = ["/", "/page.js", "/draw.js", "/page.css", "/icon.svg", "/sign_in.js", "/healthz",
              "/metrics", "/api/streams", "/live", "/mjpeg/cam1", "/nothing"]  # fmt: skip


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_sites_get_nothing_at_all(headers: dict[str, str]) -> None:
    with serving(Stand()) as page:
        for path in EVERYTHING:
            status, sent, body = ask(page, "GET", path, body=None, **headers)
            assert (status, list(json.loads(body))) == (403, ["error"]), path
            assert "evil" not in str(body)
            assert "Access-Control-Allow-Origin" not in sent
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            look(page, next_frame, **headers)
        assert refusal.value.status == 403


def test_every_answer_carries_the_headers_that_bind_the_browser() -> None:
    with serving(Stand()) as page:
        for path in [path for path in EVERYTHING if not path.startswith("/mjpeg")]:
            _, headers, _ = ask(page, "GET", path)
            assert headers["X-Content-Type-Options"] == "nosniff", path
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Server"] == "posestream"


def test_without_the_token_only_the_door_is_open(caplog: pytest.LogCaptureFixture) -> None:
    open_paths = {"/page.css", "/icon.svg", "/sign_in.js", "/healthz"}
    caplog.set_level(logging.DEBUG)
    with serving(Stand(), token=TOKEN) as page:
        assert page.url.endswith(f"/#token={TOKEN}")
        for path in EVERYTHING:
            status, _, body = ask(page, "GET", path)
            assert status == (200 if path in open_paths else 401), path
            assert b"cam1" not in body, path
        assert b"Token" in ask(page, "GET", "/")[2]
        assert ask(page, "GET", f"/?token={TOKEN}")[0] == 401, "tokens do not travel in URLs"
        assert ask(page, "POST", "/sign-in", body=b"wrong")[0] == 401
        assert ask(page, "POST", "/api/streams", body=b"{}")[0] == 401
        with pytest.raises(aiohttp.WSServerHandshakeError):
            look(page, next_frame)

        status, headers, _ = ask(page, "POST", "/sign-in", body=TOKEN.encode())
        cookie = headers["Set-Cookie"]
        assert status == 204
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        cookie = cookie.partition(";")[0]
        for path in ("/", "/api/streams", "/page.js", "/metrics"):
            assert ask(page, "GET", path, Cookie=cookie)[0] == 200, path
        assert ask(page, "GET", "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert (look(page, receive_hello, Cookie=cookie))["type"] == "hello"
    assert "a wrong token came from 127.0.0.1" in caplog.text
    assert TOKEN not in caplog.text


async def receive_hello(connection: aiohttp.ClientWebSocketResponse) -> Any:
    return await connection.receive_json()


@pytest.mark.parametrize(
    ("serve", "hosts"), [("0.0.0.0:0", ()), ("127.0.0.1:0", ("cameras.example",))]
)
def test_where_others_may_come_from_a_token_is_made_and_told_once(
    serve: str,
    hosts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(Stand(), serve=serve, hosts=hosts) as page:
        token = page.url.partition("#token=")[2]
        told = capsys.readouterr()
        assert told.err.count(token) == 1
        assert told.out == "", "poses may go there"
        assert token not in caplog.text
        assert ("can be reached from other machines" in caplog.text) is (not hosts)
        headers: dict[str, Any] = {"Host": hosts[0]} if hosts else {}
        assert ask(page, "GET", "/api/streams", **headers)[0] == 401
        headers["Authorization"] = f"Bearer {token}"
        assert ask(page, "GET", "/api/streams", **headers)[0] == 200


# --- who misbehaves ------------------------------------------------------------------------------


def raw(page: Page, data: bytes, *, seconds: float = PATIENCE_SECONDS) -> bytes:
    """The head of what the server answers to these bytes; empty if it just hangs up."""
    url = urlsplit(base(page))
    with socket.create_connection((url.hostname, url.port), timeout=seconds) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(data)
            while b"\r\n\r\n" not in answer and (chunk := connection.recv(65536)):
                answer += chunk
        return answer


HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /../../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /static/ HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /page.js%00.css HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /mjpeg/%ff%fe HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /mjpeg/cam1?width=x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /live HTTP/1.1\r\n" + HOST + b"\r\n", 426),
        (b"PUT /api/streams HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", None),
        (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 1000 + b"\r\n", 400),
        (b"POST /sign-in HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n", 400),
        (b"POST /sign-in HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /sign-in HTTP/1.1\r\n" + HOST + b"Content-Length: 50000\r\n\r\n" + b"a" * 50_000,
         413),
    ],
)  # fmt: skip
def test_hostile_requests_get_a_clear_status(request_bytes: bytes, status: int | None) -> None:
    with serving(Stand()) as page:
        answer = raw(page, request_bytes)
        assert b"Traceback" not in answer
        assert b"root:" not in answer
        if status is not None:
            assert answer.split()[1] == str(status).encode()
        assert ask(page, "GET", "/healthz")[0] == 200


def test_bodies_of_the_api_are_limited_and_typed() -> None:
    stand = Stand()
    with serving(stand) as page:
        large = b'{"input": "rtsp://a/' + b"a" * 40_000 + b'"}'
        json_type = {"Content_Type": "application/json"}
        assert ask(page, "POST", "/api/streams", body=large, **json_type)[0] == 413
        good = b'{"input": "rtsp://cam/live"}'
        assert ask(page, "POST", "/api/streams", body=good, Content_Type="text/plain")[0] == 415
        assert ask(page, "POST", "/api/streams", body=b"{", **json_type)[0] == 400
        body = b'{"input": "file:///etc/passwd"}'
        assert ask(page, "POST", "/api/streams", body=body, **json_type)[0] == 400
    assert stand.added == []


MANY = json.dumps({"watch": dict.fromkeys(map(str, range(300)), 1)})


@pytest.mark.parametrize(
    "message",
    ["", "{", "[]", "1", '{"watch": []}', '{"watch": {"cam1": "x"}}', '{"watch": {"cam1": true}}',
     '{"seen": 1}', '{"other": 1}', "[" * 20_000, MANY,
     "x" * 70_000, b"\x00\x01", b""],
)  # fmt: skip
def test_a_viewer_that_talks_nonsense_is_told_and_dropped(message: str | bytes) -> None:
    async def scene(connection: aiohttp.ClientWebSocketResponse) -> int | None:
        if isinstance(message, bytes):
            await connection.send_bytes(message)
        else:
            await connection.send_str(message)
        while not connection.closed:
            await connection.receive(timeout=PATIENCE_SECONDS)
        return connection.close_code

    with serving(Stand()) as page:
        assert look(page, scene) in (1007, 1008, 1009)
        assert ask(page, "GET", "/healthz")[0] == 200


def test_connections_beyond_the_limit_are_turned_away() -> None:
    with serving(Stand(), max_connections=3) as page:
        url = urlsplit(base(page))
        held = [socket.create_connection((url.hostname, url.port)) for _ in range(3)]
        wait_until(lambda: ask(page, "GET", "/healthz")[0] == 503)
        for connection in held:
            connection.close()
        wait_until(lambda: ask(page, "GET", "/healthz")[0] == 200)


def test_viewers_that_left_while_no_frame_came_hold_no_connection() -> None:
    request = b"GET /mjpeg/cam1 HTTP/1.1\r\n" + HOST + b"\r\n"
    with serving(Stand(), max_connections=4) as page:
        for _ in range(8):
            wait_until(  # the server may be busy with a goodbye
                lambda: b" 200 " in raw(page, request), "connections of those who left are kept"
            )
        wait_until(lambda: not len(page._server.audience), "somebody who left is still a viewer")
        assert ask(page, "GET", "/healthz")[0] == 200


def test_a_camera_is_added_whole_though_who_asked_for_it_hangs_up() -> None:
    stand = Stand()
    asked, go_on = threading.Event(), threading.Event()
    add = stand._add

    def slow(config: SourceConfig) -> str:
        asked.set()
        assert go_on.wait(PATIENCE_SECONDS)
        return add(config)

    stand._add = slow  # type: ignore[method-assign]
    body = b'{"input": "rtsp://cam/live", "name": "new"}'
    head = b"POST /api/streams HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    with serving(stand) as page:
        url = urlsplit(base(page))
        with socket.create_connection((url.hostname, url.port)) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert asked.wait(PATIENCE_SECONDS)
        time.sleep(0.2)  # the server hears of it
        go_on.set()
        assert ask(page, "GET", "/healthz")[0] == 200
    assert [config.name for config in stand.added] == ["new"]


def test_silent_and_deaf_clients_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sinks.page.server._CLIENT_SECONDS", 0.5)
    monkeypatch.setattr("pipeline.sinks.page.server._UNACKNOWLEDGED_SECONDS", 0.5)
    stand = Stand()
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)

    async def say_nothing(connection: aiohttp.ClientWebSocketResponse) -> int | None:
        await connection.send_json({"watch": {"cam1": 320}})
        while not connection.closed:
            await connection.receive(timeout=PATIENCE_SECONDS)
        return connection.close_code

    with serving(stand) as page:
        url = urlsplit(base(page))
        half = socket.create_connection((url.hostname, url.port))
        half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((url.hostname, url.port))
        deaf.sendall(b"GET /mjpeg/cam1 HTTP/1.1\r\n" + HOST + b"\r\n")
        half.settimeout(PATIENCE_SECONDS)
        assert half.recv(1000) == b""

        def is_dropped() -> bool:
            page(stand.poses("cam1", image=noise))
            return not len(page._server.audience)

        wait_until(lambda: len(page._server.audience))
        wait_until(is_dropped, "a client that takes nothing is still kept")
        with feeding(page, stand, "cam1"):
            assert look(page, say_nothing) == 1008
        for connection in (half, deaf):
            connection.close()


def test_noise_leaves_nothing_behind() -> None:
    """Random requests by the hundred: no descriptor, no thread, no viewer more than before."""
    stand = Stand()
    rng = random.Random(4)
    words = [b"GET ", b"POST ", b"/", b"/live", b"/mjpeg/cam1", b" HTTP/1.1\r\n", b"\r\n", HOST,
             b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
             b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"Content-Length: 9\r\n",
             b"Origin: http://localhost\r\n", b"\x00\xff\x81", b"\x81\xfe\xff\xff", b"%00", b"{}",
             b"/api/streams", b"Cookie: ", b"Transfer-Encoding: chunked\r\n"]  # fmt: skip
    process = psutil.Process(os.getpid())

    def noise(count: int) -> None:
        for _ in range(count):
            url = urlsplit(base(page))
            data = b"".join(rng.choices(words, k=rng.randrange(1, 20)))
            with socket.create_connection((url.hostname, url.port)) as connection:
                connection.sendall(data)
                connection.settimeout(0.002)
                with contextlib.suppress(ConnectionError, TimeoutError):
                    connection.recv(4096)

    with serving(stand) as page, feeding(page, stand, "cam1", fps=50):
        noise(100)
        wait_until(lambda: not len(page._server.audience))
        gc.collect()
        before = process.num_fds(), threading.active_count(), process.memory_info().rss
        noise(400)
        wait_until(
            lambda: process.num_fds() <= before[0] and not len(page._server.audience),
            lambda: f"{process.num_fds()} files, {before}, {len(page._server.audience)} viewers",
        )
        gc.collect()
        assert threading.active_count() <= before[1] + 1
        assert process.memory_info().rss < before[2] + 8_000_000
        assert ask(page, "GET", "/healthz")[0] == 200


def test_closing_it_ends_everything() -> None:
    stand = Stand()
    threads = threading.active_count()
    fds = psutil.Process().num_fds()

    async def scene(connection: aiohttp.ClientWebSocketResponse) -> int | None:
        await connection.send_json({"watch": {"cam1": 320}})
        await next_frame(connection)
        closing = asyncio.create_task(asyncio.to_thread(page.close))
        while not connection.closed:
            await connection.receive(timeout=PATIENCE_SECONDS)
        await closing
        return connection.close_code

    with serving(stand) as page:
        with feeding(page, stand, "cam1"):
            assert look(page, scene) == 1001
        page.close()  # once more does no harm
    gc.collect()
    assert threading.active_count() == threads
    assert psutil.Process().num_fds() <= fds
