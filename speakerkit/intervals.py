"""What a figure of a test set is worth: intervals from draws with replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.errors import ConfigError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A range that a figure lies in at the asked level of confidence."""

    low: float
    high: float


def percentiles(replicates: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of a figure's replicates (replicates,).

    Raises:
        ConfigError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError("bootstrap", f"a confidence of {level} was asked for", "0.95 is usual")
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(float(low), float(high))


def require_replicates(replicates: int) -> None:
    """Raise ConfigError for fewer than two replicates."""
    if replicates < 2:
        raise ConfigError("bootstrap", f"{replicates} replicates give no interval", "1000 are usual")


def mean_interval(
    values: Floats, units: Sequence[str], replicates: int, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """Interval of the mean of values (n,), whose units (n), such as speakers, are drawn with replacement.

    A unit brings all its values each time that it is drawn, since they err together. ``None`` for fewer than two units.

    Raises:
        ConfigError: fewer than two replicates, or a level outside (0, 1).
    """
    require_replicates(replicates)
    names, number = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(number, values), np.bincount(number)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    return percentiles(drawn @ sums / (drawn @ counts), level)
