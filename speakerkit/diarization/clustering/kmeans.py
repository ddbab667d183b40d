"""k-means on directions; the number of clusters is the user's, or that of average linkage."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from speakerkit.diarization.clustering.affinity import Floats, Labels
from speakerkit.diarization.clustering.ahc import ahc
from speakerkit.diarization.clustering.settings import ClusterSettings, require_at_least

STARTS = 10


@dataclass(frozen=True)
class KmeansSettings(ClusterSettings):
    """Of k-means.

    Attributes:
        starts: random starts (k-means++), of which the best is kept.
    """

    method: ClassVar[str] = "kmeans"

    starts: int = STARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("starts", self.starts, 1)


def kmeans(rows: Floats, settings: KmeansSettings, low: int, high: int) -> Labels:
    """Labels (N,) of unit vectors (N, D), N > 0; where the number is open, average linkage counts the clusters."""
    count = low
    if low < high:
        sizes = np.bincount(ahc(rows, settings, low, high))
        count = int(np.clip(np.sum(sizes >= settings.smallest(len(rows))), low, high))
    return k_means(rows, count, settings.seed, settings.starts)


def k_means(rows: Floats, count: int, seed: int, starts: int = STARTS) -> Labels:
    """Labels (N,) of points (N, D) by scikit-learn's k-means; fewer than ``count`` where fewer points differ."""
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.exceptions import ConvergenceWarning

    if count == 1:
        return np.zeros(len(rows), dtype=np.intp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # points that are equal
        return KMeans(count, n_init=starts, random_state=seed).fit_predict(rows).astype(np.intp)
