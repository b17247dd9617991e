"""What a training is at one moment, and the file that it can be continued from.

    output/last.pt             everything: weights, averages, moments, where in which epoch
    output/losses.jsonl        one line a step; cut back to last.pt's step when a run is continued

Both files are whole at any moment at which the machine may stop. Every example is a function of
(seed, epoch, position), so a continued run sees what the unbroken one would have seen.
"""

import fcntl
import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from common.files import write_atomically
from common.settings import ConfigError
from training.config import TrainConfig

logger = logging.getLogger(__name__)

FORMAT = "posestream-training/1"


@dataclass
class TrainingProgress:
    """How far a training has come."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs done."""
    position: int = 0
    """Examples done of the epoch that runs, over all ranks."""
    images: int = 0
    """Examples done, over all epochs and ranks."""
    seconds: float = 0.0
    """Time spent, over all resumptions."""
    failed_images: int = 0
    """Images that could not be read, each time they came."""
    checked_epochs: int = 0
    """Epochs done when AP was measured or was found not to be due."""
    best_ap: float = -1.0
    best_epoch: int = 0
    """Epochs done at the best AP; 0: not measured yet."""
    mean_loss: float = 0.0
    """Running average of the total loss, as the progress line shows it."""


def save_state(
    path: Path, parts: dict[str, Any], progress: TrainingProgress, config: TrainConfig
) -> None:
    """Write last.pt.

    Args:
        parts: state dicts by name; anything that torch.load(weights_only=True) reads.
    """
    content = {
        "format": FORMAT,
        "recipe": config.model_dump_json(),
        "progress": asdict(progress),
        "random": _random_state(),
        **parts,
    }
    write_atomically(path, lambda file: torch.save(content, file), durable=True, only_writer=True)


def load_state(path: Path) -> tuple[dict[str, Any], TrainingProgress]:
    """Read last.pt, its tensors on the CPU, and put torch's random generators where they were.

    Raises:
        ConfigError: the file is damaged or is none of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise ConfigError(
            f"{path} cannot be read ({error}); start again with another --output, or from the "
            "weights beside it with --set init=..."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"{path} is no training state ({FORMAT}); give the folder of a training")
    known = {field.name for field in fields(TrainingProgress)}
    progress = TrainingProgress(**{k: v for k, v in content["progress"].items() if k in known})
    _set_random_state(content["random"])
    return content, progress


def refuse_old_training(path: Path) -> None:
    """Raise ConfigError where a training that begins would overwrite another's last.pt."""
    if path.exists():
        raise ConfigError(
            f"{path.parent} holds a training already; continue it with --resume, or give another "
            "--output"
        )


def check_same_steps(
    progress: TrainingProgress, output: Path, *, step_images: int, steps_per_epoch: int
) -> None:
    """The schedule counts steps, so a resumed run's must be those of the run before.

    Raises:
        ConfigError: steps of another size, or another number of them an epoch.
    """
    if not progress.step:
        return
    before = progress.images // progress.step
    if before != step_images:
        raise ConfigError(
            f"{output} holds a training in steps of {before} examples, this run has "
            f"{step_images}; keep batch x accumulate x ranks as it was"
        )
    of_epoch = progress.position // step_images
    if progress.step != progress.epoch * steps_per_epoch + of_epoch:
        before = (progress.step - of_epoch) // max(progress.epoch, 1)
        raise ConfigError(
            f"{output} holds a training of {before} steps an epoch, this run has "
            f"{steps_per_epoch}; keep schedule.images_per_epoch and the data sets as they were"
        )


def log_differences(content: dict[str, Any], config: TrainConfig) -> None:
    """Log the settings that are not those that the state was saved with."""
    before, now = _flat(json.loads(content["recipe"])), _flat(json.loads(config.model_dump_json()))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            logger.warning("continued with %s = %s, was %s", name, now.get(name), before.get(name))


class OnlyWriter:
    """A folder's lock file: held until close(), or the process's end, however that comes."""

    def __init__(self, folder: Path) -> None:
        """Make the folder and lock it.

        Raises:
            ConfigError: another process holds the lock, or nothing can be written there.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "lock").open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written to as a folder: {error.strerror}; give another "
                "--output"
            ) from None
        try:
            # By lockf, not flock: loader workers, which may outlive a killed training, have no part
            # in it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(
                f"another training writes to {folder}; wait for its end, or give another --output"
            ) from None

    def close(self) -> None:
        self._file.close()


class LossLog:
    """losses.jsonl: a line a step, there as soon as the step is done."""

    def __init__(self, path: Path, *, last_step: int) -> None:
        """Keep an earlier run's lines up to last_step and continue from there."""
        kept = []
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                # The last line may be half written.
                if not line.endswith(b"\n") or json.loads(line)["step"] > last_step:
                    break
                kept.append(line)
        write_atomically(path, lambda file: file.writelines(kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if len(state.get("cuda", ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a tree of dicts by dotted name."""
    if not isinstance(tree, dict) or not tree:
        return {name: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{name}.{key}" if name else key)
    return leaves
