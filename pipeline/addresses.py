"""Why nobody can listen at an address, and what to do about it: one wording for all who listen."""

from __future__ import annotations

import errno


def why_not_here(number: int | None, words: str) -> str:
    """The reason, with advice, to stand behind a colon.

    Args:
        number: errno of the failed bind.
        words: the system's own, for what is not known here.
    """
    if number == errno.EADDRINUSE:
        return "address already in use; stop what listens there or choose another port or path"
    if number in (errno.EADDRNOTAVAIL, errno.ENODEV):  # ZeroMQ: also a name that is unknown
        return "this machine has no such address; put this machine's own address there"
    if number == errno.EACCES:
        return "permission denied; choose a port above 1023, or another path"
    return words[:1].lower() + words[1:]
