"""What runs a network fast: torch, OpenVINO or TensorRT behind one call.

    images (B, 3, H, W) -> engine: net, net.maps in one graph -> tag ramp in float32 -> Maps

    torch      anywhere; the reference that the others are compared with
    openvino   CPUs, the default there; bfloat16 where the CPU has it; see openvino_engine.py
    tensorrt   NVIDIA cards, the default there; float16; see tensorrt_engine.py

load_engine picks and says once what it picked. An engine knows nothing of frames, people or decode,
and the Maps it returns are the caller's: no later call writes into them.
"""

import copy
import hashlib
import logging
import threading
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from nets.aggregation import Maps, add_tag_ramp
from nets.checkpoints import Model
from nets.half_precision import half_copy
from nets.model_cache import ModelCache

logger = logging.getLogger(__name__)

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
            added. On a card they are queued on the caller's current stream, not waited for.
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
        engine: torch, openvino, tensorrt, or auto: tensorrt on a card and openvino on a CPU where
            they are installed, else torch.
        device: cpu, cuda, cuda:<index>, or auto: the first NVIDIA card there is, else the CPU.
        precision: fp32, bf16, fp16, or auto: fp16 on a card, bf16 with openvino on a CPU that has
            it, else fp32. Heads and tags keep float32, except with torch in bf16.
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
    if precision == "auto" and device != "cpu":
        precision = "fp16"
    if engine == "torch":
        return TorchEngine(model, device=device, precision=precision, threads=threads)
    if engine == "tensorrt":
        return _load_tensorrt(model, device, precision, ModelCache(cache_folder))
    if device != "cpu":
        raise ValueError(
            f"engine 'openvino' runs on the CPU, got device={device!r}; pass engine='torch'"
        )
    from nets.openvino_engine import OpenVinoEngine

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
        self.precision: Precision = (
            "bf16" if precision == "bf16" else "fp16" if precision == "fp16" else "fp32"
        )
        self._tag_ramp_px = model.tag_ramp_px
        self._lock = threading.Lock()  # two calls at once would fight for the same cores
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        if threads is not None:
            torch.set_num_threads(threads)
        # A copy: the caller may go on training the original.
        net = half_copy(model.net) if precision == "fp16" else copy.deepcopy(model.net).eval()
        # torch's stubs know no memory_format in Module.to
        self._net = NetWithMaps(net).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        logger.info("engine: torch %s on %s", self.precision, device)

    def __call__(self, images: Tensor) -> Maps:
        check_images(images, self.device)
        autocast = torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        with self._lock, torch.inference_mode(), autocast:
            moved = images.to(self.device, self._dtype, memory_format=torch.channels_last)
            outputs = [output.to(images.device, torch.float32) for output in self._net(moved)]
        # Cloned out here: callers may write into the result, which inference tensors forbid.
        outputs = [output.clone(memory_format=torch.contiguous_format) for output in outputs]
        return maps_of_outputs(outputs, images, self._tag_ramp_px)


# --- what the engines share -----------------------------------------------------------------------


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
    for source in sorted(Path(__file__).parent.glob("*.py")):
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


def _check_choices(engine: str, device: str, precision: str, threads: int | None) -> None:
    if engine not in ("auto", "torch", "openvino", "tensorrt"):
        raise ValueError(f"engine must be auto, torch, openvino or tensorrt, got {engine!r}")
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ValueError(f"precision must be auto, fp32, bf16 or fp16, got {precision!r}")
    if precision == "fp16" and device == "cpu":
        raise ValueError("precision 'fp16' needs a card, got device='cpu'; pass precision='auto'")
    if engine == "tensorrt" and precision == "bf16":
        raise ValueError("engine 'tensorrt' runs fp16 or fp32, got precision='bf16'")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}; None takes all cores")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<index>, got {device!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; ask for cpu or auto"
        )
    if engine == "tensorrt" and kind != "cuda":
        raise ValueError(f"engine 'tensorrt' needs a card, got device={device!r}; pass auto")


def _pick_engine(device: str) -> EngineName:
    if device != "cpu":
        return _pick_engine_of_card()
    from nets.openvino_engine import import_openvino

    try:
        import_openvino()
    except ValueError as error:
        logger.warning("engine: torch instead of openvino, which is 2 to 6 times faster: %s", error)
        return "torch"
    return "openvino"


# --- TensorRT, whose file is loaded only where it is asked for -----------------------------------


def _pick_engine_of_card() -> EngineName:
    from nets.tensorrt_engine import import_torch_tensorrt

    try:
        import_torch_tensorrt()
    except ValueError as error:
        logger.warning("engine: torch instead of tensorrt: %s", error)
        return "torch"
    return "tensorrt"


def _load_tensorrt(model: Model, device: str, precision: str, cache: ModelCache) -> Engine:
    from nets.tensorrt_engine import TensorRtEngine, tensorrt_compiler

    compiler = tensorrt_compiler(device)
    wanted: Literal["fp32", "fp16"] = "fp32" if precision == "fp32" else "fp16"
    return TensorRtEngine(model, device=device, precision=wanted, cache=cache, compiler=compiler)
