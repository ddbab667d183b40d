"""PLDA against the definition: EM with one inverse a speaker, joint Gaussian densities, Kaldi's normalisation."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.plda import LOG_2PI, Plda, train_plda
from speakerkit.verification.speakers import SpeakerStatistics
from speakerkit.verification.vectors import pair_products
from tests.verification.gaussian import DIM, draw, joint, llr_by_definition, spd


def em_by_definition(
    rows: np.ndarray, speakers: list[str], weights: dict[str, float], iterations: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kaldi's EM as its comments derive it: two inverses an iteration and one a speaker."""
    groups = {name: rows[[who == name for who in speakers]] for name in sorted(set(speakers))}
    weight = {name: weights.get(name, 1.0) for name in groups}
    total = sum(weight.values())
    mean = sum(weight[name] * group.mean(axis=0) for name, group in groups.items()) / total
    dim = rows.shape[1]
    within, between = np.eye(dim), np.eye(dim)
    for _ in range(iterations):
        between_stats, within_stats, within_count = np.zeros((dim, dim)), np.zeros((dim, dim)), 0.0
        for name, group in groups.items():
            n, w = len(group), weight[name]
            deviations = group - group.mean(axis=0)
            m = group.mean(axis=0) - mean
            variance = np.linalg.inv(np.linalg.inv(between) + n * np.linalg.inv(within))
            posterior = variance @ (n * np.linalg.inv(within) @ m)
            between_stats += w * (variance + np.outer(posterior, posterior))
            within_stats += w * deviations.T @ deviations
            within_stats += w * n * (variance + np.outer(m - posterior, m - posterior))
            within_count += w * n
        within, between = within_stats / within_count, between_stats / total
    return mean, within, between


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(11)
    return draw(rng, rng.normal(size=DIM), spd(rng), spd(rng, scale=2), rng.integers(1, 7, size=60))


@pytest.fixture(scope="module")
def model() -> Plda:
    rng = np.random.default_rng(5)
    return Plda.of(rng.normal(size=DIM), spd(rng), spd(rng, scale=2))


@pytest.mark.parametrize("weights", [{}, {"s3": 2.5, "s7": 0.1}])
def test_em_equals_an_inverse_for_each_speaker(drawn: tuple[np.ndarray, list[str]], weights: dict[str, float]) -> None:
    mean, within, between = em_by_definition(*drawn, weights, iterations=10)
    ours = train_plda(SpeakerStatistics.of(*drawn, weights), iterations=10).model
    np.testing.assert_allclose(ours.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(ours.within, within, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ours.between, between, rtol=1e-10, atol=1e-10)


def test_transform_diagonalises_both(drawn: tuple[np.ndarray, list[str]]) -> None:
    _, within, between = em_by_definition(*drawn, {}, iterations=3)
    ours = train_plda(SpeakerStatistics.of(*drawn), iterations=3).model
    np.testing.assert_allclose(ours.transform @ within @ ours.transform.T, np.eye(DIM), atol=1e-10)
    np.testing.assert_allclose(ours.transform @ between @ ours.transform.T, np.diag(ours.psi), atol=1e-10)
    assert (np.diff(ours.psi) <= 0).all()


def test_likelihood_is_that_of_the_stacked_utterances_and_never_falls(drawn: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = drawn
    statistics = SpeakerStatistics.of(rows, speakers)
    training = train_plda(statistics, iterations=30)
    trained = training.model
    expected = 0.0
    for name in sorted(set(speakers)):
        group = rows[[who == name for who in speakers]]
        expected += multivariate_normal.logpdf(
            group.ravel(), np.tile(trained.mean, len(group)), joint(trained, len(group))
        )
    assert trained.log_likelihood(statistics) == pytest.approx(expected, rel=1e-12)
    assert training.log_likelihoods[-1] == pytest.approx(expected / len(rows), rel=1e-12)
    assert len(training.log_likelihoods) == 31
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(training.log_likelihoods))
    assert training.log_likelihoods[-1] > training.log_likelihoods[0] + 0.1


def test_parameters_are_recovered() -> None:
    rng = np.random.default_rng(1)
    mean, within, between = np.arange(3.0), spd(rng, 3), spd(rng, 3, scale=3)
    rows, speakers = draw(rng, mean, within, between, rng.integers(2, 9, size=6000))
    trained = train_plda(SpeakerStatistics.of(rows, speakers), iterations=20).model
    # The standard error of a variance of 6000 speakers is sqrt(2 / 6000), 2 %.
    np.testing.assert_allclose(trained.mean, mean, atol=0.1)
    np.testing.assert_allclose(trained.within, within, atol=0.04 * np.trace(within))
    np.testing.assert_allclose(trained.between, between, atol=0.04 * np.trace(between))


def test_llr_is_the_ratio_of_joint_densities(model: Plda) -> None:
    rng = np.random.default_rng(2)
    enrolled = [rng.normal(size=(n, DIM)) * 2 for n in (1, 5, 2, 1, 3)]
    tests = rng.normal(size=(3, DIM)) * 2
    pairs = np.divmod(np.arange(15), 3)
    counts = np.array([len(rows) for rows in enrolled])
    means = np.array([rows.mean(axis=0) for rows in enrolled])
    ours = model.llr(model.project(means, counts, "none"), counts, model.project(tests, 1, "none"), pairs)
    expected = [llr_by_definition(model, enrolled[e], tests[t]) for e, t in zip(*pairs, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_llr_in_many_dimensions() -> None:
    """Joint densities by a triangular solution, where the determinants themselves are beyond float64."""
    rng = np.random.default_rng(12)
    dim, sessions = 128, 4
    wide = Plda.of(rng.normal(size=dim), 1e-6 * spd(rng, dim), 1e-5 * spd(rng, dim))
    rows = draw(rng, wide.mean, wide.within, wide.between, np.array([sessions + 1, 1]))[0]

    def log_density(group: np.ndarray) -> float:
        root = np.linalg.cholesky(joint(wide, len(group)))
        whitened = np.linalg.solve(root, (group - wide.mean).ravel())
        return float(-0.5 * (whitened @ whitened + whitened.size * LOG_2PI) - np.sum(np.log(np.diag(root))))

    enrolled = rows[:sessions]
    means = wide.project(enrolled.mean(axis=0)[None], sessions, "none")
    pairs = (np.array([0, 0]), np.array([0, 1]))
    scores = wide.llr(means, np.array([float(sessions)]), wide.project(rows[sessions:], 1, "none"), pairs)
    for score, test in zip(scores, rows[sessions:], strict=True):
        together = log_density(np.vstack([enrolled, test]))
        assert score == pytest.approx(together - log_density(enrolled) - log_density(test[None]), rel=1e-7)
    assert scores[0] > 10 > -10 > scores[1]


def test_scoring_needs_no_memory_of_trials_times_dimension() -> None:
    rng = np.random.default_rng(0)
    dim, trials = 128, 100_000
    wide = Plda.of(np.zeros(dim), np.eye(dim), np.diag(np.linspace(3, 0, dim)))
    rows, counts = rng.normal(size=(200, dim)), rng.integers(1, 6, size=200).astype(float)
    pairs = (rng.integers(200, size=trials), rng.integers(200, size=trials))
    tracemalloc.start()
    try:
        wide.llr(rows, counts, rows, pairs)
        assert tracemalloc.get_traced_memory()[1] < 8e6  # of the trials: 102 MB a side
    finally:
        tracemalloc.stop()


def test_directions_without_speakers_say_nothing(model: Plda) -> None:
    """psi = 0, where an implementation that inverts psi breaks."""
    rng = np.random.default_rng(2)
    flat = Plda(model.mean, model.transform, np.array([2.0, 1.0, 0.0, 0.0]))
    rows = rng.normal(size=(6, DIM))
    moved = rows + rng.normal(size=(6, 2)) @ np.linalg.inv(model.transform).T[2:]
    pairs = np.divmod(np.arange(36), 6)
    ones = np.ones(6)
    scores = [
        flat.llr(flat.project(side, 1, "none"), ones, flat.project(side, 1, "none"), pairs) for side in (rows, moved)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-10)
    assert np.ptp(scores[0]) > 0.5


def test_kaldi_length_normalisation(model: Plda) -> None:
    """Scaled so that the squared length under the covariance of a mean of n utterances, psi + 1/n, is the dimension."""
    rng = np.random.default_rng(8)
    rows, counts = rng.normal(size=(5, DIM)), np.array([1, 2, 3, 4, 10])
    projected = (rows - model.mean) @ model.transform.T
    for row, n, plain in zip(model.project(rows, counts, "kaldi"), counts, projected, strict=True):
        covariance = np.diag(model.psi) + np.eye(DIM) / n
        assert row @ np.linalg.inv(covariance) @ row == pytest.approx(DIM, rel=1e-12)
        assert row @ plain == pytest.approx(np.linalg.norm(row) * np.linalg.norm(plain), rel=1e-12)
    simple = model.project(rows, counts, "simple")
    np.testing.assert_allclose(np.linalg.norm(simple, axis=1), np.sqrt(DIM), rtol=1e-12)
    np.testing.assert_allclose(model.project(rows, counts, "none"), projected, atol=1e-12)
    assert not model.project(model.mean[None], 1, "kaldi").any()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_do_not_matter(block: int) -> None:
    rng = np.random.default_rng(0)
    left, right, pairs = (
        rng.normal(size=(9, 5)),
        rng.normal(size=(6, 5)),
        (rng.integers(9, size=50), rng.integers(6, size=50)),
    )
    np.testing.assert_allclose(
        pair_products(left, right, pairs, block), (left @ right.T)[pairs], rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    ("rows", "speakers", "message"),
    [
        (np.eye(4, 2), list("abcd"), "0 speakers with two utterances or more"),
        (np.eye(4, 2), list("aabc"), "1 speakers with two utterances or more"),
        (np.random.default_rng(0).normal(size=(6, 5)), list("aaabbb"), "at most 4 directions within speakers"),
        (np.ones((60, 5)), list("abcdef" * 10), "vary in 0 of 5 directions only"),
        (np.eye(12, 3) * [1, 1, 0], list("abcdef" * 2), "vary in 2 of 3 directions only"),
        (np.full((4, 2), np.inf), list("aabb"), "NaN or infinity"),
        (np.full((60, 5), 0.1), list("abcdef" * 10), "vary in 0 of 5 directions only"),
        (np.repeat(np.random.default_rng(0).normal(size=(9, 3)), 7, axis=0), sorted("abcdefghi" * 7), "vary in 0 of 3"),
        (np.eye(4, 2), list("aab"), "3 speakers for rows"),
    ],
)
def test_data_that_no_model_can_be_trained_on(rows: np.ndarray, speakers: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        train_plda(SpeakerStatistics.of(rows, speakers, source="emb.npz"))
    assert str(raised.value).startswith("emb.npz: ")
    assert "; " in str(raised.value)


def test_single_utterance_speakers_count_too(drawn: tuple[np.ndarray, list[str]]) -> None:
    assert min(np.unique(drawn[1], return_counts=True)[1]) == 1
    with pytest.raises(ConfigError, match="iterations"):
        train_plda(SpeakerStatistics.of(*drawn), iterations=0)


def test_a_model_without_variance_within_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be inverted"):
        Plda.of(np.zeros(2), np.diag([1.0, 0.0]), np.eye(2))
