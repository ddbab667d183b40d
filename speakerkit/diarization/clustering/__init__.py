"""Clusters of windows: who is who in one recording, by one of several methods under the same bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from speakerkit.diarization.clustering.affinity import Floats, Labels, canonical_order, directions
from speakerkit.diarization.clustering.ahc import AhcSettings, ahc
from speakerkit.diarization.clustering.hdbscan import HdbscanSettings, hdbscan
from speakerkit.diarization.clustering.kmeans import KmeansSettings, kmeans
from speakerkit.diarization.clustering.labels import (
    absorb_tiny,
    assignment_confidence,
    merge_near,
    numbered,
    within_bounds,
)
from speakerkit.diarization.clustering.settings import ClusterSettings
from speakerkit.diarization.clustering.spectral import NmeScSettings, SpectralSettings, nme_sc, spectral
from speakerkit.diarization.clustering.vbx import PldaBackend, Resegmentation, VbxSettings, resegment
from speakerkit.errors import ConfigError
from speakerkit.registry import Registry, suggest

__all__ = [
    "METHODS",
    "AhcSettings",
    "ClusterSettings",
    "Clusters",
    "HdbscanSettings",
    "KmeansSettings",
    "NmeScSettings",
    "PldaBackend",
    "Resegmentation",
    "SpectralSettings",
    "VbxSettings",
    "assignment_confidence",
    "cluster",
    "cluster_with_confidence",
    "resegment",
    "settings_for",
]

SAME_VOICE = 0.9999  # mean cosine of clusters that differ by rounding: digital tones, copies


class Method(NamedTuple):
    """A row of the table: the settings of a method, and what finds its first labels.

    ``find(rows, settings, low, high)`` takes unit vectors (N, D) and gives labels (N,).
    """

    settings: type[ClusterSettings]
    find: Callable[[Floats, Any, int, int], Labels]


METHODS: Registry[Method] = Registry("clustering method")
METHODS.register("ahc")(Method(AhcSettings, ahc))
METHODS.register("spectral")(Method(SpectralSettings, spectral))
METHODS.register("nme-sc")(Method(NmeScSettings, nme_sc))
METHODS.register("hdbscan")(Method(HdbscanSettings, hdbscan))
METHODS.register("kmeans")(Method(KmeansSettings, kmeans))
METHODS.register("vbx")(Method(VbxSettings, ahc))  # average linkage is where it starts


@dataclass(frozen=True, eq=False)
class Clusters:
    """Labels with what speaks for them.

    Attributes:
        labels: (N,) 0 to K - 1, in order of first appearance.
        confidence: (N,) in [0, 1]; VBx's posterior, or the margin of :func:`assignment_confidence`.
    """

    labels: Labels
    confidence: npt.NDArray[np.float64]


def settings_for(method: str, **options: Any) -> ClusterSettings:
    """Settings of a method by name; ``options`` are fields of its class.

    Raises:
        ConfigError: an unknown method, an option that it does not have, or a value that it refuses.
    """
    kind = METHODS[method].settings
    known = [field.name for field in fields(kind)]
    for name in options:
        if name not in known:
            raise ConfigError(name, f"is no option of {method}", suggest(name, known))
    return kind(**options)


def cluster(embeddings: npt.ArrayLike, settings: ClusterSettings, backend: PldaBackend | None = None) -> Labels:
    """Labels (N,) of windows: 0 to K - 1, in order of first appearance.

    The number of speakers asked for is kept, whatever the method. One thread computes, so that any number of them gives
    the same labels; and except for VBx, which sees time, the order of the windows has no influence.

    Args:
        embeddings: (N, D), in the order of time; N may be 0.
        settings: of the method; its class says which.
        backend: chain and PLDA, for VBx.

    Raises:
        ConfigError: fewer windows than speakers asked for; VBx without PLDA.
        DataError: embeddings that are not finite or all zero, or that the back-end refuses.
    """
    return _cluster(embeddings, settings, backend)[0]


def cluster_with_confidence(
    embeddings: npt.ArrayLike, settings: ClusterSettings, backend: PldaBackend | None = None
) -> Clusters:
    """As :func:`cluster`, with the confidence of each window's label."""
    labels, posterior = _cluster(embeddings, settings, backend)
    if posterior is None:
        posterior = assignment_confidence(embeddings, labels)
    return Clusters(labels, posterior)


def _cluster(
    embeddings: npt.ArrayLike, settings: ClusterSettings, backend: PldaBackend | None
) -> tuple[Labels, npt.NDArray[np.float64] | None]:
    """Labels, and the posteriors that VBx has for them; ``None`` where it has none."""
    rows = directions(np.reshape(embeddings, (0, 1)) if np.size(embeddings) == 0 else embeddings)
    low, high = settings.bounds(len(rows))
    if not len(rows):
        return np.zeros(0, dtype=np.intp), None
    with threadpool_limits(1):
        if not isinstance(settings, VbxSettings):
            return _bounded(rows, _found(rows, settings, low, high), settings, low, high), None
        start = _found(rows, settings, low, max(low, min(len(rows), settings.most_start)))
        refined = resegment(embeddings, start, backend, settings, most=high)
        labels = _bounded(rows, refined.labels, settings, low, high)
        kept = np.array_equal(labels, refined.labels)  # posteriors are of VBx's own speakers
        return labels, refined.posteriors.max(axis=1) if kept else None


def _found(rows: Floats, settings: ClusterSettings, low: int, high: int) -> Labels:
    """What the method finds, whatever the order of the rows."""
    order = canonical_order(rows)
    labels = np.empty(len(rows), dtype=np.intp)
    labels[order] = METHODS[settings.method].find(rows[order], settings, low, high)
    return labels


def _bounded(rows: Floats, labels: Labels, settings: ClusterSettings, low: int, high: int) -> Labels:
    order = canonical_order(rows)
    sorted_rows, kept = rows[order], numbered(labels[order])
    kept = merge_near(sorted_rows, kept, SAME_VOICE, low)
    kept = absorb_tiny(sorted_rows, kept, settings.smallest(len(rows)), low)
    bounded = np.empty_like(kept)
    bounded[order] = within_bounds(sorted_rows, kept, low, high)
    return numbered(bounded)
