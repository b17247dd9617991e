"""Taps of a resize: which source pixels an output pixel sees along one axis, and with what weights.

    weight       .^.         a triangle whose weights sum to 1; its radius is 1 source pixel, or
               .` | `.       1 / factor where the picture shrinks below one half
    source   0  1 | 2  3
    output        i          net = factor * source + shift

The CPU twin of preprocessing computes them for each picture; the GPU twin copies them to the GPU
once for each geometry.
"""

import numpy as np

from kernels.jit import njit

PREFILTER_BELOW = 0.5
"""Prefiltering widens the taps only when fewer than this many output pixels meet a source pixel."""

ResizeAxis = tuple[int, int, float, float, bool]
"""Output length, source length, factor, shift, prefilter: net = factor * source + shift."""
Taps = tuple[np.ndarray, np.ndarray]
"""First source index (n,) int64 of every output pixel, and its weights (n, taps) float32."""


@njit
def axis_taps(axis: ResizeAxis) -> Taps:
    """Weights of a triangle of radius 1 source pixel (two taps), or 1 / factor when prefiltering.

    Inside the picture they sum to 1 (a wide triangle that overhangs the border is scaled up, so
    the rim of the picture does not darken); up to one pixel outside they fade to black as two
    taps do.
    """
    length, source_length, factor, shift, prefilter = axis
    radius = 1.0 / factor if prefilter and factor < PREFILTER_BELOW else 1.0
    num_taps = int(np.ceil(2 * radius))
    first = np.zeros(length, np.int64)
    weights = np.zeros((length, num_taps), np.float32)
    for i in range(length):
        position = (i - shift) / factor
        coverage = min(1.0, 1.0 + position, source_length - position)
        if coverage <= 0:
            continue
        begin = max(int(np.floor(position - radius)) + 1, 0)
        end = min(int(np.ceil(position + radius)), source_length)
        total = 0.0
        for j in range(begin, end):
            total += 1.0 - abs(j - position) / radius
        first[i] = begin
        for j in range(begin, end):
            weights[i, j - begin] = coverage * (1.0 - abs(j - position) / radius) / total
    return first, weights


@njit
def chroma_taps(taps: Taps, luma_length: int, cosited: bool) -> Taps:
    """Taps on a chroma axis, from those on the luma axis: of linear upsampling, then resizing.

    cosited: chroma c lies on luma 2c (columns); otherwise on 2c + 1/2 (rows). Beyond the ends
    chroma repeats.
    """
    first, weights = taps
    length, luma_taps = weights.shape
    last = (luma_length + 1) // 2 - 1
    chroma_first = np.zeros(length, np.int64)
    chroma_weights = np.zeros((length, luma_taps // 2 + 2), np.float32)
    for i in range(length):
        begin = first[i] // 2 if cosited else max((first[i] + 1) // 2 - 1, 0)
        chroma_first[i] = begin
        for tap in range(luma_taps):
            position = first[i] + tap
            if cosited:
                low, share = position // 2, 0.5 * (position % 2)
            else:
                low, share = (position + 1) // 2 - 1, 0.25 if position % 2 else 0.75
            weight = weights[i, tap]
            chroma_weights[i, min(max(low, 0), last) - begin] += weight * (1.0 - share)
            chroma_weights[i, min(low + 1, last) - begin] += weight * share
    return chroma_first, chroma_weights
