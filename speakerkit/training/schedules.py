"""The learning rate as a plain function of the optimiser step."""

from __future__ import annotations

import math

from speakerkit.training.config import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, final: float, config: ScheduleConfig) -> float:
    """Learning rate of ``step`` (from 0) in a run of ``steps``.

    The decay goes from ``peak`` at step 0 to ``final`` after the last one: exponentially (``peak * (final / peak) **
    t`` with t = step / steps), along half a cosine, linearly, or not at all. The linear warm-up multiplies it, as in
    WeSpeaker's ``ExponentialDecrease``; it is one step ahead of that one, whose first step has rate 0.
    """
    t = min(1.0, step / steps)
    warmth = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.name == "exponential":
        return warmth * peak * (final / peak) ** t
    if config.name == "cosine":
        return warmth * (final + (peak - final) * 0.5 * (1 + math.cos(math.pi * t)))
    return warmth * (peak + (final - peak) * t if config.name == "linear" else peak)
