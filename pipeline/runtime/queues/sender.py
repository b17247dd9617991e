"""The sending end of a queue."""

from __future__ import annotations

import threading
from typing import Self

from pipeline.runtime.queues.connection import Context, process_context
from pipeline.runtime.queues.credit import POLL_MS, Message, OnDrop, Policy, raise_if_set
from pipeline.runtime.queues.mailbox import Mailbox
from pipeline.runtime.queues.outlet import Drops, Outlet

_CLOSE_SECONDS = 5.0


class Sender:
    """The sending end. Made, used and closed in one thread.

    In a `with` block, leaving normally is close() and leaving by an exception is abort().

    Args:
        endpoint: where to bind; a free tcp port is `tcp://127.0.0.1:*`, see `self.endpoint`.
        policy: `wait` or `drop_oldest`.
        pixels: False sends frames without their pixels over ipc and tcp.
        stop: ends every wait with Stopped; share one event among all stages of a stream.
        on_drop: called with every message that will not arrive, by the thread that sends or by
            the sender's own.
        context: another ZeroMQ context than the process's.

    Raises:
        ValueError: the endpoint is malformed or in use.
    """

    endpoint: str
    """Where it is bound."""

    def __init__(
        self,
        endpoint: str,
        *,
        policy: Policy = "wait",
        pixels: bool = True,
        stop: threading.Event | None = None,
        on_drop: OnDrop | None = None,
        context: Context | None = None,
    ) -> None:
        self._stop = stop or threading.Event()
        self._drops = Drops(on_drop)
        self._closed = False
        self._outlet: Outlet | None = None
        self._mailbox: Mailbox | None = None
        context = context or process_context()
        if policy == "drop_oldest":
            self._mailbox = Mailbox(
                endpoint, pixels=pixels, context=context, drops=self._drops, stop=self._stop
            )
            self.endpoint = self._mailbox.open()
        elif policy == "wait":
            self._outlet = Outlet(endpoint, pixels=pixels, context=context, drops=self._drops)
            self.endpoint = self._outlet.endpoint
        else:
            raise ValueError(f"policy must be wait or drop_oldest, got {policy!r}")

    @property
    def met(self) -> bool:
        """Whether a receiver was ever there, as far as noticed; always True for inproc."""
        outlet = self._mailbox.outlet if self._mailbox else self._outlet
        return outlet is None or outlet.met

    @property
    def dropped(self) -> int:
        """Messages that will not arrive, so far."""
        return self._drops.count

    @property
    def depth(self) -> int:
        """Messages waiting (0 or 1) and in flight (0 or 1)."""
        if self._mailbox:
            return self._mailbox.depth
        return self._outlet.depth if self._outlet else 0

    def send(self, message: Message) -> None:
        """Hand a message over: blocks until the receiver wants one (wait) or never (drop_oldest).

        Raises:
            Stopped: the stop event is set.
            ValueError: the message cannot cross to another process.
        """
        if self._closed:
            raise ValueError(f"{self.endpoint}: send() after close()")
        raise_if_set(self._stop)
        if self._mailbox:
            self._mailbox.put(message)
            return
        self.wait_until_wanted()
        assert self._outlet is not None
        self._outlet.deliver(message)

    def wait_until_wanted(self) -> None:
        """Block until a message could leave at once (wait), or not at all (drop_oldest).

        Raises:
            Stopped: the stop event is set.
        """
        while self._outlet is not None and not self._outlet.has_credit:
            raise_if_set(self._stop)
            self._outlet.service(POLL_MS)

    def close(self, *, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """Deliver the last message and END, then release everything.

        Waits as long as a receiver is there, and at most `timeout_seconds` while none is.

        Raises:
            Stopped: the stop event was set first; everything is released all the same.
        """
        if self._closed:
            return
        self._closed = True
        if self._mailbox:
            self._mailbox.finish(timeout_seconds)
            return
        assert self._outlet is not None
        try:
            self._outlet.finish(self._stop, timeout_seconds)
        finally:
            self._outlet.close()

    def abort(self) -> None:
        """Release everything at once, without END. After close() there is nothing left to do."""
        if self._closed:
            return
        self._closed = True
        if self._mailbox:
            self._mailbox.abort()
        if self._outlet:
            self._outlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
        else:
            self.abort()
