"""Where the parts of a cut stream meet: whether they can, and a word on who does not come.

    sources --frames--> network --poses--> sinks        the left side of a cut listens

Knows addresses; nothing of stages and what crosses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from common.settings import ConfigError
from pipeline.config import QueuesConfig
from pipeline.runtime.processes import Part, endpoint
from pipeline.runtime.queues.connection import check_bind

_SIDES: dict[str, tuple[Part, Part]] = {
    "frames": ("sources", "network"),
    "poses": ("network", "sinks"),
}
"""Of each cut: who listens, who connects."""
_FIRST_SECONDS = 5.0
_LONGEST_SECONDS = 600.0

_log = logging.getLogger(__name__)


def check_addresses(
    queues: QueuesConfig, parts: Sequence[Part], num_queues: Mapping[str, int]
) -> None:
    """Make sure that this process can listen where it has to.

    Args:
        parts: those of this process.
        num_queues: of each cut: one for a source, one for a sink.
    Raises:
        ConfigError: an address of a cut is not this machine's, or is in use; one line.
    """
    for cut, (listening, connecting) in _SIDES.items():
        address = getattr(queues, cut)
        if address == "inproc" or listening not in parts or connecting in parts:
            continue
        for number in range(num_queues[cut]):
            try:
                check_bind(endpoint(address, cut, number))
            except ValueError as error:
                raise ConfigError(f"setting 'queues.{cut}': {error}") from None


class Awaited:
    """Says whom this process waits for: after 5 s, then after 10, 20, ... at most 10 minutes."""

    def __init__(
        self,
        queues: QueuesConfig,
        parts: Sequence[Part],
        num_queues: Mapping[str, int],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """As check_addresses; `now` is the clock, in seconds."""
        self._now = now
        self._seconds = _FIRST_SECONDS
        self._due = now() + self._seconds
        self._far_side: dict[str, Part] = {}
        for cut, (listening, connecting) in _SIDES.items():
            far = connecting if listening in parts else listening
            for number in range(num_queues[cut]):
                self._far_side[endpoint(getattr(queues, cut), cut, number)] = far

    def tick(self, unheard: Callable[[], Sequence[str]]) -> None:
        """Call it often.

        Args:
            unheard: the endpoints at whose other end nobody has been so far.
        """
        if self._now() < self._due:
            return
        self._seconds = min(2 * self._seconds, _LONGEST_SECONDS)
        self._due = self._now() + self._seconds
        first: dict[str, str] = {}  # of each part that has not come
        for address in unheard():
            if address in self._far_side:
                first.setdefault(self._far_side[address], address)
        for part, address in first.items():
            _log.warning("waiting for the %s at %s (nothing heard yet)", part, address)
