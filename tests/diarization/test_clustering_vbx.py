"""VBx against plain loops in float64: posteriors, lower bound, weights; and what it does with speakers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from speakerkit.diarization.clustering import VbxSettings, cluster, cluster_with_confidence, resegment, settings_for
from speakerkit.diarization.clustering.vbx import forward_backward, scatter_within, softened, vb_hmm
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.psda import Psda
from tests.diarization.voices import plda_backend, voices

SETTINGS = VbxSettings(acoustic_scale=0.4, speaker_scale=2.0, loop_probability=0.7, tolerance=0.0, iterations=8)


def literal_sequence(likelihoods: np.ndarray, weights: np.ndarray, loop: float) -> tuple[np.ndarray, np.ndarray, float]:
    """All paths, one by one; at each step the state stays, or is entered from the weights."""
    windows, states = likelihoods.shape
    gamma, entered, total = np.zeros((windows, states)), np.zeros(states), 0.0
    for path in itertools.product(range(states), repeat=windows):
        for stays in itertools.product([True, False], repeat=windows - 1):
            probability = weights[path[0]] * np.exp(likelihoods[0, path[0]])
            for place, stay in enumerate(stays, start=1):
                same = path[place] == path[place - 1]
                step = loop * same if stay else (1 - loop) * weights[path[place]]
                probability *= step * np.exp(likelihoods[place, path[place]])
            total += probability
            entered[path[0]] += probability
            for place, stay in enumerate(stays, start=1):
                entered[path[place]] += probability * (not stay)
            for place, state in enumerate(path):
                gamma[place, state] += probability
    return gamma / total, entered / total, float(np.log(total))


@pytest.mark.parametrize("loop", [0.0, 0.6, 0.99])
def test_forward_backward_sums_over_all_paths(loop: float) -> None:
    rng = np.random.default_rng(0)
    likelihoods, weights = rng.normal(scale=3, size=(5, 3)), np.array([0.6, 0.3, 0.1])
    found = forward_backward(likelihoods, weights, loop)
    for ours, expected in zip(found, literal_sequence(likelihoods, weights, loop), strict=True):
        assert np.allclose(ours, expected, rtol=1e-10, atol=1e-12)


def test_forward_backward_of_extreme_likelihoods() -> None:
    likelihoods = np.random.default_rng(0).normal(scale=1e5, size=(400, 4)) - 1e6
    gamma, entered, evidence = forward_backward(likelihoods, np.array([1 - 3e-7, 1e-7, 1e-7, 1e-7]), 0.9999)
    assert np.allclose(gamma.sum(axis=1), 1)
    assert np.isfinite(entered).all()
    assert np.isfinite(evidence)


def literal_vb(rows: np.ndarray, psi: np.ndarray, gamma: np.ndarray, iterations: int) -> tuple[np.ndarray, list[float]]:
    """The paper's updates, number by number."""
    windows, dim = rows.shape
    speakers = gamma.shape[1]
    weights = np.full(speakers, 1 / speakers)
    fa, fb = SETTINGS.acoustic_scale, SETTINGS.speaker_scale
    bounds = []
    for _ in range(iterations):
        mean, variance = np.zeros((speakers, dim)), np.zeros((speakers, dim))
        for s, d in itertools.product(range(speakers), range(dim)):
            variance[s, d] = 1 / (1 + fa / fb * sum(gamma[t, s] for t in range(windows)) * psi[d])
            first = sum(gamma[t, s] * rows[t, d] * np.sqrt(psi[d]) for t in range(windows))
            mean[s, d] = fa / fb * variance[s, d] * first
        likelihoods = np.zeros((windows, speakers))
        for t, s, d in itertools.product(range(windows), range(speakers), range(dim)):
            expected = (rows[t, d] - np.sqrt(psi[d]) * mean[s, d]) ** 2 + psi[d] * variance[s, d]
            likelihoods[t, s] += fa * (-0.5 * np.log(2 * np.pi) - 0.5 * expected)
        gamma, entered, evidence = literal_sequence(likelihoods, weights, SETTINGS.loop_probability)
        divergence = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum()  # of N(mean, variance) from N(0, I)
        bounds.append(evidence - fb * divergence)
        weights = entered / entered.sum()
    return gamma, bounds


@pytest.mark.parametrize("seed", range(2))
def test_vb_hmm_is_the_paper_in_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    psi = np.array([4.0, 2.0, 0.5])
    rows = np.repeat(rng.normal(size=(2, 3)) * np.sqrt(psi), [3, 3], axis=0) + rng.normal(size=(6, 3))
    start = softened(np.array([0, 0, 1, 1, 0, 1]), 1.0)
    expected, bounds = literal_vb(rows, psi, start, 3)
    found = vb_hmm(rows, psi, start, replace(SETTINGS, iterations=3))
    assert np.allclose(found.elbo, bounds, rtol=1e-10)
    columns = [0, 1] if expected[0, 0] > 0.5 else [1, 0]  # by first appearance
    assert np.allclose(found.posteriors, expected[:, columns], atol=1e-10)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fb", [0.5, 5.0, 50.0])
def test_the_lower_bound_never_falls(seed: int, fb: float) -> None:
    rng = np.random.default_rng(seed)
    psi = np.linspace(3, 0.1, 10)
    own = np.repeat(rng.integers(4, size=40), 5)
    rows = (rng.normal(size=(4, 10)) * np.sqrt(psi))[own] + rng.normal(size=(200, 10))
    start = softened(rng.integers(12, size=200), 2.0)
    found = vb_hmm(rows, psi, start, replace(SETTINGS, speaker_scale=fb, iterations=30, loop_probability=0.9))
    steps = np.diff(found.elbo)
    assert len(steps)
    assert steps.min() > -1e-6 * abs(found.elbo[-1])
    assert np.allclose(found.posteriors.sum(axis=1), 1)


def test_speakers_too_many_are_dropped_and_labels_mended() -> None:
    rows, own = voices(3, 240, noise=0.5)
    wrong = own * 4 + np.arange(240) % 4  # four for each
    wrong[::17] = (wrong[::17] + 5) % 12
    found = resegment(rows, wrong, plda_backend(), VbxSettings(speaker_scale=5.0))
    assert np.array_equal(found.labels, own)
    assert found.posteriors.shape[1] < 12
    assert np.array_equal(found.posteriors.argmax(axis=1), found.labels)


def test_time_smooths_what_clusters_cannot_tell() -> None:
    """Windows halfway between two speakers go with their neighbours in time."""
    rows, own = voices(2, 120, noise=0.3, turn=30)
    rows[[10, 40, 70]] = rows[own == 0].mean(axis=0) + rows[own == 1].mean(axis=0)
    found = cluster_with_confidence(rows, VbxSettings(acoustic_scale=0.3), plda_backend())
    assert np.array_equal(found.labels, own)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_largest_go_on_where_there_are_too_many(most: int) -> None:
    rows, own = voices(4, 200, noise=0.3)
    found = resegment(rows, own, plda_backend(), most=most)
    assert found.posteriors.shape[1] <= most
    assert found.labels.max() < most
    assert np.isfinite(found.posteriors).all()


def test_a_back_end_is_needed() -> None:
    rows, _ = voices(2, 20)
    with pytest.raises(ConfigError, match=r"vbx: needs a PLDA back-end.*plda train"):
        cluster(rows, settings_for("vbx"))
    spherical = replace(plda_backend(), model=Psda(np.ones(32) / np.sqrt(32), 10.0, 10.0))
    with pytest.raises(ConfigError, match="this one is psda"):
        cluster(rows, settings_for("vbx"), spherical)
    with pytest.raises(DataError, match="labels"):
        resegment(rows, [0, 1], plda_backend())


@pytest.mark.parametrize(
    ("name", "value"),
    [("acoustic_scale", 0.0), ("speaker_scale", -1.0), ("loop_probability", 1.0), ("iterations", 0), ("dimensions", 0)],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        settings_for("vbx", **{name: value})


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_voices_that_cosines_hardly_tell_apart(seed: int) -> None:
    """Average linkage leaves 14 to 24 clusters of three speakers; the PLDA and time find the three."""
    rows, own = voices(3, 300, seed=seed, noise=1.1, dim=16, turn=12)
    start = cluster(rows, settings_for("ahc", threshold=0.4))
    refined = cluster(rows, settings_for("vbx", acoustic_scale=0.3, speaker_scale=1.0), plda_backend(16, within=1.8))
    assert refined.max() == 2
    assert adjusted_rand_score(own, refined) > max(0.9, adjusted_rand_score(own, start) + 0.2)


def test_scatter_is_the_variance_within_labels() -> None:
    rows, own = voices(5, 300, noise=0.7, dim=16)
    residuals = np.concatenate([rows[own == each] - rows[own == each].mean(axis=0) for each in range(5)])
    assert scatter_within(rows, own) == pytest.approx((residuals**2).sum() / (295 * 16))
    assert scatter_within(rows[:3], np.arange(3)) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_windows_that_scatter_more_than_the_plda_says(seed: int) -> None:
    """A PLDA of recordings: their variance within speakers is a tenth of that of windows."""
    rng = np.random.default_rng(seed)
    own = np.arange(360) // 12 % 3
    rows = rng.normal(size=(3, 32))[own] + rng.normal(size=(360, 32)) * np.sqrt(0.9)
    start = own * 3 + rng.integers(3, size=360)  # three clusters of each
    windows, recordings = (plda_backend(within=variance) for variance in (0.9, 0.09))
    assert np.array_equal(resegment(rows, start, windows).labels, own)
    assert np.array_equal(resegment(rows, start, recordings).labels, own)
