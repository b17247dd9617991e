"""What crosses a queue: Frame -> NetInput -> NetOutput -> Poses. Typed, every unit stated.

Inside a process a message travels as an object. Between processes it travels as parts: a small
header (msgpack) and raw buffers; no pickle. Only Frame and Poses can cross, for a stream may be cut
at two places only: decoder | preprocess and poses | sinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kernels.preprocess import bgr_from_planes

if TYPE_CHECKING:
    from pipeline.gpu.stream_slots import HeldSlot

PixelFormat = Literal["bgr24", "rgb24", "yuv420p", "nv12"]
ColorSpace = Literal["bt601", "bt709"]
Region = tuple[int, int, int, int]
"""(x, y, width, height) in whole pixels of the upright picture."""

Parts = tuple[dict[str, Any], list[np.ndarray]]
"""A message for the wire: a header that msgpack can carry, and its arrays in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded picture on its way through the stream."""

    source: str
    """Name of the source; never a URL, so that no password travels."""
    index: int
    """Counts every frame that the source produced, so a gap is a drop in the stream."""
    pts_seconds: float | None
    """Presentation time; always rises, by the source's own clock where that does (timeline.py).
    None where there is no time, as for images."""
    captured_ns: int
    """time.monotonic_ns() when the decoder returned it; age and latency are reckoned from here."""
    captured_unix_s: float
    """Wall clock of the same moment."""
    size: tuple[int, int]
    """(height, width) of the upright picture, that is after rotation."""
    planes: tuple[np.ndarray, ...]
    """uint8, read-only by convention. One (h, w, 3) plane, or Y (h, w) with U and V
    (ceil(h/2), ceil(w/2)), or Y with interleaved UV (ceil(h/2), ceil(w/2), 2). Rows may be padded
    (strided views). Empty where the pixels did not cross to this process. CuPy arrays where a GPU
    decoded the picture: see device."""
    pixel_format: PixelFormat = "bgr24"
    color_space: ColorSpace = "bt601"
    """Matrix of the YUV formats; meaningless for bgr24 and rgb24."""
    full_range: bool = False
    """True: luma uses 0..255 (JPEG range); False: 16..235."""
    rotation: int = 0
    """Clockwise degrees (0, 90, 180, 270) by which the planes must be turned to stand upright."""
    pixel_aspect: float = 1.0
    """Width of a pixel divided by its height, in the upright picture: 1 unless the video is
    anamorphic. Nobody but the network and a screen stretches the picture."""
    image_name: str = ""
    """File name of the picture, for folders of images; empty for video."""
    live: bool = False
    """True where the source runs on its own clock (camera, RTSP) and may be dropped from."""
    roi: Region | None = None
    """Part of the picture that the network sees; None for all of it."""
    tainted: bool = False
    """True: damaged, or predicted from a damaged picture; ends with the next key frame."""

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation must be 0, 90, 180 or 270, got {self.rotation}")
        if not self.pixel_aspect > 0:
            raise ValueError(f"pixel_aspect must be positive, got {self.pixel_aspect}")

    def __repr__(self) -> str:
        shapes = [plane.shape for plane in self.planes]
        return f"Frame({self.source!r}, index={self.index}, size={self.size}, planes={shapes})"

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) of the picture with square pixels, as it must be shown."""
        return shown_size(self.size, self.pixel_aspect)

    @property
    def has_pixels(self) -> bool:
        return bool(self.planes)

    @property
    def device(self) -> int | None:
        """The CUDA device on which the planes lie; None: host memory."""
        return _device_of(self.planes[0]) if self.planes else None

    def without_pixels(self) -> Frame:
        """The same frame as a mere label: for messages whose receiver draws nothing."""
        return replace(self, planes=())

    def to_host(self) -> np.ndarray:
        """The upright picture as a new, writable (height, width, 3) uint8 BGR array.

        This is the only place where pixels are converted for people to look at (and, where a GPU
        decoded them, downloaded), so it is called when a sink asks and not before.
        """
        if not self.planes:
            raise ValueError(f"{self!r} carries no pixels; ask for them where its queue is made")
        bgr = bgr_from_planes(
            _on_host(self.planes),
            pixel_format=self.pixel_format,
            color_space=self.color_space,
            full_range=self.full_range,
        )
        return np.ascontiguousarray(np.rot90(bgr, k=-self.rotation // 90))

    def to_parts(self) -> Parts:
        header = {name: getattr(self, name) for name in _FRAME_HEADER}
        return header, _on_host(self.planes)

    @classmethod
    def from_parts(cls, header: dict[str, Any], buffers: list[np.ndarray]) -> Frame:
        fields = dict(header)
        fields["size"] = tuple(fields["size"])
        fields["roi"] = tuple(fields["roi"]) if fields["roi"] else None
        return cls(planes=tuple(buffers), **fields)

    def aged(self, shift_ns: int) -> Frame:
        """The same frame on this machine's monotonic clock: captured_ns moved by shift_ns."""
        return replace(self, captured_ns=self.captured_ns + shift_ns)


_FRAME_HEADER = tuple(name for name in Frame.__dataclass_fields__ if name != "planes")


def shown_size(size: tuple[int, int], pixel_aspect: float) -> tuple[int, int]:
    """(height, width) that a stored picture of `size` has with square pixels; it never shrinks."""
    height, width = size
    if pixel_aspect >= 1.0:
        return height, round(width * pixel_aspect)
    return round(height / pixel_aspect), width


def _device_of(plane: Any) -> int | None:
    return None if isinstance(plane, np.ndarray) else int(plane.device.id)


def _on_host(planes: Sequence[Any]) -> list[np.ndarray]:
    """The planes in host memory; those on a GPU are downloaded."""
    return [plane if isinstance(plane, np.ndarray) else plane.get() for plane in planes]


@dataclass(frozen=True, slots=True, eq=False)
class NetInput:
    """A batch for the network: frames of one network size, at most one of each source."""

    frames: tuple[Frame, ...]
    images: Any
    """(B, 3, H, W) float32, normalised as the network was trained: NumPy, or a torch tensor on a
    GPU."""
    image_from_net: np.ndarray
    """(B, 2, 3) float64: network-input pixels to pixels of the upright picture."""
    stage_ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds of work each stage so far spent on this message."""
    gpu: int = 0
    """Which of the stream's GPUs, in the order of --device; 0 on a CPU."""
    held_slot: HeldSlot | None = None
    """Holds the batch's stream slot on that GPU while this message lives; None on a CPU."""

    def __repr__(self) -> str:
        return f"NetInput(images={self.images.shape}, frames={list(self.frames)})"


@dataclass(frozen=True, slots=True, eq=False)
class NetOutput:
    """What the network says of a batch, flips and coarse/fine already averaged."""

    frames: tuple[Frame, ...]
    levels: tuple[Any, ...]
    """Each (B, K, h, w) float32 heatmaps, low to high resolution: NumPy. With a lease torch tensors
    on a GPU, and with the flip test (2B, ...), the second half of the mirrored pictures."""
    tags: Any
    """(B, K, h, w, T) float32, likewise."""
    net_size: tuple[int, int]
    """(H, W) of the network input."""
    image_from_net: np.ndarray
    """(B, 2, 3) float64."""
    stage_ms: dict[str, float] = field(default_factory=dict)
    held_slot: HeldSlot | None = None
    """As of NetInput."""

    def __repr__(self) -> str:
        shapes = [level.shape for level in self.levels]
        return f"NetOutput(levels={shapes}, tags={self.tags.shape}, frames={list(self.frames)})"


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """The people of one frame, in pixels (x, y) of its upright picture."""

    frame: Frame
    skeleton: str
    """Name of the skeleton, for example coco17; its keypoints are in nets.skeletons."""
    keypoints: np.ndarray
    """(P, K, 3) float32: x, y in picture pixels, score. All zero where a keypoint is missing."""
    scores: np.ndarray
    """(P,) float32 person scores, in the order people were found."""
    filled: np.ndarray
    """(P, K) bool: True where refine filled a keypoint that no peak had given."""
    ids: np.ndarray
    """(P,) int64 identities that last over frames; -1 where a person has none (yet)."""
    completed_ns: int
    """time.monotonic_ns() when the people were known; capture-to-pose latency ends here."""
    stage_ms: dict[str, float] = field(default_factory=dict)
    smoothed: np.ndarray | None = None
    """(P, K, 2) float32: x, y of the keypoints without their trembling; all zero where one is
    missing. None where nothing is smoothed."""

    def __post_init__(self) -> None:
        people, keypoints = self.filled.shape
        assert self.smoothed is None or self.smoothed.shape == (people, keypoints, 2)
        assert self.keypoints.shape == (people, keypoints, 3), self.keypoints.shape
        assert self.scores.shape == self.ids.shape == (people,), (self.scores.shape, self.ids.shape)

    def __repr__(self) -> str:
        return f"Poses({self.frame!r}, people={len(self.scores)})"

    @property
    def latency_ms(self) -> float:
        """Milliseconds from capture to poses."""
        return (self.completed_ns - self.frame.captured_ns) / 1e6

    def to_parts(self) -> Parts:
        frame_header, planes = self.frame.to_parts()
        header = {
            "frame": frame_header,
            "skeleton": self.skeleton,
            "completed_ns": self.completed_ns,
            "stage_ms": self.stage_ms,
            "smoothed": self.smoothed is not None,
        }
        smoothed = [] if self.smoothed is None else [self.smoothed]
        arrays = [self.keypoints, self.scores, self.filled, self.ids]
        return header, [*arrays, *smoothed, *planes]

    @classmethod
    def from_parts(cls, header: dict[str, Any], buffers: list[np.ndarray]) -> Poses:
        keypoints, scores, filled, ids, *planes = buffers
        smoothed = planes.pop(0) if header["smoothed"] else None
        return cls(
            frame=Frame.from_parts(header["frame"], planes),
            skeleton=header["skeleton"],
            keypoints=keypoints,
            scores=scores,
            filled=filled,
            ids=ids,
            completed_ns=header["completed_ns"],
            stage_ms=header["stage_ms"],
            smoothed=smoothed,
        )

    def without_pixels(self) -> Poses:
        return replace(self, frame=self.frame.without_pixels())

    def aged(self, shift_ns: int) -> Poses:
        """The same poses on this machine's monotonic clock."""
        return replace(
            self, frame=self.frame.aged(shift_ns), completed_ns=self.completed_ns + shift_ns
        )
