"""A model as a graph that other runtimes read: ONNX, and through it OpenVINO's IR.

    model -> net and net.maps in one graph -> ONNX -> file -> OpenVINO reads it -> same as torch?
                                               `-> OpenVINO -> .xml + .bin ----'

The graph ends where the stream's decode begins: a pyramid of heatmaps and the tags. A tag ramp
(nets.aggregation.tag_ramp) is not inside because it needs float32 whatever the runtime computes in.

torch.onnx has two exporters. This file uses the older one, which traces: with torch 2.13 the graphs
of both agree with torch equally well; the newer one also needs onnxscript, takes 2.5 to 25 times as
long (a w32 of 8 channels: 41 s against 14 s on two busy cores) and writes slightly larger files.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nets.checkpoints import Model
from nets.engines.engine import INPUT_MULTIPLE, NetWithMaps
from nets.engines.openvino import import_openvino

INPUT_NAME = "images"
OPSETS = (13, 20)
"""The lowest and the highest version of ONNX's operators that are offered: OpenVINO reads all of
them, torch's tracing exporter ends at 20."""

Precision = Literal["fp32", "fp16"]

_LIMITS: dict[str, float] = {"fp32": 1e-3, "fp16": 0.2}
"""How much an output may differ from torch, relative to its largest absolute value. Of float32 a
random w32 differs by 1e-4 and of float16 by up to 0.09, all of it rounding; trained weights that
are float16 already (higher_mobile) differ by 2e-5."""


@dataclass(frozen=True)
class GraphSettings:
    """What a graph is fixed to."""

    size: tuple[int, int] | None
    """(H, W) of the network input, multiples of 32; None: any such size."""
    any_batch: bool = False
    """Whether the batch size stays open; else it is 1."""
    opset: int = 17
    precision: Precision = "fp32"
    """In which the weights are stored. What is computed in is the runtime's own choice."""

    def __post_init__(self) -> None:
        lowest, highest = OPSETS
        if not lowest <= self.opset <= highest:
            raise ValueError(f"opset must be {lowest} to {highest}, got {self.opset}")
        sides = self.size or (INPUT_MULTIPLE,)
        if any(side < INPUT_MULTIPLE or side % INPUT_MULTIPLE for side in sides):
            raise ValueError(
                f"both sides of the network input must be multiples of {INPUT_MULTIPLE}, "
                f"got {self.size}"
            )


class Difference(NamedTuple):
    """How far one output lies from torch's."""

    name: str
    largest: float
    """Largest absolute difference."""
    scale: float
    """Largest absolute value of torch's output."""


def output_strides(model: Model) -> dict[str, int]:
    """Name and stride of every output, in their order.

    heatmaps_<stride> are (B, K, H / stride, W / stride) from low to high resolution, the last,
    tags, is (B, K, H / 4, W / 4, T); a stride is network-input pixels in a pixel of the map.
    """
    side = 2 * INPUT_MULTIPLE
    *levels, tags = torch_outputs(model, torch.zeros(1, 3, side, side))
    strides = [side // level.shape[-1] for level in levels]
    return {f"heatmaps_{stride}": stride for stride in strides} | {"tags": side // tags.shape[3]}


def torch_outputs(model: Model, images: Tensor) -> tuple[Tensor, ...]:
    """The outputs in torch, float32: what a graph of the model has to give."""
    with torch.inference_mode():
        outputs: tuple[Tensor, ...] = NetWithMaps(model.net).eval()(images)
    return outputs


# --- writing -------------------------------------------------------------------------------------


def save_onnx(path: Path, model: Model, settings: GraphSettings) -> None:
    """Write a model as ONNX.

    Raises:
        ValueError: the onnx package is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ValueError(
            f"onnx cannot be imported ({error}); install it with: pip install onnx"
        ) from error
    graph = onnx.load_from_string(_onnx_graph(model, settings))
    if settings.precision == "fp16":
        _store_as_float16(onnx, graph)
    onnx.helper.set_model_props(graph, _properties(model))
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString())


def save_openvino(path: Path, model: Model, settings: GraphSettings) -> None:
    """Write a model as OpenVINO IR: `path` (.xml) and the weights beside it (.bin)."""
    openvino = import_openvino()
    network = openvino.Core().read_model(_onnx_graph(model, settings))
    for port, output in zip(network.outputs, output_strides(model), strict=True):
        port.get_tensor().set_names({output})  # its reader may add the name of an inner node
    for name, text in _properties(model).items():
        network.set_rt_info(text, ["posestream", name])
    openvino.save_model(network, path, compress_to_fp16=settings.precision == "fp16")


def _onnx_graph(model: Model, settings: GraphSettings) -> bytes:
    net = NetWithMaps(model.net).eval().requires_grad_(False)
    names = list(output_strides(model))
    open_axes = {0: "batch"} if settings.any_batch else {}
    if settings.size is None:
        open_axes |= {2: "height", 3: "width"}
    # An open size is traced at a small one that is not square; compare_with_torch then takes
    # another, so that a size which tracing froze does not stay unnoticed.
    size = settings.size or (2 * INPUT_MULTIPLE, 3 * INPUT_MULTIPLE)
    with tempfile.TemporaryDirectory(prefix="posestream-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # see the top of this file
        # A Slice with steps is left to the runtime: no loss, it cuts up single numbers.
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            net,
            (torch.zeros(1, 3, *size),),
            path,
            dynamo=False,
            opset_version=settings.opset,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_axes={name: dict(open_axes) for name in (INPUT_NAME, *names)},
        )
        return path.read_bytes()


def _store_as_float16(onnx: Any, model: Any) -> None:
    """Store weights in half the space, with a cast to float32 behind each.

    Biases stay: they are small, and some runtimes want them as plain constants.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(weight).astype("float16")
        name = weight.name
        weight.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}.float16"))
        casts.append(
            onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]  # a node may read only what stands before it
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _properties(model: Model) -> dict[str, str]:
    """What a program that reads the graph must know, as text inside the file."""
    return {
        "net": model.name,
        "skeleton": model.skeleton.name,
        "mean": ", ".join(map(str, model.mean)),
        "std": ", ".join(map(str, model.std)),
        "input_size": str(model.input_size),
        "tag_ramp_px": str(model.tag_ramp_px),
    }


# --- checking ------------------------------------------------------------------------------------


def compare_with_torch(
    model: Model, run: Callable[[Tensor], Sequence[Tensor]], settings: GraphSettings
) -> tuple[Difference, ...]:
    """Run noise through a written file and through torch.

    Args:
        run: pictures (B, 3, H, W) -> the file's outputs: see openvino_runner.
        settings: what the file was written with; an open size is tried at one that was not traced,
            an open batch with two pictures.
    Raises:
        RuntimeError: an output is of another shape.
    """
    size = settings.size or (6 * INPUT_MULTIPLE, 4 * INPUT_MULTIPLE)
    batch = 2 if settings.any_batch else 1
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    return tuple(
        _difference(name, output, reference)
        for name, output, reference in zip(
            output_strides(model), run(images), torch_outputs(model, images), strict=True
        )
    )


def check_differences(differences: Sequence[Difference], precision: Precision) -> None:
    """Raise RuntimeError where a graph differs from torch by more than its precision explains."""
    limit = _LIMITS[precision]
    wrong = [d for d in differences if not d.largest <= limit * d.scale]  # NaN is wrong, too
    if wrong:
        remedy = "; try --precision fp32" if precision == "fp16" else ""
        raise RuntimeError(
            "the written graph differs from torch: "
            + ", ".join(f"{d.name} by {d.largest:.3g} of {d.scale:.3g}" for d in wrong)
            + f"; at most {limit:g} of that is allowed with {precision}{remedy}"
        )


def _difference(name: str, output: Tensor, reference: Tensor) -> Difference:
    if output.shape != reference.shape:
        raise RuntimeError(
            f"{name} of the written file is {tuple(output.shape)}, torch's is "
            f"{tuple(reference.shape)}"
        )
    largest = (output - reference).abs().max().item()
    return Difference(name, largest, reference.abs().max().item())


def openvino_runner(path: str | os.PathLike[str]) -> Callable[[Tensor], list[Tensor]]:
    """What runs an ONNX or IR file in float32 on this CPU."""
    core = import_openvino().Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Tensor) -> list[Tensor]:
        outputs = compiled([images.numpy()])
        return [torch.from_numpy(outputs[port].copy()) for port in compiled.outputs]

    return run
