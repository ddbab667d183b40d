"""Average linkage against scipy and scikit-learn, by chains and by rounds; bounds on the number of clusters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from speakerkit.diarization.clustering import AhcSettings, cluster
from speakerkit.diarization.clustering.affinity import directions
from speakerkit.diarization.clustering.ahc import FEW_PAIRS, average_linkage
from speakerkit.diarization.clustering.labels import absorb_tiny, merge_near, within_bounds
from tests.diarization.voices import voices


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(adjusted_rand_score(first, second) == 1.0)


@pytest.mark.parametrize("dense", [1000, 40, 2])
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_the_tree_is_that_of_scipy(dense: int, noise: float) -> None:
    rows = directions(voices(4, 200, seed=3, noise=noise)[0])
    expected = linkage(rows.astype(np.float64), "average", "cosine")
    tree = average_linkage(rows, dense=dense)
    assert np.allclose(tree.height, expected[:, 2], atol=1e-6)
    for count in (2, 3, 5, 50, 150):
        assert same_partition(tree.cut(200 - count), fcluster(expected, count, "maxclust"))


def test_weights_stand_for_equal_rows() -> None:
    rows = directions(voices(5, 40, seed=1, noise=1.0)[0])
    weights = np.random.default_rng(0).integers(1, 5, 40)
    repeated = average_linkage(np.repeat(rows, weights, axis=0))
    tree = average_linkage(rows, weights)
    assert np.allclose(tree.height, repeated.height[-39:], atol=1e-6)
    assert tree.sizes[-1].sum() == weights.sum()
    for count in (2, 5, 9):
        assert same_partition(np.repeat(tree.cut(40 - count), weights), repeated.cut(weights.sum() - count))


@pytest.mark.parametrize("kind", ["equal", "hub", "two", "nearly equal"])
def test_rounds_end_where_hardly_a_pair_is_mutual(kind: str) -> None:
    rng = np.random.default_rng(0)
    count = 4 * FEW_PAIRS
    rows = np.tile(np.eye(8)[0], (count, 1))
    if kind == "hub":  # all others are as near to the first as can be, and equally far from each other
        rows = np.eye(count, count + 1) + np.eye(1, count + 1, count)
        rows[0] = np.eye(1, count + 1, count)
    elif kind == "two":
        rows[count // 2 :] = np.eye(8)[1]
    elif kind == "nearly equal":
        rows = rows + 1e-7 * rng.normal(size=rows.shape)
    tree = average_linkage(directions(rows), dense=5)
    assert tree.windows == count
    assert len(np.unique(tree.cut(count - 3))) == 3
    if kind == "two":
        assert same_partition(tree.cut(count - 2), np.repeat([0, 1], count // 2))


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_those_of_scikit_learn(seed: int) -> None:
    rows = voices(6, 150, seed=seed, noise=1.5, dim=16)[0]
    peer = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=0.6)
    ours = cluster(rows, AhcSettings(threshold=0.4, min_cluster_size=1))
    assert same_partition(ours, peer.fit_predict(rows.astype(np.float64)))
    peer = AgglomerativeClustering(9, metric="cosine", linkage="average")
    ours = cluster(rows, AhcSettings(num_speakers=9, min_cluster_size=1))
    assert same_partition(ours, peer.fit_predict(rows.astype(np.float64)))


def test_outliers_do_not_take_the_place_of_speakers_asked_for() -> None:
    rows, own = voices(2, 60, noise=0.3, dim=64)
    rows[[3, 9, 20]] = np.random.default_rng(1).normal(size=(3, 64))
    found = cluster(rows, AhcSettings(num_speakers=2))
    assert same_partition(np.delete(found, [3, 9, 20]), np.delete(own, [3, 9, 20]))


def test_counting_clusters_of_a_size() -> None:
    rows = directions(voices(4, 50, noise=1.0)[0])
    tree = average_linkage(rows)
    for smallest in (1, 2, 5):
        counted = [int(np.sum(np.bincount(tree.cut(merges)) >= smallest)) for merges in range(50)]
        assert tree.clusters(smallest).tolist() == counted


def test_bounds_merge_the_nearest_and_split_the_widest() -> None:
    rows, own = voices(4, 80, noise=0.3)
    unit = directions(rows)
    halves = own * 2 + (np.arange(80) % 2)
    assert np.array_equal(within_bounds(unit, halves, 1, 4), own)
    assert np.array_equal(within_bounds(unit, own % 2, 4, 9), own)
    assert np.array_equal(within_bounds(unit, own, 2, 9), own)


def test_bounds_split_equal_rows_last() -> None:
    unit = directions(np.vstack([np.ones((4, 3)), np.eye(3)[:2]]))
    assert within_bounds(unit, np.array([0, 0, 0, 0, 1, 1]), 3, 3).tolist() == [0, 0, 0, 0, 1, 2]
    assert within_bounds(unit, np.array([0, 0, 0, 0, 1, 1]), 6, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_tiny_clusters_are_absorbed_but_for_those_needed() -> None:
    unit = directions(np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [1, 0.5, 0], [0, 0, 1.0]]))
    labels = np.array([0, 0, 1, 1, 2, 3])
    assert absorb_tiny(unit, labels, 2, 1).tolist() == [0, 0, 1, 1, 0, 1]
    assert absorb_tiny(unit, labels, 2, 3).tolist() == [0, 0, 1, 1, 2, 1]
    assert absorb_tiny(unit, labels, 1, 1).tolist() == labels.tolist()


def test_near_clusters_merge() -> None:
    rows, own = voices(3, 60, noise=0.3)
    halves = own * 2 + (np.arange(60) % 2)
    assert same_partition(merge_near(directions(rows), halves, 0.5, 1), own)
    assert len(np.unique(merge_near(directions(rows), halves, 0.5, 5))) == 5
