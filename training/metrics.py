"""COCO keypoint results against ground truth: average precision, and how sure it is.

    annotations, results --faster-coco-eval--> AP, AP50, ...
                         --match_people--> Matches --weights over images--> the same, resampled

The protocol is faster-coco-eval's; what is here is how CrowdPose differs (sigmas, areas, splits by
crowdedness) and the bootstrap: people are matched once, then any number of resamples of the images
is only counted again.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import njit
from kernels.oks import BODY_SHARE_OF_BOX
from nets.skeletons import CROWDPOSE, Skeleton
from training import annotations as annotation_files

logger = logging.getLogger(__name__)

Annotations = Mapping[str, Any]
"""A COCO annotation file's content: images, annotations, categories."""
Results = Sequence[Mapping[str, Any]]
"""COCO keypoint results: image_id, category_id, keypoints, score."""

MAX_PEOPLE = 20
"""The best so many people of each image count (COCO keypoint challenge)."""
COCO_METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
CROWD_METRICS = ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_easy", "AP_medium", "AP_hard")

_CROWD_LIMITS = (0.2, 0.8)
"""crowdIndex below which an image is easy, medium (CrowdPose evaluation code; the paper says 0.1
and 0.8)."""
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""OKS from which a person counts as found."""
_RECALLS = np.linspace(0, 1, 101)
_AREAS = np.array([[0, 1e10], [32**2, 96**2], [96**2, 1e10]], np.float64)
"""All, medium, large: smallest and largest area in square pixels."""
_ALL, _MEDIUM, _LARGE = range(3)
_AP50, _AP75 = 0, 5
_FALSE, _TRUE, _IGNORED = np.uint8(0), np.uint8(1), np.uint8(2)


# --- annotations and results ---------------------------------------------------------------------


def read_annotations(path: Path) -> dict[str, Any]:
    """An annotation file's content.

    Raises:
        ValueError: no file, no JSON, or no list of images in it; one line.
    """
    try:
        return annotation_files.read_annotations(path)
    except ValueError as error:
        raise ValueError(f"annotations {path}: {error}") from None


def read_results(path: Path) -> list[dict[str, Any]]:
    """A file of COCO keypoint results.

    Raises:
        ValueError: no file, no JSON, or no list of people in it; one line.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"results {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"results {path} are not JSON; the file is empty or cut off") from None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"{path} holds no COCO results: expected a JSON list of detected people")
    return content


def _chosen_images(annotations: Annotations, image_ids: Collection[int] | None) -> list[Any]:
    wanted = None if image_ids is None else set(image_ids)
    return [i for i in annotations["images"] if wanted is None or i["id"] in wanted]


def _ground_truth(
    annotations: Annotations, skeleton: Skeleton, images: list[Any]
) -> dict[str, Any]:
    """What faster-coco-eval reads: one category, ids from 1, areas and counts where they lack."""
    ids = {image["id"] for image in images}
    people: list[dict[str, Any]] = []
    for person in annotations.get("annotations", []):
        if person.get("image_id") not in ids or "keypoints" not in person:
            continue
        _check_keypoints(person["keypoints"], skeleton, f"annotation {person.get('id')}")
        if "bbox" not in person:
            raise ValueError(f"annotation {person.get('id')} has no bbox, which OKS needs")
        _, _, width, height = person["bbox"]
        crowded = skeleton is CROWDPOSE
        area = None if crowded else person.get("area")
        labelled = sum(v > 0 for v in person["keypoints"][2::3])
        people.append(
            {
                **person,
                "id": len(people) + 1,  # an id of 0 would count as not found
                "category_id": 1,
                "iscrowd": person.get("iscrowd", 0),
                "num_keypoints": person.get("num_keypoints", labelled),
                "area": BODY_SHARE_OF_BOX * width * height if area is None else area,
            }
        )
    return {"images": images, "annotations": people, "categories": [{"id": 1, "name": "person"}]}


def _detections(
    results: Results, annotations: Annotations, skeleton: Skeleton, images: list[Any]
) -> list[dict[str, Any]]:
    known = {image["id"] for image in annotations["images"]}
    chosen = {image["id"] for image in images}
    detections = []
    for person in results:
        if not {"image_id", "keypoints", "score"} <= set(person):
            raise ValueError(
                "a result must have image_id, keypoints and score, got " + ", ".join(person)
            )
        if person["image_id"] not in known:
            raise ValueError(
                f"results name image {person['image_id']}, which the annotations do not list; "
                "they belong to another data set"
            )
        _check_keypoints(person["keypoints"], skeleton, f"a result of image {person['image_id']}")
        if person["image_id"] in chosen:
            detections.append(
                {key: person[key] for key in ("image_id", "keypoints", "score")}
                | {"category_id": 1}
            )
    return detections


def _check_keypoints(keypoints: Sequence[float], skeleton: Skeleton, where: str) -> None:
    if len(keypoints) != 3 * skeleton.num_keypoints:
        raise ValueError(
            f"{where} has {len(keypoints)} numbers for its keypoints, but {skeleton.name} has "
            f"{skeleton.num_keypoints} keypoints of x, y, v; use weights and data of one skeleton"
        )


# --- the protocol --------------------------------------------------------------------------------


def evaluate_results(
    annotations: Annotations | Path,
    results: Results,
    *,
    skeleton: Skeleton,
    image_ids: Collection[int] | None = None,
) -> dict[str, float]:
    """Average precision and recall as the data set's own evaluation computes them.

    COCO: OKS with the annotations' areas, 0.50:0.05:0.95, the best 20 people of an image.
    CrowdPose (skeleton crowdpose14): areas are 0.53 of the boxes; AP_easy, AP_medium and AP_hard
    are over images of crowdIndex below 0.2, below 0.8 and above.

    Args:
        results: list of {image_id, keypoints (3K), score}.
        image_ids: count these images only; results of others are dropped.
    Returns:
        COCO_METRICS or CROWD_METRICS, 0..1; -1 where there is nobody to find.
    Raises:
        ValueError: another number of keypoints than the skeleton's, results of unknown images.
    """
    if isinstance(annotations, Path):
        annotations = read_annotations(annotations)
    evaluator = _evaluator(annotations, results, skeleton, image_ids)
    if evaluator is None:
        return dict.fromkeys(metric_names(skeleton), -1.0)
    evaluator.run()
    metrics = {
        name: float(value) for name, value in zip(COCO_METRICS, evaluator.all_stats, strict=True)
    }
    if skeleton is not CROWDPOSE:
        return metrics
    splits = [-1.0] * 3
    if _has_crowd_index(evaluator.cocoGt.dataset["images"]):
        splits = [float(value) for value in evaluator.get_type_result(*_CROWD_LIMITS)]
    return {name: metrics[name] for name in CROWD_METRICS[:6]} | dict(
        zip(CROWD_METRICS[6:], splits, strict=True)
    )


def check_results(
    annotations: Annotations,
    results: Results,
    *,
    skeleton: Skeleton,
    image_ids: Collection[int] | None = None,
) -> None:
    """Raise what evaluate_results would raise, in no time: before the images are run."""
    _truth_and_detections(annotations, results, skeleton, image_ids)


def metric_names(skeleton: Skeleton) -> tuple[str, ...]:
    """What is reported for a skeleton, in the order of its tables."""
    return CROWD_METRICS if skeleton is CROWDPOSE else COCO_METRICS


def _evaluator(
    annotations: Annotations,
    results: Results,
    skeleton: Skeleton,
    image_ids: Collection[int] | None,
) -> Any:
    """faster-coco-eval's evaluator, not yet run; None where there is nobody to find."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, detections = _truth_and_detections(annotations, results, skeleton, image_ids)
    if not truth["annotations"]:
        return None
    ground_truth = COCO(truth)
    return COCOeval_faster(
        ground_truth,
        ground_truth.loadRes(detections),
        iouType="keypoints",
        kpt_oks_sigmas=list(skeleton.oks_sigmas),
        use_area=skeleton is not CROWDPOSE,
        print_function=_say_nothing,
    )


def _truth_and_detections(
    annotations: Annotations,
    results: Results,
    skeleton: Skeleton,
    image_ids: Collection[int] | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    images = _chosen_images(annotations, image_ids)
    truth = _ground_truth(annotations, skeleton, images)
    return truth, _detections(results, annotations, skeleton, images)


def _say_nothing(*_: object) -> None:
    """faster-coco-eval prints its tables through a function."""


def _has_crowd_index(images: Sequence[Mapping[str, Any]]) -> bool:
    if all("crowdIndex" in image for image in images):
        return True
    logger.warning("images without crowdIndex: no AP_easy, AP_medium and AP_hard")
    return False


# --- matches, and metrics of any weights over the images -----------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Who was found in which image, for all thresholds and areas: all that the metrics need."""

    image_ids: tuple[int, ...]
    """I images, in ascending order."""
    image: NDArray[np.int64]
    """(N,): index of each detected person's image; people ordered by falling score."""
    outcome: NDArray[np.uint8]
    """(A, T, N): 0 false, 1 true, 2 ignored, by area and OKS threshold."""
    num_people: NDArray[np.int64]
    """(A, I): people to be found in each image."""
    splits: NDArray[np.bool_] | None
    """(3, I): easy, medium, hard images; CrowdPose only."""
    names: tuple[str, ...]
    """The metrics, in order."""

    def metrics(self, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """The metrics where image i counts weights[i] times; by default each once.

        Exactly those of a data set in which the image occurs so many times.
        """
        if weights is None:
            weights = np.ones(len(self.image_ids), np.int64)
        precision, recall = self._curves(_ALL, weights)
        whole = [precision.mean(), precision[_AP50].mean(), precision[_AP75].mean()]
        recalls = [recall.mean(), recall[_AP50], recall[_AP75]]
        if self.splits is None:
            sized = [self._curves(area, weights) for area in (_MEDIUM, _LARGE)]
            values = [
                *whole,
                *(precision.mean() for precision, _ in sized),
                *recalls,
                *(recall.mean() for _, recall in sized),
            ]
        else:
            parts = [self._curves(_ALL, weights * split)[0].mean() for split in self.splits]
            values = [*whole, *recalls, *parts]
        return np.array(values)

    def _curves(
        self, area: int, weights: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Precision (T, R) and recall (T,); all -1 where there is nobody to find."""
        total = int(self.num_people[area] @ weights)
        if total == 0:
            return np.full((len(_THRESHOLDS), len(_RECALLS)), -1.0), np.full(len(_THRESHOLDS), -1.0)
        return _precision_and_recall(self.image, self.outcome[area], weights, total)


def match_people(
    annotations: Annotations,
    results: Results,
    *,
    skeleton: Skeleton,
    image_ids: Collection[int] | None = None,
) -> Matches | None:
    """Match detected people to labelled ones once; None where there is nobody to find.

    Arguments and errors as in evaluate_results.
    """
    evaluator = _evaluator(annotations, results, skeleton, image_ids)
    if evaluator is None:
        return None
    evaluator.evaluate()  # OKS of every pair; the matching itself cannot be read out of it
    ids = sorted(evaluator.cocoGt.imgs)
    num_people = np.zeros((len(_AREAS), len(ids)), np.int64)
    image, scores, outcomes = [], [], [np.zeros((len(_AREAS), len(_THRESHOLDS), 0), np.uint8)]
    for i, image_id in enumerate(ids):
        truth = evaluator.cocoGt.imgToAnns.get(image_id, [])
        found = _best_first(evaluator.cocoDt.imgToAnns.get(image_id, []))
        ignored = _is_ignored(truth)
        num_people[:, i] = (~ignored).sum(axis=1)
        crowd = np.array([bool(person["iscrowd"]) for person in truth], np.bool_)
        areas = np.array([person["area"] for person in found], np.float64)
        oks = np.asarray(evaluator.ious[image_id, 1], np.float64).reshape(len(found), len(truth))
        outcomes.append(_match(oks, ignored, crowd, areas))
        image += [i] * len(found)
        scores += [person["score"] for person in found]
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    return Matches(
        image_ids=tuple(ids),
        image=np.array(image, np.int64)[order],
        outcome=np.ascontiguousarray(np.concatenate(outcomes, axis=2)[:, :, order]),
        num_people=num_people,
        splits=_crowd_splits([evaluator.cocoGt.imgs[i] for i in ids], skeleton),
        names=metric_names(skeleton),
    )


def _best_first(people: list[Any]) -> list[Any]:
    order = np.argsort([-person["score"] for person in people], kind="stable")
    return [people[i] for i in order[:MAX_PEOPLE]]


def _is_ignored(truth: list[Any]) -> NDArray[np.bool_]:
    """(A, G): neither to be found nor false if found: crowds, nothing labelled, another size."""
    unlabelled = np.array([p["iscrowd"] or not p["num_keypoints"] for p in truth], np.bool_)
    areas = np.array([p["area"] for p in truth], np.float64)
    outside = (areas < _AREAS[:, :1]) | (areas > _AREAS[:, 1:])
    return np.asarray(unlabelled | outside)


def _crowd_splits(images: list[Any], skeleton: Skeleton) -> NDArray[np.bool_] | None:
    if skeleton is not CROWDPOSE:
        return None
    if not _has_crowd_index(images):
        return np.zeros((3, len(images)), np.bool_)
    index = np.array([image["crowdIndex"] for image in images], np.float64)
    easy, below_hard = index < _CROWD_LIMITS[0], index < _CROWD_LIMITS[1]
    return np.stack([easy, below_hard & ~easy, ~below_hard])


@njit
def _match(
    oks: NDArray[np.float64],
    ignored: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    areas: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Outcome (A, T, D) of one image: the matching of the COCO evaluation.

    From the best detection down, each takes the free person of highest OKS, at least the threshold;
    of equal ones the later. People who are ignored are taken only where no other will do, and
    crowds any number of times. Who takes an ignored one, or takes nobody and has itself an area
    outside the range, is ignored.
    """
    num_found, num_people = oks.shape
    outcome = np.zeros((len(_AREAS), len(_THRESHOLDS), num_found), np.uint8)
    for a in range(len(_AREAS)):
        for t in range(len(_THRESHOLDS)):
            taken = np.zeros(num_people, np.bool_)
            for d in range(num_found):
                best = -1
                for wants_ignored in (False, True):
                    least = min(_THRESHOLDS[t], 1 - 1e-10)
                    for g in range(num_people):
                        if ignored[a, g] != wants_ignored or (taken[g] and not crowd[g]):
                            continue
                        if oks[d, g] >= least:
                            least, best = oks[d, g], g
                    if best >= 0:
                        break
                if best >= 0:
                    taken[best] = True
                    outcome[a, t, d] = _IGNORED if ignored[a, best] else _TRUE
                elif areas[d] < _AREAS[a, 0] or areas[d] > _AREAS[a, 1]:
                    outcome[a, t, d] = _IGNORED
    return outcome


@njit
def _precision_and_recall(
    image: NDArray[np.int64],
    outcome: NDArray[np.uint8],
    weights: NDArray[np.int64],
    total: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (T, R) at the 101 recalls, and final recall (T,), of weighted images.

    Precision at a recall is the highest at this or any higher recall. Only where a true one is
    added can it be highest, so each such place is noted at the last recall that it reaches, and
    one pass from the right finishes.
    """
    num_thresholds, num_recalls = len(outcome), len(_RECALLS)
    precision = np.zeros((num_thresholds, num_recalls))
    recall = np.zeros(num_thresholds)
    for t in range(num_thresholds):
        num_true, num_false, r = 0, 0, 0
        for n in range(len(image)):
            weight = weights[image[n]]
            if weight == 0 or outcome[t, n] == _IGNORED:
                continue
            if outcome[t, n] == _FALSE:
                num_false += weight
                continue
            num_true += weight
            while r + 1 < num_recalls and num_true / total >= _RECALLS[r + 1]:
                r += 1
            reached = num_true / (num_true + num_false + 2.0**-52)
            precision[t, r] = max(precision[t, r], reached)
        for r in range(num_recalls - 2, -1, -1):
            precision[t, r] = max(precision[t, r], precision[t, r + 1])
        recall[t] = num_true / total
    return precision, recall


# --- bootstrap -----------------------------------------------------------------------------------


class Interval(NamedTuple):
    """Of a metric, or of a difference of two."""

    low: float
    high: float


class Difference(NamedTuple):
    """What one result has more than another."""

    value: float
    low: float
    high: float
    share_better: float
    """Of the resamples in which the first one is better."""


def bootstrap(
    matches: Matches, *, num_resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, Interval]:
    """Percentile intervals of the metrics over resamples of the images (Efron 1979).

    NaN where a metric exists in no resample (there is nobody of that size).
    """
    values = _resampled(matches, num_resamples, seed)
    return {
        name: Interval(*_percentiles(values[:, i], confidence))
        for i, name in enumerate(matches.names)
    }


def bootstrap_difference(
    first: Matches,
    second: Matches,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Difference]:
    """First minus second on the same images, which are resampled together (a paired bootstrap).

    Raises:
        ValueError: the two are of different images.
    """
    if first.image_ids != second.image_ids:
        raise ValueError(
            f"results of different images cannot be paired: {len(first.image_ids)} and "
            f"{len(second.image_ids)} images"
        )
    a, b = (_resampled(matches, num_resamples, seed) for matches in (first, second))
    values = first.metrics() - second.metrics()
    return {
        name: Difference(
            float(values[i]),
            *_percentiles(a[:, i] - b[:, i], confidence),
            float(np.mean(a[:, i] > b[:, i])),
        )
        for i, name in enumerate(first.names)
    }


def _resampled(matches: Matches, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """(num_resamples, metrics): as many images drawn with replacement as there are."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    rng = np.random.default_rng(seed)
    count = len(matches.image_ids)
    values = np.empty((num_resamples, len(matches.names)))
    for row in values:
        weights = np.bincount(rng.integers(0, count, count), minlength=count)
        row[:] = matches.metrics(weights)
    values[values < 0] = np.nan  # nobody to find in this resample
    return values


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(known, tails)
    return float(low), float(high)
