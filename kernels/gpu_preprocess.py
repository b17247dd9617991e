"""Device planes -> network input on a GPU: the launch of preprocess.cu.

    GpuPicture, GpuPicture, ...  --->  a table of structs  --->  one launch  --->  out (B, 3, H, W)
    (planes in device memory)    (on the device, kept)

Taps come from the code of the CPU twin and stay on the device for each geometry. The table holds
the addresses of planes and taps and all else that differs between pictures. It is kept by its
content: a decoder writes into few surfaces in turn, so most batches find theirs on the device. A
new one, 312 bytes a picture, is uploaded by gpu.xp.asarray: from pinned memory, without waiting,
into a block of CuPy's pool.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import Gpu
from kernels.preprocess import checked_planes, normalization, resize_axes, yuv_coefficients
from kernels.taps import ResizeAxis, Taps, axis_taps, chroma_taps

Size = tuple[int, int]
Matrix = tuple[tuple[float, ...], ...]

FORMATS = ("rgb24", "bgr24", "nv12", "yuv420p")
"""In the order of `enum Format` in preprocess.cu."""

_COLUMNS, _ROWS, _THREADS = 32, 8, 256
"""A block's tile and its threads, as in preprocess.cu."""
_KEPT = 64
"""Geometries, and tables of batches, that stay on the device."""

_PLANE = np.dtype(
    [("bytes", "u8"), ("pitch", "i8"), ("row_bytes", "i4"), ("aligned", "i4")], align=True
)
_AXIS = np.dtype(
    [
        *((name, "u8") for name in ("first", "weights", "spans")),
        *((name, "i4") for name in ("count", "length", "source_length")),
    ],
    align=True,
)
PICTURE = np.dtype(
    [
        ("planes", _PLANE, 3),
        *((name, _AXIS) for name in ("rows", "columns", "chroma_rows", "chroma_columns")),
        ("coefficients", "f4", 6),
        *((name, "f4", 3) for name in ("gain", "bias")),
        *((name, "i4") for name in ("height", "width", "origin", "step_x", "step_y")),
        *((name, "i4") for name in ("quarter", "format")),
    ],
    align=True,
)
"""struct GpuPicture of preprocess.cu."""


class GpuPicture(NamedTuple):
    """One picture in device memory, and where it goes."""

    planes: Sequence[Any]
    """uint8 arrays of gpu.xp, shaped as kernels.preprocess.preprocess says; rows may be padded. A
    region of interest is a view whose left and top are even."""
    pixel_format: str
    """nv12, yuv420p, bgr24 or rgb24."""
    color_space: str
    """bt601 or bt709; of no meaning in bgr24 and rgb24."""
    full_range: bool
    """Luma 0..255, not 16..235."""
    net_from_image: np.ndarray
    """(2, 3) float64 from pixels of the planes as they lie to the network input before turning, as
    for the CPU twin: pipeline.preprocess.Geometry.tile_from_planes. Without rotation or shear."""
    rotation: int
    """Clockwise degrees by which the result is turned: 0, 90, 180 or 270."""


class _Key(NamedTuple):
    """All that a geometry depends on."""

    pixel_format: str
    color_space: str
    full_range: bool
    image_size: Size
    net_from_image: Matrix
    net_size: Size
    rotation: int


class _Geometry(NamedTuple):
    """What pictures of one size, format and map have in common."""

    record: Any
    """() PICTURE without planes."""
    taps: tuple[Any, ...]
    """Device arrays that the record points to."""


class GpuPreprocess:
    """Makes network inputs on one device, on torch's current stream.

    Results equal numpy.rot90(kernels.preprocess.preprocess(...), -rotation / 90) of each picture;
    float16 is that, rounded.

    Args:
        gpu: where to run.
        mean, std: (3,) of RGB / 255, as the network was trained.
        prefilter: widen the resize filter where a picture shrinks below one half.
    """

    def __init__(
        self, gpu: Gpu, *, mean: Sequence[float], std: Sequence[float], prefilter: bool
    ) -> None:
        self._gpu = gpu
        self._norm = normalization(tuple(mean), tuple(std))
        self._prefilter = bool(prefilter)
        self._geometry = lru_cache(maxsize=_KEPT)(self._find_geometry)
        self._table = lru_cache(maxsize=_KEPT)(self._upload)

    def __call__(self, pictures: Sequence[GpuPicture], *, net_size: Size, out: Any) -> None:
        """Resize, convert, normalise and turn every picture in one launch, without waiting for it.

        Args:
            pictures: B of any sizes and formats. Their planes must not change until the launch
                has run: keep them, or order what reuses them behind this stream.
            net_size: (H, W) of all results, after turning.
            out: (B, 3, H, W) float32 or float16 of gpu.xp, contiguous.
        Raises:
            ValueError: planes that do not fit pixel_format, a rotated map, an unusable out.
        """
        _require_fitting(out, (len(pictures), 3, *net_size))
        with self._gpu.stream():
            # Geometries live until the launch, even if the cache drops them: tables point to them.
            geometries = [self._geometry(_key(p, net_size)) for p in pictures]
            records = np.array([geometry.record for geometry in geometries], PICTURE)
            for record, picture in zip(records, pictures, strict=True):
                for i, plane in enumerate(picture.planes):
                    record["planes"][i] = _plane_record(plane)
            grid = (
                math.ceil(int(records["width"].max()) / _COLUMNS),
                math.ceil(int(records["height"].max()) / _ROWS),
                len(pictures),
            )
            name = "preprocess_half" if out.dtype == np.float16 else "preprocess_float"
            arguments = (self._table(records.tobytes()), out, np.int32(math.prod(net_size)))
            self._gpu.function("preprocess.cu", name)(grid, (_THREADS,), arguments)

    def _find_geometry(self, key: _Key) -> _Geometry:
        quarter = key.rotation in (90, 270)
        height, width = key.net_size[::-1] if quarter else key.net_size
        axes = resize_axes(
            np.array(key.net_from_image), key.image_size, (height, width), self._prefilter
        )
        record = np.zeros((), PICTURE)
        record["format"] = FORMATS.index(key.pixel_format)
        record["height"], record["width"], record["quarter"] = height, width, quarter
        record["origin"], record["step_x"], record["step_y"] = _turn(key.net_size, key.rotation)
        record["gain"], record["bias"] = self._norm
        rows, columns = axis_taps(axes[0]), axis_taps(axes[1])
        taps = {"rows": (rows, axes[0][1]), "columns": (columns, axes[1][1])}
        if key.pixel_format in ("nv12", "yuv420p"):
            record["coefficients"] = yuv_coefficients(key.color_space, key.full_range)
            taps["chroma_rows"] = _chroma(rows, axes[0], False)
            taps["chroma_columns"] = _chroma(columns, axes[1], True)
        kept: list[Any] = []
        for name, (axis, source_length) in taps.items():
            arrays = [self._gpu.xp.asarray(array) for array in _device_taps(axis, source_length)]
            addresses = [address(array) for array in arrays]
            record[name] = (*addresses, *axis[1].shape[::-1], source_length)
            kept += arrays
        return _Geometry(record, tuple(kept))

    def _upload(self, content: bytes) -> Any:
        """A table on the device, (n,) uint8."""
        return self._gpu.xp.asarray(np.frombuffer(content, np.uint8))


def address(array: Any) -> int:
    """Where an array's first number lies: device memory of CuPy, or a NumPy array's own."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def _key(picture: GpuPicture, net_size: Size) -> _Key:
    image_size = checked_planes(picture.planes, picture.pixel_format)
    if picture.rotation not in (0, 90, 180, 270):
        raise ValueError(f"rotation must be 0, 90, 180 or 270, got {picture.rotation}")
    return _Key(
        picture.pixel_format,
        picture.color_space,
        bool(picture.full_range),
        image_size,
        tuple(tuple(row) for row in np.asarray(picture.net_from_image, np.float64).tolist()),
        (int(net_size[0]), int(net_size[1])),
        picture.rotation,
    )


def _require_fitting(out: Any, shape: tuple[int, ...]) -> None:
    if shape[0] == 0:
        raise ValueError("pictures must hold at least one picture, got none")
    usable = out.shape == shape and out.dtype in (np.float32, np.float16)
    if not usable or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be contiguous float32 or float16 (B, 3, H, W) = {shape}, got {out.dtype} "
            f"{out.shape} with strides {out.strides}"
        )


def _plane_record(plane: Any) -> tuple[int, int, int, bool]:
    """A plane as struct Plane; like kernels.preprocess._flat, but nothing is copied here."""
    row_bytes = math.prod(plane.shape[1:])
    pitch = plane.strides[0] if len(plane) > 1 else row_bytes
    if not plane[0].flags.c_contiguous or pitch < row_bytes:
        raise ValueError(
            f"rows of a plane must be contiguous and follow each other, got shape {plane.shape} "
            f"with strides {plane.strides}; copy it into a new array"
        )
    begin = address(plane)
    return begin, pitch, row_bytes, begin % 4 == 0 and pitch % 4 == 0


def _turn(net_size: Size, rotation: int) -> tuple[int, int, int]:
    """Where (x, y) before turning goes in the flat (H, W): origin + x * step_x + y * step_y."""
    height, width = net_size
    return {
        0: (0, 1, width),
        90: (width - 1, width, -1),
        180: (height * width - 1, -1, -width),
        270: ((height - 1) * width, -width, 1),
    }[rotation]


def _chroma(taps: Taps, axis: ResizeAxis, cosited: bool) -> tuple[Taps, int]:
    return chroma_taps(taps, axis[1], cosited), (axis[1] + 1) // 2


def _device_taps(taps: Taps, source_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """first (n,) int32, weights (taps, n) float32, spans (ceil(n / 32), 2) int32, of an axis."""
    first, weights = taps
    spans = np.zeros((math.ceil(len(first) / _COLUMNS), 2), np.int32)
    for i, span in enumerate(spans):
        part = np.s_[i * _COLUMNS : (i + 1) * _COLUMNS]
        begins = first[part][weights[part].any(axis=1)]
        if begins.size:
            span[:] = begins.min(), min(begins.max() + weights.shape[1], source_length)
    return first.astype(np.int32), np.ascontiguousarray(weights.T), spans
