"""Files that appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from common.files import write_atomically
from tests.support.places import ROOT


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("only_writer", [False, True])
def test_a_file_is_written_and_replaced(tmp_path: Path, durable: bool, only_writer: bool) -> None:
    path = tmp_path / "a.json"
    for content in (b"first", b"second, longer", b""):
        write_atomically(path, content, durable=durable, only_writer=only_writer)
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_permissions_are_those_asked_for_less_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "ordinary", b"")
        write_atomically(tmp_path / "secret", b"", mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "ordinary").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_secret_is_private_before_it_is_complete(tmp_path: Path) -> None:
    def look(file: IO[bytes]) -> None:
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.stat().st_mode & 0o777 == 0o600

    write_atomically(tmp_path / "secret", look, mode=0o600)


def test_what_a_killed_writer_left_is_overwritten_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (tmp_path / "a.pt.part").symlink_to(tmp_path / "elsewhere")
    write_atomically(tmp_path / "a.pt", b"new", only_writer=True)
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "elsewhere"]


_WRITER = """
import sys
from pathlib import Path
from common.files import write_atomically
for number in range(200):
    write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)
"""


@pytest.mark.timeout(60)
def test_readers_see_whole_files_of_several_writers(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    write_atomically(path, b"a" * 100_000)
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(path), letter], cwd=ROOT)
        for letter in "abc"
    ]
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["shared"]
