"""How tests wait: for what must happen, however long a busy machine takes for it."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 150.0
"""For what happens at once on a quiet machine: nobody waits so long unless something hangs."""


def wait_until(condition: Callable[[], object], what: str | Callable[[], str] = "") -> None:
    """Until the condition is true; fails with `what` when it has not come true for long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(said or f"it did not happen within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.005)
