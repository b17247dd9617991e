"""Queues with real threads, processes and sockets: order, drops, fairness, stops, deaths."""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zmq

from pipeline.messages import Frame
from pipeline.runtime.queues import queue as queues
from pipeline.runtime.queues.queue import (
    END,
    Queue,
    QueueError,
    Receiver,
    Sender,
    Stopped,
    receive_any,
)
from pipeline.runtime.queues.slots import sweep_leftovers
from tests.support.places import ROOT
from tests.support.queue_peer import is_intact, make_frame

pytestmark = pytest.mark.timeout(60)
SCHEMES = ["inproc", "ipc", "tcp"]


@pytest.fixture
def endpoint() -> Iterator[Callable[[str], str]]:
    """Makes addresses that nobody uses; short ones, for a Unix socket's path is limited."""
    folder = Path(tempfile.mkdtemp(prefix="q"))
    numbers = iter(range(1000))

    def make(scheme: str) -> str:
        number = next(numbers)
        if scheme == "inproc":
            return f"inproc://{folder.name}-{number}"
        if scheme == "ipc":
            return f"ipc://{folder}/{number}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    yield make
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test leaves no thread, no handle and no shared memory behind."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    # The helper of pyzmq's zero-copy sends is one for each process and stays.
    assert [thread for thread in left if type(thread).__name__ != "GarbageCollectorThread"] == []
    assert len(queues._handles) == 0
    assert own_segments() == []
    sweep_leftovers()  # of the processes that the test has killed


def own_segments() -> list[Path]:
    return list(Path("/dev/shm").glob(f"posestream-{os.getpid()}-*"))


class Background(threading.Thread):
    """A function in a thread; its result or its exception comes out of `result()`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self, timeout_seconds: float = 30.0) -> Any:
        self.join(timeout_seconds)
        assert not self.is_alive(), "still running"
        if self._error is not None:
            raise self._error
        return self._value


def wait_until(condition: Callable[[], bool]) -> None:
    """For what another thread does soon; the test's timeout ends it if that never happens."""
    while not condition():
        time.sleep(0.002)


def take(receiver: Receiver, timeout_seconds: float = 10) -> Any:
    """The next message (whose fields the test knows) or END."""
    return receiver.receive(timeout_seconds=timeout_seconds)


def send_all(address: str, messages: list[Any], **settings: Any) -> Background:
    """Send everything from another thread; its result is how many were dropped."""

    def run() -> int:
        with Sender(address, **settings) as sender:
            for message in messages:
                sender.send(message)
        return sender.dropped

    return Background(run)


class Peer:
    """A process of queue_peer.py and its lines."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.queue_peer", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.next_line().startswith("ready")

    def next_line(self, timeout_seconds: float = 30.0) -> str:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_seconds)
        assert readable or self.lines, "the peer says nothing"
        self.lines.append(self.process.stdout.readline().strip())
        return self.lines[-1]

    def wait_for(self, line: str) -> None:
        while self.next_line() != line:
            assert self.lines[-1], f"the peer ended without saying {line}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.finish()

    def finish(self) -> list[str]:
        """Wait for its end; every line it has said."""
        assert self.process.stdout is not None
        self.process.wait(30)
        self.lines += [line.strip() for line in self.process.stdout]
        self.process.stdout.close()
        return self.lines


def indices(lines: list[str], word: str) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(f"{word} ")]


# Everything arrives, in order


@pytest.mark.parametrize("ahead", [True, False])
def test_five_thousand_messages_arrive_in_order(
    endpoint: Callable[[str], str], ahead: bool
) -> None:
    address = endpoint("inproc")
    sending = send_all(address, list(range(1, 5001)))
    with Receiver(address, ahead=ahead) as receiver:
        assert [take(receiver) for _ in range(5000)] == list(range(1, 5001))
        assert take(receiver) is END
        assert take(receiver) is END
    assert sending.result() == 0


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_frames_arrive_whole_and_in_order(
    endpoint: Callable[[str], str], scheme: str, ahead: bool
) -> None:
    address = endpoint(scheme)
    with Receiver(address, ahead=ahead) as receiver:  # the receiver may be there first
        sending = send_all(address, [make_frame(index) for index in range(200)])
        for index in range(200):
            frame = take(receiver)
            assert frame.index == index
            assert frame.pixel_format == "yuv420p"
            assert is_intact(frame)
        assert take(receiver) is END
    assert sending.result() == 0


def test_inproc_passes_the_object_itself(endpoint: Callable[[str], str]) -> None:
    address = endpoint("inproc")
    message = object()
    sending = send_all(address, [message])
    with Receiver(address) as receiver:
        assert take(receiver) is message
        assert take(receiver) is END
    sending.result()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_pixels_stay_behind_if_nobody_wants_them(
    endpoint: Callable[[str], str], scheme: str
) -> None:
    address = endpoint(scheme)
    sending = send_all(address, [make_frame(7)], pixels=False)
    with Receiver(address) as receiver:
        frame = take(receiver)
        assert take(receiver) is END
    sending.result()
    assert (frame.index, frame.size, frame.planes) == (7, (288, 512), ())


def test_capture_times_do_not_shift_between_processes_of_one_machine(
    endpoint: Callable[[str], str],
) -> None:
    """Over tcp both ends must find a common clock; here they have one, so the answer is known."""
    address = endpoint("tcp")
    frames = [make_frame(index) for index in range(20)]
    sending = send_all(address, frames)
    with Receiver(address) as receiver:
        for sent in frames:
            time.sleep(0.02)  # each message waits in the socket: that is age, not another clock
            received = take(receiver)
            assert abs(received.captured_ns - sent.captured_ns) < 10e6
        assert take(receiver) is END
    sending.result()


# The newest wins


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
                time.sleep(0.001)
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
            time.sleep(0.01)  # much slower than the sender
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


# Several queues at one stage


def test_receive_any_serves_unequal_senders_in_turn(endpoint: Callable[[str], str]) -> None:
    """Two senders that are always ready, and one that rarely is; two messages at a time."""
    addresses = {name: endpoint("inproc") for name in ("busy", "busier", "rare")}
    stop = threading.Event()

    def flood(name: str) -> int:
        with Sender(addresses[name], stop=stop) as sender:
            for count in range(1, 100_000):
                sender.send((name, count))
        return 0

    def trickle() -> int:
        with Sender(addresses["rare"]) as sender:
            for count in range(1, 21):
                sender.send(("rare", count))
                time.sleep(0.005)
        return 0

    receivers = [Receiver(address) for address in addresses.values()]
    everyone = list(receivers)
    threads = [Background(lambda: flood("busy")), Background(lambda: flood("busier"))]
    rare = Background(trickle)
    served: Counter[str] = Counter()
    last: Counter[str] = Counter()
    while len(receivers) == 3:  # until the rare one has ended
        batch = receive_any(receivers, 2)
        assert batch is not END
        names = [name for name, _ in batch]
        assert 1 <= len(names) == len(set(names)) <= 2
        for name, count in batch:
            assert count == last[name] + 1
            last[name] = count
        served.update(names)
        time.sleep(0.002)  # work, during which the busy ones get ready again
    rare.result()
    assert served["rare"] == 20
    assert served["busy"] > 20
    assert 0.5 < served["busy"] / served["busier"] < 2
    stop.set()
    for thread in threads:
        with pytest.raises(Stopped):
            thread.result()
    for receiver in everyone:
        receiver.close()


def test_receive_any_takes_turns_strictly(endpoint: Callable[[str], str]) -> None:
    """With every queue ready and one message a call, the order is round robin."""
    addresses = [endpoint("inproc") for _ in range(3)]
    threads = [
        send_all(address, [(number, count) for count in range(10)])
        for number, address in enumerate(addresses)
    ]
    receivers = [Receiver(address) for address in addresses]
    everyone = list(receivers)
    order = []
    while True:
        wait_until(lambda: all(receiver._socket.poll(0) for receiver in receivers))
        batch = receive_any(receivers, 1)
        if batch is END:
            break
        order += batch
    assert order == [(number, count) for count in range(10) for number in range(3)]
    for thread in threads:
        thread.result()
    for receiver in everyone:
        receiver.close()


def test_receive_any_of_nothing_has_ended() -> None:
    assert receive_any([], 4) is END


# Stopping


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("blocked", ["send", "close", "receive", "receive_any", "mailbox"])
def test_stop_ends_every_wait(endpoint: Callable[[str], str], scheme: str, blocked: str) -> None:
    address = endpoint(scheme)
    stop = threading.Event()
    policy: queues.Policy = "drop_oldest" if blocked == "mailbox" else "wait"

    def wait_as_sender() -> None:
        with Sender(address, policy=policy, stop=stop) as sender:
            if blocked == "send":
                sender.send(make_frame(0))  # nobody grants it
            sender.close(timeout_seconds=60)  # nobody confirms the end

    def wait_as_receiver() -> None:
        with Receiver(address, stop=stop) as receiver:
            if blocked == "receive":
                receiver.receive()
            receive_any([receiver], 1)

    waiting = Background(wait_as_receiver if "receive" in blocked else wait_as_sender)
    time.sleep(0.1)
    assert waiting.is_alive()
    stop.set()
    with pytest.raises(Stopped):
        waiting.result(timeout_seconds=2)


def test_leaving_by_an_exception_sends_no_end(endpoint: Callable[[str], str]) -> None:
    address = endpoint("inproc")
    with Receiver(address) as receiver:
        sender = Sender(address)
        with pytest.raises(ValueError, match="no such thing"):
            send_and_fail(sender)
        assert sender.dropped == 1  # taken back: the queue's handle does not outlive it
        with pytest.raises(TimeoutError):
            take(receiver, 0.1)


def send_and_fail(sender: Sender) -> None:
    with sender:
        sender.send(make_frame(0))
        raise ValueError("no such thing")


def test_receive_says_what_did_not_come(endpoint: Callable[[str], str]) -> None:
    address = endpoint("tcp")
    with Receiver(address) as receiver:
        assert not receiver.connected
        with pytest.raises(TimeoutError, match=address):
            take(receiver, 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_teardown_leaks_nothing(endpoint: Callable[[str], str], scheme: str) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def run_once(policy: queues.Policy) -> None:
        address = endpoint(scheme)
        context: zmq.Context[Any] = zmq.Context()
        receiver = Receiver(address, context=context)
        sending = send_all(
            address, [make_frame(index) for index in range(3)], policy=policy, context=context
        )
        while take(receiver) is not END:
            pass
        sending.result()
        receiver.close()
        abandoned = Sender(endpoint(scheme), policy=policy, context=context)
        abandoned.abort()
        Background(context.term).result(timeout_seconds=5)  # waits for every socket

    run_once("wait")
    run_once("drop_oldest")  # whatever the libraries keep for good is there by now
    before = files()
    run_once("wait")
    run_once("drop_oldest")
    deadline = time.monotonic() + 5  # what earlier tests left goes at its own time
    while files() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert files() <= before


# Shared memory


@pytest.mark.parametrize("policy", ["wait", "drop_oldest"])
def test_a_name_can_be_used_again_at_once(policy: Literal["wait", "drop_oldest"]) -> None:
    """ZeroMQ takes its time to forget a socket; no receiver may meet the one before."""
    for number in range(200):
        with Receiver("inproc://again") as receiver:
            sending = send_all("inproc://again", [number], policy=policy)
            assert take(receiver) == number
            assert take(receiver) is END
            sending.result()


def test_a_held_frame_keeps_its_pixels_and_held_slots_stop_the_sender(
    endpoint: Callable[[str], str],
) -> None:
    address = endpoint("ipc")
    sending = send_all(address, [make_frame(index) for index in range(40)])
    with Receiver(address, slots=3) as receiver:
        held: list[Any] = [take(receiver) for _ in range(3)]
        for index in range(3, 40):
            with pytest.raises(TimeoutError):
                take(receiver, 0.01)
            assert [frame.index for frame in held] == [index - 3, index - 2, index - 1]
            assert all(is_intact(frame) for frame in held)
            del held[0]
            held.append(take(receiver))
        corner = held[0].planes[0][10:20, ::3].T  # a view of a view holds the slot as well
        held.clear()
        assert take(receiver) is END
        assert (corner == 37).all()
    sending.result()
    assert (corner == 37).all()  # even after the queue has gone


def test_whoever_keeps_keypoints_holds_no_slot(endpoint: Callable[[str], str]) -> None:
    address = endpoint("ipc")
    sending = send_all(address, [make_frame(index) for index in range(20)])
    with Receiver(address, slots=2) as receiver:
        small = [take(receiver).planes[1] for _ in range(20)]
        assert take(receiver) is END
    sending.result()
    assert [int(plane[0, 0]) for plane in small] == list(range(20))


def test_slots_grow_with_the_frames(endpoint: Callable[[str], str]) -> None:
    address = endpoint("ipc")
    sizes = [(288, 512), (1080, 1920), (240, 426), (2160, 3840), (720, 1280)] * 4
    frames = [
        make_frame(index, height=height, width=width) for index, (height, width) in enumerate(sizes)
    ]
    sending = send_all(address, frames)
    with Receiver(address, slots=4) as receiver:
        for size in sizes:
            frame = take(receiver)
            assert frame.size == size
            assert is_intact(frame)
            assert len(own_segments()) <= 4
            del frame
        assert take(receiver) is END
    sending.result()


# Deaths


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_receiver_that_is_killed_and_started_again_is_served_again(
    endpoint: Callable[[str], str], scheme: str
) -> None:
    address = endpoint(scheme)
    first = Peer("receive", address, "--delay-seconds", "0.005")
    sending = send_all(address, [make_frame(index) for index in range(150)])
    first.wait_for("got 20")
    first.kill()
    second = Peer("receive", address)
    sending.result()
    assert second.finish()[-1] == "end"
    before, after = indices(first.lines, "got"), indices(second.lines, "got")
    assert before == list(range(len(before)))
    assert after == list(range(after[0], 150))
    # The one that it had taken but not yet printed may be missing (2); if it died before its
    # receipt had left, the last one comes again (0).
    assert after[0] - before[-1] in (0, 1, 2)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_sender_that_is_killed_is_noticed_and_its_successor_is_heard(
    endpoint: Callable[[str], str], scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = endpoint(scheme)
    first = Peer("send", address, "--count", "1000000")
    with Receiver(address) as receiver:
        taken = [take(receiver, 20).index for _ in range(20)]
        assert taken == list(range(20))
        first.kill()
        with pytest.raises(TimeoutError):
            receive_intact(receiver, timeout_seconds=0.5)
        assert f"{address}: the sender went away" in caplog.text
        assert not receiver.connected
        second = Peer("send", address, "--first", "500", "--count", "30")
        frames = []
        while (frame := take(receiver, 20)) is not END:
            assert is_intact(frame)
            frames.append(frame.index)
        assert frames == list(range(500, 530))
    second.finish()


def receive_intact(receiver: Receiver, *, timeout_seconds: float) -> None:
    """Receive whole frames until something else happens."""
    while (frame := take(receiver, timeout_seconds)) is not END:
        assert is_intact(frame)


def test_patience_with_a_dead_sender_ends(endpoint: Callable[[str], str]) -> None:
    address = endpoint("ipc")
    peer = Peer("send", address, "--count", "1000000")
    with Receiver(address, patience_seconds=0.3) as receiver:
        assert take(receiver, 20).index == 0
        peer.kill()
        with pytest.raises(QueueError, match=r"no sender for 0\.3 s"):
            receive_intact(receiver, timeout_seconds=20)


def test_a_live_sender_gives_a_new_receiver_the_newest(endpoint: Callable[[str], str]) -> None:
    """drop_oldest: what was in flight to a dead receiver is not delivered if newer is there."""
    address = endpoint("tcp")
    reasons: Counter[str] = Counter()
    sender = Sender(
        address, policy="drop_oldest", on_drop=lambda _, reason: reasons.update([reason])
    )
    first = Receiver(address)
    sender.send(make_frame(1))
    assert take(first).index == 1
    sender.send(make_frame(2))
    wait_until(lambda: first._socket.poll(0) != 0)
    first.close()  # with message 2 unread
    for index in range(3, 10):
        sender.send(make_frame(index))
    with Receiver(address) as second:
        assert take(second).index == 9
    sender.abort()
    assert reasons["lost"] == 1
    assert reasons["newer"] == 6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_receiver_takes_over(endpoint: Callable[[str], str], scheme: str) -> None:
    address = endpoint(scheme)
    sending = send_all(address, [make_frame(index) for index in range(10)])
    with Receiver(address) as first, contextlib.ExitStack() as later:
        held = take(first)
        second = later.enter_context(Receiver(address))
        assert take(second).index == 1
        with pytest.raises(QueueError, match="another receiver has taken this queue over"):
            receive_intact(first, timeout_seconds=10)  # one message may have been on its way
        for index in range(2, 10):
            frame = take(second)
            assert frame.index == index
            assert is_intact(frame)
        assert take(second) is END
        assert is_intact(held)  # the new receiver's slots are not those of the old
    sending.result()


class Proxy:
    """A TCP connection that leads to another, and that can be cut."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        while self._open:
            shut(self._open.pop())

    def close(self) -> None:
        shut(self._listener)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._forward, args=(source, sink))
                thread.start()
                self._threads.append(thread)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with source:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 14):
                    sink.sendall(data)
            shut(sink)


def shut(open_socket: socket.socket) -> None:
    with contextlib.suppress(OSError):
        open_socket.shutdown(socket.SHUT_RDWR)
    open_socket.close()


def test_a_broken_connection_loses_and_repeats_nothing(endpoint: Callable[[str], str]) -> None:
    address = endpoint("tcp")
    count = 120
    sending = send_all(address, [make_frame(index) for index in range(count)])
    proxy = Proxy(address)
    chance = random.Random(7)
    with Receiver(proxy.endpoint) as receiver:
        for index in range(count):
            if index % 20 == 10:
                # Anywhere within a message or its receipt.
                threading.Timer(chance.random() * 0.005, proxy.cut).start()
            frame = take(receiver, 20)
            assert frame.index == index
            assert is_intact(frame)
        assert take(receiver, 20) is END
    sending.result()
    proxy.close()


# Strangers and mistakes


def test_a_stranger_at_the_senders_address_is_ignored(
    endpoint: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    address = endpoint("tcp")
    sending = send_all(address, [make_frame(index) for index in range(5)])
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(address)
        stranger.send_multipart([b"GET / HTTP/1.1", b"Host: camera"])
        # Before the receiver comes, or all may be sent before the stranger is heard.
        wait_until(lambda: "ignored a peer that is no receiver of ours" in caplog.text)
        with Receiver(address) as receiver:
            frames = [take(receiver) for _ in range(5)]
            assert [frame.index for frame in frames] == list(range(5))
            assert take(receiver) is END
        sending.result()


def test_late_words_of_a_broken_connection_change_nothing(endpoint: Callable[[str], str]) -> None:
    """A hand-made receiver says again what the queue's own would have said before a break."""
    address = endpoint("ipc")
    sending = send_all(address, [make_frame(0, height=8, width=8), make_frame(1)])
    with zmq.Context() as context, context.socket(zmq.DEALER) as receiver:
        receiver.linger = 0
        receiver.routing_id = b"r12345678"
        receiver.connect(address)
        receiver.send(queues._STATE.pack(2, 0, 0))  # second connection, none taken, slot 0
        assert queues._ENVELOPE.unpack(receiver.recv_multipart()[0])[:3] == (b"M", 2, 0)
        with context.socket(zmq.DEALER) as ghost:  # what is left of the first, renamed by ZeroMQ
            ghost.linger = 0
            ghost.connect(address)
            ghost.send(queues._STATE.pack(1, 0, 0))
            assert ghost.poll(100) == 0
        receiver.send(queues._STATE.pack(1, 1, 0))  # the same under its own name, late
        receiver.send(queues._STATE.pack(2, 1, 0))
        assert queues._ENVELOPE.unpack(receiver.recv_multipart()[0])[:3] == (b"M", 2, 1)
        receiver.send(queues._STATE.pack(2, 2, queues._NO_CREDIT))
        assert queues._ENVELOPE.unpack(receiver.recv_multipart()[0])[:3] == (b"E", 2, 2)
        receiver.send(queues._STATE.pack(2, 3, queues._NO_CREDIT))
        sending.result()


def test_a_stranger_who_answers_is_an_error(endpoint: Callable[[str], str]) -> None:
    address = endpoint("tcp")
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as stranger,
        Receiver(address) as receiver,
    ):
        stranger.linger = 0
        stranger.bind(address)
        waiting = Background(lambda: stranger.send_multipart([stranger.recv_multipart()[0], b"?"]))
        with pytest.raises(QueueError, match="no sender of this program"):
            take(receiver)
        waiting.result()


@pytest.mark.parametrize(
    ("scheme", "policy"), [("inproc", "wait"), ("ipc", "wait"), ("tcp", "drop_oldest")]
)
def test_an_address_in_use_is_one_clear_line(
    endpoint: Callable[[str], str], scheme: str, policy: queues.Policy
) -> None:
    address = endpoint(scheme)
    first = Sender(address)
    with pytest.raises(ValueError, match=f"cannot bind {address}: address already in use; stop"):
        Sender(address, policy=policy)
    first.abort()
    Sender(address).abort()  # and a moment later it is free again


def test_a_file_in_the_way_of_an_ipc_path_survives(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("dear diary")
    with pytest.raises(ValueError, match="a file that is no socket is there"):
        Sender(f"ipc://{file}")
    assert file.read_text() == "dear diary"


@pytest.mark.parametrize(
    "address",
    ["", "tcp://", "camera", "udp://127.0.0.1:5555", "tcp://127.0.0.1:port", "ipc:///no/a"],
)
def test_a_malformed_address_is_one_clear_line(address: str) -> None:
    with pytest.raises(ValueError, match=r"an endpoint must be|cannot bind"):
        Sender(address)


def test_a_queue_checks_its_settings() -> None:
    with pytest.raises(ValueError, match="an endpoint must be"):
        Queue("here")
    with pytest.raises(ValueError, match="policy must be"):
        Queue("inproc://a", policy="latest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slots must be 2 or more"):
        Queue("ipc://a", slots=1)


@pytest.mark.parametrize("policy", ["wait", "drop_oldest"])
def test_what_cannot_cross_is_an_error_of_the_sender(
    endpoint: Callable[[str], str], policy: queues.Policy
) -> None:
    address = endpoint("tcp")

    def run() -> None:
        with Sender(address, policy=policy) as sender:
            while True:
                sender.send({"not": "a frame"})

    sending = Background(run)
    with Receiver(address) as receiver:
        with pytest.raises(TimeoutError):
            take(receiver, 0.5)
        with pytest.raises(ValueError, match="only Frame and Poses can cross"):
            sending.result()


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
