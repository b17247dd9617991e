"""What a stream can be told: one validated model per stage, defaults here and nowhere else.

A YAML file (see configs/) and `--set key=value` say only what differs. An unknown key is an error
that names it and the nearest known one. This file knows the stages' settings, not the stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from common.addresses import parse_address
from common.settings import (
    Fraction,
    NotNegative,
    Settings,
    Side,
    Word,
    checked,
    parse_override,
    put,
    read_yaml,
)

_RENAMED = {
    f"overlay.{name}": f"video.{name}"
    for name in ("path", "clean", "segment_s", "keep_gb", "keep_hours")
}


RegionOfInterest = tuple[NotNegative, NotNegative, NotNegative, NotNegative]
Decode = Literal["auto", "cpu", "gpu"]


class SourceConfig(Settings):
    """Where frames come from."""

    input: Word
    """File, folder or "*.jpg" of images, camera index, URL, `-`, `demo` or `testsrc`."""
    name: Annotated[Word, Field(min_length=1, pattern=r"^[^/\x00]+$")] | None = None
    """Word for it in messages and file names; by default made from the input."""
    transport: Literal["tcp", "udp"] = "tcp"
    """RTSP transport: tcp loses nothing, but lags on a bad network; udp loses packets."""
    pace: bool = False
    """Play a file at its own speed, as if it were a camera: frames may be dropped."""
    loop: bool = False
    """Start a file again when it ends."""
    max_frames: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many frames."""
    max_fps: Annotated[float, Field(gt=0.0)] | None = None
    """Keep no more frames a second than this, evenly spaced."""
    roi: RegionOfInterest | None = None
    """[x, y, width, height] of the upright picture that the network sees: pixels, or fractions if
    no number is above 1. Poses are in pixels of the whole picture all the same."""
    rotation: Literal[0, 90, 180, 270] | None = None
    """Clockwise degrees that turn the picture upright, in place of what the container says."""
    decode: Decode = "auto"
    """Where video is decoded: on the CPU; on the GPU that runs the network, from where its pixels
    need not move; auto: on the GPU where that can be, else on the CPU."""
    live: bool | None = None
    """Whether the input has no end and frames may be dropped from it. By default an http URL is
    asked what it is, a file is none, all else is."""
    video_stream: Annotated[int, Field(ge=0)] | None = None
    """Of an input with several videos, the one to read, from 0; by default FFmpeg's choice."""
    deinterlace: Literal["auto", "off"] = "auto"
    """auto: interlaced video becomes whole pictures (on the CPU), one frame late."""
    reconnect: bool = True
    """Cameras and URLs: connect again after a failure, for ever; False: the first is the end."""
    open_timeout_seconds: Annotated[float, Field(gt=0.0)] = 5.0
    """Cameras and URLs: how long to wait for an answer."""
    read_timeout_seconds: Annotated[float, Field(gt=0.0)] = 2.0
    """Cameras and URLs: silence after which the connection counts as lost, within twice that. More
    than the time between two frames; for HLS it grows by itself."""
    options: dict[str, Word] = Field(default_factory=dict)
    """More of FFmpeg's input options: {video_size: 1280x720} for a webcam, {tls_verify: 1,
    ca_file: camera.pem} for RTSPS."""

    @field_validator("deinterlace", mode="before")
    @classmethod
    def _off_is_a_word(cls, deinterlace: object) -> object:
        return "off" if deinterlace is False else deinterlace  # YAML reads a bare `off` as False

    @field_validator("roi")
    @classmethod
    def _has_an_area(cls, roi: RegionOfInterest | None) -> RegionOfInterest | None:
        if roi is not None and min(roi[2:]) <= 0:
            raise ValueError("width and height must be positive")
        return roi


class PreprocessConfig(Settings):
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


class InferenceConfig(Settings):
    """Network input -> heatmaps and tags."""

    engine: Literal["auto", "torch", "openvino", "tensorrt"] = "auto"
    device: str = "auto"
    """cpu, cuda, cuda:N, or several GPUs: cuda:0,cuda:1, each with its share of the sources; auto
    takes the first NVIDIA GPU there is."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: fp16 on a GPU, bf16 where the CPU has it, else fp32."""
    flip_test: bool = False
    """Run the mirrored picture too and average, as the papers' evaluation does; twice the time."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of the engine; by default all cores."""
    max_batch: Literal[1, 2, 4, 8] | None = None
    """Frames of different sources in one pass; by default 8 on a GPU and 1 on a CPU, where a
    larger batch is hardly faster and makes every frame wait for all of it."""


class PosesConfig(Settings):
    """Heatmaps, tags -> people. What is left out comes from the weights, else from the stream."""

    detection_threshold: Fraction | None = None
    """A peak counts above it."""
    tag_threshold: Annotated[float, Field(gt=0.0)] | None = None
    """Largest tag distance between a keypoint and its person."""
    matching_order: Literal["skeleton", "index"] | None = None
    """Which keypoints are handed to people first: as the official code, or 0, 1, 2, ... as mmpose
    does with CrowdPose."""
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


class TrackerConfig(Settings):
    """People -> people with identities that last."""

    enabled: bool = True
    """False: nobody has an id, and nothing is smoothed."""
    max_lost_s: Annotated[float, Field(gt=0.0)] = 2.0
    """An identity survives unseen for so long; must exceed the time between two frames."""
    min_frames: Annotated[int, Field(ge=1)] = 3
    """Somebody has an id once seen in so many frames."""
    min_oks: Fraction = 0.1
    """Likeness of a person seen and one expected below which they are not the same."""
    confident_score: Fraction = 0.2
    """People who score less can only continue an identity, and take what better ones left."""
    min_keypoints: Annotated[int, Field(ge=1)] = 3
    """An identity begins with somebody of whom so many keypoints were found."""


class SmoothConfig(Settings):
    """One-Euro filter of every tracked person's keypoints; raw ones are published beside them."""

    enabled: bool = True
    min_cutoff_hz: Annotated[float, Field(gt=0.0)] = 1.0
    """Of keypoints that stand still: lower is calmer."""
    beta: Annotated[float, Field(ge=0.0)] = 5.0
    """Hz for each body size (root of the body's area) a second: higher lags less in motion."""
    d_cutoff_hz: Annotated[float, Field(gt=0.0)] = 1.0
    """Of the speed that decides."""
    max_gap_s: Annotated[float, Field(gt=0.0)] = 0.5
    """A keypoint unseen for longer begins anew where it is seen."""


class ContractConfig(Settings):
    """How old frames may be, and what is given up under a load that does not fit. Live sources."""

    max_age_ms: Annotated[float, Field(gt=0.0)] | None = None
    """A frame that is older when its turn comes is left, before it costs a network pass."""
    target_fps: Annotated[float, Field(gt=0.0)] | None = None
    """Results a second that every camera gets: no more, and fewer only if it offers fewer or if
    nothing else is left to give up (smaller input, then refine off, then fewer frames)."""
    smallest_input: Annotated[float, Field(gt=0.0, le=1.0)] = 2 / 3
    """Of the input size: it does not shrink further for the sake of target_fps."""


class VideoConfig(Settings):
    """Videos of every source: with skeletons drawn over the picture, as it came, or both."""

    path: Path | None = None
    """.mp4 or .mkv; with several sources the source's name is put before the suffix. A .jpg, .png
    or .webp is a picture; without a suffix it is a folder of pictures."""
    clean: Path | None = None
    """The same frames without anything drawn, as another video."""
    segment_s: Annotated[float, Field(ge=1.0)] | None = None
    """Begin a new file after so many seconds, and when the picture changes its size; the UTC time
    is put in the names. By default a file is one video, a live source one an hour, and other sizes
    are fitted in."""
    keep_gb: Annotated[float, Field(gt=0.0)] | None = None
    """Remove the oldest segments when those of one video, all sources together, take more."""
    keep_hours: Annotated[float, Field(gt=0.0)] | None = None
    """Remove segments when they are older. Both are looked at when a segment begins."""

    @model_validator(mode="after")
    def _settings_have_a_video(self) -> VideoConfig:
        if self.segment_s is not None and self.path is None and self.clean is None:
            raise ValueError("segment_s needs a video (--save or --save-clean)")
        if self.segment_s is None and (self.keep_gb is not None or self.keep_hours is not None):
            raise ValueError("keep_gb and keep_hours remove whole segments; give segment_s too")
        return self


class OverlayConfig(Settings):
    """How poses are drawn, in videos and windows."""

    picture: bool = True
    """False draws the skeletons on black."""
    min_keypoint_score: Fraction = 0.1
    """Keypoints below it are not drawn; messages hold them all."""
    colors: Literal["side", "id"] = "side"
    """What a skeleton's colours tell apart: sides of the body, or people."""
    smoothed: bool = True
    """Draw the smoothed keypoints where there are any; False draws the raw ones."""


class RecorderConfig(Settings):
    """Poses written to files."""

    jsonl: str | None = None
    """One message of schema pose/1 a line; `-` is standard output."""
    openpose: Path | None = None
    """Folder for OpenPose JSON, one file a frame."""
    coco: Path | None = None
    """COCO keypoint results, one file."""
    coco_ids: Path | None = None
    """COCO annotation file that gives the pictures' ids; without one they are numbered."""
    csv: Path | None = None
    """Table of all sources, see docs/tables.md."""
    parquet: Path | None = None
    """The same table, as a folder of Parquet files."""
    rows_of: Literal["person", "keypoint"] = "person"
    """What has a row of its own in these tables."""
    parquet_part_s: Annotated[float, Field(gt=0.0)] = 10.0
    """Begin a new Parquet file after so many seconds: what a kill can cost."""

    @model_validator(mode="after")
    def _ids_are_for_results(self) -> RecorderConfig:
        if self.coco_ids is not None and self.coco is None:
            raise ValueError("coco_ids needs results to be written (--coco)")
        return self


class PublisherConfig(Settings):
    """Poses published over ZeroMQ."""

    endpoint: str | None = None
    """For example tcp://127.0.0.1:5556."""
    format: Literal["json", "msgpack"] = "json"
    curve_dir: Path | None = None
    """Folder of keys: encrypts, and lets in only whose key is there; see
    pipeline/sinks/publisher/curve.py."""

    @model_validator(mode="after")
    def _keys_are_for_an_endpoint(self) -> PublisherConfig:
        if self.curve_dir is not None and self.endpoint is None:
            raise ValueError("curve_dir needs an endpoint (--publish)")
        return self


class ViewerConfig(Settings):
    """A window on this machine's screen."""

    show: bool = False


class PageConfig(Settings):
    """A page in the browser, with an API beside it."""

    serve: Word | None = None
    """For example 127.0.0.1:8000, or only a port, which is this machine's loopback."""
    token: Annotated[str, Field(min_length=16)] | None = Field(default=None, repr=False)
    """What visitors must show. Beyond loopback, and with hosts, there always is one: made and
    printed if not given. Not for the command line, which others can read."""
    hosts: tuple[str, ...] = ()
    """More names by which browsers call this machine, for example that of a proxy before it."""
    max_width: Annotated[int, Field(ge=64)] = 1280
    """Pixels; wider pictures are shrunk for the page."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 80
    max_connections: Annotated[int, Field(ge=1)] = 64
    """At a time; a browser needs two or three."""


class QueuesConfig(Settings):
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
        if cut in ("inproc", "ipc") or (transport == "ipc" and address):
            return cut
        try:
            if transport == "tcp" and ":" in address and parse_address(address).port:
                return cut
        except ValueError:
            pass
        raise ValueError("must be inproc, ipc, ipc:///path or tcp://host:port")


class StreamConfig(Settings):
    """A whole stream."""

    sources: tuple[SourceConfig, ...] = ()
    weights: str | Path | None = None
    """A file, a published name (python -m nets.zoo lists them) or a URL; by default
    weights/higher_mobile.safetensors."""
    preprocess: PreprocessConfig = PreprocessConfig()
    inference: InferenceConfig = InferenceConfig()
    poses: PosesConfig = PosesConfig()
    tracker: TrackerConfig = TrackerConfig()
    smooth: SmoothConfig = SmoothConfig()
    contract: ContractConfig = ContractConfig()
    overlay: OverlayConfig = OverlayConfig()
    video: VideoConfig = VideoConfig()
    recorder: RecorderConfig = RecorderConfig()
    publisher: PublisherConfig = PublisherConfig()
    viewer: ViewerConfig = ViewerConfig()
    page: PageConfig = PageConfig()
    queues: QueuesConfig = QueuesConfig()
    privacy: bool = False
    """No pixel reaches a file, a screen or the network, by any sink: skeletons are drawn on black,
    and the frames that the network sees stay in this process."""

    @model_validator(mode="after")
    def _privacy_is_kept(self) -> StreamConfig:
        if self.privacy and self.video.clean is not None:
            raise ValueError("privacy forbids video.clean (--save-clean), which records pictures")
        if self.privacy and self.queues.frames != "inproc":
            raise ValueError("privacy forbids queues.frames, which sends pictures; leave it inproc")
        return self


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
    tree = {} if path is None else read_yaml(path, StreamConfig, noun="configuration")
    given = list(sources) or tree.get("sources", [])
    tree["sources"] = _source_list(given, every_source or {})
    for name, value in (settings or {}).items():
        put(tree, name, value)
    for override in overrides:
        name, value = parse_override(override, example="poses.refine=off")
        put(tree, name, _source_list(value, every_source or {}) if name == "sources" else value)
    return checked(StreamConfig, tree, renamed=_RENAMED)


def _source_list(sources: Any, every_source: Mapping[str, Any]) -> Any:
    """A source may be a plain word or number; what is neither is left to the validation."""
    if isinstance(sources, str | int):
        sources = [sources]
    if not isinstance(sources, list):
        return sources
    groups = [{"input": each} if isinstance(each, str | int) else each for each in sources]
    return [{**each, **every_source} if isinstance(each, dict) else each for each in groups]
