"""One answer of an HTTP server: a file from some byte on, and what goes wrong, in plain words.

Proxies and certificates are those of the environment: http_proxy, https_proxy, no_proxy,
SSL_CERT_FILE. This file knows nothing of disks and of second tries.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, NoReturn
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from common.redaction import plain_url

_CHUNK_BYTES = 1 << 18
_BUSY = (408, 425, 429)
_GONE = (404, 410)
_SAFE_IN_PATHS = "/%:@!$&'()*+,;=~"


class BrokenError(Exception):
    """The connection or the server failed; another try may succeed."""


class NoConnectionError(BrokenError):
    """There is no way to the server."""


class RefusedError(Exception):
    """Another try would end like this one."""


class NotThereError(RefusedError):
    """The server has no such file."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a bad connection is put up with."""

    silent_s: float = 20.0
    """Nothing arrives for so long: try again."""
    slow_s: float = 60.0
    """Time in which slow_bytes must arrive, else: try again."""
    slow_bytes: int = 1 << 16
    tries: int = 4
    """In a row that bring less than a megabyte each."""
    pause_s: float = 1.0
    """After the first failed try; twice as long after every other."""


class Answer:
    """What a server sends.

    Attributes:
        start: the file's byte that comes first.
        total: bytes of the whole file; None where the server does not say.
        version: the server's word for this very file, for another try; empty where it has none.
    """

    def __init__(
        self, response: http.client.HTTPResponse | None, start: int, patience: Patience
    ) -> None:
        self._response, self._patience = response, patience
        self.start, self.total = start, _total(response, start)
        self.version = "" if response is None else _version(response)

    def chunks(self) -> Iterator[bytes]:
        """The bytes from start on; ends early without a word where the connection does.

        Raises:
            BrokenError: the connection failed, or the server is silent or too slow.
        """
        slow_bytes, slow_s = self._patience.slow_bytes, self._patience.slow_s
        since, arrived = time.monotonic(), 0
        while chunk := self._read():
            yield chunk
            arrived += len(chunk)
            now = time.monotonic()
            if now - since >= slow_s:
                if arrived < slow_bytes:
                    raise BrokenError(f"only {arrived} bytes came in {now - since:.0f} s")
                since, arrived = now, 0

    def _read(self) -> bytes:
        if self._response is None:
            return b""
        try:
            return self._response.read1(_CHUNK_BYTES)
        except TimeoutError:
            raise BrokenError(f"nothing came for {self._patience.silent_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise BrokenError(f"the connection broke off ({_words(error)})") from None


@contextmanager
def answer(url: str, *, start: int, version: str, patience: Patience) -> Iterator[Answer]:
    """Ask for a file.

    Args:
        url: http or https; may hold a user and a password.
        start: the first byte that is wanted; the server may begin at 0 all the same.
        version: of an earlier answer: if the file has changed since, all of it comes.
    Raises:
        BrokenError, RefusedError: see there.
    """
    try:
        response = _open(url, start, version, patience.silent_s)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if (error.headers.get("Content-Range") or "").endswith(f"/{start}"):
                yield Answer(None, start, patience)  # it was whole already
                return
            with answer(url, start=0, version="", patience=patience) as whole:
                yield whole
            return
        _raise_status(error)
    except (OSError, http.client.HTTPException) as error:
        _raise_no_answer(url, error, patience)
    with response:
        begins_at = _begin(response)
        if begins_at in (0, start):
            yield Answer(response, begins_at, patience)
            return
    raise RefusedError(f"byte {start} was asked for and byte {begins_at} came")


def _open(url: str, start: int, version: str, silent_s: float) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    host, path = parts.netloc.rpartition("@")[2], quote(parts.path, safe=_SAFE_IN_PATHS)
    plain = urlunsplit((parts.scheme, host, path, parts.query, ""))
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        passwords.add_password(None, plain, user, password)
    opener = urllib.request.build_opener(
        _Redirects(), urllib.request.HTTPBasicAuthHandler(passwords)
    )
    request = urllib.request.Request(plain, headers={"User-Agent": "posestream"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    response: http.client.HTTPResponse = opener.open(request, timeout=silent_s)
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """As usual, but never from https to something that others can read and change."""

    def redirect_request(  # noqa: PLR0917  urllib's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise RefusedError(f"it redirects from https to {plain_url(newurl)}, which is not safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# --- what an answer says -------------------------------------------------------------------------


def _begin(response: http.client.HTTPResponse) -> int:
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return int(match[1]) if match else -1


def _total(response: http.client.HTTPResponse | None, start: int) -> int | None:
    if response is None:
        return start
    if response.status == http.client.PARTIAL_CONTENT:
        text = (response.headers.get("Content-Range") or "").rpartition("/")[2]
    else:
        text = response.headers.get("Content-Length") or ""
    return int(text) if text.isdecimal() else None


def _version(response: http.client.HTTPResponse) -> str:
    tag = response.headers.get("ETag") or ""
    return tag if tag.startswith('"') else response.headers.get("Last-Modified") or ""


# --- what goes wrong -----------------------------------------------------------------------------


def _raise_status(error: urllib.error.HTTPError) -> NoReturn:
    said = f"{error.code} {' '.join(str(error.reason).split())}"
    if error.code in _GONE:
        raise NotThereError(f"there is no such file ({said})") from None
    if error.code in _BUSY or error.code >= 500:
        raise BrokenError(f"the server answers {said}") from None
    if error.code == 401:
        raise RefusedError("it asks for a user and a password: https://user:password@...") from None
    if 300 <= error.code < 400:
        raise RefusedError(f"it redirects without end ({error.code})") from None
    raise RefusedError(f"the server answers {said}") from None


def _raise_no_answer(url: str, error: Exception, patience: Patience) -> NoReturn:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    host = urlsplit(url).hostname
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise RefusedError(
            f"the certificate of {host} is not trusted ({reason.verify_message}); where a network "
            "has certificates of its own, SSL_CERT_FILE names the file with them"
        ) from None
    if isinstance(reason, TimeoutError):
        raise BrokenError(
            f"{host} did not answer within {patience.silent_s:g} s{_by_way(url)}"
        ) from None
    if not isinstance(error, urllib.error.URLError):  # it had been there
        raise BrokenError(f"{host} hung up{_by_way(url)} ({_words(error)})") from None
    raise NoConnectionError(f"no connection to {host}{_by_way(url)} ({_words(reason)})") from None


def _by_way(url: str) -> str:
    """` through ...` where the environment names a proxy for that URL."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return f" through the proxy {plain_url(proxy)}"


def _words(error: object) -> str:
    """One line of what Python says of an error."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
