"""A whole queue with real threads, processes and sockets: order, stops, deaths, leaks."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
import zmq

from pipeline.runtime.queues.credit import END, Policy, Stopped
from pipeline.runtime.queues.queue import Queue
from pipeline.runtime.queues.receiver import Receiver, receive_any
from pipeline.runtime.queues.sender import Sender
from tests.support.queue_ends import SCHEMES, Background, send_all, take
from tests.support.queue_peer import is_intact, make_frame


def test_a_queue_checks_its_settings() -> None:
    with pytest.raises(ValueError, match="an endpoint must be"):
        Queue("here")
    with pytest.raises(ValueError, match="policy must be"):
        Queue("inproc://a", policy="latest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slots must be 2 or more"):
        Queue("ipc://a", slots=1)


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


@pytest.mark.parametrize("policy", ["wait", "drop_oldest"])
def test_a_name_can_be_used_again_at_once(policy: Literal["wait", "drop_oldest"]) -> None:
    """ZeroMQ takes its time to forget a socket; no receiver may meet the one before."""
    for number in range(200):
        with Receiver("inproc://again") as receiver:
            sending = send_all("inproc://again", [number], policy=policy)
            assert take(receiver) == number
            assert take(receiver) is END
            sending.result()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("blocked", ["send", "close", "receive", "receive_any", "mailbox"])
def test_stop_ends_every_wait(endpoint: Callable[[str], str], scheme: str, blocked: str) -> None:
    address = endpoint(scheme)
    stop = threading.Event()
    policy: Policy = "drop_oldest" if blocked == "mailbox" else "wait"

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
        waiting.result()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_teardown_leaks_nothing(endpoint: Callable[[str], str], scheme: str) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def run_once(policy: Policy) -> None:
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
        Background(context.term).result()  # waits for every socket

    run_once("wait")
    run_once("drop_oldest")  # whatever the libraries keep for good is there by now
    before = files()
    run_once("wait")
    run_once("drop_oldest")
    deadline = time.monotonic() + 5  # what earlier tests left goes at its own time
    while files() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert files() <= before
