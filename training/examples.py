"""Which image comes when, and how examples become batches.

    Positions --(epoch, position)--> Examples: image(s), augment, targets --> batches() --> Batch
    same order in every process       a function of (seed, epoch, position)   worker processes

Nothing here remembers anything: an example depends on (seed, epoch, position) alone, whichever
process makes it and whenever. So a killed run continues exactly, on any number of ranks.
"""

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training.annotations import LabelledSet
from training.augment import Example, make_example
from training.config import AugmentConfig, TargetConfig
from training.image_store import ImageError, Picture
from training.labels import LabelledImage
from training.targets import (
    TAG_STRIDE,
    Plan,
    draw_heatmaps,
    mixed_heatmaps,
    sigmas_by_size,
    tag_index,
)

_log = logging.getLogger(__name__)

Place = tuple[int, int]
"""(epoch, position in it); both count from 0."""

_MAX_FAILURES = 20
"""So many unreadable images in a row are no accident."""
_OF_EPOCH, _OF_SET, _OF_EXAMPLE = 1, 2, 3
"""Second number of every random seed: what is drawn with it."""
_PREFETCHED = 3
"""Batches that each worker makes ahead."""


class Batch(NamedTuple):
    """Examples of one forward pass on one rank, on the device; S is the input's side."""

    images: Tensor
    """(B, 3, S, S) float32, normalised RGB, channels_last."""
    heatmaps: tuple[Tensor, ...]
    """(B, K, h, w) float32, one for each entry of the plan, in its order."""
    masks: tuple[Tensor, ...]
    """(B, K or 1, h, w) uint8, beside heatmaps: 1 supervised, 0 not."""
    tag_index: Tensor
    """(B, max_people, K, 2) int32, see targets.tag_index."""
    image_ids: tuple[tuple[int, ...], ...]
    """Of every example; a mosaic has four."""
    files: tuple[tuple[str, ...], ...]
    """Their names, beside image_ids."""
    failed: tuple[str, ...]
    """What went wrong with images that could not be read; others stand in for them."""
    place: Place
    """Where this batch begins, over all ranks."""
    next_place: Place
    """Where a run resumed after this batch continues."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingExample:
    """One example as a worker makes it. Maps that the plan names twice are here once."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    heatmaps: dict[Plan, NDArray[np.float32]]
    """(K, h, w)"""
    masks: dict[int, NDArray[np.uint8]]
    """Stride -> (1 or K, h, w)."""
    tag_index: NDArray[np.int32]
    """(max_people, K, 2)"""
    image_ids: tuple[int, ...]
    files: tuple[str, ...]
    failed: tuple[str, ...]


class Examples(Dataset[TrainingExample]):
    """Training examples by (epoch, position).

    Every epoch holds `length` examples: from each set its share, in an order that goes through all
    of the set before it starts again, across epochs; mixed at random. Without shares
    and with the default length that is every image once an epoch.

    Images without any labelled or ignored person are dropped, as published, unless their whole
    set is like that: then they are there to teach what is no person.
    """

    def __init__(
        self,
        sets: Sequence[LabelledSet],
        *,
        shares: Sequence[float | None],
        augment: AugmentConfig,
        target: TargetConfig,
        plan: Sequence[Plan],
        seed: int,
        length: int | None = None,
    ) -> None:
        """See the class.

        Args:
            sets: of one skeleton.
            shares: for each set, relative to the others'; None counts as its number of images.
            plan: what heatmaps are drawn, training.targets.target_plan.
            seed: another one gives another order and other augmentations.
            length: examples an epoch; None: the number of images.
        Raises:
            ValueError: the sets hold nothing to learn from, or their skeletons differ.
        """
        if len({labelled.skeleton.name for labelled in sets}) != 1:
            raise ValueError("the sets of a training must all be labelled with the same skeleton")
        self._sets = tuple(sets)
        self._usable = tuple(_usable(labelled) for labelled in sets)
        if not any(len(image.keypoints) for images in self._usable for image in images):
            names = ", ".join(str(labelled.annotations) for labelled in sets)
            raise ValueError(f"{names}: not one person has a labelled keypoint; nothing to learn")
        numbers = [len(images) for images in self._usable]
        self.length = sum(numbers) if length is None else length
        weights = [n if share is None else share for share, n in zip(shares, numbers, strict=True)]
        self._draws = _split(self.length, weights)
        self._augment, self._target, self._seed = augment, target, seed
        self.plan = tuple(plan)
        self._strides = tuple(dict.fromkeys((TAG_STRIDE, *(entry.stride for entry in plan))))
        self._flip_order = sets[0].skeleton.flip_order
        for labelled, number, draws in zip(sets, numbers, self._draws, strict=True):
            _log.info("%s: %d images, %d drawn an epoch", labelled.annotations, number, draws)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: Place) -> TrainingExample:
        """The example of a place; the same one in any process at any time."""
        epoch, position = place
        rng = np.random.default_rng((self._seed, _OF_EXAMPLE, epoch, position))
        places = [position]
        if rng.random() < self._augment.mosaic:
            places += rng.integers(self.length, size=3).tolist()
        failed: list[str] = []
        parts = [self._read(epoch, wanted, failed) for wanted in places]
        example = make_example(
            parts,
            settings=self._augment,
            level_sizes=[self._augment.size // stride for stride in self._strides],
            flip_order=self._flip_order,
            rng=rng,
        )
        targets = {entry: self._target_of(example, entry) for entry in set(self.plan)}
        return TrainingExample(
            image=example.image,
            heatmaps={entry: heatmaps for entry, (heatmaps, _) in targets.items()},
            masks={entry.stride: mask for entry, (_, mask) in targets.items()},
            tag_index=tag_index(
                example.keypoints[self._strides.index(TAG_STRIDE)],
                self._augment.size // TAG_STRIDE,
                max_people=self._target.max_people,
                rng=rng,
            ),
            image_ids=tuple(image.image_id for image, _ in parts),
            files=tuple(image.file_name for image, _ in parts),
            failed=tuple(failed),
        )

    def image_at(self, place: Place) -> tuple[LabelledSet, LabelledImage]:
        """The image of a place, and the set that it is of."""
        epoch, position = place
        number, drawn = _nth_draw(self._draws, self._seed, epoch, position)
        images = self._usable[number]
        # The set's own endless order: one permutation of its images after the other.
        turn, index = divmod(epoch * self._draws[number] + drawn, len(images))
        order = _permutation((self._seed, _OF_SET, number, turn), len(images))
        return self._sets[number], images[order[index]]

    def _read(self, epoch: int, position: int, failed: list[str]) -> tuple[LabelledImage, Picture]:
        """An image of an epoch; in place of an unreadable one, which is noted, the next."""
        for attempt in range(min(_MAX_FAILURES, self.length)):
            labelled, image = self.image_at((epoch, (position + attempt) % self.length))
            try:
                return image, labelled.read(image)
            except ImageError as error:
                failed.append(str(error))
        raise ImageError(f"{len(failed)} images in a row cannot be read; the last: {failed[-1]}")

    def _target_of(
        self, example: Example, entry: Plan
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """The heatmaps of one entry of the plan and their mask: labels, mixed with a teacher's."""
        level, taught = self._strides.index(entry.stride), example.taught
        heatmaps = self._drawn(example.keypoints[level], example.areas, entry)
        mask = example.masks[level]
        if taught is None:
            return heatmaps, mask
        points = taught.keypoints[level]
        said = self._drawn(points, taught.areas, entry, heights=points[..., 2])
        return mixed_heatmaps(heatmaps, mask, said, taught.shares[level])

    def _drawn(
        self,
        keypoints: NDArray[np.float32],
        areas: NDArray[np.float32],
        entry: Plan,
        heights: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        return draw_heatmaps(
            keypoints,
            self._augment.size // entry.stride,
            sigma=sigmas_by_size(areas, entry.stride, self._target),
            tau=entry.tau,
            unit_stride=entry.stride if self._target.unit == "input" else 1,
            heights=heights,
        )


def _usable(labelled: LabelledSet) -> tuple[LabelledImage, ...]:
    """The images of a set that teach something, see Examples."""
    some = tuple(
        image
        for image in labelled.images
        if len(image.keypoints) or (image.ignore and image.only is None)
    )
    if not any(len(image.keypoints) for image in some):
        some = tuple(image for image in labelled.images if image.only is None)
    left_out = len(labelled.images) - len(some)
    if left_out:
        _log.info("%s: %d images without people dropped", labelled.annotations, left_out)
    if not some:
        raise ValueError(f"{labelled.annotations}: no image is left to learn from")
    return some


def _split(length: int, weights: Sequence[float]) -> tuple[int, ...]:
    """`length` in whole parts as the weights say; remainders go to the largest fractions."""
    exact = length * np.array(weights, np.float64) / sum(weights)
    parts = np.floor(exact).astype(np.int64)
    most = np.argsort(parts - exact, kind="stable")
    parts[most[: length - parts.sum()]] += 1
    return tuple(parts.tolist())


def _nth_draw(draws: tuple[int, ...], seed: int, epoch: int, position: int) -> tuple[int, int]:
    """(set, how manieth of its draws in this epoch) of a position: all draws, shuffled."""
    place = int(_permutation((seed, _OF_EPOCH, epoch), sum(draws))[position])
    ends = np.cumsum(draws)
    number = int(np.searchsorted(ends, place, side="right"))
    return number, place - (int(ends[number - 1]) if number else 0)


@lru_cache(maxsize=16)
def _permutation(seed: tuple[int, ...], length: int) -> NDArray[np.int64]:
    """Cached because a worker asks for the same few of them all epoch long."""
    return np.random.default_rng(seed).permutation(length)


class Positions(Sampler[list[Place]]):
    """The places of every batch of one rank, from a given place on, epoch after epoch, endlessly.

    The places that follow each other go to ranks 0, 1, ... in turn. So in one batch all ranks
    together see what one process with world times the batch sees. What is left of an epoch after
    its last whole step is skipped.
    """

    def __init__(
        self,
        length: int,
        *,
        batch: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        start: Place = (0, 0),
    ) -> None:
        """See the class.

        Args:
            length: examples an epoch, len(Examples).
            batch: examples a forward pass on each rank.
            accumulate: batches a step; an epoch has whole steps.
            start: the first batch's place, a Batch.next_place of the run that is resumed.
        Raises:
            ValueError: an epoch holds less than one step, or start is no place of a batch.
        """
        step = batch * world * accumulate
        if length < step:
            raise ValueError(
                f"an epoch has {length} examples, a step takes {step}; use a smaller batch "
                "or more images an epoch"
            )
        self._stride = batch * world
        self.steps_per_epoch = length // step
        self._end = self.steps_per_epoch * step
        if start[1] % self._stride or not 0 <= start[1] <= self._end:
            raise ValueError(
                f"no batch begins at position {start[1]}: one takes {self._stride} examples of "
                f"an epoch's {self._end}; resume with the same batch and number of ranks"
            )
        self._rank, self._world = rank, world
        self._start = start if start[1] < self._end else (start[0] + 1, 0)

    def starts(self) -> Iterator[Place]:
        """Where every batch begins, endlessly."""
        place = self._start
        while True:
            yield place
            place = self.after(place)

    def after(self, place: Place) -> Place:
        """Where the batch after the one at this place begins."""
        epoch, position = place[0], place[1] + self._stride
        return (epoch, position) if position < self._end else (epoch + 1, 0)

    def __iter__(self) -> Iterator[list[Place]]:
        for epoch, first in self.starts():
            positions = range(first + self._rank, first + self._stride, self._world)
            yield [(epoch, position) for position in positions]


def batches(
    examples: Examples,
    positions: Positions,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Batches, endlessly, made ahead by worker processes that live as long as the iterator.

    Args:
        mean, std: RGB of values scaled to 0..1, as Model has them.
        workers: processes; 0 makes every batch when it is asked for.
        device: where the batches are wanted; on CUDA they travel through pinned memory, pixels as
            uint8.
    """
    device = torch.device(device)
    if workers:
        atexit.register(_end_workers)
    loader: DataLoader[TrainingExample] = DataLoader(
        examples,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=_Collate(examples.plan),
        pin_memory=device.type == "cuda",
        prefetch_factor=_PREFETCHED if workers else None,
        worker_init_fn=_quiet_worker if workers else None,
        generator=torch.Generator(),  # the loader draws a seed: not from the training's numbers
    )
    normalize = _normalize_by_table if device.type == "cpu" else _normalize_by_formula
    for place, raw in zip(positions.starts(), _errors_in_one_line(loader), strict=True):
        pixels = raw.images.to(device, non_blocking=True)
        images = normalize(pixels, mean, std).permute(0, 3, 1, 2)
        yield raw._replace(
            images=images,
            heatmaps=tuple(maps.to(device, non_blocking=True) for maps in raw.heatmaps),
            masks=tuple(mask.to(device, non_blocking=True) for mask in raw.masks),
            tag_index=raw.tag_index.to(device, non_blocking=True),
            place=place,
            next_place=positions.after(place),
        )


def _errors_in_one_line(loader: Iterable[Any]) -> Iterator[Batch]:
    """The loader's batches; a worker's error comes with a traceback in its text, which goes."""
    try:
        yield from loader
    except ImageError as error:
        raise ImageError(str(error).rstrip().rpartition("ImageError: ")[2]) from None


def _normalize_by_table(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, S, S, 3) uint8 on the CPU -> float32; a tenth of the time of the formula there."""
    values = np.arange(256)[:, None] / 255
    table = ((values - np.array(mean)) / np.array(std)).astype(np.float32)[None]  # (1, 256, 3)
    rows = pixels.numpy().reshape(-1, pixels.shape[2], 3)
    return torch.from_numpy(cv2.LUT(rows, table)).view(pixels.shape)


def _normalize_by_formula(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, S, S, 3) uint8 -> float32, wherever the pixels are."""
    return (pixels.float() / 255 - pixels.new_tensor(mean, dtype=torch.float32)) / (
        pixels.new_tensor(std, dtype=torch.float32)
    )


def _quiet_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the cores belong to the network
    # Ctrl-C and some service managers signal the whole process group: the training process decides
    # when to stop, and its last step still needs batches.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """Before Python ends, it waits for its children: a worker, deaf to SIGTERM, would keep it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would complain of workers that die
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class _Collate:
    """TrainingExamples -> Batch as it travels: images (B, S, S, 3) uint8.

    It is called in the worker, which puts the tensors in shared memory.
    """

    def __init__(self, plan: tuple[Plan, ...]) -> None:
        self._plan = plan

    def __call__(self, examples: list[TrainingExample]) -> Batch:
        heatmaps = {
            entry: _stacked([example.heatmaps[entry] for example in examples])
            for entry in set(self._plan)
        }
        masks = {
            stride: _stacked(_same_channels([example.masks[stride] for example in examples]))
            for stride in {entry.stride for entry in self._plan}
        }
        return Batch(
            images=_stacked([example.image for example in examples]),
            heatmaps=tuple(heatmaps[entry] for entry in self._plan),
            masks=tuple(masks[entry.stride] for entry in self._plan),
            tag_index=_stacked([example.tag_index for example in examples]),
            image_ids=tuple(example.image_ids for example in examples),
            files=tuple(example.files for example in examples),
            failed=tuple(failure for example in examples for failure in example.failed),
            place=(0, 0),
            next_place=(0, 0),
        )


def _stacked(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _same_channels(masks: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Masks of one channel are repeated where others of the batch have one for each keypoint."""
    channels = max(len(mask) for mask in masks)
    return [np.broadcast_to(mask, (channels, *mask.shape[1:])) for mask in masks]
