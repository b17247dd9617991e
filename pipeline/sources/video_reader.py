"""PyAV's side of decoding: an open container -> pictures, and FFmpeg's errors -> plain words.

    container --demux--> packet --decode--> AVFrame --planes_of--> Picture (views, nothing copied)
                                               '-- of a GPU: GpuPlanes  --^

A packet that cannot be decoded is counted and skipped; the stream goes on behind it, its pictures
tainted until the next key frame. This file knows nothing of sources, names, pace (source.py) or
reconnecting (live_source.py), and never opens anything.
"""

from __future__ import annotations

import errno
import logging
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import av
import av.container
import av.error
import numpy as np
from av.stream import Discard, Disposition
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream

from common.addresses import why_unresolved
from common.redaction import redact
from pipeline.gpu.nvdec import GpuPlanes, is_on_gpu
from pipeline.messages import ColorSpace, PixelFormat
from pipeline.sources.deinterlace import Deinterlacer

_logger = logging.getLogger(__name__)

BACKEND_ERRORS = (av.error.FFmpegError, OSError)
"""Whatever PyAV raises for broken input or a broken connection."""

NETWORK_ONLY = {
    "protocol_whitelist": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,rtmp,rtmps,rtmpt,"
    "rtmpts,hls,crypto,srt,rist"
}
"""FFmpeg option for sources of the network: a playlist they send cannot name a file of ours."""

# What messages.Frame can carry as it is. The yuvj names are FFmpeg's old word for full range.
_CARRIED: dict[str, PixelFormat] = {
    "yuv420p": "yuv420p",
    "yuvj420p": "yuv420p",
    "nv12": "nv12",
    "bgr24": "bgr24",
    "rgb24": "rgb24",
}
_HD_HEIGHT = 720  # untagged video from here on is BT.709, below BT.601
# AVColorSpace (H.273 table 4): 1 BT.709, 7 SMPTE 240M and 9, 10 BT.2020 lie near it;
# 4 FCC, 5 BT.470BG and 6 SMPTE 170M are BT.601.
_COLOR_SPACES: dict[int, ColorSpace] = {
    1: "bt709", 7: "bt709", 9: "bt709", 10: "bt709", 4: "bt601", 5: "bt601", 6: "bt601",
}  # fmt: skip


class Picture(NamedTuple):
    """One decoded picture, not yet numbered; the fields mean what they mean in messages.Frame."""

    planes: tuple[np.ndarray, ...]
    pixel_format: PixelFormat = "bgr24"
    color_space: ColorSpace = "bt601"
    full_range: bool = False
    rotation: int = 0
    pixel_aspect: float = 1.0
    """As the planes lie, before they are turned."""
    pts_seconds: float | None = None
    image_name: str = ""
    number: int | None = None
    """Its place in the source, where that is not one behind the last picture's."""
    tainted: bool = False


_DEFAULT_PIXELS = 5_000_000  # what the default flag is worth to ffmpeg's choice
_NO_TIMESTAMPS = 0x0080  # AVFMT_NOTIMESTAMPS


def has_times(container_format: av.format.ContainerFormat) -> bool:
    """False for raw streams and multipart JPEG: FFmpeg stamps them at 25 frames a second, or at
    what the stream itself claims, however fast they come."""
    name = container_format.name
    return not (
        container_format.flags & _NO_TIMESTAMPS or name.endswith(("_pipe", "2pipe", "rawvideo"))
    )


_MOST_ASPECT = 4.0  # of a pixel; the widest in use is 24:11


class NoPictureError(TimeoutError):
    """Data comes, but for long no picture has come of it."""


def decodable(container: av.container.InputContainer) -> list[VideoStream]:
    """The video streams that there is a decoder for; a cover picture is none."""
    return [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
    ]


def best_stream(container: av.container.InputContainer, wanted: int | None) -> VideoStream:
    """The video to show, by the rule of FFmpeg's own tools: the largest picture, and the default
    one of those that differ little. The others are not decoded, nor downloaded where they are
    apart.

    Args:
        container: with a decodable video stream.
        wanted: number of the video stream, from 0, covers not counted; None: the best.
    Raises:
        OSError: there is no stream of that number.
    """
    streams = decodable(container)
    if wanted is not None and wanted >= len(streams):
        raise OSError(f"there is no video stream {wanted}; there are {len(streams)}, from 0")
    best = max(streams, key=_stream_score) if wanted is None else streams[wanted]
    for stream in container.streams:
        if stream is not best:
            stream.discard = Discard.all
    return best


def _stream_score(stream: VideoStream) -> int:
    area = (stream.codec_context.width or 0) * (stream.codec_context.height or 0)
    return area + (_DEFAULT_PIXELS if stream.disposition & Disposition.default else 0)


class VideoReader:
    """Decodes the video of one open container. Belongs to the thread that opened the container."""

    def __init__(
        self,
        container: av.container.InputContainer,
        *,
        threads: str,
        device: int | None = None,
        video_stream: int | None = None,
        deinterlace: bool = True,
    ) -> None:
        """
        Args:
            container: just opened, with a decodable video stream.
            threads: FFmpeg's thread type. AUTO for files; NONE for live sources, for the others
                hold pictures back (frame threads) or never flag damaged ones (slice threads).
            device: the CUDA device that the container was opened on (gpu_video.opening_on).
            video_stream: see best_stream.
            deinterlace: interlaced pictures become whole ones; it costs one frame of delay.
        """
        self._container = container
        self._stream = best_stream(container, video_stream)
        self._deinterlacer = Deinterlacer() if deinterlace else None
        # Every frame thread takes one more of NVDEC's surfaces, of which there are 32 at most.
        self._stream.thread_type = "NONE" if self._stream.codec_context.is_hwaccel else threads
        self._says_interlaced = False
        self._is_timed = has_times(container.format)
        self._device = device
        self._gpu_planes: GpuPlanes | None = None  # made for the first picture on the GPU
        # One for all frames: frame.reformat() would build a new conversion for each of them.
        self._reformatter = VideoReformatter()
        self._num_packets = 0
        self._first_dts: int | None = None
        self._read_seconds = 0.0
        self._tainted = False  # from damage until the next key frame
        self._size = (0, 0)
        self._decoded_at = 0.0  # time.monotonic() of the last picture
        self.format_name = container.format.name
        """FFmpeg's word for the container."""
        self.end_position = 0
        """Bytes of the file up to the end of the last packet, where the format says."""
        self.num_damaged = 0
        """Packets that could not be decoded."""

    @property
    def fps(self) -> float | None:
        """Nominal frames a second."""
        stream = self._stream
        rates = [stream.average_rate, stream.guessed_rate]
        if not self._is_timed:  # the average is that of times which FFmpeg made up
            rates.reverse()
        return next((float(rate) for rate in rates if rate), None)

    @property
    def num_frames(self) -> int | None:
        """As the header states it, else reckoned from the duration."""
        seconds = (self._container.duration or 0) / av.time_base
        return self._stream.frames or round(seconds * (self.fps or 0)) or None

    @property
    def is_cut_off(self) -> bool:
        """True where the end came before what the header states: FFmpeg reports no error."""
        if self._stream.frames:
            # FFmpeg may lump a damaged packet together with the next one.
            return self._num_packets + self.num_damaged < self._stream.frames
        return self._read_seconds < self._promised_seconds - 0.5

    def pictures(
        self, stopped: threading.Event, *, patience_seconds: float = math.inf
    ) -> Iterator[Picture]:
        """Decode to the end, or until stopped. What an error while reading leaves behind in the
        decoder comes out first; then the error is raised.

        Raises:
            BACKEND_ERRORS: the connection was lost, or the file cannot be read any further;
                NoPictureError: packets came for so many seconds, and not one picture of them.
        """
        packets = self._container.demux(self._stream)
        self._decoded_at = time.monotonic()
        while not stopped.is_set():
            if time.monotonic() - self._decoded_at > patience_seconds:
                raise NoPictureError(f"data comes, but no picture for {patience_seconds:g} s")
            try:
                packet = next(packets, None)
            except BACKEND_ERRORS:
                left = self._stream.codec_context.decode(None)
                yield from map(self._picture, self._whole([*left, None]))
                raise
            if packet is None:
                yield from map(self._picture, self._whole([None]))
                return
            yield from map(self._picture, self._whole(self._decode(packet)))

    def _whole(self, frames: Sequence[av.VideoFrame | None]) -> Iterator[av.VideoFrame]:
        """The frames without interlacing; None is the end."""
        for frame in frames:
            self._note_interlaced(frame)
            if self._deinterlacer is not None and (frame is None or not is_on_gpu(frame)):
                yield from self._deinterlacer(frame)
            elif frame is not None:
                yield frame

    def _note_interlaced(self, frame: av.VideoFrame | None) -> None:
        """Say once that pictures on a GPU are combs: the filter is the CPU's."""
        if self._deinterlacer is None or frame is None or self._says_interlaced:
            return
        if is_on_gpu(frame) and frame.interlaced_frame:
            self._says_interlaced = True
            _logger.warning(
                "interlaced video is not deinterlaced on a GPU; set decode=cpu, or deinterlace=off"
            )

    @property
    def _promised_seconds(self) -> float:
        """Length that the header states for the video itself, not for its sound; 0 if none."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        # Matroska has it as a tag.
        words = re.fullmatch(
            r"(\d+):(\d+):(\d+(?:\.\d+)?)", self._stream.metadata.get("DURATION", "")
        )
        return 3600 * int(words[1]) + 60 * int(words[2]) + float(words[3]) if words else 0.0

    def _decode(self, packet: av.Packet[av.VideoStream]) -> list[av.VideoFrame]:
        if packet.dts is not None:  # the last one has none: it flushes the decoder
            self._num_packets += 1
            self.end_position = (packet.pos or 0) + packet.size
            self._first_dts = packet.dts if self._first_dts is None else self._first_dts
            # Matroska's tag is the end on its own clock, which need not start at 0.
            start = self._first_dts if self._stream.duration else min(0, self._first_dts)
            ticks = packet.dts + (packet.duration or 0) - start
            self._read_seconds = float(ticks * packet.time_base)
        try:
            return packet.decode()
        except av.error.InvalidDataError:
            self.num_damaged += 1
            self._tainted = True
            return []

    def _is_tainted(self, frame: av.VideoFrame) -> bool:
        """FFmpeg flags a damaged picture itself, not those that are predicted from it."""
        size = (frame.height, frame.width)
        if frame.is_corrupt or self._size not in (size, (0, 0)):
            self._tainted = True
        if frame.key_frame and not frame.is_corrupt:
            self._tainted = False
        self._size = size
        return self._tainted

    def _picture(self, frame: av.VideoFrame) -> Picture:
        # PyAV states the turn counter-clockwise; a crooked one is taken for the nearest quarter.
        # Both are read before the conversion, which does not keep them.
        rotation = round(-frame.rotation / 90) % 4 * 90
        pts_seconds = frame.time if self._is_timed else None
        tainted = self._is_tainted(frame)
        self._decoded_at = time.monotonic()
        pixel_format: PixelFormat = "nv12"
        if is_on_gpu(frame):
            planes = self._gpu_planes_of(frame)
        else:
            frame = self._carried(frame)
            planes, pixel_format = planes_of(frame), _CARRIED[frame.format.name]
        return Picture(
            planes=planes,
            pixel_format=pixel_format,
            color_space=color_space_of(frame),
            full_range=frame.color_range == ColorRange.JPEG or "yuvj" in frame.format.name,
            rotation=rotation,
            pixel_aspect=self._pixel_aspect,
            pts_seconds=pts_seconds,
            tainted=tainted,
        )

    @property
    def _pixel_aspect(self) -> float:
        """Of the container where it says so, else of the codec, as FFmpeg's players take it."""
        aspects = (self._stream.sample_aspect_ratio, self._stream.codec_context.sample_aspect_ratio)
        aspect = next((float(aspect) for aspect in aspects if aspect), 1.0)
        # Beyond that it is a damaged header; so is what rounds to square.
        return aspect if 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT else 1.0

    def _gpu_planes_of(self, frame: av.VideoFrame) -> tuple[np.ndarray, ...]:
        if self._gpu_planes is None:
            assert self._device is not None
            self._gpu_planes = GpuPlanes(self._device)
        return self._gpu_planes(frame)

    def _carried(self, frame: av.VideoFrame) -> av.VideoFrame:
        """In host memory, in a format that messages.Frame can carry."""
        if frame.format.name in _CARRIED:
            return frame
        pixel_format = "bgr24" if frame.format.is_rgb else "yuv420p"
        return self._reformatter.reformat(frame, format=pixel_format)


def planes_of(frame: av.VideoFrame) -> tuple[np.ndarray, ...]:
    """Views of the decoder's own memory, uint8, rows padded; each keeps that memory alive."""
    if frame.format.name in ("bgr24", "rgb24"):
        return (_plane(frame.planes[0], 3),)
    if frame.format.name == "nv12":
        return _plane(frame.planes[0], 1), _plane(frame.planes[1], 2)
    return tuple(_plane(plane, 1) for plane in frame.planes)


def _plane(plane: VideoPlane, channels: int) -> np.ndarray:
    """(height, width), or (height, width, channels) where there are several."""
    shape = (plane.height, plane.width, channels)
    strides = (plane.line_size, channels, 1)
    view: np.ndarray = np.ndarray(shape, np.uint8, buffer=memoryview(plane), strides=strides)
    return view if channels > 1 else view[..., 0]


def color_space_of(frame: av.VideoFrame) -> ColorSpace:
    """The matrix the frame is tagged with; untagged, HD is BT.709 and anything smaller BT.601."""
    guess: ColorSpace = "bt709" if frame.height >= _HD_HEIGHT else "bt601"
    return _COLOR_SPACES.get(int(frame.colorspace), guess)


@contextmanager
def naming_lost_hosts(url: str) -> Iterator[None]:
    """Where opening the URL fails for a name without an address, say so: FFmpeg speaks of I/O."""
    try:
        yield
    except BACKEND_ERRORS as error:
        is_vague = error.errno == errno.EIO and "://" in url
        reason = why_unresolved(url) if is_vague else None
        if reason is not None:
            raise OSError(errno.EIO, reason) from error
        raise


def reason_of(error: Exception) -> str:
    """What went wrong, in FFmpeg's or the system's own words, without any URL."""
    words = getattr(error, "strerror", None) or str(error)
    return redact(words[:1].lower() + words[1:])
