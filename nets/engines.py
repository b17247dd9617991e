"""What runs a network fast: torch or OpenVINO behind one call.

    images (B, 3, H, W) -> engine: net, net.maps in one graph -> tag ramp in float32 -> Maps

    torch      anywhere; the reference that the others are compared with
    openvino   CPUs, the default there; bfloat16 where the CPU has it

load_engine picks and says once what it picked. An engine knows nothing of frames, people or decode,
and the Maps it returns are the caller's: no later call writes into them.

What is cached for OpenVINO is the converted network, not the compiled one. Conversion from torch
is slow (w32: 4 s), compiling for a shape is fast (0.3 s), and a compiled model that OpenVINO has
exported takes as long to import as to compile (measured with 2026.4). So shape, precision and CPU
need not be in the key: one file serves them all.
"""

import copy
import hashlib
import logging
import sys
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from nets.aggregation import Maps, add_tag_ramp
from nets.checkpoints import Model
from nets.model_cache import ModelCache

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["fp32", "bf16"]

INPUT_MULTIPLE = 32
"""All networks here halve the picture five times and add the levels up again."""

MAX_COMPILED_SHAPES = 8
"""OpenVINO compiles for each input shape (w32: 0.1 GB and 0.3 s each); so many stay."""

_FLOAT32_LIMIT = 3e38


class Engine(Protocol):
    """A network ready to run. Any thread may call it; calls from several wait for each other."""

    name: str
    """torch or openvino."""
    precision: Precision
    """Of the arithmetic inside; Maps are float32 always."""
    device: str

    def __call__(self, images: Tensor) -> Maps:
        """Run the network.

        Args:
            images: (B, 3, H, W) float32 on the CPU, normalised as Model says; H and W multiples of
                INPUT_MULTIPLE. A contiguous tensor is read where it lies, without a copy.
        Returns:
            Maps of contiguous float32 CPU tensors, the tag ramp of the model added.
        Raises:
            ValueError: images are not of that form.
        """
        ...


def load_engine(
    model: Model,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    cache_folder: Path | None = None,
) -> Engine:
    """Make a model ready to run; the model itself is left as it is.

    Args:
        engine: torch, openvino, or auto: openvino on a CPU where it is installed, else torch.
        device: cpu, cuda, cuda:<index>, or auto: the first NVIDIA card there is, else the CPU.
        precision: fp32, bf16, or auto: bf16 with openvino on a CPU that has it, else fp32. With
            torch, bf16 rounds the heads too; with openvino heads and tags keep float32.
        threads: CPU threads; None leaves it to the engine (all physical cores). With torch the
            number holds for the whole process.
        cache_folder: where converted networks are kept; None takes the user's cache folder.
    Raises:
        ValueError: an unknown choice, one this machine cannot serve, or one not in this version.
    """
    if device == "auto":
        device = "cuda" if engine != "openvino" and torch.cuda.is_available() else "cpu"
    _check_choices(engine, device, precision, threads)
    if engine == "auto":
        engine = _pick_engine(device)
    if engine == "torch":
        return TorchEngine(model, device=device, precision=precision, threads=threads)
    if device != "cpu":
        raise ValueError(
            f"engine 'openvino' runs on the CPU, got device={device!r}; pass engine='torch'"
        )
    return OpenVinoEngine(
        model, precision=precision, threads=threads, cache=ModelCache(cache_folder)
    )


class TorchEngine:
    """PyTorch as it comes, in the memory order that its convolutions are fastest in."""

    name = "torch"

    def __init__(
        self, model: Model, *, device: str = "cpu", precision: str = "auto", threads: int | None
    ) -> None:
        self.device = device
        self.precision: Precision = "bf16" if precision == "bf16" else "fp32"
        self._tag_ramp_px = model.tag_ramp_px
        self._lock = threading.Lock()  # two calls at once would fight for the same cores
        if threads is not None:
            torch.set_num_threads(threads)
        net = copy.deepcopy(model.net).eval()  # the caller may go on training the original
        # torch's stubs know no memory_format in Module.to
        self._net = NetWithMaps(net).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        logger.info("engine: torch %s on %s", self.precision, device)

    def __call__(self, images: Tensor) -> Maps:
        _check_images(images)
        autocast = torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        with self._lock, torch.inference_mode(), autocast:
            moved = images.to(self.device, memory_format=torch.channels_last)
            outputs = [output.to("cpu", torch.float32) for output in self._net(moved)]
        # Cloned out here: callers may write into the result, which inference tensors forbid.
        outputs = [output.clone(memory_format=torch.contiguous_format) for output in outputs]
        return _maps(outputs, images, self._tag_ramp_px)


class OpenVinoEngine:
    """Intel's OpenVINO on x86 and ARM CPUs: one network, compiled for each input shape it meets."""

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
        _check_images(images)
        images = images.contiguous()
        with self._lock:
            compiled = self._compiled_for(tuple(images.shape))
            outputs = [torch.empty(shape) for shape in compiled.output_shapes]
            # OpenVINO reads and writes these very buffers: nothing is copied in or out.
            compiled.request.set_input_tensor(self._tensor(images))
            for index, output in enumerate(outputs):
                compiled.request.set_output_tensor(index, self._tensor(output))
            compiled.request.infer()  # without the GIL
        return _maps(outputs, images, self._tag_ramp_px)

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


# --- what both engines share ---------------------------------------------------------------------


class NetWithMaps(nn.Module):
    """The net and what the decode reads of it, as one graph with plain outputs: levels, tags."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net  # net.maps is not a part of nn.Module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps: Maps = self.net.maps(self.net(images))
        return (*maps.levels, maps.tags)


def _maps(outputs: list[Tensor], images: Tensor, tag_ramp_px: float) -> Maps:
    *levels, tags = outputs
    stride = images.shape[3] / tags.shape[3]
    return add_tag_ramp(Maps(tuple(levels), tags), tag_ramp_px, stride)


def _check_images(images: Tensor) -> None:
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
    if images.device.type != "cpu":
        raise ValueError(f"images must be on the CPU, got {images.device}; pass images.cpu()")


def _check_choices(engine: str, device: str, precision: str, threads: int | None) -> None:
    if engine == "tensorrt":
        raise ValueError("engine 'tensorrt' is not in this version; pass auto, torch or openvino")
    if engine not in ("auto", "torch", "openvino"):
        raise ValueError(f"engine must be auto, torch or openvino, got {engine!r}")
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, got {precision!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}; None takes all cores")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<index>, got {device!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; pass device='cpu'"
        )


def _pick_engine(device: str) -> EngineName:
    if device != "cpu":
        return "torch"
    try:
        import_openvino()
    except ValueError as error:
        logger.warning("engine: torch instead of openvino, which is 2 to 6 times faster: %s", error)
        return "torch"
    return "openvino"


# --- OpenVINO ------------------------------------------------------------------------------------


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
    """All that a converted network depends on; the code in nets/ makes both net and conversion."""
    code = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        code.update(source.read_bytes())
    return {
        "name": model.name,
        "engine": "openvino",
        "weights_sha256": model.weights_sha256,
        "settings": repr(getattr(model.net, "settings", "")),
        "structure_sha256": hashlib.sha256(repr(model.net).encode()).hexdigest(),
        "code_sha256": code.hexdigest(),
        "openvino": openvino_version,
        "torch": torch.__version__,
    }


def _convert(openvino: Any, net: nn.Module) -> Any:
    """Trace the net with torch. Sizes stay free; _check_conversion proves that they did."""
    # A copy, for the network must not share memory with weights that may change.
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
