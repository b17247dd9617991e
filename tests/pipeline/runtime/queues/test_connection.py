"""Addresses: in use, malformed, a path that holds a file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.runtime.queues.credit import Policy
from pipeline.runtime.queues.sender import Sender


@pytest.mark.parametrize(
    ("scheme", "policy"), [("inproc", "wait"), ("ipc", "wait"), ("tcp", "drop_oldest")]
)
def test_an_address_in_use_is_one_clear_line(
    endpoint: Callable[[str], str], scheme: str, policy: Policy
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
