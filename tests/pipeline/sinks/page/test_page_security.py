"""Who may see the page, by the headers alone."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from common.addresses import Address
from common.settings import ConfigError
from pipeline.config import load_config
from pipeline.sinks.page.security import COOKIE, Guard

TOKEN = "a-token-of-twenty-four-c"
LOCAL = Address("127.0.0.1", 8000)
WIDE = Address("0.0.0.0", 8000)


def refused(guard: Guard, method: str = "GET", *, opens_page: bool = False, **headers: str) -> bool:
    sent = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return guard.refusal(method, sent, opens_page=opens_page) is not None


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "localhost.:8000"]
)
def test_loopback_is_known_by_its_names(host: str) -> None:
    assert not refused(Guard(LOCAL), Host=host)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "127.0.0.1.evil.example", "192.168.1.5:8000", "localhost@evil.example",
     "evil.example#localhost", "[::1", "localhost/", "127.0.0.1:80:80 x", "2130706433"],
)  # fmt: skip
def test_other_hosts_are_refused_as_dns_rebinding_would_send_them(host: str) -> None:
    assert refused(Guard(LOCAL), Host=host)


def test_beyond_loopback_addresses_are_known_and_names_only_if_given() -> None:
    guard = Guard(WIDE, hosts=["cameras.home.arpa"])
    assert not refused(guard, Host="192.168.1.5:8000")
    assert not refused(guard, Host="cameras.home.arpa")
    assert refused(guard, Host="evil.example")


@pytest.mark.parametrize(
    ("origin", "is_refused"),
    [
        ("http://localhost:8000", False),
        ("https://localhost:8000", False),
        ("http://localhost:8001", True),
        ("http://evil.example", True),
        ("http://localhost:8000.evil.example", True),
        ("null", True),
        ("", True),
        ("file://localhost:8000", True),
    ],
)
def test_other_origins_are_refused(origin: str, is_refused: bool) -> None:
    assert refused(Guard(LOCAL), Host="localhost:8000", Origin=origin) is is_refused


def test_other_sites_may_link_to_the_page_and_no_more() -> None:
    link = {"Host": "localhost", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert not refused(Guard(LOCAL), opens_page=True, **link)
    assert refused(Guard(LOCAL), opens_page=False, **link)
    assert refused(Guard(LOCAL), "POST", opens_page=True, **link)
    assert refused(Guard(LOCAL), opens_page=True, **{**link, "Sec_Fetch_Mode": "no-cors"})
    assert refused(Guard(LOCAL), Host="localhost", Sec_Fetch_Site="same-site")
    assert not refused(Guard(LOCAL), Host="localhost", Sec_Fetch_Site="same-origin")


def test_a_token_is_made_wherever_others_may_come_from() -> None:
    assert Guard(LOCAL).token is None
    behind_a_proxy = Guard(LOCAL, hosts=["cameras.example"])
    assert behind_a_proxy.token_is_new
    assert not behind_a_proxy.knows({})
    assert not Guard(LOCAL, token=TOKEN, hosts=["cameras.example"]).token_is_new
    one, other = Guard(WIDE), Guard(WIDE)
    assert one.token_is_new
    assert one.token is not None
    assert len(one.token) >= 32
    assert one.token != other.token
    assert Guard(LOCAL, token=TOKEN).token == TOKEN


def _basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("headers", "is_known"),
    [
        ({"Authorization": f"Bearer {TOKEN}"}, True),
        ({"Authorization": f"bearer {TOKEN}"}, True),
        ({"Authorization": _basic(f"anybody:{TOKEN}")}, True),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, False),
        ({"Authorization": f"Bearer {TOKEN}x"}, False),
        ({"Authorization": "Bearer "}, False),
        ({"Authorization": TOKEN}, False),
        ({"Authorization": "Basic !!!"}, False),
        ({"Authorization": _basic(TOKEN)}, False),
        ({"Cookie": f"{COOKIE}={TOKEN}"}, False),
        ({"Cookie": f"other=1; {COOKIE}={Guard(WIDE, token=TOKEN).cookie_value}"}, True),
        ({"Cookie": f"{COOKIE}={Guard(WIDE, token=TOKEN + 'x').cookie_value}"}, False),
        ({}, False),
    ],
)
def test_the_token_is_shown_in_one_of_three_ways(headers: dict[str, str], is_known: bool) -> None:
    assert Guard(WIDE, token=TOKEN).knows(CIMultiDict(headers)) is is_known


_text = st.text(st.characters(exclude_characters="\r\n\0"), max_size=40)


@given(host=_text, origin=_text, cookie=_text, authorization=_text, site=_text)
def test_no_header_breaks_the_guard_or_opens_the_door(**headers: Any) -> None:
    guard = Guard(WIDE, token=TOKEN)
    sent = CIMultiDict({name.replace("site", "Sec-Fetch-Site"): v for name, v in headers.items()})
    guard.refusal("GET", sent)
    assert not guard.knows(sent)


def test_a_token_that_is_too_short_is_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"page\.token.*at least 16") as refusal:
        load_config(sources=["demo"], settings={"page.token": "geheim"})
    assert "geheim" not in str(refusal.value)
    assert TOKEN not in repr(load_config(settings={"page.token": TOKEN}))
