"""HTTP for the page: one event loop in one thread; routes, limits, headers, viewers' connections.

    sink's thread --deliver--> | loop:  audience -> WebSocket: pose/1 + JPEG, acknowledged  (/live)
                               |                 -> multipart JPEG                  (/mjpeg/<name>)
                               |        page_api.py -> JSON, Prometheus
    every request -> page_security.Guard first

Nothing here waits for a client for longer than a few seconds, and nothing is kept for one beyond
two frames of each source. This file encodes nothing and knows no ZeroMQ.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError

from common.addresses import parse_address, why_not_here
from common.rare_log import RareLog
from pipeline.config import PageConfig
from pipeline.sinks.overlay import SIDE_COLORS
from pipeline.sinks.page.api import ApiError, PageApi, PageSubject
from pipeline.sinks.page.security import COOKIE, Guard
from pipeline.sinks.page.viewers import Audience, View, Viewer

_STATIC = Path(__file__).parent / "static"
_FILES = {
    "/page.js": "text/javascript",
    "/draw.js": "text/javascript",
    "/sign_in.js": "text/javascript",
    "/page.css": "text/css",
    "/icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "posestream",
}
_WIDTHS = (320, 480, 640, 960, 1280, 1920)  # pictures come in these; few, so that JPEGs are shared
_MAX_BODY_BYTES = 16_384
_MAX_MESSAGE_BYTES = 65_536  # from a viewer: the names of all it watches
_MAX_MESSAGES_A_SECOND = 2_000
_MAX_WATCHED = 256
_CLIENT_SECONDS = 10.0  # to send a request, or to take a frame
_UNACKNOWLEDGED_SECONDS = 20.0
_STATUS_SECONDS = 1.0
_SEND_BUFFER_BYTES = 131_072  # /mjpeg: what lies there is old
_BOUNDARY = "posestream-frame"

_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PageServer:
    """Binds and serves; see pipeline.sinks.page.page.Page for the arguments."""

    def __init__(
        self, config: PageConfig, subject: PageSubject, *, privacy: bool, min_keypoint_score: float
    ) -> None:
        assert config.serve is not None
        self.audience = Audience()
        """Who watches what."""
        try:
            self._address = parse_address(config.serve)
        except ValueError as error:
            raise ValueError(f"cannot serve the page at {config.serve!r}; {error}") from None
        self._guard = Guard(self._address, token=config.token, hosts=config.hosts)
        self._api = PageApi(subject)
        self._privacy = privacy
        self._max_width = config.max_width
        self._max_connections = config.max_connections
        self._hello = _hello(privacy=privacy, min_keypoint_score=min_keypoint_score)
        self._files = {name: (_STATIC / name[1:]).read_bytes() for name in _FILES}
        self._page = (_STATIC / "page.html").read_bytes()
        self._sign_in_page = (_STATIC / "sign_in.html").read_bytes()
        self._rare_log = RareLog(_log)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

        bound: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(bound,), name="page", daemon=True)
        self._thread.start()
        try:
            port = bound.result()
        except ValueError:
            self._thread.join()
            raise
        self._address = self._address._replace(port=port)
        self.url = self._say_where()

    def deliver(self, source: str, bodies: Mapping[View, bytes]) -> None:
        """A frame of the source, as somebody wanted it; from any thread."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._loop.call_soon_threadsafe(self.audience.deliver, source, bodies)

    def check(self) -> None:
        """RuntimeError if the server has failed."""
        if self._failure is not None:
            raise RuntimeError("the page's server failed") from self._failure

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: done before, or failed
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _say_where(self) -> str:
        url = f"http://{self._address}/"
        if self._guard.token is None:
            _log.info("page: %s", url)
            return url
        if not self._address.is_loopback:
            _log.warning(
                "the page at %s can be reached from other machines: whoever has the token sees "
                "every picture, and nothing is encrypted; serve 127.0.0.1:%d and reach it through "
                "ssh -L, or through a proxy with TLS whose name is in page.hosts",
                url, self._address.port,
            )  # fmt: skip
        # A fragment stays in the browser: no log and no Referer ever holds it.
        secret_url = f"{url}#token={self._guard.token}"
        if self._guard.token_is_new:
            # Not logged, and not on standard output, where poses may go.
            print(f"page, with a token made for this run: {secret_url}", file=sys.stderr)
        return secret_url

    # From here on: the server's thread.

    def _run(self, bound: Future[int]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(bound))
        except BaseException as error:
            if not bound.done():
                bound.set_exception(error)
                return
            _log.exception("the page's server failed")
            self._failure = error  # the next call raises it where the stream can see it
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self, bound: Future[int]) -> None:
        # Cancelled with their connection: a viewer who left might wait for a frame for ever. What a
        # request changes is done in a thread, to its end.
        runner = web.AppRunner(
            self._app(), access_log=None, logger=_http_log(), keepalive_timeout=_CLIENT_SECONDS,
            lingering_time=1.0, shutdown_timeout=1.0, handler_cancellation=True,
        )  # fmt: skip
        await runner.setup()
        try:
            server = await self._listen(runner)
            bound.set_result(server.sockets[0].getsockname()[1])
            await self._stopping.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> asyncio.Server:
        serve = runner.server
        assert serve is not None

        def connection() -> asyncio.BaseProtocol:
            is_full = len(serve.connections) >= self._max_connections
            return _TooMany() if is_full else serve()

        host, port = self._address
        try:
            return await self._loop.create_server(connection, host, port, backlog=64)
        except (OSError, UnicodeError) as error:
            number = getattr(error, "errno", None) or 0
            # A name without an address has a negative number, or none.
            reason = why_not_here(number if number > 0 else errno.EADDRNOTAVAIL, str(error))
            raise ValueError(f"cannot serve the page at {self._address}: {reason}") from None

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._guarded])
        app.router.add_get("/", self._get_page)
        for name in _FILES:
            app.router.add_get(name, self._get_file)
        app.router.add_post("/sign-in", self._sign_in)
        app.router.add_get("/live", self._live, allow_head=False)
        app.router.add_get("/mjpeg/{name}", self._mjpeg, allow_head=False)
        app.router.add_get("/api/streams", self._get_streams)
        app.router.add_post("/api/streams", self._add_stream)
        app.router.add_delete("/api/streams/{name}", self._remove_stream)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics)
        app.on_response_prepare.append(_add_headers)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        refusal = self._guard.refusal(
            request.method, request.headers, opens_page=request.path == "/"
        )
        if refusal is not None:
            self._rare_log.warning(f"page: a request was refused: {refusal.reason}")
            return _error(refusal.status, refusal.reason)
        if not (request.path in _OPEN or self._guard.knows(request.headers)):
            return _error(401, "a token is needed")
        try:
            return await handler(request)
        except ApiError as error:
            return _error(error.status, error.reason)
        except web.HTTPException as error:  # no such path, wrong method, body too large
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _error(error.status, error.reason.lower(), headers)

    # --- pages -----------------------------------------------------------------------------------

    async def _get_page(self, request: web.Request) -> web.Response:
        if self._guard.knows(request.headers):
            return web.Response(body=self._page, content_type="text/html", charset="utf-8")
        return web.Response(
            body=self._sign_in_page, content_type="text/html", charset="utf-8", status=401
        )

    async def _get_file(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._files[request.path], content_type=_FILES[request.path], charset="utf-8"
        )

    async def _sign_in(self, request: web.Request) -> web.Response:
        shown = (await _body(request)).decode("utf-8", "replace").strip()
        if not self._guard.is_token(shown):
            self._rare_log.warning(f"page: a wrong token came from {request.remote}")
            return _error(401, "this is not the token")
        response = web.Response(status=204)
        response.set_cookie(
            COOKIE, self._guard.cookie_value, httponly=True, samesite="Strict", path="/",
            secure=request.headers.get("Origin", "").startswith("https://"),
        )  # fmt: skip
        return response

    # --- JSON ------------------------------------------------------------------------------------

    async def _get_streams(self, _: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._api.streams))

    async def _add_stream(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return _error(415, "the body must be application/json")
        body = await _body(request)
        return web.json_response(await asyncio.to_thread(self._api.add, body), status=201)

    async def _remove_stream(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(await asyncio.to_thread(self._api.remove, name))

    async def _healthz(self, request: web.Request) -> web.Response:
        health = partial(self._api.health, in_detail=self._guard.knows(request.headers))
        status, answer = await asyncio.to_thread(health)
        return web.json_response(answer, status=status)

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        body, content_type = await asyncio.to_thread(self._api.metrics, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    # --- viewers ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _viewer(self) -> AsyncIterator[Viewer]:
        """A viewer whose task ends when the server does."""
        task = asyncio.current_task()
        assert task is not None
        viewer = self.audience.join()
        self._tasks.add(task)
        try:
            yield viewer
        finally:
            self._tasks.discard(task)
            self.audience.leave(viewer)

    async def _mjpeg(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in await asyncio.to_thread(self._api.names):
            return _error(404, "there is no stream of that name")
        try:
            width = int(request.query.get("width", self._max_width))
        except ValueError:
            return _error(400, "width must be a number of pixels")
        response = web.StreamResponse(
            headers={"Content-Type": f"multipart/x-mixed-replace; boundary={_BOUNDARY}"}
        )
        _keep_little(request.transport)
        await response.prepare(request)
        async with self._viewer() as viewer:
            viewer.watch({name: View("picture", self._width(width) or _WIDTHS[0])})
            with contextlib.suppress(ConnectionError, TimeoutError):
                while True:
                    jpeg = await viewer.receive()
                    async with asyncio.timeout(_CLIENT_SECONDS):
                        await response.write(_part(jpeg))
                    viewer.acknowledge(name)
        _abort(request)
        return response

    async def _live(self, request: web.Request) -> web.StreamResponse:
        connection = web.WebSocketResponse(
            max_msg_size=_MAX_MESSAGE_BYTES, compress=False, heartbeat=_CLIENT_SECONDS, timeout=1.0
        )
        if not connection.can_prepare(request):
            return _error(426, "this is for WebSockets", {"Upgrade": "websocket"})
        await connection.prepare(request)
        async with self._viewer() as viewer:
            sending = asyncio.create_task(self._send(request, connection, viewer))
            telling = asyncio.create_task(self._tell(request, connection, viewer))
            try:
                await self._listen_to(connection, viewer)
            finally:
                for task in (sending, telling):
                    task.cancel()
                await asyncio.gather(sending, telling, return_exceptions=True)
                with contextlib.suppress(ConnectionError):
                    await connection.close(code=WSCloseCode.GOING_AWAY)
        return connection

    async def _send(
        self, request: web.Request, connection: web.WebSocketResponse, viewer: Viewer
    ) -> None:
        """Frames, until the client takes no more."""
        try:
            while True:
                body = await viewer.receive()
                async with asyncio.timeout(_CLIENT_SECONDS):
                    await connection.send_bytes(body)
        except (ConnectionError, TimeoutError):
            _abort(request)

    async def _tell(
        self, request: web.Request, connection: web.WebSocketResponse, viewer: Viewer
    ) -> None:
        """The state of every source, once a second; ends a client that has fallen asleep."""
        try:
            await connection.send_str(self._hello)
            while viewer.silent_seconds < _UNACKNOWLEDGED_SECONDS:
                told = await asyncio.to_thread(self._api.streams)
                async with asyncio.timeout(_CLIENT_SECONDS):
                    await connection.send_str(json.dumps({"type": "status", **told}))
                viewer.heard = 0
                await asyncio.sleep(_STATUS_SECONDS)
            await connection.close(code=WSCloseCode.POLICY_VIOLATION, message=b"too slow")
        except (ConnectionError, TimeoutError):
            _abort(request)

    async def _listen_to(self, connection: web.WebSocketResponse, viewer: Viewer) -> None:
        """What the client wants to see, and what it has seen."""
        async for message in connection:
            viewer.heard += 1
            if message.type is not WSMsgType.TEXT or viewer.heard > _MAX_MESSAGES_A_SECOND:
                await connection.close(
                    code=WSCloseCode.POLICY_VIOLATION, message=b"expected little, and as text"
                )
                return
            try:
                self._obey(viewer, json.loads(message.data))
            except (ValueError, RecursionError):
                await connection.close(
                    code=WSCloseCode.INVALID_TEXT,
                    message=b'expected {"watch": {name: width}} or {"seen": name}',
                )
                return

    def _obey(self, viewer: Viewer, request: Any) -> None:
        """ValueError: that is not a request."""
        match request:
            case {"seen": str(name)}:
                viewer.acknowledge(name)
            case {"watch": dict(wants)} if len(wants) <= _MAX_WATCHED:
                if not all(type(width) is int for width in wants.values()):
                    raise ValueError("widths are numbers")
                viewer.watch(
                    {name: View("message", self._width(width)) for name, width in wants.items()}
                )
            case _:
                raise ValueError("unknown request")

    def _width(self, wanted: int) -> int:
        """The picture's width for a canvas of this width; 0: no picture."""
        if wanted <= 0:
            return 0
        enough = (width for width in _WIDTHS if width >= wanted)
        return min(next(enough, _WIDTHS[-1]), self._max_width)


_OPEN = {"/", "/healthz", "/sign-in", "/sign_in.js", "/page.css", "/icon.svg"}  # without a token


class _TooMany(asyncio.Protocol):
    """Turns a connection away that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        transport.close()


def _http_log() -> logging.Logger:
    """For our failures; that a request was not HTTP is the client's, and would flood the log."""

    def is_ours(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))

    log = logging.getLogger(f"{__name__}.http")
    log.filters = [is_ours]
    return log


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers[name] = value


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> web.Response:
    if status == 401:
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    return web.json_response({"error": reason}, status=status, headers=headers)


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_CLIENT_SECONDS):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, "the body did not come") from None


def _hello(*, privacy: bool, min_keypoint_score: float) -> str:
    """What a browser must know to draw."""
    from nets.skeletons import SKELETONS

    return json.dumps(
        {
            "type": "hello",
            "privacy": privacy,
            "min_keypoint_score": min_keypoint_score,
            "colors": {side: f"rgb({r},{g},{b})" for side, (b, g, r) in SIDE_COLORS.items()},
            "skeletons": {
                name: {
                    "limbs": skeleton.limbs,
                    "sides": [skeleton.side(k) for k in range(skeleton.num_keypoints)],
                }
                for name, skeleton in SKELETONS.items()
            },
        }
    )


def _part(jpeg: bytes) -> bytes:
    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return head.encode() + jpeg + b"\r\n"


def _keep_little(transport: asyncio.Transport | None) -> None:
    """Let the client's backlog be short: what it has not taken yet grows old."""
    if transport is not None:
        transport.set_write_buffer_limits(high=0)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)


def _abort(request: web.Request) -> None:
    """End a connection at once: a polite end would wait for a client that takes nothing."""
    if request.transport is not None:
        request.transport.abort()
