"""Misspelt options of the real programs: one line, exit code 2."""

import subprocess
import sys

import pytest

from tests.support.places import ROOT


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            ["run_stream.py", "demo", "--svae", "a.mp4"],
            "run_stream.py: unrecognized arguments: --svae a.mp4; did you mean --save for "
            "--svae? "
            "(--help lists all options)\n",
        ),
        (["run_stream.py", "demo", "--publsh=5556"], "did you mean --publish for --publsh?"),
        (["train.py", "--confg", "a.yaml"], "did you mean --config for --confg?"),
        (["evaluate.py", "--data", "a", "--wieghts", "b"], "did you mean --weights for --wieghts?"),
        (["export.py", "a", "--ouput", "b"], "did you mean --output for --ouput?"),
        (["run_stream.py", "demo", "--x=rtsp://me:secret@camera"], "--x=rtsp://***@camera"),
        (["run_stream.py", "demo", "--xyzzy"], "unrecognized arguments: --xyzzy (--help"),
    ],
)
def test_a_misspelt_option_gets_its_suggestion(command: list[str], line: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, check=False, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
