"""Which devices, and which source on which GPU."""

import threading
from collections import Counter

import pytest

from common.settings import ConfigError
from pipeline.config import InferenceConfig
from pipeline.gpu import placement as placement_module
from pipeline.gpu.placement import Placement, cuda_devices, devices_of
from tests.support.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("asked", "devices"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("cuda:3", ["cuda:3"]),
        ("cuda:1, cuda:0", ["cuda:1", "cuda:0"]),
        ("cuda,cuda:1", ["cuda:0", "cuda:1"]),
        ("gpu", ["gpu"]),  # refused by the engine, with what it knows
    ],
)
def test_devices_are_those_asked_for(asked: str, devices: list[str]) -> None:
    assert devices_of(InferenceConfig(device=asked)) == devices


@pytest.mark.parametrize("asked", ["cuda:0,cpu", "cuda,cuda:0", "auto,cuda:1", "cpu,cpu"])
def test_several_devices_are_different_gpus(asked: str) -> None:
    with pytest.raises(ConfigError, match=f"must be different GPUs, got '{asked}'"):
        devices_of(InferenceConfig(device=asked))


def test_openvino_runs_on_the_cpu_whatever_gpus_there_are() -> None:
    assert devices_of(InferenceConfig(device="auto", engine="openvino")) == ["cpu"]


@pytest.mark.parametrize(
    ("asked", "numbers"), [("cuda:2,cuda:0", [2, 0]), ("cuda", [0]), ("gpu", []), ("cpu", [])]
)
def test_gpus_have_cuda_numbers(
    monkeypatch: pytest.MonkeyPatch, asked: str, numbers: list[int]
) -> None:
    monkeypatch.setattr(placement_module, "why_no_gpu", lambda: None)
    assert cuda_devices(InferenceConfig(device=asked)) == numbers


def test_without_a_usable_gpu_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_module, "why_no_gpu", lambda: "no driver")
    assert cuda_devices(InferenceConfig(device="cuda:0")) == []


def test_a_source_stays_on_its_gpu_and_a_new_one_goes_where_the_fewest_are() -> None:
    placement = Placement([0, 1])
    assert [placement.gpu_of(name) for name in "abc"] == [0, 1, 0]
    assert [placement.gpu_of(name) for name in "cba"] == [0, 1, 0]
    assert placement.emptiest() == 1
    placement.forget_source("a")
    placement.forget_source("c")
    placement.forget_source("never came")
    assert placement.emptiest() == 0
    assert placement.gpu_of("d") == 0


def test_who_is_put_somewhere_is_there() -> None:
    placement = Placement([4, 2])
    placement.put("a", 1)
    assert placement.gpu_of("a") == 1
    assert placement.device(1) == 2
    assert placement.gpu_with(2) == 1
    assert placement.emptiest() == 0


def test_without_gpus_nobody_is_anywhere() -> None:
    placement = Placement([])
    assert placement.emptiest() is None
    assert placement.device(None) is None
    placement.put("a", None)
    assert placement.emptiest() is None


def test_threads_may_ask_at_once() -> None:
    placement = Placement([0, 1, 2, 3])
    names = [str(i) for i in range(400)]

    def ask() -> None:
        for name in names:
            placement.gpu_of(name)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert Counter(placement.gpu_of(name) for name in names) == {0: 100, 1: 100, 2: 100, 3: 100}
