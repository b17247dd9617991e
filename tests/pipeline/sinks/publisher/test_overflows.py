"""The count of lost messages against the definition: a queue that is full until half is read."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sinks.publisher.overflows import Overflows

LENGTH = 12
LOW = (LENGTH + 1) // 2  # libzmq tells the writer of free places after every so many reads


@dataclass
class Sent:
    holders: int = 0

    @property
    def done(self) -> bool:
        return self.holders == 0


@dataclass
class Queue:
    """One subscriber's, as libzmq's pipe_t keeps it."""

    topics: set[bytes]
    held: deque[Sent] = field(default_factory=deque)
    written: int = 0
    read: int = 0
    told: int = 0  # reads that the writer knows of
    left_out: bool = False

    def wants(self, topic: bytes) -> bool:
        return topic in self.topics

    def is_full(self) -> bool:
        return self.written - self.told >= LENGTH

    def take(self, message: Sent) -> None:
        self.held.append(message)
        self.written += 1
        message.holders += 1

    def read_one(self) -> None:
        if self.held:
            self.held.popleft().holders -= 1
            self.read += 1
            if self.read % LOW == 0:
                self.told = self.read
                self.left_out = False


def publish(queues: list[Queue], topic: bytes, overflows: Overflows) -> bool:
    """One message, as XPUB does it. Returns whether somebody who wanted it went without."""
    wanting = [queue for queue in queues if queue.wants(topic)]
    lost = any(queue.left_out or queue.is_full() for queue in wanting)
    found_full = any(not queue.left_out and queue.is_full() for queue in wanting)
    message = Sent()
    for queue in wanting:
        if queue.left_out or queue.is_full():
            queue.left_out = True
        else:
            queue.take(message)
    overflows.sent(topic, message, found_full=found_full)
    return lost


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=400))
def test_exact_for_one_slow_subscriber_beside_fast_ones(reads: list[int]) -> None:
    overflows = Overflows(queued_messages=LENGTH)
    slow, fast = Queue({b"a"}), Queue({b"a", b"b"})
    lost = 0
    for number in reads:
        publish([slow, fast], b"b", overflows)
        lost += publish([slow, fast], b"a", overflows)
        for _ in range(number % 3):  # 0, 1 or 2 reads for each message
            slow.read_one()
        while fast.held:
            fast.read_one()
    assert overflows.by_topic == Counter({b"a": lost} if lost else {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=400))
def test_never_fewer_than_were_lost_when_two_are_slow(reads: list[tuple[int, int]]) -> None:
    overflows = Overflows(queued_messages=LENGTH)
    queues = [Queue({b"a"}), Queue({b"a"})]
    lost = 0
    for numbers in reads:
        lost += publish(queues, b"a", overflows)
        for queue, number in zip(queues, numbers, strict=True):
            for _ in range(number):
                queue.read_one()
    assert overflows.by_topic[b"a"] >= lost


def test_every_message_for_somebody_who_never_reads_and_none_once_he_is_gone() -> None:
    overflows = Overflows(queued_messages=LENGTH)
    dead, alive = Queue({b"a"}), Queue({b"a"})
    for _ in range(1000):
        publish([dead, alive], b"a", overflows)
        alive.read_one()
    assert overflows.by_topic == {b"a": 1000 - LENGTH}
    assert len(overflows._held) < 200, "what nobody holds is forgotten"
    for message in dead.held:  # libzmq drops the queue with the connection
        message.holders -= 1
    for _ in range(100):
        publish([alive], b"a", overflows)
        alive.read_one()
    assert overflows.by_topic == {b"a": 1000 - LENGTH}
