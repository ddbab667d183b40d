"""HDBSCAN on the main axes of the directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from speakerkit.diarization.clustering.affinity import Floats, Labels
from speakerkit.diarization.clustering.labels import centroids, merge_near
from speakerkit.diarization.clustering.settings import ClusterSettings, require_at_least


@dataclass(frozen=True)
class HdbscanSettings(ClusterSettings):
    """Of HDBSCAN.

    Attributes:
        min_samples: neighbours that make a point dense.
        dimensions: main axes that are kept; in more, all distances are alike, and slow to compute.
    """

    method: ClassVar[str] = "hdbscan"

    min_samples: int = 2
    dimensions: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("min_samples", self.min_samples, 1)
        require_at_least("dimensions", self.dimensions, 1)


def hdbscan(rows: Floats, settings: HdbscanSettings, low: int, high: int) -> Labels:
    """Labels (N,) of unit vectors (N, D), N > 0; points that HDBSCAN calls noise go to the nearest cluster.

    HDBSCAN never finds a single cluster, and splits those of uneven density: what is as near as
    ``settings.threshold`` is merged again, down to ``low`` clusters (WeSpeaker merges likewise). The caller sees to
    ``low`` and ``high`` where HDBSCAN finds another number.
    """
    from sklearn.cluster import HDBSCAN  # slow to import

    if len(rows) <= settings.min_samples:
        return np.zeros(len(rows), dtype=np.intp)
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, -settings.dimensions :]
    size = min(max(2, settings.smallest(len(rows))), len(rows))
    labels = HDBSCAN(min_cluster_size=size, min_samples=settings.min_samples, copy=True).fit_predict(centred @ axes)
    noise = labels < 0
    if noise.all():
        return np.zeros(len(rows), dtype=np.intp)
    if noise.any():
        middle = centroids(rows[~noise], labels[~noise])
        labels[noise] = np.argmax(rows[noise] @ middle.T, axis=1)
    return merge_near(rows, labels.astype(np.intp), settings.threshold, low)
