"""What strangers send: to the page's port, to its API, to the publisher's port, as a camera.

Each attack is a function of (dice, port) that does one random thing and returns the complaint of
what went wrong, or nothing. It knows how to be rude and what a clear answer is, no more; test_fuzz
lets them loose on a running stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp

from tests.support.tcp_server import tcp_server

SECRET = "geheim"
"""Part of every password that is sent; it must not turn up in a log or an answer."""
PATIENCE_SECONDS = 20.0
_HOST = b"Host: localhost\r\n"

_METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"TRACE", b"CONNECT", b"OPTIONS", b"HEAD", b"PATCH",
            b"PRI", b"get", b"G\x00T", b"", b"A" * 9000, b"M-SEARCH")  # fmt: skip
_PATHS = (
    b"/", b"/live", b"/mjpeg/nobody", b"/mjpeg/../../etc/passwd", b"/mjpeg/..%2f..%2fetc%2fpasswd",
    b"/%2e%2e/%2e%2e/etc/passwd", b"/page.js/../../run_stream.py", b"/static/../page.html",
    b"/page.js%00.css", b"/mjpeg/%00", b"/mjpeg/%ff%fe", b"/mjpeg/" + b"%41" * 3000, b"//evil/x",
    b"/api/streams/..%2f..", b"/api/streams/%0d%0aX:%20y", b"/a" * 5000, b"*", b"", b"http://evil/",
    b"/\x00", b"/\xff\xfe", b"/metrics?" + b"a=b&" * 2000, b"/healthz#x", b"/api/streams?token=1",
    b"/mjpeg/cam?width=" + b"9" * 5000, b"\\..\\..\\x", b"localhost:22",
)  # fmt: skip
_HEADERS = (
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n" * 2,
    b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 0x10\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: xchunked, identity\r\n",
    b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
    b"X: " + b"a" * 30_000 + b"\r\n", b"X: y\r\n" * 3000, b"X\x00Y: z\r\n", b" folded: x\r\n",
    b"No colon\r\n", b": no name\r\n", b"X: a\nY: b\r\n", b"Expect: 100-continue\r\n",
    b"Expect: teapot\r\n", b"Host: evil.example\r\n", b"Origin: http://evil.example\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"Cookie: " + b"posestream=" * 50 + b"\r\n", b"Authorization: Basic ////\r\n",
    b"Accept: */*;q=\xff\r\n", b"Accept: " + b"text/plain;q=x," * 400 + b"\r\n",
    b"Content-Encoding: gzip\r\n", b"Content-Encoding: br\r\n", b"Range: bytes=0-,-1,5-2\r\n",
    b"Content-Type: application/json\r\n", b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 99\r\n",
)  # fmt: skip
_BODIES = (b"", b"{}", b"0\r\n\r\n", b"5\r\nabcde\r\n0\r\n\r\n", b"zz\r\n",
           b"ffffffffffffffff\r\n", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x1f\x8b\x08" + b"\0" * 60,
           b"a" * 40_000)  # fmt: skip


def http_request(dice: random.Random, port: int) -> str:
    """A request put together from parts that are each odd, or none at all; some come by drops."""
    if dice.random() < 0.1:
        data = dice.randbytes(dice.randrange(1, 3000))
    else:
        version = dice.choice((b"HTTP/1.1",) * 5 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b""))
        line = b" ".join((dice.choice(_METHODS), dice.choice(_PATHS), version)) + b"\r\n"
        headers = b"".join(dice.choices(_HEADERS, k=dice.randrange(4)))
        host = _HOST if dice.random() < 0.9 else b""
        data = line + host + headers + b"\r\n" + dice.choice(_BODIES)
    answer = _talk(port, data, by_drops=dice.random() < 0.05)
    return _complaint(answer, data)


def _talk(port: int, data: bytes, *, by_drops: bool = False) -> bytes:
    """What comes back within half a second; the server may hang up at any time."""
    answer = b""
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection,
    ):
        if by_drops:
            for i in range(0, min(len(data), 60), 4):
                connection.sendall(data[i : i + 4])
                threading.Event().wait(0.01)
        else:
            connection.sendall(data)
        connection.settimeout(0.5)
        while len(answer) < 65_536 and (chunk := connection.recv(65_536)):
            answer += chunk
    return answer


def _complaint(answer: bytes, request: bytes) -> str:
    """Of an answer: it must be HTTP, no failure of the server, and hold nothing that it may not."""
    shown = f"{answer[:200]!r} to {request[:200]!r}"
    if answer and not answer.startswith(b"HTTP/"):
        return f"no HTTP: {shown}"
    if answer[8:].startswith(b" 5"):
        return f"a failure: {shown}"
    if any(word in answer for word in (b"Traceback", b"root:", b"import argparse")):
        return f"tells too much: {shown}"
    return ""


_ODD_BODIES: tuple[object, ...] = (
    {}, [], None, 1, "rtsp://a", {"input": 1}, {"input": ""}, {"input": "file:///etc/passwd"},
    {"input": "/etc/passwd"}, {"input": "concat:/etc/passwd|/etc/hosts"}, {"input": "0"},
    {"input": "demo"}, {"input": "subfile,,start,0,end,9,,:/etc/passwd"}, {"input": "pipe:0"},
    {"input": "rtsp://"}, {"input": "rtsp://a b"}, {"input": "rtsp://[::1"},
    {"input": "rtsp://127.0.0.1:99999/x"}, {"input": "rtsp://127.0.0.1:1/x", "max_fps": -1},
    {"input": "rtsp://127.0.0.1:1/x", "options": {"protocol_whitelist": "file"}},
    {"input": "rtsp://127.0.0.1:1/x", "pace": True}, {"input": "rtsp://127.0.0.1:1/x", "roi": "x"},
    {"input": f"rtsp://me:{SECRET}@127.0.0.1:1/x", "rotation": 45},
    {"input": f"rtsp://me:{SECRET}@127.0.0.1:1/x", "name": "cam"},
    {"input": f"rtsp://me:{SECRET}@127.0.0.1:1/x", "name": "a/b"},
    {"input": "rtsp://127.0.0.1:1/x", "name": "\x00"}, {"input": "http://127.0.0.1:1/x\x00"},
    {"input": "rtsp://127.0.0.1:1/x", "max_fps": 1e400}, {"input": "rtsp://\ud800/x"},
    {"input": "rtsp://127.0.0.1:1/x", "name": "\ud800"}, {"input": "rtsp://127.0.0.1:-1/x"},
    {"input": "rtsp://127.0.0.1:1/x", "roi": [0, 0, 1e308, 1e308], "rotation": "90"},
)  # fmt: skip
_ODD_TEXTS = (b"", b"{", b"\xff", b"[" * 8000, b'{"a":' * 3000, b'{"input": NaN}', b"1e999999999",
              b'{"input": "rtsp://a", "input": "file:///x"}', b"9" * 9000, b"\0", b"a" * 30_000,
              b'{"name": "' + b"x" * 14_000 + b'"}', b" " * 10_000_000)  # fmt: skip


def api_request(dice: random.Random, port: int) -> str:
    """A body for /api/streams that must not be taken, or a name that is not there."""
    if dice.random() < 0.2:
        name = dice.choice((b"nobody", b"%00", b"..%2fcam", b"%ff", b"x" * 7000, b"", b"cam%20"))
        data = b"DELETE /api/streams/" + name + b" HTTP/1.1\r\n" + _HOST + b"\r\n"
    else:
        body = dice.choice(_ODD_TEXTS)
        if dice.random() < 0.7:
            body = json.dumps(dice.choice(_ODD_BODIES)).encode()
        head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        data = b"POST /api/streams HTTP/1.1\r\n" + _HOST + head.encode() + body
    answer = _talk(port, data)
    if answer.startswith(b"HTTP/1.1 2"):
        return f"taken: {data[:300]!r}"
    if SECRET.encode() in answer:
        return f"tells a password: {answer[:300]!r}"
    return _complaint(answer, data)


_MESSAGES = (
    "", "{", "[]", "[" * 20_000, '{"seen": 1}', '{"seen": "nobody"}', '{"seen": "cam"}',
    '{"watch": {"cam": 1e999}}', '{"watch": {"cam": -99999999999999999999}}', '{"watch": null}',
    '{"watch": {"nobody": 320}}', '{"watch": {"\\u0000": 1}}', '{"watch": {"cam": 320}}',
    '{"watch": {"cam": 999999999}}', '{"watch": {"cam": true}}', "x" * 70_000, "NaN", "\ud7ff",
    json.dumps({"watch": {str(number): 1 for number in range(300)}}),
)  # fmt: skip


def websocket(dice: random.Random, port: int) -> str:
    """A viewer that sends nonsense, acknowledges what it never got, or floods."""
    return asyncio.run(_visit(dice, port))


async def _visit(dice: random.Random, port: int) -> str:
    async with aiohttp.ClientSession() as session:
        try:
            connection = await session.ws_connect(f"http://127.0.0.1:{port}/live")
        except aiohttp.ClientError as error:
            return f"a viewer was not let in: {error}"
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            for _ in range(dice.randrange(1, 6)):
                match dice.randrange(4):
                    case 0:
                        await connection.send_bytes(dice.randbytes(dice.randrange(3000)))
                    case 1:  # acknowledgements by the thousand
                        for _ in range(dice.randrange(3000)):
                            await connection.send_str('{"seen": "cam"}')
                    case _:
                        await connection.send_str(dice.choice(_MESSAGES))
            with contextlib.suppress(TimeoutError):
                while not connection.closed:
                    await connection.receive(timeout=0.2)
        code = connection.close_code
        await connection.close()
    known = (None, 1000, 1001, 1002, 1006, 1007, 1008, 1009)
    return "" if code in known else f"a viewer was left with {code}"


def websocket_frames(dice: random.Random, port: int) -> str:
    """Frames that the protocol does not know, that promise too much, or that never end."""
    handshake = b"GET /live HTTP/1.1\r\n" + _HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    handshake += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    frames = (b"\x81\x05abcde", b"\xf1\x80\0\0\0\0", b"\x83\x80\0\0\0\0",
              b"\x01\x80\0\0\0\0" * 500, b"\x82\xff\x7f" + b"\xff" * 11, b"\x88\x81\0\0\0\0x",
              b"\x89\xfe\x7f\xff\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x8a\x80\0\0\0\0" * 500,
              dice.randbytes(40))  # fmt: skip
    data = handshake + b"".join(dice.choices(frames, k=dice.randrange(1, 4)))
    return _complaint(_talk(port, data), data)


def zmq_garbage(dice: random.Random, port: int) -> str:
    """Bytes for the publisher's port: cut off greetings, commands too long, noise."""
    greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00"
    parts = (greeting, greeting[:5], b"CURVE" + bytes(15), b"NULL" + bytes(16), bytes(32),
             b"\x04\x05HELLO" + bytes(198), b"\x04\xc8\x05HELLO" + bytes(194),
             b"\x06" + b"\xff" * 8, b"GET / HTTP/1.1\r\n\r\n",
             dice.randbytes(dice.randrange(400)))  # fmt: skip
    data = b"".join(dice.choices(parts, k=dice.randrange(1, 6)))
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection,
    ):
        connection.sendall(data)
        connection.settimeout(0.05)
        connection.recv(1000)
    return ""


@contextmanager
def garbage_camera(seed: int = 0) -> Iterator[int]:
    """Port of a server that answers whatever RTSP asks with almost an answer, or with noise."""
    dice = random.Random(seed)

    def answer(request: bytes) -> bytes:
        lines = [b"RTSP/1.0 200 OK", b"CSeq: 1", b"Session: 1;timeout=-5",
                 b"Content-Type: application/sdp", b"Public: DESCRIBE, SETUP, PLAY",
                 b"Transport: RTP/AVP/TCP;interleaved=0-1", b"Content-Length: 2000",
                 b"WWW-Authenticate: Digest realm=" + b"x" * 3000,
                 b"Location: file:///etc/passwd"]  # fmt: skip
        sdp = b"v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n" + b"a=fmtp:96 " * 100
        if dice.random() < 0.3:
            lines[0] = dice.choice(
                (b"RTSP/1.0 302 Moved", b"HTTP/1.1 200 OK", b"RTSP/9.9 999 \xff")
            )
        text = bytearray(b"\r\n".join(dice.sample(lines[1:], k=dice.randrange(1, 8))))
        text[:0] = lines[0] + b"\r\n"
        for _ in range(dice.randrange(4)):
            text[dice.randrange(len(text))] = dice.randrange(256)
        packets = b"".join(b"$\0\0\x20" + dice.randbytes(32) for _ in range(20))
        return bytes(text) + b"\r\n\r\n" + dice.choice((sdp, packets, dice.randbytes(5000), b""))

    def serve(client: socket.socket, done: threading.Event) -> None:
        client.settimeout(0.2)
        with client, contextlib.suppress(OSError):
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    request = client.recv(4096)
                    if not request:
                        return
                    client.sendall(answer(request))

    with tcp_server(serve) as port:
        yield port
