"""What every clustering method is told: how many speakers there may be, and what counts as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from speakerkit.errors import ConfigError

DEFAULT_THRESHOLD = 0.3
SMALLEST_CLUSTER = 3  # windows, in a file of 30 to 1 500


@dataclass(frozen=True)
class ClusterSettings:
    """Settings that all methods share.

    Attributes:
        num_speakers: exactly so many; ``None`` leaves it to the method.
        min_speakers: at least so many.
        max_speakers: at most so many; ``None`` is no limit.
        min_cluster_size: a cluster of fewer windows goes to the nearest others, unless the number of speakers asked
            for needs it. ``None`` is 3; 0.2 % of the windows where that is more, as long files have more outliers, and
            a tenth of them where that is less, as short files have short turns.
        threshold: cosine down to which average linkage merges two clusters: the mean over all pairs of their windows.
            What cannot count by itself (k-means, VBx's start, a graph of a few windows or in too many parts) does so.
            A calibrated threshold of a bundle is one of whole recordings, and higher than windows of 1.5 s allow.
        seed: of every random start.

    Raises:
        ConfigError: numbers below 1, a minimum above the maximum, a threshold that is no cosine.
    """

    method: ClassVar[str] = ""

    num_speakers: int | None = None
    min_speakers: int = 1
    max_speakers: int | None = None
    min_cluster_size: int | None = None
    threshold: float = DEFAULT_THRESHOLD
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_speakers", "min_speakers", "max_speakers", "min_cluster_size"):
            require_at_least(name, getattr(self, name), 1)
        require_between("threshold", self.threshold, -1.0, 1.0)
        require_at_least("seed", self.seed, 0)
        if self.seed >= 2**32:
            raise ConfigError("seed", f"is {self.seed}", "give a number below 2^32")
        if self.max_speakers is not None and self.max_speakers < self.min_speakers:
            fault = f"is {self.max_speakers}, min_speakers is {self.min_speakers}"
            raise ConfigError("max_speakers", fault, "give a maximum that is not below the minimum")
        if self.num_speakers is not None and not self._range[0] <= self.num_speakers <= self._range[1]:
            fault = f"is {self.num_speakers}, outside min_speakers and max_speakers"
            raise ConfigError("num_speakers", fault, "give it alone")

    @property
    def _range(self) -> tuple[int, float]:
        return self.min_speakers, math.inf if self.max_speakers is None else self.max_speakers

    def bounds(self, windows: int) -> tuple[int, int]:
        """Fewest and most clusters that ``windows`` windows may fall into.

        Raises:
            ConfigError: fewer windows than the speakers asked for.
        """
        exact = self.num_speakers is not None
        low = self.num_speakers or self.min_speakers
        if low > (windows if exact else max(windows, 1)):
            name = "num_speakers" if exact else "min_speakers"
            remedy = "ask for fewer speakers, use shorter windows, or a longer recording"
            raise ConfigError(name, f"is {low}, the recording has {windows} windows of speech", remedy)
        return low, low if exact else max(low, int(min(self._range[1], windows)))

    def smallest(self, windows: int) -> int:
        """Windows that a cluster must have, of ``windows`` in all."""
        if self.min_cluster_size is not None:
            return self.min_cluster_size
        return max(1, min(max(SMALLEST_CLUSTER, windows // 500), windows // 10))


def require_at_least(name: str, value: float | None, least: float) -> None:
    """Raises :class:`ConfigError` for a value below ``least``; ``None`` stands for what is not set."""
    if value is not None and not value >= least:
        raise ConfigError(name, f"is {value}", f"give {least} or more")


def require_between(name: str, value: float, least: float, most: float) -> None:
    """Raises :class:`ConfigError` for a value outside [least, most]."""
    if not least <= value <= most:
        raise ConfigError(name, f"is {value}", f"give a value from {least:g} to {most:g}")
