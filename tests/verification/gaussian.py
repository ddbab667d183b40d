"""Embeddings drawn from PLDA's model, its likelihoods by definition, and damaged files, for several tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import multivariate_normal

from speakerkit.verification.plda import Plda

DIM = 4


def spd(rng: np.random.Generator, dim: int = DIM, scale: float = 1.0) -> np.ndarray:
    root = rng.normal(size=(dim, dim))
    return scale * (root @ root.T / dim + 0.3 * np.eye(dim))


def draw(
    rng: np.random.Generator, mean: np.ndarray, within: np.ndarray, between: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Embeddings drawn from the model, ``counts`` of each speaker."""
    speaker = np.repeat(np.arange(len(counts)), counts)
    speakers = rng.multivariate_normal(mean, between, size=len(counts), method="cholesky")
    noise = rng.multivariate_normal(np.zeros(len(mean)), within, size=len(speaker), method="cholesky")
    return speakers[speaker] + noise, [f"s{number}" for number in speaker]


def joint(model: Plda, utterances: int) -> np.ndarray:
    """Covariance of the stacked utterances of one speaker."""
    same = np.ones((utterances, utterances))
    return np.kron(same, model.between) + np.kron(np.eye(utterances), model.within)


def llr_by_definition(model: Plda, enrolled: np.ndarray, test: np.ndarray) -> float:
    """log p(enrolled, test | one speaker) - log p(enrolled) - log p(test)."""

    def density(rows: np.ndarray) -> float:
        stacked = np.tile(model.mean, len(rows))
        return float(multivariate_normal.logpdf(rows.ravel(), stacked, joint(model, len(rows))))

    return density(np.vstack([enrolled, test])) - density(enrolled) - density(test[None])


def damaged(whole: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """``count`` variants of a file: cut short, or with bytes changed, lost or added."""
    for number in range(count):
        at, size = int(rng.integers(len(whole))), int(rng.integers(1, 20))
        noise = rng.bytes(size)
        kept = (b"", whole[at + size :], whole[at:], whole[at + 1 :])[number % 4]
        yield whole[:at] + (b"", noise[: len(whole) - at], noise, b"")[number % 4] + kept
