"""Average precision: against pycocotools, cases reckoned by hand, and the bootstrap's counts."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nets.skeletons import COCO, CROWDPOSE, Skeleton
from training.metrics import (
    Difference,
    Interval,
    bootstrap,
    bootstrap_difference,
    evaluate_results,
    match_people,
    metric_names,
    read_annotations,
    read_results,
)

AREA = 100.0 * 200.0


def person(image_id: int, keypoints: Any, **changes: Any) -> dict[str, Any]:
    """An annotation 100 x 200 pixels large."""
    flat = np.asarray(keypoints, np.float64).ravel().tolist()
    entry = {"image_id": image_id, "category_id": 1, "iscrowd": 0, "area": AREA}
    return {**entry, "bbox": [0.0, 0.0, 100.0, 200.0], "keypoints": flat} | changes


def found(image_id: int, keypoints: Any, score: float) -> dict[str, Any]:
    flat = np.asarray(keypoints, np.float64).ravel().tolist()
    return {"image_id": image_id, "category_id": 1, "keypoints": flat, "score": score}


def data_set(people: list[dict[str, Any]], num_images: int, **of_image: list[Any]) -> Any:
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640}
        | {key: values[i - 1] for key, values in of_image.items()}
        for i in range(1, num_images + 1)
    ]
    people = [{**entry, "id": i} for i, entry in enumerate(people, 1)]
    return {"images": images, "annotations": people, "categories": [{"id": 1, "name": "person"}]}


def pose(skeleton: Skeleton, at: float = 0.0) -> np.ndarray:
    """(K, 3): all keypoints labelled, on a diagonal that begins at (at, at)."""
    steps = at + 5.0 * np.arange(skeleton.num_keypoints)
    return np.stack([steps, steps, np.full(len(steps), 2.0)], axis=1)


def random_case(skeleton: Skeleton, seed: int, num_images: int = 40) -> tuple[Any, Any]:
    """Labels and detections of all sorts: crowds, unlabelled, too many, far off, equal scores."""
    rng = np.random.default_rng(seed)
    k = skeleton.num_keypoints
    people, results = [], []
    for image_id in range(1, num_images + 1):
        for _ in range(rng.integers(0, 6)):
            width, height = rng.uniform(15, 200, 2)
            left, top = rng.uniform(0, 300, 2)
            v = rng.choice([0, 1, 2], k) * (rng.random() > 0.15)
            xy = np.stack([left + width * rng.random(k), top + height * rng.random(k)], axis=1)
            keypoints = np.column_stack([xy * (v > 0)[:, None], v])
            people.append(
                person(
                    image_id,
                    keypoints,
                    iscrowd=int(rng.random() < 0.1),
                    area=float(0.5 * width * height),
                    bbox=[float(left), float(top), float(width), float(height)],
                    num_keypoints=int((v > 0).sum()),
                )
            )
            for _ in range(rng.integers(0, 4)):
                moved = xy + rng.normal(0, rng.choice([1.0, 5.0, 20.0]), (k, 2))
                score = round(float(rng.random()), 1)
                results.append(found(image_id, np.column_stack([moved, np.ones(k)]), score))
        for _ in range(rng.choice([0, 2, 15])):
            nowhere = np.column_stack([rng.uniform(0, 400, (k, 2)), np.ones(k)])
            results.append(found(image_id, nowhere, round(float(rng.random()), 1)))
    crowd_index = rng.choice([0.0, 0.1, 0.2, 0.5, 0.8, 1.0], num_images).tolist()
    return data_set(people, num_images, crowdIndex=crowd_index), results


def of_pycocotools(
    annotations: Any, results: Any, skeleton: Skeleton, image_ids: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Its ten numbers, and its precision array (T, R, 1, A, 1)."""
    from pycocotools.coco import COCO as Index  # noqa: N811
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = Index()
        truth.dataset = annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(row) for row in results]), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(skeleton.oks_sigmas)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]


@pytest.mark.parametrize("seed", range(4))
def test_coco_equals_pycocotools(seed: int) -> None:
    annotations, results = random_case(COCO, seed)
    metrics = evaluate_results(annotations, results, skeleton=COCO)
    expected, _ = of_pycocotools(annotations, results, COCO)
    assert tuple(metrics) == metric_names(COCO)
    np.testing.assert_allclose(list(metrics.values()), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_crowdpose_is_pycocotools_with_its_areas_and_splits(seed: int) -> None:
    annotations, results = random_case(CROWDPOSE, seed)
    metrics = evaluate_results(annotations, results, skeleton=CROWDPOSE)
    for entry in annotations["annotations"]:
        entry["area"] = 0.53 * entry["bbox"][2] * entry["bbox"][3]
    expected, _ = of_pycocotools(annotations, results, CROWDPOSE)
    chosen = [expected[i] for i in (0, 1, 2, 5, 6, 7)]
    np.testing.assert_allclose(list(metrics.values())[:6], chosen, atol=1e-12)
    limits = {"AP_easy": (-1, 0.2), "AP_medium": (0.2, 0.8), "AP_hard": (0.8, 2)}
    for name, (low, high) in limits.items():
        ids = [i["id"] for i in annotations["images"] if low <= i["crowdIndex"] < high]
        _, precision = of_pycocotools(annotations, results, CROWDPOSE, ids)
        assert metrics[name] == pytest.approx(precision[:, :, :, 0].mean(), abs=5.1e-5)


def test_a_false_person_between_two_true_ones() -> None:
    far = pose(COCO, 400)
    annotations = data_set([person(1, pose(COCO)), person(2, pose(COCO))], 2)
    results = [
        found(1, pose(COCO), 0.9),
        found(1, far, 0.8),
        found(2, pose(COCO), 0.7),
    ]
    metrics = evaluate_results(annotations, results, skeleton=COCO)
    # Precision 1 up to recall 0.5 (51 of the 101 recalls), 2/3 beyond.
    assert metrics["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics["AR"] == 1


def test_a_person_counts_up_to_its_oks() -> None:
    labelled = pose(COCO)
    labelled[1:, 2] = 0  # the nose alone
    distance = np.sqrt(-np.log(0.72) * 2 * AREA * (2 * COCO.oks_sigmas[0]) ** 2)
    moved = labelled + (distance, 0, 0)
    metrics = evaluate_results(
        data_set([person(1, labelled)], 1), [found(1, moved, 0.5)], skeleton=COCO
    )
    assert metrics["AP"] == pytest.approx(0.5)  # thresholds .50 to .70 of .50 to .95
    assert (metrics["AP50"], metrics["AP75"]) == (1, 0)
    assert metrics["APM"] == -1
    assert metrics["APL"] == pytest.approx(0.5)


def test_crowdpose_measures_by_the_box_and_splits_by_crowdedness() -> None:
    labelled = pose(CROWDPOSE)
    labelled[1:, 2] = 0
    variance = 2 * 0.53 * 100 * 200 * (2 * CROWDPOSE.oks_sigmas[0]) ** 2
    moved = labelled + (np.sqrt(-np.log(0.72) * variance), 0, 0)
    people = [person(i, labelled, area=1.0) for i in (1, 2, 3)]
    annotations = data_set(people, 3, crowdIndex=[0.1, 0.2, 0.8])
    results = [found(2, labelled, 0.5), found(3, moved, 0.4)]
    metrics = evaluate_results(annotations, results, skeleton=CROWDPOSE)
    assert (metrics["AP_easy"], metrics["AP_medium"]) == (0, 1)
    assert metrics["AP_hard"] == pytest.approx(0.5)
    assert metrics["AR"] == pytest.approx((1 + 0.5) / 3)


def test_without_crowd_index_there_are_no_splits() -> None:
    annotations = data_set([person(1, pose(CROWDPOSE))], 1)
    metrics = evaluate_results(annotations, [found(1, pose(CROWDPOSE), 1)], skeleton=CROWDPOSE)
    assert (metrics["AP"], metrics["AP_easy"], metrics["AP_hard"]) == (1, -1, -1)


def test_a_missing_area_is_reckoned_from_the_box() -> None:
    entry = person(1, pose(COCO))
    del entry["area"]
    results = [found(1, pose(COCO) + (7, 0, 0), 1)]
    without = evaluate_results(data_set([entry], 1), results, skeleton=COCO)
    entry["area"] = 0.53 * AREA
    assert without == evaluate_results(data_set([entry], 1), results, skeleton=COCO)


def test_nobody_to_find_is_minus_one_and_nobody_found_is_zero() -> None:
    results = [found(1, pose(COCO), 0.5)]
    assert set(evaluate_results(data_set([], 1), results, skeleton=COCO).values()) == {-1}
    assert match_people(data_set([], 1), results, skeleton=COCO) is None
    metrics = evaluate_results(data_set([person(1, pose(COCO))], 1), [], skeleton=COCO)
    assert (metrics["AP"], metrics["AR"]) == (0, 0)


def test_only_the_chosen_images_count() -> None:
    annotations, results = random_case(COCO, 7)
    ids = list(range(5, 30))
    expected, _ = of_pycocotools(annotations, results, COCO, ids)
    metrics = evaluate_results(annotations, results, skeleton=COCO, image_ids=ids)
    np.testing.assert_allclose(list(metrics.values()), expected, atol=1e-12)


def test_inputs_are_left_as_they_were() -> None:
    annotations, results = random_case(COCO, 3, num_images=3)
    before = repr((annotations, results))
    evaluate_results(annotations, results, skeleton=COCO)
    assert repr((annotations, results)) == before


@pytest.mark.parametrize(
    ("annotations", "results", "complaint"),
    [
        (data_set([person(1, pose(CROWDPOSE))], 1), [], "42 numbers.*17 keypoints"),
        (data_set([person(1, pose(COCO))], 1), [found(1, pose(CROWDPOSE), 1)], "42 numbers"),
        (data_set([person(1, pose(COCO))], 1), [found(9, pose(COCO), 1)], "another data set"),
        (data_set([person(1, pose(COCO))], 1), [{"image_id": 1}], "must have image_id"),
    ],
)
def test_what_does_not_fit_is_said(annotations: Any, results: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        evaluate_results(annotations, results, skeleton=COCO)


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', '{"images": [], "annotations": []}'])
def test_annotation_files_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"empty\.json"):
        read_annotations(path)


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]"])
def test_result_files_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(path)


# --- matches and bootstrap -----------------------------------------------------------------------


@pytest.mark.parametrize("skeleton", [COCO, CROWDPOSE])
@pytest.mark.parametrize("seed", range(3))
def test_our_own_counting_equals_the_protocol(skeleton: Skeleton, seed: int) -> None:
    annotations, results = random_case(skeleton, seed)
    matches = match_people(annotations, results, skeleton=skeleton)
    assert matches is not None
    expected = evaluate_results(annotations, results, skeleton=skeleton)
    np.testing.assert_allclose(matches.metrics(), list(expected.values()), atol=5.1e-5)
    exact = 6 if skeleton is CROWDPOSE else 10  # the protocol rounds E, M and H to four digits
    np.testing.assert_allclose(
        matches.metrics()[:exact], list(expected.values())[:exact], atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_is_so_many_copies_of_the_image(seed: int) -> None:
    annotations, results = random_case(COCO, seed, num_images=15)
    rng = np.random.default_rng(seed)
    for row in results:  # equal scores of different images have no order in a resample
        row["score"] += rng.random() * 1e-3
    weights = rng.integers(0, 4, 15)
    images, people, repeated = [], [], []
    for image, weight in zip(annotations["images"], weights.tolist(), strict=True):
        for copy in range(weight):
            new_id = 100 * image["id"] + copy
            images.append({**image, "id": new_id})
            of_image = [a for a in annotations["annotations"] if a["image_id"] == image["id"]]
            people += [{**a, "image_id": new_id} for a in of_image]
            repeated += [{**r, "image_id": new_id} for r in results if r["image_id"] == image["id"]]
    resampled = {**annotations, "images": images, "annotations": people}
    expected = evaluate_results(resampled, repeated, skeleton=COCO)
    matches = match_people(annotations, results, skeleton=COCO)
    assert matches is not None
    np.testing.assert_allclose(matches.metrics(weights), list(expected.values()), atol=1e-12)


def test_the_interval_is_seeded_and_holds_the_value() -> None:
    annotations, results = random_case(COCO, 1)
    matches = match_people(annotations, results, skeleton=COCO)
    assert matches is not None
    intervals = bootstrap(matches, num_resamples=200, seed=5)
    assert intervals == bootstrap(matches, num_resamples=200, seed=5)
    assert intervals != bootstrap(matches, num_resamples=200, seed=6)
    for name, value in zip(matches.names, matches.metrics(), strict=True):
        assert intervals[name].low < value < intervals[name].high
    wider = bootstrap(matches, num_resamples=200, seed=5, confidence=0.99)["AP"]
    assert wider.low <= intervals["AP"].low < intervals["AP"].high <= wider.high


def test_equal_images_leave_no_doubt_and_absent_sizes_no_number() -> None:
    people = [person(i, pose(COCO)) for i in (1, 2, 3)]
    results = [found(i, pose(COCO), 0.5) for i in (1, 2, 3)]
    matches = match_people(data_set(people, 3), results, skeleton=COCO)
    assert matches is not None
    intervals = bootstrap(matches, num_resamples=50)
    assert intervals["AP"] == Interval(1, 1)
    assert np.isnan(intervals["APM"]).all()


def test_a_paired_difference_sees_what_single_intervals_hide() -> None:
    annotations, results = random_case(COCO, 2)
    nearer = [dict(row) for row in results]
    people = annotations["annotations"]
    for row in nearer[::4]:  # some become what is labelled
        labelled = next((p for p in people if p["image_id"] == row["image_id"]), None)
        if labelled is not None:
            row["keypoints"] = labelled["keypoints"]
    first, second = (match_people(annotations, r, skeleton=COCO) for r in (nearer, results))
    assert first is not None
    assert second is not None
    difference = bootstrap_difference(first, second, num_resamples=200)["AR"]
    assert difference.value == pytest.approx(
        evaluate_results(annotations, nearer, skeleton=COCO)["AR"]
        - evaluate_results(annotations, results, skeleton=COCO)["AR"]
    )
    singles = [bootstrap(m, num_resamples=200)["AR"] for m in (first, second)]
    widths = [interval.high - interval.low for interval in singles]
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < 0.9 * np.hypot(widths[0], widths[1])
    assert difference.share_better == 1
    same = bootstrap_difference(first, first, num_resamples=20)["AP"]
    assert same == Difference(0, 0, 0, 0)


def test_results_of_different_images_are_not_compared() -> None:
    annotations, results = random_case(COCO, 2)
    all_of_them = match_people(annotations, results, skeleton=COCO)
    some = match_people(annotations, results, skeleton=COCO, image_ids=range(1, 10))
    assert all_of_them is not None
    assert some is not None
    with pytest.raises(ValueError, match="different images"):
        bootstrap_difference(all_of_them, some)
