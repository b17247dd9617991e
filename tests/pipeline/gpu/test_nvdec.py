"""Video decoded on a GPU, as far as that can be seen without one: decisions, exports, fallbacks.

Real planes of PyAV lie in host memory here; DLPack and the copies are the same.
"""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from common.settings import ConfigError
from kernels.arrays import why_no_gpu
from pipeline.config import Decode
from pipeline.gpu import nvdec as gpu_video
from pipeline.gpu.nvdec import (
    copies_of,
    decoding_device,
    is_on_gpu,
    why_no_context,
    why_no_nvdec,
)
from pipeline.messages import Frame
from tests.support.clips import SIZE, grey, read, write_clip
from tests.support.pretend_gpu import GpuArray, pretend_nvdec

needs_no_gpu = pytest.mark.skipif(why_no_gpu() is None, reason="this machine has a GPU")


# --- where a source is decoded -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decode", "network_device", "reason", "device"),
    [
        ("auto", None, "never asked", None),
        ("auto", 1, None, 1),
        ("auto", 1, "no driver", None),
        ("cpu", 1, None, None),
        ("cpu", None, None, None),
        ("gpu", 1, None, 1),
    ],
)
def test_video_is_decoded_where_the_network_runs_if_that_can_be(
    monkeypatch: pytest.MonkeyPatch,
    decode: Decode,
    network_device: int | None,
    reason: str | None,
    device: int | None,
) -> None:
    monkeypatch.setattr(gpu_video, "why_no_nvdec", lambda _: reason)
    assert decoding_device(decode, network_device) == device


def test_a_gpu_that_cannot_decode_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_video, "why_no_nvdec", lambda _: "no driver")
    with pytest.raises(ConfigError, match="decode: GPU is not possible: no driver; use decode"):
        decoding_device("gpu", 0)


def test_a_gpu_beside_a_network_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_video, "why_no_gpu", lambda: None)
    with pytest.raises(ConfigError, match="the network does not run on a GPU in the decoder's"):
        decoding_device("gpu", None)


@needs_no_gpu
def test_ffmpeg_without_a_driver_is_a_reason_and_no_error() -> None:
    reason = why_no_context(0)
    assert reason is not None
    assert reason.startswith("FFmpeg has no access to cuda:0: ")
    assert "\n" not in reason


@needs_no_gpu
def test_the_reason_is_found_out_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    why_no_nvdec.cache_clear()
    caplog.set_level(logging.INFO, logger="pipeline.gpu.nvdec")
    assert why_no_nvdec(0) == why_no_nvdec(0) == why_no_gpu(0)
    (line,) = caplog.messages
    assert line.startswith("decode: sources of cuda:0 are decoded on the CPU (")


# --- pictures on a GPU --------------------------------------------------------------------------


def nv12_frame(size: tuple[int, int]) -> av.VideoFrame:
    height, width = size
    chance = np.random.default_rng(7)
    frame = av.VideoFrame(width, height, "nv12")
    for plane, shape in zip(frame.planes, [(height, width), (height // 2, width)], strict=True):
        rows = np.zeros((shape[0], plane.line_size), np.uint8)
        rows[:, : shape[1]] = chance.integers(0, 256, shape)
        plane.update(rows.tobytes())
    return frame


def test_planes_are_copied_into_memory_of_ours() -> None:
    size = (46, 70)  # rows are padded: PyAV aligns them
    frame = nv12_frame(size)
    assert frame.planes[0].line_size > size[1]
    expected = frame.to_ndarray()
    luma, chroma = copies_of(frame.planes, np)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))  # the surface is used again
    np.testing.assert_array_equal(luma, expected[: size[0]])
    np.testing.assert_array_equal(chroma.reshape(-1, size[1]), expected[size[0] :])
    assert chroma.shape == (size[0] // 2, size[1] // 2, 2)
    assert luma.flags.c_contiguous
    assert chroma.flags.c_contiguous


class PlaneThatRefusesStreams:
    """As a plane of PyAV on a GPU: it exports only if nobody names a stream."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        if stream is not None:
            raise NotImplementedError
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 5  # CUDA, its sixth GPU


class ArraysOfCuda:
    """In the place of CuPy: names a stream, as CuPy does wherever the exporter is a CUDA device."""

    @staticmethod
    def from_dlpack(exporter: Any) -> np.ndarray:
        assert exporter.__dlpack_device__() == (2, 5)
        capsule = exporter.__dlpack__(stream=1, max_version=(1, 0), copy=None)
        holder = SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0))
        return np.from_dlpack(holder)


def test_cupy_may_name_a_stream_though_pyav_takes_none() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (copy,) = copies_of([PlaneThatRefusesStreams(array)], ArraysOfCuda)
    np.testing.assert_array_equal(copy, array)


def frame_like(name: str, inside: str | None, size: tuple[int, int]) -> Any:
    return SimpleNamespace(
        format=SimpleNamespace(name=name),
        sw_format=None if inside is None else SimpleNamespace(name=inside),
        height=size[0],
        width=size[1],
    )


@pytest.mark.parametrize(
    ("name", "inside", "size", "stays"),
    [
        ("cuda", "nv12", (480, 854), True),
        ("cuda", "nv12", (481, 854), False),
        ("cuda", "nv12", (480, 853), False),
        ("cuda", "p010le", (480, 854), False),
        ("cuda", "yuv444p", (480, 854), False),
        ("cuda", None, (480, 854), False),
        ("yuv420p", None, (480, 854), False),
        ("nv12", None, (480, 854), False),
    ],
)
def test_what_stays_on_the_gpu_is_nv12_of_even_size(
    name: str, inside: str | None, size: tuple[int, int], stays: bool
) -> None:
    assert is_on_gpu(frame_like(name, inside, size)) is stays


# --- readers -------------------------------------------------------------------------------------


def test_each_picture_says_itself_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What NVDEC cannot decode comes from FFmpeg's software, if need be in the midst of a video."""
    pretend_nvdec(monkeypatch, every=2)
    tags = {"color_range": int(ColorRange.JPEG), "colorspace": int(Colorspace.ITU709)}
    pictures = [grey(i) for i in range(6)]
    path = write_clip(tmp_path / "c.mp4", pictures, rotation=90, tags=tags)
    frames = read(path, device=3)
    assert [frame.device for frame in frames] == [None, 3] * 3
    assert [frame.pixel_format for frame in frames] == ["yuv420p", "nv12"] * 3
    plain = read(path)
    asked_for = ("index", "pts_seconds", "size", "color_space", "full_range", "rotation", "tainted")
    for frame, expected in zip(frames, plain, strict=True):
        for name in asked_for:
            assert getattr(frame, name) == getattr(expected, name), name
        np.testing.assert_array_equal(frame.to_host(), expected.to_host())


@pytest.mark.parametrize(
    ("every", "where"),
    [
        (1, "decoded on cuda:3"),
        (2, "decoded on the CPU: NVDEC of cuda:3 does not give this kind"),
    ],
)
def test_where_a_file_is_decoded_is_logged_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    every: int,
    where: str,
) -> None:
    pretend_nvdec(monkeypatch, every=every)
    path = write_clip(tmp_path / "c.mp4", [grey(i) for i in range(3)])
    caplog.set_level(logging.INFO, logger="pipeline.sources.file")
    assert len(read(path, device=3, loop=True, max_frames=8)) == 8
    assert caplog.messages == [f"c: a video, {where}"]


# --- frames whose planes are on a GPU -----------------------------------------------------------


@pytest.fixture
def on_host() -> Frame:
    luma, chroma = copies_of(nv12_frame(SIZE).planes, np)
    return Frame(
        source="cam", index=0, pts_seconds=0.0, captured_ns=0, captured_unix_s=0.0, size=SIZE,
        planes=(luma, chroma), pixel_format="nv12",
    )  # fmt: skip


@pytest.fixture
def on_gpu(on_host: Frame) -> Frame:
    planes: Any = tuple(GpuArray(plane, 2) for plane in on_host.planes)
    return replace(on_host, planes=planes)


def test_a_frame_knows_its_gpu(on_host: Frame, on_gpu: Frame) -> None:
    assert on_host.device is None
    assert on_gpu.device == 2
    assert on_gpu.without_pixels().device is None
    assert repr(on_gpu) == repr(on_host)


def test_who_looks_at_a_frame_downloads_it(on_host: Frame, on_gpu: Frame) -> None:
    np.testing.assert_array_equal(on_gpu.to_host(), on_host.to_host())


def test_a_frame_that_crosses_to_another_process_leaves_its_gpu(
    on_host: Frame, on_gpu: Frame
) -> None:
    header, buffers = on_gpu.to_parts()
    again = Frame.from_parts(header, buffers)
    assert again.device is None
    for plane, expected in zip(again.planes, on_host.planes, strict=True):
        np.testing.assert_array_equal(plane, expected)
