"""The cache folder: whose it is, where it goes when it cannot be written, and what is said then."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import cache
from common.cache import cache_folder, log_problems, redirect_libraries
from tests.support.places_of_others import STRANGER, needs_root, python, run_as

_LIBRARIES = ("CUPY_CACHE_DIR", "MPLCONFIGDIR", "CUDA_CACHE_PATH", "CUPY_CACHE_IN_MEMORY")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a new process with a home and a temporary folder of its own."""

    def forget() -> None:
        cache._first_of.cache_clear()
        cache._usable.cache_clear()
        cache._problems.clear()

    forget()
    for name in ("XDG_CACHE_HOME", *_LIBRARIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    yield
    forget()


def block(folder: Path) -> Path:
    """A path where no folder can be made, whoever tries."""
    folder.write_text("a file")
    return folder


def test_the_user_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder("engines") == tmp_path / "home/.cache/posestream/engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("numba/1") == tmp_path / "xdg/posestream/numba/1"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("engines") == tmp_path / "home/.cache/posestream/engines"
    assert cache._problems == []


def test_what_cannot_be_written_is_passed_over_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(block(tmp_path / "xdg")))
    assert cache_folder("engines") == tmp_path / "home/.cache/posestream/engines"
    assert cache_folder("numba") == tmp_path / "home/.cache/posestream/numba"
    log_problems()
    log_problems()
    assert len(caplog.messages) == 1
    assert str(tmp_path / "xdg") in caplog.text
    assert "is used instead" in caplog.text


def test_without_a_home_there_is_a_folder_of_this_users_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(block(tmp_path / "no")))
    folder = cache_folder("engines")
    assert folder == tmp_path / f"tmp/posestream-{os.geteuid()}/engines"
    assert folder.parent.stat().st_mode & 0o077 == 0
    log_problems()
    assert len(caplog.messages) == 1
    assert "set XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("trap", ["open to all", "a link"])
def test_a_temporary_folder_that_others_can_write_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, trap: str
) -> None:
    monkeypatch.setenv("HOME", str(block(tmp_path / "no")))
    place = tmp_path / f"tmp/posestream-{os.geteuid()}"
    if trap == "a link":
        (tmp_path / "theirs").mkdir()
        place.symlink_to(tmp_path / "theirs")
    else:
        place.mkdir()
        place.chmod(0o777)
    assert cache_folder("numba") is None
    log_problems()
    assert "others can write there; every start compiles again" in caplog.text


def test_one_kind_that_cannot_be_kept_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache_folder("numba") is not None
    block(tmp_path / "home/.cache/posestream/engines")
    assert cache_folder("engines") is None
    log_problems()
    assert "engines" in caplog.text
    assert "is not kept" in caplog.text


def test_libraries_keep_their_own_folders_where_those_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    redirect_libraries()
    assert not [name for name in _LIBRARIES if name in os.environ]
    monkeypatch.setenv("MPLCONFIGDIR", "/of/the/user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    for name in ("CUPY_CACHE_DIR", "CUDA_CACHE_PATH"):  # undone at the end
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    redirect_libraries()
    assert os.environ["CUPY_CACHE_DIR"] == str(tmp_path / "xdg/posestream/cupy")
    assert os.environ["MPLCONFIGDIR"] == "/of/the/user"


# As another user, who may have no home, no name and no place to write

_USE_THEM_ALL = """
import json, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
from kernels.arrays import why_no_gpu
from kernels.taps import axis_taps
from nets.engines.model_cache import ModelCache

assert len(axis_taps((4, 8, 0.5, 0.0, False))[0]) == 4
ModelCache().store({"name": "a"}, b"payload")
why_no_gpu()
folder = ModelCache().folder
print(json.dumps(folder and str(folder)))
"""
_READ_ONLY = (
    "mount -o remount,bind,ro / /",
    "mount -t tmpfs -o ro none /tmp",
    "mount -t tmpfs -o ro none /var/tmp",
)


def use_them_all(
    environment: dict[str, str], mounts: tuple[str, ...] = ()
) -> tuple[str | None, str]:
    """What is used of the cache folder, and what is logged, of a program of another user."""
    result = run_as(STRANGER, python("-c", _USE_THEM_ALL), environment, mounts=mounts)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@needs_root
@pytest.mark.timeout(180)
@pytest.mark.parametrize("home", ["/nonexistent", "/", "/root", None])
def test_a_user_without_a_home_gets_a_temporary_folder_and_one_warning(home: str | None) -> None:
    mounts = ("mount -t tmpfs -o mode=1777 none /tmp",)
    folder, log = use_them_all({} if home is None else {"HOME": home}, mounts)
    assert folder == f"/tmp/posestream-{STRANGER}/engines"
    assert log.count("\n") == 1, log
    assert log.startswith("WARNING cache folder: ")


@needs_root
@pytest.mark.timeout(180)
def test_where_nothing_can_be_written_all_goes_on_without_a_cache() -> None:
    folder, log = use_them_all({"HOME": "/nonexistent"}, _READ_ONLY)
    assert folder is None
    assert log.count("\n") == 1, log
    assert "every start compiles again" in log
