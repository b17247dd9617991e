"""Who is due what: newest wins, whoever is slow."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from pipeline.sinks.page.viewers import Audience, View

SMALL, LARGE = View("message", 320), View("message", 640)


def test_nothing_is_wanted_of_a_source_that_nobody_watches() -> None:
    audience = Audience()
    viewer = audience.join()
    assert audience.wanted("cam1") == frozenset()
    viewer.watch({"cam1": SMALL})
    assert audience.wanted("cam1") == {SMALL}
    assert audience.wanted("cam2") == frozenset()
    viewer.watch({"cam2": LARGE})
    assert audience.wanted("cam1") == frozenset()
    audience.leave(viewer)
    assert audience.wanted("cam2") == frozenset()
    assert len(audience) == 0


def test_each_view_is_wanted_once_however_many_want_it() -> None:
    audience = Audience()
    for view in (SMALL, SMALL, LARGE):
        audience.join().watch({"cam1": view})
    assert audience.wanted("cam1") == {SMALL, LARGE}


def test_a_slow_viewer_costs_nothing_and_does_not_hold_back_a_fast_one() -> None:
    audience = Audience()
    slow, fast = audience.join(), audience.join()
    for viewer in (slow, fast):
        viewer.watch({"cam1": SMALL})
    received = []
    for i in range(10):
        audience.deliver("cam1", {SMALL: bytes([i])})
        received.append(asyncio.run(fast.receive()))
        fast.acknowledge("cam1")
    assert received == [bytes([i]) for i in range(10)]
    audience.leave(fast)
    assert audience.wanted("cam1") == frozenset(), "nobody is due a frame, so none is made"
    assert asyncio.run(slow.receive()) == bytes([0])
    slow.acknowledge("cam1")
    assert audience.wanted("cam1") == {SMALL}
    audience.deliver("cam1", {SMALL: b"new"})
    assert [asyncio.run(slow.receive()) for _ in range(2)] == [bytes([1]), b"new"]


def test_silence_is_counted_only_while_something_is_on_its_way() -> None:
    seconds = [100.0]
    audience = Audience(now=lambda: seconds[0])
    viewer = audience.join()
    viewer.watch({"cam1": SMALL})
    seconds[0] += 5
    assert viewer.silent_seconds == 0.0
    audience.deliver("cam1", {SMALL: b"x"})
    seconds[0] += 2
    audience.deliver("cam1", {SMALL: b"y"})
    seconds[0] += 1
    assert viewer.silent_seconds == 3.0
    viewer.acknowledge("cam1")
    assert viewer.silent_seconds == 0.0
    seconds[0] += 4
    assert viewer.silent_seconds == 4.0, "the second is still on its way"
    viewer.acknowledge("cam1")
    assert viewer.silent_seconds == 0.0


@given(st.lists(st.sampled_from(["frame", "ack", "watch", "leave"]), max_size=60))
def test_what_is_wanted_is_what_somebody_is_due(steps: list[str]) -> None:
    audience = Audience()
    viewer = audience.join()
    here = True
    for step in steps:
        if step == "frame":
            audience.deliver("cam1", dict.fromkeys(audience.wanted("cam1"), b"x"))
        elif step == "ack":
            viewer.acknowledge("cam1")
            viewer.acknowledge("unknown")
        elif step == "watch" and here:
            viewer.watch({"cam1": SMALL})
        elif step == "leave":
            audience.leave(viewer)
            here = False
        is_due = here and viewer.is_due("cam1")
        assert audience.wanted("cam1") == ({SMALL} if is_due else frozenset())


def test_a_viewer_wakes_for_a_frame() -> None:
    async def wait_for_a_frame() -> bytes:
        audience = Audience()
        viewer = audience.join()
        viewer.watch({"cam1": SMALL})
        waiting = asyncio.create_task(viewer.receive())
        await asyncio.sleep(0)
        audience.deliver("cam1", {LARGE: b"other", SMALL: b"mine"})
        return await waiting

    assert asyncio.run(wait_for_a_frame()) == b"mine"
