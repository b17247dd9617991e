"""What may be asked of the page's API; the server has its own tests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.stats import LoadSnapshot
from pipeline.sinks.page.api import SCHEMES, ApiError, PageApi, source_from_json
from tests.support.page_stand import LOST, Stand


def refusal(body: bytes | dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        source_from_json(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


@pytest.mark.parametrize("scheme", [*SCHEMES, "RTSP"])
def test_network_sources_are_taken(scheme: str) -> None:
    source = source_from_json(
        json.dumps({"input": f"{scheme}://cam/live", "name": "c", "max_fps": 5}).encode()
    )
    assert source.input == f"{scheme}://cam/live"
    assert (source.name, source.max_fps) == ("c", 5.0)


@pytest.mark.parametrize(
    "text",
    ["/etc/passwd", "file:///etc/passwd", "0", "demo", "concat:a|b", "ftp://a/b", "pipe:0", "", "~",
     "rtsp:/a", "rtsp://", "http:///", "data:x", "rtsp://a b", "rtsp://a\n", "udp://1.2.3.4:5",
     "http://" + "a" * 3000, "file:rtsp://a", "rtmps://a/b/c"],
)  # fmt: skip
def test_nothing_else_is(text: str) -> None:
    assert refusal({"input": text}).status == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5000, b'{"input": 1}', b'{"input": null}',
     b'"rtsp://a"', b'{"input": "rtsp://a", "max_fps": -1}', b'{"input":"rtsp://a","roi":[1]}',
     b'{"input": "rtsp://a", "name": "a/b"}', b'{"input": "rtsp://a", "name": "\\u0000"}',
     b'{"input": "rtsp://a", "name": "' + b"x" * 99 + b'"}', b'{"input":"rtsp://a","loop":true}',
     b'{"input": "rtsp://a", "options": {"protocol_whitelist": "file"}}'],
)  # fmt: skip
def test_malformed_bodies_are_refused_in_one_line(body: bytes) -> None:
    error = refusal(body)
    assert error.status == 400
    assert "\n" not in error.reason
    assert len(error.reason) < 200


@given(st.binary(max_size=200))
def test_no_body_breaks_it(body: bytes) -> None:
    assert refusal(body).status == 400


def test_a_refusal_holds_nothing_of_the_password() -> None:
    body = {"input": "rtsp://me:geheim@cam/live", "rotation": 45}
    assert "geheim" not in refusal(body).reason


def test_sources_are_added_and_removed() -> None:
    stand = Stand()
    api = PageApi(stand.subject())
    assert api.add(b'{"input": "rtsp://cam/live", "name": "new"}') == {"name": "new"}
    assert [source.name for source in stand.added] == ["new"]
    with pytest.raises(ApiError, match="is taken") as taken:
        api.add(b'{"input": "rtsp://cam/live", "name": "cam1"}')
    assert taken.value.status == 409
    assert api.remove("cam1") == {"name": "cam1"}
    assert stand.removed == ["cam1"]
    with pytest.raises(ApiError) as unknown:
        api.remove("nobody")
    assert unknown.value.status == 404


def test_a_stream_that_cannot_change_says_so() -> None:
    api = PageApi(Stand().subject(can_change=False))
    with pytest.raises(ApiError, match="cannot be changed while it runs") as error:
        api.add(b'{"input": "rtsp://a"}')
    assert error.value.status == 501
    with pytest.raises(ApiError, match="cannot be changed while it runs") as error:
        api.remove("cam1")
    assert error.value.status == 501
    assert api.streams()["can_change"] is False


def test_what_is_given_up_under_load_is_told() -> None:
    stand = Stand()
    api = PageApi(stand.subject())
    assert api.streams()["load"] is None
    load: LoadSnapshot = {
        "step": 2, "changes": 5, "input_size": 384, "refine": "off", "fps": 6.4,
        "reason": "too much", "text": "input 384, refine off, 6.4 fps each",
    }  # fmt: skip
    stand.stats.watch_load(lambda: load)
    assert api.streams()["load"] == load


def test_a_camera_that_is_down_is_named_and_fails_nothing() -> None:
    stand = Stand()
    stand.statuses["door"] = LOST
    status, health = PageApi(stand.subject()).health(in_detail=True)
    assert (status, health["status"], health["down"]) == (200, "ok", ["door"])
    stand.stages["inference"] = False
    status, health = PageApi(stand.subject()).health(in_detail=True)
    assert (status, health["stages"]) == (503, {"inference": "failed", "page": "ok"})
    assert PageApi(stand.subject()).health(in_detail=False) == (503, {"status": "failed"})
