"""Embeddings of made-up speakers, and a PLDA that fits them."""

from __future__ import annotations

import numpy as np

from speakerkit.verification.backend import Backend
from speakerkit.verification.chain import Chain
from speakerkit.verification.plda import Plda


def voices(
    speakers: int, windows: int, seed: int = 0, noise: float = 0.5, dim: int = 32, turn: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (windows, dim) float32 and speakers (windows,): turns of some windows, every speaker in turn.

    Directions are those of a normal distribution around each speaker; the mean cosine of a speaker's windows is about
    ``1/(1 + noise**2)``.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(speakers, dim))
    own = np.arange(windows) // turn % speakers
    rows = centres[own] + noise * rng.normal(size=(windows, dim))
    return (rows * rng.uniform(0.5, 2.0, (windows, 1))).astype(np.float32), own


def plda_backend(dim: int = 32, within: float = 0.3) -> Backend:
    """For embeddings of :func:`voices` at their own length: variance ``within`` of a speaker's, 1 between speakers."""
    model = Plda.of(np.zeros(dim), within * np.eye(dim), np.diag(np.linspace(1.5, 0.5, dim)))
    return Backend(Chain(), model, dim)
