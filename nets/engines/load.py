"""Picks the engine that runs a network fast, and says once what it picked.

torch      anywhere; the reference that the others are compared with; see torch.py
openvino   CPUs, the default there; bfloat16 where the CPU has it; see openvino.py
tensorrt   NVIDIA GPUs, the default there; float16; see tensorrt.py
"""

import logging
from pathlib import Path
from typing import Literal

import torch

from nets.checkpoints import Model
from nets.engines.engine import Engine, EngineName
from nets.engines.model_cache import ModelCache
from nets.engines.torch import TorchEngine

logger = logging.getLogger(__name__)


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
        engine: torch, openvino, tensorrt, or auto: tensorrt on a GPU and openvino on a CPU where
            they are installed, else torch.
        device: cpu, cuda, cuda:<index>, or auto: the first NVIDIA GPU there is, else the CPU.
        precision: fp32, bf16, fp16, or auto: fp16 on a GPU, bf16 with openvino on a CPU that has
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
    from nets.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(
        model, precision=precision, threads=threads, cache=ModelCache(cache_folder)
    )


def _check_choices(engine: str, device: str, precision: str, threads: int | None) -> None:
    if engine not in ("auto", "torch", "openvino", "tensorrt"):
        raise ValueError(f"engine must be auto, torch, openvino or tensorrt, got {engine!r}")
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ValueError(f"precision must be auto, fp32, bf16 or fp16, got {precision!r}")
    if precision == "fp16" and device == "cpu":
        raise ValueError("precision 'fp16' needs a GPU, got device='cpu'; pass precision='auto'")
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
        raise ValueError(f"engine 'tensorrt' needs a GPU, got device={device!r}; pass auto")


def _pick_engine(device: str) -> EngineName:
    if device != "cpu":
        return _pick_engine_of_gpu()
    from nets.engines.openvino import import_openvino

    try:
        import_openvino()
    except ValueError as error:
        logger.warning("engine: torch instead of openvino, which is 2 to 6 times faster: %s", error)
        return "torch"
    return "openvino"


# --- TensorRT, whose file is loaded only where it is asked for -----------------------------------


def _pick_engine_of_gpu() -> EngineName:
    from nets.engines.tensorrt import import_torch_tensorrt

    try:
        import_torch_tensorrt()
    except ValueError as error:
        logger.warning("engine: torch instead of tensorrt: %s", error)
        return "torch"
    return "tensorrt"


def _load_tensorrt(model: Model, device: str, precision: str, cache: ModelCache) -> Engine:
    from nets.engines.tensorrt import TensorRtEngine, tensorrt_compiler

    compiler = tensorrt_compiler(device)
    wanted: Literal["fp32", "fp16"] = "fp32" if precision == "fp32" else "fp16"
    return TensorRtEngine(model, device=device, precision=wanted, cache=cache, compiler=compiler)
