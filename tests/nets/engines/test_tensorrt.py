"""The tensorrt engine on a CPU: programs of torch.export stand where engines would be.

What TensorRT itself does is checked by `make check-tensorrt` (it converts) and on a GPU.
"""

import io
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines import tensorrt as tensorrt_engine
from nets.engines.export_program import ShapeRange
from nets.engines.load import load_engine
from nets.engines.model_cache import ModelCache
from nets.engines.tensorrt import BUILD_AFTER, MAX_BATCH, Compiler, Program, TensorRtEngine
from nets.engines.torch import TorchEngine
from tests.support.random_model import random_model
from tests.support.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"width": 8, "stem": 8, "blocks": 1, "bottlenecks": 1, "modules": (1, 1, 1)}
FIXED = ShapeRange.fixed((1, 64, 96))


class Exported:
    """A Compiler whose engines are exported programs; it counts, and can wait or fail."""

    def __init__(self, *, error: Exception | None = None, scale: float = 1.0) -> None:
        self.built: list[ShapeRange] = []
        self.loaded = 0
        self.runs = 0
        self.may_build = threading.Event()
        self.may_build.set()
        self._error = error
        self._scale = scale

    def compiler(self, **made_with: str) -> Compiler:
        return Compiler(self._compile, self._load, {"gpu": "none"} | made_with)

    def _compile(self, program: ExportedProgram, shapes: ShapeRange) -> bytes:
        assert self.may_build.wait(PATIENCE_SECONDS)
        if self._error is not None:
            raise self._error
        self.built.append(shapes)
        file = io.BytesIO()
        torch.export.save(program, file)
        return file.getvalue()

    def _load(self, payload: bytes, shapes: ShapeRange) -> Program:
        self.loaded += 1
        net = torch.export.load(io.BytesIO(payload)).module()

        def run(images: Tensor) -> list[Tensor]:
            self.runs += 1
            return [output * self._scale for output in net(images)]

        return run


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model("higher_hrnet_lite", **SMALL)


def _engine(
    model: Model,
    folder: Path,
    exported: Exported,
    *,
    shapes: ShapeRange | None = FIXED,
    **made: str,
) -> TensorRtEngine:
    return TensorRtEngine(
        model,
        device="cpu",
        precision="fp32",
        cache=ModelCache(folder),
        compiler=exported.compiler(**made),
        shapes=shapes,
    )


def _images(batch: int = 1, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def _alike(maps: Maps, expected: Maps) -> bool:
    pairs = zip((*maps.levels, maps.tags), (*expected.levels, expected.tags), strict=True)
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-4 * float(y.abs().max())) for x, y in pairs)


def test_torch_serves_while_a_program_is_built_and_then_the_program_does(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = TorchEngine(model, threads=None)(_images())
    exported = Exported()
    exported.may_build.clear()
    engine = _engine(model, tmp_path, exported)
    assert _alike(engine(_images()), expected)
    assert not engine.serves((1, 64, 96))
    exported.may_build.set()
    while not engine.serves((1, 64, 96)):  # every answer is right, whoever gives it
        assert _alike(engine(_images()), expected)
    runs = exported.runs
    assert _alike(engine(_images()), expected)
    assert exported.runs == runs + 1
    lines = [r.getMessage() for r in caplog.records if "serves 1x64x96 after" in r.getMessage()]
    assert len(lines) == 1


def test_results_belong_to_the_caller_and_carry_the_ramp(tmp_path: Path) -> None:
    model = random_model("higher_mobile", width=8)
    assert model.tag_ramp_px > 0
    exported = Exported()
    exported.may_build.clear()
    engine = _engine(model, tmp_path, exported)
    first = engine(_images())
    expected = TorchEngine(model, threads=None)(_images())
    assert _alike(first, expected)
    first.tags.add_(1)  # inference tensors would refuse
    second = engine(_images())
    assert _alike(second, expected)
    assert all(x.is_contiguous() for x in (*second.levels, second.tags))
    exported.may_build.set()
    wait_until(lambda: engine.serves((1, 64, 96)))
    assert _alike(engine(_images()), expected)


def test_a_second_start_loads_what_the_first_built(model: Model, tmp_path: Path) -> None:
    first, second = Exported(), Exported()
    _wait_for(_engine(model, tmp_path, first))
    _wait_for(_engine(model, tmp_path, second))
    assert (first.built, first.loaded) == ([FIXED], 1)
    assert (second.built, second.loaded) == ([], 1)


def _wait_for(engine: TensorRtEngine) -> None:
    wait_until(lambda: engine.serves((1, 64, 96)))


def test_two_engines_may_ask_at_once(model: Model, tmp_path: Path) -> None:
    engines = [_engine(model, tmp_path / name, Exported()) for name in ("one", "two")]
    for engine in engines:
        _wait_for(engine)


def test_another_gpu_builds_its_own(model: Model, tmp_path: Path) -> None:
    _wait_for(_engine(model, tmp_path, Exported()))
    other = Exported()
    _wait_for(_engine(model, tmp_path, other, gpu="another"))
    assert other.built == [FIXED]


def test_a_cached_engine_that_does_not_load_is_built_again(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exported = Exported()
    engine = _engine(model, tmp_path, exported, shapes=None)
    ModelCache(tmp_path).store(engine._key(FIXED), b"whole, but no engine")
    _wait_for(_engine(model, tmp_path, exported))
    assert exported.built == [FIXED]
    assert "is made again" in caplog.text


@pytest.mark.parametrize(
    ("exported", "reason"),
    [
        (Exported(error=RuntimeError("no converter for aten.foo")), "no converter for aten.foo"),
        (Exported(scale=1.5), "differs from torch"),
        (Exported(scale=float("nan")), "differs from torch"),
    ],
)
def test_a_failed_or_wrong_build_is_logged_and_torch_stays(
    model: Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    exported: Exported,
    reason: str,
) -> None:
    engine = _engine(model, tmp_path, exported)
    wait_until(lambda: "torch serves 1x64x96" in caplog.text)
    assert reason in caplog.text
    assert not engine.serves((1, 64, 96))
    assert _alike(engine(_images()), TorchEngine(model, threads=None)(_images()))
    assert not list(tmp_path.iterdir())


def test_a_shape_is_built_once_it_was_met_often(model: Model, tmp_path: Path) -> None:
    exported = Exported()
    engine = _engine(model, tmp_path, exported, shapes=None)
    for _ in range(BUILD_AFTER - 1):
        engine(_images())
    assert not _build_threads()
    engine(_images())
    _wait_for(engine)
    engine(_images())
    assert exported.built == [FIXED]


def _build_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tensorrt:")]


def test_batches_of_several_share_a_program(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "BUILD_AFTER", 2)
    exported = Exported()
    engine = _engine(model, tmp_path, exported, shapes=None)
    engine(_images(2, 64, 64))
    engine(_images(3, 64, 64))
    wait_until(lambda: engine.serves((5, 64, 64)))
    assert _alike(engine(_images(5, 64, 64)), TorchEngine(model, threads=None)(_images(5, 64, 64)))
    assert [str(shapes) for shapes in exported.built] == [f"2..{MAX_BATCH}x64x64"]
    assert not engine.serves((1, 64, 64))
    assert not engine.serves((MAX_BATCH + 1, 64, 64))


def test_programs_are_bounded_and_the_least_used_goes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "BUILD_AFTER", 1)
    monkeypatch.setattr(tensorrt_engine, "MAX_COMPILED_SHAPES", 1)
    exported = Exported()
    engine = _engine(model, tmp_path, exported, shapes=None)
    for width in (64, 96, 64):
        engine(_images(1, 64, width))
        wait_until(lambda width=width: engine.serves((1, 64, width)))  # type: ignore[misc]
    assert not engine.serves((1, 64, 96))
    assert [str(shapes) for shapes in exported.built] == ["1x64x64", "1x64x96"]  # then the cache
    assert exported.loaded == 3


def test_half_precision_gives_float32_near_the_float32_net(model: Model, tmp_path: Path) -> None:
    exported = Exported()
    engine = TensorRtEngine(
        model,
        device="cpu",
        precision="fp16",
        cache=ModelCache(tmp_path),
        compiler=exported.compiler(),
        shapes=FIXED,
    )
    _wait_for(engine)
    maps, expected = engine(_images()), TorchEngine(model, threads=None)(_images())
    assert maps.tags.dtype == torch.float32
    assert (maps.tags - expected.tags).abs().max() < 0.1 * expected.tags.abs().max()


def test_the_key_tells_what_an_engine_depends_on(model: Model, tmp_path: Path) -> None:
    engine = _engine(model, tmp_path, Exported(), shapes=None, tensorrt="11.0")
    key = engine._key(FIXED)
    assert (key["engine"], key["precision"], key["tensorrt"]) == ("tensorrt", "fp32", "11.0")
    wider = ShapeRange((1, 64, 96), (1, 64, 96), (1, 64, 128))
    assert engine._key(wider) != key
    assert key["weights_sha256"] == model.weights_sha256


def test_wrong_images_are_refused(model: Model, tmp_path: Path) -> None:
    engine = _engine(model, tmp_path, Exported(), shapes=None)
    with pytest.raises(ValueError, match="multiples of 32"):
        engine(_images(1, 64, 80))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"engine": "tensorrt", "device": "cpu"}, "needs a GPU"),
        ({"engine": "tensorrt", "device": "cpu", "precision": "bf16"}, "fp16 or fp32"),
        ({"engine": "torch", "device": "cpu", "precision": "fp16"}, "needs a GPU"),
    ],
)
def test_choices_that_need_a_gpu_say_so(model: Model, choices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_engine(model, **choices)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_on_a_gpu_tensorrt_takes_over_and_agrees_with_torch(model: Model, tmp_path: Path) -> None:
    expected = TorchEngine(model, threads=None)(_images())
    for _ in range(2):  # built, then from the cache
        engine = load_engine(model, engine="tensorrt", device="cuda:0", cache_folder=tmp_path)
        assert isinstance(engine, TensorRtEngine)
        for _ in range(BUILD_AFTER):
            engine(_images())
        _wait_for(engine)
        maps = engine(_images())
        assert (maps.tags - expected.tags).abs().max() < 0.1 * expected.tags.abs().max()
