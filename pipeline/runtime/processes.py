"""The parts of a cut stream: which of them share a process, where they meet, and the children.

    sources --frames--> network --poses--> sinks

Knows how processes are started, told to stop and waited for; nothing of stages.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, Self

import yaml

from common.places import command_of
from common.settings import ConfigError
from pipeline.config import QueuesConfig, StreamConfig

Part = Literal["sources", "network", "sinks"]
PARTS: tuple[Part, ...] = ("sources", "network", "sinks")
PARENT_VARIABLE = "POSESTREAM_PARENT"
"""Holds the parent's process id in a child's environment; a child ends when its parent is gone."""

_STOP_SECONDS = 15.0

_log = logging.getLogger(__name__)


def parts_with(part: Part, queues: QueuesConfig) -> tuple[Part, ...]:
    """The parts that share a process with this one: those that no cut keeps apart."""
    group: list[Part] = []
    groups = [group]
    for name, cut_before in zip(PARTS, ("inproc", queues.frames, queues.poses), strict=True):
        if cut_before != "inproc":
            group = []
            groups.append(group)
        group.append(name)
    return next(tuple(group) for group in groups if part in group)


def endpoint(cut: str, name: str, number: int) -> str:
    """Where the number-th queue of a cut meets; `name` tells inproc queues of a process apart."""
    if cut == "inproc":
        return f"inproc://{name}-{number}"
    if cut.startswith("tcp://"):
        address, _, port = cut.rpartition(":")
        return f"{address}:{int(port) + number}"
    return f"{cut}-{number}"


class Children:
    """The parts that run elsewhere on this machine, one child process for each.

    In a `with` block: children start on entering, and none outlives it.

    Args:
        config: of the whole stream.
        part: None starts what a cut separates from the network. A part started by hand has no
            children.
    Raises:
        ConfigError: a part started by hand would meet the others nowhere, or be the whole stream.
    """

    def __init__(self, config: StreamConfig, part: Part | None) -> None:
        self._processes: dict[tuple[Part, ...], subprocess.Popen[bytes]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._asked_to_stop = False
        self.parts = parts_with(part or "network", config.queues)
        """Those that this process runs itself."""
        self.by_hand = part is not None and PARENT_VARIABLE not in os.environ
        """Whether somebody starts the other parts, on whatever machine."""
        self.config = config
        """The configuration, every queue with its address."""
        if part is not None and self.parts == PARTS:
            raise ConfigError(
                "--part needs a cut: --set queues.frames=tcp://HOST:PORT or "
                "--config configs/two_machines.yaml"
            )
        if part is None and self.parts != PARTS:
            self._folder = tempfile.TemporaryDirectory(prefix="posestream-")  # this user's alone
            self.config = _with_addresses(config, self._folder.name)
        elif "ipc" in (config.queues.frames, config.queues.poses):
            raise ConfigError(
                "with --part, say where the parts meet: for example "
                "--set queues.frames=ipc:///run/user/1000/frames, the same for every part"
            )

    @property
    def exit_code(self) -> int:
        """The gravest exit code of children that have ended; 1 for one that was killed."""
        codes = [process.poll() or 0 for process in self._processes.values()]
        return max((code if code >= 0 else 1 for code in codes), default=0)

    def has_ended(self, part: Part) -> bool:
        """Whether the part is a child's, and that child is gone, for whatever reason."""
        return any(
            part in parts and process.poll() is not None
            for parts, process in self._processes.items()
        )

    def wait(self) -> int:
        """Wait for all of them; the exit code as above."""
        for parts, process in self._processes.items():
            try:
                code = process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _log.warning("process %d does not end and is killed", process.pid)
                process.kill()
                process.wait()
            else:
                if code < 0:  # it had no chance to say so itself
                    names = " and ".join(parts)
                    _log.error("%s: process %d was ended by signal %d", names, process.pid, -code)
        return self.exit_code

    def request_stop(self) -> None:
        """Ask every child to finish, once."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            for process in self._processes.values():
                process.send_signal(signal.SIGTERM)

    def stop_now(self) -> None:
        """Ask every child to drop everything. Two different signals: two alike may merge."""
        for process in self._processes.values():
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._start(Path(self._folder.name))
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self, folder: Path) -> None:
        path = folder / "stream.yaml"
        path.write_text(yaml.safe_dump(self.config.model_dump(mode="json", exclude_defaults=True)))
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        elsewhere = {parts_with(part, self.config.queues) for part in PARTS} - {self.parts}
        for parts in sorted(elsewhere):
            command = [*command_of("run_stream"), "--quiet", "--config", str(path)]
            # A session of its own: Ctrl-C reaches the parent alone, which stops all in order.
            process = subprocess.Popen(
                [*command, "--part", parts[0]], env=environment, start_new_session=True
            )
            self._processes[parts] = process
            _log.info("%s: process %d", " and ".join(parts), process.pid)


def _with_addresses(config: StreamConfig, folder: str) -> StreamConfig:
    """The same configuration with sockets in this folder for the cuts that only say ipc."""
    cuts = {
        name: f"ipc://{folder}/{name}" if cut == "ipc" else cut
        for name, cut in config.queues.model_dump().items()
    }
    return config.model_copy(update={"queues": QueuesConfig(**cuts)})


def is_child() -> bool:
    """Whether another process of the stream started this one."""
    return PARENT_VARIABLE in os.environ


def is_orphan() -> bool:
    """Whether the process that started this one as its child is gone."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and os.getppid() != int(parent)
