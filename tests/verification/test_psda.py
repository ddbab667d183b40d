"""PSDA: Bessel functions against many digits, scores against the elementary three-dimensional case and an integral."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import vonmises_fisher

from speakerkit.data.ark import Embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.backend import score_backend, train_backend
from speakerkit.verification.psda import (
    Psda,
    concentration_of,
    log_bessel,
    log_normaliser,
    mean_resultant,
    train_psda,
)
from speakerkit.verification.speakers import SpeakerStatistics
from speakerkit.verification.trials import Trials
from speakerkit.verification.vectors import unit


# log(I_v(x) / x^v), mpmath with 40 digits.
@pytest.mark.parametrize(
    ("order", "argument", "expected"),
    [
        (0, 0.001, 2.4999998437500175e-07),
        (0, 700.0, 695.8056999984434),
        (0.5, 2.0, 0.3694288394094954),
        (29.5, 0.001, -93.40131300249108),
        (29.5, 40.0, -82.14322253807404),
        (31, 0.5, -99.57783308346764),
        (95, 3.0, -406.6406063546192),
        (127, 1e-06, -579.583140154411),
        (127, 60.0, -572.7309387179415),
        (127, 5000.0, 3911.5259799889063),
        (511, 0.1, -3034.0203513846286),
        (511, 800.0, -2778.4126199031402),
        (1023, 1000000.0, 985858.3827407993),
    ],
)
def test_log_bessel(order: float, argument: float, expected: float) -> None:
    assert float(log_bessel(order, argument)) == pytest.approx(expected, rel=1e-13)


def test_expansions_meet() -> None:
    """The recurrence ``I_{v-1} - I_{v+1} = 2 v / x I_v`` across the order where the expansion changes."""
    x = np.geomspace(0.01, 1e4, 50)
    for order in (29.5, 30.0, 30.5):
        below, here, above = (np.exp(log_bessel(v, x) - log_bessel(order, x)) for v in (order - 1, order, order + 1))
        np.testing.assert_allclose(below - x * x * above, 2 * order * here, rtol=1e-8)


@pytest.mark.parametrize("dim", [2, 3, 10, 60, 200])
@pytest.mark.parametrize("concentration", [0.5, 20.0, 300.0])
def test_density_is_that_of_scipy(dim: int, concentration: float) -> None:
    direction = np.eye(dim)[0]
    expected = vonmises_fisher(direction, concentration).logpdf(direction)
    assert float(log_normaliser(concentration, dim)) + concentration == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dim", [2, 3, 20, 61, 256])
@pytest.mark.parametrize("concentration", [1e-3, 1.0, 50.0, 5e4, 1e6])
def test_concentration_of_a_mean_length(dim: int, concentration: float) -> None:
    resultant = float(mean_resultant(concentration, dim))
    assert 0 < resultant < 1
    assert concentration_of(resultant, dim) == pytest.approx(concentration, rel=1e-7)
    if dim == 3:
        assert resultant == pytest.approx(1 / np.tanh(concentration) - 1 / concentration, rel=1e-9)


def log_c3(concentration: float) -> float:
    """Elementary in three dimensions: ``C(k) = k / (4 pi sinh k)``."""
    return float(np.log(concentration) - np.log(4 * np.pi) - np.log(np.sinh(concentration)))


def test_scores_in_three_dimensions() -> None:
    rng = np.random.default_rng(0)
    model = Psda(unit(np.array([1.0, -2.0, 0.5])), between=1.7, within=6.0)
    enrolled = [unit(rng.normal(size=(n, 3))) for n in (1, 4, 2)]
    tests = unit(rng.normal(size=(3, 3)))
    pairs = np.divmod(np.arange(9), 3)
    scores = model.llr(np.array([rows.sum(axis=0) for rows in enrolled]), tests, pairs)
    prior = model.between * model.mean
    for score, e, t in zip(scores, *pairs, strict=True):
        enrol, test = model.within * enrolled[e].sum(axis=0), model.within * tests[t]
        expected = (
            log_c3(np.linalg.norm(prior + enrol))
            + log_c3(np.linalg.norm(prior + test))
            - log_c3(np.linalg.norm(prior + enrol + test))
            - log_c3(model.between)
        )
        assert score == pytest.approx(expected, abs=1e-11)


def test_scores_in_many_dimensions() -> None:
    """The closed form in 512 dimensions, by mpmath with 50 digits; ``exp`` of its terms is far beyond float64."""
    model = Psda(np.eye(512)[0], between=300.0, within=900.0)
    vectors = np.zeros((4, 512))
    vectors[:, :4] = [[0.6, 0.8, 0, 0], [0.6, 0, 0.8, 0], [0.8, 0.6, 0, 0], [0.8, 0, 0, 0.6]]
    scores = model.llr(vectors[:2].sum(axis=0)[None], vectors[2:], (np.array([0, 0]), np.array([0, 1])))
    np.testing.assert_allclose(scores, [157.35090004791446718, 15.601810127244791898], rtol=1e-12)


def test_scores_are_ratios_of_integrals_over_the_sphere() -> None:
    """p(x_1 .. x_n) = integral of p(z) p(x_1 | z) .. p(x_n | z), by quadrature."""
    heights, weights = np.polynomial.legendre.leggauss(80)
    angles = np.arange(160) * (2 * np.pi / 160)
    radius = np.sqrt(1 - heights**2)[:, None]
    sphere = np.stack(
        [radius * np.cos(angles), radius * np.sin(angles), np.broadcast_to(heights[:, None], (80, 160))], axis=-1
    )
    area = np.broadcast_to(weights[:, None] * (2 * np.pi / 160), (80, 160))
    model = Psda(np.array([0.0, 0.6, 0.8]), between=2.5, within=4.0)

    def density(rows: np.ndarray) -> float:
        log_prior = log_c3(model.between) + model.between * sphere @ model.mean
        log_rows = len(rows) * log_c3(model.within) + model.within * sphere @ rows.sum(axis=0)
        return float(np.sum(area * np.exp(log_prior + log_rows)))

    rows = unit(np.random.default_rng(3).normal(size=(4, 3)))
    score = model.llr(rows[:3].sum(axis=0, keepdims=True), rows[3:], (np.array([0]), np.array([0])))[0]
    assert score == pytest.approx(np.log(density(rows) / density(rows[:3]) / density(rows[3:])), abs=1e-9)
    one_speaker = SpeakerStatistics(rows.mean(axis=0)[None], np.array([4.0]), np.ones(1), np.zeros((3, 3)))
    assert model.log_likelihood(one_speaker) == pytest.approx(np.log(density(rows)), abs=1e-9)


def test_even_spread_of_speakers() -> None:
    """With b = 0 the score depends on the cosine alone, and rises with it."""
    model = Psda(np.eye(256)[0], between=0.0, within=150.0)
    turn = np.linspace(0, np.pi, 30)
    tests = np.zeros((30, 256))
    tests[:, 3], tests[:, 9] = np.cos(turn), np.sin(turn)
    scores = model.llr(np.eye(256)[3:4], tests, (np.zeros(30, dtype=int), np.arange(30)))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) < 0).all()
    assert scores[0] > 0 > scores[15]


def drawn(rng: np.random.Generator, model: Psda, counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    speakers = vonmises_fisher(model.mean, model.between, seed=rng).rvs(len(counts))
    rows = [
        vonmises_fisher(speaker, model.within, seed=rng).rvs(int(count))
        for speaker, count in zip(speakers, counts, strict=True)
    ]
    return np.vstack(rows), [f"s{number}" for number, count in enumerate(counts) for _ in range(count)]


def test_em_recovers_the_parameters_and_its_likelihood_never_falls() -> None:
    rng = np.random.default_rng(5)
    truth = Psda(unit(np.ones(8)), between=12.0, within=40.0)
    statistics = SpeakerStatistics.of(*drawn(rng, truth, rng.integers(1, 9, size=1500)))
    training = train_psda(statistics, iterations=25)
    assert training.model.between == pytest.approx(truth.between, rel=0.06)
    assert training.model.within == pytest.approx(truth.within, rel=0.06)
    assert training.model.mean @ truth.mean > 0.998
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(training.log_likelihoods))
    assert training.log_likelihoods[-1] > training.log_likelihoods[0]
    at_truth = truth.log_likelihood(statistics) / statistics.counts.sum()
    assert training.log_likelihoods[-1] >= at_truth


def test_weight_of_a_speaker_counts_copies_of_it() -> None:
    rng = np.random.default_rng(4)
    rows, speakers = drawn(rng, Psda(np.eye(5)[0], 3.0, 30.0), np.array([3, 2, 4, 1, 2]))
    own = [number for number, name in enumerate(speakers) if name == "s2"]
    doubled = SpeakerStatistics.of(np.vstack([rows, rows[own]]), [*speakers, *("copy" for _ in own)])
    weighted = train_psda(SpeakerStatistics.of(rows, speakers, {"s2": 2.0}), 3)
    expected = train_psda(doubled, 3)
    np.testing.assert_allclose(weighted.model.mean, expected.model.mean, rtol=1e-10)
    assert weighted.model.between == pytest.approx(expected.model.between, rel=1e-10)
    assert weighted.model.within == pytest.approx(expected.model.within, rel=1e-10)
    np.testing.assert_allclose(weighted.log_likelihoods, expected.log_likelihoods, rtol=1e-10)


def test_backend_takes_any_length_and_several_sessions() -> None:
    """Embeddings count by their direction; an enrolment by the sum of its directions, or by its mean as one."""
    rng = np.random.default_rng(7)
    rows, speakers = drawn(rng, Psda(np.eye(5)[0], 3.0, 30.0), np.full(12, 4))
    rows = (rows * rng.uniform(0.5, 9, size=(len(rows), 1))).astype(np.float32)
    keys = [f"u{number}" for number in range(len(rows))]
    embeddings = Embeddings(keys, rows)
    backend = train_backend(embeddings, dict(zip(keys, speakers, strict=True)), "length-norm", kind="psda")
    assert isinstance(backend.model, Psda)
    trials = Trials.from_pairs(["m"], ["u3"])
    sessions = {"m": ["u0", "u1", "u2"]}
    directions = unit(rows)
    pair = (np.array([0]), np.array([0]))
    book = score_backend(backend, embeddings, trials, enrol_map=sessions).scores
    np.testing.assert_allclose(
        book, backend.model.llr(directions[:3].sum(axis=0)[None], directions[3:4], pair), rtol=1e-9
    )
    average = score_backend(backend, embeddings, trials, enrol_map=sessions, multi="average").scores
    mean = unit(rows[:3].astype(np.float64).mean(axis=0)[None])
    np.testing.assert_allclose(average, backend.model.llr(mean, directions[3:4], pair), rtol=1e-9)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((4, 1)), "two dimensions or more"),
        (unit(np.repeat(np.eye(2), 2, axis=0)), "do not differ"),
        (unit(np.ones((4, 3))), "do not differ"),
    ],
)
def test_data_faults(rows: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train_psda(SpeakerStatistics.of(rows, list("aabb")))


def test_no_iterations() -> None:
    with pytest.raises(ConfigError, match="iterations"):
        train_psda(SpeakerStatistics.of(np.eye(4), list("aabb")), iterations=0)
