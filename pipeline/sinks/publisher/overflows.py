"""Counts messages that some subscriber could not take.

libzmq refuses a message when a subscriber's queue is full (XPUB_NODROP), but says so only once:
from then on it leaves that subscriber out, without a word, until half of the queue has been read.
What it has sent comes with a receipt, though: "nobody holds this message any more". A queue that
was full lets nothing in while more than half of what it held is still held.

    full -> | m1 m2 ... m12 |   refused, counted              held: 12
            |    ...        |   left out in silence, counted  held: 11 .. 7
            | m7 ... m12    |   served again                  held: 6

This file knows nothing of sockets.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

_FIRST_SWEEP = 64  # messages


class Receipt(Protocol):
    """Of a message that was sent."""

    @property
    def done(self) -> bool:
        """Whether no subscriber's queue holds it any more."""


class Overflows:
    """Counts by topic, from the sending thread.

    Exact to a few messages for one slow subscriber. When several are slow at once each may be
    taken for the other, and a message counts that all of them just got. Which topics the owner of a
    full queue listens to is known from what the queue holds; others are not counted for it.

    Args:
        queued_messages: length of a subscriber's queue (SNDHWM).
    """

    def __init__(self, *, queued_messages: int) -> None:
        self.by_topic: Counter[bytes] = Counter()
        self._half = queued_messages - (queued_messages + 1) // 2
        self._held: list[tuple[bytes, Receipt]] = []  # sent, oldest first; swept now and then
        self._sweep_at = _FIRST_SWEEP
        self._stuck: list[tuple[bytes, Receipt]] = []  # held when somebody's queue was full

    def sent(self, topic: bytes, receipt: Receipt, *, found_full: bool) -> None:
        """A message went to whoever had room; found_full: libzmq refused it first."""
        if found_full:
            self._stuck = _still_held(self._held)
        elif self._stuck:
            self._stuck = _still_held(self._stuck)
            if len(self._stuck) <= self._half:
                self._stuck = []
        # A full queue says which topics its owner listens to.
        if found_full or any(topic == other for other, _ in self._stuck):
            self.by_topic[topic] += 1
        self._held.append((topic, receipt))
        if len(self._held) > self._sweep_at:
            self._held = _still_held(self._held)
            self._sweep_at = 2 * len(self._held) + _FIRST_SWEEP


def _still_held(messages: list[tuple[bytes, Receipt]]) -> list[tuple[bytes, Receipt]]:
    return [(topic, receipt) for topic, receipt in messages if not receipt.done]
