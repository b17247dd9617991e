"""The learning rate over time. Knows steps, not images or hours."""

import math

from training.config import ScheduleConfig


def rate_factor(settings: ScheduleConfig, step: int, *, steps_per_epoch: int) -> float:
    """What the learning rate of one step is multiplied by.

    `step`: HigherHRNet's and DoubleHigherNet's, x0.1 after 200 and 260 of 300 epochs. `cosine`:
    half a cosine from 1 down to `final` (Loshchilov and Hutter 2017, without restarts). Both rise
    linearly in the first warmup_steps.

    Args:
        step: counts from 0.
    """
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.kind == "step":
        passed = sum(step >= epochs * steps_per_epoch for epochs in settings.milestones)
        return warmup * settings.factor**passed
    last = settings.epochs * steps_per_epoch - 1
    done = (step - settings.warmup_steps) / max(last - settings.warmup_steps, 1)
    falling = 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    return warmup * (settings.final + (1 - settings.final) * falling)
