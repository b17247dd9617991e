"""Passwords stay out of sight: what may be a secret in a text becomes `***`, here and nowhere else.

    redact(text)            for messages, names, metrics
    plain_url(url)          where host and path say all that matters
    RedactedFormatter       for every log line, whoever wrote it
    hide_arguments()        for `ps`: a URL on the command line is there for all users to read

This file knows nothing of sources.
"""

from __future__ import annotations

import ctypes
import logging
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

# ASCII (?a): bytes of a longer character must not pass for a space, see stars_over_secrets.
# Between `//` and the last `@` of a word: a password may hold raw slashes.
_USER = re.compile(r"(?a)(?<=://)\S*(?=@)")
# Some cameras have the parameters in the path, behind a slash or an underscore.
_PARAMETER = re.compile(
    r"(?ai)((?<=[?&;/_])(?:user(?:name)?|usr|(?:api_?)?key|auth|sig(?:nature)?)"
    r"|(?<![a-z])(?:pass(?:word|wd)?|pwd|token|secret))=([^&\s/'\"]*)"
)
# What follows the application's name in an RTMP URL is the key of the stream.
_STREAM_KEY = re.compile(r"(?ai)\b(rtmp[a-z]*://[^\s/]+/[^\s/]+/)([^\s'\"]+)")


def redact(text: object) -> str:
    """The text without what might be a password in a URL: FFmpeg's own messages hold whole URLs.

    User and password go, the values of query-like parameters named after secrets (some cameras
    have them in the path), and the stream key of RTMP.
    """
    shown = _USER.sub("***", str(text))
    shown = _PARAMETER.sub(r"\1=***", shown)
    return _STREAM_KEY.sub(r"\1***", shown)


def plain_url(url: str) -> str:
    """A URL of the web for a message: without user, password and any parameter."""
    parts = urlsplit(url)
    query = "..." if parts.query else ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


class RedactedFormatter(logging.Formatter):
    """Formats a record, traceback included, and redacts the result."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def hide_arguments() -> None:
    """Write stars over the passwords among this process's arguments, as other programs see them.

    Linux shows a process's own memory there, so it can be overwritten; elsewhere nothing is done.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        arguments = Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    starred = stars_over_secrets(arguments)
    if start and len(starred) == end - start:  # else the kernel does not say where they lie
        ctypes.memmove(start, starred, len(starred))


def stars_over_secrets(arguments: bytes) -> bytes:
    """The arguments (each ended by a NUL) with a star for each byte of a secret."""
    text = arguments.decode("latin-1")  # a character a byte, so that lengths stay
    for pattern, group in ((_USER, 0), (_PARAMETER, 2), (_STREAM_KEY, 2)):
        for match in pattern.finditer(text.replace("\0", "\n")):
            start, end = match.span(group)
            text = text[:start] + "*" * (end - start) + text[end:]
    return text.encode("latin-1")
