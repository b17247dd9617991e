"""What must be right on this machine: painted people are found, engines agree with torch, and the
whole way from a frame to poses gives the people that the plainest way gives.

The plainest way is torch in float32 and the CPU's kernels, one frame, no batch. How far an engine
may lie from it depends on the precision it computes in; the limits stand here and in the notes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.arrays import Gpu
from kernels.checks.scenes import paint_people
from kernels.decode import PUBLISHED, decode
from nets.checkpoints import Model
from nets.engines.engine import Engine
from nets.engines.tensorrt import BUILD_AFTER, TensorRtEngine
from nets.engines.torch import TorchEngine
from nets.skeletons import Skeleton
from pipeline.estimator import Estimator
from pipeline.gpu.stream_slots import STREAM_SLOTS, Gpus, GpuSettings, StreamSlot, StreamSlots
from pipeline.inference import Inference
from pipeline.messages import Poses
from pipeline.poses import FindPoses
from pipeline.selftest.ceilings import Ceilings, Floor, Stopwatch, floor_of
from pipeline.selftest.report import Row
from pipeline.selftest.stages import NUM_PEOPLE, Case, preprocess_stage

LONGEST_BUILD_S = 900.0

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class Tolerances(NamedTuple):
    """How far from torch in float32 an engine may lie."""

    of_output: float
    """Largest difference of an output, as a share of its largest value."""
    px: float
    """Network-input pixels by which a keypoint may move..."""
    share: float
    """...and the share of keypoints for which that must hold: the highest of two near-equal pixels
    can be another one after rounding."""


LIMITS = {
    "fp32": Tolerances(0.01, 0.5, 1.0),
    "fp16": Tolerances(0.1, 1.0, 0.9),
    "bf16": Tolerances(0.25, 2.0, 0.9),
}
"""Measured with the default weights on the demo picture: fp32 2e-6 and no keypoint moved; fp16
0.006 and one keypoint in 36 by 0.7 px; bf16 0.12 and one or two by 2 px. fp32 leaves room for GPUs
whose products are TF32, the others for weights with larger values."""


# ---- painted people -----------------------------------------------------------------------------


def painted_people_row(skeleton: Skeleton) -> Row:
    """The published decode finds every visible keypoint of painted people within a pixel along x
    and y. Two keypoints that meet may make a person of their own; more people are no failure."""
    scene = paint_people(NUM_PEOPLE, num_keypoints=skeleton.num_keypoints, noise=0.0, steps=None)
    people = decode(scene.levels, scene.tags, scene.size, skeleton, PUBLISHED)
    misses = 0
    for truth, visible in zip(scene.xy, scene.visible, strict=True):
        off = np.abs(people.keypoints[:, visible, :2] - truth[visible]).max(axis=2, initial=0)
        misses += int((off > 1).sum(axis=1).min(initial=visible.sum()))
    passed = misses == 0 and len(people.scores) >= NUM_PEOPLE
    total = scene.visible.sum()
    note = f"{NUM_PEOPLE} people, {total - misses} of {total} keypoints within 1 px"
    return Row("decode of painted people", passed, note=note)


# ---- engines ------------------------------------------------------------------------------------


def engine_rows(
    case: Case,
    engine: Engine,
    ceilings: Ceilings,
    stopwatch: Stopwatch,
    *,
    batches: tuple[int, ...],
    longest_build_s: float = LONGEST_BUILD_S,
) -> Iterator[Row]:
    """Its outputs beside torch's, then its speed.

    Args:
        batches: numbers of pictures in a pass.
        longest_build_s: how long to wait for TensorRT, for each batch.
    """
    images = case.images.to(engine.device)
    name = f"engine {engine.name} {engine.precision}"
    for batch in batches:
        if isinstance(engine, TensorRtEngine):
            repeated = images.repeat(batch, 1, 1, 1)
            yield build_row(f"{name}: build for batch {batch}", engine, repeated, longest_build_s)
    yield outputs_row(f"{name}: outputs", engine(images), case, LIMITS[engine.precision])
    for batch in batches:
        repeated = images.repeat(batch, 1, 1, 1)
        ms = stopwatch.median_ms(lambda repeated=repeated: engine(repeated))  # type: ignore[misc]
        floor = engine_floor(case, ceilings, engine.precision, batch)
        yield Row(f"{name}: batch {batch}", None, ms, floor.ms, floor.why)


def outputs_row(name: str, maps: Any, case: Case, limits: Tolerances) -> Row:
    """Every output against torch's, float32 on the CPU."""
    shares = []
    wanted = [*case.expected.levels, case.expected.tags]
    for output, reference in zip([*maps.levels, maps.tags], wanted, strict=True):
        if output.shape != reference.shape:
            note = f"an output is {tuple(output.shape)}, torch's is {tuple(reference.shape)}"
            return Row(name, False, note=note)
        difference = (output.cpu() - reference).abs().max().item()
        shares.append(difference / max(reference.abs().max().item(), 1e-30))
    said = ", ".join(f"{share:.2g}" for share in shares)
    note = f"off by {said} of the largest value (levels, tags); at most {limits.of_output:g}"
    return Row(name, all(share <= limits.of_output for share in shares), note=note)  # NaN fails


def build_row(name: str, engine: TensorRtEngine, images: torch.Tensor, longest_s: float) -> Row:
    """Meet the shape until TensorRT serves it, or says why it will not."""
    warnings = _Warnings()
    logger = logging.getLogger("nets.engines.tensorrt")
    logger.addHandler(warnings)
    started = time.monotonic()
    try:
        for _ in range(BUILD_AFTER):
            engine(images)
        batch, _, height, width = images.shape
        while not engine.serves((batch, height, width)):
            if warnings.said:
                return Row(name, False, note=warnings.said[-1])
            if time.monotonic() - started > longest_s:
                return Row(name, False, note=f"not ready after {longest_s:.0f} s")
            time.sleep(0.05)
    finally:
        logger.removeHandler(warnings)
    return Row(name, True, note=f"{time.monotonic() - started:.0f} s (kept for the next start)")


class _Warnings(logging.Handler):
    """Remembers what was logged as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def engine_floor(case: Case, ceilings: Ceilings, precision: str, batch: int) -> Floor:
    """The network's multiplies and adds, or its weights and pictures once through memory."""
    weights = sum(parameter.numel() for parameter in case.model.net.parameters())
    outputs = sum(output.numel() for output in (*case.expected.levels, case.expected.tags))
    num_bytes = weights * _BYTES[precision] + 4 * batch * (case.images.numel() + outputs)
    return floor_of(
        num_bytes=num_bytes,
        bandwidth=ceilings.memory,
        operations=batch * case.operations,
        rate=ceilings.compute.get(precision, 0.0),
    )


# ---- the whole way ------------------------------------------------------------------------------


def estimator_of(case: Case, engine: Engine, *, gpus: Gpus | None) -> Estimator:
    """A stream's stages, with these weights; preprocess and decode on the GPUs, or on the CPU."""
    return Estimator(
        preprocess_stage(case.model, gpus=gpus),
        Inference(engine),
        FindPoses(case.model.skeleton, case.decode),
    )


def gpus_of(model: Model, gpu: Gpu, device: torch.device) -> Gpus:
    """One GPU with its stream slots, as a stream has it."""
    settings = GpuSettings(model.skeleton, model.mean, model.std, prefilter=True, flip_order=None)
    streams = [_new_stream(device) for _ in range(STREAM_SLOTS)]
    stream_slots = StreamSlots(
        [StreamSlot(gpu, settings, stream) for stream in streams], give_up=lambda: None
    )
    return Gpus([stream_slots])


def _new_stream(device: torch.device) -> Any:
    """None on the CPU, where tests run this."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def whole_way_row(case: Case, engine: Engine, stopwatch: Stopwatch, *, gpus: Gpus | None) -> Row:
    """The demo picture's people, and how long one frame takes from its planes to poses."""
    plainest = estimator_of(case, TorchEngine(case.model, threads=None), gpus=None)
    estimate = estimator_of(case, engine, gpus=gpus)
    (want,), (got,) = plainest([case.frame]), estimate([case.frame])
    px_of_net = float(case.frame.size[0]) / case.net_size[0]
    same, note = compare_people(got, want, limits=LIMITS[engine.precision], scale=px_of_net)
    ms = stopwatch.median_ms(lambda: estimate([case.frame]))
    return Row(f"frame to poses, {engine.name} {engine.precision}", same, ms, note=note)


def compare_people(
    got: Poses, want: Poses, *, limits: Tolerances, scale: float
) -> tuple[bool, str]:
    """Whether two ways found the same people in a picture, and what to say about it.

    Keypoints count that a peak gave in both; what refine fills in where nothing is to be seen moves
    with every rounding. So do people who hardly are any: in half precision only clear ones count.

    Args:
        scale: picture pixels in a pixel of the network input.
    """
    if limits.share == 1 and len(got.scores) != len(want.scores):
        return False, f"{len(got.scores)} people, the CPU with torch fp32 finds {len(want.scores)}"
    partners = [_partner(want, person, got) for person in _clear(want)]
    back = [_partner(got, person, want) for person in _clear(got)]
    for pairs in (partners, back):
        others = [other for other, _ in pairs]
        if len(set(others)) < len(others) or -1 in others:
            return False, "other people than the CPU with torch fp32 finds"
    moved = [float(px) for _, distances in partners for px in distances]
    limit = limits.px * scale
    near = sum(px <= limit for px in moved)
    note = (
        f"{len(partners)} people, {near} of {len(moved)} keypoints within {limit:.2g} px of the "
        f"CPU with torch fp32; must be {limits.share:.0%}"
    )
    return near >= limits.share * len(moved), note


def _clear(poses: Poses) -> list[int]:
    """Those who score at least half of what the best one does: rounding cannot lose them."""
    scores = poses.scores
    return np.flatnonzero(scores >= 0.5 * scores.max(initial=0)).tolist()


def _partner(poses: Poses, person: int, others: Poses) -> tuple[int, np.ndarray]:
    """Who is nearest to a person, and how far each keypoint is; -1 if nobody shares keypoints."""
    of_all = [_moved(others, other, poses, person) for other in range(len(others.scores))]
    medians = [float(np.median(px)) if len(px) else np.inf for px in of_all]
    if not np.isfinite(min(medians, default=np.inf)):
        return -1, np.empty(0)
    nearest = int(np.argmin(medians))
    return nearest, of_all[nearest]


def _moved(got: Poses, other: int, want: Poses, person: int) -> np.ndarray:
    """Distances between the keypoints that peaks gave to both people."""
    ours, theirs = got.keypoints[other], want.keypoints[person]
    both = (ours[:, 2] > 0) & (theirs[:, 2] > 0) & ~got.filled[other] & ~want.filled[person]
    distances: np.ndarray = np.linalg.norm((ours - theirs)[both, :2], axis=1)
    return distances
