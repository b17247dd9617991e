"""The receiving end: turns among several queues, slots that are held, clocks, strangers."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from pipeline.runtime.queues.credit import END, QueueError, Stopped
from pipeline.runtime.queues.receiver import Receiver, receive_any
from pipeline.runtime.queues.sender import Sender
from tests.support.queue_ends import Background, own_segments, send_all, take
from tests.support.queue_peer import is_intact, make_frame
from tests.support.waiting import wait_until


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
                while served["busy"] < 2 * count:
                    time.sleep(0.001)
        return 0

    served: Counter[str] = Counter()
    receivers = [Receiver(address) for address in addresses.values()]
    everyone = list(receivers)
    threads = [Background(lambda: flood("busy")), Background(lambda: flood("busier"))]
    rare = Background(trickle)
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
        wait_until(lambda: all(receiver._socket.poll(0) for receiver in everyone[:2]))
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


def test_receive_says_what_did_not_come(endpoint: Callable[[str], str]) -> None:
    address = endpoint("tcp")
    with Receiver(address) as receiver:
        assert not receiver.connected
        with pytest.raises(TimeoutError, match=address):
            take(receiver, 0.05)


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
