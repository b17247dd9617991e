"""OpenVINO on x86 and ARM CPUs: one network, compiled for each input shape it meets.

    torch --convert--> OpenVINO network of any size --compile--> for one shape --> run
                       (cached as a file)                        (a few stay)

What is cached is the converted network, not the compiled one. Conversion from torch is slow (w32:
4 s), compiling for a shape is fast (0.3 s), and a compiled model that OpenVINO has exported takes
as long to import as to compile (measured with 2026.4). So shape, precision and CPU need not be in
the key: one file serves them all.
"""

import copy
import logging
import sys
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines.engine import (
    INPUT_MULTIPLE,
    MAX_COMPILED_SHAPES,
    NetWithMaps,
    Precision,
    check_images,
    maps_of_outputs,
    model_key,
)
from nets.engines.model_cache import ModelCache

logger = logging.getLogger(__name__)

_FLOAT32_LIMIT = 3e38


class OpenVinoEngine:
    """See nets.engines.load.Engine."""

    name = "openvino"
    device = "cpu"

    def __init__(
        self, model: Model, *, precision: str = "auto", threads: int | None, cache: ModelCache
    ) -> None:
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        self.precision, reason = _openvino_precision(self._core, precision)
        self._settings = _compile_settings(self.precision, threads)
        self._tag_ramp_px = model.tag_ramp_px
        self._compiled: OrderedDict[tuple[int, ...], _Compiled] = OrderedDict()
        self._lock = threading.Lock()  # a request runs one call at a time
        self._network = _converted_network(self._openvino, self._core, model, cache)
        logger.info("engine: openvino %s on cpu (%s)", self.precision, reason)

    def __call__(self, images: Tensor) -> Maps:
        check_images(images, self.device)
        images = images.contiguous()
        with self._lock:
            compiled = self._compiled_for(tuple(images.shape))
            outputs = [torch.empty(shape) for shape in compiled.output_shapes]
            # OpenVINO reads and writes these very buffers: nothing is copied in or out.
            compiled.request.set_input_tensor(self._tensor(images))
            for index, output in enumerate(outputs):
                compiled.request.set_output_tensor(index, self._tensor(output))
            compiled.request.infer()  # without the GIL
        return maps_of_outputs(outputs, images, self._tag_ramp_px)

    def _tensor(self, tensor: Tensor) -> Any:
        return self._openvino.Tensor(tensor.numpy(), shared_memory=True)

    def _compiled_for(self, shape: tuple[int, ...]) -> "_Compiled":
        if shape in self._compiled:
            self._compiled.move_to_end(shape)
        else:
            self._compiled[shape] = _compile(self._core, self._network, shape, self._settings)
            if len(self._compiled) > MAX_COMPILED_SHAPES:
                self._compiled.popitem(last=False)
        return self._compiled[shape]


@dataclass(frozen=True)
class _Compiled:
    """The network compiled for one input shape."""

    request: Any
    output_shapes: tuple[tuple[int, ...], ...]


def import_openvino() -> Any:
    """The openvino module, with its telemetry off.

    Importing openvino starts a report to its makers and leaves a client number in the user's home.
    It does without where its telemetry package cannot be imported, which is what None stands for.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ValueError(
            f"openvino cannot be imported ({error}); install it with: pip install openvino"
        ) from error
    return openvino


def _openvino_precision(core: Any, precision: str) -> tuple[Precision, str]:
    """What to run in and why. bf16 without hardware for it is emulated, three times slower."""
    if precision == "fp32":
        return "fp32", "as asked"
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16":
        if not has_bf16:
            raise ValueError("this CPU has no bf16 arithmetic; pass precision='auto' or 'fp32'")
        return "bf16", "as asked"
    if has_bf16:
        return "bf16", "this CPU has bf16 arithmetic"
    return "fp32", "this CPU has no bf16 arithmetic"


def _compile_settings(precision: Precision, threads: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
        # Pinned, two streams with a part of the cores each would both sit on the first ones.
        settings["ENABLE_CPU_PINNING"] = False
    return settings


def _compile(
    core: Any, network: Any, shape: tuple[int, ...], settings: dict[str, Any]
) -> _Compiled:
    # A fixed shape runs 5 to 8 % faster than OpenVINO's dynamic shapes (w32 and lite, 512x288).
    fixed = network.clone()
    fixed.reshape(list(shape))
    compiled = core.compile_model(fixed, "CPU", settings)
    output_shapes = tuple(tuple(output.shape) for output in compiled.outputs)
    return _Compiled(compiled.create_infer_request(), output_shapes)


def _converted_network(openvino: Any, core: Any, model: Model, cache: ModelCache) -> Any:
    """The model as an OpenVINO network of any input shape, from the cache where it is there."""
    key = _cache_key(model, openvino.get_version())
    payload = cache.load(key)
    if payload is not None:
        try:
            return _network_from_payload(core, payload)
        except RuntimeError as error:
            logger.warning("cached model %s is made again: %s", cache.path(key), error)
            cache.discard(key)
    started = time.monotonic()
    logger.info("engine: converting %s for openvino, once for these weights", model.name)
    network = _convert(openvino, model.net)
    _keep_heads_float32(network)
    _check_conversion(core, network, model)
    logger.info("engine: converted in %.1f s", time.monotonic() - started)
    try:
        payload = _payload_from_network(openvino, network)
    except (OSError, RuntimeError) as error:  # OpenVINO reports a full disk as RuntimeError
        logger.warning("the converted network cannot be kept for the next start: %s", error)
    else:
        cache.store(key, payload)
    return network


def _cache_key(model: Model, openvino_version: str) -> dict[str, str]:
    return model_key(model, "openvino") | {"openvino": openvino_version}


def _convert(openvino: Any, net: nn.Module) -> Any:
    """Trace the net with torch. Sizes stay free; _check_conversion proves that they did."""
    # A copy: the network must not share memory with weights that may change.
    net_with_maps = NetWithMaps(copy.deepcopy(net)).eval().requires_grad_(False)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = net_with_maps(images)
        return outputs

    example = torch.zeros(1, 3, 2 * INPUT_MULTIPLE, 2 * INPUT_MULTIPLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # openvino reads nothing newer as well
        # Traced as a function the weights are constants and no tree of modules is built: w32 takes
        # a third of the time that openvino's own tracing of the module needs.
        traced = torch.jit.trace(run, example, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino.convert_model(traced, share_weights=False)


def _keep_heads_float32(network: Any) -> None:
    """Let the last convolutions write float32 where the rest computes in bf16.

    With the bf16 hint OpenVINO rounds all outputs to bf16. Tags near 8 are then 0.03 apart, and
    equal neighbours at the top of a heatmap become two peaks. But it leaves what follows the last
    convolutions in float32, and a convolution writes the precision of the operation that is fused
    behind it; so a clamp that changes nothing makes a head write float32 from its bf16 inputs. It
    costs 3 % at most (w32 0 %, lite and higher_mobile at 288x512 3 %).
    """
    from openvino import opset13

    for convolution in _last_convolutions(network):
        head = _with_bias(convolution)
        readers = list(head.output(0).get_target_inputs())
        clamp = opset13.clamp(head.output(0), -_FLOAT32_LIMIT, _FLOAT32_LIMIT)
        for reader in readers:
            reader.replace_source_output(clamp.output(0))
    network.validate_nodes_and_infer_types()


def _last_convolutions(network: Any) -> list[Any]:
    """The convolutions from which a path without another convolution leads to an output."""
    found: list[Any] = []
    seen: set[str] = set()
    waiting = [result.input_value(0).get_node() for result in network.get_results()]
    while waiting:
        node = waiting.pop()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if "Convolution" in node.get_type_name():
            found.append(node)
        else:
            waiting += [value.get_node() for value in node.input_values()]
    return found


def _with_bias(convolution: Any) -> Any:
    """The addition of the convolution's bias, or the convolution itself where it has none."""
    readers = list(convolution.output(0).get_target_inputs())
    reader = readers[0].get_node()
    if len(readers) > 1 or reader.get_type_name() != "Add":
        return convolution
    others = [value.get_node() for value in reader.input_values()]
    has_constant = any(other.get_type_name() == "Constant" for other in others)
    return reader if has_constant else convolution


def _check_conversion(core: Any, network: Any, model: Model) -> None:
    """Compare with torch on a shape that was not traced: tracing can freeze sizes unnoticed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 6 * INPUT_MULTIPLE, 4 * INPUT_MULTIPLE, generator=generator)
    compiled = _compile(core, network, tuple(images.shape), _compile_settings("fp32", None))
    converted = compiled.request.infer([images.numpy()])
    with torch.inference_mode():
        expected = NetWithMaps(model.net)(images)
    for index, reference in enumerate(expected):
        output = torch.from_numpy(converted[index])
        difference = (output - reference).abs().max().item()
        if not difference <= 0.01 * reference.abs().max().item():
            raise RuntimeError(
                f"openvino's conversion of {model.name} is wrong: output {index} differs from "
                f"torch by {difference:.3g}; pass engine='torch'"
            )


def _payload_from_network(openvino: Any, network: Any) -> bytes:
    """OpenVINO's two files in one: the length of the XML in 8 bytes, the XML, the weights."""
    with tempfile.TemporaryDirectory(prefix="posestream-") as folder:
        xml_path = Path(folder) / "network.xml"
        openvino.save_model(network, xml_path, compress_to_fp16=False)
        xml = xml_path.read_bytes()
        weights = xml_path.with_suffix(".bin").read_bytes()
    return len(xml).to_bytes(8, "little") + xml + weights


def _network_from_payload(core: Any, payload: bytes) -> Any:
    end = 8 + int.from_bytes(payload[:8], "little")
    return core.read_model(payload[8:end], payload[end:])
