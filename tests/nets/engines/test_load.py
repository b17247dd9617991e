"""Every engine computes what torch computes, and hands over results that stay."""

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets.aggregation import Maps
from nets.checkpoints import Model, load_model
from nets.engines import openvino as openvino_engine
from nets.engines.engine import MAX_COMPILED_SHAPES, Engine
from nets.engines.load import load_engine
from nets.engines.model_cache import ModelCache
from tests.support.places import ROOT
from tests.support.random_model import random_model
from tests.support.waiting import PATIENCE_SECONDS

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
SMALL: dict[str, Any] = {"width": 8, "blocks": 1, "bottlenecks": 1, "residual_blocks": 1}


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """These nets are tiny: a second thread waits more than it works, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def small() -> Model:
    return random_model("higher_hrnet_lite", **SMALL)


@pytest.fixture(scope="module", params=["torch", pytest.param("openvino", marks=needs_openvino)])
def small_engine(request: pytest.FixtureRequest, small: Model, cache_folder: Path) -> Engine:
    return load_engine(small, engine=request.param, precision="fp32", cache_folder=cache_folder)


def _images(batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator)


def _definition(model: Model, images: Tensor) -> Maps:
    """What an engine must compute, as plainly as can be (models without a tag ramp)."""
    net: Any = model.net
    with torch.no_grad():
        maps: Maps = net.maps(net(images))
    return maps


def _flat(maps: Maps) -> list[Tensor]:
    return [*maps.levels, maps.tags]


def _relative_error(maps: Maps, expected: Maps) -> float:
    """Largest difference of any output, in units of that output's largest value."""
    assert [x.shape for x in _flat(maps)] == [x.shape for x in _flat(expected)]
    pairs = zip(_flat(maps), _flat(expected), strict=True)
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


def _identical(maps: Maps, expected: Maps) -> bool:
    return all(torch.equal(x, y) for x, y in zip(_flat(maps), _flat(expected), strict=True))


def _plain_he_init(model: Model) -> Model:
    """The model with norms that do nothing, as the networks whose bf16 error is on record."""
    for module in model.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return replace(model, weights_sha256=model.weights_sha256 + "-plain")


def _tags_around_64(model: Model) -> Model:
    """The model with weak last convolutions and 64 added to all tags."""
    for name, module in model.net.named_modules():
        if isinstance(module, nn.Conv2d) and module.out_channels in (17, 34) and module.groups == 1:
            assert module.bias is not None
            module.weight.data *= 0.1
            if name.endswith("tags"):
                module.bias.data += 64
            elif module.out_channels == 34:  # heatmaps first, then tags
                module.bias.data[-17:] += 64
    assert _definition(model, _images(1, 64, 64)).tags.median() > 50
    return replace(model, weights_sha256=model.weights_sha256 + "-64")


def _check_outputs_are_fine_in_bf16(model: Model, cache_folder: Path) -> None:
    """Next to no number that comes out is a bf16 number; near 64 those are 1/4 or 1/2 apart."""
    if not _has_bf16():
        return  # nothing here rounds to bf16
    engine = load_engine(model, engine="openvino", precision="bf16", cache_folder=cache_folder)
    for output in _flat(engine(_images(1, 64, 96))):
        inner = output[(output != 0) & (output != 1)]  # where a sigmoid saturates
        assert inner.numel() > 0
        assert (inner == inner.bfloat16().float()).float().mean() < 0.1


def _has_bf16() -> bool:
    core = openvino_engine.import_openvino().Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# --- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 96, 160), (1, 32, 32), (3, 128, 64)])
def test_computes_what_the_net_computes(
    small_engine: Engine, small: Model, shape: tuple[int, int, int]
) -> None:
    images = _images(*shape)
    assert _relative_error(small_engine(images), _definition(small, images)) < 1e-4


@needs_openvino
@pytest.mark.parametrize("name", ["higher_mobile", "double_higher_net_lite"])
def test_every_kind_of_net_converts(name: str, cache_folder: Path) -> None:
    model = random_model(name, **({} if name == "higher_mobile" else SMALL))
    model = replace(_tags_around_64(model), tag_ramp_px=0.0)
    engine = load_engine(model, engine="openvino", precision="fp32", cache_folder=cache_folder)
    for shape in ((1, 96, 64), (2, 64, 128)):
        images = _images(*shape)
        assert _relative_error(engine(images), _definition(model, images)) < 1e-4
    _check_outputs_are_fine_in_bf16(model, cache_folder)


@needs_openvino
def test_bf16_differs_little(cache_folder: Path) -> None:
    model = _plain_he_init(random_model("higher_hrnet_lite", **SMALL | {"width": 16}))
    if not _has_bf16():
        with pytest.raises(ValueError, match="no bf16 arithmetic"):
            load_engine(model, engine="openvino", precision="bf16", cache_folder=cache_folder)
        return
    engine = load_engine(model, engine="openvino", precision="bf16", cache_folder=cache_folder)
    for shape in ((1, 128, 128), (2, 96, 160)):
        images = _images(*shape)
        pairs = zip(_flat(engine(images)), _flat(_definition(model, images)), strict=True)
        for output, expected in pairs:
            difference = (output - expected).abs().mean() / expected.std()
            assert 1e-5 < difference < 0.01  # and it is bf16 indeed
    _check_outputs_are_fine_in_bf16(model, cache_folder)


@needs_openvino
def test_the_default_weights_run_as_in_torch(cache_folder: Path) -> None:
    model = load_model(ROOT / "weights" / "higher_mobile.safetensors")
    arguments: dict[str, Any] = {"precision": "fp32", "cache_folder": cache_folder}
    images = _images(1, 96, 160)
    openvino = load_engine(model, engine="openvino", **arguments)(images)
    reference = load_engine(model, engine="torch", **arguments)(images)
    assert _relative_error(openvino, reference) < 1e-4


def test_torch_runs_in_bf16_when_asked(small: Model) -> None:
    engine = load_engine(small, engine="torch", precision="bf16")
    assert engine.precision == "bf16"
    images = _images(1, 64, 64)
    maps, expected = engine(images), _definition(small, images)
    assert 1e-4 < _relative_error(maps, expected) < 0.3
    assert all(output.dtype == torch.float32 for output in _flat(maps))


def test_threads_are_those_asked_for(small: Model) -> None:
    load_engine(small, engine="torch", threads=2)
    assert torch.get_num_threads() == 2
    load_engine(small, engine="torch", threads=1)
    assert torch.get_num_threads() == 1


@needs_openvino
def test_openvino_takes_the_threads_asked_for(small: Model, cache_folder: Path) -> None:
    engine = load_engine(small, engine="openvino", threads=1, cache_folder=cache_folder)
    assert isinstance(engine, openvino_engine.OpenVinoEngine)
    engine(_images(1, 64, 64))
    (compiled,) = engine._compiled.values()
    assert compiled.request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_a_batch_is_its_pictures(small_engine: Engine) -> None:
    images = _images(3, 64, 96)
    together = small_engine(images)
    for index in range(3):
        alone = small_engine(images[index : index + 1])
        part = Maps(
            tuple(level[index : index + 1] for level in together.levels),
            together.tags[index : index + 1],
        )
        assert _relative_error(part, alone) < 1e-5


def test_memory_order_of_the_images_does_not_matter(small_engine: Engine) -> None:
    images = _images(2, 64, 96)
    expected = small_engine(images)
    strided = torch.zeros(2, 3, 64, 192)[..., ::2].copy_(images)
    assert _identical(small_engine(strided), expected)
    assert _identical(small_engine(images.to(memory_format=torch.channels_last)), expected)


def test_the_tag_ramp_is_added_outside(
    small_engine: Engine, small: Model, cache_folder: Path
) -> None:
    images = _images(1, 64, 96)
    engine = load_engine(
        replace(small, tag_ramp_px=32.0),
        engine=small_engine.name,
        precision="fp32",
        cache_folder=cache_folder,
    )
    maps, plain = engine(images), small_engine(images)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    ramp = (x + 0.35 * y) * 4 / 32  # tags are at stride 4
    torch.testing.assert_close(maps.tags, plain.tags + ramp[:, :, None], rtol=0, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(maps.levels, plain.levels, strict=True))


# --- what callers may rely on --------------------------------------------------------------------


def test_results_stay_and_belong_to_the_caller(small_engine: Engine) -> None:
    first = small_engine(_images(1, 64, 64, seed=1))
    copies = [output.clone() for output in _flat(first)]
    second = small_engine(_images(1, 64, 64, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(_flat(first), copies, strict=True))
    assert not torch.equal(first.tags, second.tags)
    for output in _flat(second):
        assert output.is_contiguous()
        assert output.dtype == torch.float32
        assert not output.requires_grad
        output.add_(1)  # writable, and not bound to inference mode
    assert all(torch.equal(a, b) for a, b in zip(_flat(first), copies, strict=True))


def test_images_are_left_alone(small_engine: Engine) -> None:
    images = _images(1, 64, 64)
    copy = images.clone()
    small_engine(images)
    assert torch.equal(images, copy)


def test_the_model_is_left_alone(small: Model, cache_folder: Path) -> None:
    small.net.train()
    try:
        before = {name: value.clone() for name, value in small.net.state_dict().items()}
        strides = [parameter.stride() for parameter in small.net.parameters()]
        load_engine(small, engine="torch")(_images(1, 64, 64))
        assert small.net.training
        assert [parameter.stride() for parameter in small.net.parameters()] == strides
        after = small.net.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    finally:
        small.net.eval()


def test_threads_may_share_an_engine(small_engine: Engine) -> None:
    batches = [_images(1, 64, 64 + 32 * (n % 3), seed=n) for n in range(12)]
    expected = [small_engine(images) for images in batches]
    results: dict[int, Maps] = {}

    def work(first: int) -> None:
        for index in range(first, len(batches), 3):
            results[index] = small_engine(batches[index])

    workers = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE_SECONDS)
    for index, maps in enumerate(expected):
        assert _relative_error(results[index], maps) < 1e-5


def test_python_goes_on_while_an_engine_computes(small: Model, cache_folder: Path) -> None:
    engine = load_engine(small, precision="fp32", threads=1, cache_folder=cache_folder)
    images = _images(8, 256, 256)
    engine(images)
    turns = [0]
    during: list[int] = []

    def work() -> None:
        for _ in range(5):
            before = turns[0]
            engine(images)
            during.append(turns[0] - before)

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        turns[0] += 1
        time.sleep(0)
    # An engine that held the GIL would give this thread a turn or two between its own lines.
    assert max(during) > 20


@needs_openvino
def test_compiled_shapes_are_bounded(small: Model, cache_folder: Path) -> None:
    engine = load_engine(small, engine="openvino", precision="fp32", cache_folder=cache_folder)
    assert isinstance(engine, openvino_engine.OpenVinoEngine)
    first = engine(_images(1, 32, 32))
    for width in range(64, 64 + 32 * MAX_COMPILED_SHAPES, 32):
        engine(_images(1, 32, width))
    assert len(engine._compiled) == MAX_COMPILED_SHAPES
    assert (1, 3, 32, 32) not in engine._compiled
    assert _identical(engine(_images(1, 32, 32)), first)


# --- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"engine": "tensorrt", "device": "cpu"}, "needs a GPU"),
        ({"engine": "onnx"}, "auto, torch, openvino or tensorrt"),
        ({"precision": "int4"}, "auto, fp32, bf16 or fp16"),
        ({"threads": 0}, "at least 1"),
        ({"device": "tpu"}, "auto, cpu, cuda or cuda:<index>"),
        ({"device": "cuda:x"}, "auto, cpu, cuda or cuda:<index>"),
        ({"device": "cpu:1"}, "auto, cpu, cuda or cuda:<index>"),
        ({"device": "cuda:99"}, "ask for cpu or auto"),
    ],
)
def test_impossible_choices_are_named(small: Model, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_engine(small, **choice)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 64, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(0, 3, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(1, 3, 64, 60),
        torch.zeros(1, 3, 0, 64),
        torch.zeros(1, 3, 64, 64, device="meta"),
    ],
)
def test_images_of_another_form_are_refused(small_engine: Engine, images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        small_engine(images)


@needs_openvino
def test_auto_takes_openvino_and_says_so(
    small: Model, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        engine = load_engine(small, cache_folder=cache_folder)
    assert (engine.name, engine.device) == ("openvino", "cpu")
    assert engine.precision == ("bf16" if _has_bf16() else "fp32")
    assert caplog.text.count("engine: openvino") == 1


def test_auto_falls_back_to_torch_and_says_why(
    small: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # import openvino now fails
    with caplog.at_level(logging.INFO):
        engine = load_engine(small)
    assert (engine.name, engine.precision) == ("torch", "fp32")
    assert "pip install openvino" in caplog.text
    with pytest.raises(ValueError, match="pip install openvino"):
        load_engine(small, engine="openvino")


def test_bf16_is_asked_for_only_where_the_cpu_has_it() -> None:
    def core(*capabilities: str) -> SimpleNamespace:
        return SimpleNamespace(get_property=lambda device, name: list(capabilities))

    assert openvino_engine._openvino_precision(core("FP32", "BF16"), "auto")[0] == "bf16"
    assert openvino_engine._openvino_precision(core("FP32"), "auto")[0] == "fp32"
    assert openvino_engine._openvino_precision(core("FP32", "BF16"), "fp32")[0] == "fp32"
    with pytest.raises(ValueError, match="pass precision='auto'"):
        openvino_engine._openvino_precision(core("FP32"), "bf16")


# --- the cache of converted networks -------------------------------------------------------------


def _refuse(*arguments: object) -> None:
    raise AssertionError("converted again")


@pytest.fixture
def load_small(small: Model, cache_folder: Path) -> Callable[[], Engine]:
    """Loads the small model from a cache that has it."""

    def load() -> Engine:
        return load_engine(small, engine="openvino", precision="fp32", cache_folder=cache_folder)

    load()
    return load


def _entry(model: Model, cache_folder: Path) -> Path:
    key = openvino_engine._cache_key(model, openvino_engine.import_openvino().get_version())
    return ModelCache(cache_folder).path(key)


@needs_openvino
def test_the_second_start_converts_nothing(
    load_small: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(1, 64, 64)
    first = load_small()(images)
    monkeypatch.setattr(openvino_engine, "_convert", _refuse)
    assert _identical(load_small()(images), first)


@needs_openvino
def test_one_entry_serves_every_shape_and_precision(
    load_small: Callable[[], Engine], small: Model, cache_folder: Path
) -> None:
    entries = set(cache_folder.iterdir())
    load_small()(_images(2, 96, 64))
    load_engine(small, cache_folder=cache_folder)(_images(1, 64, 96))
    assert set(cache_folder.iterdir()) == entries


@needs_openvino
@pytest.mark.parametrize("content", ["flipped", "foreign"])
def test_a_bad_entry_is_rebuilt(
    load_small: Callable[[], Engine],
    small: Model,
    cache_folder: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
) -> None:
    images = _images(1, 64, 64)
    expected = load_small()(images)
    path = _entry(small, cache_folder)
    good = path.read_bytes()
    if content == "flipped":
        path.write_bytes(good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:])
    else:  # a right hash of something that is no network
        key = openvino_engine._cache_key(small, openvino_engine.import_openvino().get_version())
        ModelCache(cache_folder).store(key, b"\x08" + bytes(7) + b"not an xml file")
    assert _identical(load_small()(images), expected)
    assert caplog.text.count("made again") == 1
    assert _identical(load_small()(images), expected)
    assert caplog.text.count("made again") == 1  # the new entry was found in order


def test_the_key_holds_all_that_matters(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(model: Model = small, openvino: str = "1") -> str:
        return str(openvino_engine._cache_key(model, openvino))

    keys = {
        key(),
        key(openvino="2"),
        key(replace(small, weights_sha256="other")),
        key(replace(small, net=random_model("higher_hrnet_lite", **SMALL, deconvs=0).net)),
        key(replace(small, net=random_model("higher_hrnet_lite", **SMALL, aggregation="off").net)),
    }
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.add(key())
    assert len(keys) == 6
    assert key() == key()


@needs_openvino
def test_works_without_a_cache(
    small: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    images = _images(1, 64, 64)
    engine = load_engine(
        small, engine="openvino", precision="fp32", cache_folder=tmp_path / "file" / "engines"
    )
    assert _relative_error(engine(images), _definition(small, images)) < 1e-4
    assert caplog.text.count("going on without it") == 1


@needs_openvino
def test_works_where_nothing_can_be_written(
    small: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    images = _images(1, 64, 64)
    engine = load_engine(small, engine="openvino", precision="fp32", cache_folder=tmp_path)
    assert _relative_error(engine(images), _definition(small, images)) < 1e-4
    assert caplog.text.count("cannot be kept for the next start") == 1
    assert not list(tmp_path.iterdir())


class _FreezesSizes(nn.Module):
    """Its output depends on a size that tracing takes for a constant."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1, ::4, ::4] * float(images.shape[2])

    def maps(self, output: Tensor) -> Maps:
        return Maps((output,), output.unsqueeze(-1))


@needs_openvino
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_wrong_conversion_is_noticed(small: Model, tmp_path: Path) -> None:
    model = replace(small, net=_FreezesSizes().eval())
    with pytest.raises(RuntimeError, match="pass engine='torch'"):
        load_engine(model, engine="openvino", cache_folder=tmp_path)
    assert not list(tmp_path.iterdir())


_START = """
import sys
from pathlib import Path
import torch
from tests.support.random_model import random_model
from nets.engines.load import load_engine
model = random_model("higher_hrnet_lite", width=8, blocks=1, bottlenecks=1, residual_blocks=1)
engine = load_engine(
    model, engine="openvino", precision="fp32", threads=1, cache_folder=Path(sys.argv[1])
)
maps = engine(torch.ones(1, 3, 64, 64))
print(maps.tags.double().sum().item())
"""


@needs_openvino
def test_two_first_starts_at_once_and_nothing_is_reported(small: Model, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _START, str(tmp_path / "engines")],
            cwd=ROOT,
            env=environment | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    sums = []
    for process in processes:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, errors
        sums.append(float(output))
    expected = _definition(small, torch.ones(1, 3, 64, 64)).tags.double().sum().item()
    assert sums == pytest.approx([expected] * 2, rel=1e-3)
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [
        _entry(small, tmp_path / "engines").name
    ]
    # Importing openvino as it comes would leave its telemetry's number in the user's home.
    assert not (home / "intel").exists()
