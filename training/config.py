"""What a recipe may say: one validated model per part, defaults here and nowhere else.

A recipe (configs/train/*.yaml) and `--set key=value` say only what differs. An unknown key is an
error that names it and the nearest known one. This file knows the parts' settings, not the parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from common.settings import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    Settings,
    Side,
    checked,
    parse_override,
    put,
    read_yaml,
)

Color = tuple[float, float, float]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class TeacherKeypointsConfig(Settings):
    """Another model's keypoints with scores, drawn as high as they score (docs/training.md)."""

    keypoints: Path | None = None
    """A JSON file; None: the field `teacher` of the annotations."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Of the teacher in every heatmap; the rest is labels. Where labels are masked it is all."""


class DatasetConfig(Settings):
    """One annotation file in COCO or CrowdPose format and its images."""

    annotations: Path
    images: Path | None = None
    """Folder, .tar or .zip; by default found beside the annotations."""
    share: Positive | None = None
    """Of the examples drawn, relative to the other sets' shares; by default its images' number."""
    missing_keypoints: Literal["background", "unknown"] = "background"
    """What v = 0 means: nothing there (COCO), or somewhere not known (then masked)."""
    min_agree: Fraction = 0.0
    """Leave out annotations with a lower optional `agree`."""
    min_face_score: Fraction | None = None
    """Take optional `face_teacher` points at least this sure as labels; None: do not."""
    teacher: TeacherKeypointsConfig | None = None
    """None: labels alone, and what `TrainConfig.teacher` says."""


class DataConfig(Settings):
    """What is learnt from and what it is measured on."""

    train: Annotated[tuple[DatasetConfig, ...], Field(min_length=1)]
    validation: DatasetConfig | None = None
    """None: no AP during training, and the last weights are the best known."""
    skeleton: Literal["coco17", "crowdpose14"] = "coco17"
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that read and augment, of each rank; 0: the training process itself does."""


class AugmentConfig(Settings):
    """How an image becomes an example. The defaults are the published ones."""

    size: Side = 512
    """Height and width of the network input in pixels."""
    rotation_deg: NotNegative = 30.0
    """Uniform in minus to plus."""
    scale: tuple[Positive, Positive] = (0.75, 1.5)
    """The crop's side as a multiple of the image's side that scale_of names, uniform in between.
    The HigherHRNet paper says up to 1.25, all of its published configurations 1.5."""
    scale_of: Literal["short", "long"] = "short"
    translation_px: NotNegative = 40.0
    """Uniform in minus to plus, times scale."""
    flip: Fraction = 0.5
    """Probability."""
    color: Fraction = 0.0
    """Strength of the jitter of brightness, contrast, saturation and hue; 0 is off, as published.
    Above 0 a few pictures also become grey or blurred."""
    mosaic: Fraction = 0.0
    """Share of the examples that are made of 2x2 images."""
    people_crop: Fraction = 0.0
    """Share of the examples that are centred on one person, 0.2 to 0.9 of the crop high."""


class SizeSigmaConfig(Settings):
    """A hat's sigma by its person's size, as in SWAHR (Luo et al. 2021, sec. 3.2).

    SWAHR learns how wide hats are; here the person's area says it, as it does in OKS.
    """

    share: Positive = 0.08
    """Of the square root of the person's area."""
    least: Positive = 1.0
    most: Positive = 4.0
    """Limits of sigma, in TargetConfig.unit."""

    @model_validator(mode="after")
    def _in_order(self) -> SizeSigmaConfig:
        if self.least > self.most:
            raise ValueError(f"least {self.least:g} is above most {self.most:g}")
        return self


class TargetConfig(Settings):
    """Keypoints -> heatmaps and tag indices."""

    kind: Literal["gaussian", "truncated"] = "gaussian"
    """gaussian: HigherHRNet. truncated: DoubleHigherNet, exp(-d^2 / sigma^2) cut at tau."""
    sigma: Positive = 2.0
    sigma_by_size: SizeSigmaConfig | None = None
    """In place of `sigma`; None: everybody has the same, as published. gaussian only."""
    tau: tuple[Positive, Positive] = (10.0, 7.0)
    """Radius of the cut in the coarse and the fine stage; of `truncated` only."""
    unit: Literal["heatmap", "input"] = "heatmap"
    """The pixels that sigma and tau are counted in."""
    max_people: Count = 30

    @model_validator(mode="after")
    def _cut_hats_have_one_size(self) -> TargetConfig:
        if self.sigma_by_size is not None and self.kind != "gaussian":
            raise ValueError("sigma_by_size is for kind: gaussian; truncated hats have one size")
        return self


class LossConfig(Settings):
    """Weights of the losses."""

    heatmap: NotNegative = 1.0
    push: NotNegative = 1e-3
    pull: NotNegative = 1e-3
    push_kind: Literal["exp", "max"] = "exp"
    foreground: NotNegative = 0.0
    """A pixel's squared error counts (1 + foreground * target) times; 0 as published."""
    adaptive: NotNegative | None = None
    """Exponent gamma of SWAHR's weight-adaptive loss (Luo et al. 2021, sec. 3.3; 0.01 there):
    what is easy counts less. None: off, as in HigherHRNet."""


class OptimiserConfig(Settings):
    """Adam as published: no weight decay."""

    kind: Literal["adam", "adamw"] = "adam"
    rate: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    """Of convolution and linear weights, never of norms and biases; adamw only."""
    unit: Literal["absolute", "channel"] = "absolute"
    """Of a step. channel: the size that a channel's weights had at the start. Where norms were
    folded into the weights, as in MoveNet, sizes differ by a million, and a step that one channel
    hardly feels spoils the next."""
    rates: dict[str, NotNegative] = Field(default_factory=dict)
    """Factor on `rate` for the weights whose name begins so; the longest such name counts.
    0 freezes them. For example {backbone: 0.1, backbone.stem: 0}."""
    clip_norm: Positive | None = None
    """Largest norm of the whole gradient; None does not clip, as published."""

    @model_validator(mode="after")
    def _decay_is_of_adamw(self) -> OptimiserConfig:
        if self.weight_decay and self.kind == "adam":
            raise ValueError("weight_decay is for kind: adamw; adam has none, as published")
        if self.weight_decay and self.unit == "channel":
            raise ValueError("weight_decay goes with unit: absolute alone")
        return self


class ScheduleConfig(Settings):
    """The learning rate over time. The defaults are the papers'."""

    epochs: Count = 300
    images_per_epoch: Count | None = None
    """Examples an epoch, over all ranks; by default as many as there are training images."""
    kind: Literal["step", "cosine"] = "step"
    milestones: tuple[Count, ...] = (200, 260)
    """`step`: after so many epochs the rate is multiplied by `factor`."""
    factor: Positive = 0.1
    final: Fraction = 0.01
    """`cosine`: the last step's rate as a part of the first's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the rate rises linearly from 0."""


class EmaConfig(Settings):
    """Averaged weights: validation, best.safetensors and last.safetensors use them."""

    decay: Decay = 0.0
    """Per step; 0 averages nothing, as published. 0.999 remembers about 1000 steps. In the
    beginning it is at most (1 + step) / (10 + step), so that the start weights are forgotten."""
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the weights of `init` in those that are measured and saved; 0 as published."""


class ValidationConfig(Settings):
    """AP on data.validation while the training runs."""

    every_epochs: Count = 1
    images: Count | None = None
    """Only the first so many; None: all."""
    flip: bool = False
    """Average with the mirrored picture, as the papers' evaluation does; twice the time."""


class RunConfig(Settings):
    """How the finished weights are run; stands in the header of the saved files.

    What is None comes from `init` where that says it, else from default_run_settings.
    """

    input_size: Side | None = None
    """Short side in pixels; by default augment.size."""
    size_multiple: Side | None = None
    tag_ramp_px: NotNegative | None = None
    """See nets.aggregation.add_tag_ramp; holds in training too."""
    mean: Color | None = None
    std: Color | None = None
    decode: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the decode by name, for example {detection_threshold: 0.2}."""
    weights: Literal["float16", "float32"] = "float16"
    """Of the saved files; last.pt is float32 always."""


class TeacherConfig(Settings):
    """A trained model whose heatmaps are learnt beside or in place of drawn ones."""

    weights: str | Path
    """A file, a published name or a URL."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Of the teacher in every heatmap; the rest is drawn. With 1 labels teach the tags alone."""
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 2.0)
    """Of the example, averaged; each makes a side that the model takes (a multiple of 32)."""
    flip: bool = False
    """Average with what it says of the mirrored example, as a flip test does; twice the time."""


class TrainConfig(Settings):
    """A recipe: one whole training."""

    net: str
    """Name in nets.build_net."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The net's settings that differ, for example {width: 8}."""
    init: str | Path | None = None
    """Weights to start from: a file (ours, official or mmpose), a published name (python -m
    nets.zoo lists them) or a URL. None: fresh ones."""
    init_part: Literal["all", "matching"] = "all"
    """matching: take what fits by name and shape, and log what starts fresh: an ImageNet HRNet,
    other heads, another number of keypoints."""
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    target: TargetConfig = TargetConfig()
    teacher: TeacherConfig | None = None
    """None: labels alone teach the heatmaps."""
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    validation: ValidationConfig = ValidationConfig()
    run: RunConfig = RunConfig()

    batch: Count = 12
    """Examples a step on each rank, of one forward pass."""
    accumulate: Count = 1
    """Forward passes a step; the gradient is that of accumulate * batch examples."""
    freeze_norms: bool = False
    """Batch norms use their running statistics and leave them as they are."""
    sync_norms: bool = False
    """Batch norms compute over all ranks; CUDA only."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's arithmetic; weights and losses stay float32. fp16 is for CUDA only."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: CUDA where there is a GPU."""
    threads: Count | None = None
    """CPU threads of the network; by default all cores."""
    seed: Annotated[int, Field(ge=0)] = 0
    tensorboard: bool = True
    """Scalars and pictures in the output folder."""
    checkpoint_minutes: Positive = 10.0
    """last.pt is written so often, and at the end of every epoch."""
    pictures_every_epochs: Count = 1
    """Overlay pictures for TensorBoard."""

    @field_validator("net")
    @classmethod
    def _known_net(cls, net: str) -> str:
        from nets.named import NAMED  # imports torch

        if net not in NAMED:
            raise ValueError(f"no network has that name; known: {', '.join(NAMED)}")
        return net

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return device

    @model_validator(mode="after")
    def _teacher_takes_its_scales(self) -> TrainConfig:
        for scale in () if self.teacher is None else self.teacher.scales:
            side = round(self.augment.size * scale)
            if not side or side % 32:
                raise ValueError(
                    f"teacher.scales: {scale:g} of augment.size {self.augment.size} is {side} "
                    "pixels, expected a multiple of 32"
                )
        return self


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe; what comes later wins.

    Args:
        path: YAML file; None starts from the defaults.
        overrides: `name=value` texts, for example `"schedule.epochs=20"`; values are YAML. A
            number steps into a list: `"data.train.0.images=other.tar"`.
    Raises:
        ConfigError: one line that names the file or key, what was got and what is expected.
    """
    tree = {} if path is None else read_yaml(path, TrainConfig, noun="recipe")
    for override in overrides:
        put(tree, *parse_override(override, example="schedule.epochs=20"))
    return checked_recipe(tree)


def checked_recipe(tree: dict[str, Any]) -> TrainConfig:
    """The recipe that a tree of plain values says; raises ConfigError."""
    return checked(TrainConfig, tree)
