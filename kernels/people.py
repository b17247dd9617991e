"""The people of one image, as matching, refine and decode hand them on."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.sampling import FloatArray


class People(NamedTuple):
    """The people of one image, in the order in which the matching began them."""

    keypoints: FloatArray
    """(P, K, 3) float32: x, y in network-input pixels, score; all zero where one is missing."""
    scores: FloatArray
    """(P,) float32: mean score over all K keypoints before refine, missing ones counting as 0."""
    filled: NDArray[np.bool_]
    """(P, K) bool: True where refine filled a keypoint that no peak had given."""
    tags: FloatArray
    """(P, T) float32: mean tag of the person's own peaks."""
