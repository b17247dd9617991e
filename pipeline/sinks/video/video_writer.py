"""Pictures -> an H.264 file that keeps their times and survives a kill.

    picture -> fitted into the file's size -> YUV -> encoder -> .mp4 or .mkv
    frame's times -> ticks of the file --------------^

Knows nothing of people, nor of other files: see segments.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.messages import Frame

logger = logging.getLogger(__name__)

_TICKS_PER_SECOND = 90_000
_STILL_SECONDS = 1.0  # a still picture is shown
_FRAME_DURATION = 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION: a packet says how long it is shown
_JUMP_SECONDS = 2.0  # between two frames: no longer the same clock

# A killed process leaves whole fragments (mp4: each begun by a keyframe) or clusters (mkv: one a
# picture), written out at once; closed cleanly, hybrid_fragmented makes it a plain mp4.
_CONTAINER_OPTIONS = {
    ".mp4": {"movflags": "hybrid_fragmented+frag_keyframe", "flush_packets": "1"},
    ".mkv": {"cluster_time_limit": "1", "flush_packets": "1"},
}
VIDEO_SUFFIXES = tuple(_CONTAINER_OPTIONS)

# Without B-frames (bf=0) encoding takes two thirds of the CPU time and the file starts at time 0;
# it grows by a seventh. Without looking ahead it grows by another twelfth, and a kill costs no
# dozen pictures that wait in the encoder, which are seconds of a slow camera.
_ENCODER_OPTIONS = {
    "preset": "veryfast", "crf": "23", "bf": "0", "rc-lookahead": "0", "threads": "4",
}  # fmt: skip


class VideoWriter:
    """Pictures of one source as H.264, each shown at its own time.

    Frames keep their presentation times, so a dropped frame is a pause and the speed is right.
    The first picture gives the size (made even, as yuv420p needs it); a picture of another size
    is fitted into it with black bars.

    After an OSError of `write` or `close` (a full disk), `salvage` saves what can be saved.
    """

    def __init__(self, path: Path) -> None:
        """The file, .mp4 or .mkv, is made with the first picture."""
        self.path = path
        self.num_pictures = 0
        """Handed over so far."""
        self._encoder: _Encoder | None = None
        self._clock = _FileClock()
        self._size = (0, 0)  # (height, width) of the first picture
        self._says_sizes = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the video; zeros before the first picture."""
        return (0, 0) if self._encoder is None else self._encoder.size

    def seconds_at(self, frame: Frame) -> float:
        """The time that a frame, if it came next, would have in the file."""
        return self._clock.seconds_at(frame)

    def write(self, image_bgr: np.ndarray, frame: Frame) -> None:
        """Append a picture.

        Args:
            image_bgr: (height, width, 3) uint8.
            frame: whose times it has.
        Raises:
            OSError: the disk is full, gone, ...
        """
        self.num_pictures += 1
        size = image_bgr.shape[0], image_bgr.shape[1]
        if self._encoder is None:
            self._encoder = _Encoder(self.path, even_size(image_bgr), frame.pixel_aspect)
            self._size = size
        elif size != self._size and not self._says_sizes:
            self._says_sizes = True
            logger.info(
                "%s: a picture is %dx%d; this and all of other sizes are fitted into %dx%d",
                self.path, size[1], size[0], self._size[1], self._size[0],
            )  # fmt: skip
        ticks = self._clock.ticks(frame)
        fitted = _fitted(image_bgr, self._encoder.size)
        self._encoder.write(fitted, ticks, duration=self._clock.frame_ticks)

    def close(self) -> None:
        """Finish the file; may be called again. OSError as `write`; `salvage` comes after it."""
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = None

    def salvage(self) -> int:
        """After an OSError: cut the file to what is whole and readable, or remove it if nothing is.

        Returns:
            How many pictures are in the file.
        """
        encoder, self._encoder = self._encoder, None
        return 0 if encoder is None else encoder.salvage()


def even_size(image_bgr: np.ndarray) -> tuple[int, int]:
    """(height, width) of the video that a picture of (height, width, 3) starts."""
    return image_bgr.shape[0] + image_bgr.shape[0] % 2, image_bgr.shape[1] + image_bgr.shape[1] % 2


class _Encoder:
    """An open file with one H.264 stream of a fixed, even size."""

    def __init__(self, path: Path, size: tuple[int, int], pixel_aspect: float) -> None:
        self.size = size
        self._path = path
        self._num_packets = 0
        self._whole = (0, 0)  # (pictures, bytes) of the file up to the last keyframe
        self._has_failed = False
        hd = size[0] >= 720  # where players take untagged video for BT.709
        self._colorspace = Colorspace.ITU709 if hd else Colorspace.ITU601
        self._reformatter = VideoReformatter()
        self._keyframe_due = 0  # ticks

        path.open("wb").close()  # FFmpeg does it with the first packet
        suffix = path.suffix.lower()
        self._container = av.open(str(path), "w", options=_CONTAINER_OPTIONS[suffix])
        self._stream = self._container.add_stream("libx264", options=_ENCODER_OPTIONS)
        codec = self._stream.codec_context
        codec.height, codec.width = size
        codec.pix_fmt = "yuv420p"
        codec.sample_aspect_ratio = Fraction(pixel_aspect).limit_denominator(1000)
        codec.time_base = Fraction(1, _TICKS_PER_SECOND)
        codec.flags |= _FRAME_DURATION
        self._stream.time_base = codec.time_base
        codec.color_range = ColorRange.MPEG
        # ITU-T H.273: 1 is BT.709, 6 is BT.601 with 525 lines.
        codec.colorspace = codec.color_primaries = codec.color_trc = 1 if hd else 6

    def write(self, image_bgr: np.ndarray, ticks: int, *, duration: int) -> None:
        picture = VideoFrame.from_ndarray(image_bgr, format="bgr24")
        frame = self._reformatter.reformat(
            picture,
            format="yuv420p",
            dst_colorspace=self._colorspace,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.duration = ticks, duration
        frame.time_base = Fraction(1, _TICKS_PER_SECOND)
        frame.pict_type = PictureType.NONE
        if ticks >= self._keyframe_due:
            # By time, not by count: a slow camera too loses at most a second when killed.
            frame.pict_type = PictureType.I
            self._keyframe_due = ticks + _TICKS_PER_SECOND
        self._mux(frame)

    def close(self) -> None:
        self._mux(None)
        self._close_container()

    def salvage(self) -> int:
        """See VideoWriter. Once a write has failed FFmpeg writes nothing more, also while closing;
        the half fragment at the end is removed here."""
        had_failed = self._has_failed
        with suppress(OSError):
            self._close_container()
        is_whole = not had_failed and not self._has_failed  # what failed was no write
        num_pictures = self._num_packets if is_whole else self._whole[0]
        try:
            if num_pictures == 0:
                self._path.unlink()
            elif not is_whole:
                os.truncate(self._path, self._whole[1])
            else:
                self._path.stat()
        except OSError:  # the file is gone, and its pictures with it
            return 0
        return num_pictures

    def _mux(self, frame: VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            with self._noting_failure():
                self._container.mux(packet)
            self._num_packets += 1
            if packet.is_keyframe:  # all before it has been written out
                self._whole = self._num_packets - 1, self._path.stat().st_size

    def _close_container(self) -> None:
        with self._noting_failure():
            self._container.close()

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._has_failed = True
            raise


class _FileClock:
    """Frame times -> ticks of the file: from 0, strictly increasing, at the source's speed."""

    def __init__(self) -> None:
        self._last: Frame | None = None
        self._seconds = 0.0  # place of the last frame in the file
        self._ticks = -1
        self._frame_seconds = 1 / 30  # from one frame of the source to its next, lately

    def seconds_at(self, frame: Frame) -> float:
        """The frame's place in the file, if it came next."""
        step = 0.0 if self._last is None else self._seconds_between(self._last, frame)
        return self._seconds + step

    def ticks(self, frame: Frame) -> int:
        self._seconds = self.seconds_at(frame)
        if frame.image_name:
            self._frame_seconds = _STILL_SECONDS
        self._last = frame.without_pixels()
        self._ticks = max(self._ticks + 1, round(self._seconds * _TICKS_PER_SECOND))
        return self._ticks

    @property
    def frame_ticks(self) -> int:
        """How long a frame is shown if none follows: a silence before it does not count."""
        return round(min(self._frame_seconds, _STILL_SECONDS) * _TICKS_PER_SECOND)

    def _seconds_between(self, last: Frame, frame: Frame) -> float:
        """By the source's own clock, unless that is missing or jumped (reconnect, looped file)."""
        elapsed = (frame.captured_ns - last.captured_ns) / 1e9
        if frame.image_name:
            return _STILL_SECONDS
        num_frames = max(1, frame.index - last.index)
        without_clock = elapsed if frame.live else num_frames * self._frame_seconds
        if frame.pts_seconds is None or last.pts_seconds is None:
            return without_clock
        step = frame.pts_seconds - last.pts_seconds
        if step <= -_JUMP_SECONDS or (frame.live and abs(step - elapsed) > _JUMP_SECONDS):
            return without_clock
        if step > 0:  # else repeated or swapped: the next frame makes up for it
            self._frame_seconds = step / num_frames
        return step


def _fitted(image_bgr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture at a given (height, width): whole, undistorted, centred, black around it.

    One row or column less than wanted (odd sizes) is repeated rather than scaled.
    """
    height, width = image_bgr.shape[:2]
    missing_rows, missing_columns = size[0] - height, size[1] - width
    if 0 <= missing_rows <= 1 and 0 <= missing_columns <= 1:
        if missing_rows or missing_columns:
            border = (0, missing_rows, 0, missing_columns)
            return np.asarray(cv2.copyMakeBorder(image_bgr, *border, cv2.BORDER_REPLICATE))
        return image_bgr
    scale = min(size[0] / height, size[1] / width)
    inside = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = np.zeros((*size, 3), dtype=np.uint8)
    top, left = (size[0] - inside[0]) // 2, (size[1] - inside[1]) // 2
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image_bgr, (inside[1], inside[0]), interpolation=how)
    canvas[top : top + inside[0], left : left + inside[1]] = resized
    return canvas
