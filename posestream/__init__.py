"""Poses in Python.

    import posestream

    estimate = posestream.PoseEstimator()
    poses = estimate(image)                                  one picture, or a list of them
    for poses in posestream.stream("rtsp://camera/live"):    a video, camera or URL
        ...
    posestream.Stream(config, sinks={"mine": print}).run()   a whole stream, with sinks of one's own

docs/python.md shows what a notebook does with it. This package is the door: it hands over to
pipeline and computes nothing itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

from common.version import VERSION

if TYPE_CHECKING:
    from posestream.estimator import PoseEstimator
    from posestream.frame import Frame
    from posestream.poses import Poses
    from posestream.streaming import Stream, stream

__version__ = VERSION

_HOME = {
    "PoseEstimator": "estimator",
    "Frame": "frame",
    "Poses": "poses",
    "Stream": "streaming",
    "stream": "streaming",
}
__all__ = ["Frame", "PoseEstimator", "Poses", "Stream", "__version__", "stream"]


def __getattr__(name: str) -> Any:
    """Loaded when first asked for: torch takes seconds, and `posestream --help` needs none."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
