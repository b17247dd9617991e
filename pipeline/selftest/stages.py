"""The stages of one frame as pieces of work to time: on a GPU, and on the CPU.

    demo picture --preprocess--> .   painted maps --average, peaks--> --group--> --refine--> people

Maps are painted, with ten people, at the size that the weights give a 1280x720 picture; so the
decode has as much to do as in a busy scene, whatever the weights are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.arrays import Gpu
from kernels.averaging import average_levels
from kernels.checks.scenes import Scene, paint_people
from kernels.decode import DecodeSettings, matching_order
from kernels.geometry import net_from_image
from kernels.gpu_decode import GpuDecoder, grouper, peak_finder
from kernels.gpu_preprocess import GpuPicture, GpuPreprocess
from kernels.grouping import group_people
from kernels.peaks import peaks_of_maps
from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines.torch import TorchEngine
from pipeline.config import PosesConfig
from pipeline.estimator import frame_of_picture
from pipeline.messages import Frame
from pipeline.poses import decode_settings
from pipeline.preprocess import Preprocess
from pipeline.selftest.ceilings import Ceilings, Floor, floor_of
from pipeline.sources import demo

Works = Mapping[str, tuple[Callable[[], object], Floor]]
NUM_PEOPLE = 10


@dataclass(frozen=True)
class Case:
    """What everything is tried with."""

    model: Model
    frame: Frame
    images: torch.Tensor
    """(1, 3, H, W) float32 on the CPU: the frame, as the CPU preprocesses it."""
    expected: Maps
    """What torch makes of images in float32 on the CPU."""
    scene: Scene
    """Painted people on maps of the same shapes."""
    decode: DecodeSettings
    """As a stream has it with these weights."""

    @cached_property
    def operations(self) -> int:
        """Multiplies and adds of the network for images."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model.net(self.images)
        return int(counter.get_total_flops())

    @property
    def net_size(self) -> tuple[int, int]:
        return self.scene.size


def make_case(model: Model, picture: np.ndarray | None = None) -> Case:
    """The demo's first picture, or another (h, w, 3) BGR one, through model on the CPU."""
    picture = demo.picture(0) if picture is None else picture
    frame = frame_of_picture(picture, source="selftest")
    (batch,) = preprocess_stage(model)([frame])
    images = torch.from_numpy(batch.images)
    expected = TorchEngine(model, threads=None)(images)
    scene = paint_people(
        NUM_PEOPLE,
        size=(images.shape[2], images.shape[3]),
        level_sizes=tuple((level.shape[2], level.shape[3]) for level in expected.levels),
        num_keypoints=expected.tags.shape[1],
        num_tags=expected.tags.shape[4],
        steps=None,
    )
    return Case(model, frame, images, expected, scene, decode_settings(PosesConfig(), model))


def preprocess_stage(model: Model, **more: Any) -> Preprocess:
    return Preprocess(
        input_size=model.input_size,
        mean=model.mean,
        std=model.std,
        size_multiple=model.size_multiple,
        **more,
    )


def works_on_gpu(case: Case, gpu: Gpu, ceilings: Ceilings) -> Works:
    """Each kernel alone, its inputs on the GPU already; inside gpu.stream()."""
    settings, asarray = case.decode, gpu.xp.asarray
    matrix = net_from_image(case.frame.size, case.net_size)
    planes = [asarray(plane) for plane in case.frame.planes]
    picture = GpuPicture(planes, case.frame.pixel_format, "bt601", False, matrix, rotation=0)
    out = gpu.xp.empty(tuple(case.images.shape), np.float32)
    launch = GpuPreprocess(gpu, mean=case.model.mean, std=case.model.std, prefilter=True)

    levels, tags = (
        [asarray(level[None]) for level in case.scene.levels],
        asarray(case.scene.tags[None]),
    )
    finder = peak_finder(gpu, settings)
    group = grouper(gpu, case.model.skeleton, settings)
    maps = finder.average(levels, tags, case.net_size)
    peaks = finder.find(maps)
    decoder = GpuDecoder(gpu, case.model.skeleton, settings)
    found = decoder.enqueue(levels, tags, case.net_size)
    back = floor_of(num_bytes=found.rows[:33].nbytes, bandwidth=ceilings.down)
    floors = _floors(case, peaks, ceilings)
    return {
        "preprocess": (
            lambda: launch([picture], net_size=case.net_size, out=out),
            floors["preprocess"],
        ),
        "average, peaks": (
            lambda: finder.find(finder.average(levels, tags, case.net_size)),
            floors["peaks"],
        ),
        "group": (lambda: group(peaks, None), floors["group"]),
        "group, refine": (lambda: group(peaks, maps), floors["refine"]),
        "people to the host": (lambda: decoder.people(found), back),
    }


def works_on_cpu(case: Case, ceilings: Ceilings) -> Works:
    """The same on the CPU twins."""
    stage, settings, scene = preprocess_stage(case.model), case.decode, case.scene

    def find() -> Any:
        maps = average_levels(scene.levels, scene.tags, scene.size, one_step=settings.one_step)
        return maps, peaks_of_maps(
            maps,
            max_peaks=settings.max_peaks,
            nms_kernel=settings.nms_kernel,
            min_score=settings.detection_threshold,
            at=settings.peaks_at,
        )

    maps, peaks = find()

    def group(refine_on: Any) -> object:
        return group_people(
            peaks,
            matching_order=matching_order(case.model.skeleton, settings),
            tag_threshold=settings.tag_threshold,
            max_people=settings.max_people,
            adjust=settings.adjust,
            refine_on=refine_on,
        )

    floors = _floors(case, peaks, ceilings)
    return {
        "preprocess": (lambda: list(stage([case.frame])), floors["preprocess"]),
        "average, peaks": (find, floors["peaks"]),
        "group": (lambda: group(None), floors["group"]),
        "group, refine": (lambda: group(maps), floors["refine"]),
    }


def _floors(case: Case, peaks: Any, ceilings: Ceilings) -> dict[str, Floor]:
    """What each must read and write. Refine may pass over maps, never over a person's tags: it is
    reckoned with the peaks and the tags alone."""
    of_peaks = sum(array.nbytes for array in peaks)
    moved = {
        "preprocess": sum(plane.nbytes for plane in case.frame.planes) + case.images.nbytes,
        "peaks": sum(level.nbytes for level in case.scene.levels),
        "group": of_peaks,
        "refine": of_peaks + case.scene.tags.nbytes,
    }
    return {
        name: floor_of(num_bytes=num_bytes, bandwidth=ceilings.memory)
        for name, num_bytes in moved.items()
    }
