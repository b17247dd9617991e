"""Key files: what the command makes, what is read back, what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth
from zmq.utils import z85

from pipeline.sinks.publisher.curve import (
    fingerprint,
    is_open_to_others,
    load_keys,
    main,
    make_keys,
)


def test_the_command_makes_keys_that_are_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert main([str(folder), "alice", "bob"]) == 0
    printed = capsys.readouterr().out
    for name in ("server.key", "server.key_secret", "clients/alice.key", "hand_out/bob.key_secret"):
        assert f"{folder / name}\n" in printed
    keys = load_keys(folder)
    assert sorted(keys.clients.values()) == ["alice", "bob"]
    assert zmq.curve_public(keys.secret) == keys.public
    assert keys.unreadable == ()
    # The format is pyzmq's own, so that subscribers read their files with zmq.auth.
    public, secret = zmq.auth.load_certificate(folder / "hand_out" / "alice.key_secret")
    assert secret is not None
    assert zmq.curve_public(secret) == public
    assert keys.clients[z85.decode(public)] == "alice"
    assert zmq.auth.load_certificate(folder / "server.key") == (keys.public, None)


def test_secrets_are_private_and_never_printed(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        make_keys(tmp_path / "keys", ["alice"])
    finally:
        os.umask(former)
    for path in (tmp_path / "keys").rglob("*.key_secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert not is_open_to_others(tmp_path / "keys")
    keys = load_keys(tmp_path / "keys")
    assert keys.secret.decode() not in repr(keys)


def test_keys_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_keys(tmp_path, ["alice"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.key*")}
    assert main([str(tmp_path), "bob", "alice"]) == 2
    assert "alice has a key" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.key*")} == before
    make_keys(tmp_path, ["bob"])
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["../eve", "a/b", "", ".hidden", "a b", "-x"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a client's name"):
        make_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "no such file"),
        ("", "holds no public-key"),
        ("public-key", "holds no public-key"),
        (f'public-key = "{"a" * 39}"', "holds no public-key"),
        (f'public-key = "{"~" * 40}"', "its key is not Z85"),
        (f'public-key = "{"#" * 40}"', "its key is not Z85"),  # too great for 32 bytes
        (f'public-key = "{"a" * 40}"', "not a pair"),  # no secret
        (f'public-key = "{"a" * 40}"\nsecret-key = "{"b" * 40}"', "not a pair"),
        ("\0\xff" * 1000, "holds no public-key"),
    ],
)
def test_a_publisher_needs_its_own_pair(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "server.key_secret").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=complaint) as refusal:
        load_keys(tmp_path)
    assert "server.key_secret" in str(refusal.value)
    assert "python -m pipeline.sinks.publisher.curve" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_client_file_without_a_key_lets_nobody_in_and_is_named(tmp_path: Path) -> None:
    make_keys(tmp_path, ["alice", "bob"])
    (tmp_path / "clients" / "bob.key").write_text("public-key = ")
    (tmp_path / "clients" / "folder.key").mkdir()
    keys = load_keys(tmp_path)
    assert list(keys.clients.values()) == ["alice"]
    assert ["bob.key" in line or "folder.key" in line for line in keys.unreadable] == [True, True]


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    make_keys(tmp_path, ["alice"])
    seen = [fingerprint(tmp_path)]
    assert fingerprint(tmp_path) == seen[0]
    make_keys(tmp_path, ["bob"])
    seen.append(fingerprint(tmp_path))
    (tmp_path / "clients" / "alice.key").unlink()
    seen.append(fingerprint(tmp_path))
    (tmp_path / "server.key_secret").write_text("other")
    seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == 4


def test_a_secret_that_others_can_read_is_seen(tmp_path: Path) -> None:
    make_keys(tmp_path, [])
    (tmp_path / "server.key_secret").chmod(0o644)
    assert is_open_to_others(tmp_path)
