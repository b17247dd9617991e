"""The path on a card, run on the CPU by the emulator: the same stages, launches and copies."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.decode import DecodeSettings
from nets.aggregation import Maps
from nets.engines import TorchEngine
from nets.skeletons import COCO
from pipeline.card import LANES, Cards, CardSettings, Lane, Lanes
from pipeline.inference import Inference
from pipeline.messages import Frame, Poses
from pipeline.placement import Placement
from pipeline.poses import FindPoses
from pipeline.preprocess import Preprocess
from pipeline.queues import Stopped
from tests.cuda_on_cpu.emulator import EmulatedGpu
from tests.painted import grid_people, paint, painted_model

pytestmark = pytest.mark.timeout(400)  # kernels are compiled first


def frame_of(people: np.ndarray, *, source: str, size: tuple[int, int] = (240, 320)) -> Frame:
    picture = paint(size, people)
    return Frame(
        source=source, index=0, pts_seconds=0.0, captured_ns=0, captured_unix_s=0.0,
        size=size, planes=(picture,), pixel_format="bgr24",
    )  # fmt: skip


def lanes_of(*, flip: bool = False, count: int = LANES) -> Lanes:
    model = painted_model()
    settings = CardSettings(COCO, model.mean, model.std, True, COCO.flip_order if flip else None)
    gpu = EmulatedGpu()
    return Lanes([Lane(gpu, settings, None) for _ in range(count)], give_up=lambda: None)


class Path:
    """preprocess -> inference -> poses, as the stages run them one after the other."""

    def __init__(self, *, cards: Cards | None, flip: bool = False) -> None:
        model = painted_model()
        self.preprocess = Preprocess(
            input_size=128, mean=model.mean, std=model.std, size_multiple=32, cards=cards
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
    cards = Cards([lanes_of(flip=flip)])
    on_card = list(Path(cards=cards, flip=flip)(frames))
    on_cpu = list(Path(cards=None, flip=flip)(frames))
    assert [len(poses.scores) for poses in on_card] == [2, 1]
    for got, expected in zip(on_card, on_cpu, strict=True):
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
    on_card = list(Path(cards=Cards([lanes_of()]))(frames))
    on_cpu = list(Path(cards=None)(frames))
    assert [len(poses.scores) for poses in on_card] == [1, 1, 1, 0]
    for got, expected in zip(on_card, on_cpu, strict=True):
        np.testing.assert_array_equal(got.keypoints, expected.keypoints)


def test_settings_may_change_between_batches() -> None:
    path = Path(cards=Cards([lanes_of(count=1)]))
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


def test_frames_go_to_the_card_of_their_source() -> None:
    placement = Placement([0, 1])
    placement.put("second", 1)
    path = Path(cards=Cards([lanes_of(count=1), lanes_of(count=1)], placement))
    names = ("first", "second", "third", "second")
    frames = [frame_of(grid_people(1), source=name) for name in names]
    batches = [
        (batch.card, [frame.source for frame in batch.frames]) for batch in path.preprocess(frames)
    ]
    assert batches == [(0, ["first", "third"]), (1, ["second", "second"])]


def test_a_lane_is_free_when_its_batch_has_gone_whatever_became_of_it() -> None:
    path = Path(cards=Cards([lanes_of(count=1)]))
    frame = frame_of(grid_people(1), source="a")
    for _ in range(3):  # with one lane, the second would wait for ever
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
    assert not taken.wait(0.5)  # the output still needs the lane
    del output
    assert taken.wait(30)
    thread.join(30)


def test_waiting_for_a_lane_ends_with_the_stream() -> None:
    stop = threading.Event()

    def give_up() -> None:
        if stop.is_set():
            raise Stopped

    settings = CardSettings(COCO, (0.0,) * 3, (1.0,) * 3, True, None)
    lanes = Lanes([Lane(EmulatedGpu(), settings, None)], give_up=give_up)
    lease = lanes.take()
    stop.set()
    with pytest.raises(Stopped):
        lanes.take()
    del lease
    assert isinstance(lanes.take().lane, Lane)


def test_memory_is_kept_from_batch_to_batch() -> None:
    """The same planes in a second batch change nothing in the first one's images."""
    lane = lanes_of(count=1).take().lane
    path = Path(cards=Cards([Lanes([lane], give_up=lambda: None)]))
    big = frame_of(grid_people(2), source="a", size=(480, 640))
    small = frame_of(grid_people(1), source="a")
    (first,) = [batch.images.clone() for batch in path.preprocess([big])]
    list(path.preprocess([small]))
    (again,) = [batch.images for batch in path.preprocess([big])]
    assert torch.equal(first, again)


def test_maps_of_an_engine_may_be_spread_in_memory() -> None:
    """channels_last outputs, as convolutions like them, are read in the right order."""
    lane = lanes_of(count=1).take().lane
    path = Path(cards=Cards([Lanes([lane], give_up=lambda: None)]))
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
