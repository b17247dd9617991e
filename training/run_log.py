"""What a run writes down while it trains: losses.jsonl, TensorBoard, the progress line, log lines.

    RunLog.step(StepResult, progress)      after every step
    RunLog.metrics, .examples              after an epoch

Only the first rank's files are written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.settings import ConfigError
from nets.checkpoints import Model
from training.checkpoint import LossLog, TrainingProgress
from training.config import TrainConfig
from training.examples import Batch
from training.overview import overview
from training.progress import ProgressLine

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

logger = logging.getLogger(__name__)

_SCALARS_EVERY = 10
"""Steps between two points of TensorBoard's curves; losses.jsonl has every step."""

_MEMORY = 0.98
"""Of the running average of the loss."""


@dataclass(frozen=True)
class StepResult:
    """What one step measured, over all ranks."""

    losses: list[float]
    """Total, push, pull, one number a stack of heatmaps."""
    gradient_norm: float
    rate_factor: float
    seconds: float
    data_seconds: float
    """Spent waiting for batches."""
    stop: bool
    """Some rank was asked to stop."""


class RunLog:
    """Open while a training runs."""

    def __init__(
        self, config: TrainConfig, output: Path, progress: TrainingProgress, *, last_step: int
    ) -> None:
        """progress is the training's own: it is read, and its mean_loss is kept up to date."""
        self._config, self._output, self._progress = config, output, progress
        self._last_step = last_step
        self._losses: LossLog | None = None
        self._board: SummaryWriter | None = None
        self._line = ProgressLine(total=last_step, done=progress.step)
        self._named_failures: set[str] = set()

    def open(self, *, writes_files: bool, shows_progress: bool) -> None:
        """Begin. Points and lines of steps that a resumed run takes again are removed."""
        step = self._progress.step
        if writes_files:
            recipe = self._config.model_dump_json(indent=2) + "\n"
            (self._output / "recipe.json").write_text(recipe)
            self._losses = LossLog(self._output / "losses.jsonl", last_step=step)
            self._board = _board(self._output, step) if self._config.tensorboard else None
        self._line.open(shown=shows_progress)

    def close(self) -> None:
        self._line.close()
        if self._losses is not None:
            self._losses.close()
        if self._board is not None:
            self._board.close()

    def step(self, done: StepResult, *, images: int) -> None:
        """images: examples of the step, over all ranks."""
        progress = self._progress
        total = done.losses[0]
        before = progress.mean_loss if progress.step > 1 else total
        progress.mean_loss = _MEMORY * before + (1 - _MEMORY) * total
        rate = self._config.optimiser.rate * done.rate_factor
        images_per_second = images / done.seconds
        data_share = done.data_seconds / done.seconds
        self._write_losses(done, rate)
        if progress.step % _SCALARS_EVERY == 0:
            speed = {"images_per_s": images_per_second, "data_share": data_share}
            self._write_curves(done, rate, speed)
        best = f", best AP {progress.best_ap:.3f}" if progress.best_epoch else ""
        self._line.show(
            progress.step,
            f"epoch {progress.epoch}, loss {progress.mean_loss:.2e}, "
            f"{images_per_second:.1f} images/s, data {data_share:.0%}{best}",
        )

    def _write_losses(self, done: StepResult, rate: float) -> None:
        if self._losses is None:
            return
        progress = self._progress
        total, push, pull, *heatmaps = done.losses
        # In fp16 an infinite norm is ordinary, and JSON has no word for it.
        norm = done.gradient_norm if math.isfinite(done.gradient_norm) else None
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": progress.epoch,
            "total": total,
            "heatmap": heatmaps,
            "push": push,
            "pull": pull,
            "rate": rate,
            "gradient_norm": norm,
            "images": progress.images,
        }
        self._losses.write(record)

    def _write_curves(self, done: StepResult, rate: float, speed: dict[str, float]) -> None:
        total, push, pull, *heatmaps = done.losses
        scalars = {"loss/total": total, "loss/push": push, "loss/pull": pull, "rate": rate}
        scalars |= {f"loss/heatmap_{level}": value for level, value in enumerate(heatmaps)}
        scalars["gradient_norm"] = done.gradient_norm
        self._write_scalars(scalars | {f"speed/{name}": value for name, value in speed.items()})

    def _write_scalars(self, scalars: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, self._progress.step)

    def metrics(self, metrics: dict[str, float]) -> None:
        """AP and its companions of the validation."""
        text = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        logger.info("epoch %d, %d images: %s", self._progress.epoch, self._progress.images, text)
        self._write_scalars({f"validation/{name}": value for name, value in metrics.items()})

    def examples(self, model: Model, batch: Batch) -> None:
        """What a net says of a batch's first images, as a picture for TensorBoard."""
        if self._board is None:
            return
        images, net = batch.images[:4], model.net.eval()
        with torch.inference_mode():
            heatmaps = net.maps(net(images)).levels[-1]  # type: ignore[operator]
        picture = overview(images, heatmaps, batch.tag_index, mean=model.mean, std=model.std)
        self._board.add_image("examples", picture, self._progress.step, dataformats="HWC")

    def failed_images(self, names: Sequence[str]) -> None:
        """Warn of each image that cannot be read, once."""
        for name in names:
            if name not in self._named_failures:
                self._named_failures.add(name)
                logger.warning("replaced unreadable image: %s", name)

    def end(self, *, stopped_by: str | None) -> None:
        """Log how far the run came."""
        progress = self._progress
        finished = progress.step >= self._last_step
        why = "" if stopped_by is None else f" by {stopped_by}"
        best = f"best AP {progress.best_ap:.3f} (epoch {progress.best_epoch})"
        logger.info(
            "%s after %d of %d steps, %d images, %.1f minutes; %s; "
            "images that could not be read: %d; files: %s",
            "finished" if finished else f"stopped{why}, continue with --resume",
            progress.step,
            self._last_step,
            progress.images,
            progress.seconds / 60,
            best if progress.best_epoch else "AP not measured",
            progress.failed_images,
            self._output,
        )


def _board(output: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"TensorBoard cannot be imported ({error}); pip install tensorboard, or do without "
            "its files: --set tensorboard=false"
        ) from error
    return SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)
