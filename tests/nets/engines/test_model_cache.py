"""The cache gives back what was stored, whole, or nothing."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nets.engines import model_cache
from nets.engines.model_cache import ModelCache
from tests.support.places import ROOT
from tests.support.waiting import PATIENCE_SECONDS

KEY = {"name": "net", "weights": "aa", "version": "1"}
PAYLOAD = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "engines")


def test_gives_back_what_was_stored(cache: ModelCache) -> None:
    assert cache.load(KEY) is None
    cache.store(KEY, PAYLOAD)
    assert cache.load(KEY) == PAYLOAD
    assert ModelCache(cache.folder).load(KEY) == PAYLOAD
    cache.store(KEY, b"newer")
    assert cache.load(KEY) == b"newer"


def test_every_part_of_the_key_counts(cache: ModelCache) -> None:
    cache.store(KEY, PAYLOAD)
    for part in KEY:
        assert cache.load({**KEY, part: "other"}) is None
    assert cache.load({**KEY, "more": ""}) is None
    assert cache.load(dict(reversed(KEY.items()))) == PAYLOAD  # order does not


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:20],
        lambda content: b"",
        lambda content: b"garbage" * 100,
        lambda content: content.replace(b'"size"', b'"sise"'),
        lambda content: content.replace(b'"aa"', b'"bb"'),
        lambda content: content[: content.index(b"{")] + b"[]\n" + PAYLOAD,
    ],
)
def test_a_damaged_entry_is_deleted_and_reported(
    cache: ModelCache, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    assert callable(damage)
    cache.store(KEY, PAYLOAD)
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(KEY) is None
    assert not path.exists()
    assert "made again" in caplog.text
    cache.store(KEY, PAYLOAD)
    assert cache.load(KEY) == PAYLOAD


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    cache = ModelCache(tmp_path_factory.mktemp("bits"))
    cache.store(KEY, PAYLOAD)
    path = cache.path(KEY)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)
    assert cache.load(KEY) is None


def test_an_entry_under_another_name_is_refused(cache: ModelCache) -> None:
    other = {**KEY, "weights": "bb"}
    cache.store(KEY, PAYLOAD)
    cache.path(KEY).rename(cache.path(other))
    assert cache.load(other) is None


def test_the_entries_unused_for_longest_go_first(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, max_bytes=3 * len(PAYLOAD) + 2000)
    keys = [{**KEY, "weights": str(number)} for number in range(4)]
    for age, key in zip((400, 300, 200), keys, strict=False):
        cache.store(key, PAYLOAD)
        os.utime(cache.path(key), (time.time() - age,) * 2)
    assert cache.load(keys[0]) == PAYLOAD  # now the one used last
    cache.store(keys[3], PAYLOAD)
    assert [cache.load(key) is not None for key in keys] == [True, False, True, True]


def test_the_newest_entry_stays_however_large(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, max_bytes=10)
    cache.store({**KEY, "weights": "old"}, PAYLOAD)
    cache.store(KEY, PAYLOAD)
    assert cache.load(KEY) == PAYLOAD
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    left, busy = tmp_path / "left.model.1.part", tmp_path / "busy.model.2.part"
    for path in (left, busy):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    cache.store(KEY, PAYLOAD)
    assert not left.exists()
    assert busy.exists()  # its writer may still be at work


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    ModelCache(tmp_path, max_bytes=0).store(KEY, PAYLOAD)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_used_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = ModelCache(tmp_path / "file" / "engines")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cache.store(KEY, PAYLOAD)
            assert cache.load(KEY) is None
            cache.discard(KEY)
    assert len(caplog.records) == 1
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_full_disk_leaves_nothing_behind(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache.store(KEY, PAYLOAD)
    assert cache.folder is not None
    assert list(cache.folder.iterdir()) == []
    assert "No space left" in caplog.text


_WRITER = """
import json, sys
from pathlib import Path
from nets.engines import model_cache
from nets.engines.model_cache import ModelCache
cache = ModelCache(Path(sys.argv[1]), max_bytes=1)
key, other = json.loads(sys.argv[2]), {"name": "other"}
payloads = {bytes([n]) * 300_000 for n in range(4)}
whole = 0
for payload in list(payloads) * 10:
    cache.store(key, payload)
    cache.store(other, b"x")  # prunes the first
    loaded = cache.load(key)
    assert loaded is None or loaded in payloads
    cache.store(key, payload)
    loaded = cache.load(key)
    assert loaded is None or loaded in payloads
    whole += loaded is not None
print(whole)
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    root = ROOT
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), json.dumps(KEY)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for writer in writers:
        output, errors = writer.communicate(timeout=PATIENCE_SECONDS)
        assert writer.returncode == 0, errors
        assert errors == ""  # no entry ever looked damaged
        assert int(output) > 0
    assert not list(tmp_path.glob("*.part"))


def test_models_lie_in_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ModelCache().folder == tmp_path / "posestream" / "engines"


def test_without_any_folder_nothing_is_kept_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_cache, "cache_folder", lambda kind: None)
    cache = ModelCache()
    cache.store(KEY, PAYLOAD)
    assert cache.load(KEY) is None
    cache.discard(KEY)
