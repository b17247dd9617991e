"""A model as evaluation runs it: pictures -> people in picture pixels, with milliseconds by stage.

    picture -> preprocess -> inference, flip, scales -> poses       the stages of pipeline.estimator

They are the stream's own stages, so what is scored here is what a stream shows, except for what a
stream hides. This file does not score.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels.decode import PUBLISHED, DecodeSettings, first_unknown
from nets.aggregation import Maps, average_scales
from nets.checkpoints import Model
from nets.engines.engine import INPUT_MULTIPLE, Engine
from pipeline.estimator import Estimator, PosesStage, frame_of_picture
from pipeline.inference import Inference
from pipeline.messages import NetInput, NetOutput, Poses
from pipeline.poses import FindPoses
from pipeline.preprocess import Preprocess
from pipeline.sinks.schema import coco_results
from pipeline.sources.source import NumberedSource, SourceSettings
from pipeline.sources.video_reader import Picture as StreamPicture
from training.image_store import ImageError, ImageStore, Picture

logger = logging.getLogger(__name__)

STAGES = ("preprocess", "inference", "poses")
"""What is timed of each picture, in this order."""

_HIDING = ("min_person_score", "min_keypoint_score", "min_keypoints", "duplicate_oks")
"""Decode settings that only choose what a viewer sees; off in evaluation."""


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """How pictures are run."""

    input_size: int
    """Short side of the network input at scale 1, in pixels."""
    size_multiple: int
    """Both sides are multiples of it at the smallest scale."""
    flip: bool = False
    """Average with the mirrored picture: the published tables do, a stream by default does not."""
    scales: tuple[float, ...] = (1.0,)
    decode: DecodeSettings = PUBLISHED
    max_long_side: int | None = None
    """A more elongated picture shrinks until its network input fits; None: no limit, as
    published. With scale 1 alone."""

    def __post_init__(self) -> None:
        if self.input_size < 1 or self.size_multiple < 1:
            raise ValueError(
                f"input_size and size_multiple must be positive, got {self.input_size} and "
                f"{self.size_multiple}"
            )
        if not self.scales or min(self.scales) <= 0 or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales must be different and positive, got {self.scales}")
        if len(self.scales) > 1 and 1 not in self.scales:
            raise ValueError(f"scales must include 1, whose tags are used, got {self.scales}")
        for scale in self.scales:
            step = self.size_multiple * scale / min(self.scales)
            if step % INPUT_MULTIPLE:
                raise ValueError(
                    f"scale {scale:g} beside {min(self.scales):g} makes sides that are multiples "
                    f"of {step:g}, and the network takes multiples of {INPUT_MULTIPLE}; take "
                    "scales that are whole multiples of the smallest, as 0.5 1 2"
                )
        if self.max_long_side is not None and self.scales != (1.0,):
            raise ValueError(
                f"max_long_side goes with scale 1 alone, got scales {self.scales}; leave one out"
            )


# --- the stages ----------------------------------------------------------------------------------


def evaluation_estimator(
    engine: Engine,
    model: Model,
    settings: PredictSettings,
    *,
    find_poses: PosesStage | None = None,
) -> Estimator:
    """The stages of a stream, set up as the published evaluation has it; on the CPU.

    Args:
        engine: of this very model (nets.engines.load.load_engine).
        find_poses: in place of the decode (training.oracle).
    """

    def preprocess_at(scale: float) -> Preprocess:
        return Preprocess(
            input_size=settings.input_size,
            mean=model.mean,
            std=model.std,
            size_multiple=settings.size_multiple,
            prefilter=False,
            max_long_side=settings.max_long_side or sys.maxsize,
            scale=scale,
            min_scale=min(settings.scales),
        )

    flip_order = model.skeleton.flip_order if settings.flip else None
    inference = Inference(engine, flip_order=flip_order)
    scaled = {scale: preprocess_at(scale) for scale in settings.scales}
    return Estimator(
        preprocess_at(1.0),
        inference if settings.scales == (1.0,) else ScaledInference(inference, scaled),
        find_poses or FindPoses(model.skeleton, settings.decode),
    )


class ScaledInference:
    """The network at several scales, averaged (nets.aggregation.average_scales).

    Args:
        inference: the stage that runs one scale, flip test included.
        preprocess: makes the network input at each scale.
    """

    def __init__(self, inference: Inference, preprocess: Mapping[float, Preprocess]) -> None:
        self._inference = inference
        self._preprocess = preprocess

    def __call__(self, batch: NetInput) -> Iterator[NetOutput]:
        """One output for a batch at scale 1, whose geometry the result keeps."""
        outputs = {scale: self._at_scale(scale, batch) for scale in self._preprocess}
        started = time.perf_counter()
        height, width = batch.images.shape[2:]
        maps = average_scales(
            {scale: _maps_of(output) for scale, output in outputs.items()}, size=(height, width)
        )
        averaging_ms = (time.perf_counter() - started) * 1e3
        stage_ms = {
            name: sum(output.stage_ms[name] for output in outputs.values())
            for name in ("preprocess", "inference")
        }
        yield NetOutput(
            frames=batch.frames,
            levels=tuple(level.numpy() for level in maps.levels),
            tags=maps.tags.numpy(),
            net_size=(height, width),
            image_from_net=batch.image_from_net,
            stage_ms={**stage_ms, "inference": stage_ms["inference"] + averaging_ms},
        )

    def _at_scale(self, scale: float, batch: NetInput) -> NetOutput:
        if scale != 1:
            (batch,) = self._preprocess[scale](batch.frames)
        (output,) = self._inference(batch)
        return output


def _maps_of(output: NetOutput) -> Maps:
    levels = tuple(torch.from_numpy(level) for level in output.levels)
    return Maps(levels, torch.from_numpy(output.tags))


# --- the decode ----------------------------------------------------------------------------------


def evaluation_decode(model: Model, changes: Mapping[str, Any] | None = None) -> DecodeSettings:
    """The decode that a model is evaluated with; says in the log where it comes from.

    What was chosen for the weights (Model.decode) holds, else the published settings; what merely
    hides people or keypoints from a viewer is off, unless changes ask for it.

    Raises:
        ValueError: a name that is no field of DecodeSettings, or a value it refuses.
    """
    unknown = first_unknown({**model.decode, **(changes or {})})
    if unknown is not None:
        raise ValueError(f"no decode setting is called {unknown}")
    of_weights = {name: value for name, value in model.decode.items() if name not in _HIDING}
    logger.info(
        "decode: as published but for what the weights say (%s) and what you say (%s)",
        _listed(of_weights),
        _listed(changes or {}),
    )
    chosen: dict[str, Any] = {**of_weights, **(changes or {})}
    return replace(DecodeSettings(), **chosen)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "nothing"


# --- many pictures -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class SetPrediction:
    """The people of many pictures."""

    results: list[dict[str, Any]]
    """COCO keypoint results."""
    num_people: list[int]
    """Found in each picture that could be read, in the order in which they were run."""
    stage_ms: dict[str, list[float]]
    """Of each of them, by stage."""
    failed: list[str]
    """File names of those that could not be read: nobody was found in them."""

    def add(self, image_id: int, poses: Poses) -> None:
        self.results.extend(coco_results(poses, image_id=image_id))
        self.num_people.append(len(poses.scores))
        for stage, ms in poses.stage_ms.items():
            self.stage_ms.setdefault(stage, []).append(ms)


ImageEntry = Mapping[str, Any]
"""Of an annotation file: id, file_name, perhaps height and width."""
Watch = Callable[[ImageEntry, Poses | None], None]
"""Called after each picture; with None for one that cannot be read."""


def predict_images(
    estimate: Estimator,
    store: ImageStore,
    images: Sequence[ImageEntry],
    *,
    watch: Watch | None = None,
) -> SetPrediction:
    """Run pictures one by one; one that cannot be read is named, counted and left empty."""
    done = SetPrediction([], [], {}, [])
    for image, picture in readable_images(store, images, failed=done.failed):
        poses = None
        if picture is not None:
            frame = frame_of_picture(picture, source="evaluation", index=int(image["id"]))
            (poses,) = estimate([frame])
            done.add(frame.index, poses)
        if watch is not None:
            watch(image, poses)
    return done


class StoredImages(NumberedSource):
    """The readable pictures of a labelled set as a stream's source; each carries its image's id."""

    def __init__(self, store: ImageStore, images: Sequence[ImageEntry]) -> None:
        super().__init__("evaluation", SourceSettings(), num_frames=len(images))
        self.failed: list[str] = []
        """File names of those that could not be read."""
        self._store, self._images = store, images

    def _pictures(self) -> Generator[StreamPicture, None, None]:
        for image, picture in readable_images(self._store, self._images, failed=self.failed):
            if picture is not None:
                yield StreamPicture(planes=(picture,), image_name=str(int(image["id"])))


def readable_images(
    store: ImageStore, images: Sequence[ImageEntry], *, failed: list[str]
) -> Iterator[tuple[ImageEntry, Picture | None]]:
    """Each image with its picture; None where it cannot be read: its name is put into failed."""
    for image in images:
        try:
            picture = read_image(store, image)
        except ImageError as error:
            logger.warning("skipping an unreadable image: %s", error)
            failed.append(str(image["file_name"]))
            yield image, None
        else:
            yield image, picture


def read_image(store: ImageStore, image: ImageEntry) -> Picture:
    """The picture of an annotation file's image.

    Raises:
        ImageError: it cannot be read, or is of another size than its labels.
    """
    picture = store.read(str(image["file_name"]))
    expected = (image.get("height"), image.get("width"))
    if None not in expected and picture.shape[:2] != expected:
        raise ImageError(
            f"image {image['file_name']} in {store.path} is {picture.shape[:2]} (height, width), "
            f"its labels are for {expected}; resized copies need resized labels"
        )
    return picture
