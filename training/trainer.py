"""The training itself.

    Training.run:   after_epoch (AP, best, files) -> epoch of steps -> after_epoch -> ... -> files

    a step:         batches (-> teacher) -> net -> losses -> gradients (accumulated, averaged over
                    ranks) -> are they finite? -> Adam -> average weights -> log

All ranks take the same steps: what makes a run stop is agreed on in the one reduction of a step.
Only the first rank writes. How to resume exactly is told in training.checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.settings import ConfigError
from nets.checkpoints import Model, save_model
from nets.engines.load import load_engine
from nets.skeletons import SKELETONS
from training.checkpoint import (
    LossLog,
    OnlyWriter,
    Progress,
    load_state,
    log_differences,
    save_state,
)
from training.config import TrainConfig
from training.data import ImageStore, find_images, load_labelled_set
from training.ema import Ema
from training.examples import Batch, Examples, Positions, batches
from training.image_store import overview
from training.losses import total_loss
from training.metrics import check_results, evaluate_results, read_annotations
from training.optimiser import make_optimiser, set_norms, set_rates
from training.predict import (
    PredictSettings,
    evaluation_decode,
    evaluation_estimator,
    predict_images,
)
from training.progress import ProgressLine, start_logging
from training.ranks import Ranks, join_ranks, leave_ranks
from training.schedule import rate_factor
from training.start import starting_model
from training.targets import target_plan
from training.teacher import Teacher

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

logger = logging.getLogger(__name__)

_SCALARS_EVERY = 10
"""Steps between two points of TensorBoard's curves; losses.jsonl has every step."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MEMORY = 0.98
"""Of the running average of the loss."""


class DivergedError(RuntimeError):
    """A loss or gradient is not finite: says in which step and with which images."""


@dataclass(frozen=True)
class Limits:
    """Where a run stops before the training is finished; it can be resumed from there."""

    steps: int | None = None
    """Optimiser steps, counted from the training's beginning."""
    minutes: float | None = None
    """Of this run."""

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("minutes", self.minutes)):
            if value is not None and not value > 0:
                raise ConfigError(f"a limit of {name} must be above 0, got {value}")


@dataclass(frozen=True)
class Step:
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


def train(
    config: TrainConfig,
    *,
    output: Path,
    resume: bool = False,
    limits: Limits | None = None,
    quiet: bool = False,
) -> signal.Signals | None:
    """Train as a recipe says, alone or as one of the processes that torchrun started.

    Args:
        output: folder for last.pt, last.safetensors, best.safetensors, losses.jsonl, recipe.json
            and TensorBoard's files.
        resume: go on from output/last.pt; without one, begin.
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
            training.run(limits or Limits())
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
        self.validation = None if config.data.validation is None else _Validation(config)
        self.model = starting_model(config, skeleton)
        evaluation_decode(self.model)  # its file says so: what cannot be used is told now
        net = self.model.net.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_norms:
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        self.net: nn.Module = net
        self.optimiser = make_optimiser(net, config.optimiser)
        self.ema = Ema(net, decay=config.ema.decay) if config.ema.decay else None
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
        self.progress = Progress()
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
        self._check_steps()
        self.last_step = config.schedule.epochs * self.positions.steps_per_epoch
        self._log: LossLog | None = None
        self._board: SummaryWriter | None = None
        self._stop_signal: signal.Signals | None = None
        self._last_batch: Batch | None = None
        self._named_failures: set[str] = set()

    # --- a run -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self.ranks.is_first:
            (self.output / "recipe.json").write_text(self.config.model_dump_json(indent=2) + "\n")
            self._log = LossLog(self.output / "losses.jsonl", last_step=self.progress.step)
            self._board = self._open_board()
        self._former = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self._log is not None:
            self._log.close()
        if self._board is not None:
            self._board.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that stopped it before the schedule's end; None: none did."""
        return self._stop_signal if self.progress.step < self.last_step else None

    def run(self, limits: Limits) -> None:
        """Train until the schedule's end, a limit, SIGTERM or SIGINT; the state is saved then."""
        until = min(self.last_step, limits.steps or self.last_step)
        deadline = math.inf if limits.minutes is None else time.monotonic() + 60 * limits.minutes
        line = ProgressLine(
            total=self.last_step,
            done=self.progress.step,
            shown=self.ranks.is_first and not self._quiet,
        )
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
        stream = batches(
            self.examples,
            self.positions,
            mean=self.model.mean,
            std=self.model.std,
            workers=self.config.data.workers,
            device=self.ranks.device,
        )
        with line:
            self._after_epoch()  # where the run before was stopped between an epoch and its AP
            stopped = False
            while self.progress.step < until and not stopped:
                stopped = self._epoch(stream, until, deadline, line)
                self._save()
                if not stopped and self.progress.position == 0:
                    self._after_epoch()
        self._say_end()

    def _epoch(
        self, stream: Iterator[Batch], until: int, deadline: float, line: ProgressLine
    ) -> bool:
        """Steps up to the epoch's end; True: stopped before."""
        progress = self.progress
        self._parallel.train()
        set_norms(self.net, freeze_all=self.config.freeze_norms)
        saved = time.monotonic()
        while True:
            done = self.step(stream, over=time.monotonic() >= deadline)
            self._record(done, line)
            if done.stop or progress.position == 0 or progress.step >= until:
                return done.stop
            if time.monotonic() - saved >= 60 * self.config.checkpoint_minutes:
                self._save(weights=False)
                saved = time.monotonic()

    # --- a step ----------------------------------------------------------------------------------

    def step(self, stream: Iterator[Batch], *, over: bool) -> Step:
        """One step of the optimiser; over: this rank wants it to be the last.

        Raises:
            DivergedError: on every rank, before any weight has changed.
        """
        config, progress = self.config, self.progress
        started = time.monotonic()
        factor = rate_factor(
            config.schedule, progress.step, steps_per_epoch=self.positions.steps_per_epoch
        )
        set_rates(self.optimiser, factor)
        self.optimiser.zero_grad()
        seen: list[Batch] = []
        sums: list[Tensor] = []
        data_seconds = 0.0
        for index in range(config.accumulate):
            asked = time.monotonic()
            batch = next(stream)
            data_seconds += time.monotonic() - asked
            seen.append(batch)
            sums.append(self._forward_and_backward(batch, last=index + 1 == config.accumulate))
        mine = torch.stack(sums).mean(dim=0)
        failed = [failure for batch in seen for failure in batch.failed]
        self._name_failed(failed)
        stop = torch.tensor([float(over or self._stop_signal is not None), len(failed)])
        measured = self.ranks.mean(torch.cat([mine, stop.to(mine.device)])).tolist()
        *losses, asked_to_stop, mean_failed = measured
        if not all(map(math.isfinite, losses)):
            raise DivergedError(self._what_diverged("the loss", losses[0], seen, mine))
        norm = self._apply_gradients(seen)
        if self.ema is not None:
            self.ema.update(self.net, step=progress.step)
        self._last_batch = seen[-1]
        progress.step += 1
        progress.epoch, progress.position = seen[-1].next_place
        progress.images += self.step_images
        progress.failed_images += round(mean_failed * self.ranks.world)
        seconds = time.monotonic() - started
        progress.seconds += seconds
        return Step(losses, norm, factor, seconds, data_seconds, asked_to_stop > 0)

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
        # In fp16 an infinite gradient is ordinary: the scaler leaves the step out, and scales less.
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

    def _name_failed(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._named_failures:
                self._named_failures.add(name)
                logger.warning("another image takes the place of one that cannot be read: %s", name)

    # --- what is written -------------------------------------------------------------------------

    def _record(self, done: Step, line: ProgressLine) -> None:
        progress = self.progress
        total, push, pull, *heatmaps = done.losses
        before = progress.mean_loss if progress.step > 1 else total
        progress.mean_loss = _MEMORY * before + (1 - _MEMORY) * total
        rate = self.config.optimiser.rate * done.rate_factor
        images_per_second = self.step_images / done.seconds
        data_share = done.data_seconds / done.seconds
        if self._log is not None:
            record: dict[str, Any] = {
                "step": progress.step,
                "epoch": progress.epoch,
                "total": total,
            }
            record |= {"heatmap": heatmaps, "push": push, "pull": pull, "rate": rate}
            # In fp16 an infinite norm is ordinary, and JSON has no word for it.
            norm = done.gradient_norm if math.isfinite(done.gradient_norm) else None
            self._log.write(record | {"gradient_norm": norm, "images": progress.images})
        if self._board is not None and progress.step % _SCALARS_EVERY == 0:
            scalars = {"loss/total": total, "loss/push": push, "loss/pull": pull, "rate": rate}
            scalars |= {f"loss/heatmap_{level}": value for level, value in enumerate(heatmaps)}
            scalars["gradient_norm"] = done.gradient_norm
            scalars |= {"speed/images_per_s": images_per_second, "speed/data_share": data_share}
            self._write_scalars(scalars)
        best = f", best AP {progress.best_ap:.3f}" if progress.best_epoch else ""
        line.show(
            progress.step,
            f"epoch {progress.epoch}, loss {progress.mean_loss:.2e}, "
            f"{images_per_second:.1f} images/s, data {data_share:.0%}{best}",
        )

    def _write_scalars(self, scalars: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, self.progress.step)

    def _after_epoch(self) -> None:
        """AP, the best weights and pictures, where an epoch has just ended and they are due."""
        progress, config = self.progress, self.config
        epoch = progress.epoch
        if progress.position or epoch == progress.checked_epochs:
            return
        last = epoch == config.schedule.epochs
        if epoch % config.pictures_every_epochs == 0 or last:
            self._write_pictures()
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
        text = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        logger.info("epoch %d, %d images: %s", progress.epoch, progress.images, text)
        self._write_scalars({f"validation/{name}": value for name, value in metrics.items()})
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
        return replace(self.model, net=self.net if self.ema is None else self.ema.net)

    def _write_pictures(self) -> None:
        """What the averaged net says of the last batch's first images."""
        batch = self._last_batch
        if self._board is None or batch is None:
            return
        images = batch.images[:4]
        net = self._averaged_model().net.eval()
        with torch.inference_mode():
            heatmaps = net.maps(net(images)).levels[-1]  # type: ignore[operator]
        picture = overview(
            images, heatmaps, batch.tag_index, mean=self.model.mean, std=self.model.std
        )
        self._board.add_image("examples", picture, self.progress.step, dataformats="HWC")

    def _open_board(self) -> SummaryWriter | None:
        if not self.config.tensorboard:
            return None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"TensorBoard cannot be imported ({error}); pip install tensorboard, or leave its "
                "files out with --set tensorboard=false"
            ) from error
        # Points of steps that a continued run takes again are taken out.
        return SummaryWriter(str(self.output / "tensorboard"), purge_step=self.progress.step + 1)

    def _say_end(self) -> None:
        progress = self.progress
        finished = progress.step >= self.last_step
        why = "" if self._stop_signal is None else f" by {self._stop_signal.name}"
        best = f"best AP {progress.best_ap:.3f} (epoch {progress.best_epoch})"
        logger.info(
            "%s after %d of %d steps, %d images, %.1f minutes; %s; "
            "images that could not be read: %d; files: %s",
            "finished" if finished else f"stopped{why}, goes on with --resume",
            progress.step,
            self.last_step,
            progress.images,
            progress.seconds / 60,
            best if progress.best_epoch else "AP not measured",
            progress.failed_images,
            self.output,
        )

    # --- start and stop --------------------------------------------------------------------------

    def _restore(self, resume: bool) -> None:
        path = self.output / "last.pt"
        if not resume:
            if path.exists():
                raise ConfigError(
                    f"{self.output} holds a training already; go on with it by --resume, or give "
                    "another --output"
                )
            return
        if not path.exists():
            logger.warning("no %s to go on from: the training begins", path)
            return
        content, self.progress = load_state(path)
        try:
            self.net.load_state_dict(content["net"])
            self._restore_optimiser(content["optimiser"])
            if self.ema is not None:
                self.ema.net.load_state_dict(content.get("ema", content["net"]))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{path} is of a training with another net or other frozen weights ({reason}); "
                "give the recipe it was made with, or begin anew with its last.safetensors as init"
            ) from error
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        log_differences(content, self.config)
        if self.teacher is not None and content.get("teacher") != self.teacher.weights_sha256:
            logger.warning("continued with another teacher: its weights are not those of before")
        logger.info("goes on from step %d, epoch %d", self.progress.step, self.progress.epoch)

    def _check_steps(self) -> None:
        """The schedule counts steps, so a continued run's must be those of the run before."""
        progress, positions = self.progress, self.positions
        if not progress.step:
            return
        before = progress.images // progress.step
        if before != self.step_images:
            raise ConfigError(
                f"{self.output} holds a training in steps of {before} examples, this run has "
                f"{self.step_images}; keep batch x accumulate x ranks as it was"
            )
        of_epoch = progress.position // self.step_images
        if progress.step != progress.epoch * positions.steps_per_epoch + of_epoch:
            before = (progress.step - of_epoch) // max(progress.epoch, 1)
            raise ConfigError(
                f"{self.output} holds a training of {before} steps an epoch, this run has "
                f"{positions.steps_per_epoch}; keep schedule.images_per_epoch and the data sets "
                "as they were"
            )

    def _restore_optimiser(self, state: dict[str, Any]) -> None:
        """Moments and sizes from the file, but rates and betas as the recipe says now."""
        own = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimiser.param_groups
        ]
        self.optimiser.load_state_dict(state)
        for group, settings in zip(self.optimiser.param_groups, own, strict=True):
            sizes = group.get("sizes", settings.get("sizes"))
            group.update(settings)
            if sizes is not None:
                pairs = zip(sizes, group["params"], strict=True)
                group["sizes"] = [size.to(weight.device) for size, weight in pairs]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stop_signal is None:
            self._stop_signal = signal.Signals(number)
            name = self._stop_signal.name
            logger.warning("%s: stops after this step; Ctrl-C then stops at once", name)
        # Service managers and torchrun both send SIGTERM, so a second one says nothing new.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Validation:
    """The validation set, measured with the very decode of stream and evaluation."""

    def __init__(self, config: TrainConfig) -> None:
        part = config.data.validation
        assert part is not None
        self._annotations = read_annotations(part.annotations)
        self._images = self._annotations["images"][: config.validation.images]
        self._image_ids = [int(image["id"]) for image in self._images]
        self._store = ImageStore(find_images(part.annotations, part.images))
        self._flip = config.validation.flip
        # What OKS needs and the labels lack is told now, not after the first epochs.
        skeleton = SKELETONS[config.data.skeleton]
        check_results(self._annotations, [], skeleton=skeleton, image_ids=self._image_ids)

    def measure(self, model: Model, ranks: Ranks) -> dict[str, float]:
        """AP and its companions on the first rank, {} on the others. Each runs a part."""
        engine = load_engine(model, engine="torch", device=str(ranks.device), precision="fp32")
        settings = PredictSettings(
            input_size=model.input_size,
            size_multiple=model.size_multiple,
            flip=self._flip,
            decode=evaluation_decode(model),
        )
        found = predict_images(
            evaluation_estimator(engine, model, settings),
            self._store,
            self._images[ranks.rank :: ranks.world],
        )
        of_ranks = ranks.gathered(found.results)
        if not ranks.is_first:
            return {}
        return evaluate_results(
            self._annotations,
            [person for results in of_ranks for person in results],
            skeleton=model.skeleton,
            image_ids=self._image_ids,
        )


def _check_choices(config: TrainConfig, ranks: Ranks) -> None:
    on_cpu = ranks.device.type == "cpu"
    if on_cpu and config.precision == "fp16":
        raise ConfigError("precision fp16 needs a CUDA GPU, got device cpu; pass precision=bf16")
    if on_cpu and config.sync_norms:
        raise ConfigError("sync_norms needs CUDA GPUs, got device cpu; pass sync_norms=false")
