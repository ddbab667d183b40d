"""The learning rate as a plain function of the optimiser step."""

from __future__ import annotations

import math

from speakerkit.training.config import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, final: float, config: ScheduleConfig) -> float:
    """Learning rate of ``step`` (from 0) in a run of ``steps``.

    Warm-up is linear, ``peak * (step + 1) / warmup_steps``; the decay then goes from ``peak`` to ``final`` over the
    rest, exponentially (``peak * (final / peak) ** t``), along half a cosine, linearly, or not at all.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    t = min(1.0, (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps))
    if config.name == "exponential":
        return peak * (final / peak) ** t
    if config.name == "cosine":
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * t))
    return peak + (final - peak) * t if config.name == "linear" else peak
