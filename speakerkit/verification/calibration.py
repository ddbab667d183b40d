"""Scores to log-likelihood ratios by logistic regression or PAV, of one system or several; a model's thresholds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from speakerkit import __version__
from speakerkit.bundle import Calibration
from speakerkit.errors import ConfigError, DataError, one_line
from speakerkit.files import write_json
from speakerkit.verification.metrics import LARGEST, ErrorCurve, OperatingPoint, error_curve, labelled_curve
from speakerkit.verification.trials import Scores, Trials

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]

FORMAT = "speakerkit-scoremap-1"
MAX_STEPS = 200
FEW_ERRORS = 30  # fewer tell little about a rate: Doddington's rule of 30


@dataclass(frozen=True)
class LinearMap:
    """``offset + weights · columns``: calibration of one system, fusion of several, or either with quality measures.

    Attributes:
        columns: name of each column: systems first, then quality measures.
        weights: one a column.
        offset: in nats.
        systems: how many of the columns are scores.
    """

    columns: tuple[str, ...]
    weights: tuple[float, ...]
    offset: float
    systems: int = 1

    def __call__(self, columns: npt.ArrayLike) -> Floats:
        """Log-likelihood ratios (trials,) of (trials, columns)."""
        return _matrix(columns, len(self.weights)) @ np.array(self.weights) + self.offset


@dataclass(frozen=True, eq=False)
class PavMap:
    """Rising map of the scores of one system, straight between its knots and constant outside.

    Attributes:
        scores: (knots,) rising.
        llrs: (knots,) log-likelihood ratios there.
        columns: name of the system.
        systems: one.
    """

    scores: Floats
    llrs: Floats
    columns: tuple[str, ...] = ("score",)
    systems: int = 1

    def __call__(self, columns: npt.ArrayLike) -> Floats:
        """Log-likelihood ratios (trials,) of (trials, 1)."""
        return np.interp(_matrix(columns, 1)[:, 0], self.scores, self.llrs)


ScoreMap = LinearMap | PavMap


def fit_linear(
    columns: npt.ArrayLike,
    labels: npt.ArrayLike,
    names: Sequence[str] = ("score",),
    *,
    prior: float = 0.5,
    ridge: float | None = None,
    systems: int | None = None,
    source: str = "scores",
) -> LinearMap:
    """Logistic regression that weighs trials as if targets had the probability ``prior``.

    Minimises  prior · mean over targets of log(1 + exp(-z)) + (1 - prior) · mean over nontargets of log(1 + exp(z)),
    z = llr + logit(prior): Brümmer et al., "Fusion of heterogeneous speaker recognition systems in the NIST speaker
    recognition evaluation 2006" (2007), as in FoCal and BOSARIS. Newton's method. Every column may be shifted and
    scaled; the ratios stay the same.

    Args:
        columns: (trials, columns): scores of systems, then quality measures; (trials,) for one.
        labels: (trials,) true for targets.
        names: of the columns.
        prior: probability of a target where the ratios will be used; it matters little.
        ridge: half its product with the squared weights (of columns scaled to deviation one) is added; 0 for none. By
            default it is a tenth over the number of trials of the rarer kind: little where they are many, and where few
            separate completely, ratios about as large as that number can support.
        systems: how many of the columns are scores; ``None`` is all.
        source: file that errors name.

    Raises:
        DataError: trials of one kind, a column that is constant, not finite or beyond 1e100, a single score that is
            lower for targets, or without ridge targets and nontargets that do not overlap.
        ConfigError: a prior outside (0, 1), or a negative ridge.
    """
    if not (0 < prior < 1 and (ridge is None or 0 <= ridge < math.inf)):
        raise ConfigError("calibration", f"prior {prior}, ridge {ridge}", "0 < prior < 1 and 0 <= ridge")
    matrix = _matrix(columns, len(names), source)
    truth = _checked_labels(matrix, labels, source)
    if ridge is None:
        ridge = 0.1 / min(truth.sum(), (~truth).sum())
    means, deviations = matrix.mean(axis=0), matrix.std(axis=0)
    constant = deviations <= 1e-12 * np.abs(matrix).max(axis=0)
    if constant.any():
        raise DataError(source, f"{names[int(np.argmax(constant))]!r} is the same in all trials", "leave it out")
    scaled = np.column_stack([(matrix - means) / deviations, np.ones(len(matrix))])
    solution = _newton(scaled, truth, prior, ridge)
    fitted = scaled @ solution
    if not ridge and fitted[truth].min() >= fitted[~truth].max():
        fault = "targets and nontargets do not overlap, so that no weights are the best"
        raise DataError(source, fault, "calibrate on more trials, or with a ridge")
    if len(names) == 1 and solution[0] <= 0:
        raise DataError(source, "higher scores do not mean the same speaker", "check the labels and the model")
    weights = solution[:-1] / deviations
    count = len(names) if systems is None else systems
    return LinearMap(tuple(names), tuple(weights.tolist()), float(solution[-1] - weights @ means), count)


def fit_pav(scores: npt.ArrayLike, labels: npt.ArrayLike, name: str = "score", source: str = "scores") -> PavMap:
    """The best rising map of scores (trials,) by pool-adjacent-violators, which gives the least Cllr on them.

    So that no ratio is infinite, one target below all scores and one nontarget above them are counted in, after
    Laplace's rule of succession.

    Raises:
        DataError: as :func:`speakerkit.verification.metrics.error_curve`.
    """
    matrix = _matrix(scores, 1, source)
    truth = _checked_labels(matrix, labels, source)
    return _pav_of(error_curve(matrix[:, 0], truth, source), name)


def stack_scores(systems: Sequence[Scores]) -> Floats:
    """Scores (trials, systems) of several systems on the same trials.

    Raises:
        DataError: no system, or lists that differ: names the first trial that does.
    """
    if not systems:
        raise DataError("fusion", "there are no scores", "give a score file or more")
    first = next((scores for scores in systems if scores.trials.labels is not None), systems[0]).trials
    for other in systems:
        if other.trials is not first:
            _refuse_other_trials(first, other.trials)
    return np.stack([scores.scores for scores in systems], axis=1)


def write_map(path: str | Path, score_map: ScoreMap, data: dict[str, Any]) -> None:
    """Write a map as JSON, with what it was learnt from, atomically."""
    if isinstance(score_map, LinearMap):
        values: dict[str, Any] = {"weights": score_map.weights, "offset": score_map.offset}
    else:
        values = {"scores": score_map.scores.tolist(), "llrs": score_map.llrs.tolist()}
    kind = "linear" if isinstance(score_map, LinearMap) else "pav"
    head = {"format": FORMAT, "kind": kind, "columns": score_map.columns, "systems": score_map.systems}
    write_json(path, {**head, **values, "data": data})


def read_map(path: str | Path) -> ScoreMap:
    """Read a map that :func:`write_map` wrote.

    Raises:
        DataError: the file is missing, or is no such map.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}")
        columns, systems = tuple(map(str, values["columns"])), int(values["systems"])
        if values["kind"] == "linear":
            numbers = tuple(float(weight) for weight in values["weights"])
            offset = float(values["offset"])
            score_map: ScoreMap = LinearMap(columns, numbers, offset, systems)
            knots = np.array([*numbers, offset])
            sound = len(numbers) == len(columns) and 1 <= systems <= len(columns)
        else:
            scores, llrs = (np.array(values[name], dtype=np.float64) for name in ("scores", "llrs"))
            score_map = PavMap(scores, llrs, columns)
            knots = np.concatenate([scores, llrs])
            sound = values["kind"] == "pav" and scores.shape == llrs.shape == (len(scores),) and len(columns) == 1
            sound = sound and len(scores) > 0 and bool((np.diff(scores) > 0).all() and (np.diff(llrs) >= 0).all())
        if not (sound and (np.abs(knots) <= LARGEST).all()):
            raise ValueError("numbers that do not fit together")
    except FileNotFoundError:
        raise DataError(path, "no such file", "make it with `speakerkit score fit`") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise DataError(path, f"is no map of scores ({error!r})", "make it with `speakerkit score fit`") from None
    return score_map


def calibrate(
    scores: Scores,
    model_sha256: str,
    *,
    far: Sequence[float] = (),
    frr: Sequence[float] = (),
    prior: float = 0.5,
    data: dict[str, Any] | None = None,
) -> Calibration:
    """Thresholds and the map to log-likelihood ratios, for the cosine of a model.

    Args:
        scores: labelled cosines.
        model_sha256: digest of the model.
        far: false-accept rates for which thresholds are wanted; the first asked one decides, before ``frr``, and the
            threshold at the EER where none is asked.
        frr: the same of false-reject (miss) rates.
        prior: as for :func:`fit_linear`.
        data: what else is known of where the scores come from.

    Raises:
        DataError: as :func:`fit_linear`, or a rate that only a threshold above 1 keeps.
        ConfigError: a rate outside [0, 1), or a bad prior.
    """
    curve = labelled_curve(scores)
    source = scores.trials.source
    name = one_line("/".join(Path(source).parts[-2:]))  # "trials" alone says little
    points = [("far", rate, curve.at_far(rate)) for rate in far] + [("frr", rate, curve.at_frr(rate)) for rate in frr]
    for kind, rate, point in points:
        if point.threshold > 1:
            raise DataError(
                source,
                f"no threshold up to 1 has {kind.upper()} {rate:g}: nontarget trials score 1",
                "look for copies of one recording",
            )
    labels = np.asarray(scores.trials.labels)
    linear = fit_linear(scores.scores, labels, ("cosine",), prior=prior, source=source)
    ratios = error_curve(linear(scores.scores), labels, source)
    equal = curve.eer()
    threshold, meaning = equal.threshold, f"EER {100 * equal.value:.3g} %"
    if points:
        kind, rate, point = points[0]
        threshold, meaning = point.threshold, f"{kind.upper()} at most {100 * rate:g} %"
    return Calibration(
        threshold=threshold,
        source=f"{meaning} on {len(scores)} trials of {name}",
        model_sha256=model_sha256,
        scale=linear.weights[0],
        offset=linear.offset,
        thresholds=tuple(_row(kind, rate, point) for kind, rate, point in points),
        data={
            "trials": name,
            "targets": curve.targets,
            "nontargets": curve.nontargets,
            **(data or {}),
            "prior": prior,
            "eer": equal.value,
            "eer_threshold": equal.threshold,
            "cllr": ratios.cllr(),
            "min_cllr": curve.min_cllr(),
            "speakerkit": __version__,
        },
    )


def too_few_errors(calibration: Calibration) -> list[str]:
    """Which of the rates rest on fewer than 30 errors, so that they hold to within 30 % at best, in words."""
    errors = {"far": "false_accepts", "frr": "misses"}
    data = calibration.data
    at_eer = round(data["eer"] * min(data["targets"], data["nontargets"]))
    if not calibration.thresholds and at_eer < FEW_ERRORS:
        return [f"EER {100 * data['eer']:.3g} % rests on {at_eer} errors"]
    return [
        f"{row['rate'].upper()} {row['asked']:g} rests on {row[errors[row['rate']]]} errors"
        for row in calibration.thresholds
        if row[errors[row["rate"]]] < FEW_ERRORS
    ]


def _row(kind: str, asked: float, point: OperatingPoint) -> dict[str, Any]:
    return {
        "rate": kind,
        "asked": asked,
        "threshold": point.threshold,
        "far": point.far,
        "frr": point.frr,
        "false_accepts": point.false_accepts,
        "misses": point.misses,
    }


def _newton(scaled: Floats, truth: Labels, prior: float, ridge: float) -> Floats:
    """Weights (columns,) that minimise the weighted logistic loss; the last column, of ones, has no ridge."""
    signs = np.where(truth, 1.0, -1.0)
    weights = np.where(truth, prior / truth.sum(), (1 - prior) / (~truth).sum())
    penalty = np.append(np.full(scaled.shape[1] - 1, ridge), 0.0)
    shift = logit(prior)

    def loss(solution: Floats) -> float:
        margins = signs * (scaled @ solution + shift)
        return float(weights @ np.logaddexp(0, -margins) + penalty @ solution**2 / 2)

    solution = np.zeros(scaled.shape[1])
    current = loss(solution)
    for _ in range(MAX_STEPS):
        margins = signs * (scaled @ solution + shift)
        wrong = expit(-margins)  # (trials,) probability of the other kind
        gradient = penalty * solution - scaled.T @ (weights * signs * wrong)
        curvature = (scaled * (weights * wrong * (1 - wrong))[:, None]).T @ scaled + np.diag(penalty)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        decrement = gradient @ step
        size = 1.0
        while (after := loss(solution - size * step)) > current - 1e-4 * size * decrement and size > 1e-10:
            size /= 2
        if after >= current:  # as near as rounding lets it come
            return solution
        solution, current = solution - size * step, after
        if decrement < 1e-20:
            return solution
    return solution


def _pav_of(curve: ErrorCurve, name: str) -> PavMap:
    low, high = curve.values[0], curve.values[-1]
    # The extra target goes below the lowest score and the extra nontarget above the highest.
    padded = ErrorCurve(
        np.concatenate([[np.nextafter(low, -np.inf)], curve.values, [np.nextafter(high, np.inf)]]),
        np.concatenate([[0, 1], curve.misses[1:] + 1, [curve.targets + 1]]),
        np.concatenate([[curve.nontargets + 1] * 2, curve.false_accepts[1:] + 1, [0]]),
        curve.targets + 1,
        curve.nontargets + 1,
    )
    hull = padded.convex_hull()
    targets, nontargets = np.diff(hull.misses), -np.diff(hull.false_accepts)
    llrs = np.log(targets / nontargets) - np.log(curve.targets / curve.nontargets)
    ends = np.searchsorted(padded.values, hull.values)
    starts = np.append(0, ends[:-1] + 1)
    knots = np.clip(np.stack([padded.values[starts], padded.values[ends]], axis=1), low, high)
    scores, first = np.unique(knots.ravel(), return_index=True)
    return PavMap(scores, np.repeat(llrs, 2)[first], (name,))


def _matrix(columns: npt.ArrayLike, count: int, source: str = "scores") -> Floats:
    """(trials, count) of finite numbers, small enough to reckon with."""
    matrix = np.asarray(columns, dtype=np.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.shape[1] != count:
        raise DataError(source, f"has columns of shape {matrix.shape}, {count} are wanted", "give (trials, columns)")
    if not (np.abs(matrix) <= LARGEST).all():
        raise DataError(source, f"holds values that are NaN or beyond {LARGEST:g}", "look for broken embeddings")
    return matrix


def _checked_labels(matrix: Floats, labels: npt.ArrayLike, source: str) -> Labels:
    truth = np.asarray(labels)
    if labels is None or truth.shape != (len(matrix),):
        raise DataError(source, f"has {len(matrix)} trials for labels of shape {truth.shape}", "label each trial")
    truth = truth.astype(np.bool_)
    if truth.all() or not truth.any():
        fault = f"has {truth.sum()} target and {(~truth).sum()} nontarget trials"
        raise DataError(source, fault, "calibration needs both; check the labels")
    return truth


def _refuse_other_trials(first: Trials, other: Trials) -> None:
    if len(first) != len(other):
        fault = f"has {len(other)} trials, {first.source} {len(first)}"
        raise DataError(other.source, fault, "score the same list with each system")
    different = _column(first, "enrol") != _column(other, "enrol")
    different |= _column(first, "test") != _column(other, "test")
    if first.labels is not None and other.labels is not None:
        different |= first.labels != other.labels
    if different.any():
        row = int(np.argmax(different))
        raise DataError(
            other.source,
            f"trial {row + 1} is not that of {first.source} ({np.sum(different)} of {len(first)} differ)",
            "score the same list, in the same order, with each system",
        )


def _column(trials: Trials, side: str) -> npt.NDArray[Any]:
    ids, index = (trials.enrol_ids, trials.enrol) if side == "enrol" else (trials.test_ids, trials.test)
    return np.array(ids, dtype=object)[index]
