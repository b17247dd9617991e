"""What a stream can be told: one validated model per stage, defaults here and nowhere else.

A YAML file (see configs/) and `--set key=value` say only what differs. An unknown key is an error
that names it and the nearest known one. This file knows the stages' settings, not the stages.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


class ConfigError(ValueError):
    """A setting that cannot be used: says which, what was got and what is expected."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[int, Field(ge=32, multiple_of=32)]


class SourceConfig(_Settings):
    """Where frames come from."""

    input: str
    """File, folder of images, camera index, rtsp/http URL, `demo` or `testsrc`."""
    name: Annotated[str, Field(min_length=1, pattern=r"^[^/\x00]+$")] | None = None
    """Word for it in messages and file names; by default made from the input."""
    transport: Literal["tcp", "udp"] = "tcp"
    """RTSP transport."""
    pace: bool = False
    """Play a file at its own speed, as if it were a camera: frames may be dropped."""
    loop: bool = False
    """Start a file again when it ends."""
    max_frames: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many frames."""


class PreprocessConfig(_Settings):
    """Frame -> network input."""

    input_size: Annotated[int, Field(ge=32)] | None = None
    """Short side of the network input in pixels; by default what the weights were made for."""
    size_multiple: Annotated[int, Field(ge=32, multiple_of=32)] | None = None
    """Both sides become multiples of it; by default that of the weights (64 as published)."""
    canvas: tuple[Side, Side] | None = None
    """(height, width): one letterboxed network input for every picture, whatever its shape."""
    prefilter: bool = True
    """Widen the resize filter when a picture shrinks below one half (evaluation does not)."""
    max_long_side: Annotated[int, Field(ge=64)] = 2048
    """Longest network input; a more elongated picture shrinks to fit, with a warning."""


class InferenceConfig(_Settings):
    """Network input -> heatmaps and tags."""

    engine: Literal["auto", "torch", "openvino", "tensorrt"] = "auto"
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes the first NVIDIA card there is."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the CPU has it, else fp32."""
    flip_test: bool = False
    """Run the mirrored picture too and average, as the papers' evaluation does; twice the time."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of the engine; by default all cores."""


class PosesConfig(_Settings):
    """Heatmaps, tags -> people. What is left out comes from the weights, else from the stream."""

    detection_threshold: Fraction | None = None
    """A peak counts above it."""
    tag_threshold: Annotated[float, Field(gt=0.0)] | None = None
    """Largest tag distance between a keypoint and its person."""
    max_people: Annotated[int, Field(ge=1, le=256)] | None = None
    refine: Literal["full", "quarter", "off"] | None = None
    """Fill missing keypoints: at full or quarter resolution, or not."""
    peaks_at: Literal["full", "half"] | None = None
    """Resolution of the search for peaks: as published, or half with a log-parabola offset."""
    min_person_score: Fraction | None = None
    min_keypoint_score: Fraction | None = None
    min_keypoints: Annotated[int, Field(ge=0)] | None = None
    duplicate_oks: Fraction | None = None
    """Of two people that overlap more than this (OKS) only the better one is kept; 1 keeps both."""

    @field_validator("refine", mode="before")
    @classmethod
    def _off_is_a_word(cls, refine: object) -> object:
        return "off" if refine is False else refine  # YAML reads a bare `off` as False


class OverlayConfig(_Settings):
    """Skeletons drawn over the picture, as a video file."""

    path: Path | None = None
    """.mp4 or .mkv; with several sources the source's name is put before the suffix."""
    picture: bool = True
    """False draws the skeletons on black."""
    min_keypoint_score: Fraction = 0.1
    """Keypoints below it are not drawn; messages hold them all."""


class RecorderConfig(_Settings):
    """Poses written to files."""

    jsonl: str | None = None
    """One message of schema pose/1 a line; `-` is standard output."""
    openpose: Path | None = None
    """Folder for OpenPose JSON, one file a frame."""
    coco: Path | None = None
    """COCO keypoint results, one file."""


class PublisherConfig(_Settings):
    """Poses published over ZeroMQ."""

    endpoint: str | None = None
    """For example tcp://127.0.0.1:5556."""
    format: Literal["json", "msgpack"] = "json"


class ViewerConfig(_Settings):
    """A window on this machine's screen."""

    show: bool = False


class QueuesConfig(_Settings):
    """Where the stream is cut into processes: `inproc` (nowhere), `ipc` or `tcp://host:port`.

    With ipc and tcp the stages on the far side of a cut are another process; run_stream.py starts
    it, unless `--part` says that each part is started by hand (several machines). Over tcp the
    queues of one cut take consecutive ports: one for each source, one for each sink.
    """

    frames: str = "inproc"
    """decoder | preprocess"""
    poses: str = "inproc"
    """poses | sinks"""

    @field_validator("frames", "poses")
    @classmethod
    def _known_transport(cls, cut: str) -> str:
        transport, _, address = cut.partition("://")
        host, _, port = address.rpartition(":")
        if cut in ("inproc", "ipc") or (transport == "ipc" and address):
            return cut
        if transport == "tcp" and host and port.isdecimal():
            return cut
        raise ValueError("must be inproc, ipc, ipc:///path or tcp://host:port")


class StreamConfig(_Settings):
    """A whole stream."""

    sources: tuple[SourceConfig, ...] = ()
    weights: Path | None = None
    """Weights file; by default weights/higher_mobile.safetensors."""
    preprocess: PreprocessConfig = PreprocessConfig()
    inference: InferenceConfig = InferenceConfig()
    poses: PosesConfig = PosesConfig()
    overlay: OverlayConfig = OverlayConfig()
    recorder: RecorderConfig = RecorderConfig()
    publisher: PublisherConfig = PublisherConfig()
    viewer: ViewerConfig = ViewerConfig()
    queues: QueuesConfig = QueuesConfig()


def load_config(
    path: Path | None = None,
    *,
    sources: Sequence[str] = (),
    every_source: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> StreamConfig:
    """Put a configuration together; what comes later wins.

    Args:
        path: YAML file; None starts from the defaults.
        sources: inputs, in place of the file's.
        every_source: settings for each source, for example `{"max_frames": 100}`.
        settings: values by dotted name, for example `{"inference.engine": "torch"}`.
        overrides: `name=value` texts, for example `"poses.refine=off"`; values are YAML.
    Raises:
        ConfigError: one line that names the file or key, what was got and what is expected.
    """
    tree = {} if path is None else _read_yaml(path)
    if sources:
        tree["sources"] = list(sources)
    for name, value in (settings or {}).items():
        _put(tree, name, value)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes key=value, got {override!r}; e.g. poses.refine=off")
        _put(tree, name, _yaml_value(name, text))
    tree["sources"] = _source_list(tree.get("sources", []), every_source or {})
    try:
        return StreamConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _source_list(sources: Any, every_source: Mapping[str, Any]) -> Any:
    """A source may be a plain string; anything else that is no list is left to the validation."""
    if isinstance(sources, str | int):
        sources = [sources]
    if not isinstance(sources, list):
        return sources
    return [
        {**(source if isinstance(source, dict) else {"input": str(source)}), **every_source}
        for source in sources
    ]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"configuration {path} is not YAML: {reason}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"configuration {path} must hold `key: value` lines, got {settings!r}")
    return settings


def _yaml_value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"setting {name!r}: {text!r} is not a YAML value") from None


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name."""
    *groups, last = name.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"setting {name!r}: {group!r} is not a group of settings")
    tree[last] = value


def _one_line(error: ValidationError) -> str:
    """The first complaint in our words; how many more there are."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        text = f"unknown setting {key!r}{_nearest(problem['loc'])}"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        text = f"setting {key!r}: {message}, got {problem['input']!r}"
    more = error.error_count() - 1
    return text + (f" (and {more} more)" if more else "")


def _nearest(location: tuple[int | str, ...]) -> str:
    """`; did you mean ...` for an unknown key, or the list of known ones."""
    known = list(_group(location[:-1]).model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {'.'.join(str(part) for part in (*location[:-1], close[0]))!r}?"
    return f"; known here: {', '.join(known)}"


def _group(location: tuple[int | str, ...]) -> type[_Settings]:
    """The settings class at a place in the configuration."""
    group: type[_Settings] = StreamConfig
    for part in location:
        if isinstance(part, str):
            group = _settings_inside(group.model_fields[part].annotation) or group
    return group


def _settings_inside(annotation: Any) -> type[_Settings] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, _Settings) else None
    inside = (_settings_inside(argument) for argument in typing.get_args(annotation))
    return next((group for group in inside if group is not None), None)
