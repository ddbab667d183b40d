"""Two-covariance PLDA: training by EM as Kaldi does it, and log-likelihood ratios in matrix form.

An utterance of a speaker is ``x = mean + y + e``, with ``y ~ N(0, between)`` shared by the utterances of the speaker
and ``e ~ N(0, within)`` drawn for each (Ioffe, Probabilistic Linear Discriminant Analysis, ECCV 2006, in the form of
Kaldi's ``ivector/plda.cc``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, eigh

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.chain import signed
from speakerkit.verification.speakers import SpeakerStatistics
from speakerkit.verification.vectors import Floats, Rows, length_normalised, pair_products

Normalisation = Literal["kaldi", "simple", "none"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)

LOG_2PI = float(np.log(2 * np.pi))
# Times the largest float32, and squared, it is still a number.
LARGEST = 1e100


@dataclass(frozen=True, eq=False)
class Plda:
    """A trained model, diagonalised.

    Attributes:
        mean: (dim,) of the embeddings.
        transform: (dim, dim) whose rows take the covariance within speakers to the identity and that between them to
            ``diag(psi)``.
        psi: (dim,) variances between speakers there, falling, not negative.
    """

    mean: Floats
    transform: Floats
    psi: Floats

    @classmethod
    def of(cls, mean: npt.ArrayLike, within: Floats, between: Floats, source: str = "PLDA") -> Plda:
        """Diagonalise two covariances (dim, dim); negative variances between speakers, which rounding leaves, become 0.

        Raises:
            DataError: ``within`` is not positive definite.
        """
        psi, directions = _diagonalise(within, between, source)
        return cls(
            np.asarray(mean, dtype=np.float64),
            signed(np.ascontiguousarray(directions.T[::-1])),
            np.maximum(psi[::-1], 0.0),
        )

    @classmethod
    def stored(cls, mean: Floats, transform: Floats, psi: Floats) -> Plda:
        """The model of arrays that a file holds.

        Raises:
            ValueError: shapes that contradict each other, NaN, numbers whose squares overflow, a negative ``psi``, or a
                transform that cannot be inverted.
        """
        dim = mean.size
        if not dim or mean.shape != (dim,) or transform.shape != (dim, dim) or psi.shape != (dim,):
            raise ValueError(f"a mean {mean.shape}, transform {transform.shape} and psi {psi.shape}")
        if not all((np.abs(array) < LARGEST).all() for array in (mean, transform, psi)) or psi.min() < 0:
            raise ValueError("NaN, infinity or a negative variance")
        scales = np.linalg.svd(transform, compute_uv=False)
        if scales[-1] <= max(1 / LARGEST, scales[0] * dim * np.finfo(np.float64).eps):
            raise ValueError("a transform that cannot be inverted")
        return cls(mean, transform, psi)

    @property
    def dim(self) -> int:
        """Values in an embedding."""
        return len(self.mean)

    @property
    def within(self) -> Floats:
        """(dim, dim) covariance of the utterances of one speaker."""
        root = np.linalg.inv(self.transform)
        return root @ root.T

    @property
    def between(self) -> Floats:
        """(dim, dim) covariance of the speakers."""
        root = np.linalg.inv(self.transform)
        return (root * self.psi) @ root.T

    def project(self, vectors: Floats, counts: npt.ArrayLike = 1, normalise: Normalisation = "kaldi") -> Floats:
        """Embeddings (rows, dim) in the space where both covariances are diagonal.

        Args:
            vectors: embeddings, each the mean of ``counts`` utterances.
            counts: (rows,) or one number.
            normalise: "kaldi" scales each row so that its Mahalanobis length under ``psi + 1/counts`` is sqrt(dim),
                "simple" to the Euclidean length sqrt(dim), "none" not at all. A row equal to the mean stays zero.
        """
        rows = (vectors - self.mean) @ self.transform.T
        if normalise == "none":
            return rows
        if normalise == "simple":
            return length_normalised(rows)
        expected = self.psi + 1.0 / np.broadcast_to(np.asarray(counts, dtype=np.float64), len(rows))[:, None]
        lengths = np.sqrt(np.sum(rows**2 / expected, axis=1, keepdims=True))
        return np.divide(rows * np.sqrt(self.dim), lengths, out=np.zeros_like(rows), where=lengths > 0)

    def llr(self, enrol: Floats, counts: Floats, test: Floats, pairs: tuple[Rows, Rows]) -> Floats:
        """Log-likelihood ratios (trials,), natural logarithm, of same against different speakers.

        With ``n`` enrolled utterances of mean ``e``, the test ``t`` of the same speaker is
        ``N(a e, 1 + psi/(n psi + 1))``, ``a = n psi/(n psi + 1)``; of another it is ``N(0, 1 + psi)``. The difference
        of the logarithms is a product of ``e`` and ``t``, a term of ``e`` alone, and one of ``t`` for each ``n``.

        Args:
            enrol: (enrolments, dim) projected means of the enrolled utterances.
            counts: (enrolments,) how many.
            test: (tests, dim) projected.
            pairs: rows of ``enrol`` and of ``test`` to compare, (trials,) each.
        """
        distinct, group = np.unique(np.asarray(counts, dtype=np.float64), return_inverse=True)
        n = distinct[:, None]
        shrink = n * self.psi / (n * self.psi + 1.0)  # (distinct, dim)
        variance = 1.0 + self.psi / (n * self.psi + 1.0)
        total = 1.0 + self.psi
        test_terms = 0.5 * (test**2) @ (1.0 / total - 1.0 / variance).T  # (tests, distinct)
        constant = 0.5 * np.sum(np.log(total) - np.log(variance), axis=1)
        expected = shrink[group] * enrol
        enrol_terms = constant[group] - 0.5 * np.sum(expected**2 / variance[group], axis=1)
        scores = pair_products(expected / variance[group], test, pairs)
        scores += enrol_terms[pairs[0]]
        scores += test_terms[pairs[1], group[pairs[0]]]
        return scores

    def log_likelihood(self, statistics: SpeakerStatistics) -> float:
        """Of all utterances, speakers integrated out; each speaker counts by its weight."""
        root: Floats = np.linalg.inv(self.transform).astype(np.float64)
        return _Diagonal(self.psi, self.transform.T, root, statistics, self.mean).log_likelihood()


@dataclass(frozen=True, eq=False)
class PldaTraining:
    """What :func:`train_plda` gives.

    Attributes:
        model: the trained model.
        log_likelihoods: before the first iteration and after each, per utterance; they never fall.
    """

    model: Plda
    log_likelihoods: tuple[float, ...]


def train_plda(statistics: SpeakerStatistics, iterations: int = 10) -> PldaTraining:
    """Kaldi's EM: the mean is that of the speakers' means, both covariances start from the identity.

    Each iteration diagonalises the two covariances together, where every posterior is diagonal: no matrix is inverted
    for a speaker.

    Args:
        statistics: of the training embeddings.
        iterations: of EM, 1 or more.

    Raises:
        ConfigError: no iterations.
        DataError: speakers do not vary in every direction.
    """
    if iterations < 1:
        raise ConfigError("iterations", f"is {iterations}", "train for 1 or more, 10 is usual")
    statistics.require_full_rank()
    within = between = np.eye(statistics.dim)
    history = []
    for _ in range(iterations):
        diagonal = _Diagonal.of(within, between, statistics)
        history.append(diagonal.log_likelihood())
        within, between = diagonal.maximise()
    history.append(_Diagonal.of(within, between, statistics).log_likelihood())
    model = Plda.of(statistics.mean, within, between, statistics.source)
    utterances = float(statistics.weights @ statistics.counts)
    return PldaTraining(model, tuple(value / utterances for value in history))


class _Diagonal:
    """Training data in the space where within is the identity and between is ``diag(psi)``.

    ``directions.T @ within @ directions`` is the identity; ``root`` takes covariances back, ``within = root @ root.T``.
    """

    def __init__(
        self, psi: Floats, directions: Floats, root: Floats, statistics: SpeakerStatistics, mean: Floats
    ) -> None:
        self.psi, self.directions, self.root, self.statistics = psi, directions, root, statistics
        self.means = (statistics.means - mean) @ directions  # (speakers, dim)
        counts, self.group = np.unique(statistics.counts, return_inverse=True)
        self.counts = counts[:, None]  # (distinct, 1)
        self.weights = np.bincount(self.group, statistics.weights)  # (distinct,)

    @classmethod
    def of(cls, within: Floats, between: Floats, statistics: SpeakerStatistics) -> _Diagonal:
        psi, directions = _diagonalise(within, between, statistics.source)
        return cls(np.maximum(psi, 0.0), directions, within @ directions, statistics, statistics.mean)

    def maximise(self) -> tuple[Floats, Floats]:
        """Covariances within and between speakers that maximise the expected log-likelihood.

        The posterior of a speaker's ``y`` has variance ``psi/(1 + n psi)`` and mean ``n psi/(1 + n psi)`` times the
        mean of the utterances.
        """
        weights, counts = self.statistics.weights[:, None], self.statistics.counts[:, None]
        variances = self.psi / (1.0 + self.counts * self.psi)  # (distinct, dim)
        speakers = (self.counts * variances)[self.group] * self.means
        residuals = self.means - speakers
        between = np.diag(self.weights @ variances) + (speakers * weights).T @ speakers
        within = np.diag((self.weights * self.counts[:, 0]) @ variances)
        within += (residuals * weights * counts).T @ residuals
        within = self.statistics.scatter + self.root @ within @ self.root.T
        between = self.root @ between @ self.root.T
        return _symmetric(within / np.sum(weights * counts)), _symmetric(between / np.sum(weights))

    def log_likelihood(self) -> float:
        """A speaker's ``n`` utterances are, up to a rotation, n - 1 draws of N(0, within) and one of
        N(0, within + n between), the latter sqrt(n) times their mean."""
        weights, counts = self.statistics.weights, self.statistics.counts
        logdet = 2.0 * np.linalg.slogdet(self.root)[1]
        scatter = np.einsum("id,ij,jd->", self.directions, self.statistics.scatter, self.directions, optimize=True)
        constant = self.statistics.dim * LOG_2PI + logdet
        variances = 1.0 + self.counts * self.psi  # (distinct, dim)
        squares = np.sum(self.means**2 / variances[self.group], axis=1)
        value = scatter + constant * (weights @ counts)
        value += self.weights @ np.sum(np.log(variances), axis=1) + (weights * counts) @ squares
        return float(-0.5 * value)


def _diagonalise(within: Floats, between: Floats, source: str) -> tuple[Floats, Floats]:
    """Rising variances between speakers, and directions in columns that make within the identity."""
    try:
        values, directions = eigh(between, within)
    except (LinAlgError, ValueError):
        raise DataError(
            source,
            "has a covariance within speakers that cannot be inverted",
            "take more utterances, or embeddings of fewer dimensions (lda)",
        ) from None
    return values, directions


def _symmetric(matrix: Floats) -> Floats:
    return 0.5 * (matrix + matrix.T)
