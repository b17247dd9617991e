"""A network as a torch.export program: the graph that TensorRT's converters read.

    net -> its copy in the asked precision -> net, net.maps in one graph -> torch.export -> program

Sizes are fixed or lie in a range; a free height or width goes in steps of 32. The tag ramp stays
outside (nets.aggregation.add_tag_ramp).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from nets.engines.engine import INPUT_MULTIPLE, NetWithMaps
from nets.engines.half_precision import folded_copy, half_copy

ProgramPrecision = Literal["fp32", "fp16"]

INPUT_DTYPE: dict[ProgramPrecision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
"""What a program takes. What it gives is float32 always."""

INPUT_NAME = "images"
"""The argument of NetWithMaps.forward, which is the program's input."""

Shape = tuple[int, int, int]
"""(B, H, W) of the network input."""


@dataclass(frozen=True)
class ShapeRange:
    """The shapes (B, H, W) that a program takes; heights and widths are multiples of 32."""

    smallest: Shape
    usual: Shape
    """What an engine is tuned for."""
    largest: Shape

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.smallest, self.usual, self.largest, strict=True):
            if not 1 <= low <= middle <= high:
                raise ValueError(
                    "shapes (B, H, W) must rise from smallest to largest in every number, "
                    f"got {self.smallest}, {self.usual}, {self.largest}"
                )
        sides = [side for shape in (self.smallest, self.usual, self.largest) for side in shape[1:]]
        if any(side % INPUT_MULTIPLE for side in sides):
            raise ValueError(
                f"height and width must be multiples of {INPUT_MULTIPLE}, "
                f"got {self.smallest}, {self.usual}, {self.largest}"
            )

    @classmethod
    def fixed(cls, shape: Shape) -> "ShapeRange":
        """One shape only."""
        return cls(shape, shape, shape)

    @property
    def is_fixed(self) -> bool:
        """Whether there is one shape only."""
        return self.smallest == self.largest

    def holds(self, shape: Shape) -> bool:
        """Whether a program of this range takes that shape."""
        return all(
            low <= number <= high
            for low, number, high in zip(self.smallest, shape, self.largest, strict=True)
        ) and not any(side % INPUT_MULTIPLE for side in shape[1:])

    def __str__(self) -> str:
        """For example 2..16x256x512."""
        return "x".join(
            str(low) if low == high else f"{low}..{high}"
            for low, high in zip(self.smallest, self.largest, strict=True)
        )


def program_net(net: nn.Module, precision: ProgramPrecision) -> NetWithMaps:
    """A copy of the net for inference: INPUT_DTYPE pictures -> levels and tags, float32."""
    inner = half_copy(net) if precision == "fp16" else folded_copy(net)
    return NetWithMaps(inner).eval()


def export_program(net: NetWithMaps, shapes: ShapeRange) -> ExportedProgram:
    """Export what program_net made.

    Args:
        net: on the device that the program is for.
        shapes: a number that is the same in smallest and largest is fixed in the program.
    Returns:
        A program of one input, images (B, 3, H, W), and as many outputs as the net has levels,
        and tags.
    """
    weight = next(net.parameters())
    batch, height, width = (
        usual if low == high else max(usual, least)  # a free size is traced above 0 and 1
        for usual, low, high, least in zip(
            shapes.usual,
            shapes.smallest,
            shapes.largest,
            (2, 2 * INPUT_MULTIPLE, 2 * INPUT_MULTIPLE),
            strict=True,
        )
    )
    images = torch.zeros(batch, 3, height, width, dtype=weight.dtype, device=weight.device)
    return torch.export.export(net, (images,), dynamic_shapes={INPUT_NAME: _free_axes(shapes)})


def _free_axes(shapes: ShapeRange) -> dict[int, Any]:
    free: dict[int, Any] = {}
    low, high = shapes.smallest, shapes.largest
    if low[0] < high[0]:
        free[0] = Dim("batch", min=low[0], max=high[0])
    for axis, index, name in ((2, 1, "rows"), (3, 2, "columns")):
        if low[index] < high[index]:
            steps = Dim(name, min=low[index] // INPUT_MULTIPLE, max=high[index] // INPUT_MULTIPLE)
            free[axis] = INPUT_MULTIPLE * steps
    return free
