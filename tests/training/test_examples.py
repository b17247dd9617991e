"""Which example comes when: order, shares, resume, workers, images that cannot be read."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nets.skeletons import COCO, CROWDPOSE
from tests.support.labelled import (
    annotation,
    coco_tree,
    people_of_picture,
    write_json,
    write_pictures,
    write_set,
    write_store,
)
from training.annotations import LabelledSet, load_labelled_set
from training.config import (
    AugmentConfig,
    DatasetConfig,
    SizeSigmaConfig,
    TargetConfig,
    TeacherKeypointsConfig,
)
from training.examples import (
    Batch,
    Examples,
    Place,
    Positions,
    _normalize_by_formula,
    _normalize_by_table,
    batches,
)
from training.image_store import ImageError
from training.targets import Plan, draw_heatmaps, tag_index

HIGHER = (Plan(4, None), Plan(2, None))
DOUBLE = (Plan(4, 10.0), Plan(2, 10.0), Plan(4, 7.0), Plan(2, 7.0))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(annotations: Path, **changes: Any) -> LabelledSet:
    return load_labelled_set(DatasetConfig(annotations=annotations, **changes), COCO)


def examples_of(
    *sets: LabelledSet,
    shares: Sequence[float | None] | None = None,
    plan: Sequence[Plan] = HIGHER,
    seed: int = 0,
    length: int | None = None,
    target: TargetConfig | None = None,
    **augment: Any,
) -> Examples:
    return Examples(
        sets,
        shares=shares or [None] * len(sets),
        augment=AugmentConfig(**({"size": 64} | augment)),
        target=target or TargetConfig(max_people=5),
        plan=plan,
        seed=seed,
        length=length,
    )


def take(
    examples: Examples, count: int, *, batch: int = 4, workers: int = 0, **positions: Any
) -> list[Batch]:
    order = Positions(len(examples), batch=batch, **positions)
    stream = batches(examples, order, mean=MEAN, std=STD, workers=workers)
    return list(itertools.islice(stream, count))


def assert_equal(one: Batch, other: Batch) -> None:
    pairs = zip((one.images, one.tag_index), (other.images, other.tag_index), strict=True)
    maps = zip((*one.heatmaps, *one.masks), (*other.heatmaps, *other.masks), strict=True)
    assert all(torch.equal(a, b) for a, b in (*pairs, *maps))
    assert one.image_ids == other.image_ids
    assert one.files == other.files
    assert (one.failed, one.place, one.next_place) == (other.failed, other.place, other.next_place)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [HIGHER, DOUBLE])
def test_a_batch_holds_what_the_losses_read(tmp_path: Path, plan: tuple[Plan, ...]) -> None:
    target = TargetConfig(kind="truncated", sigma=7, unit="input", max_people=5)
    examples = examples_of(load(write_set(tmp_path, 6)), plan=plan, target=target)
    (batch,) = take(examples, 1)
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert [maps.shape for maps in batch.heatmaps] == [
        (4, 17, 64 // entry.stride, 64 // entry.stride) for entry in plan
    ]
    assert [masks.shape for masks in batch.masks] == [
        (4, 1, 64 // entry.stride, 64 // entry.stride) for entry in plan
    ]
    assert {maps.dtype for maps in batch.heatmaps} == {torch.float32}
    assert {masks.dtype for masks in batch.masks} == {torch.uint8}
    assert batch.tag_index.shape == (4, 5, 17, 2)
    assert batch.tag_index.dtype == torch.int32
    assert [len(ids) for ids in batch.image_ids] == [1] * 4
    assert [files[0] for files in batch.files] == [f"{ids[0]:06}.png" for ids in batch.image_ids]
    assert batch.failed == ()


def test_without_augmentation_a_batch_is_the_image_and_its_targets(tmp_path: Path) -> None:
    """The one image that fits the crop exactly, drawn and normalised by hand."""
    some = load(write_set(tmp_path, 1))
    still: dict[str, Any] = {"rotation_deg": 0, "scale": (1, 1), "translation_px": 0, "flip": 0}
    (batch,) = take(examples_of(some, size=192, **still), 1, batch=1)
    zoom = 192 / 200
    shift = 192 / 2 - 300 * zoom / 2
    # Every 24th pixel of the crop is the middle of a source pixel, every 25th.
    picture = some.read(some.images[0])[::25, 50:250:25, ::-1]
    expected = ((picture / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(batch.images[0, :, ::24, ::24], expected, atol=1e-5)
    assert len(np.unique(picture)) > 3
    for stride, heatmaps in zip((4, 2), batch.heatmaps, strict=True):
        points = some.images[0].keypoints.copy()
        points[..., 0] = (points[..., 0] * zoom + shift) / stride
        points[..., 1] *= zoom / stride
        np.testing.assert_allclose(heatmaps[0], draw_heatmaps(points, 192 // stride, sigma=2.0))
        if stride == 4:
            index = tag_index(points, 48, max_people=5)
            np.testing.assert_array_equal(batch.tag_index[0], index)


def test_pixels_are_normalised_alike_on_every_device() -> None:
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    by_table, by_formula = (
        normalize(pixels, MEAN, STD) for normalize in (_normalize_by_table, _normalize_by_formula)
    )
    torch.testing.assert_close(by_table, by_formula, rtol=0, atol=1e-6)
    expected = (pixels.numpy() / 255 - MEAN) / STD
    np.testing.assert_allclose(by_table, expected, atol=1e-6)


def test_masks_take_a_channel_each_as_soon_as_one_keypoint_is_unknown(tmp_path: Path) -> None:
    tree = coco_tree(2, people=1)
    points = np.hstack([people_of_picture(2, 1)[0], np.full((17, 1), 2.0)])
    points[4] = 0
    tree["annotations"][1] = annotation(2, 2, points)
    write_pictures(tmp_path / "some", tree, people=1)
    path = write_json(tmp_path / "some.json", tree)
    (known,) = take(examples_of(load(path)), 1, batch=2)
    (unknown,) = take(examples_of(load(path, missing_keypoints="unknown")), 1, batch=2)
    assert [masks.shape[1] for masks in known.masks] == [1, 1]
    assert [masks.shape[1] for masks in unknown.masks] == [17, 17]
    for one, other in zip(known.masks, unknown.masks, strict=True):
        off = (one.float() - other.float()).sum(dim=(2, 3))
        whole = unknown.image_ids.index((1,))
        assert (off[whole] == 0).all()
        assert (off[1 - whole] > 0).sum() == 1


# --- the same example everywhere ------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("share", [0.25, 1])
def test_a_teacher_is_drawn_by_score_and_mixed_by_share(tmp_path: Path, share: float) -> None:
    """It says of everybody what labels say, nine pixels off and with scores of its own."""
    path = write_set(tmp_path, 2)
    tree = json.loads(path.read_text())
    for entry in tree["annotations"]:
        points = np.reshape(entry["keypoints"], (-1, 3)) + (9, 0, 0)
        points[:, 2] = np.linspace(0.1, 0.9, 17)
        entry["teacher"] = points.ravel().tolist()
    write_json(path, tree)
    target = TargetConfig(max_people=5, sigma_by_size=SizeSigmaConfig())
    (plain,) = take(examples_of(load(path), target=target), 1, batch=2)
    taught = load(path, teacher=TeacherKeypointsConfig(share=share))
    (mixed,) = take(examples_of(taught, target=target), 1, batch=2)
    (alone,) = take(
        examples_of(load(path, teacher=TeacherKeypointsConfig(share=1)), target=target), 1, batch=2
    )
    assert torch.equal(mixed.images, plain.images)
    assert torch.equal(mixed.tag_index, plain.tag_index)
    for drawn, said, both in zip(plain.heatmaps, alone.heatmaps, mixed.heatmaps, strict=True):
        torch.testing.assert_close(both, (1 - share) * drawn + share * said)
        tops = said.amax(dim=(2, 3))
        scores = torch.linspace(0.1, 0.9, 17)
        assert ((tops - scores).abs() < 1e-6).any()
        assert (tops <= 0.9 + 1e-6).all()


def test_workers_and_process_make_the_same_batches(tmp_path: Path) -> None:
    sets = [
        load(write_set(tmp_path / "a", 5, kind="tar")),
        load(write_set(tmp_path / "b", 3, kind="zip", first_id=50)),
    ]
    examples = examples_of(*sets, mosaic=0.5, color=0.5, people_crop=0.5)
    here = take(examples, 7, batch=2)
    there = take(examples, 7, batch=2, workers=2)
    again = take(examples, 7, batch=2, workers=1)
    for batch, *others in zip(here, there, again, strict=True):
        for other in others:
            assert_equal(batch, other)
    assert not torch.equal(here[0].images, take(examples_of(*sets, seed=1), 1, batch=2)[0].images)


def test_a_resumed_run_sees_what_the_unbroken_one_sees(tmp_path: Path) -> None:
    examples = examples_of(load(write_set(tmp_path, 7)), mosaic=0.3)
    unbroken = take(examples, 9, batch=2)
    assert [batch.place for batch in unbroken[:5]] == [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2)]
    for stopped_after in (1, 3, 4):
        start = unbroken[stopped_after - 1].next_place
        resumed = take(examples, 9 - stopped_after, batch=2, start=start, workers=1)
        for one, other in zip(unbroken[stopped_after:], resumed, strict=True):
            assert_equal(one, other)


def test_two_ranks_together_see_the_batch_of_one(tmp_path: Path) -> None:
    examples = examples_of(load(write_set(tmp_path, 9)))
    whole = take(examples, 3, batch=4)
    ranks = [take(examples, 3, batch=2, rank=rank, world=2) for rank in range(2)]
    for batch, *halves in zip(whole, *ranks, strict=True):
        mixed = [
            ids for pair in zip(*(half.image_ids for half in halves), strict=True) for ids in pair
        ]
        assert tuple(mixed) == batch.image_ids
        assert {half.next_place for half in halves} == {batch.next_place}
        assert torch.equal(halves[1].images, batch.images[1::2])


# --- order ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    batch=st.integers(1, 6),
    world=st.integers(1, 3),
    accumulate=st.integers(1, 3),
)
def test_positions_are_whole_steps_of_every_epoch_in_order(
    length: int, batch: int, world: int, accumulate: int
) -> None:
    step = batch * world * accumulate
    if length < step:
        with pytest.raises(ValueError, match="use a smaller batch"):
            Positions(length, batch=batch, world=world, accumulate=accumulate)
        return
    used = length // step * step
    expected: list[Place] = [(epoch, p) for epoch in range(3) for p in range(used)]
    ranks = [
        Positions(length, batch=batch, rank=rank, world=world, accumulate=accumulate)
        for rank in range(world)
    ]
    assert ranks[0].steps_per_epoch == length // step
    seen = [
        place
        for several in itertools.islice(zip(*ranks, strict=True), 3 * used // (batch * world))
        for together in zip(*several, strict=True)
        for place in together
    ]
    assert seen == expected


def test_a_start_between_batches_is_refused() -> None:
    for start in ((0, 3), (0, 14), (0, -4)):
        with pytest.raises(ValueError, match="no batch begins at position"):
            Positions(12, batch=2, world=2, start=start)
    assert next(iter(Positions(13, batch=2, world=2, start=(3, 12)))) == [(4, 0), (4, 2)]


def ids_of_epoch(examples: Examples, epoch: int) -> list[int]:
    return [examples.image_at((epoch, p))[1].image_id for p in range(len(examples))]


def test_every_image_comes_once_an_epoch_in_a_new_order(tmp_path: Path) -> None:
    sets = [
        load(write_set(tmp_path / "a", 20)),
        load(write_set(tmp_path / "b", 10, first_id=100)),
    ]
    examples = examples_of(*sets)
    orders = [ids_of_epoch(examples, epoch) for epoch in range(3)]
    assert [sorted(order) for order in orders] == [[*range(1, 21), *range(100, 110)]] * 3
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
    places = [n for n, image_id in enumerate(orders[0]) if image_id >= 100]
    assert min(places) < 10  # mixed, not one set after the other
    assert max(places) > 19


def test_shares_are_met_and_no_image_is_preferred(tmp_path: Path) -> None:
    sets = [
        load(write_set(tmp_path / "a", 4)),
        load(write_set(tmp_path / "b", 7, first_id=100)),
        load(write_set(tmp_path / "c", 3, first_id=200)),
    ]
    examples = examples_of(*sets, shares=[0.5, 0.3, 0.2], length=20)
    assert len(examples) == 20
    total: Counter[int] = Counter()
    for epoch in range(14):
        ids = ids_of_epoch(examples, epoch)
        assert Counter(image_id // 100 for image_id in ids) == {0: 10, 1: 6, 2: 4}
        total.update(ids)
    assert {total[i] for i in range(1, 5)} == {35}
    assert {total[i] for i in range(100, 107)} == {12}
    assert {total[i] for i in range(200, 203)} <= {18, 19}


def test_mosaics_are_made_of_four_images_as_often_as_told(tmp_path: Path) -> None:
    examples = examples_of(load(write_set(tmp_path, 6)), mosaic=0.4, length=200)
    counts = Counter(len(examples[0, position].image_ids) for position in range(200))
    assert set(counts) == {1, 4}
    assert 55 < counts[4] < 105


# --- what is left out, and what cannot be read ----------------------------------------------------


def test_images_without_people_are_left_out_unless_the_set_has_none(tmp_path: Path) -> None:
    tree = coco_tree(4, people=1)
    tree["annotations"] = tree["annotations"][:2]
    crowd = annotation(9, 3, np.zeros((17, 3))) | {"bbox": [0, 0, 30, 30], "iscrowd": 1}
    write_pictures(tmp_path / "some", tree, people=1)
    some = load(
        write_json(tmp_path / "some.json", tree | {"annotations": [*tree["annotations"], crowd]})
    )
    assert len(some.images) == 4
    assert sorted(ids_of_epoch(examples_of(some), 0)) == [1, 2, 3]
    negatives = load(
        write_json(tmp_path / "none.json", tree | {"annotations": []}), images=tmp_path / "some"
    )
    both = examples_of(some, negatives)
    assert len(both) == 7
    with pytest.raises(ValueError, match=r"none\.json: not one person has a labelled keypoint"):
        examples_of(negatives)


def test_an_image_whose_only_person_is_not_trusted_is_left_out(tmp_path: Path) -> None:
    tree = coco_tree(3, people=1)
    for image, entry in zip(tree["images"], tree["annotations"], strict=True):
        image["other_people_unlabelled"] = True
        entry["agree"] = 0.2 * entry["image_id"]
    write_pictures(tmp_path / "some", tree, people=1)
    some = load(write_json(tmp_path / "some.json", tree), min_agree=0.3)
    assert sorted(ids_of_epoch(examples_of(some), 0)) == [2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_and_replaced_by_the_next(tmp_path: Path, workers: int) -> None:
    path = write_set(tmp_path, 5)
    (tmp_path / "train" / "000003.png").write_bytes(b"no picture")
    (tmp_path / "train" / "000004.png").unlink()
    examples = examples_of(load(path))
    order = ids_of_epoch(examples, 0)
    read = take(examples, 5, batch=1, workers=workers)
    for position, batch in enumerate(read):
        wanted = [order[(position + n) % 5] for n in range(5)]
        bad = list(itertools.takewhile(lambda image_id: image_id in (3, 4), wanted))
        assert [
            f"{image_id:06}.png" in failure
            for image_id, failure in zip(bad, batch.failed, strict=True)
        ] == [True] * len(bad)
        assert batch.image_ids == ((wanted[len(bad)],),)
    failures = " ".join(failure for batch in read for failure in batch.failed)
    assert "000003.png" in failures
    assert "damaged or no image" in failures
    assert "there is no image 000004.png" in failures


def test_a_set_of_unreadable_images_ends_the_run(tmp_path: Path) -> None:
    tree = coco_tree(30)
    write_store(tmp_path / "some", {image["file_name"]: b"" for image in tree["images"]})
    examples = examples_of(load(write_json(tmp_path / "some.json", tree)))
    with pytest.raises(ImageError, match=r"20 images in a row cannot be read; the last: .*empty"):
        examples[0, 0]


def test_sets_of_different_skeletons_do_not_mix(tmp_path: Path) -> None:
    crowdpose = load_labelled_set(
        DatasetConfig(annotations=write_set(tmp_path / "a", 1, skeleton=CROWDPOSE)), CROWDPOSE
    )
    with pytest.raises(ValueError, match="the same skeleton"):
        examples_of(crowdpose, load(write_set(tmp_path / "b", 1)))
    (batch,) = take(examples_of(crowdpose), 1, batch=1)
    assert batch.heatmaps[0].shape[1] == 14
