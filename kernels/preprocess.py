"""Picture planes -> network input: colour, affine resize and normalisation in one pass.

    Y (h, w) ---+
    U (h/2..) ---+--> vertical taps --> horizontal taps --> YUV to RGB --> (rgb/255 - mean)/std
    V (h/2..) ---+     (source rows)     (W columns)         clip 0..255    (3, H, W) float32

The map from picture to network input is axis-aligned and isotropic, so each axis has its own taps:
which source pixels an output pixel sees, and with what weights. Chroma is resized on its own small
grid by the taps of "upsample to full size, then resize". So the answer is that of converting the
whole picture to RGB and warping it, but the full-size RGB picture never exists.

The file also converts a whole picture to BGR for people to look at.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.geometry import checked_size
from kernels.jit import njit
from kernels.taps import ResizeAxis, Taps, axis_taps, chroma_taps

Plane = tuple[np.ndarray, int, int]
"""Bytes of a plane (1-D, read-only), bytes from row to row, and bytes of a row that count."""
Normalization = tuple[np.ndarray, np.ndarray]
"""Gain and bias, (3,) float32 each, RGB: normalised = grey level * gain + bias."""
Coefficients = tuple[np.float32, ...]
"""Luma offset and gain, then what V gives to R, U to G, V to G and U to B."""

_LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Shares (Kr, Kb) of red and blue in luma: ITU-R BT.601 and BT.709."""
_NUM_PLANES = {"bgr24": 1, "rgb24": 1, "nv12": 2, "yuv420p": 3}
_LANES = 8
"""Output rows resized together, so that horizontal taps read neighbouring floats, not scattered."""

_ZERO, _HALF, _TOP = np.float32(0), np.float32(0.5), np.float32(255)
_GREY_CHROMA = np.float32(128)
_EIGHTH, _GREY_EIGHTHS = np.float32(0.125), np.int32(8 * 128)
_LOW_HALF, _HALF_BITS = np.int32(0xFFFF), np.int32(16)


# ---- network input ----------------------------------------------------------------------------


def preprocess(
    planes: Sequence[np.ndarray],
    *,
    pixel_format: str,
    color_space: str,
    full_range: bool,
    net_from_image: np.ndarray,
    net_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    prefilter: bool,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resize, convert and normalise one picture: colour (rgb / 255 - mean) / std, bilinear.

    Outside the picture is black (before normalisation); an output pixel less than one source pixel
    outside blends with it, as in OpenCV's warpAffine with a constant border.

    Args:
        planes: uint8, one (h, w, 3); or Y (h, w) with U and V (ceil(h/2), ceil(w/2)); or Y with
            interleaved UV (ceil(h/2), ceil(w/2), 2). Padded rows and read-only memory cost no copy.
        pixel_format: bgr24, rgb24, yuv420p or nv12.
        color_space, full_range: bt601 or bt709, and True for luma 0..255; only for YUV. Chroma
            lies as in H.264 by default: on the even columns, halfway between rows.
        net_from_image: (2, 3) picture pixels to network pixels, without rotation or shear.
        net_size: (H, W).
        mean, std: three numbers each, in RGB order.
        prefilter: below half size, a triangle over the whole footprint of an output pixel instead
            of two taps an axis, so that nothing aliases.
        out: (3, H, W) float32, contiguous; a new array when None.
    Returns:
        (3, H, W) float32 in RGB order: out.
    Raises:
        ValueError: planes that do not fit pixel_format, a rotated map, an unusable out.
    """
    h, w = checked_planes(planes, pixel_format)
    if out is None:
        out = np.empty((3, *net_size), np.float32)
    elif out.shape != (3, *net_size) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be contiguous float32 (3, H, W) = {(3, *net_size)}, got {out.dtype} "
            f"{out.shape} with strides {out.strides}"
        )
    axes = resize_axes(net_from_image, (h, w), net_size, bool(prefilter))
    norm = normalization(tuple(mean), tuple(std))
    flat = [_flat(plane) for plane in planes]
    if pixel_format in ("bgr24", "rgb24"):
        _resize_packed(flat[0], pixel_format == "bgr24", axes, norm, out)
    else:
        colour = (yuv_coefficients(color_space, bool(full_range)), norm)
        _resize_yuv((flat[0], flat[1], flat[-1]), pixel_format == "nv12", axes, colour, out)
    return out


def bgr_from_planes(
    planes: Sequence[np.ndarray], *, pixel_format: str, color_space: str, full_range: bool
) -> np.ndarray:
    """The whole picture as a new, writable (h, w, 3) uint8 BGR array.

    Arguments as in preprocess. Chroma is interpolated linearly, which takes about a tenth of the
    time; repeating the nearest value would show 2x2 blocks along coloured edges.
    """
    h, w = checked_planes(planes, pixel_format)
    if pixel_format == "bgr24":
        return planes[0].copy(order="C")
    if pixel_format == "rgb24":
        return np.ascontiguousarray(planes[0][:, :, ::-1])
    flat = [_flat(plane) for plane in planes]
    coefficients = yuv_coefficients(color_space, bool(full_range))
    bgr = np.empty((h, w, 3), np.uint8)
    _bgr_from_yuv((flat[0], flat[1], flat[-1]), pixel_format == "nv12", coefficients, bgr)
    return bgr


def warm_up() -> None:
    """Compile every kernel of this file (or load it from the cache) on a tiny picture."""
    luma, chroma = np.zeros((2, 2), np.uint8), np.zeros((1, 1), np.uint8)
    packed, interleaved = np.zeros((2, 2, 3), np.uint8), np.zeros((1, 1, 2), np.uint8)
    pictures: dict[str, tuple[np.ndarray, ...]] = {
        "bgr24": (packed,),
        "yuv420p": (luma, chroma, chroma),
        "nv12": (luma, interleaved),
    }
    for pixel_format, planes in pictures.items():
        preprocess(
            planes, pixel_format=pixel_format, color_space="bt709", full_range=False,
            net_from_image=np.eye(2, 3), net_size=(2, 2), mean=(0, 0, 0), std=(1, 1, 1),
            prefilter=True,
        )  # fmt: skip
        bgr_from_planes(planes, pixel_format=pixel_format, color_space="bt709", full_range=False)


def checked_planes(planes: Sequence[np.ndarray], pixel_format: str) -> tuple[int, int]:
    """(height, width); the kernels do not check bounds, so nothing wrong may pass here."""
    if pixel_format not in _NUM_PLANES:
        raise ValueError(f"pixel_format must be one of {list(_NUM_PLANES)}, got {pixel_format!r}")
    shapes = [plane.shape for plane in planes]
    if len(planes) != _NUM_PLANES[pixel_format] or len(shapes[0]) < 2:
        raise ValueError(f"{pixel_format} has {_NUM_PLANES[pixel_format]} planes, got {shapes}")
    h, w = checked_size(shapes[0][:2])
    half = ((h + 1) // 2, (w + 1) // 2)
    expected = {"nv12": [(h, w), (*half, 2)], "yuv420p": [(h, w), half, half]}.get(
        pixel_format, [(h, w, 3)]
    )
    if shapes != expected:
        raise ValueError(f"planes of {pixel_format} must be {expected}, got {shapes}")
    if any(plane.dtype != np.uint8 for plane in planes):
        raise ValueError(f"planes must be uint8, got {[str(plane.dtype) for plane in planes]}")
    return h, w


def resize_axes(
    net_from_image: np.ndarray, image_size: tuple[int, int], net_size: tuple[int, int], wide: bool
) -> tuple[ResizeAxis, ResizeAxis]:
    """The two axes, rows first, as the kernels take them."""
    matrix = np.asarray(net_from_image).tolist()
    (factor_x, shear_x, shift_x), (shear_y, factor_y, shift_y) = matrix
    if shear_x != 0 or shear_y != 0 or factor_x <= 0 or factor_y <= 0:
        raise ValueError(
            f"net_from_image must only scale and shift, got {matrix}; turn the picture before "
            "or the result after"
        )
    (h, w), (net_h, net_w) = image_size, net_size
    rows = (int(net_h), h, float(factor_y), float(shift_y), wide)
    return rows, (int(net_w), w, float(factor_x), float(shift_x), wide)


def _flat(plane: np.ndarray) -> Plane:
    """A plane as one run of read-only bytes, without a copy if its rows only are padded.

    So numba sees one type whatever the layout: it compiles once, and inner loops are contiguous.
    """
    h, row_bytes = plane.shape[0], plane[0].size
    if not plane[0].flags.c_contiguous or plane.strides[0] < row_bytes:
        plane = np.ascontiguousarray(plane)
    stride = plane.strides[0] if h > 1 else row_bytes
    length = (h - 1) * stride + row_bytes
    pixels = np.lib.stride_tricks.as_strided(plane, (length,), (1,), writeable=False)
    return pixels, stride, row_bytes


@lru_cache(maxsize=64)
def normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalization:
    """Grey levels 0..255 -> normalised."""
    deviation = np.asarray(std, np.float64)
    gain, bias = 1 / (255 * deviation), -np.asarray(mean, np.float64) / deviation
    return gain.astype(np.float32), bias.astype(np.float32)


@lru_cache(maxsize=8)
def yuv_coefficients(color_space: str, full_range: bool) -> Coefficients:
    """Luma offset and gain, then V to R, U to G, V to G and U to B.

    From the definition of the matrices: R - Y = 2 (1 - Kr) V, B - Y = 2 (1 - Kb) U, and
    Y = Kr R + Kg G + Kb B; the narrow range has 219 steps of luma and 224 of chroma.
    """
    if color_space not in _LUMA_WEIGHTS:
        raise ValueError(f"color_space must be one of {list(_LUMA_WEIGHTS)}, got {color_space!r}")
    kr, kb = _LUMA_WEIGHTS[color_space]
    kg = 1 - kr - kb
    offset, luma_gain, chroma_gain = (0, 1, 1) if full_range else (16, 255 / 219, 255 / 224)
    v_to_r, u_to_b = 2 * (1 - kr) * chroma_gain, 2 * (1 - kb) * chroma_gain
    u_to_g, v_to_g = -kb / kg * u_to_b, -kr / kg * v_to_r
    values = (offset, luma_gain, v_to_r, u_to_g, v_to_g, u_to_b)
    return tuple(np.float32(value) for value in values)


# ---- kernels: resize --------------------------------------------------------------------------


@njit
def _resize_packed(
    pixels: Plane,
    reverse: bool,
    axes: tuple[ResizeAxis, ResizeAxis],
    norm: Normalization,
    out: np.ndarray,
) -> None:
    """(h, w, 3) pixels, RGB or (reverse) BGR -> (3, H, W)."""
    rows, columns = axis_taps(axes[0]), axis_taps(axes[1])
    net_h, net_w = axes[0][0], axes[1][0]
    gain, bias = norm
    blended, lanes = _buffers(pixels[2] + 3 * columns[1].shape[1])
    resized = np.empty((3, _LANES, net_w), np.float32)
    for top in range(0, net_h, _LANES):
        _blend(pixels, top, rows, _ZERO, blended)
        _to_lanes(blended, lanes)
        for channel in range(3):
            source = 2 - channel if reverse else channel
            _resample(lanes, 3, source, columns, resized[channel])
        for lane in range(min(_LANES, net_h - top)):
            for channel in range(3):
                line, result = resized[channel, lane], out[channel, top + lane]
                for x in range(net_w):
                    result[x] = line[x] * gain[channel] + bias[channel]


@njit
def _resize_yuv(
    planes: tuple[Plane, Plane, Plane],
    interleaved: bool,
    axes: tuple[ResizeAxis, ResizeAxis],
    colour: tuple[Coefficients, Normalization],
    out: np.ndarray,
) -> None:
    """Y, U and V planes (interleaved: U and V are the same plane) -> (3, H, W)."""
    luma, u, v = planes
    rows, columns = axis_taps(axes[0]), axis_taps(axes[1])
    net_h, net_w = axes[0][0], axes[1][0]
    chroma_rows = chroma_taps(rows, axes[0][1], False)
    chroma_columns = chroma_taps(columns, axes[1][1], True)
    step = 2 if interleaved else 1
    blended, lanes = _buffers(luma[2] + columns[1].shape[1])
    chroma_blended, chroma_lanes = _buffers(u[2] + step * chroma_columns[1].shape[1])
    resized = np.empty((3, _LANES, net_w), np.float32)
    for top in range(0, net_h, _LANES):
        _blend(luma, top, rows, colour[0][0], blended)
        _to_lanes(blended, lanes)
        _resample(lanes, 1, 0, columns, resized[0])
        _blend(u, top, chroma_rows, _GREY_CHROMA, chroma_blended)
        _to_lanes(chroma_blended, chroma_lanes)
        _resample(chroma_lanes, step, 0, chroma_columns, resized[1])
        if not interleaved:
            _blend(v, top, chroma_rows, _GREY_CHROMA, chroma_blended)
            _to_lanes(chroma_blended, chroma_lanes)
        _resample(chroma_lanes, step, step - 1, chroma_columns, resized[2])
        for lane in range(min(_LANES, net_h - top)):
            _normalized_rgb(resized, lane, colour, out, top + lane)


@njit
def _buffers(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeroed rows (lanes, width) and their transposed copy; past the row's end both stay zero."""
    return np.zeros((_LANES, width), np.float32), np.zeros((width, _LANES), np.float32)


@njit
def _blend(plane: Plane, top: int, taps: Taps, offset: np.float32, blended: np.ndarray) -> None:
    """Vertical taps of output rows top, top + 1, ...: sum of weight * (source row - offset)."""
    pixels, stride, width = plane
    first, weights = taps
    for lane in range(min(_LANES, first.size - top)):
        y = top + lane
        line = blended[lane, :width]
        line[:] = -offset * np.sum(weights[y])
        for tap in range(weights.shape[1]):
            weight = weights[y, tap]
            if weight == _ZERO:  # also keeps taps beyond the last row from being read
                continue
            begin = (first[y] + tap) * stride
            source = pixels[begin : begin + width]
            for x in range(width):
                line[x] += weight * np.float32(source[x])


@njit
def _to_lanes(blended: np.ndarray, lanes: np.ndarray) -> None:
    """Transpose (lanes, width) to (width, lanes)."""
    for lane in range(_LANES):
        line = blended[lane]
        for x in range(line.size):
            lanes[x, lane] = line[x]


@njit
def _resample(lanes: np.ndarray, step: int, channel: int, taps: Taps, resized: np.ndarray) -> None:
    """Horizontal taps of one channel: (width * step, lanes) -> (lanes, W).

    The lanes are eight named sums: so LLVM keeps them in registers, which it does not for a loop.
    """
    first, weights = taps
    for x in range(first.size):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _ZERO
        for tap in range(weights.shape[1]):
            weight = weights[x, tap]
            column = lanes[(first[x] + tap) * step + channel]
            s0 += weight * column[0]
            s1 += weight * column[1]
            s2 += weight * column[2]
            s3 += weight * column[3]
            s4 += weight * column[4]
            s5 += weight * column[5]
            s6 += weight * column[6]
            s7 += weight * column[7]
        resized[0, x], resized[1, x], resized[2, x], resized[3, x] = s0, s1, s2, s3
        resized[4, x], resized[5, x], resized[6, x], resized[7, x] = s4, s5, s6, s7


@njit
def _normalized_rgb(
    resized: np.ndarray,
    lane: int,
    colour: tuple[Coefficients, Normalization],
    out: np.ndarray,
    y: int,
) -> None:
    """A row of YUV without offsets -> clipped RGB, normalised, in row y of out."""
    (_, luma_gain, v_to_r, u_to_g, v_to_g, u_to_b), (gain, bias) = colour
    luma, u, v = resized[0, lane], resized[1, lane], resized[2, lane]
    red, green, blue = out[0, y], out[1, y], out[2, y]
    for x in range(luma.size):
        grey = luma_gain * luma[x]
        red[x] = min(max(grey + v_to_r * v[x], _ZERO), _TOP) * gain[0] + bias[0]
        green[x] = min(max(grey + u_to_g * u[x] + v_to_g * v[x], _ZERO), _TOP) * gain[1] + bias[1]
        blue[x] = min(max(grey + u_to_b * u[x], _ZERO), _TOP) * gain[2] + bias[2]


# ---- kernels: whole picture -------------------------------------------------------------------


@njit
def _bgr_from_yuv(
    planes: tuple[Plane, Plane, Plane],
    interleaved: bool,
    coefficients: Coefficients,
    bgr: np.ndarray,
) -> None:
    """Y, U and V planes (interleaved: U and V are the same plane) -> (h, w, 3)."""
    (luma, luma_stride, w), (u, u_stride, _), (v, v_stride, _) = planes
    h = bgr.shape[0]
    last_row = (h + 1) // 2 - 1
    chroma_width = (w + 1) // 2
    v_begin = 1 if interleaved else 0
    mixed = np.empty(chroma_width + 1, np.int16)
    upsampled_u = np.empty(chroma_width, np.int32)
    upsampled_v = np.empty(chroma_width, np.int32)
    line = np.empty((3, w), np.uint8)
    for y in range(h):
        near = y // 2
        far = min(near + 1, last_row) if y % 2 else max(near - 1, 0)
        _upsample_chroma(u[near * u_stride :], u[far * u_stride :], interleaved, mixed, upsampled_u)
        v_near, v_far = v[near * v_stride + v_begin :], v[far * v_stride + v_begin :]
        _upsample_chroma(v_near, v_far, interleaved, mixed, upsampled_v)
        source = luma[y * luma_stride : y * luma_stride + w]
        _bgr_line(
            source, upsampled_u.view(np.int16), upsampled_v.view(np.int16), coefficients, line
        )
        result = bgr[y]
        for x in range(w):
            result[x, 0], result[x, 1], result[x, 2] = line[0, x], line[1, x], line[2, x]


@njit
def _upsample_chroma(
    near: np.ndarray, far: np.ndarray, interleaved: bool, mixed: np.ndarray, upsampled: np.ndarray
) -> None:
    """A row of chroma at luma resolution, in eighths of a level and minus its grey value.

    Rows mix 3 to 1, even columns are as they are, odd ones the mean of their neighbours. An even
    and an odd column, int16 each, are stored as one int32 (low half first, as on all machines that
    numba knows): LLVM vectorises that, and not a store of every other int16.
    """
    width = upsampled.size
    if interleaved:
        for x in range(width):
            mixed[x] = np.int16(3 * np.int16(near[2 * x]) + np.int16(far[2 * x]))
    else:
        for x in range(width):
            mixed[x] = np.int16(3 * np.int16(near[x]) + np.int16(far[x]))
    mixed[width] = mixed[width - 1]
    for x in range(width):
        even = 2 * np.int32(mixed[x]) - _GREY_EIGHTHS
        odd = np.int32(mixed[x]) + np.int32(mixed[x + 1]) - _GREY_EIGHTHS
        upsampled[x] = np.int32((even & _LOW_HALF) | (odd << _HALF_BITS))


@njit
def _bgr_line(
    luma: np.ndarray, u: np.ndarray, v: np.ndarray, coefficients: Coefficients, bgr: np.ndarray
) -> None:
    """A row of luma and of upsampled chroma, in eighths -> (3, w) rounded and clipped uint8."""
    offset, luma_gain = coefficients[0], coefficients[1]
    v_to_r, u_to_g = _EIGHTH * coefficients[2], _EIGHTH * coefficients[3]
    v_to_g, u_to_b = _EIGHTH * coefficients[4], _EIGHTH * coefficients[5]
    blue, green, red = bgr[0], bgr[1], bgr[2]
    base = _HALF - luma_gain * offset
    low, high = np.int32(0), np.int32(255)
    for x in range(luma.size):
        grey = luma_gain * np.float32(luma[x]) + base
        cb, cr = np.float32(u[x]), np.float32(v[x])
        blue[x] = min(max(np.int32(grey + u_to_b * cb), low), high)
        green[x] = min(max(np.int32(grey + u_to_g * cb + v_to_g * cr), low), high)
        red[x] = min(max(np.int32(grey + v_to_r * cr), low), high)
