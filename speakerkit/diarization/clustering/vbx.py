"""VBx: a Bayesian HMM whose states are speakers, over windows in the order of time, with a PLDA's view of a speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from speakerkit.diarization.clustering.labels import cluster_sums, numbered
from speakerkit.diarization.clustering.settings import ClusterSettings, require_at_least, require_between
from speakerkit.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]

SMALLEST_WEIGHT = 1e-7  # a speaker that is entered more rarely is dropped
LOG_2PI = float(np.log(2 * np.pi))


class PldaBackend(Protocol):
    """What VBx wants of a :class:`speakerkit.verification.backend.Backend`: its chain, and its PLDA."""

    @property
    def kind(self) -> str:
        """Which model; "plda" is what is wanted."""

    @property
    def chain(self) -> Any:
        """With ``apply(vectors)``."""

    @property
    def model(self) -> Any:
        """With ``project(vectors, normalise="none")`` and ``psi``."""


@dataclass(frozen=True)
class VbxSettings(ClusterSettings):
    """Of VBx, with the symbols of the paper; the values are those that its authors publish for x-vectors.

    They give a window every 0.25 s, ours come every 0.75 s: what is counted by windows is converted, so that a second
    of speech weighs the same.

    Attributes:
        threshold: cosine of the start by average linkage; VBx drops speakers but finds none, so that the start should
            have too many.
        acoustic_scale: F_A, below 1 because neighbouring windows share their audio; the paper's 0.3 every 0.25 s is 0.9
            every 0.75 s. It is for windows that scatter as the PLDA says, which :func:`resegment` sees to.
        speaker_scale: F_B; the larger, the fewer speakers.
        loop_probability: P_loop, that the next window has the same speaker; the paper's 0.99 every 0.25 s is 0.97
            every 0.75 s.
        dimensions: of the PLDA that are used, those with the largest variance between speakers.
        iterations: at most.
        tolerance: iterations end when the ELBO rises by less.
        softening: of the start: the log-odds of a window's speaker against each other one.
        most_start: speakers that the start may have.
    """

    method: ClassVar[str] = "vbx"

    threshold: float = 0.4
    acoustic_scale: float = 0.9
    speaker_scale: float = 17.0
    loop_probability: float = 0.97
    dimensions: int = 128
    iterations: int = 40
    tolerance: float = 1e-4
    softening: float = 5.0
    most_start: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("acoustic_scale", "speaker_scale"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(name, f"is {getattr(self, name)}", "give a number above 0")
        require_between("loop_probability", self.loop_probability, 0.0, 0.9999)
        for name in ("dimensions", "iterations", "most_start"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("tolerance", self.tolerance, 0.0)
        require_between("softening", self.softening, 0.0, 500.0)


@dataclass(frozen=True, eq=False)
class Resegmentation:
    """What :func:`resegment` gives.

    Attributes:
        labels: (N,) the likeliest speaker of each window, in order of first appearance.
        posteriors: (N, K) of the speakers that are left; each row sums to 1. Speakers that no window belongs to come
            last.
        elbo: lower bound of the evidence after each iteration; it does not fall.
    """

    labels: Labels
    posteriors: Floats
    elbo: tuple[float, ...]


def resegment(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    backend: PldaBackend | None,
    settings: VbxSettings | None = None,
    most: int | None = None,
) -> Resegmentation:
    """Assign windows anew by VBx (Landini et al., Bayesian HMM clustering of x-vector sequences (VBx) in speaker
    diarization, Computer Speech & Language 71, 2022), from the labels of any method.

    A PLDA that was trained on whole recordings takes windows of 1.5 s for surer than they are: around their speakers
    they scatter several times as much as it says, which would leave too many speakers. So its variance within speakers
    is raised to that of the windows around the means of their labels, where that is larger.

    Args:
        embeddings: (N, D) of windows in the order of time, N > 0.
        labels: (N,) to start from.
        backend: chain and PLDA, trained on embeddings of the same model.
        settings: scales and iterations.
        most: speakers; where more are left, the largest go on alone.

    Raises:
        ConfigError: no back-end, or one without PLDA.
        DataError: embeddings that the back-end refuses, or labels of another length.
    """
    settings = settings or VbxSettings()
    if backend is None or backend.kind != "plda":
        fault = "needs a PLDA back-end" + ("" if backend is None else f", this one is {backend.kind}")
        raise ConfigError("vbx", fault, "train one with `speakerkit plda train`")
    rows = backend.model.project(backend.chain.apply(embeddings), normalise="none")[:, : settings.dimensions]
    start = numbered(labels)
    if len(start) != len(rows):
        raise DataError("labels", f"are {len(start)}, for {len(rows)} windows", "give one a window")
    psi = np.asarray(backend.model.psi, dtype=np.float64)[: settings.dimensions]
    scatter = max(1.0, scatter_within(rows, start))
    rows, psi = rows / np.sqrt(scatter), psi / scatter
    found = vb_hmm(rows, psi, softened(start, settings.softening), settings)
    sizes = found.posteriors.sum(axis=0)
    if most is not None and len(sizes) > most:
        largest = np.sort(np.argsort(-sizes, kind="stable")[:most])
        remaining = found.posteriors[:, largest] + 1e-10  # a window of none of them may go to any
        found = vb_hmm(rows, psi, remaining / remaining.sum(axis=1, keepdims=True), settings)
    return found


def scatter_within(rows: Floats, labels: Labels) -> float:
    """Mean variance of rows (N, D) around the means of their labels 0 to K - 1; 0 where no two have the same label."""
    counts = np.bincount(labels)
    deviations = rows - (cluster_sums(rows, labels) / counts[:, None])[labels]
    return float(np.sum(deviations**2) / max(1, (len(rows) - len(counts)) * rows.shape[1]))


def softened(labels: Labels, softening: float) -> Floats:
    """(N, K) posteriors whose log-odds between a window's label and any other are ``softening``."""
    odds = np.where(labels[:, None] == np.arange(labels.max() + 1), 1.0, np.exp(-softening))
    return odds / odds.sum(axis=1, keepdims=True)


def vb_hmm(rows: Floats, psi: Floats, start: Floats, settings: VbxSettings) -> Resegmentation:
    """Variational Bayes of the HMM.

    Speaker ``s`` has ``y_s ~ N(0, I)``, its windows are ``N(sqrt(psi) y_s, I)``. Each iteration takes the posteriors of
    all ``y_s`` given those of the windows, the windows' by the forward-backward algorithm given ``y_s``, and the
    weights of the speakers that are entered (equations 16 to 22 of the paper).

    Args:
        rows: (N, D) windows where the covariance within speakers is the identity.
        psi: (D,) variances between speakers there.
        start: (N, K) posteriors of the windows.
        settings: scales and iterations.
    """
    gamma = start
    weights = np.full(start.shape[1], 1.0 / start.shape[1])
    scaled = rows * np.sqrt(psi)  # rho: (N, D)
    constant = -0.5 * (np.sum(rows**2, axis=1, keepdims=True) + rows.shape[1] * LOG_2PI)
    ratio = settings.acoustic_scale / settings.speaker_scale
    elbo: list[float] = []
    for _ in range(settings.iterations):
        variance = 1.0 / (1.0 + ratio * gamma.sum(axis=0)[:, None] * psi)  # of y_s: (K, D)
        mean = ratio * variance * (gamma.T @ scaled)
        fit = constant + scaled @ mean.T - 0.5 * (variance + mean**2) @ psi
        gamma, entered, evidence = forward_backward(settings.acoustic_scale * fit, weights, settings.loop_probability)
        divergence = 0.5 * float(np.sum(variance + mean**2 - 1.0 - np.log(variance)))
        elbo.append(evidence - settings.speaker_scale * divergence)
        weights = entered / entered.sum()
        if len(elbo) > 1 and elbo[-1] - elbo[-2] < settings.tolerance:
            break
        gamma, weights = _without_rare(gamma, weights)
    return _by_appearance(gamma, elbo)


def _without_rare(gamma: Floats, weights: Floats) -> tuple[Floats, Floats]:
    kept = weights >= SMALLEST_WEIGHT
    if kept.all():
        return gamma, weights
    gamma = gamma[:, kept]
    return gamma / gamma.sum(axis=1, keepdims=True), weights[kept] / weights[kept].sum()


def forward_backward(likelihoods: Floats, weights: Floats, loop: float) -> tuple[Floats, Floats, float]:
    """Posteriors (N, K) of the states, expected entries (K,) into each, and the log-likelihood of the sequence.

    With probability ``loop`` the state stays, otherwise the next one is drawn from ``weights``, which may be the same.

    Args:
        likelihoods: (N, K) logarithms.
        weights: (K,) of entering a state, at the start too.
        loop: below 1.
    """
    largest = likelihoods.max(axis=1, keepdims=True)
    probabilities = np.exp(likelihoods - largest)
    forward = np.empty_like(probabilities)
    scales = np.empty(len(probabilities))
    entering = (1.0 - loop) * weights
    predicted = weights
    for place, probability in enumerate(probabilities):
        state = predicted * probability
        scales[place] = scale = state.sum()
        forward[place] = state = state / scale
        predicted = loop * state + entering
    scaled = probabilities / scales[:, None]
    backward = np.empty_like(probabilities)
    backward[-1] = ahead = np.ones(len(weights))
    for place in range(len(probabilities) - 1, 0, -1):
        ahead = scaled[place] * ahead
        backward[place - 1] = ahead = loop * ahead + entering @ ahead
    gamma = forward * backward
    gamma /= gamma.sum(axis=1, keepdims=True)
    entered = gamma[0] + entering * np.sum(scaled[1:] * backward[1:], axis=0)
    return gamma, entered, float(np.log(scales).sum() + largest.sum())


def _by_appearance(gamma: Floats, elbo: Sequence[float]) -> Resegmentation:
    likeliest = gamma.argmax(axis=1)
    _, first = np.unique(likeliest, return_index=True)
    used = likeliest[np.sort(first)]
    order = np.concatenate([used, np.setdiff1d(np.arange(gamma.shape[1]), used)])
    return Resegmentation(numbered(likeliest), gamma[:, order], tuple(elbo))
