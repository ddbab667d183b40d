"""Probabilistic spherical discriminant analysis: PLDA's counterpart on the unit sphere.

Brümmer, Swart, Mošner, Silnova, Plchot, Stafylakis, Burget, Probabilistic Spherical Discriminant Analysis: An
Alternative to PLDA for length-normalized embeddings, Interspeech 2022: a speaker is a direction ``z ~ VMF(mu, b)``, an
utterance ``x ~ VMF(z, w)``, with the von Mises-Fisher density ``C(k) exp(k m.x)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial import Polynomial
from scipy.optimize import brentq
from scipy.special import gammaln, ive

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.plda import LARGEST, LOG_2PI
from speakerkit.verification.speakers import SpeakerStatistics
from speakerkit.verification.vectors import Floats, Rows, pair_products, unit

# From this order on, the uniform expansion with these many terms is exact to rounding.
UNIFORM_ORDER = 30.0
UNIFORM_TERMS = 9
# Argument below which two terms of the power series are exact to rounding.
SMALL_ARGUMENT = 3e-4
# Directions that differ by less, a thousandth of a radian, are taken for the same.
LARGEST_RESULTANT = 1 - 1e-6
UNIT_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Psda:
    """A trained model.

    Attributes:
        mean: (dim,) unit vector ``mu``, the mean direction of speakers.
        between: concentration ``b`` of speakers around it; 0 spreads them evenly.
        within: concentration ``w`` of a speaker's utterances.
    """

    mean: Floats
    between: float
    within: float

    @classmethod
    def stored(cls, mean: Floats, between: Floats, within: Floats) -> Psda:
        """The model of arrays that a file holds.

        Raises:
            ValueError: a mean that is no direction, or concentrations that are no numbers, negative or beyond measure.
        """
        if mean.ndim != 1 or mean.size < 2 or not abs(np.linalg.norm(mean) - 1) < UNIT_TOLERANCE:
            raise ValueError(f"a mean {mean.shape} that is no direction")
        if between.shape or within.shape or not (0 <= between < LARGEST and 0 <= within < LARGEST):
            raise ValueError("concentrations that are no positive numbers")
        return cls(mean, float(between), float(within))

    @property
    def dim(self) -> int:
        """Values in an embedding."""
        return len(self.mean)

    def llr(self, enrol: Floats, test: Floats, pairs: tuple[Rows, Rows]) -> Floats:
        """Log-likelihood ratios (trials,), natural logarithm, of same against different speakers.

        Embeddings of one speaker have the density ``C(w)^n C(b) / C(|b mu + w sum|)``.

        Args:
            enrol: (enrolments, dim) sums of the unit vectors enrolled.
            test: (tests, dim) unit vectors.
            pairs: rows of ``enrol`` and of ``test`` to compare, (trials,) each.
        """
        prior = self.between * self.mean
        enrol_posterior = prior + self.within * enrol
        added = self.within * test
        enrol_squares, added_squares = np.sum(enrol_posterior**2, axis=1), np.sum(added**2, axis=1)
        joint = enrol_squares[pairs[0]] + added_squares[pairs[1]] + 2 * pair_products(enrol_posterior, added, pairs)
        enrol_terms = log_normaliser(np.sqrt(enrol_squares), self.dim)
        test_terms = log_normaliser(np.linalg.norm(prior + added, axis=1), self.dim)
        constant = log_normaliser(np.array(self.between), self.dim)
        scores = enrol_terms[pairs[0]] + test_terms[pairs[1]] - constant
        return scores - log_normaliser(np.sqrt(np.maximum(joint, 0.0)), self.dim)

    def log_likelihood(self, statistics: SpeakerStatistics) -> float:
        """Of all utterances (unit vectors), speakers integrated out; each speaker counts by its weight."""
        weights, counts = statistics.weights, statistics.counts
        posterior = np.linalg.norm(_natural(self, statistics), axis=1)
        constants = log_normaliser(np.array([self.within, self.between]), self.dim)
        terms = counts * constants[0] + constants[1] - log_normaliser(posterior, self.dim)
        return float(weights @ terms)


@dataclass(frozen=True, eq=False)
class PsdaTraining:
    """What :func:`train_psda` gives.

    Attributes:
        model: the trained model.
        log_likelihoods: before the first iteration and after each, per utterance; they never fall.
    """

    model: Psda
    log_likelihoods: tuple[float, ...]


def train_psda(statistics: SpeakerStatistics, iterations: int = 10) -> PsdaTraining:
    """EM; each step is in closed form but for the inverse of a Bessel ratio.

    Args:
        statistics: of unit vectors.
        iterations: of EM, 1 or more.

    Raises:
        ConfigError: no iterations.
        DataError: one dimension, or speakers whose utterances do not differ.
    """
    if iterations < 1:
        raise ConfigError("iterations", f"is {iterations}", "train for 1 or more, 10 is usual")
    if statistics.dim < 2:
        raise DataError(statistics.source, "has 1 value a row", "a sphere has two dimensions or more")
    model = _initial(statistics)
    history = [model.log_likelihood(statistics)]
    for _ in range(iterations):
        model = _maximise(model, statistics)
        history.append(model.log_likelihood(statistics))
    utterances = float(statistics.weights @ statistics.counts)
    return PsdaTraining(model, tuple(value / utterances for value in history))


def log_normaliser(concentration: npt.ArrayLike, dim: int) -> Floats:
    """``log C(k)`` of the von Mises-Fisher density in ``dim`` dimensions, ``C(k) = k^v / ((2 pi)^(v+1) I_v(k))`` with
    ``v = dim/2 - 1``; finite at 0, where it is that of the even spread."""
    return -0.5 * dim * LOG_2PI - log_bessel(0.5 * dim - 1, concentration)


def mean_resultant(concentration: npt.ArrayLike, dim: int) -> Floats:
    """Length ``A(k) = I_{v+1}(k) / I_v(k)`` of the mean of a von Mises-Fisher density, in [0, 1)."""
    order, k = 0.5 * dim - 1, np.asarray(concentration, dtype=np.float64)
    # Not by the logarithms where they are large: A(k) comes close to 1, and what is left of it matters.
    small = k <= max(order, SMALL_ARGUMENT)
    by_logarithms = k * np.exp(log_bessel(order + 1, k) - log_bessel(order, k))
    large = np.where(small, max(order, 1.0), k)
    if order >= UNIFORM_ORDER:
        return np.where(small, by_logarithms, _bessel_ratio_uniform(order, large))
    return np.where(small, by_logarithms, ive(order + 1, large) / ive(order, large))


def concentration_of(resultant: float, dim: int) -> float:
    """The ``k`` whose :func:`mean_resultant` is ``resultant``, in [0, 1 - 1e-6]."""
    if resultant <= 0:
        return 0.0
    # Amos' bounds of the ratio, solved for k, hold the root.
    widest = resultant / (1 - resultant) / (1 + resultant)
    low, high = max(dim - 2.0, 0.0) * widest * (1 - 1e-9), dim * widest * (1 + 1e-9)
    return float(brentq(lambda k: float(mean_resultant(np.array(k), dim)) - resultant, low, high, rtol=1e-14))


def log_bessel(order: float, argument: npt.ArrayLike) -> Floats:
    """``log(I_v(x) / x^v)`` of the modified Bessel function of the first kind, for v >= 0, x >= 0, without overflow.

    From order 30 on it is Debye's uniform expansion (DLMF 10.41.3), below it scipy's scaled function.
    """
    x = np.asarray(argument, dtype=np.float64)
    if order >= UNIFORM_ORDER:
        return _log_bessel_uniform(order, x)
    small = x < SMALL_ARGUMENT
    safe = np.where(small, 1.0, x)
    large = np.log(ive(order, safe)) + safe - order * np.log(safe)
    series = np.log1p(x * x / (4 * (order + 1))) - order * np.log(2.0) - gammaln(order + 1)
    return np.where(small, series, large)


def _log_bessel_uniform(order: float, x: Floats) -> Floats:
    root = np.hypot(1.0, x / order)
    scaled = order * (root - np.log1p(root) - np.log(order)) - 0.5 * (np.log(order) + LOG_2PI)
    return scaled - 0.5 * np.log(root) + np.log1p(_debye_sum(DEBYE, 1.0 / root, order))


def _bessel_ratio_uniform(order: float, x: Floats) -> Floats:
    """``I_{v+1}(x) / I_v(x)``, which is ``I_v'(x) / I_v(x) - v / x``, by DLMF 10.41.3 and 10.41.5; for x > v."""
    root = np.hypot(1.0, x / order)
    derivative, function = (1.0 + _debye_sum(series, 1.0 / root, order) for series in (DEBYE_DERIVATIVE, DEBYE))
    return (root * derivative / function - 1.0) * order / x


def _debye_sum(series: list[Polynomial], t: Floats, order: float) -> Floats:
    """Sum over k >= 1 of ``series[k](t) / v^k``."""
    total = np.zeros_like(t)
    for polynomial in reversed(series[1:]):
        total = (total + polynomial(t)) / order
    return total


def _debye_polynomials(terms: int) -> tuple[list[Polynomial], list[Polynomial]]:
    """``u_0 .. u_terms`` of DLMF 10.41.9 and ``v_0 .. v_terms`` of 10.41.11."""
    t = Polynomial([0.0, 1.0])
    function, derivative = [Polynomial([1.0])], [Polynomial([1.0])]
    for _ in range(terms):
        u = function[-1]
        slope = t**2 * (1 - t**2) * u.deriv()
        function.append(0.5 * slope + ((1 - 5 * t**2) * u).integ() / 8)
        derivative.append(function[-1] - 0.5 * t * (1 - t**2) * u - slope)
    return function, derivative


DEBYE, DEBYE_DERIVATIVE = _debye_polynomials(UNIFORM_TERMS)


def _natural(model: Psda, statistics: SpeakerStatistics) -> Floats:
    """(speakers, dim) ``b mu + w sum``, mean direction x concentration of the posterior of each speaker's direction."""
    return model.between * model.mean + model.within * statistics.counts[:, None] * statistics.means


def _initial(statistics: SpeakerStatistics) -> Psda:
    """Speakers and utterances as concentrated as the speakers' mean directions say."""
    weights, counts = statistics.weights, statistics.counts
    lengths = np.linalg.norm(statistics.means, axis=1)
    mean = weights @ unit(statistics.means) / weights.sum()
    within = float((weights * counts) @ lengths / (weights @ counts))
    return _model(mean, within, statistics)


def _maximise(model: Psda, statistics: SpeakerStatistics) -> Psda:
    weights, counts = statistics.weights, statistics.counts
    natural = _natural(model, statistics)
    directions = unit(natural) * mean_resultant(np.linalg.norm(natural, axis=1), model.dim)[:, None]
    mean = weights @ directions / weights.sum()
    alike = float((weights * counts) @ np.sum(directions * statistics.means, axis=1) / (weights @ counts))
    return _model(mean, alike, statistics)


def _model(mean: Floats, within: float, statistics: SpeakerStatistics) -> Psda:
    """Both concentrations from the lengths of mean vectors."""
    if max(within, float(np.linalg.norm(mean))) > LARGEST_RESULTANT:
        raise DataError(
            statistics.source, "has utterances or speakers that do not differ in direction", "check the embeddings"
        )
    dim = statistics.dim
    direction = unit(mean) if mean.any() else np.eye(dim)[0]
    return Psda(direction, concentration_of(float(np.linalg.norm(mean)), dim), concentration_of(within, dim))
