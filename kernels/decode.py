"""Heatmap pyramid, tags -> people: what the stream and the evaluation both call; one image.

    levels, tags --average_levels--> maps --peaks_of_maps--> peaks --group_people--> people --hide>
                                       +---------refine---------------------^

With its default settings decode is the published HigherHRNet evaluation to the digit. Cheaper modes
and the stream's hiding are settings, off unless asked for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.nearest import nearest
from kernels.averaging import average_levels
from kernels.grouping import group_people
from kernels.oks import BODY_SHARE_OF_BOX
from kernels.peaks import peaks_of_maps
from kernels.people import People
from kernels.sampling import FloatArray


class Skeleton(Protocol):
    """What the decode needs to know of a skeleton."""

    @property
    def matching_order(self) -> tuple[int, ...]: ...

    @property
    def oks_sigmas(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Every setting of the decode; the defaults are the published evaluation exactly."""

    detection_threshold: float = 0.1
    """A peak's score is above it."""
    tag_threshold: float = 1.0
    """A peak joins a person whose mean tag is nearer than this."""
    matching_order: Literal["skeleton", "index"] = "skeleton"
    """Which keypoints are handed to people first: the skeleton's order, which is the official
    code's; or 0, 1, 2, ..., as mmpose 0.x does with CrowdPose."""
    max_people: int = 30
    """Only the first so many people can win further peaks."""
    max_peaks: int = 30
    """Peaks kept for each keypoint."""
    nms_kernel: int = 5
    """Odd side in network-input pixels of the window in which a peak is the highest."""
    adjust: bool = True
    """Move keypoints a quarter of a pixel towards the higher neighbour."""
    refine: Literal["full", "quarter", "off"] = "full"
    """Where missing keypoints are searched: every network-input pixel; the pixels and heat of the
    lowest level alone (coarser, and cheaper only while there are few people); nowhere."""
    peaks_at: Literal["full", "half"] = "full"
    """Where peaks are searched: at network-input size; at the highest level's size, with sub-pixel
    offsets from a log-parabola (cheaper; not the published numbers)."""
    one_step: bool = False
    """Upsample every level straight to network-input size (the papers' text, not their code)."""

    min_person_score: float = 0.0
    """People scoring less are hidden. Here and below: 0 hides nothing; see hide."""
    min_keypoint_score: float = 0.0
    """Keypoints scoring less, found or filled, become missing."""
    min_keypoints: int = 0
    """People with fewer found (not filled) keypoints than this are hidden."""
    duplicate_oks: float = 1.0
    """People whose OKS with a better one exceeds it are hidden; 1 or more hides nobody."""

    def __post_init__(self) -> None:
        _check_choice("matching_order", self.matching_order, ("skeleton", "index"))
        _check_choice("refine", self.refine, ("full", "quarter", "off"))
        _check_choice("peaks_at", self.peaks_at, ("full", "half"))
        for name in ("detection_threshold", "min_person_score", "min_keypoint_score"):
            _check_number(name, getattr(self, name), most=1)
        for name in ("tag_threshold", "duplicate_oks"):
            _check_number(name, getattr(self, name))
        for name in ("max_people", "max_peaks", "nms_kernel"):
            _check_number(name, getattr(self, name), least=1, whole=True)
        _check_number("min_keypoints", self.min_keypoints, whole=True)
        for name in ("adjust", "one_step"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.nms_kernel % 2 == 0:
            raise ValueError(f"nms_kernel must be odd, got {self.nms_kernel}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_number(
    name: str, value: object, *, least: int = 0, most: int | None = None, whole: bool = False
) -> None:
    """Values may come from a file or a command line: anything is possible."""
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if is_number and value >= least and (most is None or value <= most):  # type: ignore[operator]
        return
    limits = f"at least {least}" if most is None else f"from {least} to {most}"
    kind = "a whole number" if whole else "a number"
    raise ValueError(f"{name} must be {kind}, {limits}, got {value!r}")


PUBLISHED = DecodeSettings()


def first_unknown(names: Iterable[str]) -> str | None:
    """The first that is no field of DecodeSettings, quoted, and a hint; None: all are known."""
    known = [field.name for field in fields(DecodeSettings)]
    for name in names:
        if name not in known:
            close = nearest(name.rpartition(".")[2], known)
            hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
            return f"{name!r}; {hint}"
    return None


def decode(
    levels: Sequence[FloatArray],
    tags: FloatArray,
    size: tuple[int, int],
    skeleton: Skeleton,
    settings: DecodeSettings = PUBLISHED,
) -> People:
    """The people in one image's heatmaps and tags.

    Args:
        levels: (K, h, w) float32 each, low to high resolution; a single one may have size already.
            C-contiguous arrays are read in place, others are copied.
        tags: (K, a, b, T) float32 at the lowest level's size or at size.
        size: (H, W) of the network input; people are in its pixels.
        skeleton: the order of matching and the OKS constants.
        settings: the published evaluation, by default.

    Raises:
        ValueError: maps, size or skeleton that do not fit together.
    """
    maps = average_levels(levels, tags, size, one_step=settings.one_step)
    peaks = peaks_of_maps(
        maps,
        max_peaks=settings.max_peaks,
        nms_kernel=settings.nms_kernel,
        min_score=settings.detection_threshold,
        at=settings.peaks_at,
    )
    refine_on, refine_step = None, (1.0, 1.0)
    if settings.refine == "full":
        refine_on = maps
    elif settings.refine == "quarter":
        height, width = levels[0].shape[1:]
        refine_on = average_levels(levels[:1], tags, (height, width), tile_side=4)
        refine_step = (size[1] / width, size[0] / height)
    people = group_people(
        peaks,
        matching_order=matching_order(skeleton, settings),
        tag_threshold=settings.tag_threshold,
        max_people=settings.max_people,
        adjust=settings.adjust,
        refine_on=refine_on,
        refine_step=refine_step,
    )
    return hide(people, skeleton, settings)


def matching_order(skeleton: Skeleton, settings: DecodeSettings) -> tuple[int, ...]:
    """Every keypoint once, in the order in which people get them."""
    order = skeleton.matching_order
    return order if settings.matching_order == "skeleton" else tuple(range(len(order)))


def hide(people: People, skeleton: Skeleton, settings: DecodeSettings) -> People:
    """Drop what a viewer should not see; the published evaluation hides nothing.

    In this order: keypoints below min_keypoint_score become missing (all zero, not filled), whether
    a peak gave them or refine did, so unlikely filled ones go and sure ones stay, marked in
    filled. People with fewer than min_keypoints found keypoints left, or whose score is below
    min_person_score, are dropped; filled keypoints do not count because refine fills nearly all.
    Person scores stay what they were. Then duplicates are dropped: see _without_duplicates.
    The order of those who stay is kept; people itself is not changed.
    """
    if settings.min_keypoint_score > 0:
        people = _without_weak_keypoints(people, settings.min_keypoint_score)
    if settings.min_keypoints > 0 or settings.min_person_score > 0:
        found = (people.keypoints[:, :, 2] > 0) & ~people.filled
        enough = found.sum(axis=1) >= settings.min_keypoints
        people = _only(people, enough & (people.scores >= settings.min_person_score))
    if settings.duplicate_oks < 1 and len(people.scores) > 1:
        people = _without_duplicates(people, skeleton.oks_sigmas, settings.duplicate_oks)
    return people


def _without_weak_keypoints(people: People, min_score: float) -> People:
    strong = people.keypoints[:, :, 2] >= min_score
    return people._replace(
        keypoints=np.where(strong[:, :, None], people.keypoints, np.float32(0)),
        filled=people.filled & strong,
    )


def _without_duplicates(people: People, sigmas: Sequence[float], max_oks: float) -> People:
    """Keep people from the highest score down; drop whoever is too similar to one that is kept.

    OKS of two people = mean over the keypoints that both have, found or filled, of
    exp(-d^2 / (2 a (2 sigma)^2)): d their distance in pixels, sigma the keypoint's constant, a
    the larger of their areas, an area being 0.53 times the box around a person's found keypoints
    (filled ones may lie far away). Without a common keypoint it is 0.
    """
    variances = 2 * (2 * np.asarray(sigmas)) ** 2
    xy = people.keypoints[:, :, :2].astype(np.float64)
    present = people.keypoints[:, :, 2] > 0
    areas = _areas(xy, present & ~people.filled)
    kept: list[int] = []
    for person in np.argsort(-people.scores, kind="stable"):
        squared = ((xy[kept] - xy[person]) ** 2).sum(axis=2)  # (kept, K)
        area = np.maximum(areas[kept], areas[person])[:, None]
        similarity = np.exp(-squared / (variances * area + np.finfo(np.float64).tiny))
        common = present[kept] & present[person]
        count = np.maximum(common.sum(axis=1), 1)
        oks = np.where(common, similarity, 0).sum(axis=1) / count
        if not (oks > max_oks).any():
            kept.append(int(person))
    keep = np.zeros(len(people.scores), np.bool_)
    keep[kept] = True
    return _only(people, keep)


def _areas(xy: NDArray[np.float64], found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(P,) body areas from the extent of found keypoints, at least one pixel a side."""
    inside = found[:, :, None]
    low = np.where(inside, xy, np.inf).min(axis=1)
    high = np.where(inside, xy, -np.inf).max(axis=1)
    sides = np.maximum(high - low, 1)
    return np.asarray(BODY_SHARE_OF_BOX * sides[:, 0] * sides[:, 1])


def _only(people: People, keep: NDArray[np.bool_]) -> People:
    return People(
        keypoints=people.keypoints[keep],
        scores=people.scores[keep],
        filled=people.filled[keep],
        tags=people.tags[keep],
    )


def warm_up() -> None:
    """Compile whatever decode runs, or load it from the cache, as the first decode would."""
    skeleton = _TinySkeleton()
    low, high = np.zeros((2, 4, 4), np.float32), np.zeros((2, 8, 8), np.float32)
    low[0, 1, 1] = high[0, 3, 3] = 1.0  # one person whose second keypoint must be refined
    tags = np.zeros((2, 4, 4, 1), np.float32)
    for settings in (PUBLISHED, DecodeSettings(peaks_at="half", refine="quarter")):
        decode([low, high], tags, (16, 16), skeleton, settings)
        decode([high], tags, (16, 16), skeleton, settings)


@dataclass(frozen=True)
class _TinySkeleton:
    matching_order: tuple[int, ...] = (0, 1)
    oks_sigmas: tuple[float, ...] = (0.1, 0.1)
