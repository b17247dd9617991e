"""Does every network convert to TensorRT? Builds real TensorRT-RTX engines, without a GPU.

    make check-tensorrt        sets up the environment (5 GB) and runs this file in it

Each named network of nets/ is exported and built as the tensorrt engine does it: float32 and
float16 of a fixed shape, float16 of free batch, height and width. An operation without a converter
fails; so must the last line, a network that cannot be converted, or the check checks nothing. What
an engine computes and how fast is not seen here: that takes a GPU.
"""

import argparse
import importlib.metadata
import json
import logging
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.check_tensorrt import tensorrt_on_cpu
from nets import build_net
from nets.engines.export_program import ProgramPrecision, ShapeRange, export_program, program_net
from nets.engines.tensorrt import build_engine
from nets.named import NAMED

FIXED = ShapeRange.fixed((1, 256, 192))
FREE = ShapeRange((1, 128, 128), (2, 256, 192), (8, 512, 512))
CASES: tuple[tuple[ProgramPrecision, ShapeRange], ...] = (
    ("fp32", FIXED),
    ("fp16", FIXED),
    ("fp16", FREE),
)
PACKAGES = ("torch", "torch-tensorrt-rtx", "tensorrt-rtx-cu13-libs")


class _CannotConvert(nn.Module):
    """A Bessel function, for which TensorRT has no layer."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (torch.special.bessel_j0(images),)


def main() -> int:
    """Build all, print a table and one JSON line; 1 if one does not convert."""
    options = _options()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(f"{platform.machine()}, no GPU; " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    module = tensorrt_on_cpu.torch_tensorrt()
    logging.disable(logging.CRITICAL)  # torch_tensorrt prints whole graphs when one fails
    print(f"{'network':24} {'precision':9} {'shapes':24} {'export s':>8} {'build s':>8} {'MB':>6}")
    rows = [
        _row(module, name, precision, shapes)
        for name in options.nets
        for precision, shapes in CASES
    ]
    refused = not _converts(module)
    print(f"a network that cannot be converted is {'refused' if refused else 'NOT REFUSED'}")
    failed = [row for row in rows if row["error"]]
    print(json.dumps({"check": "tensorrt", **versions, "refused": refused, "engines": rows}))
    return 1 if failed or not refused else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build TensorRT-RTX engines of all networks.")
    parser.add_argument("--nets", nargs="+", choices=NAMED, default=list(NAMED), metavar="NAME")
    return parser.parse_args()


def _row(module: Any, name: str, precision: ProgramPrecision, shapes: ShapeRange) -> dict[str, Any]:
    started = time.monotonic()
    program = export_program(program_net(build_net(name).eval(), precision), shapes)
    export_seconds = time.monotonic() - started
    started = time.monotonic()
    size, problem = 0, ""
    try:
        size = len(build_engine(module, program, shapes))
    except Exception as error:  # converters fail in many ways, and the table is to be complete
        problem = f"{type(error).__name__}: {error}"[:300]
    seconds = time.monotonic() - started
    print(
        f"{name:24} {precision:9} {shapes!s:24} {export_seconds:8.1f} {seconds:8.1f} "
        f"{size / 1e6:6.1f} {problem}",
        flush=True,
    )
    return {
        "network": name,
        "precision": precision,
        "shapes": str(shapes),
        "export_seconds": round(export_seconds, 1),
        "build_seconds": round(seconds, 1),
        "bytes": size,
        "error": problem,
    }


def _converts(module: Any) -> bool:
    """Whether the network that cannot be converted is."""
    program = torch.export.export(_CannotConvert(), (torch.zeros(1, 3, 64, 64),))
    try:
        build_engine(module, program, ShapeRange.fixed((1, 64, 64)))
    except Exception:  # of whichever kind: it was refused
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
