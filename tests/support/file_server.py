"""An HTTP server of files on this machine that can be told to misbehave, request by request."""

from __future__ import annotations

import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PATIENCE_S = 60.0
"""After so long a server gives up what it waits for: a broken test ends all the same."""


class Request(NamedTuple):
    path: str
    """As it came: of a proxy it is a whole URL."""
    range: str | None
    authorization: str | None


class FileServer:
    """What it has, what it was asked for, and how it answers."""

    def __init__(self, address: str) -> None:
        self.url = address
        self.files: dict[str, bytes] = {}
        """By path, without the first slash."""
        self.requests: list[Request] = []
        self.manners: deque[Manner] = deque()
        """How the next requests are answered, one each; after them as a good server does."""
        self.done = threading.Event()
        """Set at the end of the test."""
        self.etag: str | None = None


class Answering(BaseHTTPRequestHandler):
    """One connection."""

    files: FileServer
    protocol_version = "HTTP/1.0"  # one request each, so that a cut connection is just that

    def do_GET(self) -> None:
        path, asked = self.path, self.headers.get("Range")
        self.files.requests.append(Request(path, asked, self.headers.get("Authorization")))
        content = self.files.files.get(urlsplit(path).path.removeprefix("/"))
        manner = self.files.manners.popleft() if self.files.manners else good
        if content is None and manner is good:
            self.send_error(404)
        else:
            manner(self, content or b"")

    def do_CONNECT(self) -> None:
        """As a proxy of https: pass on what comes, both ways."""
        self.files.requests.append(Request(self.path, None, None))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as there:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            back = threading.Thread(target=_pass_on, args=(there, self.connection), daemon=True)
            back.start()
            _pass_on(self.connection, there)
            back.join(PATIENCE_S)

    def start(self, content: bytes, *, begin: int = 0, length: int | None = None) -> bytes:
        """Send the head; what is to follow."""
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if self.files.etag is not None:
            self.send_header("ETag", self.files.etag)
        self.send_header("Content-Length", str(len(content) - begin if length is None else length))
        self.end_headers()
        return content[begin:]

    @property
    def begin(self) -> int:
        """The first byte that was asked for."""
        text = self.headers.get("Range")
        if text is None or self.headers.get("If-Range", self.files.etag) != self.files.etag:
            return 0
        return int(text.removeprefix("bytes=").removesuffix("-"))

    def log_message(self, *_: object) -> None:
        pass


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # whoever hangs up first
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


Manner = Callable[[Answering, bytes], None]


def good(answering: Answering, content: bytes) -> None:
    begin = answering.begin
    if begin < len(content):
        answering.wfile.write(answering.start(content, begin=begin))
        return
    answering.send_response(416)
    answering.send_header("Content-Range", f"bytes */{len(content)}")
    answering.end_headers()


def whole(answering: Answering, content: bytes) -> None:
    """Ranges are not known here."""
    answering.wfile.write(answering.start(content))


def without_length(answering: Answering, content: bytes) -> None:
    answering.send_response(200)
    answering.end_headers()
    answering.wfile.write(content)


def cut(num_bytes: int) -> Manner:
    """The connection breaks off after so many bytes."""

    def manner(answering: Answering, content: bytes) -> None:
        answering.wfile.write(answering.start(content, begin=answering.begin)[:num_bytes])

    return manner


def stalled(num_bytes: int, *, reached: threading.Event, go_on: threading.Event) -> Manner:
    """So many bytes, then nothing until the test says so."""

    def manner(answering: Answering, content: bytes) -> None:
        rest = answering.start(content, begin=answering.begin)
        answering.wfile.write(rest[:num_bytes])
        answering.wfile.flush()
        reached.set()
        go_on.wait(PATIENCE_S)
        answering.wfile.write(rest[num_bytes:])

    return manner


def silent(answering: Answering, _content: bytes) -> None:
    answering.files.done.wait(PATIENCE_S)


def silent_after(num_bytes: int) -> Manner:
    def manner(answering: Answering, content: bytes) -> None:
        answering.wfile.write(answering.start(content, begin=answering.begin)[:num_bytes])
        answering.wfile.flush()
        answering.files.done.wait(PATIENCE_S)

    return manner


def trickling(answering: Answering, content: bytes) -> None:
    """A byte now and then, for ever."""
    rest = answering.start(content, begin=answering.begin)
    try:
        for i in range(len(rest)):
            answering.wfile.write(rest[i : i + 1])
            answering.wfile.flush()
            if answering.files.done.wait(0.02):
                return
    except OSError:
        pass  # the client has had enough


def hang_up(_answering: Answering, _content: bytes) -> None:
    """Not a word."""


def status(code: int) -> Manner:
    def manner(answering: Answering, _content: bytes) -> None:
        answering.send_error(code)

    return manner


def redirect(url: str) -> Manner:
    def manner(answering: Answering, _content: bytes) -> None:
        answering.send_response(302)
        answering.send_header("Location", url)
        answering.end_headers()

    return manner


def enormous(answering: Answering, content: bytes) -> None:
    """Says that far more follows than any disk holds."""
    answering.wfile.write(answering.start(content, length=10**18))


def for_whom(authorization: str) -> Manner:
    """Asks for a password where the right one is missing."""

    def manner(answering: Answering, content: bytes) -> None:
        if answering.headers.get("Authorization") == authorization:
            good(answering, content)
            return
        answering.send_response(401)
        answering.send_header("WWW-Authenticate", 'Basic realm="weights"')
        answering.end_headers()

    return manner


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what the tests are about."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextmanager
def file_server(*, certificate: Path | None = None) -> Iterator[FileServer]:
    """A server on a port of its own.

    Args:
        certificate: PEM file with a certificate and its key: the server speaks https.
    """
    handler = type("Handler", (Answering,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        scheme = "http"
        if certificate is not None:
            import ssl

            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            scheme = "https"
        files = FileServer(f"{scheme}://127.0.0.1:{server.server_port}")
        handler.files = files  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield files
        finally:
            files.done.set()
            server.shutdown()
            thread.join(5)
