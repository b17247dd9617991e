"""Where a picture lies in the network input: the published size rule and affine map."""

import numpy as np


def network_size(
    image_size: tuple[int, int],
    *,
    input_size: int,
    size_multiple: int = 64,
    scale: float = 1.0,
    min_scale: float = 1.0,
    max_long_side: int | None = None,
) -> tuple[int, int]:
    """Size of the network input for a picture: the rule of the published HigherHRNet evaluation.

    The short side becomes input_size, the long side follows the aspect, both rounded up to
    size_multiple at the smallest scale; other scales are exact multiples of that. Rounding is the
    published one: less than one whole pixel of excess is dropped (999x998 at 512 gives 512x512).

    Args:
        image_size: (height, width) of the upright picture.
        input_size: wanted short side at scale 1, in pixels.
        scale, min_scale: this scale, and the smallest of all scales of a multi-scale test.
        max_long_side: no limit when None (the published rule has none).
    Returns:
        (H, W).
    Raises:
        ValueError: an empty picture, or a long side beyond max_long_side.
    """
    h, w = checked_size(image_size)
    short_at_min = int(
        (min_scale * input_size + size_multiple - 1) // size_multiple * size_multiple
    )
    # The order of these float operations is the published one; int() and // both round down.
    long_at_min = short_at_min / min(h, w) * max(h, w)
    long_at_min = int((long_at_min + size_multiple - 1) // size_multiple * size_multiple)
    short_side = int(short_at_min * scale / min_scale)
    long_side = int(long_at_min * scale / min_scale)
    if max_long_side is not None and long_side > max_long_side:
        raise ValueError(
            f"a {w}x{h} picture needs a network input of {long_side}x{short_side}, longer than "
            f"max_long_side {max_long_side}; crop it, or lower input_size or raise max_long_side"
        )
    return (long_side, short_side) if w < h else (short_side, long_side)


def capped_size(
    image_size: tuple[int, int], *, max_long_side: int, size_multiple: int = 64
) -> tuple[int, int]:
    """Smallest (H, W) that holds a very elongated picture whole, its long side at the limit.

    To be used with net_from_image(letterbox=True) where network_size refuses: the picture shrinks
    instead of being cut, so people get smaller but none is lost.
    """
    h, w = checked_size(image_size)
    long_side = max_long_side // size_multiple * size_multiple
    if long_side == 0:
        raise ValueError(f"max_long_side {max_long_side} is below size_multiple {size_multiple}")
    blocks = -(-min(h, w) * long_side // (max(h, w) * size_multiple))
    short_side = blocks * size_multiple
    return (long_side, short_side) if w < h else (short_side, long_side)


def net_from_image(
    image_size: tuple[int, int], net_size: tuple[int, int], *, letterbox: bool = False
) -> np.ndarray:
    """The map from picture pixels to network-input pixels: isotropic, centred.

    As published: net = f * (image - centre) + (W / 2, H / 2) with the centre rounded to whole
    pixels, int(side / 2 + 0.5), and no half-pixel shift. f fits the short side, so of a long
    side that was rounded down a fraction of a pixel falls outside.

    Args:
        image_size: (height, width) of the upright picture.
        net_size: (H, W), from network_size or any canvas.
        letterbox: f fits the whole picture into any canvas, black bars on both sides.
    Returns:
        (2, 3) float64.
    """
    h, w = checked_size(image_size)
    net_h, net_w = net_size
    fit_short_side = net_w / w if w < h else net_h / h
    factor = min(net_h / h, net_w / w) if letterbox else fit_short_side
    center_x, center_y = int(w / 2 + 0.5), int(h / 2 + 0.5)
    return np.array(
        [
            [factor, 0.0, net_w / 2 - factor * center_x],
            [0.0, factor, net_h / 2 - factor * center_y],
        ]
    )


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a (2, 3) affine map, float64: image_from_net of net_from_image."""
    linear = np.linalg.inv(np.asarray(matrix, np.float64)[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def checked_size(image_size: tuple[int, int]) -> tuple[int, int]:
    h, w = image_size
    if h < 1 or w < 1:
        raise ValueError(f"a picture has at least one pixel each way, got (height, width) {h, w}")
    return h, w
