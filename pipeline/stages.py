"""The stages of a stream, made in the order of a frame's way; none is started here.

sources --frames--> preprocess -> inference -> poses --poses--> sinks
(runtime/source_set.py)   network_stages()                 sink_stages()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pipeline.config import StreamConfig
from pipeline.gpu.placement import Placement
from pipeline.messages import NetOutput, Poses
from pipeline.queues import StreamQueues
from pipeline.runtime.counted import Counted, CountedSink, give_present
from pipeline.runtime.load.contract import LoadWatch, StepTaker, steps_for
from pipeline.runtime.load.shedding import Shedding
from pipeline.runtime.source_set import Departed
from pipeline.runtime.stage import Stage
from pipeline.runtime.stats import Stats
from pipeline.sinks.sink import CountsUnwritten, ForgetsSources, Sink

if TYPE_CHECKING:
    from nets.checkpoints import Model
    from nets.engines.engine import Engine
    from pipeline.network import Network


@dataclass(frozen=True)
class Shared:
    """What all stages of a process share."""

    config: StreamConfig
    queues: StreamQueues
    placement: Placement
    departed: Departed
    stats: Stats
    stop: threading.Event

    def stage(self, name: str, work: Any, **arguments: Any) -> Stage:
        """As Stage()."""
        return Stage(name, work, stats=self.stats, stop=self.stop, **arguments)


def network_stages(
    shared: Shared, model: Model | None, engines: Sequence[Engine], *, idle: bool
) -> tuple[list[Stage], LoadWatch | None]:
    """Preprocess, one inference for each device, poses; and who watches their load, if asked to.

    Args:
        model, engines: see pipeline.network.make_network.
        idle: they go on while there is no source.
    """
    # Imported here: torch takes seconds and 200 MB, which the other parts do without.
    from pipeline.network import make_network

    network = make_network(
        shared.config, model, engines=engines, stop=shared.stop, placement=shared.placement
    )
    contract = shared.config.contract
    shedding = Shedding(
        stats=shared.stats, max_age_ms=contract.max_age_ms, max_fps=contract.target_fps
    )
    stages = [
        _preprocess(shared, network, shedding, idle=idle),
        *_inferences(shared, network, shedding),
        _poses(shared, network),
    ]
    return stages, _load_watch(shared, network, shedding, stages)


def _preprocess(shared: Shared, network: Network, shedding: Shedding, *, idle: bool) -> Stage:
    sources = enumerate(shared.config.sources)
    return shared.stage(
        "preprocess", network.preprocess, batch=network.max_batch,
        inputs=[shared.queues.frames(i, source) for i, source in sources], idle=idle,
        outputs=[shared.queues.inputs(i) for i in range(len(network.inferences))],
        route=attrgetter("gpu"), admit=shedding.admit, forget=shedding.forget_source,
    )  # fmt: skip


def _inferences(shared: Shared, network: Network, shedding: Shedding) -> Iterator[Stage]:
    for i, inference in enumerate(network.inferences):
        yield shared.stage(
            "inference" if i == 0 else f"inference:{i}", inference, admit=shedding.admit_batches,
            inputs=[shared.queues.inputs(i)], outputs=[shared.queues.outputs(i)],
        )  # fmt: skip


def _poses(shared: Shared, network: Network) -> Stage:
    tracker = network.tracker
    find = Counted(
        network.find_poses, tracker, shared.stats, shared.departed, privacy=shared.config.privacy
    )
    inputs = [shared.queues.outputs(i) for i in range(len(network.inferences))]
    return shared.stage(
        "poses", partial(_each, find), inputs=inputs, batch=len(inputs),
        outputs=shared.queues.poses(),
        forget=None if tracker is None else tracker.forget_source,
    )  # fmt: skip


def _each(work: Callable[[NetOutput], Iterator[Poses]], batch: list[NetOutput]) -> Iterator[Poses]:
    """The results of several messages, one of each GPU, one after the other."""
    for output in batch:
        yield from work(output)


def _load_watch(
    shared: Shared, network: Network, shedding: Shedding, stages: Sequence[Stage]
) -> LoadWatch | None:
    config = shared.config
    if config.contract.target_fps is None:
        return None
    steps = steps_for(
        config.contract, input_size=network.input_size, size_multiple=network.size_multiple,
        canvas=config.preprocess.canvas, refine=network.decode.refine,
    )  # fmt: skip
    return LoadWatch(
        steps, target_fps=config.contract.target_fps, stats=shared.stats, shedding=shedding,
        apply=StepTaker(stages, network.preprocess, network.find_poses),
    )  # fmt: skip


def sink_stages(
    shared: Shared, sinks: Sequence[tuple[str, Callable[[], Sink]]], *, counts: bool
) -> tuple[list[Stage], dict[str, Sink]]:
    """A stage for each sink, and the sinks by name.

    Args:
        sinks: the name of each, and what makes it; in the order of their queues.
        counts: results are counted here, for they are made in another process.
    Raises:
        ValueError: one of them cannot begin; those before it are closed.
    """
    stages: list[Stage] = []
    made: dict[str, Sink] = {}
    with ExitStack() as opened:
        for (name, make), queue in zip(sinks, shared.queues.poses(), strict=True):
            sink = made[name] = opened.enter_context(closing(make()))
            work: Any = partial(give_present, sink, shared.departed)
            if counts and not stages:
                work = CountedSink(sink, shared.stats)
            if isinstance(sink, CountsUnwritten):
                shared.stats.watch_unwritten(name, sink.unwritten)
            forget = sink.forget_source if isinstance(sink, ForgetsSources) else None
            stages.append(shared.stage(name, work, inputs=[queue], close=sink.close, forget=forget))
        opened.pop_all()
    return stages, made
