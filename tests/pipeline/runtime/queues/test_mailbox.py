"""drop_oldest: the sender never blocks, the newest message wins, every other is counted."""

import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.messages import Frame
from pipeline.runtime.queues.credit import END
from pipeline.runtime.queues.receiver import Receiver
from pipeline.runtime.queues.sender import Sender
from tests.support.queue_ends import SCHEMES, Background, take
from tests.support.queue_peer import make_frame
from tests.support.waiting import wait_until


@pytest.mark.parametrize("scheme", SCHEMES)
def test_drop_oldest_keeps_the_newest_and_counts_the_rest(
    endpoint: Callable[[str], str], scheme: str
) -> None:
    count = 300
    address = endpoint(scheme)
    dropped: list[int] = []
    newest_sent = -1

    def on_drop(frame: Frame, reason: str) -> None:
        assert reason == "newer"
        dropped.append(frame.index)

    def run() -> int:
        nonlocal newest_sent
        with Sender(address, policy="drop_oldest", on_drop=on_drop) as sender:
            for index in range(count):
                sender.send(make_frame(index))
                newest_sent = index
        return sender.dropped

    taken = []
    with Receiver(address) as receiver:
        sending = Background(run)
        newest_at_grant = -1
        while True:
            newest_before = newest_sent
            frame = take(receiver)
            if frame is END:
                break
            # Its credit was granted when the one before was taken: nothing older may answer it.
            assert frame.index >= newest_at_grant
            newest_at_grant = newest_before
            taken.append(frame.index)
            while newest_sent < min(frame.index + 4, count - 1):  # much faster than this thread
                time.sleep(0.001)
    assert sending.result() == len(dropped)
    assert sorted(taken + dropped) == list(range(count))
    assert taken == sorted(taken)
    assert taken[-1] == count - 1
    assert len(dropped) > count // 4


def test_without_a_receiver_drop_oldest_never_blocks(endpoint: Callable[[str], str]) -> None:
    reasons: Counter[str] = Counter()
    sender = Sender(
        endpoint("inproc"),
        policy="drop_oldest",
        on_drop=lambda _, reason: reasons.update([reason]),
    )
    for index in range(1, 1001):
        sender.send(index)
    assert sender.depth == 1
    sender.close(timeout_seconds=0.1)
    assert reasons == {"newer": 999, "undelivered": 1}
    assert sender.dropped == 1000


def test_asking_late_gets_the_newest(endpoint: Callable[[str], str]) -> None:
    address = endpoint("inproc")
    sender = Sender(address, policy="drop_oldest")
    with Receiver(address, ahead=False) as receiver:
        for newest in (10, 20, 30):
            for index in range(newest - 9, newest + 1):
                sender.send(index)
            assert take(receiver) == newest
    sender.abort()


def test_asking_ahead_gets_the_newest_of_this_process_all_the_same(
    endpoint: Callable[[str], str],
) -> None:
    address = endpoint("inproc")
    dropped: list[tuple[int, str]] = []
    sender = Sender(address, policy="drop_oldest", on_drop=lambda *drop: dropped.append(drop))
    with Receiver(address) as receiver:
        sender.send(1)
        assert take(receiver) == 1
        sender.send(2)  # leaves at once: it was asked for
        wait_until(lambda: receiver._socket.poll(0) != 0)
        sender.send(3)
        sender.send(4)  # takes the place of what is on its way
        assert take(receiver) == 4
        assert dropped == [(2, "newer"), (3, "newer")]
        sender.send(5)
        assert take(receiver) == 5
    sender.abort()


def test_no_message_is_lost_or_doubled_while_newer_ones_overtake(
    endpoint: Callable[[str], str],
) -> None:
    """Every message is either taken or dropped, once, and those taken are in order."""
    address = endpoint("inproc")
    dropped: list[int] = []
    taken: list[int] = []

    def flood() -> None:
        sender = Sender(
            address, policy="drop_oldest", on_drop=lambda number, _: dropped.append(number)
        )
        with sender:
            for number in range(1, 20_001):
                sender.send(number)

    thread = threading.Thread(target=flood)
    with Receiver(address) as receiver:
        thread.start()
        while (number := take(receiver)) is not END:
            taken.append(number)
        thread.join()
    assert taken == sorted(taken)
    assert taken[-1] == 20_000
    assert sorted(taken + dropped) == list(range(1, 20_001))


def test_depth_counts_waiting_and_in_flight(endpoint: Callable[[str], str]) -> None:
    address = endpoint("inproc")
    sender = Sender(address, policy="drop_oldest")
    assert sender.depth == 0
    with Receiver(address) as receiver:
        sender.send(np.zeros(1))
        assert sender.depth == 1
        take(receiver)
        wait_until(lambda: sender.depth == 0)  # its receipt came, with the next credit
        sender.send(np.ones(1))
        wait_until(lambda: receiver._socket.poll(0) != 0)
        sender.send(np.ones(1))
        assert sender.depth == 1, "the newer one took its place"
        take(receiver)
    sender.abort()
    assert sender.depth == 0
