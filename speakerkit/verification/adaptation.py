"""Adaptation of a PLDA model to another domain, from embeddings without labels or from a model of that domain."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.plda import Plda
from speakerkit.verification.vectors import SMALLEST_VARIANCE, Floats, rank

Method = Literal["kaldi", "coral", "coral+", "interpolate"]
METHODS: tuple[Method, ...] = get_args(Method)
LARGEST_SCALE = 1000.0  # shares are 1 or less in practice


def adapt_kaldi(
    plda: Plda,
    vectors: npt.ArrayLike,
    *,
    within_scale: float = 0.3,
    between_scale: float = 0.7,
    mean_diff_scale: float = 1.0,
    source: str = "embeddings",
) -> Plda:
    """Kaldi's unsupervised adaptation (PldaUnsupervisedAdaptor of ``ivector/plda.cc``, with its defaults).

    The mean becomes that of the new data. In the directions where their covariance exceeds the model's total, the
    excess is shared out to the covariances within and between speakers; variances are never made smaller.

    Args:
        plda: model of the old domain.
        vectors: embeddings (rows, dim) of the new one, processed as those that the model was trained on.
        within_scale: share of the excess that goes to the covariance within speakers.
        between_scale: share that goes to the covariance between them.
        mean_diff_scale: weight with which the shift of the mean counts as variance.
        source: file that error messages name.

    Raises:
        ConfigError: a scale outside [0, 1000].
        DataError: another dimension, fewer than two rows, or NaN.
    """
    _require_not_negative(within_scale=within_scale, between_scale=between_scale, mean_diff_scale=mean_diff_scale)
    mean, covariance = _moments(plda, vectors, source)
    shift = mean - plda.mean
    within, between = plda.within, plda.between
    excess = _excess(covariance + mean_diff_scale * np.outer(shift, shift), within + between)
    return Plda.of(mean, within + within_scale * excess, between + between_scale * excess, source)


def adapt_coral(plda: Plda, vectors: npt.ArrayLike, source: str = "embeddings") -> Plda:
    """CORAL (Sun, Feng, Saenko, Return of frustratingly easy domain adaptation, AAAI 2016) of a PLDA model.

    Both covariances become what they would be after training on embeddings that were whitened with the model's total
    covariance and coloured with that of the new data.

    Args:
        plda: model of the old domain.
        vectors: embeddings (rows, dim) of the new one.
        source: file that error messages name.

    Raises:
        DataError: as :func:`adapt_kaldi`, or new data that do not vary in every direction.
    """
    mean, covariance = _moments(plda, vectors, source)
    shown = rank(np.linalg.eigvalsh(covariance), float(np.trace(covariance) + mean @ mean))
    if shown < plda.dim:
        raise DataError(
            source,
            f"embeddings vary in {shown} of {plda.dim} directions only, which CORAL cannot align",
            "take more embeddings, or adapt with coral+ or kaldi",
        )
    within, between = _recoloured(plda, covariance)
    return Plda.of(mean, within, between, source)


def adapt_coral_plus(
    plda: Plda,
    vectors: npt.ArrayLike,
    *,
    within_scale: float = 0.8,
    between_scale: float = 0.8,
    source: str = "embeddings",
) -> Plda:
    """CORAL+ (Lee, Wang, Koshinaka, The CORAL+ algorithm for unsupervised domain adaptation of PLDA, ICASSP 2019).

    Each covariance grows by a share of what CORAL's exceeds it by, in the directions that diagonalise the two together;
    variances are never made smaller.

    Args:
        plda: model of the old domain.
        vectors: embeddings (rows, dim) of the new one; they need not vary in every direction.
        within_scale: share of the excess within speakers (the paper's gamma).
        between_scale: share of the excess between speakers (the paper's beta).
        source: file that error messages name.

    Raises:
        ConfigError: as :func:`adapt_kaldi`.
        DataError: as :func:`adapt_kaldi`.
    """
    _require_not_negative(within_scale=within_scale, between_scale=between_scale)
    mean, covariance = _moments(plda, vectors, source)
    coral_within, coral_between = _recoloured(plda, covariance)
    within, between = plda.within, plda.between
    within_excess, between_excess = _excess(coral_within, within), _excess(coral_between, between)
    return Plda.of(mean, within + within_scale * within_excess, between + between_scale * between_excess, source)


def interpolate(
    plda: Plda, in_domain: Plda, *, within_weight: float = 0.5, between_weight: float = 0.5, source: str = "PLDA"
) -> Plda:
    """Supervised adaptation: covariances between those of two models (Garcia-Romero and McCree, Supervised domain
    adaptation for i-vector based speaker recognition, ICASSP 2014), with the mean of the new domain.

    Args:
        plda: model of the old domain.
        in_domain: model of the new one, of embeddings that were processed alike.
        within_weight: weight of ``in_domain`` in the covariance within speakers; 0 keeps the old one.
        between_weight: the same for the covariance between speakers.
        source: file that error messages name.

    Raises:
        ConfigError: a weight outside [0, 1].
        DataError: models of different dimensions.
    """
    for name, weight in (("within_weight", within_weight), ("between_weight", between_weight)):
        if not 0 <= weight <= 1:
            raise ConfigError(name, f"is {weight}", "weights lie in [0, 1]")
    if plda.dim != in_domain.dim:
        raise DataError(source, f"has {in_domain.dim} values, the model {plda.dim}", "process both alike")
    within = (1 - within_weight) * plda.within + within_weight * in_domain.within
    between = (1 - between_weight) * plda.between + between_weight * in_domain.between
    return Plda.of(in_domain.mean, within, between, source)


def _scales(method: Callable[..., Plda]) -> dict[str, float]:
    """Scales and weights of a method by name, with their defaults."""
    return {name: found.default for name, found in signature(method).parameters.items() if type(found.default) is float}


SCALES: dict[Method, dict[str, float]] = {
    "kaldi": _scales(adapt_kaldi),
    "coral": _scales(adapt_coral),
    "coral+": _scales(adapt_coral_plus),
    "interpolate": _scales(interpolate),
}


def _moments(plda: Plda, vectors: npt.ArrayLike, source: str) -> tuple[Floats, Floats]:
    """Mean (dim,) and covariance (dim, dim) with the divisor N."""
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != plda.dim:
        raise DataError(
            source, f"has rows of shape {rows.shape[1:]}, the model {plda.dim} values", "process them alike"
        )
    if len(rows) < 2:
        raise DataError(source, f"holds {len(rows)} embeddings", "adapt with two or more, a few hundred at best")
    if not np.isfinite(rows).all():
        raise DataError(source, "holds NaN or infinity", "extract the embeddings again")
    mean = rows.mean(axis=0)
    centred = rows - mean
    return mean, centred.T @ centred / len(rows)


def _excess(new: Floats, old: Floats) -> Floats:
    """What ``new`` exceeds ``old`` by: ``inv(V).T max(0, D - 1) inv(V)``; V makes ``old`` the identity and ``new`` D.

    Their difference and their sum are diagonal under the same V. Scaled by the sum, ``old`` may be singular, as the
    covariance between speakers is where some psi are 0.
    """
    total = new + old
    total += np.eye(len(total)) * (SMALLEST_VARIANCE * np.trace(total) / len(total))
    values, directions = eigh(new - old, total)
    back = total @ directions[:, values > 0]  # inv(V).T, since V.T total V is the identity
    return (back * values[values > 0]) @ back.T


def _recoloured(plda: Plda, covariance: Floats) -> tuple[Floats, Floats]:
    """``A.T S A`` of both covariances, ``A = total^-1/2 covariance^1/2``."""
    variances, directions = np.linalg.eigh(covariance)
    within, between = plda.within, plda.between
    total, total_directions = np.linalg.eigh(within + between)
    whiten = total_directions / np.sqrt(total) @ total_directions.T
    colour = directions * np.sqrt(np.maximum(variances, 0.0)) @ directions.T
    align = whiten @ colour
    return align.T @ within @ align, align.T @ between @ align


def _require_not_negative(**scales: float) -> None:
    for name, scale in scales.items():
        if not 0 <= scale <= LARGEST_SCALE:
            raise ConfigError(name, f"is {scale}", f"scales lie in [0, {LARGEST_SCALE:g}]")
