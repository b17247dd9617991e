"""training.checkpoint: last.pt and losses.jsonl, whole at any moment."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.settings import ConfigError
from tests.support.tiny import tiny_config
from training.checkpoint import (
    LossLog,
    TrainingProgress,
    load_state,
    log_differences,
    save_state,
)


@pytest.fixture(autouse=True)
def _random_generator_as_before() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    progress = TrainingProgress(step=5, epoch=1, position=4, images=20, best_ap=0.25, best_epoch=1)
    weights = {"w": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)}
    save_state(path, {"net": weights}, progress, tiny_config(Path("a.json")))
    expected = torch.randn(5)
    torch.manual_seed(99)
    content, read = load_state(path)
    assert read == progress
    assert torch.equal(content["net"]["w"], weights["w"])
    assert content["net"]["w"].stride() == weights["w"].stride()
    assert torch.equal(torch.randn(5), expected)  # the generator went on from where it was


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil"),))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"PK nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(path)
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(path)
    assert not Path("evil").exists()
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="no training state"):
        load_state(path)


def test_changed_settings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.pt"
    save_state(path, {}, TrainingProgress(), tiny_config(Path("a.json")))
    content, _ = load_state(path)
    log_differences(content, tiny_config(Path("a.json")))
    assert not caplog.records
    log_differences(content, tiny_config(Path("a.json"), optimiser={"rate": 0.5}))
    assert [record.getMessage() for record in caplog.records] == [
        "continued with optimiser.rate = 0.5, was 0.001"
    ]


def _steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_log_is_cut_back_to_the_state(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    log = LossLog(path, last_step=0)
    for step in range(1, 6):
        log.write({"step": step})
        assert _steps(path)[-1] == step  # there at once, a killed process loses nothing
    log.close()
    with path.open("a") as file:
        file.write('{"step": 6')  # what kill -9 in the middle of a write leaves
    log = LossLog(path, last_step=3)
    log.write({"step": 4})
    log.close()
    assert _steps(path) == [1, 2, 3, 4]
    log = LossLog(path, last_step=9)
    log.close()
    assert _steps(path) == [1, 2, 3, 4]
