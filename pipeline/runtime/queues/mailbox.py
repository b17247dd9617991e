"""How a `drop_oldest` sender never blocks: a mailbox for one message and a thread behind it."""

from __future__ import annotations

import threading
import time

from pipeline.runtime.queues import handles
from pipeline.runtime.queues.connection import Context
from pipeline.runtime.queues.credit import POLL_MS, Message, Stopped, raise_if_set
from pipeline.runtime.queues.outlet import Drops, Outlet


class Mailbox(threading.Thread):
    """The thread of a `drop_oldest` sender: owns the socket, and the place for one message.

    It waits for the credit and then for a message, one after the other: both are needed, and the
    newest is taken only when it can leave at once. Inproc, where a handle travels, a newer message
    still takes the place behind it until the receiver has it, so that every turn finds the newest.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        pixels: bool,
        context: Context,
        drops: Drops,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"sender {endpoint}", daemon=True)
        self._endpoint = endpoint
        self._pixels = pixels
        self._context = context
        self._drops = drops
        self._stop_event = stop
        self._change = threading.Condition()
        self._waiting: Message | None = None
        self._handle: bytes | None = None  # of the message in flight, inproc
        self._closing_since: float | None = None
        self._timeout_seconds = 0.0
        self._aborted = False
        self._opened = threading.Event()
        self.outlet: Outlet | None = None
        """None until open()."""
        self._error: BaseException | None = None

    @property
    def depth(self) -> int:
        return int(self._waiting is not None) + (self.outlet.depth if self.outlet else 0)

    def open(self) -> str:
        """Start; the endpoint that it bound."""
        self.start()
        self._opened.wait()
        if self.outlet is None:
            assert self._error is not None
            raise self._error
        return self.outlet.endpoint

    def put(self, message: Message) -> None:
        """Accept the newest message, in place of one that nobody has asked for yet."""
        if self._error is not None:
            raise self._error
        with self._change:
            replaced, self._waiting = self._waiting, message
            overtaken = self._overtake()
            self._change.notify()
        for older in (replaced, overtaken):
            if older is not None:
                self._drops.add(older, "newer")

    def finish(self, timeout_seconds: float) -> None:
        """Deliver what waits and END; see Sender.close."""
        with self._change:
            self._timeout_seconds = timeout_seconds
            self._closing_since = time.monotonic()
            self._change.notify()
        self.join()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """End the thread at once, without END."""
        with self._change:
            self._aborted = True
            self._change.notify()
        self.join()

    def run(self) -> None:
        try:
            outlet = self.outlet = Outlet(
                self._endpoint,
                pixels=self._pixels,
                context=self._context,
                drops=self._drops,
                newer=self._take_waiting,
            )
        except Exception as error:
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            self._serve(outlet)
        except Exception as error:
            self._error = error
        finally:
            outlet.close()
            undelivered = self._take_waiting()
            if undelivered is not None:
                self._drops.add(undelivered, "undelivered")

    def _serve(self, outlet: Outlet) -> None:
        while True:
            while not outlet.has_credit and not self._is_over(outlet):
                outlet.service(POLL_MS)
            with self._change:
                while self._waiting is None and not self._is_over(outlet):
                    self._change.wait(POLL_MS / 1e3)
            outlet.service(0)  # the receiver may have left while no message came
            if outlet.has_credit:
                message = self._take_waiting()
                if message is not None:
                    outlet.deliver(message)
                    self._note_handle(outlet)
            if self._is_over(outlet):
                outlet.finish(self._stop_event, self._timeout_seconds)
                return

    def _note_handle(self, outlet: Outlet) -> None:
        with self._change:
            self._handle = outlet.handle
            overtaken = self._overtake()  # a message may have come since
        if overtaken is not None:
            self._drops.add(overtaken, "newer")

    def _overtake(self) -> Message | None:
        """Put the waiting message behind the handle in flight.

        Returns:
            What was there, or None if that was taken.
        """
        if self._handle is None or self._waiting is None:
            return None
        overtaken = handles.in_transit.swap(self._handle, self._waiting)
        if overtaken is None:
            self._handle = None
        else:
            self._waiting = None
        return overtaken

    def _is_over(self, outlet: Outlet) -> bool:
        """Whether close() was called, and what was left to deliver is gone or undeliverable."""
        raise_if_set(self._stop_event)
        if self._aborted:
            raise Stopped
        if self._closing_since is None:
            return False
        closing_seconds = time.monotonic() - self._closing_since
        nobody = min(closing_seconds, outlet.absent_seconds()) > self._timeout_seconds
        return self._waiting is None or nobody

    def _take_waiting(self) -> Message | None:
        with self._change:
            message, self._waiting = self._waiting, None
            return message
