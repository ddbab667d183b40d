"""Spectral clustering on the graph of nearest neighbours; NME-SC finds the number of neighbours by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse
from scipy.linalg import eigh, eigvalsh
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from speakerkit.diarization.clustering.affinity import Floats, Labels, neighbour_graph
from speakerkit.diarization.clustering.ahc import ahc
from speakerkit.diarization.clustering.kmeans import k_means
from speakerkit.diarization.clustering.labels import merge_near
from speakerkit.diarization.clustering.settings import ClusterSettings, require_at_least, require_between

SMALLEST_GRAPH = 20  # windows; a graph of fewer says little of the number of clusters
SMALLEST_SPARSE = 600  # rows from which Lanczos iterations are faster than a dense solver
LARGEST_GRAPH = 8_000_000  # affinities kept in NME-SC
SMALLEST_GAP = 1e-10


@dataclass(frozen=True)
class SpectralSettings(ClusterSettings):
    """Of spectral clustering.

    Attributes:
        neighbours: affinities kept of each window, its own among them; ``None`` is 10, and 1 % of the windows from
            1 000 on, a quarter of them below 40.
        most_clusters: the eigengap is sought among so many, where ``max_speakers`` sets no other limit.
    """

    method: ClassVar[str] = "spectral"

    neighbours: int | None = None
    most_clusters: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("neighbours", self.neighbours, 2)
        require_at_least("most_clusters", self.most_clusters, 1)


@dataclass(frozen=True)
class NmeScSettings(ClusterSettings):
    """Of NME-SC.

    Attributes:
        most_clusters: as in :class:`SpectralSettings`.
        least_neighbours: tried. The paper starts at 1; but the nearest neighbours of a window are those that share its
            audio, and a graph of them alone falls into turns, not speakers.
        largest_share: of the windows that may be kept as neighbours of one.
        steps: numbers of neighbours tried, evenly from the least to the largest; ``None`` tries all.
        search_windows: the search sees so many windows at most; the share of neighbours that it finds holds for all.
    """

    method: ClassVar[str] = "nme-sc"

    most_clusters: int = 20
    least_neighbours: int = 10
    largest_share: float = 0.25
    steps: int | None = 30
    search_windows: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("most_clusters", self.most_clusters, 1)
        require_at_least("least_neighbours", self.least_neighbours, 2)
        require_between("largest_share", self.largest_share, 0.0, 1.0)
        require_at_least("steps", self.steps, 1)
        require_at_least("search_windows", self.search_windows, SMALLEST_GRAPH)


def spectral(rows: Floats, settings: SpectralSettings, low: int, high: int) -> Labels:
    """Labels (N,) of unit vectors (N, D), N > 0: affinities ``(1 + cosine)/2`` of the nearest neighbours, unnormalised
    Laplacian, eigengap, k-means (as WeSpeaker). Below 20 windows: average linkage.
    """
    if len(rows) < SMALLEST_GRAPH:
        return ahc(rows, settings, low, high)
    neighbours = settings.neighbours or max(min(10, len(rows) // 4), round(0.01 * len(rows)))
    return _partition(rows, neighbour_graph(rows, neighbours), settings, low, high)


def nme_sc(rows: Floats, settings: NmeScSettings, low: int, high: int) -> Labels:
    """Labels (N,) of unit vectors (N, D), N > 0, by a binary graph of as many neighbours as
    :func:`tuned_neighbours` finds (Park et al., Auto-tuning spectral clustering for speaker diarization using
    normalized maximum eigengap, IEEE SPL 2020). Below 20 windows: average linkage.
    """
    if len(rows) < SMALLEST_GRAPH:
        return ahc(rows, settings, low, high)
    high = min(high, max(low, settings.most_clusters))
    graph = neighbour_graph(rows, tuned_neighbours(rows, settings, high), binary=True)
    return _partition(rows, graph, settings, low, high)


def tuned_neighbours(rows: Floats, settings: NmeScSettings, high: int) -> int:
    """Neighbours p with the least ``p / g_p``, ``g_p`` the largest eigengap over the largest eigenvalue.

    The search sees every so many-th row where there are more than ``settings.search_windows``; p is then scaled, and
    limited so that the graph holds at most 8 million affinities. Eigengaps are those of 1 to ``high`` clusters.
    """
    count = min(len(rows), settings.search_windows)
    seen = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.intp)]
    largest = max(2, int(count * settings.largest_share))
    least = min(settings.least_neighbours, largest)
    tried = np.arange(least, largest + 1)
    if settings.steps is not None and settings.steps < len(tried):
        tried = np.unique(np.linspace(least, largest, settings.steps).round().astype(np.intp))
    cosines = seen @ seen.T
    np.fill_diagonal(cosines, np.inf)  # a row's own comes first
    order = np.argsort(-cosines, axis=1, kind="stable")
    ratios = [p / gap if (gap := _normalised_gap(order, p, high)) > SMALLEST_GAP else np.inf for p in tried.tolist()]
    best = int(tried[np.argmin(ratios)]) * len(rows) / count
    return max(2, min(round(best), LARGEST_GRAPH // len(rows)))


def _normalised_gap(order: Labels, neighbours: int, high: int) -> float:
    """``g_p`` of the binary graph in which each row keeps the first ``neighbours`` of its order (N, N)."""
    kept = np.zeros(order.shape)
    np.put_along_axis(kept, order[:, :neighbours], 1.0, axis=1)
    values = eigvalsh(_laplacian_dense((kept + kept.T) / 2), check_finite=False)
    return float(np.diff(values[: high + 1]).max() / (values[-1] + SMALLEST_GAP)) if len(values) > 1 else 0.0


def _laplacian_dense(affinities: Floats) -> Floats:
    return np.diag(affinities.sum(axis=1)) - affinities


def _partition(
    rows: Floats, graph: sparse.csr_array, settings: SpectralSettings | NmeScSettings, low: int, high: int
) -> Labels:
    """Labels (N,): k-means on the eigenvectors of as many clusters as the eigengap says.

    Parts of the graph without a connection are clusters of their own. Only where there are more than are sought (sounds
    that come again and again are each other's nearest) do those as near as ``settings.threshold`` merge.
    """
    high = min(high, max(low, settings.most_clusters))
    parts, component = connected_components(graph, directed=False)
    if parts > high:
        return merge_near(rows, component, settings.threshold, low)
    if parts == high:
        return component.astype(np.intp)
    values, vectors = smallest_eigenpairs(graph, component, min(high + (low < high), graph.shape[0]), settings.seed)
    clusters = low if low == high else max(parts, eigengap(values, low, high))
    return k_means(vectors[:, :clusters], clusters, settings.seed)


def eigengap(values: Floats, low: int, high: int) -> int:
    """Number of clusters, ``low`` to ``high``, after which the rising eigenvalues make their largest step."""
    gaps = np.diff(values[: high + 1])[low - 1 :]
    return low + int(np.argmax(gaps)) if len(gaps) else low


def smallest_eigenpairs(graph: sparse.csr_array, component: Labels, count: int, seed: int) -> tuple[Floats, Floats]:
    """The ``count`` smallest eigenvalues (count,) of the unnormalised Laplacian and their vectors (N, count).

    Each connected part is solved alone: iterations would miss some of its equal zeros.

    Args:
        graph: (N, N) symmetric affinities.
        component: (N,) connected part of each row.
        count: at most N.
        seed: of the start of the iterations.
    """
    values, vectors = [], []
    for part in range(int(component.max()) + 1):
        members = np.flatnonzero(component == part)
        found, shapes = _connected_eigenpairs(graph[members][:, members], min(count, len(members)), seed)
        values.append(found)
        vectors.append((members, shapes))
    order = np.argsort(np.concatenate(values), kind="stable")[:count]
    spread = np.zeros((graph.shape[0], count))
    owner = np.repeat(np.arange(len(values)), [len(each) for each in values])
    within = np.concatenate([np.arange(len(each)) for each in values])
    for column, place in enumerate(order):
        members, shapes = vectors[owner[place]]
        spread[members, column] = shapes[:, within[place]]
    return np.maximum(np.concatenate(values)[order], 0.0), spread


def _connected_eigenpairs(graph: sparse.csr_array, count: int, seed: int) -> tuple[Floats, Floats]:
    rows = graph.shape[0]
    if rows < SMALLEST_SPARSE or 3 * count > rows:
        return eigh(_laplacian_dense(graph.toarray()), subset_by_index=(0, count - 1), check_finite=False)
    degrees = graph.sum(axis=1)
    bound = 2 * degrees.max()  # no eigenvalue is larger; the smallest become the largest of what is left
    flipped = sparse.csr_array(sparse.diags_array(bound - degrees) + graph)
    start = np.random.default_rng(seed).standard_normal(rows)
    values, vectors = eigsh(flipped, k=count, which="LA", v0=start, ncv=min(rows, max(3 * count, 40)), tol=1e-3)
    return bound - values[::-1], vectors[:, ::-1]
