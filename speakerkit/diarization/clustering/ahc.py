"""Agglomerative clustering: average linkage on the cosine, exact for any number of windows in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from speakerkit.diarization.clustering.affinity import Floats, Labels, cosine_blocks
from speakerkit.diarization.clustering.settings import ClusterSettings

DENSE = 12_000  # groups whose matrix of similarities is held: 576 MB
FEW_PAIRS = 64  # a round in which fewer than one group in so many finds its partner pairs the others as well


@dataclass(frozen=True)
class AhcSettings(ClusterSettings):
    """Of average linkage, which stops at ``threshold``."""

    method: ClassVar[str] = "ahc"


@dataclass(frozen=True, eq=False)
class Tree:
    """N - 1 merges of N windows, the closest first; each joins the clusters of two windows.

    Attributes:
        left: (N - 1,) a window of one cluster.
        right: (N - 1,) a window of the other.
        height: (N - 1,) one less the mean cosine between them, never less than that of the merges below.
        sizes: (N - 1, 2) windows of the two.
    """

    left: Labels
    right: Labels
    height: Floats
    sizes: Labels

    @property
    def windows(self) -> int:
        """N."""
        return len(self.left) + 1

    def cut(self, merges: int) -> Labels:
        """Labels (N,) after the first ``merges``: N - ``merges`` clusters."""
        edges = (np.ones(merges), (self.left[:merges], self.right[:merges]))
        graph = sparse.coo_array(edges, shape=(self.windows, self.windows))
        return connected_components(graph, directed=False)[1].astype(np.intp)

    def clusters(self, smallest: int) -> Labels:
        """(N,) clusters of ``smallest`` windows or more, after 0, 1, ... N - 1 merges."""
        enough = self.sizes >= smallest
        change = (self.sizes.sum(axis=1) >= smallest).astype(np.intp) - enough.sum(axis=1)
        return np.concatenate([[0], np.cumsum(change)]) + (self.windows if smallest == 1 else 0)


def ahc(rows: Floats, settings: ClusterSettings, low: int, high: int) -> Labels:
    """Labels (N,) of unit vectors (N, D), N > 0, by average linkage down to the cosine ``settings.threshold``.

    Where that leaves more than ``high`` or fewer than ``low`` clusters, the cut moves until the number fits. Only
    clusters of ``settings.min_cluster_size`` count, so that an outlier is not taken for a speaker.
    """
    tree = average_linkage(rows)
    merges = int(np.searchsorted(tree.height, 1.0 - settings.threshold, side="right"))
    counts = tree.clusters(settings.smallest(tree.windows))
    if counts[merges] > high:
        merges += int(np.argmax(counts[merges:] <= high))
    elif counts[merges] < low:
        fitting = np.flatnonzero((counts >= low) & (counts <= high))
        merges = int(fitting[np.argmin(np.abs(fitting - merges))]) if len(fitting) else tree.windows - low
    return tree.cut(merges)


def average_linkage(rows: Floats, weights: Labels | None = None, dense: int = DENSE) -> Tree:
    """Average linkage (UPGMA) of (N, D) vectors, N > 0: the similarity of two clusters is the mean product over pairs.

    That mean is the product of the clusters' means, so that a cluster is its mean and its size, and no matrix of all
    pairs is needed. Two clusters that are each other's nearest are merged in every order of merging (the linkage is
    reducible): above ``dense`` clusters all such pairs merge in rounds, which see the similarities in blocks; the rest
    goes along chains of nearest neighbours (Murtagh, A survey of recent advances in hierarchical clustering algorithms,
    1983) in a matrix. Both give the exact tree. Only where hardly a pair is mutual (equal similarities) do clusters
    that share their nearest neighbour merge, too.

    Args:
        rows: unit vectors, or means of them.
        weights: (N,) windows that a row stands for; 1 where not given.
        dense: rows of the largest matrix.
    """
    state = _Groups(rows, np.ones(len(rows), dtype=np.intp) if weights is None else weights)
    if len(rows) > dense:
        state.merge_rounds(dense)
    state.merge_chains()
    return state.tree()


class _Groups:
    """Clusters during merging: windows that stand for them, means, sizes and heights."""

    def __init__(self, rows: Floats, sizes: Labels) -> None:
        self.names = np.arange(len(rows))
        self.means = np.array(rows, dtype=np.float32)
        self.sizes = np.array(sizes, dtype=np.float64)
        self.heights = np.zeros(len(rows))
        self.merges: list[tuple[int, int, float, float, float]] = []

    def tree(self) -> Tree:
        columns = np.array(self.merges).reshape(-1, 5)  # numbers of windows are exact in float64
        columns = columns[np.argsort(columns[:, 2], kind="stable")]
        whole = columns[:, [0, 1, 3, 4]].astype(np.intp)
        return Tree(whole[:, 0], whole[:, 1], columns[:, 2], whole[:, 2:])

    def join(self, one: int, other: int, similarity: float) -> None:
        """Note a merge into ``one``; the caller keeps the means."""
        height = max(1.0 - similarity, float(self.heights[one]), float(self.heights[other]))
        sizes = float(self.sizes[one]), float(self.sizes[other])
        self.merges.append((int(self.names[one]), int(self.names[other]), height, *sizes))
        self.heights[one] = height
        self.sizes[one] = sum(sizes)

    def merge_rounds(self, dense: int) -> None:
        """Merge mutual nearest neighbours until ``dense`` clusters are left.

        After a round, clusters that have not merged and whose nearest has not still have it as their nearest.
        """
        partner = np.full(len(self.means), -1, dtype=np.intp)
        similarity = np.zeros(len(self.means), dtype=np.float32)
        while len(self.means) > dense:
            stale = np.flatnonzero(partner < 0)
            for part, block in cosine_blocks(self.means[stale], self.means):
                block[np.arange(len(block)), stale[part]] = -np.inf
                partner[stale[part]] = block.argmax(axis=1)
                similarity[stale[part]] = block.max(axis=1)
            pairs = self._pairs(partner, similarity)[: len(self.means) - dense]
            gone = pairs[:, 1]
            for one, other in pairs.tolist():
                self._absorb(one, other)
            changed = np.zeros(len(partner), dtype=bool)
            changed[pairs.ravel()] = True
            partner[changed | changed[partner]] = -1
            kept = np.ones(len(partner), dtype=bool)
            kept[gone] = False
            place = np.where(partner < 0, -1, (np.cumsum(kept) - 1)[partner])
            partner, similarity = place[kept], similarity[kept]
            self.names, self.means = self.names[kept], self.means[kept]
            self.sizes, self.heights = self.sizes[kept], self.heights[kept]

    def _absorb(self, one: int, other: int) -> None:
        weights = self.sizes[[one, other]]
        self.join(one, other, float(self.means[one] @ self.means[other]))
        self.means[one] = weights @ self.means[[one, other]] / weights.sum()

    @staticmethod
    def _pairs(partner: Labels, similarity: Floats) -> Labels:
        """(P, 2) pairs to merge, the most similar first."""
        everyone = np.arange(len(partner))
        mutual = everyone[(partner[partner] == everyone) & (everyone < partner)]
        order = np.argsort(-similarity[mutual], kind="stable")
        if len(mutual) * FEW_PAIRS >= len(partner):
            return np.stack([mutual, partner[mutual]], axis=1)[order]
        return _matched(partner, np.argsort(-similarity, kind="stable"))

    def merge_chains(self) -> None:
        """Merge all that are left, along chains of nearest neighbours."""
        count = len(self.means)
        similarity = self.means @ self.means.T
        np.fill_diagonal(similarity, -np.inf)
        alive = np.ones(count, dtype=bool)
        chain: list[int] = []
        first = 0
        for _ in range(count - 1):
            if not chain:
                first += int(np.argmax(alive[first:]))
                chain.append(first)
            while True:
                row = similarity[chain[-1]]
                near = int(row.argmax())
                if len(chain) > 1 and row[chain[-2]] >= row[near]:
                    break
                chain.append(near)
            gone, kept = chain.pop(), chain.pop()
            mean = self.sizes[kept] * similarity[kept] + self.sizes[gone] * similarity[gone]
            mean /= self.sizes[kept] + self.sizes[gone]
            self.join(kept, gone, float(similarity[kept, gone]))
            mean[[kept, gone]] = -np.inf
            similarity[kept] = similarity[:, kept] = mean
            similarity[:, gone] = -np.inf
            alive[gone] = False


def _matched(partner: Labels, order: Labels) -> Labels:
    """(P, 2) pairs, each cluster in one at most: with its nearest where that is free, else one of the same nearest."""
    waiting: dict[int, int] = {}
    taken: set[int] = set()
    pairs = []
    for each in order.tolist():
        if each in taken:
            continue
        near = int(partner[each])
        mate = waiting.pop(near, None) if near in taken else near
        if mate is None or mate in taken:
            waiting[near] = each
            continue
        taken.update((each, mate))
        pairs.append((min(each, mate), max(each, mate)))
    return np.array(pairs, dtype=np.intp).reshape(-1, 2)
