"""What lies behind an http URL, found by asking once: a file, a live stream, or a web page.

    url --GET--> headers and first bytes --> Answer: live or not, why it is no video, ...
                       '-- a playlist of variants --GET--> the best variant's own playlist

FFmpeg would download the first segments of every variant before it lets one be chosen. This file
knows nothing of pictures and decodes nothing.
"""

from __future__ import annotations

import http.client
import re
import ssl
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

_HEAD_BYTES = 4096
_BUFFER_BYTES = 32_768  # of FFmpeg, in which it can skip back
_PLAYLIST_BYTES = 4_000_000
_MOST_SECONDS = 5.0  # a source may wait longer for its camera; a look may not
_HTML = (
    b"<!doctype html",
    b"<html",
    b"<head",
    b'<?xml version="1.0" encoding="utf-8"?><!doctype html',
)
_PAGE = (
    "this is a web page, not a video; give the address of the video itself, for example what "
    "`yt-dlp -g URL` prints"
)


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    url: str
    """To be read: of the best variant, where the URL is a playlist of variants."""
    is_live: bool | None = None
    """False: it has an end. None: the server does not say."""
    problem: str = ""
    """Why it cannot be a video, for a log line; empty where it may be one."""
    segment_seconds: float = 0.0
    """Of a playlist: its longest segment; 0 for all else."""


def ask(
    url: str,
    *,
    options: Mapping[str, str],
    timeout_seconds: float,
    variant: int | None = None,
) -> Answer | None:
    """Look at what an http or https URL gives.

    Args:
        url: with user and password, where there are any.
        options: FFmpeg's; user_agent, headers and cookies are sent as FFmpeg would.
        timeout_seconds: for an answer; 5 at most.
        variant: of a playlist of variants, the one to take, from 0; None: the best.
    Returns:
        None where nothing can be told: no answer, or a refusal, which FFmpeg will report.
    """
    seconds = min(timeout_seconds, _MOST_SECONDS)
    answer = _look(url, options, seconds, variant)
    if answer is None or answer.url == url:
        return answer
    chosen = _look(answer.url, options, seconds, variant)
    # One step only: what a playlist names may be a playlist again, and so on for ever.
    return chosen if chosen is not None and chosen.url == answer.url else answer


def _look(
    url: str, options: Mapping[str, str], timeout_seconds: float, variant: int | None
) -> Answer | None:
    try:
        with _opened(url, options, timeout_seconds) as response:
            return _answer(url, response, variant)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _opened(
    url: str, options: Mapping[str, str], timeout_seconds: float
) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(bare, headers=_headers(options))
    context = ssl.create_default_context()
    if options.get("tls_verify", "0") in ("0", "false"):  # FFmpeg's default: cameras sign their own
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if parts.username is not None:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, bare, unquote(parts.username), unquote(parts.password or ""))
        handlers.append(urllib.request.HTTPBasicAuthHandler(passwords))
        handlers.append(urllib.request.HTTPDigestAuthHandler(passwords))
    opener = urllib.request.build_opener(*handlers)
    response: http.client.HTTPResponse = opener.open(request, timeout=timeout_seconds)
    return response


def _headers(options: Mapping[str, str]) -> dict[str, str]:
    headers = {
        "User-Agent": options.get("user_agent", "Lavf"),
        "Range": "bytes=0-",
        "Accept": "*/*",
    }
    for line in options.get("headers", "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    if "referer" in options:
        headers["Referer"] = options["referer"]
    return headers


def _answer(url: str, response: http.client.HTTPResponse, variant: int | None) -> Answer:
    kind = response.headers.get_content_type().lower()
    if kind.startswith("multipart/"):
        return Answer(url, is_live=True)
    head = response.read1(_HEAD_BYTES)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"#EXTM3U"):
        body = head + response.read(_PLAYLIST_BYTES)
        text_lines = body.decode("utf-8", errors="replace")
        return _of_playlist(url, response.geturl(), text_lines, variant)
    problem = _why_no_video(kind, text)
    if problem:
        return Answer(url, problem=problem)
    length = response.headers["Content-Length"]
    if length is None:
        return Answer(url)
    has_ranges = response.status == http.client.PARTIAL_CONTENT or int(length) < _BUFFER_BYTES
    if not has_ranges and index_is_at_the_end(head):
        return Answer(
            url,
            problem="its index lies at its end, and the server cannot skip to there (no byte "
            "ranges); download it first, or write it with `-movflags +faststart`",
        )
    return Answer(url, is_live=False)


def _why_no_video(kind: str, text: bytes) -> str:
    if kind == "text/html" or text.lower().startswith(_HTML):
        return _PAGE
    if kind == "application/dash+xml" or b"<MPD" in text:
        return "DASH (.mpd) cannot be read here; give the address of the same video in HLS"
    if kind == "application/json":
        return f"the server answers with {kind}, not with a video"
    return ""


def is_web(text: str) -> bool:
    """Whether it is an http or https URL."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def index_is_at_the_end(head: bytes) -> bool:
    """Whether in an MP4 or MOV the pictures (mdat) come before the index (moov)."""
    place = 0
    while place + 8 <= len(head):
        size, kind = struct.unpack(">I4s", head[place : place + 8])
        if kind in (b"moov", b"moof"):
            return False
        if kind == b"mdat":
            return True
        if size < 8:
            return False
        place += size
    return False


def _of_playlist(url: str, final_url: str, text: str, variant: int | None) -> Answer:
    """Of an HLS playlist; of one of variants, the URL of the best one, or of the one wanted."""
    variants = _variants(text)
    if variants:
        best = max(variants, key=lambda entry: entry[:2])  # of equals the first
        chosen = best if variant is None or variant >= len(variants) else variants[variant]
        address = urljoin(final_url, chosen[2])
        is_web = urlsplit(address).scheme in ("http", "https")  # and no file of this machine
        return Answer(_with_login(address, url) if is_web else url)
    durations = [float(word) for word in re.findall(r"#EXTINF:\s*(\d+(?:\.\d+)?)", text)]
    target = re.search(r"#EXT-X-TARGETDURATION:\s*(\d+(?:\.\d+)?)", text)
    seconds = max([*durations, float(target[1]) if target else 0.0])
    has_end = re.search(r"^#EXT-X-ENDLIST", text, re.MULTILINE) is not None
    return Answer(url, is_live=not has_end, segment_seconds=seconds)


def _variants(text: str) -> list[tuple[int, int, str]]:
    """(area, bandwidth, address) of each; area 0 where it is not said."""
    variants = []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line, following in pairwise(lines):
        if not line.startswith("#EXT-X-STREAM-INF:") or following.startswith("#"):
            continue
        size = re.search(r"RESOLUTION=(\d+)x(\d+)", line)
        bandwidth = re.search(r"(?<!-)BANDWIDTH=(\d+)", line)
        area = int(size[1]) * int(size[2]) if size else 0
        variants.append((area, int(bandwidth[1]) if bandwidth else 0, following))
    return variants


def _with_login(address: str, url: str) -> str:
    """The address with user and password of the URL, where it is on the same host."""
    parts, given = urlsplit(address), urlsplit(url)
    login, at, host = given.netloc.rpartition("@")
    if not at or "@" in parts.netloc or parts.netloc != host:
        return address
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))
