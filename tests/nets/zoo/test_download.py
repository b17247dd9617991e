"""Downloads from a real server that cuts, stalls, lies, redirects; killed halfway; two at once."""

import hashlib
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from nets.zoo.download import DownloadError, MissingError, download
from nets.zoo.http_answer import Patience
from tests.support.file_server import (
    FileServer,
    Manner,
    cut,
    enormous,
    file_server,
    for_whom,
    hang_up,
    redirect,
    silent,
    silent_after,
    stalled,
    status,
    trickling,
    whole,
    without_length,
)
from tests.support.places import ROOT

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASTE = Patience(silent_s=20, tries=3, pause_s=0.01)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.files["net.pth"] = CONTENT
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "net.pth"


def fetch(server: FileServer, target: Path, patience: Patience = HASTE) -> None:
    download(f"{server.url}/net.pth", target, sha256=SHA256[:8], patience=patience)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"net.pth.lock"}


# --- a good server -------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", [whole, without_length])
def test_a_file_comes_whole_and_once(server: FileServer, target: Path, manner: Manner) -> None:
    server.manners.append(manner)
    fetch(server, target)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert files_in(target.parent) == {"net.pth"}
    assert len(server.requests) == 1


def test_a_damaged_file_is_replaced_only_by_a_whole_one(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"damaged")
    server.manners.append(status(404))
    with pytest.raises(MissingError):
        fetch(server, target)
    assert target.read_bytes() == b"damaged"
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_redirects_are_followed(server: FileServer, target: Path) -> None:
    with file_server() as other:
        server.manners.append(redirect(f"{other.url}/elsewhere.pth"))
        other.files["elsewhere.pth"] = CONTENT
        fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_user_and_password_of_a_url_reach_their_server_alone(
    server: FileServer, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = "Basic bWU6YSBiQA=="  # me:a b@
    url = server.url.replace("://", "://me:a%20b%40@") + "/net.pth?token=secret"
    with file_server() as other:
        other.files["net.pth"] = CONTENT
        server.manners.extend([for_whom(expected), redirect(f"{other.url}/net.pth")])
        download(url, target, sha256=SHA256)
        assert [request.authorization for request in server.requests] == [None, expected]
        assert [request.authorization for request in other.requests] == [None]
    assert target.read_bytes() == CONTENT
    assert "net.pth?..." in caplog.text
    assert "secret" not in caplog.text
    assert "me:" not in caplog.text


def test_a_password_that_is_missing_is_asked_for(server: FileServer, target: Path) -> None:
    server.manners.append(for_whom("Basic nobody"))
    with pytest.raises(DownloadError, match=r"asks for a user and a password: https://user:pass"):
        fetch(server, target)


# --- a bad connection ----------------------------------------------------------------------------


def test_a_cut_download_goes_on_from_where_it_was(server: FileServer, target: Path) -> None:
    server.manners.extend([cut(1_000_000), cut(1_500_000)])
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [r.range for r in server.requests] == [None, "bytes=1000000-", "bytes=2500000-"]


def test_a_server_without_ranges_begins_again(server: FileServer, target: Path) -> None:
    server.manners.extend([cut(1_000_000), whole])
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_progress_counts_against_giving_up(server: FileServer, target: Path) -> None:
    server.manners.extend([cut(0), cut(0), cut(1_100_000), cut(0), status(503)])
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.manners.extend([cut(100_000)] * 3)
    with pytest.raises(DownloadError, match=r"broke off after 0\.3 MB of 3\.0 MB"):
        fetch(server, target)


def test_a_part_of_an_earlier_run_is_used(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    part = target.with_name("net.pth.part")
    part.write_bytes(CONTENT[:2_000_000])
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    part.write_bytes(CONTENT)  # killed just before the end
    fetch(server, target)
    assert [r.range for r in server.requests] == ["bytes=2000000-", "bytes=3000000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_that_hangs_up_is_asked_again(server: FileServer, target: Path) -> None:
    server.manners.extend([hang_up, hang_up])
    fetch(server, target)
    assert len(server.requests) == 3


def test_letters_of_any_kind_may_stand_in_a_url(server: FileServer, target: Path) -> None:
    server.files["my%20n%C3%A4t.pth"] = CONTENT
    for name in ("my nät.pth", "my%20nät.pth"):
        download(f"{server.url}/{name}", target, sha256=SHA256)
        target.unlink()


@pytest.mark.parametrize("length", [1000, len(CONTENT) + 7])
def test_a_part_that_does_not_fit_is_fetched_anew(
    server: FileServer, target: Path, length: int
) -> None:
    target.parent.mkdir()
    target.with_name("net.pth.part").write_bytes(b"x" * length)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.requests[-1].range is None


def test_without_a_hash_parts_are_joined_only_where_the_server_vouches_for_them(
    server: FileServer, target: Path
) -> None:
    target.parent.mkdir()
    target.with_name("net.pth.part").write_bytes(b"who knows")
    server.manners.append(cut(1_000_000))
    download(f"{server.url}/net.pth", target, patience=HASTE)
    assert [request.range for request in server.requests] == [None, None]
    assert target.read_bytes() == CONTENT

    target.unlink()
    server.etag = '"one"'
    changed = threading.Event()

    def change(answering: object, content: bytes) -> None:
        cut(1_000_000)(answering, content)  # type: ignore[arg-type]
        server.files["net.pth"], server.etag = CONTENT[::-1], '"two"'
        changed.set()

    server.manners.append(change)
    download(f"{server.url}/net.pth", target, patience=HASTE)
    assert changed.is_set()
    assert server.requests[-1].range == "bytes=1000000-"
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        (silent, r"127\.0\.0\.1 did not answer within 0\.1 s"),
        (silent_after(1000), r"nothing came for 0\.1 s"),
        (trickling, r"only \d+ bytes came in 0 s"),
        (status(503), r"the server answers 503 Service Unavailable"),
        (status(429), r"the server answers 429 Too Many Requests"),
    ],
)
def test_patience_ends(
    server: FileServer, target: Path, manner: Manner, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.manners.extend([manner] * 2)
    patience = Patience(silent_s=0.1, slow_s=0.2, slow_bytes=1 << 16, tries=2, pause_s=0.01)
    with pytest.raises(DownloadError, match=said) as caught:
        fetch(server, target, patience)
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "trying again in 0.01 s" in caplog.text
    assert len(server.requests) == 2
    fetch(server, target)  # what came is of use
    assert target.read_bytes() == CONTENT


# --- what another try would not mend -------------------------------------------------------------


def test_no_such_file(server: FileServer, target: Path) -> None:
    with pytest.raises(MissingError, match=r"there is no such file \(404 Not Found\); .* put it"):
        download(f"{server.url}/other.pth", target)
    assert files_in(target.parent) == set()
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"0", b"<!DOCTYPE html>"])
def test_a_wrong_file_is_never_put_in_place(
    server: FileServer, target: Path, content: bytes
) -> None:
    server.files["net.pth"] = content
    with pytest.raises(DownloadError) as caught:
        fetch(server, target)
    found = hashlib.sha256(content).hexdigest()[:8]
    text = str(caught.value)
    assert f"begins with {found}, expected {SHA256[:8]}; get the file" in text
    assert ("it is a web page" in text) == content.startswith(b"<")
    assert files_in(target.parent) == set()


def test_a_redirect_in_a_circle(server: FileServer, target: Path) -> None:
    server.manners.extend([redirect(f"{server.url}/net.pth")] * 30)
    with pytest.raises(DownloadError, match=r"it redirects without end \(302\)"):
        fetch(server, target)


def test_no_network_is_said_at_once(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DownloadError, match=r"no connection to weights\.invalid \(.*; get the fi"):
        download("https://weights.invalid/net.pth", target)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DownloadError, match=r"no connection to 127\.0\.0\.1 \(.*refused\)"):
        download(f"http://127.0.0.1:{port}/net.pth", target)
    assert "trying again" not in caplog.text


def test_a_proxy_of_the_environment_is_used(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    url = "http://weights.invalid/net.pth"
    download(url, target, sha256=SHA256)
    assert [request.path for request in server.requests] == [url]
    assert target.read_bytes() == CONTENT
    target.unlink()
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    said = r"no connection to weights\.invalid through the proxy http://127\.0\.0\.1:9 \("
    with pytest.raises(DownloadError, match=said):
        download(url, target, sha256=SHA256)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server, target)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_https_trusts_known_certificates_only(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = tmp_path / "both.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(pem.read_bytes())
    pem.write_bytes(pem.read_bytes() + key.read_bytes())
    with file_server(certificate=pem) as server, file_server() as plain:
        server.files["net.pth"] = plain.files["net.pth"] = CONTENT
        with pytest.raises(DownloadError, match=r"certificate of 127.* not trusted .*SSL_CERT_FI"):
            fetch(server, target)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        server.manners.append(redirect(f"{plain.url}/net.pth"))
        with pytest.raises(DownloadError, match=r"redirects from https to http://127.* not safe"):
            fetch(server, target)
        assert plain.requests == []
        fetch(server, target)
        assert target.read_bytes() == CONTENT
        target.unlink()
        monkeypatch.setenv("https_proxy", plain.url)
        fetch(server, target)
        assert [r.path for r in plain.requests] == [server.url.removeprefix("https://")]
    assert target.read_bytes() == CONTENT


# --- the disk ------------------------------------------------------------------------------------


def test_room_is_looked_for_first(server: FileServer, target: Path) -> None:
    server.manners.append(enormous)
    with pytest.raises(DownloadError, match=r"no room for net\.pth in .*MB are needed, .* are fr"):
        fetch(server, target)


def test_a_folder_that_cannot_be_written_is_said(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"net\.pth cannot be written: .* set XDG_CACHE_HOME"):
        fetch(server, tmp_path / "file" / "net.pth")
    assert server.requests == []


def get(server: FileServer, cache: Path, name: str = "net.pth") -> "subprocess.Popen[str]":
    """The download as another process."""
    environment: Mapping[str, str] = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-m", "nets.zoo", "get", f"{server.url}/{name}#sha256={SHA256}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err


def test_a_full_disk_is_one_line_and_nothing_stays(server: FileServer, tmp_path: Path) -> None:
    """A limit on the size of files gives the same answers as a full disk, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        process = get(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    code, _, err = finish(process)
    assert code == 2
    assert "no room for" in err.splitlines()[-1]
    assert "make room, or set XDG_CACHE_HOME" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert [path.suffix for path in (tmp_path / "posestream" / "weights").iterdir()] == [".lock"]


def test_of_two_at_once_one_downloads_and_one_waits(server: FileServer, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()
    server.manners.append(stalled(1_000_000, reached=reached, go_on=go_on))
    first = get(server, tmp_path)
    assert reached.wait(60)
    second = get(server, tmp_path)
    assert second.stderr is not None
    assert "another process is downloading" in second.stderr.readline()
    go_on.set()
    (code, out, _), (other_code, other_out, _) = finish(first), finish(second)
    assert (code, other_code) == (0, 0)
    assert out == other_out
    assert Path(out).read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_goes_on_in_the_next_process(
    server: FileServer, tmp_path: Path, number: signal.Signals
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    server.manners.append(stalled(2_000_000, reached=reached, go_on=go_on))
    process = get(server, tmp_path)
    assert reached.wait(60)
    folder = tmp_path / "posestream" / "weights"
    while not any(path.stat().st_size for path in folder.glob("*.part")):
        assert process.poll() is None
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    go_on.set()
    code, out, err = finish(get(server, tmp_path))
    assert code == 0, err
    assert Path(out).read_bytes() == CONTENT
    asked = server.requests[-1].range
    assert asked is not None
    assert 0 < int(asked.removeprefix("bytes=").removesuffix("-")) <= 2_000_000
