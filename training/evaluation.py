"""Labelled images in, scores out: what evaluate.py does, less the command line and the drawing.

    load_data --> check --> predict_images (training.predict) or the real stream
              --> score --> summary

This file knows nothing of options and tables.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.files import write_atomically
from nets.skeletons import Skeleton
from training.annotations import load_labelled_set
from training.config import DatasetConfig
from training.image_store import ImageStore
from training.labels import LabelledImage
from training.metrics import (
    Difference,
    Interval,
    Matches,
    bootstrap,
    bootstrap_difference,
    check_results,
    evaluate_results,
    match_people,
    read_annotations,
)
from training.oracle import (
    FindPosesByOracle,
    predicted_peaks_grouped,
    true_keypoints_grouped,
)
from training.predict import PredictSettings, SetPrediction

Oracle = Literal["grouping", "peaks"]
Results = list[dict[str, Any]]
"""People as COCO keypoint results."""


@dataclass(frozen=True)
class EvaluationData:
    """What is evaluated on."""

    annotations: dict[str, Any]
    images: list[dict[str, Any]]
    """Entries of those that are run."""
    labels: dict[int, LabelledImage]
    """By image id."""
    store: ImageStore
    skeleton: Skeleton

    @property
    def image_ids(self) -> list[int]:
        return [int(image["id"]) for image in self.images]


@dataclass(frozen=True)
class Scores:
    """Metrics by name; intervals and differences where they were asked for and exist."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    differences: dict[str, Difference] | None


def load_data(
    annotations: Path, images: Path | None, skeleton: Skeleton, *, limit: int | None = None
) -> EvaluationData:
    """Annotations and where their images are.

    Args:
        images: folder or archive; None: beside the annotations.
        limit: only the first so many images.
    Raises:
        ValueError: files that cannot be read or that are of another skeleton.
    """
    labelled = load_labelled_set(DatasetConfig(annotations=annotations, images=images), skeleton)
    content = read_annotations(annotations)
    return EvaluationData(
        annotations=content,
        # By size, for an engine may compile anew for each network size and keeps only a few.
        images=sorted(
            content["images"][:limit], key=lambda image: (image["height"], image["width"])
        ),
        labels={image.image_id: image for image in labelled.images},
        store=labelled.store,
        skeleton=skeleton,
    )


def oracle_stage(
    oracle: Oracle | None, data: EvaluationData, settings: PredictSettings
) -> FindPosesByOracle | None:
    """What stands in the place of the decode; None: the decode itself."""
    if oracle is None:
        return None
    group = {"grouping": true_keypoints_grouped, "peaks": predicted_peaks_grouped}[oracle]
    return FindPosesByOracle(group, data.labels, data.skeleton, settings.decode)


def check(data: EvaluationData, other: Results) -> None:
    """What score would refuse of labels and of another run's results, told before images run."""
    check_results(data.annotations, other, skeleton=data.skeleton, image_ids=data.image_ids)


def score(
    data: EvaluationData, results: Results, *, num_resamples: int, other: Results | None = None
) -> Scores:
    """Metrics of results, bootstrap intervals over images, and by how much they exceed other."""

    def matched(people: Results) -> Matches | None:
        return match_people(data.annotations, people, skeleton=data.skeleton, image_ids=ids)

    ids = data.image_ids
    metrics = evaluate_results(data.annotations, results, skeleton=data.skeleton, image_ids=ids)
    own = matched(results) if num_resamples else None
    if own is None:  # not asked for, or there is nobody to find
        return Scores(metrics, {}, None)
    intervals = bootstrap(own, num_resamples=num_resamples)
    theirs = None if other is None else matched(other)
    if theirs is None:
        return Scores(metrics, intervals, None)
    differences = bootstrap_difference(own, theirs, num_resamples=num_resamples)
    return Scores(metrics, intervals, differences)


def summary(
    data: EvaluationData, done: SetPrediction, scores: Scores, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything about an evaluation as one JSON object; settings says how it was run."""
    report = {
        **scores.metrics,
        "intervals_95": {name: list(interval) for name, interval in scores.intervals.items()},
        "settings": dict(settings),
        "counts": {
            "images": len(data.images),
            "unreadable": len(done.failed),
            "people_found": len(done.results),
        },
        "unreadable": done.failed,
        "stage_ms": {name: _median_and_p95(ms) for name, ms in done.stage_ms.items()},
    }
    if scores.differences is not None:
        report["differences"] = {name: d._asdict() for name, d in scores.differences.items()}
    return report


def _median_and_p95(ms: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(ms)), "p95": float(np.percentile(ms, 95))}


def write_json(path: Path, content: Any) -> None:
    """As JSON; a number that does not exist becomes null. ValueError where it cannot be written."""
    try:
        write_atomically(path, json.dumps(_without_nan(content)).encode())
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if content != content else content  # noqa: PLR0124
