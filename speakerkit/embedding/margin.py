"""The margin of a head as a plain function of the optimiser step."""

from __future__ import annotations

import math

from speakerkit.embedding.config import MarginConfig


def margin_at(step: int, schedule: MarginConfig) -> float:
    """Margin of ``step``: ``initial`` before ``start_step``, ``final`` from ``end_step`` on, in between rising.

    "exponential" rises by ``1 - exp(t * ln 1e-3)`` of the way, as WeSpeaker's MarginScheduler does; t runs from 0 to 1.
    """
    if step >= schedule.end_step:
        return schedule.final
    if step < schedule.start_step:
        return schedule.initial
    t = (step - schedule.start_step) / (schedule.end_step - schedule.start_step)
    share = 1 - math.exp(t * math.log(1e-3)) if schedule.shape == "exponential" else t
    return schedule.initial + (schedule.final - schedule.initial) * share
