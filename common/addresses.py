"""Addresses to listen at: read, checked, and one wording for what is wrong with them."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from typing import NamedTuple
from urllib.parse import urlsplit

_MAX_PORT = 65535  # ZeroMQ itself takes 99999 for 34463
_LOOPBACK = "127.0.0.1"

IN_USE = "address already in use; stop what listens there or choose another port or path"


class Address(NamedTuple):
    """A host and a TCP port."""

    host: str
    """Without brackets; `0.0.0.0` and `::` are all of this machine's addresses."""
    port: int
    """0 takes a free one."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        ip = as_ip(self.host)
        return self.host in ("localhost", "lo") if ip is None else ip.is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`host:port`, or only a port, which is this machine's loopback.

    Raises:
        ValueError: it is neither; the text says what was expected, to stand behind a comma.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        host = _LOOPBACK
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    known_port = port.isascii() and port.isdecimal() and int(port) <= _MAX_PORT
    known_host = bool(host) and "/" not in host and (":" in host) == bracketed
    if not known_port or not known_host:
        raise ValueError("expected host:port, for example 127.0.0.1:8000")
    return Address(host, int(port))


def as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The host as a number; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def why_path_taken(path: str) -> str | None:
    """Why no socket can be made at a path, in words; None where nobody uses it.

    ZeroMQ removes whatever is there before it binds, a file or another program's socket.

    Args:
        path: of a Unix socket; `@name` is a name without a file (Linux).
    """
    is_file = not path.startswith("@")
    try:
        if is_file and not stat.S_ISSOCK(os.stat(path).st_mode):
            return "a file that is no socket is there"
    except OSError:
        return None  # there is nothing, or binding will say what is wrong
    with socket.socket(socket.AF_UNIX) as probe:
        nobody = probe.connect_ex(path if is_file else f"\0{path[1:]}") != 0
        return None if nobody else IN_USE


def why_not_here(number: int | None, words: str) -> str:
    """Why nobody can listen there, with advice, to stand behind a colon.

    Args:
        number: errno of the failed bind.
        words: the system's own, for what is not known here.
    """
    if number == errno.EADDRINUSE:
        return IN_USE
    if number in (errno.EADDRNOTAVAIL, errno.ENODEV):  # ZeroMQ: also a name that is unknown
        return "this machine has no such address; put this machine's own address there"
    if number == errno.EACCES:
        return "permission denied; choose a port above 1023, or another path"
    return words[:1].lower() + words[1:]


def why_unresolved(url: str) -> str | None:
    """In words, where the host's name has no address; None where it has. May take seconds."""
    host = urlsplit(url).hostname
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name can look like that"
        return f"the name {host} does not resolve ({reason[:1].lower()}{reason[1:]})"
    return None
