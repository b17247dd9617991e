"""Real signals to this process, and what they count as."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.runtime.stop import StopRequest


@pytest.mark.parametrize(
    ("parent_repeats", "signals", "is_urgent"),
    [
        (False, [signal.SIGTERM], False),
        (False, [signal.SIGINT, signal.SIGINT], True),
        (False, [signal.SIGTERM, signal.SIGTERM], True),
        (True, [signal.SIGTERM, signal.SIGTERM], False),
        (True, [signal.SIGINT, signal.SIGTERM], True),
    ],
)
def test_what_is_said_twice_is_urgent_but_not_what_a_parent_repeats(
    parent_repeats: bool, signals: list[signal.Signals], is_urgent: bool
) -> None:
    with StopRequest(parent_repeats=parent_repeats) as request:
        assert request.seconds is None
        for number in signals:
            os.kill(os.getpid(), number)
        assert request.event.is_set()
        assert request.is_urgent is is_urgent
