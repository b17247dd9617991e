"""What is wrong with an address, and what to do about it: one wording for all who use one."""

from __future__ import annotations

import errno
import socket
from urllib.parse import urlsplit

IN_USE = "address already in use; stop what listens there or choose another port or path"


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
