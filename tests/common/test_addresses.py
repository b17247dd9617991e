"""Addresses to listen at: what is read, what is refused, which path is taken."""

import socket
from pathlib import Path

import pytest

from common.addresses import IN_USE, Address, parse_address, why_path_taken


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("8000", ("127.0.0.1", 8000)),
        ("[::1]:80", ("::1", 80)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("camera-box:8000", ("camera-box", 8000)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":8000", "127.0.0.1", "host:99999", "::1:80", "http://a:1", "a:1/", "a:-1", "a:²"]
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected host:port, for example 127\.0\.0\.1:8000"):
        parse_address(text)


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "[::1]:80", "camera-box:0"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("0.0.0.0", False), ("box", False)],
)
def test_only_this_machine_reaches_a_loopback_address(host: str, local: bool) -> None:
    assert Address(host, 1).is_loopback is local


def test_a_path_is_free_until_somebody_listens_or_a_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert why_path_taken(str(path)) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert why_path_taken(str(path)) is None  # left behind by a program that was killed
        listener.listen()
        assert why_path_taken(str(path)) == IN_USE
    (tmp_path / "notes").write_text("mine")
    assert why_path_taken(str(tmp_path / "notes")) == "a file that is no socket is there"
