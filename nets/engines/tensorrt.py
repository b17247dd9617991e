"""TensorRT on an NVIDIA GPU, with torch serving until an engine is ready.

    images -> is there a program for this shape? -- yes --> TensorRT --.
                       | no                                            +--> Maps
                       '--> torch, the same half-precision net --------'
                       '--> build thread: cached engine, or export and build -> check -> swap in

Building takes up to minutes, so it never makes a frame wait. A shape gets its program once it was
met BUILD_AFTER times: batches of one picture a fixed shape, replayed as a CUDA graph; larger
batches share one program with a free batch size. A build that fails is logged, and torch stays.

What needs a GPU is in tensorrt_compiler alone; all else also runs on a CPU, with programs of
torch.export in the place of engines.
"""

import contextlib
import logging
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines.engine import (
    MAX_COMPILED_SHAPES,
    Precision,
    check_images,
    maps_of_outputs,
    model_key,
)
from nets.engines.export_program import (
    INPUT_DTYPE,
    INPUT_NAME,
    ProgramPrecision,
    Shape,
    ShapeRange,
    export_program,
    program_net,
)
from nets.engines.model_cache import ModelCache

logger = logging.getLogger(__name__)

BUILD_AFTER = 8
"""Calls with a shape before a program is built for it: a folder of pictures builds nothing."""

MAX_BATCH = 16
"""Largest batch of a program: 8 frames, twice with the flip test. Torch serves larger ones."""

_LIMITS: dict[str, float] = {"fp32": 1e-2, "fp16": 0.2}
"""How far an output may lie from torch's, relative to its largest value. Of float16 a random w32
differs by up to 0.09 from float32 (nets.graphs); float32 engines multiply in TF32."""

_building = threading.Lock()
"""One build at a time in the process, whatever its engine: torch.export keeps state of its own that
two exports at once destroy for each other. Calls of nets beside one export are fine."""

Program = Callable[[Tensor], Sequence[Tensor]]
"""Pictures (B, 3, H, W) on the device, in INPUT_DTYPE -> levels and tags, float32, there."""


@dataclass(frozen=True)
class Compiler:
    """What makes an engine of an exported program, and runs it."""

    compile_program: Callable[[ExportedProgram, ShapeRange], bytes]
    """The engine as bytes that another process on the same machine can load."""
    load_program: Callable[[bytes, ShapeRange], Program]
    made_with: Mapping[str, str]
    """GPU and versions: with others, an engine has to be built again."""


class TensorRtEngine:
    """See nets.engines.load.Engine. On a GPU, everything runs on `stream`."""

    name = "tensorrt"

    def __init__(
        self,
        model: Model,
        *,
        device: str,
        precision: ProgramPrecision,
        cache: ModelCache,
        compiler: Compiler,
        shapes: ShapeRange | None = None,
    ) -> None:
        """
        Args:
            shapes: one program for all these shapes, prepared at once; torch serves all others.
                None: a program for each picture size that is met often.
        """
        self.device = device
        self.precision: Precision = precision
        self.stream = torch.cuda.Stream(device) if device != "cpu" else None  # type: ignore[no-untyped-call]
        self._precision = precision
        self._model = model
        self._cache = cache
        self._compiler = compiler
        self._shapes = shapes
        self._programs: OrderedDict[ShapeRange, Program] = OrderedDict()
        self._met: dict[ShapeRange, int] = {}
        self._lock = threading.Lock()  # a program runs one call at a time
        net = program_net(model.net, precision)
        # torch's stubs know no memory_format in Module.to
        self._torch_net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        logger.info("engine: tensorrt %s on %s; torch serves until it is built", precision, device)
        if shapes is not None:
            self._prepare_in_background(shapes)

    def __call__(self, images: Tensor) -> Maps:
        check_images(images, self.device)
        if self.stream is not None and images.device.type != "cpu":
            return self._behind_the_caller(images, self.stream)
        with self._on_stream():
            maps = self._run(images.to(self.device))
            # Copied out here: callers may write into the result, which inference tensors forbid.
            levels = tuple(level.to("cpu", copy=True) for level in maps.levels)
            return Maps(levels, maps.tags.to("cpu", copy=True))

    def _behind_the_caller(self, images: Tensor, stream: torch.cuda.Stream) -> Maps:
        """Everything runs on the engine's one stream: a program has one set of buffers. But the
        caller sees its own stream's order. The host waits for nothing."""
        caller = torch.cuda.current_stream(images.device)
        stream.wait_stream(caller)
        maps = self._run(images)
        caller.wait_stream(stream)
        # torch must not hand out this memory again before the other stream has read it.
        images.record_stream(stream)
        for tensor in (*maps.levels, maps.tags):
            tensor.record_stream(caller)
        return maps

    def _run(self, images: Tensor) -> Maps:
        batch, _, height, width = images.shape
        with self._lock, self._on_stream(), torch.inference_mode():
            program = self._program_for((batch, height, width))
            outputs = list(program(images.to(INPUT_DTYPE[self._precision])))
            return maps_of_outputs(outputs, images, self._model.tag_ramp_px)

    def serves(self, shape: Shape) -> bool:
        """Whether TensorRT, not torch, runs this shape (B, H, W) by now."""
        shapes = self._shapes_of(shape)
        with self._lock:
            return shapes in self._programs

    def _on_stream(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _shapes_of(self, shape: Shape) -> ShapeRange | None:
        """The shapes whose program runs this one; None: torch does."""
        if self._shapes is not None:
            return self._shapes if self._shapes.holds(shape) else None
        batch, height, width = shape
        if batch == 1:
            return ShapeRange.fixed(shape)
        many = ShapeRange(
            (2, height, width), (MAX_BATCH // 2, height, width), (MAX_BATCH, height, width)
        )
        return many if many.holds(shape) else None

    def _program_for(self, shape: Shape) -> Program:
        shapes = self._shapes_of(shape)
        if shapes is None:
            return self._run_torch
        if shapes in self._programs:
            self._programs.move_to_end(shapes)
            return self._programs[shapes]
        self._met[shapes] = self._met.get(shapes, 0) + 1
        if self._met[shapes] == BUILD_AFTER and self._shapes is None:
            self._prepare_in_background(shapes)
        return self._run_torch

    def _run_torch(self, images: Tensor) -> Sequence[Tensor]:
        moved = images.contiguous(memory_format=torch.channels_last)
        return [output.contiguous() for output in self._torch_net(moved)]

    # --- in the build thread -----------------------------------------------------------------

    def _prepare_in_background(self, shapes: ShapeRange) -> None:
        # A daemon: Ctrl-C does not wait for a build.
        threading.Thread(
            target=self._prepare, args=(shapes,), name=f"tensorrt:{shapes}", daemon=True
        ).start()

    def _prepare(self, shapes: ShapeRange) -> None:
        """Get a program ready and swap it in; the next call with such a shape runs it."""
        try:
            with _building:
                self._swap_in(shapes)
        # Whatever the exporter, the converters or the builder raise: torch takes over.
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:500]}"
            logger.warning("engine: torch serves %s, tensorrt failed: %s", shapes, reason)

    def _swap_in(self, shapes: ShapeRange) -> None:
        started = time.monotonic()
        key = self._key(shapes)
        program = self._cached_program(shapes, key)
        if program is None:
            payload = self._built(shapes)
            program = self._checked(self._compiler.load_program(payload, shapes), shapes)
            self._cache.store(key, payload)
        seconds = time.monotonic() - started
        logger.info("engine: tensorrt %s serves %s after %.1f s", self.precision, shapes, seconds)
        self._publish(program, shapes)  # last: who sees it serve finds it cached and logged, too

    def _cached_program(self, shapes: ShapeRange, key: Mapping[str, str]) -> Program | None:
        payload = self._cache.load(key)
        if payload is None:
            return None
        try:
            return self._checked(self._compiler.load_program(payload, shapes), shapes)
        except Exception as error:  # TensorRT refuses an engine with errors of many kinds
            logger.warning("cached engine %s is made again: %s", self._cache.path(key), error)
            self._cache.discard(key)
            return None

    def _built(self, shapes: ShapeRange) -> bytes:
        logger.info("engine: building tensorrt %s for %s", self.precision, shapes)
        # On a stream of its own, so that no frame waits for what the builder queues.
        own = torch.cuda.Stream(self.device) if self.stream is not None else None  # type: ignore[no-untyped-call]
        with contextlib.nullcontext() if own is None else torch.cuda.stream(own):
            net = program_net(self._model.net, self._precision).to(self.device)
            return self._compiler.compile_program(export_program(net, shapes), shapes)

    def _checked(self, program: Program, shapes: ShapeRange) -> Program:
        """The program, compared with torch on noise.

        Under the lock: the first runs load kernels and record the CUDA graph, and CUDA does not
        allow another thread to allocate while a graph is recorded.
        """
        batch, height, width = shapes.usual
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(batch, 3, height, width, generator=generator)
        with self._lock, self._on_stream(), torch.inference_mode():
            images = noise.to(self.device, INPUT_DTYPE[self._precision])
            program(images)
            outputs, expected = program(images), self._run_torch(images)
            _check_outputs(outputs, expected, limit=_LIMITS[self.precision])
        return program

    def _publish(self, program: Program, shapes: ShapeRange) -> None:
        """From here on the program serves."""
        with self._lock:
            self._programs[shapes] = program
            if len(self._programs) > MAX_COMPILED_SHAPES:
                dropped, _ = self._programs.popitem(last=False)
                self._met.pop(dropped, None)  # it may come again, from the cache

    def _key(self, shapes: ShapeRange) -> dict[str, str]:
        own = {
            "precision": self.precision,
            "smallest": str(shapes.smallest),
            "usual": str(shapes.usual),
            "largest": str(shapes.largest),
        }
        return model_key(self._model, "tensorrt") | own | dict(self._compiler.made_with)


def _check_outputs(outputs: Sequence[Tensor], expected: Sequence[Tensor], *, limit: float) -> None:
    """Raise RuntimeError where a program differs from torch by more than rounding."""
    for index, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
        if output.shape != reference.shape or output.dtype != reference.dtype:
            raise RuntimeError(
                f"output {index} is {tuple(output.shape)} {output.dtype}, "
                f"torch's is {tuple(reference.shape)} {reference.dtype}"
            )
        difference = (output - reference).abs().max().item()
        largest = reference.abs().max().item()
        if not difference <= limit * largest:  # NaN is wrong, too
            raise RuntimeError(
                f"output {index} differs from torch by {difference:.3g} of {largest:.3g}; "
                f"at most {limit:g} of that is allowed"
            )


# --- what needs a GPU ---------------------------------------------------------------------------


def import_torch_tensorrt() -> Any:
    """The torch_tensorrt module.

    Raises:
        ValueError: it is missing, or does not fit this torch or this GPU's libraries.
    """
    try:
        import torch_tensorrt
    except (ImportError, OSError, RuntimeError) as error:  # a missing library is an OSError
        raise ValueError(
            f"torch_tensorrt cannot be imported ({error}); docs/gpu.md says what to install"
        ) from error
    return torch_tensorrt


def tensorrt_compiler(device: str) -> Compiler:
    """TensorRT for that GPU, through torch_tensorrt's converters.

    Raises:
        ValueError: torch_tensorrt cannot be imported.
    """
    torch_tensorrt = import_torch_tensorrt()
    import tensorrt  # only now: torch_tensorrt says which of NVIDIA's builds that is

    index = torch.device(device).index or 0

    def compile_program(program: ExportedProgram, shapes: ShapeRange) -> bytes:
        gpu = torch_tensorrt.Device(gpu_id=index)
        with torch.cuda.device(index):
            engine = build_engine(torch_tensorrt, program, shapes, device=gpu)
        return bytes([len(program.graph_signature.user_outputs)]) + engine

    def load_program(payload: bytes, shapes: ShapeRange) -> Program:
        return _loaded(torch_tensorrt, payload[1:], shapes, outputs=payload[0], index=index)

    major, minor = torch.cuda.get_device_capability(index)
    made_with = {
        "gpu": torch.cuda.get_device_name(index),
        "compute_capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
        "tensorrt": str(tensorrt.__version__),
        "torch_tensorrt": str(torch_tensorrt.__version__),
    }
    return Compiler(compile_program, load_program, made_with)


def build_engine(
    torch_tensorrt: Any, program: ExportedProgram, shapes: ShapeRange, **settings: Any
) -> bytes:
    """The program as one TensorRT engine, whole: an operation that does not convert is an error.

    The precision is the program's: TensorRT 11 is strongly typed. torch_tensorrt's own caches stay
    out of use: nets.engines.model_cache keeps the engine, and a timing cache is trusted without a
    check.

    Args:
        settings: more of torch_tensorrt's own.
    """
    (images,) = (n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs)
    low, usual, high = (
        (batch, 3, height, width)
        for batch, height, width in (shapes.smallest, shapes.usual, shapes.largest)
    )
    sizes = {"min_shape": low, "opt_shape": usual, "max_shape": high}
    pictures = torch_tensorrt.Input(
        **({"shape": usual} if shapes.is_fixed else sizes),
        dtype=images.meta["val"].dtype,
        name=images.name,
    )
    with tempfile.TemporaryDirectory(prefix="posestream-") as folder:
        engine = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=[pictures],
            require_full_compilation=True,
            min_block_size=1,
            cache_built_engines=False,
            reuse_cached_engines=False,
            timing_cache_path=str(Path(folder) / "timings.bin"),
            **settings,
        )
    return bytes(engine)


def _loaded(
    torch_tensorrt: Any, engine: bytes, shapes: ShapeRange, *, outputs: int, index: int
) -> Program:
    settings = torch_tensorrt.dynamo.CompilationSettings(device=torch_tensorrt.Device(gpu_id=index))
    module = torch_tensorrt.dynamo.runtime.TorchTensorRTModule(
        engine,
        input_binding_names=[INPUT_NAME],
        output_binding_names=[f"output{i}" for i in range(outputs)],  # torch_tensorrt's names
        name="net",
        settings=settings,
    )
    if not shapes.is_fixed:
        return lambda images: module(images.contiguous())

    def replay(images: Tensor) -> Sequence[Tensor]:
        # Switched on for each call: the mode is global in torch_tensorrt, and a program with a free
        # batch size would record again whenever its batch changes.
        with torch_tensorrt.runtime.enable_cudagraphs(module) as recorded:
            result: Sequence[Tensor] = recorded(images.contiguous())
            return result

    return replay
