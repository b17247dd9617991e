"""The console command and what importing the package costs."""

import subprocess
import sys

import pytest

import posestream
from common.version import VERSION
from posestream.command import SUBCOMMANDS, main
from tests.support.places import ROOT


def test_without_a_word_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"posestream {word}" in said for word in SUBCOMMANDS if word != "run")


def test_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"posestream {VERSION}\n"
    assert posestream.__version__ == VERSION


@pytest.mark.parametrize("word", sorted(SUBCOMMANDS))
def test_every_subcommand_has_help_and_version(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([word, "--help"])
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nothing.mp4"], ["run", "nothing.mp4"]])
def test_what_is_no_subcommand_is_a_source(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--quiet"]) == 2
    assert "nothing.mp4: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["run_stream", "train", "evaluate", "export"])
def test_every_script_says_its_version(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"posestream {VERSION}\n"


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, posestream, posestream.command;"
        "print([m for m in ('torch', 'numba', 'cv2', 'numpy', 'av') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'PoseEstimater'"):
        _ = posestream.PoseEstimater
