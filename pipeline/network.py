"""The network's part of a stream: what its stages do, and on which devices.

    CPU      preprocess ---> inference -----------> poses
    GPUs    preprocess -+-> inference of GPU 0 -+-> poses          one inference stage for each
                         '-> inference of GPU 1 -'                  GPU; sources stay on theirs

Made in the main thread, before any stage starts: weights, engines and kernels are loaded here, and
what a user can get wrong about them is found. Stages and queues are made in stream.py. Imports
torch, which takes seconds and 200 MB: only a process that runs the network imports this file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.places import DEFAULT_WEIGHTS
from kernels import decode as decode_kernels
from kernels import preprocess as preprocess_kernels
from kernels.arrays import CudaGpu
from kernels.decode import DecodeSettings
from nets.checkpoints import Model, load_model
from nets.engines.engine import Engine
from nets.engines.load import load_engine
from pipeline.config import StreamConfig
from pipeline.gpu.placement import Placement, devices_of
from pipeline.gpu.stream_slots import STREAM_SLOTS, Gpus, GpuSettings, StreamSlot, StreamSlots
from pipeline.inference import Inference
from pipeline.poses import FindPoses, decode_settings
from pipeline.preprocess import Preprocess
from pipeline.runtime.queues.credit import Stopped
from pipeline.tracker import Tracker
from pipeline.tracker import warm_up as warm_up_tracker

_BETTER_ON_A_GPU = "higher_hrnet_w32"
"""A published name, see nets.zoo.published."""

_MAX_BATCH_OF_GPU = 8
_MAX_BATCH_OF_CPU = 1  # more frames a pass hardly make it faster, and make each wait for all

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """What the stages between frames and poses do."""

    preprocess: Preprocess
    inferences: tuple[Inference, ...]
    """One for each device."""
    find_poses: FindPoses
    tracker: Tracker | None
    decode: DecodeSettings
    input_size: int
    size_multiple: int
    max_batch: int
    """Frames of different sources in one pass."""


def make_network(
    config: StreamConfig,
    model: Model | None,
    *,
    engines: Sequence[Engine] = (),
    stop: threading.Event,
    placement: Placement,
) -> Network:
    """Load all of it.

    Args:
        model: in place of the configured weights.
        engines: loaded from that model, in place of the configured ones; one for each device.
        stop: the stream's stop event.
        placement: which source is on which GPU.
    Raises:
        ValueError: weights, engine, device or precision that cannot be used; one line.
    """
    better = better_weights(config, model)
    model = model or load_model(config.weights or DEFAULT_WEIGHTS)
    decode = decode_settings(config.poses, model)
    engines = engines or [_engine(config, model, device) for device in devices_of(config.inference)]
    _log.info("kernels: loading (compiled once for each machine, which takes half a minute)")
    preprocess_kernels.warm_up()
    on_gpus = engines[0].device != "cpu"
    if not on_gpus:
        decode_kernels.warm_up()
    elif better is not None:
        _log.info("the net in the box is small; on a GPU --weights %s finds more people", better)
    if config.tracker.enabled:
        warm_up_tracker()
    size = config.preprocess.input_size or model.input_size
    multiple = config.preprocess.size_multiple or model.size_multiple
    _log.info("network: %s, short side %d, sides multiples of %d", model.name, size, multiple)
    flip_order = model.skeleton.flip_order if config.inference.flip_test else None
    return Network(
        preprocess=Preprocess(
            input_size=size,
            mean=model.mean,
            std=model.std,
            size_multiple=multiple,
            canvas=config.preprocess.canvas,
            prefilter=config.preprocess.prefilter,
            max_long_side=config.preprocess.max_long_side,
            gpus=Gpus(_stream_slots(engines, config, model, stop), placement) if on_gpus else None,
        ),
        inferences=tuple(Inference(engine, flip_order=flip_order) for engine in engines),
        find_poses=FindPoses(model.skeleton, decode),
        tracker=Tracker(config.tracker, config.smooth) if config.tracker.enabled else None,
        decode=decode,
        input_size=size,
        size_multiple=multiple,
        max_batch=config.inference.max_batch
        or (_MAX_BATCH_OF_GPU if on_gpus else _MAX_BATCH_OF_CPU),
    )


def better_weights(config: StreamConfig, model: Model | None) -> str | None:
    """Published weights that find more people at a GPU's speed; None where the user chose some."""
    return None if model is not None or config.weights is not None else _BETTER_ON_A_GPU


def _engine(config: StreamConfig, model: Model, device: str) -> Engine:
    return load_engine(
        model,
        engine=config.inference.engine,
        device=device,
        precision=config.inference.precision,
        threads=config.inference.threads,
    )


def _stream_slots(
    engines: Sequence[Engine], config: StreamConfig, model: Model, stop: threading.Event
) -> list[StreamSlots]:
    """Those of each GPU."""
    settings = GpuSettings(
        skeleton=model.skeleton,
        mean=model.mean,
        std=model.std,
        prefilter=config.preprocess.prefilter,
        flip_order=model.skeleton.flip_order if config.inference.flip_test else None,
    )

    def give_up() -> None:
        if stop.is_set():
            raise Stopped

    gpus = []
    for engine in engines:
        device = torch.device(engine.device)
        gpu = CudaGpu(device.index or 0)
        streams = [torch.cuda.Stream(device) for _ in range(STREAM_SLOTS)]  # type: ignore[no-untyped-call]
        stream_slots = [StreamSlot(gpu, settings, stream) for stream in streams]
        gpus.append(StreamSlots(stream_slots, give_up=give_up))
    return gpus
