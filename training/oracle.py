"""What if half of the decode were perfect? True grouping of predicted peaks, and the reverse.

    grouping:  true keypoints, predicted tags read there --> the decode's own matching
    peaks:     predicted peaks --> the labelled person whose keypoint they lie at

The first says how good the tags are, the second how good the heatmaps are (HigherHRNet, Cheng et
al. 2020, sec. 3.2, asks the same). Neither refines: only what was given or found is scored.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.averaging import MeanMaps, average_levels
from kernels.decode import DecodeSettings, matching_order
from kernels.geometry import invert
from kernels.grouping import group_people
from kernels.peaks import Peaks, peaks_of_maps
from kernels.people import People
from kernels.sampling import upsampled_tag
from nets.skeletons import Skeleton
from pipeline.messages import NetOutput, Poses
from pipeline.poses import poses_in_picture
from training.labels import LabelledImage

FloatArray = NDArray[np.float32]

_REACH = 2.0
"""A peak belongs to a keypoint where their similarity is at least exp(-2): two standard deviations
of OKS."""


class PictureMaps(NamedTuple):
    """One picture's maps, ready for the decode."""

    levels: tuple[NDArray[np.float32], ...]
    """Each (K, h, w) float32, low to high resolution."""
    tags: NDArray[np.float32]
    """(K, h, w, T) float32."""
    net_size: tuple[int, int]
    """(H, W) of the network input at scale 1."""
    image_from_net: NDArray[np.float64]
    """(2, 3): network-input pixels to picture pixels."""


Group = Callable[..., People]
"""true_keypoints_grouped or predicted_peaks_grouped."""


class FindPosesByOracle:
    """Stands in the place of the decode (pipeline.poses.FindPoses).

    Args:
        group: which half is perfect.
        labels: by the index of the picture's frame.
    """

    def __init__(
        self,
        group: Group,
        labels: Mapping[int, LabelledImage],
        skeleton: Skeleton,
        settings: DecodeSettings,
    ) -> None:
        self._group = group
        self._labels = labels
        self._skeleton = skeleton
        self._settings = settings

    def __call__(self, output: NetOutput) -> Iterator[Poses]:
        for i, frame in enumerate(output.frames):
            started = time.perf_counter()
            maps = PictureMaps(
                levels=tuple(level[i] for level in output.levels),
                tags=output.tags[i],
                net_size=output.net_size,
                image_from_net=output.image_from_net[i],
            )
            people = self._group(
                maps,
                image=self._labels[frame.index],
                skeleton=self._skeleton,
                settings=self._settings,
            )
            yield poses_in_picture(people, output, i, self._skeleton, started=started)


class _Truth(NamedTuple):
    """One picture's labels in network-input pixels."""

    xy: NDArray[np.float64]
    """(P, K, 2)"""
    labelled: NDArray[np.bool_]
    """(P, K)"""
    areas: NDArray[np.float64]
    """(P,) square pixels"""


def true_keypoints_grouped(
    maps: PictureMaps, image: LabelledImage, *, skeleton: Skeleton, settings: DecodeSettings
) -> People:
    """Group the labelled keypoints by the predicted tags at their places.

    The order in which keypoints come must not give the answer away where tags do not tell people
    apart, so it is shuffled for each keypoint (always in the same way).

    Returns:
        People in network-input pixels; every score of a keypoint is 1 or 0.
    """
    truth = _truth_of(maps, image)
    peaks = _true_peaks(_averaged(maps, settings), truth, maps.net_size)
    return group_people(
        peaks,
        matching_order=matching_order(skeleton, settings),
        tag_threshold=settings.tag_threshold,
        max_people=settings.max_people,
    )


def _true_peaks(maps: MeanMaps, truth: _Truth, net_size: tuple[int, int]) -> Peaks:
    num_people, num_keypoints = truth.labelled.shape
    slots, num_tags = max(num_people, 1), maps.tags.shape[3]
    peaks = Peaks(
        xy=np.zeros((num_keypoints, slots, 2), np.float32),
        score=np.zeros((num_keypoints, slots), np.float32),
        tags=np.zeros((num_keypoints, slots, num_tags), np.float32),
        offset=np.zeros((num_keypoints, slots, 2), np.float32),
    )
    last = np.array(net_size[::-1]) - 1
    rng = np.random.default_rng(0)
    for k in range(num_keypoints):
        people = rng.permutation(np.flatnonzero(truth.labelled[:, k]))
        for m, xy in enumerate(truth.xy[people, k]):
            pixel = np.clip(np.floor(xy), 0, last).astype(np.int64)  # a label may lie on the edge
            peaks.xy[k, m], peaks.offset[k, m] = pixel, xy - pixel
            peaks.score[k, m] = 1
            x, y = pixel.tolist()
            for t in range(num_tags):
                peaks.tags[k, m, t] = upsampled_tag(maps.tags[k], maps.tag_grids, x, y, t)
    return peaks


def predicted_peaks_grouped(
    maps: PictureMaps, image: LabelledImage, *, skeleton: Skeleton, settings: DecodeSettings
) -> People:
    """Give each predicted peak to the labelled person whose same keypoint is nearest.

    Near is meant as OKS means it: distance over the keypoint's constant and the person's size.
    Peaks out of reach of all are dropped; of several at one keypoint the strongest counts.

    Returns:
        People in network-input pixels: those labelled ones of whom a keypoint was found.
    """
    truth = _truth_of(maps, image)
    peaks = peaks_of_maps(
        _averaged(maps, settings),
        max_peaks=settings.max_peaks,
        nms_kernel=settings.nms_kernel,
        min_score=settings.detection_threshold,
        at=settings.peaks_at,
    )
    num_people, num_keypoints = truth.labelled.shape
    keypoints = np.zeros((num_people, num_keypoints, 3), np.float32)
    for k in range(num_keypoints):
        owners = _owners(peaks, k, truth, skeleton.oks_sigmas)
        for m, person in reversed(list(enumerate(owners))):  # the strongest comes first, so wins
            if person >= 0:
                keypoints[person, k, :2] = peaks.xy[k, m] + settings.adjust * peaks.offset[k, m]
                keypoints[person, k, 2] = peaks.score[k, m]
    keypoints = keypoints[keypoints[:, :, 2].any(axis=1)]
    return People(
        keypoints=keypoints,
        scores=keypoints[:, :, 2].mean(axis=1),
        filled=np.zeros(keypoints.shape[:2], np.bool_),
        tags=np.zeros((len(keypoints), maps.tags.shape[3]), np.float32),
    )


def _owners(peaks: Peaks, k: int, truth: _Truth, sigmas: Sequence[float]) -> list[int]:
    """Of each peak of keypoint k the person it belongs to, -1 where there is none."""
    num_peaks = int((peaks.score[k] > 0).sum())
    if not truth.labelled[:, k].any():
        return [-1] * num_peaks
    xy = peaks.xy[k, :num_peaks] + peaks.offset[k, :num_peaks]
    squared = ((xy[:, None] - truth.xy[None, :, k]) ** 2).sum(axis=2)  # (M, P)
    far = squared / (2 * (2 * sigmas[k]) ** 2 * np.maximum(truth.areas, 1))
    far[:, ~truth.labelled[:, k]] = np.inf
    nearest = far.argmin(axis=1)
    return [int(p) if far[m, p] <= _REACH else -1 for m, p in enumerate(nearest)]


def _averaged(maps: PictureMaps, settings: DecodeSettings) -> MeanMaps:
    return average_levels(maps.levels, maps.tags, maps.net_size, one_step=settings.one_step)


def _truth_of(maps: PictureMaps, image: LabelledImage) -> _Truth:
    net_from_picture = invert(maps.image_from_net)
    xy = image.keypoints[:, :, :2] @ net_from_picture[:, :2].T + net_from_picture[:, 2]
    factor = net_from_picture[0, 0]
    return _Truth(xy, image.keypoints[:, :, 2] > 0, image.areas.astype(np.float64) * factor**2)
