"""AP while a training runs, measured with the very decode of stream and evaluation."""

from nets.checkpoints import Model
from nets.engines.load import load_engine
from nets.skeletons import SKELETONS
from training.config import TrainConfig
from training.image_store import ImageStore, find_images
from training.metrics import check_results, evaluate_results, read_annotations
from training.predict import (
    PredictSettings,
    evaluation_decode,
    evaluation_estimator,
    predict_images,
)
from training.ranks import Ranks


class Validation:
    """The validation set, measured with the very decode of stream and evaluation."""

    def __init__(self, config: TrainConfig) -> None:
        part = config.data.validation
        assert part is not None
        self._annotations = read_annotations(part.annotations)
        self._images = self._annotations["images"][: config.validation.images]
        self._image_ids = [int(image["id"]) for image in self._images]
        self._store = ImageStore(find_images(part.annotations, part.images))
        self._flip = config.validation.flip
        # What OKS needs and the labels lack is reported now, not after the first epochs.
        skeleton = SKELETONS[config.data.skeleton]
        check_results(self._annotations, [], skeleton=skeleton, image_ids=self._image_ids)

    def measure(self, model: Model, ranks: Ranks) -> dict[str, float]:
        """AP and its companions on the first rank, {} on the others. Each runs a part."""
        engine = load_engine(model, engine="torch", device=str(ranks.device), precision="fp32")
        settings = PredictSettings(
            input_size=model.input_size,
            size_multiple=model.size_multiple,
            flip=self._flip,
            decode=evaluation_decode(model),
        )
        found = predict_images(
            evaluation_estimator(engine, model, settings),
            self._store,
            self._images[ranks.rank :: ranks.world],
        )
        of_ranks = ranks.gathered(found.results)
        if not ranks.is_first:
            return {}
        return evaluate_results(
            self._annotations,
            [person for results in of_ranks for person in results],
            skeleton=model.skeleton,
            image_ids=self._image_ids,
        )
