"""Learning rate and margin against closed forms, WeSpeaker's among them."""

from __future__ import annotations

import math

import pytest

from speakerkit.embedding.config import MarginConfig
from speakerkit.embedding.margin import margin_at
from speakerkit.errors import ConfigError
from speakerkit.training.config import ScheduleConfig
from speakerkit.training.schedules import learning_rate


def wespeaker_exponential_decrease(step: int, steps: int, peak: float, final: float, warm_up: int) -> float:
    """``ExponentialDecrease.get_current_lr`` of wespeaker/utils/schedulers.py with ``warm_from_zero``."""
    coefficient = step / warm_up if step < warm_up else 1.0
    return coefficient * peak * math.exp((step / steps) * math.log(final / peak))


def wespeaker_margin(step: int, initial: float, final: float, start: int, end: int) -> float:
    """``MarginScheduler`` of wespeaker/utils/schedulers.py with ``increase_type`` "exp"."""
    if step < start:
        return initial
    if step >= end:
        return final
    ratio = 1.0 - math.exp((step - start) / (end - start) * math.log(1e-3 / (1.0 + 1e-6)))
    return initial + (final - initial) * ratio


def test_exponential_decay_is_wespeakers() -> None:
    config = ScheduleConfig("exponential", warmup_steps=40, final_lr=5e-5)
    for step in range(40, 1000):
        expected = wespeaker_exponential_decrease(step, 1000, 0.1, 5e-5, 40)
        assert learning_rate(step, 1000, 0.1, 5e-5, config) == pytest.approx(expected, rel=1e-12)
    for step in range(40):  # the warm-up is one step ahead
        ahead = learning_rate(step, 1000, 0.1, 5e-5, config) * step / (step + 1)
        assert ahead == pytest.approx(wespeaker_exponential_decrease(step, 1000, 0.1, 5e-5, 40), rel=1e-12)


def test_margin_is_wespeakers() -> None:
    config = MarginConfig(0.0, 0.2, 20, 120)
    for step in range(200):
        assert margin_at(step, config) == pytest.approx(wespeaker_margin(step, 0.0, 0.2, 20, 120), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "at_half"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0), ("exponential", math.sqrt(0.1))]
)
def test_ends_and_middle(name: str, at_half: float) -> None:
    config = ScheduleConfig(name, final_lr=0.1)  # type: ignore[arg-type]
    assert learning_rate(0, 100, 1.0, 0.1, config) == 1.0
    assert learning_rate(50, 100, 1.0, 0.1, config) == pytest.approx(at_half)
    end = 1.0 if name == "constant" else 0.1
    assert learning_rate(100, 100, 1.0, 0.1, config) == pytest.approx(end)
    rates = [learning_rate(step, 100, 1.0, 0.1, config) for step in range(100)]
    assert rates == sorted(rates, reverse=True)


def test_warm_up_is_linear_and_never_zero() -> None:
    config = ScheduleConfig("constant", warmup_steps=4)
    assert [learning_rate(step, 10, 2.0, 0.1, config) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_linear_margin_and_no_ramp() -> None:
    linear = MarginConfig(0.1, 0.3, 10, 20, "linear")
    assert [margin_at(step, linear) for step in (0, 10, 20, 30)] == pytest.approx([0.1, 0.1, 0.3, 0.3])
    assert margin_at(15, linear) == pytest.approx(0.2)
    assert margin_at(0, MarginConfig()) == 0.2


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match="pi / 2"):
        MarginConfig(final=1.6)
    with pytest.raises(ConfigError, match="before start_step"):
        MarginConfig(start_step=30, end_step=20)
    with pytest.raises(ConfigError, match="positive"):
        ScheduleConfig("exponential", final_lr=0.0)
