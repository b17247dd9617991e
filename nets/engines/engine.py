"""What an engine is, and what all engines share.

    images (B, 3, H, W) -> engine: net, net.maps in one graph -> tag ramp in float32 -> Maps

An engine knows nothing of frames, people or decode. The Maps it returns are the caller's: no later
call writes into them.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from nets.aggregation import Maps, add_tag_ramp
from nets.checkpoints import Model

EngineName = Literal["auto", "torch", "openvino", "tensorrt"]
Precision = Literal["fp32", "bf16", "fp16"]

INPUT_MULTIPLE = 32
"""All networks here halve the picture five times and add the levels up again."""

MAX_COMPILED_SHAPES = 8
"""OpenVINO compiles for each input shape (w32: 0.1 GB and 0.3 s each); so many stay."""


class Engine(Protocol):
    """A network ready to run. Any thread may call it; calls from several wait for each other."""

    name: str
    """torch, openvino or tensorrt."""
    precision: Precision
    """Of the arithmetic inside; Maps are float32 always."""
    device: str

    def __call__(self, images: Tensor) -> Maps:
        """Run the network.

        Args:
            images: (B, 3, H, W) float32, normalised as Model says, on the CPU or on `device`; H and
                W multiples of INPUT_MULTIPLE. A contiguous tensor is read where it lies.
        Returns:
            Maps of contiguous float32 tensors where the images lie, the tag ramp of the model
            added. On a GPU they are queued on the caller's current stream, not waited for.
        Raises:
            ValueError: images are not of that form.
        """
        ...


class NetWithMaps(nn.Module):
    """The net and what the decode reads of it, as one graph with plain outputs: levels, tags."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net  # net.maps is not a part of nn.Module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps: Maps = self.net.maps(self.net(images))
        return (*maps.levels, maps.tags)


def maps_of_outputs(outputs: list[Tensor], images: Tensor, tag_ramp_px: float) -> Maps:
    """What NetWithMaps gave, as Maps; the ramp is added here, in float32."""
    *levels, tags = outputs
    stride = images.shape[3] / tags.shape[3]
    return add_tag_ramp(Maps(tuple(levels), tags), tag_ramp_px, stride)


def model_key(model: Model, engine: EngineName) -> dict[str, str]:
    """What a converted network depends on, of whichever engine; nets/ makes net and conversion."""
    code = hashlib.sha256()
    for source in sorted(Path(__file__).parent.parent.rglob("*.py")):
        code.update(source.read_bytes())
    return {
        "name": model.name,
        "engine": engine,
        "weights_sha256": model.weights_sha256,
        "settings": repr(getattr(model.net, "settings", "")),
        "structure_sha256": hashlib.sha256(repr(model.net).encode()).hexdigest(),
        "code_sha256": code.hexdigest(),
        "torch": torch.__version__,
    }


def check_images(images: Tensor, device: str) -> None:
    """Raise ValueError where an engine on that device cannot take the images."""
    batch, channels, height, width = images.shape if images.ndim == 4 else (0, 0, 0, 0)
    if batch < 1 or channels != 3 or images.dtype != torch.float32:
        raise ValueError(
            "images must be (B, 3, H, W) float32 with B >= 1, "
            f"got {tuple(images.shape)} {images.dtype}"
        )
    if height < 1 or width < 1 or height % INPUT_MULTIPLE or width % INPUT_MULTIPLE:
        raise ValueError(
            f"height and width of images must be multiples of {INPUT_MULTIPLE}, "
            f"got {height} x {width}; pad them"
        )
    if images.device.type not in ("cpu", torch.device(device).type):
        raise ValueError(
            f"images must be on the CPU or on {device}, got {images.device}; pass images.cpu()"
        )
