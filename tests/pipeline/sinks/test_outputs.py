"""Paths: names that are free, and files that belong to one stream at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.sinks.outputs import Claim, timed_path
from tests.support.places import ROOT


def test_names_tell_the_time_and_never_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cam.mp4"
    assert timed_path(path, 0.25).name == "cam-19700101T000000.250Z.mp4"
    assert timed_path(path, 86399.9999).name == "cam-19700101T235959.999Z.mp4"
    timed_path(path, 5).touch()
    assert timed_path(path, 5).name == "cam-19700101T000005.000Z-2.mp4"
    timed_path(path, 5).touch()
    assert timed_path(path, 5).name == "cam-19700101T000005.000Z-3.mp4"


CLAIMING = """
import sys, time
from pathlib import Path
from pipeline.sinks.outputs import Claim
claim = Claim(Path(sys.argv[1]))
print("claimed", flush=True)
time.sleep(60)
"""


def test_a_claim_keeps_other_processes_out_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"
    path.write_text("old\n")
    command = [sys.executable, "-c", CLAIMING, str(path)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"claimed\n"
        with pytest.raises(ValueError, match="is being written by another stream; stop that one"):
            Claim(path)
    finally:
        other.kill()
        other.communicate()
    Claim(path).close()
    assert path.read_text() == "old\n"


def test_a_claim_that_is_never_used_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"
    claim = Claim(path)
    claim.close()
    claim.close()
    assert not path.exists()
    claim = Claim(path)
    path.write_text("new\n")
    claim.close()
    assert path.read_text() == "new\n"


def test_a_claim_outlives_other_openings_of_the_file(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "clip.mp4")
    with (tmp_path / "clip.mp4").open("wb") as file:
        file.write(b"picture")
    with pytest.raises(ValueError, match="is being written by another stream"):
        Claim(tmp_path / "clip.mp4")
    claim.close()
    Claim(tmp_path / "clip.mp4").close()


def test_devices_are_for_everybody() -> None:
    first, second = Claim(Path("/dev/null")), Claim(Path("/dev/null"))
    first.close()
    second.close()
