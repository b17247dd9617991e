"""The path on a GPU, run on the CPU by the emulator: the same stages, launches and copies."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.decode import DecodeSettings
from nets.aggregation import Maps
from nets.engines.torch import TorchEngine
from nets.skeletons import COCO
from pipeline.gpu.placement import Placement
from pipeline.gpu.stream_slots import STREAM_SLOTS, Gpus, GpuSettings, StreamSlot, StreamSlots
from pipeline.inference import Inference
from pipeline.messages import Frame, Poses
from pipeline.poses import FindPoses
from pipeline.preprocess import Preprocess
from pipeline.runtime.queues.credit import Stopped
from tests.support.cuda_on_cpu.emulator import EmulatedGpu
from tests.support.painted import grid_people, paint, painted_model
from tests.support.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.timeout(400)  # kernels are compiled first


def frame_of(people: np.ndarray, *, source: str, size: tuple[int, int] = (240, 320)) -> Frame:
    picture = paint(size, people)
    return Frame(
        source=source, index=0, pts_seconds=0.0, captured_ns=0, captured_unix_s=0.0,
        size=size, planes=(picture,), pixel_format="bgr24",
    )  # fmt: skip


def stream_slots_of(*, flip: bool = False, count: int = STREAM_SLOTS) -> StreamSlots:
    model = painted_model()
    settings = GpuSettings(COCO, model.mean, model.std, True, COCO.flip_order if flip else None)
    gpu = EmulatedGpu()
    return StreamSlots(
        [StreamSlot(gpu, settings, None) for _ in range(count)], give_up=lambda: None
    )


class Path:
    """preprocess -> inference -> poses, as the stages run them one after the other."""

    def __init__(self, *, gpus: Gpus | None, flip: bool = False) -> None:
        model = painted_model()
        self.preprocess = Preprocess(
            input_size=128, mean=model.mean, std=model.std, size_multiple=32, gpus=gpus
        )
        engine = TorchEngine(model, threads=None)
        self.inference = Inference(engine, flip_order=COCO.flip_order if flip else None)
        self.find_poses = FindPoses(COCO, DecodeSettings())

    def __call__(self, frames: list[Frame]) -> Iterator[Poses]:
        for batch in self.preprocess(frames):
            for output in self.inference(batch):
                yield from self.find_poses(output)


@pytest.mark.parametrize("flip", [False, True], ids=["plain", "flip test"])
def test_people_are_those_of_the_cpu(flip: bool) -> None:
    frames = [frame_of(grid_people(2), source="a"), frame_of(grid_people(1), source="b")]
    gpus = Gpus([stream_slots_of(flip=flip)])
    on_gpu = list(Path(gpus=gpus, flip=flip)(frames))
    on_cpu = list(Path(gpus=None, flip=flip)(frames))
    assert [len(poses.scores) for poses in on_gpu] == [2, 1]
    for got, expected in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(got.keypoints, expected.keypoints)
        np.testing.assert_array_equal(got.scores, expected.scores)
        np.testing.assert_array_equal(got.filled, expected.filled)
        assert got.frame is expected.frame


def test_pictures_of_all_kinds_travel_together() -> None:
    """A turned one, a part of one and planes with padded rows, in one upload and one launch."""
    size = (240, 320)
    people = grid_people(1)
    upright = frame_of(people, source="upright")
    lying = np.ascontiguousarray(np.rot90(upright.planes[0]))
    turned = replace(upright, source="turned", planes=(lying,), rotation=90)
    region = replace(upright, source="region", roi=(20, 10, 300, 225))
    luma = np.full((size[0], size[1] + 48), 128, np.uint8)[:, : size[1]]
    chroma = np.full((size[0] // 2, size[1] // 2 + 24, 2), 128, np.uint8)[:, : size[1] // 2]
    grey = replace(upright, source="grey", planes=(luma, chroma), pixel_format="nv12")
    frames = [upright, turned, region, grey]
    on_gpu = list(Path(gpus=Gpus([stream_slots_of()]))(frames))
    on_cpu = list(Path(gpus=None)(frames))
    assert [len(poses.scores) for poses in on_gpu] == [1, 1, 1, 0]
    for got, expected in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(got.keypoints, expected.keypoints)


def test_settings_may_change_between_batches() -> None:
    path = Path(gpus=Gpus([stream_slots_of(count=1)]))
    people = grid_people(1)
    people[0, 3] = np.nan  # a keypoint that only refine can fill
    frame = frame_of(people, source="a")
    (refined,) = path([frame])
    path.find_poses.set_refine("off")
    (plain,) = path([frame])
    path.find_poses.set_refine("full")
    (again,) = path([frame])
    assert not plain.filled.any()
    assert plain.keypoints[0, 3, 2] == 0
    np.testing.assert_array_equal(refined.keypoints, again.keypoints)


def test_frames_go_to_the_gpu_of_their_source() -> None:
    placement = Placement([0, 1])
    placement.put("second", 1)
    path = Path(gpus=Gpus([stream_slots_of(count=1), stream_slots_of(count=1)], placement))
    names = ("first", "second", "third", "second")
    frames = [frame_of(grid_people(1), source=name) for name in names]
    batches = [
        (batch.gpu, [frame.source for frame in batch.frames]) for batch in path.preprocess(frames)
    ]
    assert batches == [(0, ["first", "third"]), (1, ["second", "second"])]


def test_a_stream_slot_is_free_when_its_batch_has_gone_whatever_became_of_it() -> None:
    path = Path(gpus=Gpus([stream_slots_of(count=1)]))
    frame = frame_of(grid_people(1), source="a")
    for _ in range(3):  # with one stream slot, the second would wait for ever
        (batch,) = path.preprocess([frame])
        del batch  # dropped before the network
    (batch,) = path.preprocess([frame])
    (output,) = path.inference(batch)
    del batch
    taken = threading.Event()

    def take_next() -> None:
        list(path.preprocess([frame]))
        taken.set()

    thread = threading.Thread(target=take_next, daemon=True)
    thread.start()
    assert not taken.wait(0.5)  # the output still needs the stream slot
    del output
    assert taken.wait(PATIENCE_SECONDS)
    thread.join(PATIENCE_SECONDS)


def test_waiting_for_a_stream_slot_ends_with_the_stream() -> None:
    stop = threading.Event()

    def give_up() -> None:
        if stop.is_set():
            raise Stopped

    settings = GpuSettings(COCO, (0.0,) * 3, (1.0,) * 3, True, None)
    stream_slots = StreamSlots([StreamSlot(EmulatedGpu(), settings, None)], give_up=give_up)
    held_slot = stream_slots.take()
    stop.set()
    with pytest.raises(Stopped):
        stream_slots.take()
    del held_slot
    assert isinstance(stream_slots.take().stream_slot, StreamSlot)


def test_memory_is_kept_from_batch_to_batch() -> None:
    """The same planes in a second batch change nothing in the first one's images."""
    stream_slot = stream_slots_of(count=1).take().stream_slot
    path = Path(gpus=Gpus([StreamSlots([stream_slot], give_up=lambda: None)]))
    big = frame_of(grid_people(2), source="a", size=(480, 640))
    small = frame_of(grid_people(1), source="a")
    (first,) = [batch.images.clone() for batch in path.preprocess([big])]
    list(path.preprocess([small]))
    (again,) = [batch.images for batch in path.preprocess([big])]
    assert torch.equal(first, again)


def test_maps_of_an_engine_may_be_spread_in_memory() -> None:
    """channels_last outputs, as convolutions like them, are read in the right order."""
    stream_slot = stream_slots_of(count=1).take().stream_slot
    path = Path(gpus=Gpus([StreamSlots([stream_slot], give_up=lambda: None)]))
    engine = TorchEngine(painted_model(), threads=None)

    def spread(images: torch.Tensor) -> Maps:
        maps = engine(images)
        levels = [level.to(memory_format=torch.channels_last) for level in maps.levels]
        return Maps(tuple(levels), maps.tags)

    frame = frame_of(grid_people(2), source="a")
    (expected,) = path([frame])
    path.inference = Inference(spread)
    (got,) = path([frame])
    np.testing.assert_array_equal(got.keypoints, expected.keypoints)
