"""The training itself.

    Training.run:   after_epoch (AP, best, files) -> epoch of steps -> after_epoch -> ... -> files

    a step:         batches (-> teacher) -> net -> losses -> gradients (accumulated, averaged over
                    ranks) -> are they finite? -> Adam -> average weights -> log

All ranks take the same steps: what makes a run stop is agreed on in the one reduction of a step.
Only the first rank writes. training.checkpoint says how a run is resumed exactly.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.settings import ConfigError
from nets.checkpoints import Model, save_model
from nets.skeletons import SKELETONS
from training.annotations import load_labelled_set
from training.checkpoint import (
    OnlyWriter,
    TrainingProgress,
    check_same_steps,
    load_state,
    log_differences,
    refuse_old_training,
    save_state,
)
from training.config import TrainConfig
from training.ema import Ema, between
from training.examples import Batch, Examples, Positions, batches
from training.losses import total_loss
from training.optimiser import load_optimiser, make_optimiser, set_norms, set_rates
from training.predict import evaluation_decode
from training.progress import start_logging
from training.ranks import Ranks, join_ranks, leave_ranks
from training.run_log import RunLog, StepResult
from training.schedule import rate_factor
from training.start import starting_model
from training.targets import target_plan
from training.teacher import Teacher
from training.validation import Validation

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DivergedError(RuntimeError):
    """A loss or gradient is not finite: says in which step and with which images."""


@dataclass(frozen=True)
class StopLimits:
    """Where a run stops before the training is finished; it can be resumed from there."""

    steps: int | None = None
    """Optimiser steps, counted from the training's beginning."""
    minutes: float | None = None
    """Of this run."""

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("minutes", self.minutes)):
            if value is not None and not value > 0:
                raise ConfigError(f"a limit of {name} must be above 0, got {value}")


def train(
    config: TrainConfig,
    *,
    output: Path,
    resume: bool = False,
    limits: StopLimits | None = None,
    quiet: bool = False,
) -> signal.Signals | None:
    """Train as a recipe says, alone or as one of the processes that torchrun started.

    Args:
        output: folder for last.pt, last.safetensors, best.safetensors, losses.jsonl, recipe.json
            and TensorBoard's files.
        resume: continue from output/last.pt; without one, begin.
    Returns:
        SIGTERM or SIGINT if that stopped this process before the schedule's end.
    Raises:
        ValueError: settings or data that cannot be used.
        DivergedError: a loss or gradient is not finite; last.pt is the last good state.
    """
    ranks = join_ranks(config.device)
    try:
        start_logging(quiet=quiet or not ranks.is_first)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        with Training(config, output=output, resume=resume, ranks=ranks, quiet=quiet) as training:
            training.run(limits or StopLimits())
            return training.stopped_by
    finally:
        leave_ranks()


class Training:
    """Everything of a training that changes while it runs, and what changes it."""

    def __init__(
        self, config: TrainConfig, *, output: Path, resume: bool, ranks: Ranks, quiet: bool = False
    ) -> None:
        _check_choices(config, ranks)
        self.config = config
        self.output = output
        self.ranks = ranks
        self._quiet = quiet
        skeleton = SKELETONS[config.data.skeleton]
        sets = [load_labelled_set(part, skeleton) for part in config.data.train]
        self.validation = None if config.data.validation is None else Validation(config)
        self.model = starting_model(config, skeleton)
        evaluation_decode(self.model)  # its file says so: what cannot be used is reported now
        net = self.model.net.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_norms:
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        self.net: nn.Module = net
        self.optimiser = make_optimiser(net, config.optimiser)
        self.ema = Ema(net, decay=config.ema.decay) if config.ema.decay else None
        self._start = copy.deepcopy(net) if config.ema.start else None
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
        self.progress = TrainingProgress()
        self._lock = OnlyWriter(output) if ranks.is_first else None
        plan = target_plan(net.settings, config.target)
        self.teacher = None
        if config.teacher is not None:
            self.teacher = Teacher(
                config.teacher,
                self.model,
                plan=plan,
                device=ranks.device,
                threads=config.threads,
            )
        self._restore(resume)
        self._parallel = net if ranks.world == 1 else DistributedDataParallel(net)
        self.examples = Examples(
            sets,
            shares=[part.share for part in config.data.train],
            augment=config.augment,
            target=config.target,
            plan=() if self.teacher is not None and self.teacher.alone else plan,
            seed=config.seed,
            length=config.schedule.images_per_epoch,
        )
        self.positions = Positions(
            len(self.examples),
            batch=config.batch,
            accumulate=config.accumulate,
            rank=ranks.rank,
            world=ranks.world,
            start=(self.progress.epoch, self.progress.position),
        )
        self.step_images = config.batch * config.accumulate * ranks.world
        check_same_steps(
            self.progress,
            output,
            step_images=self.step_images,
            steps_per_epoch=self.positions.steps_per_epoch,
        )
        self.last_step = config.schedule.epochs * self.positions.steps_per_epoch
        self._log = RunLog(config, output, self.progress, last_step=self.last_step)
        self._stop_signal: signal.Signals | None = None
        self._last_batch: Batch | None = None

    # --- a run -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        shown = self.ranks.is_first and not self._quiet
        self._log.open(writes_files=self.ranks.is_first, shows_progress=shown)
        self._former = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._log.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that stopped it before the schedule's end; None: none did."""
        return self._stop_signal if self.progress.step < self.last_step else None

    def run(self, limits: StopLimits) -> None:
        """Train until the schedule's end, a limit, SIGTERM or SIGINT; the state is saved then."""
        until = min(self.last_step, limits.steps or self.last_step)
        deadline = math.inf if limits.minutes is None else time.monotonic() + 60 * limits.minutes
        self._log_start()
        stream = self._batches()
        self._after_epoch()  # where the run before was stopped between an epoch and its AP
        stopped = False
        while self.progress.step < until and not stopped:
            stopped = self._epoch(stream, until, deadline)
            self._save()
            if not stopped and self.progress.position == 0:
                self._after_epoch()
        self._log.end(stopped_by=None if self._stop_signal is None else self._stop_signal.name)

    def _epoch(self, stream: Iterator[Batch], until: int, deadline: float) -> bool:
        """Steps up to the epoch's end; True: stopped before."""
        self._parallel.train()
        set_norms(self.net, freeze_all=self.config.freeze_norms)
        saved = time.monotonic()
        while True:
            done = self.step(stream, over=time.monotonic() >= deadline)
            self._log.step(done, images=self.step_images)
            if done.stop or self.progress.position == 0 or self.progress.step >= until:
                return done.stop
            if time.monotonic() - saved >= 60 * self.config.checkpoint_minutes:
                self._save(weights=False)
                saved = time.monotonic()

    def step(self, stream: Iterator[Batch], *, over: bool) -> StepResult:
        """One step of the optimiser; over: this rank wants it to be the last.

        Raises:
            DivergedError: on every rank, before any weight has changed.
        """
        started = time.monotonic()
        factor = self._set_rates()
        self.optimiser.zero_grad()
        seen, mine, data_seconds = self._accumulate(stream)
        losses, stop, num_failed = self._over_ranks(mine, seen, over)
        if not all(map(math.isfinite, losses)):
            raise DivergedError(self._what_diverged("the loss", losses[0], seen, mine))
        norm = self._apply_gradients(seen)
        if self.ema is not None:
            self.ema.update(self.net, step=self.progress.step)
        self._last_batch = seen[-1]
        seconds = time.monotonic() - started
        self._advance(seen[-1], num_failed, seconds)
        return StepResult(losses, norm, factor, seconds, data_seconds, stop)

    # --- parts of a step -------------------------------------------------------------------------

    def _set_rates(self) -> float:
        """Set the learning rates of this step; their factor on the recipe's."""
        steps_per_epoch = self.positions.steps_per_epoch
        factor = rate_factor(
            self.config.schedule, self.progress.step, steps_per_epoch=steps_per_epoch
        )
        set_rates(self.optimiser, factor)
        return factor

    def _accumulate(self, stream: Iterator[Batch]) -> tuple[list[Batch], Tensor, float]:
        """Gradients of a step: its batches, their mean losses, seconds of waiting for data."""
        seen: list[Batch] = []
        sums: list[Tensor] = []
        data_seconds = 0.0
        for index in range(self.config.accumulate):
            asked = time.monotonic()
            batch = next(stream)
            data_seconds += time.monotonic() - asked
            seen.append(batch)
            last = index + 1 == self.config.accumulate
            sums.append(self._forward_and_backward(batch, last=last))
        return seen, torch.stack(sums).mean(dim=0), data_seconds

    def _over_ranks(
        self, mine: Tensor, seen: Sequence[Batch], over: bool
    ) -> tuple[list[float], bool, int]:
        """Mean losses over all ranks; whether some rank stops; images that could not be read."""
        failed = [failure for batch in seen for failure in batch.failed]
        self._log.failed_images(failed)
        stop = torch.tensor([float(over or self._stop_signal is not None), len(failed)])
        measured = self.ranks.mean(torch.cat([mine, stop.to(mine.device)])).tolist()
        *losses, asked_to_stop, mean_failed = measured
        return losses, asked_to_stop > 0, round(mean_failed * self.ranks.world)

    def _advance(self, last: Batch, num_failed: int, seconds: float) -> None:
        progress = self.progress
        progress.step += 1
        progress.epoch, progress.position = last.next_place
        progress.images += self.step_images
        progress.failed_images += num_failed
        progress.seconds += seconds

    def _forward_and_backward(self, batch: Batch, *, last: bool) -> Tensor:
        """Add a batch's gradient; its losses: total, push, pull, one number a stack of heatmaps."""
        config, device = self.config, self.ranks.device
        if self.teacher is not None:
            batch = self.teacher.teach(batch)
        # Gradients travel between ranks once a step, with the last batch.
        quiet = isinstance(self._parallel, DistributedDataParallel) and not last
        with self._parallel.no_sync() if quiet else contextlib.nullcontext():
            with torch.autocast(
                device.type, _DTYPES[config.precision], enabled=config.precision != "fp32"
            ):
                output = self._parallel(batch.images)
            losses = total_loss(
                output,
                batch,
                config.loss,
                num_keypoints=self.model.skeleton.num_keypoints,
                tag_ramp_px=self.model.tag_ramp_px,
            )
            scaled: Tensor = self.scaler.scale(losses.total / config.accumulate)
            scaled.backward()  # type: ignore[no-untyped-call]
        return torch.stack([losses.total.detach(), losses.push, losses.pull, *losses.heatmap])

    def _apply_gradients(self, seen: Sequence[Batch]) -> float:
        """Take the optimiser's step; the gradient's norm before clipping."""
        weights = [w for group in self.optimiser.param_groups for w in group["params"]]
        self.scaler.unscale_(self.optimiser)
        total = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        norm = float(total)
        # In fp16 an infinite gradient is ordinary: the scaler skips the step and scales less.
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise DivergedError(self._what_diverged("the gradient", norm, seen, total))
        if self.config.optimiser.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, self.config.optimiser.clip_norm, total)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return norm

    def _what_diverged(self, what: str, value: float, seen: Sequence[Batch], mine: Tensor) -> str:
        if bool(mine.isfinite().all()):
            images = "images of another rank"
        else:
            images = "images " + ", ".join(
                f"{image_id} ({file})"
                for batch in seen
                for ids, files in zip(batch.image_ids, batch.files, strict=True)
                for image_id, file in zip(ids, files, strict=True)
            )
        return (
            f"step {self.progress.step}: {what} is {value}; the batch held {images}. The last good "
            f"state is {self.output / 'last.pt'}; look at these images, or lower optimiser.rate"
        )

    # --- what is written -------------------------------------------------------------------------

    def _after_epoch(self) -> None:
        """AP, the best weights and pictures, where an epoch has just ended and they are due."""
        progress, config = self.progress, self.config
        epoch = progress.epoch
        if progress.position or epoch == progress.checked_epochs:
            return
        last = epoch == config.schedule.epochs
        pictures_are_due = epoch % config.pictures_every_epochs == 0 or last
        if pictures_are_due and self._last_batch is not None:
            self._log.examples(self._averaged_model(), self._last_batch)
        if self.validation is not None and (epoch % config.validation.every_epochs == 0 or last):
            model = self._averaged_model()
            # Each rank's norms have seen other examples since they last met.
            self.ranks.share_first(list(model.net.buffers()))
            metrics = self.validation.measure(model, self.ranks)
            if metrics:  # the first rank's
                self._note_metrics(metrics)
        progress.checked_epochs = epoch
        self._save()

    def _note_metrics(self, metrics: dict[str, float]) -> None:
        progress = self.progress
        self._log.metrics(metrics)
        if metrics["AP"] > progress.best_ap or not progress.best_epoch:
            progress.best_ap, progress.best_epoch = metrics["AP"], progress.epoch
            self._save_weights("best.safetensors")

    def _save(self, *, weights: bool = True) -> None:
        """last.pt and, with weights, last.safetensors."""
        if not self.ranks.is_first:
            return
        parts: dict[str, Any] = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.ema is not None:
            parts["ema"] = self.ema.net.state_dict()
        if self.teacher is not None:
            parts["teacher"] = self.teacher.weights_sha256
        save_state(self.output / "last.pt", parts, self.progress, self.config)
        if weights:
            self._save_weights("last.safetensors")

    def _save_weights(self, name: str) -> None:
        dtype = torch.float16 if self.config.run.weights == "float16" else torch.float32
        save_model(self.output / name, self._averaged_model(), dtype=dtype)

    def _averaged_model(self) -> Model:
        net = self.net if self.ema is None else self.ema.net
        if self._start is not None:
            net = between(self._start, net, self.config.ema.start)
        return replace(self.model, net=net)

    # --- start and stop --------------------------------------------------------------------------

    def _restore(self, resume: bool) -> None:
        """Continue from last.pt where that is asked for and there is one."""
        path = self.output / "last.pt"
        if not resume:
            refuse_old_training(path)
            return
        if not path.exists():
            logger.warning("no %s to continue from: the training begins", path)
            return
        content, self.progress = load_state(path)
        try:
            self.net.load_state_dict(content["net"])
            load_optimiser(self.optimiser, content["optimiser"])
            if self.ema is not None:
                self.ema.net.load_state_dict(content.get("ema", content["net"]))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{path} is of a training with another net or other frozen weights ({reason}); "
                "give its own recipe, or start again with its last.safetensors as init"
            ) from error
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        log_differences(content, self.config)
        if self.teacher is not None and content.get("teacher") != self.teacher.weights_sha256:
            logger.warning("continued with another teacher: its weights have changed")
        logger.info("continues from step %d, epoch %d", self.progress.step, self.progress.epoch)

    def _batches(self) -> Iterator[Batch]:
        return batches(
            self.examples,
            self.positions,
            mean=self.model.mean,
            std=self.model.std,
            workers=self.config.data.workers,
            device=self.ranks.device,
        )

    def _log_start(self) -> None:
        logger.info(
            "%d examples an epoch, %d steps of %d, %d epochs; on %s, %d ranks, %s",
            len(self.examples),
            self.positions.steps_per_epoch,
            self.step_images,
            self.config.schedule.epochs,
            self.ranks.device,
            self.ranks.world,
            self.config.precision,
        )

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stop_signal is None:
            self._stop_signal = signal.Signals(number)
            name = self._stop_signal.name
            logger.warning("%s: stops after this step; Ctrl-C then stops at once", name)
        # Service managers and torchrun both send SIGTERM, so a second one says nothing new.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _check_choices(config: TrainConfig, ranks: Ranks) -> None:
    on_cpu = ranks.device.type == "cpu"
    if on_cpu and config.precision == "fp16":
        raise ConfigError("precision fp16 needs a CUDA GPU, got device cpu; pass precision=bf16")
    if on_cpu and config.sync_norms:
        raise ConfigError("sync_norms needs CUDA GPUs, got device cpu; pass sync_norms=false")
