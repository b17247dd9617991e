"""What a training can be told: one validated model per part, defaults here and nowhere else.

A recipe (configs/train/*.yaml) and `--set key=value` say only what differs. An unknown key is an
error that names it and the nearest known one. This file knows the parts' settings, not the parts.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class ConfigError(ValueError):
    """A setting that cannot be used: says which, what was got and what is expected."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=32, multiple_of=32)]
Color = tuple[float, float, float]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class DatasetConfig(_Settings):
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


class DataConfig(_Settings):
    """What is learnt from and what it is measured on."""

    train: Annotated[tuple[DatasetConfig, ...], Field(min_length=1)]
    validation: DatasetConfig | None = None
    """None: no AP during training, and the last weights are the best known."""
    skeleton: Literal["coco17", "crowdpose14"] = "coco17"
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that read and augment, of each rank; 0: the training process itself does."""


class AugmentConfig(_Settings):
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


class TargetConfig(_Settings):
    """Keypoints -> heatmaps and tag indices."""

    kind: Literal["gaussian", "truncated"] = "gaussian"
    """gaussian: HigherHRNet. truncated: DoubleHigherNet, exp(-d^2 / sigma^2) cut at tau."""
    sigma: Positive = 2.0
    tau: tuple[Positive, Positive] = (10.0, 7.0)
    """Radius of the cut in the coarse and the fine stage; of `truncated` only."""
    unit: Literal["heatmap", "input"] = "heatmap"
    """The pixels that sigma and tau are counted in."""
    max_people: Count = 30


class LossConfig(_Settings):
    """Weights of the losses."""

    heatmap: NotNegative = 1.0
    push: NotNegative = 1e-3
    pull: NotNegative = 1e-3
    push_kind: Literal["exp", "max"] = "exp"
    foreground: NotNegative = 0.0
    """A pixel's squared error counts (1 + foreground * target) times; 0 as published."""


class OptimiserConfig(_Settings):
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
    rates: dict[str, NotNegative] = {}
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


class ScheduleConfig(_Settings):
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


class EmaConfig(_Settings):
    """Averaged weights: validation, best.safetensors and last.safetensors use them."""

    decay: Decay = 0.0
    """Per step; 0 averages nothing, as published. 0.999 remembers about 1000 steps. In the
    beginning it is at most (1 + step) / (10 + step), so that the start weights are forgotten."""


class ValidationConfig(_Settings):
    """AP on data.validation while the training runs."""

    every_epochs: Count = 1
    images: Count | None = None
    """Only the first so many; None: all."""
    flip: bool = False
    """Average with the mirrored picture, as the papers' evaluation does; twice the time."""


class RunConfig(_Settings):
    """How the finished weights are run; stands in the header of the saved files.

    What is left out comes from `init` where that says it, else from the net's habits.
    """

    input_size: Side | None = None
    """Short side in pixels; by default augment.size."""
    size_multiple: Side | None = None
    tag_ramp_px: NotNegative | None = None
    """See nets.aggregation.add_tag_ramp; holds in training too."""
    mean: Color | None = None
    std: Color | None = None
    decode: dict[str, int | float] = {}
    """Settings of the decode by name, for example {detection_threshold: 0.2}."""
    weights: Literal["float16", "float32"] = "float16"
    """Of the saved files; last.pt is float32 always."""


class TeacherConfig(_Settings):
    """A trained model whose heatmaps are learnt beside or in place of drawn ones."""

    weights: Path
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Of the teacher in every heatmap; the rest is drawn. With 1 labels teach the tags alone."""
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 2.0)
    """Of the example, averaged; each makes a side that the model takes (a multiple of 32)."""
    flip: bool = False
    """Average with what it says of the mirrored example, as a flip test does; twice the time."""


class TrainConfig(_Settings):
    """A recipe: one whole training."""

    net: str
    """Name in nets.build_net."""
    settings: dict[str, Any] = {}
    """The net's settings that differ, for example {width: 8}."""
    init: Path | None = None
    """Weights to start from: ours, official or mmpose. None: fresh ones."""
    init_part: Literal["all", "matching"] = "all"
    """matching: take what fits by name and shape, and say what starts anew: an ImageNet HRNet,
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
    """Batch norms reckon over all ranks; CUDA only."""
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
    tree = {} if path is None else _read_yaml(path)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes key=value, got {override!r}; e.g. schedule.epochs=20")
        _put(tree, name, _yaml_value(name, text))
    return checked_recipe(tree)


def checked_recipe(tree: dict[str, Any]) -> TrainConfig:
    """The recipe that a tree of plain values says; raises ConfigError."""
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"recipe {path} must hold `key: value` lines, got {settings!r}")
    return settings


def _yaml_value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"setting {name!r}: {text!r} is not a YAML value") from None


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name."""
    *groups, last = name.split(".")
    place: Any = tree
    for group in groups:
        place = _step(place, group, name)
    if isinstance(place, list):
        _step(place, last, name)
        place[int(last)] = value
    else:
        place[last] = value


def _step(place: Any, group: str, name: str) -> Any:
    """The part of a tree that one word of a dotted name leads to."""
    if isinstance(place, list):
        if not group.isdecimal() or int(group) >= len(place):
            raise ConfigError(
                f"setting {name!r}: expected a number below {len(place)}, got {group!r}"
            )
        return place[int(group)]
    inner = place.setdefault(group, {})
    if not isinstance(inner, dict | list):
        raise ConfigError(f"setting {name!r}: {group!r} is not a group of settings")
    return inner


def _one_line(error: ValidationError) -> str:
    """The first complaint in our words; how many more there are."""
    problems = error.errors()
    # A misspelt key also misses the right one; the misspelling says more.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        text = f"unknown setting {key!r}{_nearest(problem['loc'])}"
    elif problem["type"] == "missing":
        text = f"setting {key!r} is missing"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        text = f"setting {key!r}: {message}, got {problem['input']!r}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _nearest(location: tuple[int | str, ...]) -> str:
    """`; did you mean ...` for an unknown key, or the list of known ones."""
    known = list(_group(location[:-1]).model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {'.'.join(str(part) for part in (*location[:-1], close[0]))!r}?"
    return f"; known here: {', '.join(known)}"


def _group(location: tuple[int | str, ...]) -> type[_Settings]:
    """The settings class at a place in the recipe."""
    group: type[_Settings] = TrainConfig
    for part in location:
        if isinstance(part, str):
            group = _settings_inside(group.model_fields[part].annotation) or group
    return group


def _settings_inside(annotation: Any) -> type[_Settings] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, _Settings) else None
    inside = (_settings_inside(argument) for argument in typing.get_args(annotation))
    return next((group for group in inside if group is not None), None)
