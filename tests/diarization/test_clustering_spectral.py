"""Spectral clustering against a dense solver and scikit-learn; NME-SC against the algorithm as the paper writes it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from speakerkit.diarization.clustering import NmeScSettings, SpectralSettings, affinity, cluster
from speakerkit.diarization.clustering.affinity import directions, nearest, neighbour_graph
from speakerkit.diarization.clustering.spectral import eigengap, smallest_eigenpairs, tuned_neighbours
from tests.diarization.voices import voices


def literal_graph(rows: np.ndarray, neighbours: int, binary: bool) -> np.ndarray:
    """Row by row: the largest affinities stay, the row's own among them; then the mean with the transpose."""
    cosines = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(cosines, 2.0)
    kept = np.zeros_like(cosines)
    for row, values in enumerate(cosines):
        for column in np.argsort(-values)[:neighbours]:
            kept[row, column] = 1.0 if binary else (1 + values[column]) / 2
    np.fill_diagonal(kept, 0.0)
    return (kept + kept.T) / 2


def laplacian(affinities: np.ndarray) -> np.ndarray:
    return np.diag(affinities.sum(axis=0)) - affinities


@pytest.mark.parametrize("block", [1 << 22, 1000])
@pytest.mark.parametrize("binary", [False, True])
def test_graph_by_the_definition(block: int, binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "BLOCK_VALUES", block)
    rows = directions(voices(3, 70, noise=1.0)[0])
    graph = neighbour_graph(rows, 8, binary).toarray()
    assert np.allclose(graph, literal_graph(rows, 8, binary), atol=1e-6)


def test_nearest_are_the_nearest() -> None:
    rows = directions(voices(3, 50, noise=1.0)[0])
    places, cosines = nearest(rows, 5)
    for row in range(50):
        expected = [each for each in np.argsort(-(rows @ rows[row])) if each != row][:5]
        assert set(places[row]) == set(expected)
        assert np.allclose(cosines[row], rows[places[row]] @ rows[row], atol=1e-6)


@pytest.mark.parametrize(("windows", "neighbours"), [(100, 8), (900, 10), (900, 60)])
def test_eigenpairs_are_those_of_a_dense_solver(windows: int, neighbours: int) -> None:
    """900 rows of 10 neighbours fall into parts, of 60 they do not; both are above the size of the sparse solver."""
    rows = directions(voices(4, windows, noise=1.0 if neighbours < 20 else 2.0, dim=64)[0])
    graph = neighbour_graph(rows, neighbours)
    component = connected_components(graph, directed=False)[1]
    values, vectors = smallest_eigenpairs(graph, component, 9, 0)
    dense = laplacian(graph.toarray())
    assert np.allclose(values, np.linalg.eigvalsh(dense)[:9], atol=1e-4 * np.abs(dense).max())
    assert np.allclose(vectors.T @ vectors, np.eye(9), atol=1e-6)
    assert np.abs(dense @ vectors - vectors * values).max() < 3e-3 * np.abs(dense).max()


def test_parts_without_connection_have_each_their_zero() -> None:
    blocks = [np.ones((size, size)) for size in (3, 700, 5, 2)]
    graph = sparse.csr_array(sparse.block_diag(blocks))
    graph.setdiag(0)
    component = connected_components(graph, directed=False)[1]
    values, vectors = smallest_eigenpairs(graph, component, 6, 0)
    assert np.allclose(values, [0, 0, 0, 0, 2, 3], atol=1e-8)
    parts = (np.abs(vectors[:, :4]) > 1e-6).sum(axis=0)
    assert sorted(parts.tolist()) == [2, 3, 5, 700]


def test_eigengap_keeps_its_bounds() -> None:
    values = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 9.9])
    assert eigengap(values, 1, 6) == 5
    assert eigengap(values, 1, 4) == 3
    assert eigengap(values, 4, 4) == 4
    assert eigengap(values, 6, 6) == 6


def test_copies_of_the_same_sounds_are_not_speakers() -> None:
    """Each of 60 windows of three speakers 20 times: the graph of 12 neighbours falls into the copies."""
    rows, own = voices(3, 60, noise=0.8)
    assert np.array_equal(cluster(np.tile(rows, (20, 1)), SpectralSettings()), np.tile(own, 20))


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_those_of_scikit_learn_on_the_same_graph(seed: int) -> None:
    rows = voices(4, 160, seed=seed, noise=1.0)[0]
    peer = SpectralClustering(4, affinity="precomputed", random_state=0)
    expected = peer.fit_predict(literal_graph(directions(rows), 40, False))
    assert adjusted_rand_score(cluster(rows, SpectralSettings(neighbours=40)), expected) == 1.0
    assert adjusted_rand_score(cluster(rows, SpectralSettings(neighbours=40, num_speakers=4)), expected) == 1.0


def literal_nme(rows: np.ndarray, most: int) -> tuple[int, int]:
    """Park et al. 2020, algorithm 1: the neighbours with the least p/g_p, and the clusters there."""
    best, found = np.inf, (0, 0)
    for p in range(2, len(rows) // 4 + 1):
        values = np.linalg.eigvalsh(laplacian(literal_graph(rows, p, True)))
        gaps = [values[place + 1] - values[place] for place in range(most)]
        ratio = p / (max(gaps) / (values[-1] + 1e-10))
        if ratio < best:
            best, found = ratio, (p, int(np.argmax(gaps)) + 1)
    return found


@pytest.mark.parametrize("speakers", [2, 3, 5])
def test_nme_sc_is_the_algorithm_of_the_paper(speakers: int) -> None:
    rows = voices(speakers, 100, seed=speakers, noise=0.8, dim=16)[0]
    options = NmeScSettings(steps=None, least_neighbours=2, most_clusters=8, min_cluster_size=1)
    neighbours, clusters = literal_nme(directions(rows), 8)
    assert tuned_neighbours(directions(rows), options, 8) == neighbours
    assert cluster(rows, options).max() + 1 == clusters


def test_nme_sc_searches_on_a_sample_of_many_windows() -> None:
    rows, own = voices(5, 1500, noise=1.0)
    options = NmeScSettings(search_windows=300)
    unit = directions(rows)
    sampled = tuned_neighbours(unit, options, 20)
    alone = tuned_neighbours(unit[np.linspace(0, 1499, 300).round().astype(int)], options, 20)
    assert sampled == alone * 5
    assert np.array_equal(cluster(rows, options), own)
