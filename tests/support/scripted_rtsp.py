"""An RTSP server of a few lines that says what it is told to: refusals, and promises unkept.

    with scripted_rtsp("403 Forbidden") as (url, asked): ...     says no to DESCRIBE
    with scripted_rtsp() as (url, asked): ...                    agrees to all, sends no packet
    with scripted_rtsp(offered="udp") as (url, asked): ...       says no to RTP over TCP

For what a real server (rtsp_server.py) cannot be brought to do. `asked` collects the methods.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.tcp_server import tcp_server

_DESCRIPTION = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=scripted\r\nt=0 0\r\nc=IN IP4 127.0.0.1\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track\r\n"
)


@contextmanager
def scripted_rtsp(
    describe: str = "200 OK", *, offered: str = "tcp udp"
) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that answers DESCRIBE so, and the methods that it was asked for."""
    asked: list[str] = []

    def talk(client: socket.socket, done: threading.Event) -> None:
        client.settimeout(0.05)
        _talk(client, done, describe, asked, offered)

    with tcp_server(talk) as port:
        yield f"rtsp://127.0.0.1:{port}/live", asked


def _talk(
    client: socket.socket, done: threading.Event, describe: str, asked: list[str], offered: str
) -> None:
    text = ""
    with client:
        while not done.is_set():
            try:
                data = client.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            text += data.decode()
            while "\r\n\r\n" in text:
                request, _, text = text.partition("\r\n\r\n")
                asked.append(request.split()[0])
                client.sendall(_answer(request, describe, offered).encode())


def _answer(request: str, describe: str, offered: str) -> str:
    method = request.split(maxsplit=1)[0]
    headers = dict(line.split(": ", 1) for line in request.split("\r\n")[1:] if ": " in line)
    status = describe if method == "DESCRIBE" else "200 OK"
    wanted = "tcp" if "TCP" in headers.get("Transport", "") else "udp"
    if method == "SETUP" and wanted not in offered:
        status = "461 Unsupported Transport"
    lines = [f"RTSP/1.0 {status}", f"CSeq: {headers['CSeq']}", "Session: 1"]
    body = ""
    if method == "DESCRIBE" and status.startswith("200"):
        body = _DESCRIPTION
        lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
    if method == "SETUP" and status.startswith("200"):
        transport = headers["Transport"]
        ports = ";server_port=50000-50001" if "client_port" in transport else ""
        lines.append(f"Transport: {transport}{ports}")
    if status.startswith("401"):
        lines.append('WWW-Authenticate: Basic realm="camera"')
    return "\r\n".join([*lines, "", body])
