"""training.schedule: the papers' steps, a cosine, a warm-up."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import ScheduleConfig
from training.schedule import rate_factor


def test_the_papers_schedule() -> None:
    # Cheng et al. 2020: 1e-3, dropped to 1e-4 and 1e-5 at the 200th and 260th of 300 epochs.
    rates = [
        1e-3 * rate_factor(ScheduleConfig(), epoch * 10 + step, steps_per_epoch=10)
        for epoch in range(300)
        for step in (0, 9)
    ]
    expected = [1e-3] * 400 + [1e-4] * 120 + [1e-5] * 80
    assert rates == pytest.approx(expected)


@given(
    epochs=st.integers(2, 50),
    steps_per_epoch=st.integers(2, 20),
    warmup=st.integers(0, 10),
    final=st.floats(0, 1),
)
def test_a_cosine_rises_in_the_warm_up_then_falls_to_its_final_rate(
    epochs: int, steps_per_epoch: int, warmup: int, final: float
) -> None:
    settings = ScheduleConfig(epochs=epochs, kind="cosine", warmup_steps=warmup, final=final)
    steps = epochs * steps_per_epoch
    warmup = min(warmup, steps)
    rates = [rate_factor(settings, step, steps_per_epoch=steps_per_epoch) for step in range(steps)]
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[warmup:]))
    if warmup < steps - 1:
        assert rates[warmup] == pytest.approx(1)
        assert rates[-1] == pytest.approx(final)


def test_half_way_down_a_cosine_is_half() -> None:
    settings = ScheduleConfig(epochs=1, kind="cosine", final=0)
    assert rate_factor(settings, 50, steps_per_epoch=101) == pytest.approx(0.5)
    quarter = rate_factor(settings, 25, steps_per_epoch=101)
    assert quarter == pytest.approx(0.5 + math.sqrt(0.5) / 2)


def test_a_warm_up_is_linear() -> None:
    settings = ScheduleConfig(warmup_steps=3)
    rates = [rate_factor(settings, step, steps_per_epoch=10) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1])
