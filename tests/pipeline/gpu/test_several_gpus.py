"""A whole stream on two GPUs that the CPU emulates: --device cuda:4,cuda:2, one more or less."""

import json
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels.decode import DecodeSettings
from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines.torch import TorchEngine
from nets.skeletons import COCO
from pipeline import network, stream
from pipeline.config import StreamConfig, load_config
from pipeline.gpu import nvdec as gpu_video
from pipeline.gpu.placement import Placement
from pipeline.gpu.stream_slots import STREAM_SLOTS, Gpus, GpuSettings, StreamSlot, StreamSlots
from pipeline.inference import Inference, RunNetwork
from pipeline.network import Network
from pipeline.poses import FindPoses
from pipeline.preprocess import Preprocess
from pipeline.runtime.queues.credit import Stopped
from pipeline.stream import Stream
from tests.support.clips import write_clip
from tests.support.cuda_on_cpu.emulator import EmulatedGpu
from tests.support.painted import grid_people, paint, painted_model
from tests.support.pretend_gpu import pretend_nvdec
from tests.support.running_stream import running as in_thread
from tests.support.waiting import wait_until

DEVICES = (4, 2)
SIZE = (240, 320)
NUM_FRAMES = 6
TOLERANCE_PX = 3.0


class TwoGpus:
    """In the place of make_network: the stages of a stream on GPUs, with what they are made of."""

    def __init__(self) -> None:
        self.engines: list[RunNetwork] = [TorchEngine(painted_model(), threads=None)] * 2

    def __call__(
        self,
        config: StreamConfig,
        model: Model | None,
        *,
        engines: Sequence[RunNetwork] = (),
        stop: threading.Event,
        placement: Placement,
    ) -> Network:
        assert not engines

        def give_up() -> None:
            if stop.is_set():
                raise Stopped

        settings = GpuSettings(COCO, (0.0,) * 3, (1.0,) * 3, True, None)
        gpu = EmulatedGpu()
        stream_slots = [
            StreamSlots(
                [StreamSlot(gpu, settings, None) for _ in range(STREAM_SLOTS)], give_up=give_up
            )
            for _ in DEVICES
        ]
        preprocess = Preprocess(
            input_size=128, mean=(0.0,) * 3, std=(1.0,) * 3, size_multiple=32,
            gpus=Gpus(stream_slots, placement),
        )  # fmt: skip
        return Network(
            preprocess=preprocess,
            inferences=tuple(Inference(engine) for engine in self.engines),
            find_poses=FindPoses(COCO, DecodeSettings()),
            tracker=None,
            decode=DecodeSettings(),
            input_size=128,
            size_multiple=32,
            max_batch=4,
        )


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> TwoGpus:
    gpus = TwoGpus()
    monkeypatch.setattr(network, "make_network", gpus)
    monkeypatch.setattr(stream, "cuda_devices", lambda config: list(DEVICES))
    monkeypatch.setattr(gpu_video, "why_no_nvdec", lambda device: "there is no such GPU")
    return gpus


@pytest.fixture
def nvdec(monkeypatch: pytest.MonkeyPatch, two_gpus: TwoGpus) -> None:
    """As if the GPUs decoded: all pictures come as NV12 planes of the GPU that a source is on."""

    monkeypatch.setattr(gpu_video, "why_no_nvdec", lambda device: None)
    pretend_nvdec(monkeypatch)


def people_of(index: int) -> np.ndarray:
    return grid_people(2) + (3.0 * index, 2.0 * index)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pictures = [paint(SIZE, people_of(i)) for i in range(NUM_FRAMES)]
    return write_clip(tmp_path / "clip.mp4", pictures)


def config_of(clip: Path, count: int, path: Path, **every_source: Any) -> StreamConfig:
    return load_config(
        sources=[str(clip)] * count,
        every_source=every_source,
        settings={"recorder.jsonl": str(path)},
    )


def messages_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """By source."""
    messages: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        message = json.loads(line)
        messages.setdefault(message["stream"], []).append(message)
    return messages


def assert_all_is_there(messages: dict[str, list[dict[str, Any]]], count: int) -> None:
    assert len(messages) == count
    for own in messages.values():
        assert [message["frame"] for message in own] == list(range(NUM_FRAMES))
        for message in own:
            truth = people_of(message["frame"])
            found = [np.array(person["keypoints"])[:, :2] for person in message["people"]]
            found.sort(key=lambda keypoints: keypoints[0, 0])
            np.testing.assert_allclose(np.array(found), truth, atol=TOLERANCE_PX)


def calls(running: Stream) -> list[int]:
    stages = running.stats.snapshot()["stages"]
    return [stages.get(name, {"calls": 0})["calls"] for name in ("inference", "inference:1")]


@pytest.mark.usefixtures("two_gpus")
def test_both_gpus_work_and_every_source_has_all_its_poses_in_order(
    clip: Path, tmp_path: Path
) -> None:
    running = Stream(config_of(clip, 3, tmp_path / "poses.jsonl"))
    assert running.run() == 0
    assert_all_is_there(messages_of(tmp_path / "poses.jsonl"), 3)
    assert min(calls(running)) >= NUM_FRAMES


@pytest.mark.usefixtures("nvdec")
def test_pictures_are_worked_on_where_they_were_decoded(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, int | None, int]] = set()
    gpu_of = Gpus.gpu_of

    def noted(self: Gpus, source: str, device: int | None) -> int:
        gpu = gpu_of(self, source, device)
        seen.add((source, device, gpu))
        return gpu

    monkeypatch.setattr(Gpus, "gpu_of", noted)
    overlay = tmp_path / "overlay.mp4"
    config = config_of(clip, 3, tmp_path / "poses.jsonl").model_copy(
        update={"video": load_config(settings={"video.path": str(overlay)}).video}
    )
    assert Stream(config).run() == 0
    assert_all_is_there(messages_of(tmp_path / "poses.jsonl"), 3)
    assert seen == {("clip", 4, 0), ("clip-2", 2, 1), ("clip-3", 4, 0)}
    assert (tmp_path / "overlay-clip-2.mp4").stat().st_size > 0  # drawn after a download


@pytest.mark.usefixtures("nvdec")
def test_a_source_may_still_be_decoded_on_the_cpu(clip: Path, tmp_path: Path) -> None:
    running = Stream(config_of(clip, 2, tmp_path / "poses.jsonl", decode="cpu"))
    with closing(next(iter(running.sources)).frames()) as frames:  # type: ignore[type-var]
        assert next(frames).device is None


@pytest.mark.usefixtures("two_gpus")
def test_a_source_that_leaves_makes_room_on_its_gpu(clip: Path, tmp_path: Path) -> None:
    """Four come, the two of one GPU go: the next two are put there."""
    config = config_of(clip, 4, tmp_path / "poses.jsonl", loop=True, pace=True)
    running = Stream(config)
    placement = running._placement
    with in_thread(running):
        wait_until(lambda: min(calls(running)) > 0)
        before = {source.name: placement.gpu_of(source.name) for source in running.sources}
        assert sorted(before.values()) == [0, 0, 1, 1]
        leaving = [name for name, gpu in before.items() if gpu == 0]
        for name in leaving:
            running.remove_source(name)
        wait_until(lambda: len(running.sources) == 2)
        for name in ("new", "newer"):
            running.add_source(config.sources[0].model_copy(update={"name": name}))
        assert [placement.gpu_of(name) for name in ("new", "newer")] == [0, 0]


@pytest.mark.usefixtures("two_gpus")
def test_what_is_in_flight_on_both_gpus_is_finished_when_the_stream_is_stopped(
    clip: Path, tmp_path: Path
) -> None:
    running = Stream(config_of(clip, 2, tmp_path / "poses.jsonl", loop=True))
    with in_thread(running):
        wait_until(lambda: min(calls(running)) >= 3)
    for own in messages_of(tmp_path / "poses.jsonl").values():
        assert [message["frame"] for message in own] == list(range(len(own)))


def test_a_gpu_that_fails_ends_the_stream(clip: Path, tmp_path: Path, two_gpus: TwoGpus) -> None:
    num_calls = 0

    def failing(images: torch.Tensor) -> Maps:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise RuntimeError("the second GPU fell off the bus")
        return two_gpus.engines[0](images)

    two_gpus.engines = [two_gpus.engines[0], failing]
    before = threading.active_count()
    running = Stream(config_of(clip, 2, tmp_path / "poses.jsonl", loop=True))
    assert running.run() == 1
    assert threading.active_count() == before
    for own in messages_of(tmp_path / "poses.jsonl").values():
        assert [message["frame"] for message in own] == list(range(len(own)))
