"""The sending end: strangers, late messages, errors of whoever sends."""

from collections.abc import Callable

import pytest
import zmq

from pipeline.runtime.queues.credit import END, ENVELOPE, NO_CREDIT, STATE, Policy
from pipeline.runtime.queues.receiver import Receiver
from pipeline.runtime.queues.sender import Sender
from tests.support.queue_ends import Background, send_all, take
from tests.support.queue_peer import make_frame
from tests.support.waiting import wait_until


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


@pytest.mark.parametrize("policy", ["wait", "drop_oldest"])
def test_what_cannot_cross_is_an_error_of_the_sender(
    endpoint: Callable[[str], str], policy: Policy
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
        receiver.send(STATE.pack(2, 0, 0))  # second connection, none taken, slot 0
        assert ENVELOPE.unpack(receiver.recv_multipart()[0])[:3] == (b"M", 2, 0)
        with context.socket(zmq.DEALER) as ghost:  # what is left of the first, renamed by ZeroMQ
            ghost.linger = 0
            ghost.connect(address)
            ghost.send(STATE.pack(1, 0, 0))
            assert ghost.poll(100) == 0
        receiver.send(STATE.pack(1, 1, 0))  # the same under its own name, late
        receiver.send(STATE.pack(2, 1, 0))
        assert ENVELOPE.unpack(receiver.recv_multipart()[0])[:3] == (b"M", 2, 1)
        receiver.send(STATE.pack(2, 2, NO_CREDIT))
        assert ENVELOPE.unpack(receiver.recv_multipart()[0])[:3] == (b"E", 2, 2)
        receiver.send(STATE.pack(2, 3, NO_CREDIT))
        sending.result()
