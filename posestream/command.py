"""The console command: `posestream demo` runs a stream, `posestream train` trains, and so on.

posestream [run] SOURCE ...      as run_stream.py in the clone
posestream train ...             as train.py, and so on
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from common.version import VERSION

Main = Callable[[list[str]], int]

USAGE = """\
usage: posestream [run] SOURCE [SOURCE ...] [options]    people's poses in videos and cameras
       posestream train --config RECIPE [options]        train a network
       posestream evaluate --data JSON [options]         average precision of a model
       posestream export WEIGHTS --output FILE           ONNX, OpenVINO, safetensors
       posestream weights [list | get NAME]              published networks by name
       posestream selftest [--device D] [--weights W]    check this machine
       posestream curve FOLDER [NAME ...]                keys for --curve-dir

Each has --help; --version says which version this is. A first try:
  posestream demo --save demo.mp4
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; what is none of them is the first argument of `run`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"posestream {VERSION}")
        return 0
    subcommand = SUBCOMMANDS.get(arguments[0])
    return _run(arguments) if subcommand is None else subcommand(arguments[1:])


# Each imports what it needs and no more.


def _run(arguments: list[str]) -> int:
    from run_stream import main

    return main(arguments)


def _selftest(arguments: list[str]) -> int:
    return _run(["--selftest", *arguments])


def _train(arguments: list[str]) -> int:
    from train import main

    return main(arguments)


def _evaluate(arguments: list[str]) -> int:
    from evaluate import main

    return main(arguments)


def _export(arguments: list[str]) -> int:
    from export import main

    return main(arguments)


def _weights(arguments: list[str]) -> int:
    from nets.zoo.command import main

    return main(arguments)


def _curve(arguments: list[str]) -> int:
    from pipeline.sinks.publisher.curve import main

    return main(arguments)


SUBCOMMANDS: dict[str, Main] = {
    "run": _run,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "weights": _weights,
    "selftest": _selftest,
    "curve": _curve,
}
