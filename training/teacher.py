"""A trained model's heatmaps beside drawn ones, or in place of them.

    images (B, 3, S, S) --scale 1--> teacher --> 1/4 map --------------.
                        --scale 2--> teacher --> 1/4 map, twice as fine -- mean --.
                                                                                   +-- heatmaps
    labels ------------------------------------------- drawn, by 1 - share -------'

What a network knows already is lost to few labels, unless it keeps hearing its own answers (Li
and Hoiem 2016, "Learning without Forgetting"). And a multi-scale test finds more than one pass and
takes many times as long (Cheng et al. 2020, table 1): several scales can be taught to one (Hinton
et al. 2015, "Distilling the Knowledge in a Neural Network"). The teacher sees the example that the
student sees, so what moved and coloured it needs no undoing.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from common.settings import ConfigError
from nets.aggregation import flip_test
from nets.checkpoints import Model, load_model
from nets.engines.engine import Engine
from nets.engines.load import load_engine
from nets.zoo.weights_files import shown_weights
from training.config import TeacherConfig
from training.examples import Batch
from training.targets import Plan

_log = logging.getLogger(__name__)


class Teacher:
    """Puts its heatmaps into a batch.

    Args:
        config: which model, and its scales.
        student: must have the same keypoints and take the same input.
        plan: the heatmaps that are trained, see training.targets.target_plan.
        device: where it runs and where batches are.
        threads: CPU threads; None: all.
    Raises:
        ValueError: weights that cannot be used, or of another skeleton or normalisation.
    """

    def __init__(
        self,
        config: TeacherConfig,
        student: Model,
        *,
        plan: Sequence[Plan],
        device: torch.device,
        threads: int | None = None,
    ) -> None:
        model, called = load_model(config.weights), shown_weights(config.weights)
        for what in ("skeleton", "mean", "std"):
            own, wanted = getattr(model, what), getattr(student, what)
            if own != wanted:
                raise ConfigError(
                    f"teacher {called} has another {what} than the trained net: {own}, "
                    f"expected {wanted}; take a teacher of the same kind, or none (teacher=null)"
                )
        self._share, self._scales = config.share, config.scales
        self._flip_order = student.skeleton.flip_order if config.flip else None
        self._strides = tuple(entry.stride for entry in plan)
        self.weights_sha256 = model.weights_sha256
        """What a continued run needs again."""
        # On a GPU an engine may change in the middle of a run, when TensorRT has compiled.
        engine = "auto" if device.type == "cpu" else "torch"
        self._engine: Engine = load_engine(
            model, engine=engine, device=str(device), threads=threads
        )
        scales = " ".join(f"{scale:g}" for scale in config.scales)
        flip = ", flip test" if config.flip else ""
        _log.info("%s teaches heatmaps, share %g, scales %s%s", called, config.share, scales, flip)

    @property
    def alone(self) -> bool:
        """Whether a batch needs no heatmaps of its own."""
        return self._share == 1

    @torch.no_grad()
    def teach(self, batch: Batch) -> Batch:
        """The batch with the teacher's heatmaps mixed in by its share, all of them supervised.

        Where a drawn one is masked, and everywhere if the teacher is alone, the teacher's stand.
        """
        heatmaps = taught(
            self._engine,
            batch.images,
            self._scales,
            self._strides,
            flip_order=self._flip_order,
        )
        if not self.alone:
            heatmaps = [
                torch.where(mask > 0, torch.lerp(drawn, mine, self._share), mine)
                for mine, drawn, mask in zip(heatmaps, batch.heatmaps, batch.masks, strict=True)
            ]
        masks = tuple(torch.ones_like(mine[:, :1], dtype=torch.uint8) for mine in heatmaps)
        return batch._replace(heatmaps=tuple(heatmaps), masks=masks)


def taught(
    engine: Engine,
    images: Tensor,
    scales: Sequence[float],
    strides: Sequence[int],
    *,
    flip_order: Sequence[int] | None = None,
) -> list[Tensor]:
    """The mean of all scales' heatmaps, at each stride of the images.

    Of each scale the coarsest level is taken that is as fine as wanted, or else the finest, and
    brought to size: by the mean over whole pixels where that goes, else bilinear.

    Args:
        images: (B, 3, S, S) float32, normalised.
        scales: sizes at which the engine sees them; whole numbers of its size multiple.
        strides: wanted; they divide S.
        flip_order: with it every scale is averaged with the mirrored example.
    Returns:
        (B, K, S / stride, S / stride) float32 for each stride.
    """
    side = images.shape[-1]
    run = engine if flip_order is None else partial(flip_test, engine, flip_order=flip_order)
    of_scale = [run(_scaled(images, scale)).levels for scale in scales]
    results = []
    for stride in strides:
        size = side // stride
        maps = [_at_size(_least_fine(levels, size), size) for levels in of_scale]
        results.append(torch.stack(maps).mean(dim=0))
    return results


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = round(images.shape[-1] * scale)
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=scale < 1)


def _least_fine(levels: Sequence[Tensor], size: int) -> Tensor:
    """The first of these (low to high) that has so many pixels a side, or the last."""
    return next((level for level in levels if level.shape[-1] >= size), levels[-1])


def _at_size(level: Tensor, size: int) -> Tensor:
    if level.shape[-1] == size:
        return level
    if level.shape[-1] % size == 0:
        return F.avg_pool2d(level, level.shape[-1] // size)
    return F.interpolate(level, size=(size, size), mode="bilinear", antialias=True)
