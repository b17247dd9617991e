"""A model as evaluation runs it: picture -> people in picture pixels, with milliseconds per stage.

    picture --preprocess--> (1, 3, H, W) --engine, flip, scales--> maps --decode--> people

Geometry, picture reader and decode are the stream's own (kernels.preprocess, kernels.decode), so
what is scored here is what a stream shows, but for what a stream hides. This file knows nothing of
how results are scored, and nothing of pipeline.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.decode import PUBLISHED, DecodeSettings, decode, first_unknown
from kernels.geometry import capped_size, invert, net_from_image, network_size
from kernels.people import People
from kernels.preprocess import preprocess
from nets.aggregation import Maps, average_scales, flip_test
from nets.checkpoints import Model
from nets.engines.engine import INPUT_MULTIPLE, Engine
from training.data import ImageError, ImageStore, Picture

logger = logging.getLogger(__name__)

STAGES = ("preprocess", "network", "decode")
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


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The people of one picture."""

    people: People
    """Keypoints in picture pixels; a missing one is all zero."""
    stage_ms: dict[str, float]
    """Milliseconds by stage, see STAGES."""


Grouping = Callable[[PictureMaps], People]
"""In place of the decode: maps -> people in network-input pixels."""


class Predictor:
    """Runs one picture at a time, as the published evaluation does."""

    def __init__(self, engine: Engine, model: Model, settings: PredictSettings) -> None:
        """Take an engine of this very model (nets.engines.load.load_engine)."""
        self.settings = settings
        self.skeleton = model.skeleton
        self._engine = engine
        self._mean, self._std = model.mean, model.std

    def __call__(
        self,
        image_bgr: Picture,
        *,
        grouping: Grouping | None = None,
    ) -> Prediction:
        """The people in a picture.

        Args:
            image_bgr: (h, w, 3) uint8.
            grouping: what to call in place of the decode (training.oracle).
        """
        started = time.perf_counter()
        net_size, letterbox = self._net_size(image_bgr.shape[:2])
        inputs = {
            scale: self._network_input(
                image_bgr,
                net_size if scale == 1 else self._size_of_scale(image_bgr.shape[:2], scale),
                letterbox,
            )
            for scale in self.settings.scales
        }
        prepared = time.perf_counter()
        maps = self._maps(inputs, net_size)
        h, w = image_bgr.shape[:2]
        matrix = net_from_image((h, w), net_size, letterbox=letterbox)
        of_picture = PictureMaps(
            levels=tuple(level[0].numpy() for level in maps.levels),
            tags=maps.tags[0].numpy(),
            net_size=net_size,
            image_from_net=invert(matrix),
        )
        ran = time.perf_counter()
        people = grouping(of_picture) if grouping is not None else self._decode(of_picture)
        people = _in_picture(people, of_picture.image_from_net)
        moments = (started, prepared, ran, time.perf_counter())
        times = {name: 1e3 * (moments[i + 1] - moments[i]) for i, name in enumerate(STAGES)}
        return Prediction(people, times)

    def _net_size(self, image_size: tuple[int, ...]) -> tuple[tuple[int, int], bool]:
        """(H, W) at scale 1, and whether the picture is letterboxed into it."""
        h, w = image_size
        settings = self.settings
        size = self._size_of_scale((h, w), 1.0)
        if settings.max_long_side is None or max(size) <= settings.max_long_side:
            return size, False
        return capped_size(
            (h, w), max_long_side=settings.max_long_side, size_multiple=settings.size_multiple
        ), True

    def _size_of_scale(self, image_size: tuple[int, ...], scale: float) -> tuple[int, int]:
        h, w = image_size
        return network_size(
            (h, w),
            input_size=self.settings.input_size,
            size_multiple=self.settings.size_multiple,
            scale=scale,
            min_scale=min(self.settings.scales),
        )

    def _network_input(
        self, image_bgr: Picture, net_size: tuple[int, int], letterbox: bool
    ) -> torch.Tensor:
        """(1, 3, H, W)."""
        h, w = image_bgr.shape[:2]
        image = preprocess(
            (image_bgr,),
            pixel_format="bgr24",
            color_space="bt601",
            full_range=True,
            net_from_image=net_from_image((h, w), net_size, letterbox=letterbox),
            net_size=net_size,
            mean=self._mean,
            std=self._std,
            prefilter=False,
        )
        return torch.from_numpy(image)[None]

    def _maps(self, inputs: Mapping[float, torch.Tensor], net_size: tuple[int, int]) -> Maps:
        """Flips and scales averaged."""
        maps_of_scale = {scale: self._run(image) for scale, image in inputs.items()}
        if self.settings.scales == (1.0,):
            return maps_of_scale[1.0]
        return average_scales(maps_of_scale, size=net_size)

    def _run(self, image: torch.Tensor) -> Maps:
        if not self.settings.flip:
            return self._engine(image)
        return flip_test(self._engine, image, flip_order=self.skeleton.flip_order)

    def _decode(self, maps: PictureMaps) -> People:
        return decode(
            maps.levels, maps.tags, maps.net_size, self.skeleton, settings=self.settings.decode
        )


def _in_picture(people: People, image_from_net: NDArray[np.float64]) -> People:
    """People in picture pixels; missing keypoints stay all zero."""
    mapped = people.keypoints.copy()
    mapped[..., :2] = people.keypoints[..., :2] @ image_from_net[:, :2].T + image_from_net[:, 2]
    mapped[people.keypoints[..., 2] == 0] = 0
    return people._replace(keypoints=mapped)


def coco_results(image_id: int, people: People) -> list[dict[str, Any]]:
    """People (in picture pixels) as COCO keypoint results: one dict a person."""
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "keypoints": keypoints.ravel().tolist(),
            "score": score,
        }
        for keypoints, score in zip(people.keypoints, people.scores.tolist(), strict=True)
    ]


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


ImageEntry = Mapping[str, Any]
"""Of an annotation file: id, file_name, perhaps height and width."""
Watch = Callable[[ImageEntry, Picture | None, Prediction | None], None]
"""Called after each picture; with None for one that cannot be read."""


def predict_images(
    predictor: Predictor,
    store: ImageStore,
    images: Sequence[ImageEntry],
    *,
    grouping_of: Callable[[ImageEntry], Grouping] | None = None,
    watch: Watch | None = None,
) -> SetPrediction:
    """Run pictures one by one; one that cannot be read is named, counted and left empty.

    Args:
        grouping_of: makes of an image's entry what is called in place of the decode.
    """
    done = SetPrediction([], [], {name: [] for name in STAGES}, [])
    for image in images:
        picture, prediction = None, None
        try:
            picture = read_image(store, image)
        except ImageError as error:
            logger.warning("nobody is found where nothing can be read: %s", error)
            done.failed.append(str(image["file_name"]))
        if picture is not None:
            grouping = None if grouping_of is None else grouping_of(image)
            prediction = predictor(picture, grouping=grouping)
            done.results.extend(coco_results(int(image["id"]), prediction.people))
            done.num_people.append(len(prediction.people.scores))
            for stage, ms in prediction.stage_ms.items():
                done.stage_ms[stage].append(ms)
        if watch is not None:
            watch(image, picture, prediction)
    return done


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
