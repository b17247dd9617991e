"""An RTMP server of a few lines: plays one clip, at its own speed, to whoever asks.

    with scripted_rtmp(clip) as url: ...     hangs up after the last picture

After Adobe's RTMP specification 1.0: handshake, chunks, and the three commands that players send.
"""

from __future__ import annotations

import io
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av

from tests.support.tcp_server import tcp_server

_SET_CHUNK_SIZE, _COMMAND, _VIDEO = 1, 20, 9
_HANDSHAKE = 1536
_CHUNK_SIZE = 1 << 20  # every message in one
_HEADER_SIZES = (11, 7, 3, 0)
_NULL = b"\x05"


@contextmanager
def scripted_rtmp(clip: Path) -> Iterator[str]:
    """The URL of a server that plays the clip's video."""
    tags = list(_flv_tags(clip))

    def serve(client: socket.socket, done: threading.Event) -> None:
        client.settimeout(5)
        _serve(client, done, tags)

    with tcp_server(serve) as port:
        yield f"rtmp://127.0.0.1:{port}/live/secret-key"


def _flv_tags(clip: Path) -> Iterator[tuple[float, bytes]]:
    """Seconds and payload of every video tag: RTMP carries what FLV files do."""
    buffer = io.BytesIO()
    with av.open(clip) as source, av.open(buffer, "w", format="flv") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = buffer.getvalue()
    position = 13  # the file's header, and the size of no tag before
    while position < len(data):
        kind, size = data[position], int.from_bytes(data[position + 1 : position + 4])
        milliseconds = int.from_bytes(data[position + 4 : position + 7])
        if kind == _VIDEO:
            yield milliseconds / 1e3, data[position + 11 : position + 11 + size]
        position += 11 + size + 4


def _serve(client: socket.socket, done: threading.Event, tags: list[tuple[float, bytes]]) -> None:
    try:
        with client, client.makefile("rb") as file:
            _shake_hands(client, file)
            client.sendall(_message(_SET_CHUNK_SIZE, struct.pack(">I", _CHUNK_SIZE), channel=2))
            _answer_until_play(client, file)
            started = time.monotonic()
            for seconds, payload in tags:
                done.wait(started + seconds - time.monotonic())
                client.sendall(_message(_VIDEO, payload, milliseconds=round(seconds * 1e3)))
    except (OSError, EOFError):
        return  # the player has gone


def _shake_hands(client: socket.socket, file: BinaryIO) -> None:
    asked = _exactly(file, 1 + _HANDSHAKE)
    client.sendall(b"\x03" + bytes(_HANDSHAKE) + asked[1:])
    _exactly(file, _HANDSHAKE)


def _answer_until_play(client: socket.socket, file: BinaryIO) -> None:
    for command in _commands(file):
        length = int.from_bytes(command[1:3])
        name, number = command[3 : 3 + length].decode(), command[3 + length : 12 + length]
        if name == "connect":
            client.sendall(_message(_COMMAND, _text("_result") + number + _NULL + _NULL))
        elif name == "createStream":
            one = b"\x00" + struct.pack(">d", 1.0)
            client.sendall(_message(_COMMAND, _text("_result") + number + _NULL + one))
        elif name == "play":
            status = b"\x03\x00\x05level" + _text("status") + b"\x00\x04code"
            status += _text("NetStream.Play.Start") + b"\x00\x00\x09"
            client.sendall(_message(_COMMAND, _text("onStatus") + number + _NULL + status))
            return


def _commands(file: BinaryIO) -> Iterator[bytes]:
    """Payloads of the player's commands, put together from their chunks."""
    chunk_size = 128
    headers: dict[int, tuple[int, int]] = {}  # length and kind of a channel's messages
    parts: dict[int, bytes] = {}
    for _ in itertools.count():
        first = _exactly(file, 1)[0]
        channel, header = first & 63, _exactly(file, _HEADER_SIZES[first >> 6])
        if len(header) >= 7:
            headers[channel] = int.from_bytes(header[3:6]), header[6]
        length, kind = headers[channel]
        part = parts.pop(channel, b"")
        part += _exactly(file, min(chunk_size, length - len(part)))
        if len(part) < length:
            parts[channel] = part
        elif kind == _SET_CHUNK_SIZE:
            chunk_size = int.from_bytes(part)
        elif kind == _COMMAND:
            yield part


def _message(kind: int, payload: bytes, *, milliseconds: int = 0, channel: int = 4) -> bytes:
    header = bytes([channel]) + milliseconds.to_bytes(3) + len(payload).to_bytes(3)
    return header + bytes([kind]) + struct.pack("<I", int(kind == _VIDEO)) + payload


def _text(text: str) -> bytes:
    return b"\x02" + len(text).to_bytes(2) + text.encode()


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
