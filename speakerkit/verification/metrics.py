"""Error rates of verification: EER and minimum detection cost, exact in the presence of ties."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.trials import Scores

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EqualErrorRate:
    """Where misses and false accepts are equally likely.

    Attributes:
        value: rate in [0, 1].
        threshold: accept from this score on. Where the rates are equal only between two thresholds, the score that
            the trials between them share.
    """

    value: float
    threshold: float


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """Errors at every threshold that decides differently, from "accept all" to "reject all".

    Trials of equal score are decided together, so the order of trials does not matter.

    Attributes:
        values: (distinct,) distinct scores, rising.
        misses: (distinct + 1,) targets rejected when the first 0, 1, ... distinct scores are rejected.
        false_accepts: (distinct + 1,) nontargets accepted then.
        targets: number of same-speaker trials.
        nontargets: number of different-speaker trials.
    """

    values: Floats
    misses: Counts
    false_accepts: Counts
    targets: int
    nontargets: int

    @property
    def miss_rates(self) -> Floats:
        """Share of targets rejected, rising from 0 to 1."""
        return self.misses / self.targets

    @property
    def false_accept_rates(self) -> Floats:
        """Share of nontargets accepted, falling from 1 to 0."""
        return self.false_accepts / self.nontargets

    def eer(self) -> EqualErrorRate:
        """Equal error rate, linear between neighbouring points of the curve."""
        # In counts, so that equality is exact; the difference rises at every step.
        difference = self.misses * self.nontargets - self.false_accepts * self.targets
        after = int(np.searchsorted(difference, 0))
        before = after - 1
        below, above = float(self.values[before]), float(self.values[min(after, len(self.values) - 1)])
        if difference[after] == 0:
            middle = below + (above - below) / 2
            return EqualErrorRate(float(self.miss_rates[after]), middle if middle > below else above)
        share = -difference[before] / (difference[after] - difference[before])
        misses = self.misses[before] + share * (self.misses[after] - self.misses[before])
        return EqualErrorRate(float(misses / self.targets), below)

    def min_dcf(self, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
        """Least detection cost over all thresholds, over that of the better of "accept all" and "reject all"."""
        if not (0 < p_target < 1 and 0 < c_miss < np.inf and 0 < c_fa < np.inf):
            raise ConfigError(
                "minDCF", f"p_target {p_target}, c_miss {c_miss}, c_fa {c_fa}", "0 < p_target < 1 and costs > 0"
            )
        miss, accept = c_miss * p_target, c_fa * (1 - p_target)
        costs = miss * self.miss_rates + accept * self.false_accept_rates
        return float(costs.min() / min(miss, accept))


@dataclass(frozen=True)
class VerificationMetrics:
    """What a set of scored, labelled trials shows.

    Attributes:
        eer: equal error rate in [0, 1].
        eer_threshold: score at which it is reached.
        min_dcf_001: normalised minimum detection cost at a target prior of 0.01, unit costs.
        min_dcf_005: the same at 0.05.
        targets: number of same-speaker trials.
        nontargets: number of different-speaker trials.
    """

    eer: float
    eer_threshold: float
    min_dcf_001: float
    min_dcf_005: float
    targets: int
    nontargets: int

    def to_table(self, name: str = "scores") -> str:
        """A table of one row."""
        return metrics_table({name: self})

    def to_json(self) -> str:
        """A JSON object with the attributes."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def metrics_table(named: Mapping[str, VerificationMetrics]) -> str:
    """Plain-text table, one row a system."""
    rows = [("scores", "EER %", "minDCF 0.01", "minDCF 0.05", "trials", "targets")]
    for name, metrics in named.items():
        costs = (f"{metrics.min_dcf_001:.4f}", f"{metrics.min_dcf_005:.4f}")
        counts = (str(metrics.targets + metrics.nontargets), str(metrics.targets))
        rows.append((name, f"{100 * metrics.eer:.3f}", *costs, *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(widths[0])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def error_curve(scores: npt.ArrayLike, labels: npt.ArrayLike, source: str = "scores") -> ErrorCurve:
    """Count errors at every threshold, in O(n log n).

    Args:
        scores: (trials,) higher says same speaker.
        labels: (trials,) true for same-speaker trials.
        source: file that error messages name.

    Raises:
        DataError: scores that are not finite, labels of another length, or trials of one kind only.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise DataError(source, f"scores {values.shape} for labels {truth.shape}", "each trial needs one of each")
    finite = np.isfinite(values)
    if not finite.all():
        raise DataError(
            source, f"{np.sum(~finite)} of {len(values)} scores are NaN or infinite", "look for broken embeddings"
        )
    targets = int(truth.sum())
    nontargets = len(truth) - targets
    if not targets or not nontargets:
        raise DataError(
            source, f"has {targets} target and {nontargets} nontarget trials", "error rates need both; check the labels"
        )
    order = np.argsort(values)
    values = values[order]
    last = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)  # of each run of ties
    rejected_targets = np.cumsum(truth[order], dtype=np.int64)[last]
    misses = np.concatenate(([0], rejected_targets))
    rejected = np.concatenate(([0], last + 1))
    return ErrorCurve(values[last], misses, nontargets - (rejected - misses), targets, nontargets)


def eer(scores: npt.ArrayLike, labels: npt.ArrayLike) -> EqualErrorRate:
    """Equal error rate of scores (trials,) and labels (trials,), see :class:`ErrorCurve`. A constant scorer has 0.5.

    Raises:
        DataError: as :func:`error_curve`.
    """
    return error_curve(scores, labels).eer()


def min_dcf(
    scores: npt.ArrayLike, labels: npt.ArrayLike, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Normalised minimum detection cost (NIST SRE) of scores (trials,) and labels (trials,), in [0, 1].

    Raises:
        DataError: as :func:`error_curve`.
        ConfigError: a prior outside (0, 1), or a cost that is not positive.
    """
    return error_curve(scores, labels).min_dcf(p_target, c_miss, c_fa)


def labelled_curve(scores: Scores) -> ErrorCurve:
    """Error curve of scored trials.

    Raises:
        DataError: the trials have no labels, or as :func:`error_curve`.
    """
    if scores.trials.labels is None:
        raise DataError(scores.trials.source, "has no labels", "score trials that end in target|nontarget")
    return error_curve(scores.scores, scores.trials.labels, scores.trials.source)


def evaluate(scores: Scores) -> VerificationMetrics:
    """EER and minDCF of scored, labelled trials.

    Raises:
        DataError: as :func:`labelled_curve`.
    """
    curve = labelled_curve(scores)
    equal = curve.eer()
    return VerificationMetrics(
        equal.value, equal.threshold, curve.min_dcf(0.01), curve.min_dcf(0.05), curve.targets, curve.nontargets
    )
