"""Passwords reach nobody: texts, logs, other processes."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.redaction import RedactedFormatter, plain_url, redact, stars_over_secrets
from common.settings import ConfigError
from pipeline.config import load_config
from tests.support.places import ROOT

_visible = st.characters(exclude_categories=["Z", "C"])


@given(user=st.from_regex(r"[\w.-]{0,8}", fullmatch=True), password=st.text(_visible, max_size=12))
def test_redact_leaves_no_password(user: str, password: str) -> None:
    secret = f"pw{password}pw"
    shown = redact(f"cannot open 'rtsp://{user}:{secret}@10.0.0.7:554/live': refused")
    assert shown == "cannot open 'rtsp://***@10.0.0.7:554/live': refused"
    secret = re.sub(r"[&/'\"]", "", secret)  # what a parameter in a URL cannot hold
    shown = redact(f"http://cam/video?user={user}&password={secret}&channel=1")
    assert secret not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://cam/?pwd=geheim&channel=1", "http://cam/?pwd=***&channel=1"),
        ("https://cam/a?api_key=geheim", "https://cam/a?api_key=***"),
        ("https://cam/a?access_token=geheim", "https://cam/a?access_token=***"),
        ("rtsp://cam/user=me_password=geheim_channel=1", "rtsp://cam/user=***"),
        ("rtsp://cam/live_password=geheim", "rtsp://cam/live_password=***"),
        ("rtmp://host/app/geheim", "rtmp://host/app/***"),
        ("'rtmps://host/app/geheim?x=1': refused", "'rtmps://host/app/***': refused"),
    ],
)
def test_redact_knows_where_secrets_stand(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://10.0.0.7:554/live?channel=1: connection refused, tell ops@example.org",
        "--set takes key=value, got 'x'",
        "monkey=1 http://host/turkey=2",
    ],
)
def test_redact_leaves_other_text_alone(text: str) -> None:
    assert redact(text) == text


def test_no_log_line_holds_a_password_not_even_a_traceback() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactedFormatter("%(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise OSError("cannot open 'rtsp://me:geheim@cam/live'")
    except OSError:
        logger.exception("reading %s failed", "http://me:geheim@cam/")
    text = stream.getvalue()
    assert "geheim" not in text
    assert text.startswith("reading http://***@cam/ failed\nTraceback")


def test_configuration_errors_hold_no_password(tmp_path: Path) -> None:
    url = "rtsp://me:geheim@cam/live"
    broken = tmp_path / "broken.yaml"
    for yaml, overrides in (
        (f"sources: [{{name: a, link: '{url}'}}]", []),
        (f"sources: [{{input: ['{url}']}}]", []),
        (f"sources: {{input: '{url}'}}", []),
        (f"- {url}", []),
        (f"sources: ['{url}", []),
        ("", [url]),
        ("", [f"sources=[{url}"]),
    ):
        broken.write_text(yaml)
        with pytest.raises(ConfigError) as raised:
            load_config(broken, overrides=overrides)
        assert "geheim" not in str(raised.value)


@given(password=st.text(_visible, min_size=1, max_size=12))
def test_stars_keep_the_place_of_every_argument(password: str) -> None:
    arguments = ["run_stream.py", f"rtsp://me:{password}@cam/live", "--quiet", "a@b"]
    raw = b"".join(argument.encode("utf-8", "surrogatepass") + b"\0" for argument in arguments)
    starred = stars_over_secrets(raw)
    assert len(starred) == len(raw)
    first, url, *rest, end = starred.split(b"\0")
    assert (first, rest, end) == (b"run_stream.py", [b"--quiet", b"a@b"], b"")
    assert re.fullmatch(rb"rtsp://\*+@cam/live", url)


@pytest.mark.skipif(sys.platform != "linux", reason="arguments can be overwritten on Linux alone")
def test_other_processes_do_not_see_a_password_among_the_arguments() -> None:
    script = (
        "import sys; from common.redaction import hide_arguments; hide_arguments();"
        "print(open('/proc/self/cmdline').read()); print(sys.argv[1])"
    )
    url = "rtsp://me:geheim@cam/live"
    command = [sys.executable, "-c", script, url, "--last"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    shown, kept = result.stdout.splitlines()
    assert shown.split("\0")[-3:] == ["rtsp://*********@cam/live", "--last", ""]
    assert kept == url


def test_a_plain_url_has_nothing_that_may_be_secret() -> None:
    url = "https://me:pw@host:8/a/b.pth?X-Amz-Signature=1#sha256=0"
    assert plain_url(url) == "https://host:8/a/b.pth?..."
    assert plain_url("https://host/b.pth") == "https://host/b.pth"
