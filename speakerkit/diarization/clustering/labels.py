"""What is done with labels whatever method gave them: numbering, bounds on their number, tiny clusters, confidence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from speakerkit.diarization.clustering.affinity import Floats, Labels, directions
from speakerkit.diarization.clustering.ahc import Tree, average_linkage

CONFIDENCE_SCALE = 0.1  # margin of cosine at which the logistic curve gives 0.73


def numbered(labels: npt.ArrayLike) -> Labels:
    """Labels (N,) as 0, 1, ... in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()]


def cluster_sums(rows: Floats, labels: Labels) -> npt.NDArray[np.float64]:
    """(K, D) sum of the rows of each label 0 to K - 1."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    return np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)


def centroids(rows: Floats, labels: Labels) -> npt.NDArray[np.float64]:
    """(K, D) unit vectors: the mean direction of each label 0 to K - 1; zero where its rows cancel out."""
    sums = cluster_sums(rows, labels)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0)


def absorb_tiny(rows: Floats, labels: Labels, smallest: int, low: int) -> Labels:
    """Give each window of a cluster of fewer than ``smallest`` to the nearest centroid of the others.

    At least ``low`` clusters stay: the largest ones, the earlier of two of a size.
    """
    labels = numbered(labels)
    sizes = np.bincount(labels)
    kept = np.argsort(-sizes, kind="stable")[: max(low, int(np.sum(sizes >= smallest)))]
    moving = ~np.isin(labels, kept)
    if moving.any():
        labels = labels.copy()
        kept = np.sort(kept)
        labels[moving] = kept[np.argmax(rows[moving] @ centroids(rows, labels)[kept].T, axis=1)]
    return numbered(labels)


def merge_near(rows: Floats, labels: Labels, threshold: float, low: int) -> Labels:
    """Merge clusters by average linkage down to the cosine ``threshold``, and not below ``low`` of them."""
    tree = _tree_of_clusters(rows, labels)
    merges = int(np.searchsorted(tree.height, 1.0 - threshold, side="right"))
    return tree.cut(min(merges, max(0, tree.windows - low)))[labels]


def _tree_of_clusters(rows: Floats, labels: Labels) -> Tree:
    sizes = np.bincount(labels)
    return average_linkage(cluster_sums(rows, labels) / sizes[:, None], sizes)


def within_bounds(rows: Floats, labels: Labels, low: int, high: int) -> Labels:
    """``low`` to ``high`` clusters: the nearest are merged by average linkage, the widest split along their main axis.

    Args:
        rows: (N, D) unit vectors.
        labels: (N,).
        low: fewest clusters, at most N.
        high: most clusters.
    """
    labels = numbered(labels)
    sizes = np.bincount(labels)
    if len(sizes) > high:
        return numbered(_tree_of_clusters(rows, labels).cut(len(sizes) - high)[labels])
    spread = {label: _spread(rows[labels == label]) for label in range(len(sizes))} if len(sizes) < low else {}
    for label in range(len(sizes), low):
        widest = max(spread, key=lambda each: spread[each])
        members = np.flatnonzero(labels == widest)
        labels[members[_far_side(rows[members])]] = label
        spread |= {each: _spread(rows[labels == each]) for each in (widest, label)}
    return numbered(labels)


def _spread(rows: Floats) -> tuple[bool, float, int]:
    """How much there is to split: squared distances from the mean; several equal windows before a single one."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    return len(rows) > 1, float(np.sum(centred**2)), len(rows)


def _far_side(rows: Floats) -> npt.NDArray[np.bool_]:
    """(n,) which of two or more rows lie beyond their mean along their main axis (Boley, Principal direction divisive
    partitioning, 1998): some, not all. Of equal rows it is the last."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    beyond = centred @ axis > 0
    if beyond.all() or not beyond.any():
        beyond = np.arange(len(rows)) == len(rows) - 1
    return beyond


def assignment_confidence(embeddings: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(N,) in [0, 1]: how much nearer a window is to the others of its cluster than to the next cluster.

    The logistic curve of the margin of cosine, own centroid (without the window) less the nearest other one or 0,
    which an unrelated voice has: 0.5 is undecided, and below it the window would rather be elsewhere.

    Args:
        embeddings: (N, D).
        labels: (N,) numbered from 0 without gaps.

    Raises:
        DataError: as :func:`directions`.
    """
    own = np.asarray(labels, dtype=np.intp)
    if not len(own):
        return np.zeros(0)
    rows = directions(embeddings).astype(np.float64)
    others = cluster_sums(rows, own)[own] - rows
    lengths = np.linalg.norm(others, axis=1)
    alone = np.bincount(own)[own] == 1
    mine = np.where(alone, 0.0, np.einsum("nd,nd->n", rows, others) / np.where(lengths > 0, lengths, 1.0))
    with threadpool_limits(1):  # so that any number of threads gives the same
        cosines = rows @ centroids(rows, own).T
    cosines[np.arange(len(rows)), own] = -np.inf
    margin = mine - np.maximum(cosines.max(axis=1), 0.0)
    return 1.0 / (1.0 + np.exp(-margin / CONFIDENCE_SCALE))
