"""The loop that all stages share: receive -> work -> send -> count, in a thread of its own.

    inputs  ->  work(message) -> messages  ->  every output        a stage between
    frames()                               ->  every output        a source
    inputs  ->  work(message)                                      a sink

    end of the input:  close hook (files are finished)  ->  END to every output
    failure, stop:     close hook (files are finished)  ->  no END; the stop event reaches the rest

A stage makes its queues' ends in its own thread, for a socket belongs to one. This file knows
nothing of what a stage does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal

from pipeline.messages import Frame, NetInput, NetOutput, Poses
from pipeline.runtime.queues.credit import END, End, Message, Stopped
from pipeline.runtime.queues.queue import Queue
from pipeline.runtime.queues.receiver import Receiver, receive_any
from pipeline.runtime.queues.sender import Sender
from pipeline.runtime.stats import Stats

Work = Callable[[Message], Iterable[Message] | None]
"""What a stage does with a message, or with a list of messages (see Stage.batch)."""

_ERRAND_SECONDS = 0.1  # how soon an errand is noticed while no message comes

_log = logging.getLogger(__name__)


class StageError(Exception):
    """A stage failed; its name and message stand in the text, the reason in `__cause__`."""


class Stage(threading.Thread):
    """One step of the stream. `start()` it, wait for `ready`, `join()` it, then look at `error`.

    Args:
        name: of the stage; also the thread's.
        work: called with each message; what it returns or yields goes to every output. With
            `batch` it is called with a list of 1 to `batch` messages, at most one of each input.
        frames: what a source iterates over instead of inputs; one of `work` and `frames` is given.
        inputs: queues to receive from; more than one needs `batch`.
        outputs: queues to send to; none for a sink.
        route: which of the outputs, by number, a result goes to; None: to all of them.
        admit: chooses which of the messages just received are worked on; it counts the others.
        open: called in the stage's thread before the first message.
        close: called in the stage's thread after the last message; always, also after a failure
            (even of `open`) and a stop. A file is finished here.
        forget: forgets what is kept of a source, by its name; see forget_source().
        stats: where the work is counted.
        stop: shared by all stages of the stream: once set, all of them end soon.
        fatal: False: a failure ends this stage alone, its outputs get END and the others go on
            (one source of several).
        idle: it goes on without any input, waiting for add_input(), until let_end().
    """

    def __init__(
        self,
        name: str,
        work: Work | None = None,
        *,
        frames: Callable[[], Iterator[Frame]] | None = None,
        inputs: Sequence[Queue] = (),
        outputs: Sequence[Queue] = (),
        batch: int | None = None,
        route: Callable[[Message], int] | None = None,
        admit: Callable[[Sequence[Message]], Sequence[Message]] | None = None,
        open: Callable[[], None] | None = None,
        close: Callable[[], None] | None = None,
        forget: Callable[[str], None] | None = None,
        stats: Stats,
        stop: threading.Event,
        fatal: bool = True,
        idle: bool = False,
    ) -> None:
        assert (work is None) != (frames is None), "a stage has work or frames"
        assert bool(inputs) or idle or work is None, "work needs inputs"
        assert frames is None or not inputs, "a source has no inputs"
        assert len(inputs) <= 1 or batch is not None, "several inputs need a batch size"
        super().__init__(name=name, daemon=True)
        self.ready = threading.Event()
        """Set once sockets and files are open, or that has failed."""
        self.error: StageError | None = None
        """Why the stage failed; None while it has not."""
        self._work = work
        self._frames = frames
        self._inputs = inputs
        self._outputs = outputs
        self._batch = batch
        self._route = route
        self._admit = admit
        self._open = open
        self._close = close
        self._forget = forget
        self._stats = stats
        self._stop_event = stop
        self._fatal = fatal
        self._idle = idle
        self._receivers: list[Receiver] = []  # those that have not ended, in the order of turns
        self._senders: list[Sender] = []
        self._tasks: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()  # of _errands and _takes_errands
        self._takes_tasks = True

    @property
    def unheard(self) -> list[str]:
        """Endpoints at whose other end no process has been so far; from any thread."""
        # Senders are made in the order of the outputs, and have resolved their endpoints.
        outputs = zip(self._outputs, self._senders.copy(), strict=False)
        return [queue.endpoint for queue, sender in outputs if not sender.met] + [
            receiver.endpoint for receiver in self._receivers.copy() if not receiver.met
        ]

    def post(self, task: Callable[[], None]) -> bool:
        """Have something done by the stage's thread between two messages; from any thread.

        False: the stage is at its end, and it will not be done.
        """
        with self._lock:
            if self._takes_tasks:
                self._tasks.append(task)
            return self._takes_tasks

    def add_input(self, queue: Queue) -> bool:
        """Receive from one queue more, while the stage runs; as `soon`. Needs `batch`."""
        assert self._batch is not None, "several inputs need a batch size"
        return self.post(partial(self._make_receiver, queue))

    def forget_source(self, name: str) -> None:
        """A source has gone: what the stage keeps of it is given up between two messages."""
        if self._forget is not None:
            self.post(partial(self._forget, name))

    def let_end(self) -> None:
        """The stage no longer waits for inputs to come: it ends with those it has."""
        self._idle = False

    def run(self) -> None:
        try:
            self._guard(self._run_to_the_end)
            if self._close is not None:
                self._guard(self._close)  # before END: who gets that may count on the files
            if not self._stop_event.is_set():
                for sender in self._senders:
                    self._guard(sender.close)
        finally:
            with self._lock:
                self._takes_tasks = False
            self._release()
            self.ready.set()

    def _run_to_the_end(self) -> None:
        self._make_ends()
        if self._open is not None:
            self._open()
        self.ready.set()
        if self._frames is not None:
            self._run_source(self._frames())
        elif self._work is not None:
            self._run_work(self._work)

    def _run_source(self, frames: Iterator[Frame]) -> None:
        while True:
            started_ns = time.perf_counter_ns()
            frame = next(frames, None)
            ms = (time.perf_counter_ns() - started_ns) / 1e6
            if frame is None:
                return
            self._stats.worked(self.name, ms, (frame.source,))
            self._send(frame)
            del frame  # its pixels need not stay while the next one is awaited

    def _run_work(self, work: Work) -> None:
        while (message := self._receive()) is not END:
            sources = [frame.source for frame in _frames_of(message)]
            try:
                ms = self._work_on(work, message)
            except Stopped:
                raise
            except Exception as error:
                raise StageError(f"{self.name} failed on {message!r}: {_say(error)}") from error
            self._stats.worked(self.name, ms, sources)
            del message  # its pixels (a slot, over ipc) need not stay while the next is awaited

    def _receive(self) -> Message | Literal[End.END]:
        while True:
            self._run_tasks()
            # Nothing is taken before its result is wanted: of a live source it would grow old.
            for sender in self._senders:
                sender.wait_until_wanted()
            before, waiting = list(self._receivers), list(self._receivers)
            try:
                messages = receive_any(waiting, self._batch or 1, timeout_seconds=_ERRAND_SECONDS)
            except TimeoutError:
                continue
            for receiver in before:
                if receiver not in waiting:
                    receiver.close()  # it has ended; a stream may run for weeks after
            self._receivers = waiting
            if messages is not END:
                admitted = messages if self._admit is None else self._admit(messages)
                self._give_turns_back(before, messages, admitted)
                if admitted:
                    return list(admitted) if self._batch is not None else admitted[0]
            elif self._idle:
                if self._stop_event.wait(_ERRAND_SECONDS):
                    raise Stopped
            elif self._is_over():
                return END

    def _give_turns_back(
        self, before: list[Receiver], messages: Sequence[Message], admitted: Sequence[Message]
    ) -> None:
        """An input whose message is not worked on keeps its turn, or it might never have one."""
        if len(admitted) == len(messages):
            return
        served = self._receivers[-len(messages) :]  # as receive_any leaves them
        kept = {id(message) for message in admitted}
        pairs = zip(served, messages, strict=True)
        worked_on = [receiver for receiver, message in pairs if id(message) in kept]
        others = [r for r in before if r in self._receivers and r not in worked_on]
        self._receivers = others + worked_on

    def _run_tasks(self) -> None:
        while self._tasks:
            self._tasks.popleft()()

    def _is_over(self) -> bool:
        """With the inputs all at their end: unless an errand brings another."""
        with self._lock:
            self._takes_tasks = bool(self._tasks)
        return not self._takes_tasks

    def _work_on(self, work: Work, message: Message) -> float:
        """Send every result as soon as it is made; milliseconds of the making alone."""
        started_ns = time.perf_counter_ns()
        work_ns = 0
        results = iter(work(message) or ())
        while True:
            result = next(results, None)
            work_ns += time.perf_counter_ns() - started_ns
            if result is None:
                return work_ns / 1e6
            self._send(result)
            started_ns = time.perf_counter_ns()

    def _send(self, message: Message) -> None:
        senders = self._senders
        if self._route is not None:
            senders = [senders[self._route(message)]]
        for sender in senders:
            sender.send(message)

    def _make_ends(self) -> None:
        for queue in self._inputs:
            self._make_receiver(queue)
        for queue in self._outputs:
            sender = queue.sender(stop=self._stop_event, on_drop=self._count_drop)
            self._senders.append(sender)
            self._stats.watch_queue(queue.endpoint, partial(_depth, sender))

    def _make_receiver(self, queue: Queue) -> None:
        self._receivers.append(queue.receiver(stop=self._stop_event))

    def _count_drop(self, message: Message, reason: str) -> None:
        for frame in _frames_of(message):
            has_poses = isinstance(message, Poses)
            self._stats.dropped(self.name, frame.source, reason, has_poses=has_poses)

    def _guard(self, action: Callable[[], None]) -> None:
        """Run one part of the stage's life; a failure is kept, and stops the stream if fatal."""
        try:
            action()
        except Stopped:
            _log.debug("%s was stopped", self.name)
        except Exception as error:
            if self.error is None:
                self.error = _as_stage_error(self.name, error)
            _log.debug("%s failed", self.name, exc_info=True)
            if self._fatal:
                self._stop_event.set()

    def _release(self) -> None:
        for queue in self._outputs:
            self._stats.unwatch_queue(queue.endpoint)
        for sender in self._senders:
            sender.abort()  # does nothing where close() has
        for receiver in self._receivers:
            receiver.close()


def _frames_of(message: Message) -> Sequence[Frame]:
    """The frames that a message is about; for counting."""
    if isinstance(message, Frame):
        return (message,)
    if isinstance(message, Poses):
        return (message.frame,)
    if isinstance(message, NetInput | NetOutput):
        return message.frames
    if isinstance(message, list):  # a batch
        return [frame for part in message for frame in _frames_of(part)]
    return ()


def _depth(sender: Sender) -> int:
    return sender.depth


def _as_stage_error(name: str, error: Exception) -> StageError:
    if isinstance(error, StageError):
        return error
    wrapped = StageError(f"{name} failed: {_say(error)}")
    wrapped.__cause__ = error
    return wrapped


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
