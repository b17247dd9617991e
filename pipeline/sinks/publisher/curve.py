"""Keys of an encrypted publisher and of those who may subscribe: files, and a command to make them.

    keys/server.key_secret     the publisher's pair; stays here
    keys/server.key            its public key; every subscriber gets a copy
    keys/clients/alice.key     public key of a subscriber that is let in; delete it to shut her out
    keys/hand_out/alice.key_secret     alice's pair: give it to her and delete it here

`python -m pipeline.sinks.publisher.curve keys alice bob` makes what is missing of these. The files
are those of pyzmq's zmq.auth; encryption is CURVE (RFC 26 of ZeroMQ: Curve25519). This file knows
no sockets.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from common.files import write_atomically
from common.options import OptionParser

SERVER_SECRET = "server.key_secret"
SERVER_PUBLIC = "server.key"
CLIENTS = "clients"
HAND_OUT = "hand_out"

# A key is 40 characters, which are 32 bytes in Z85 (RFC 32 of ZeroMQ).
_KEY_LINE = re.compile(rb"""^\s*(public|secret)-key\s*=\s*["']([^"']{40})["']\s*$""", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Keys:
    """What a folder of keys held when it was read."""

    public: bytes
    """The publisher's, in Z85."""
    secret: bytes = field(repr=False)
    """The publisher's, in Z85."""
    clients: Mapping[bytes, str]
    """Name of each subscriber that is let in, by its public key (32 bytes)."""
    unreadable: tuple[str, ...] = ()
    """Client files that hold no key, with the reason; whoever they were meant for is not let in."""


def load_keys(folder: Path) -> Keys:
    """Read a folder of keys; see the module's docstring.

    Raises:
        ValueError: the publisher's own pair cannot be used; one line.
    """
    path = folder / SERVER_SECRET
    try:
        public, secret = _read_key_file(path)
        if secret is None or zmq.curve_public(secret) != public:
            raise ValueError("its two keys are not a pair")
    except ValueError as error:
        raise ValueError(
            f"curve keys: {path}: {error}; make keys with: "
            f"python -m pipeline.sinks.publisher.curve {folder} NAME"
        ) from None
    clients: dict[bytes, str] = {}
    unreadable = []
    for path in sorted((folder / CLIENTS).glob("*.key")):
        try:
            clients[z85.decode(_read_key_file(path)[0])] = path.stem
        except ValueError as error:
            unreadable.append(f"{path}: {error}")
    return Keys(public, secret, clients, tuple(unreadable))


def fingerprint(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Changes when a key file does: name, inode, size and time of change of each."""
    marks = []
    for path in [folder / SERVER_SECRET, *sorted((folder / CLIENTS).glob("*.key"))]:
        try:
            stat = path.stat()
        except OSError:  # deleted in between
            continue
        marks.append((path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(marks)


def is_open_to_others(folder: Path) -> bool:
    """Whether the publisher's secret key can be read by other users of this machine."""
    return bool((folder / SERVER_SECRET).stat().st_mode & 0o077)


def make_keys(folder: Path, names: Sequence[str]) -> list[Path]:
    """Make the publisher's pair, if there is none, and a pair for each name.

    Returns:
        The files that were written.
    Raises:
        ValueError: a name has a key already, or is no file name.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a client's name is letters, digits, . _ -, got {name!r}")
        if (folder / CLIENTS / f"{name}.key").exists():
            raise ValueError(
                f"{name} has a key; delete {folder / CLIENTS / name}.key to replace it"
            )
    for part in (folder, folder / CLIENTS, folder / HAND_OUT):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    if not (folder / SERVER_SECRET).exists():
        written += _write_pair(folder / SERVER_PUBLIC, folder / SERVER_SECRET)
    for name in names:
        secret_path = folder / HAND_OUT / f"{name}.key_secret"
        written += _write_pair(folder / CLIENTS / f"{name}.key", secret_path)
    return written


def _read_key_file(path: Path) -> tuple[bytes, bytes | None]:
    """Public and, where the file has one, secret key in Z85; ValueError says what is wrong."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from None
    keys = {name: _usable(key) for name, key in _KEY_LINE.findall(text)}
    if b"public" not in keys:
        raise ValueError('holds no public-key = "..." of 40 characters')
    return keys[b"public"], keys.get(b"secret")


def _usable(key: bytes) -> bytes:
    try:
        z85.decode(key)
    except (KeyError, struct.error):  # not a character, or not a number, of Z85
        raise ValueError("its key is not Z85") from None
    return key


def _write_pair(public_path: Path, secret_path: Path) -> list[Path]:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    lines = f'metadata\ncurve\n    public-key = "{public}"\n'
    write_atomically(secret_path, f'{lines}    secret-key = "{secret}"\n'.encode(), mode=0o600)
    write_atomically(public_path, lines.encode())
    return [secret_path, public_path]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OptionParser(
        prog="python -m pipeline.sinks.publisher.curve",
        description="Make keys for run_stream.py --curve-dir FOLDER.",
    )
    parser.add_argument("folder", type=Path, help="made if it is not there")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a subscriber that shall be let in"
    )
    options = parser.parse_args(arguments)
    try:
        written = make_keys(options.folder, options.names)
    except (ValueError, OSError) as error:
        print(f"curve keys: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    if options.names:
        print(f"Give each subscriber its file of {options.folder / HAND_OUT}, and delete it here;")
        print(f"all of them need {options.folder / SERVER_PUBLIC} as well.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
