"""Where parts meet: what is refused at the start, and what is said while nobody comes."""

import logging
import socket

import pytest

from common.settings import ConfigError
from pipeline.config import QueuesConfig
from pipeline.runtime.meeting import Awaited, check_addresses

ELSEWHERE = QueuesConfig(frames="tcp://192.0.2.20:5600")


def test_an_address_of_another_machine_is_refused_where_the_sources_listen() -> None:
    num_queues = {"frames": 1, "poses": 0}
    with pytest.raises(
        ConfigError, match=r"^setting 'queues\.frames': cannot bind tcp://192"
    ) as error:
        check_addresses(ELSEWHERE, ("sources",), num_queues)
    assert "put this machine's own address there" in str(error.value)
    check_addresses(ELSEWHERE, ("network", "sinks"), num_queues)  # it connects
    check_addresses(QueuesConfig(), ("sources", "network", "sinks"), num_queues)


def test_every_port_of_a_cut_is_looked_at_and_left_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        queues = QueuesConfig(poses=f"tcp://127.0.0.1:{port - 1}")
        check_addresses(queues, ("sources", "network"), {"frames": 1, "poses": 1})
        with pytest.raises(ConfigError, match=f"{port}: address already in use; stop what listens"):
            check_addresses(queues, ("sources", "network"), {"frames": 1, "poses": 2})
    check_addresses(queues, ("sources", "network"), {"frames": 1, "poses": 2})
    check_addresses(queues, ("sources", "network"), {"frames": 1, "poses": 2})


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (("network", "sinks"), "waiting for the sources at tcp://192.0.2.20:5600 (nothing heard"),
        (("sources",), "waiting for the network at tcp://192.0.2.20:5600 (nothing heard"),
    ],
)
def test_who_does_not_come_is_told_of_at_growing_distances(
    caplog: pytest.LogCaptureFixture, parts: tuple[str, ...], says: str
) -> None:
    seconds = 0.0
    awaited = Awaited(ELSEWHERE, parts, {"frames": 2, "poses": 0}, now=lambda: seconds)  # type: ignore[arg-type]
    both = ["tcp://192.0.2.20:5600", "tcp://192.0.2.20:5601", "inproc://0-inputs-0"]
    told = []
    with caplog.at_level(logging.WARNING):
        for seconds in range(3600):
            awaited.tick(lambda: both)
            told += [seconds] * len(caplog.records)
            assert all(record.message.startswith(says) for record in caplog.records)
            caplog.clear()
        assert told == [5, 15, 35, 75, 155, 315, 635, 1235, 1835, 2435, 3035]
        seconds = 9999
        awaited.tick(lambda: [])
    assert not caplog.records
