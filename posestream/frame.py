"""A picture and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import messages

Order = Literal["bgr", "rgb"]
"""Of the three channels of a picture: OpenCV's, or that of most other libraries."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source. Its pixels are converted when somebody asks for `image`."""

    decoded: messages.Frame
    """As it came out of the decoder."""
    order: Order = "bgr"
    """Of the channels of `image`."""

    def __repr__(self) -> str:
        return f"Frame({self.source!r}, index={self.index}, size={self.size})"

    @property
    def image(self) -> NDArray[np.uint8]:
        """The upright picture, (height, width, 3) uint8: a new array at each access.

        Raises:
            ValueError: the frame carries no pixels, because of the setting `privacy`.
        """
        bgr = self.decoded.to_host()
        return bgr if self.order == "bgr" else swapped(bgr)

    @property
    def source(self) -> str:
        """Name of the source; no URL, so it holds no password."""
        return self.decoded.source

    @property
    def index(self) -> int:
        """Counts the frames of the source from 0; a gap is a dropped frame."""
        return self.decoded.index

    @property
    def pts_seconds(self) -> float | None:
        """Presentation time, which always rises; None for pictures, which have none."""
        return self.decoded.pts_seconds

    @property
    def captured_unix_s(self) -> float:
        """Wall clock when the frame was decoded."""
        return self.decoded.captured_unix_s

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        return self.decoded.size

    @property
    def image_name(self) -> str:
        """File name, for image files; else empty."""
        return self.decoded.image_name


def swapped(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with its channels in the other order."""
    return np.ascontiguousarray(image[..., ::-1])


def checked_image(image: object, *, name: str = "image") -> NDArray[np.uint8]:
    """The array, contiguous.

    Raises:
        ValueError, TypeError: it is no (height, width, 3) uint8 picture; says what to do.
    """
    wanted = f"{name} must be a NumPy array (height, width, 3) of uint8"
    if image is None:
        raise TypeError(f"{wanted}, got None, which cv2.imread gives where it cannot read a file")
    if isinstance(image, str | bytes) or hasattr(image, "__fspath__"):
        raise TypeError(f"{wanted}, got {image!r}; read the file first: cv2.imread(path)")
    if not isinstance(image, np.ndarray):
        kind = f"{type(image).__module__}.{type(image).__name__}"
        raise TypeError(f"{wanted}, got {kind}; convert it: numpy.asarray(image), and see order=")
    problem = _problem(image)
    if problem is not None:
        raise ValueError(f"{wanted}, got shape {image.shape} of {image.dtype}; {problem}")
    return np.ascontiguousarray(image)


def _problem(image: np.ndarray) -> str | None:
    """What to do about an array that is no picture; None: it is one."""
    shape = image.shape
    channels = shape[2] if image.ndim == 3 else 0
    what_to_do = {
        "pass several pictures as a list: list(images)": image.ndim == 4,
        "make three channels of grey: cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)": (
            image.ndim == 2 or channels == 1
        ),
        "drop the fourth channel: image[..., :3]": channels == 4,
        "channels come last: image.transpose(1, 2, 0)": channels not in (0, 3) and shape[0] == 3,
        "pass one picture, or a list of them": channels != 3,
        "it is empty; check the crop": image.size == 0,
        "values are 0..255; of 0..1 make them: (255 * image).astype(numpy.uint8)": (
            image.dtype != np.uint8
        ),
    }
    return next((text for text, is_so in what_to_do.items() if is_so), None)
