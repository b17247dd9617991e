"""Who may see the page: addresses, names it is called by, origins, the token. Decides, serves not.

    request --> Host known? --> no other site's page asks? --> token, if others may come --> served
                403             403                            401

Another site's page runs in the same browser as ours, so it can send requests to 127.0.0.1: under a
name of its own that it points here (DNS rebinding: the Host gives it away), or openly (the Origin
does). This file knows nothing of HTTP servers: headers in, a refusal or None out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from common.addresses import Address, as_ip

COOKIE = "posestream"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request gets nothing."""

    status: int
    """Of HTTP."""
    reason: str
    """One line, for whoever asked: holds nothing of what they sent."""


class Guard:
    """Looks at a request's headers before anything is done for it.

    Args:
        address: where the page is served.
        token: asked of everybody; None: a new one, but on loopback without further names nobody is
            asked.
        hosts: more names that the page is called by, for example behind a proxy, which lets in
            others than this machine.
    """

    def __init__(
        self, address: Address, *, token: str | None = None, hosts: Iterable[str] = ()
    ) -> None:
        hosts = tuple(hosts)
        self.token_is_new = token is None and (bool(hosts) or not address.is_loopback)
        self.token = secrets.token_urlsafe(24) if self.token_is_new else token
        """What a visitor must show; None: nothing."""
        names = {*_LOCAL_NAMES, address.host, *hosts}
        if not address.is_loopback:
            machine = socket.gethostname()
            names |= {machine, f"{machine}.local"}
        self._names = {name.lower() for name in names}
        # An address cannot be pointed elsewhere, so it is safe wherever strangers may come from.
        self._any_address = not address.is_loopback

    @property
    def cookie_value(self) -> str:
        """What a browser keeps in place of the token: made from it, and not it."""
        return hmac.digest((self.token or "").encode(), b"cookie", hashlib.sha256).hex()

    def refusal(
        self, method: str, headers: Mapping[str, str], *, opens_page: bool = False
    ) -> Refusal | None:
        """Whether a request comes from where it may come from; knows() asks for the token.

        Args:
            method: of HTTP.
            headers: of the request; found whatever the case of their names.
            opens_page: the request is for the page itself, to which other sites may link.
        """
        host = headers.get("Host", "")
        if not self._is_known(host):
            return Refusal(403, "unknown host name; if it is yours, add it to page.hosts")
        origin = headers.get("Origin")
        if origin is not None and not _is_of(origin, host):
            return Refusal(403, "other origins may not use this page")
        site = headers.get("Sec-Fetch-Site", "none")
        is_link = opens_page and headers.get("Sec-Fetch-Mode") == "navigate" and method == "GET"
        if site not in ("none", "same-origin") and not is_link:
            return Refusal(403, "other sites may not use this page")
        return None

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request shows the token: its cookie, a bearer token, or a basic password."""
        if self.token is None:
            return True
        cookie = _cookie(headers.get("Cookie", ""))
        if cookie is not None and _same(cookie, self.cookie_value):
            return True
        shown = _authorization(headers.get("Authorization", ""))
        return shown is not None and self.is_token(shown)

    def is_token(self, shown: str) -> bool:
        """Compared in the same time whatever was shown."""
        return self.token is not None and _same(shown, self.token)

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if not name or any(c in host for c in "@/?#\\ \t"):
            return False
        return name.rstrip(".") in self._names or (self._any_address and as_ip(name) is not None)


def _is_of(origin: str, host: str) -> bool:
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.lower()


def _cookie(header: str) -> str | None:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def _authorization(header: str) -> str | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _same(one: str, other: str) -> bool:
    # Of equal length whatever was shown, and compare_digest takes no text beyond ASCII.
    digests = (
        hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (one, other)
    )
    return hmac.compare_digest(*digests)
