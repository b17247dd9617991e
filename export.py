#!/usr/bin/env python3
"""Weights into other files: our safetensors, ONNX, OpenVINO IR; each with a model card beside it.

Everything is written and checked in a folder beside the target and only then moved to its place,
so a failed export leaves nothing behind and an older file as it was.
"""

import argparse
import logging
import os
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.options import OptionParser

if TYPE_CHECKING:
    from nets.checkpoints import Model
    from nets.graphs import Difference, GraphSettings, Precision

EXAMPLES = """\
examples:
  export.py higher_hrnet_w32 --output w32.safetensors       published weights, by name
  export.py weights/higher_mobile.safetensors --output mobile.onnx --size 288x512
  export.py weights/higher_mobile.safetensors --output mobile.xml --dynamic --precision fp16
  export.py movenet-multipose.json --output start.safetensors    where a training starts from

exit codes: 0 done, 1 the written file is wrong and was removed, 2 bad input
"""
SUFFIXES = (".safetensors", ".onnx", ".xml")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    from common.redaction import hide_arguments

    hide_arguments()  # the weights may be a URL with a password
    logging.basicConfig(format="%(message)s")
    logging.getLogger("nets.zoo.download").setLevel(logging.INFO)  # it may take minutes
    try:
        _check(options)
        export(options, command=f"python export.py {shlex.join(arguments)}")
    except ValueError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("export.py: stopped", file=sys.stderr)
        return 130
    except (RuntimeError, OSError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="export.py",
        description="Write weights as safetensors, ONNX or OpenVINO IR.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "weights",
        help="a published name (python -m nets.zoo lists them), an https URL, or a file: ours "
        "(.safetensors), official .pth, mmpose, MoveNet MultiPose (.json)",
    )
    add("--output", type=Path, required=True, metavar="FILE", help=f"{' or '.join(SUFFIXES)}")
    add("--name", metavar="NET", help="the net's name, where the file does not tell it")
    add(
        "--precision",
        choices=("fp16", "fp32"),
        help="of the stored weights; default: fp16 in .safetensors, else fp32",
    )
    add = parser.add_argument_group("for .onnx and .xml").add_argument
    add("--size", metavar="HxW", help="network input; default: a square of the weights' short side")
    add("--dynamic", action="store_true", help="any height and width that are multiples of 32")
    add("--batch", action="store_true", help="any batch size; default: 1")
    add("--opset", type=int, metavar="N", help="version of ONNX's operators; default 17")
    return parser


def _check(options: argparse.Namespace) -> None:
    """What argparse cannot tell, before anything is loaded."""
    output: Path = options.output
    if output.suffix not in SUFFIXES:
        raise ValueError(f"--output must end in {', '.join(SUFFIXES)}, got {output}")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} for --output; make it first")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file")
    weights = Path(options.weights)
    if output.exists() and weights.exists() and output.samefile(weights):
        raise ValueError(f"--output is the weights file {output} itself; give it another name")
    graph_only = {"--size": options.size, "--dynamic": options.dynamic, "--batch": options.batch}
    given = [name for name, value in graph_only.items() if value]
    if output.suffix == ".safetensors" and given:
        raise ValueError(f"{', '.join(given)} belongs to .onnx and .xml, not to {output.name}")
    if output.suffix != ".onnx" and options.opset is not None:
        raise ValueError(f"--opset belongs to .onnx, not to {output.name}")
    if options.size and options.dynamic:
        raise ValueError("--size and --dynamic exclude each other; give one of them")


def export(options: argparse.Namespace, *, command: str) -> None:
    """Load, write, check, describe, move into place."""
    output: Path = options.output
    model = _load(options.weights, options.name)
    settings = _graph_settings(options, model)
    # In the target's own folder, for a move between disks would not be atomic.
    with _folder_beside(output) as folder:
        written = Path(folder) / output.name
        facts, differences = _write(written, model, settings)
        for difference in differences:
            print(
                f"{difference.name}: differs from torch by at most {difference.largest:.2g} "
                f"(its largest value is {difference.scale:.3g})"
            )
        _write_card(
            _card_of(written),
            model=model,
            settings=settings,
            options=options,
            facts=facts,
            command=command,
        )
        # The file that was asked for comes last: whoever waits for it finds the others there.
        os.replace(_card_of(written), _card_of(output))
        for suffix in (".bin", output.suffix):
            if written.with_suffix(suffix).exists():
                os.replace(written.with_suffix(suffix), output.with_suffix(suffix))
    print(f"{output}: {model.name}, {model.skeleton.name}, {settings.precision}; card beside it")


def _folder_beside(output: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-")
    except OSError as error:
        raise ValueError(
            f"nothing can be written in {output.parent}: {error.strerror}; give --output another "
            "folder"
        ) from None


def _card_of(file: Path) -> Path:
    """With the file's whole name: net.onnx and net.xml are described each by its own."""
    return file.with_name(f"{file.name}.md")


def _load(weights: str, name: str | None) -> "Model":
    # Imported here so that --help answers at once.
    from nets.checkpoints import load_model
    from nets.movenet import NET, load_movenet

    if not weights.endswith(".json"):
        return load_model(weights, name=name)
    if name not in (None, NET):
        raise ValueError(f"{weights} can only become {NET}, got --name {name}")
    return load_movenet(Path(weights))


def _graph_settings(options: argparse.Namespace, model: "Model") -> "GraphSettings":
    from nets.graphs import GraphSettings

    size: tuple[int, int] | None = (model.input_size, model.input_size)
    if options.size:
        height, _, width = options.size.lower().partition("x")
        if not (height.isdecimal() and width.isdecimal()):
            raise ValueError(f"--size must be HxW, for example 288x512, got {options.size}")
        size = (int(height), int(width))
    precision: Precision = "fp16" if options.output.suffix == ".safetensors" else "fp32"
    return GraphSettings(
        size=None if options.dynamic else size,
        any_batch=options.batch,
        opset=GraphSettings.opset if options.opset is None else options.opset,
        precision=options.precision or precision,
    )


def _write(
    path: Path, model: "Model", settings: "GraphSettings"
) -> tuple[dict[str, str], tuple["Difference", ...]]:
    """Write and check a file: rows for its card, and how far it is from torch."""
    import torch

    from nets import graphs
    from nets.checkpoints import load_model, save_model

    stored = f"{settings.precision} weights"
    if path.suffix == ".safetensors":
        dtype = torch.float16 if settings.precision == "fp16" else torch.float32
        save_model(path, model, dtype=dtype)
        again = load_model(path)
        facts = {"format": f"safetensors, {stored}; the header holds all settings"}
        # Told, not judged: here only the rounding to float16 can differ, which was asked for.
        return facts, graphs.compare_with_torch(
            model, lambda images: graphs.torch_outputs(again, images), settings
        )
    if path.suffix == ".onnx":
        save = graphs.save_onnx
        facts = {"format": f"ONNX, opset {settings.opset}, {stored}"}
    else:
        save = graphs.save_openvino
        facts = {"format": f"OpenVINO IR (.xml and .bin), {stored}"}
    # In float32 first: the rounding to float16 must not hide a wrong graph.
    precisions: tuple[graphs.Precision, ...] = ("fp32", "fp16")
    for precision in precisions[: precisions.index(settings.precision) + 1]:
        step = replace(settings, precision=precision)
        save(path, model, step)
        differences = graphs.compare_with_torch(model, graphs.openvino_runner(path), step)
        graphs.check_differences(differences, precision)
    return facts, differences


def _write_card(
    path: Path,
    *,
    model: "Model",
    settings: "GraphSettings",
    options: argparse.Namespace,
    facts: dict[str, str],
    command: str,
) -> None:
    from nets.model_card import model_card
    from nets.zoo.weights_files import shown_weights

    graph = options.output.suffix != ".safetensors"
    size = settings.size if graph else None
    sides = "H and W any multiples of 32" if size is None else f"H = {size[0]} and W = {size[1]}"
    batch = "any B" if settings.any_batch or not graph else "B = 1"
    card = model_card(
        model,
        file=options.output.name,
        source=shown_weights(options.weights),
        sizes=f"{batch}, {sides}",
        facts=facts,
        command=command.replace(options.weights, shown_weights(options.weights)),
    )
    path.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
