"""How often a line may repeat in the log."""

import logging

import pytest

from common.rare_log import RareLog


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rare_log(clock: Clock, lines_a_minute: int) -> RareLog:
    return RareLog(logging.getLogger("rare"), lines_a_minute=lines_a_minute, now=clock)


def test_three_lines_of_a_kind_in_a_minute_and_the_others_are_counted(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = rare_log(clock, 3)
    for _ in range(5):
        log.warning("lost")
    log.warning("connected")
    assert caplog.messages == ["lost", "lost", "lost", "connected"]
    clock.seconds += 61
    log.warning("lost")
    log.warning("lost")
    assert caplog.messages[4:] == ["lost (and 2 times more of late)", "lost"]


def test_a_kind_may_have_several_lines_and_levels(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = rare_log(clock, 1)
    with caplog.at_level(logging.INFO):
        log.log(logging.INFO, "size 1", kind="size")
        log.log(logging.INFO, "size 2", kind="size")
    assert [(r.levelname, r.message) for r in caplog.records] == [("INFO", "size 1")]


def test_what_was_held_back_is_summed_up_after_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = rare_log(clock, 1)
    for _ in range(1000):
        log.warning("refused 192.0.2.1")
    log.warning("refused 192.0.2.2")
    log.sum_up()
    assert caplog.messages == ["refused 192.0.2.1", "refused 192.0.2.2"]
    clock.seconds += 60
    log.sum_up()
    log.sum_up()
    assert caplog.messages[2:] == ["refused 192.0.2.1 (and 999 times more of late)"]


def test_any_number_of_kinds_fills_neither_memory_nor_the_log(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = rare_log(clock, 1)
    for number in range(10_000):
        log.warning(f"error {number}")
    assert len(caplog.messages) == len(log._kinds) == 65
    clock.seconds += 60
    log.warning("a new kind")  # the others are forgotten by now
    assert caplog.messages[65:] == ["a new kind"]
    log.sum_up()
    assert caplog.messages[66:] == ["error 9999 (and 9935 times more of late)"]
