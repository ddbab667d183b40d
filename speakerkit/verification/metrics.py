"""Error rates of verification: EER, detection costs, Cllr; exact in the presence of ties, in any order of trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.trials import Scores

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LARGEST = 1e100  # of a score: sums and products of such are finite


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


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and the errors made there.

    Attributes:
        threshold: accept from this score on.
        false_accepts: nontargets accepted.
        misses: targets rejected.
        far: false accepts over all nontargets.
        frr: misses over all targets.
    """

    threshold: float
    false_accepts: int
    misses: int
    far: float
    frr: float


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
            return EqualErrorRate(float(self.miss_rates[after]), _between(below, above))
        share = -difference[before] / (difference[after] - difference[before])
        misses = self.misses[before] + share * (self.misses[after] - self.misses[before])
        return EqualErrorRate(float(misses / self.targets), below)

    def min_dcf(self, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
        """Least detection cost over all thresholds, over that of the better of "accept all" and "reject all"."""
        miss, accept = _weights_of_errors(p_target, c_miss, c_fa)
        costs = miss * self.miss_rates + accept * self.false_accept_rates
        return float(costs.min() / min(miss, accept))

    def act_dcf(self, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
        """Detection cost at the Bayes threshold log(c_fa (1 - p) / (c_miss p)), normalised as :meth:`min_dcf`.

        For scores that are log-likelihood ratios (natural logarithm); what it is above minDCF is bad calibration.
        """
        miss, accept = _weights_of_errors(p_target, c_miss, c_fa)
        rejected = np.searchsorted(self.values, np.log(accept / miss))
        cost = miss * self.miss_rates[rejected] + accept * self.false_accept_rates[rejected]
        return float(cost / min(miss, accept))

    def cllr(self) -> float:
        """Cost of log-likelihood ratios (natural logarithm) over all thresholds, in bits; 1 for scores of zero.

        Brümmer and du Preez, "Application-independent evaluation of speaker detection" (2006).
        """
        targets, nontargets = self._trials_at()
        of_targets = targets @ np.logaddexp(0, -self.values) / self.targets
        of_nontargets = nontargets @ np.logaddexp(0, self.values) / self.nontargets
        return float((of_targets + of_nontargets) / (2 * np.log(2)))

    def min_cllr(self) -> float:
        """Cllr after the best rising map of the scores: what no calibration takes away.

        That map is given by the edges of the convex hull of the ROC, see :meth:`convex_hull`; Brümmer and du Preez
        (2006).
        """
        targets, nontargets = self.convex_hull()._trials_at()
        mixed = (targets > 0) & (nontargets > 0)  # groups of one kind only cost nothing
        hits, accepts = targets[mixed] / self.targets, nontargets[mixed] / self.nontargets
        return float((hits @ np.log1p(accepts / hits) + accepts @ np.log1p(hits / accepts)) / (2 * np.log(2)))

    def convex_hull(self) -> ErrorCurve:
        """The corners of the curve that are best at some prior; its ``values`` are the largest of each merged group.

        Scores are merged into groups by pool-adjacent-violators, so that the share of targets rises from group to
        group (Fawcett and Niculescu-Mizil, "PAV and the ROC convex hull", 2007). Exact: it compares counts.
        """
        targets, nontargets = self._trials_at()
        present = np.flatnonzero(targets + nontargets)  # replicates of a bootstrap lack some of the values
        ends = present[_pooled_ends(targets[present], nontargets[present])]
        corners = np.append(0, ends + 1)
        return ErrorCurve(
            self.values[ends], self.misses[corners], self.false_accepts[corners], self.targets, self.nontargets
        )

    def at_far(self, rate: float) -> OperatingPoint:
        """The lowest threshold that accepts at most this share of the nontargets."""
        return self._point(int(np.argmax(self.false_accept_rates <= _share(rate, "FAR"))))

    def at_frr(self, rate: float) -> OperatingPoint:
        """The highest threshold that rejects at most this share of the targets."""
        return self._point(int(np.searchsorted(self.miss_rates, _share(rate, "FRR"), side="right")) - 1)

    def _point(self, rejected: int) -> OperatingPoint:
        """Where the first ``rejected`` values are rejected: half-way to the next where there is one on either side."""
        if 0 < rejected < len(self.values):
            threshold = _between(float(self.values[rejected - 1]), float(self.values[rejected]))
        else:
            threshold = float(self.values[0]) if not rejected else float(np.nextafter(self.values[-1], np.inf))
        accepted, missed = int(self.false_accepts[rejected]), int(self.misses[rejected])
        return OperatingPoint(threshold, accepted, missed, accepted / self.nontargets, missed / self.targets)

    def _trials_at(self) -> tuple[Counts, Counts]:
        """Targets and nontargets (distinct,) of each value."""
        return np.diff(self.misses), -np.diff(self.false_accepts)


def _weights_of_errors(p_target: float, c_miss: float, c_fa: float) -> tuple[float, float]:
    """What a miss rate and a false-accept rate of one would cost."""
    miss, accept = c_miss * p_target, c_fa * (1 - p_target)
    if not (0 < p_target < 1 and 0 < miss < np.inf and 0 < accept < np.inf):
        raise ConfigError("DCF", f"p_target {p_target}, c_miss {c_miss}, c_fa {c_fa}", "0 < p_target < 1 and costs > 0")
    return miss, accept


def _between(below: float, above: float) -> float:
    """Half-way between two neighbouring scores; the upper where no float lies between them."""
    middle = below + (above - below) / 2
    return middle if middle > below else above


def _share(rate: float, name: str) -> float:
    if not 0 <= rate < 1:
        raise ConfigError(name, f"of {rate} was asked for", "0.01 is one per cent; below 1")
    return rate


def _pooled_ends(targets: Counts, nontargets: Counts) -> npt.NDArray[np.intp]:
    """Last index of each group that pool-adjacent-violators makes of the rising scores.

    Neighbours whose share of targets does not rise end in one group whatever is merged first. So all falling
    stretches are merged at once, over and over; where that gains little a stack merges the rest in one pass.
    """
    ends = np.arange(len(targets))
    while True:
        rising = targets[:-1] * nontargets[1:] < targets[1:] * nontargets[:-1]
        starts = np.append(0, np.flatnonzero(rising) + 1)
        if len(starts) == len(ends):
            return ends
        few = len(ends) - len(starts) < len(ends) // 64
        ends = ends[np.append(starts[1:], len(ends)) - 1]
        targets, nontargets = np.add.reduceat(targets, starts), np.add.reduceat(nontargets, starts)
        if few:
            return _pooled_by_stack(targets, nontargets, ends)


def _pooled_by_stack(targets: Counts, nontargets: Counts, ends: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The same in one pass, however the scores lie."""
    groups: list[tuple[int, int, int]] = []
    for target, nontarget, end in zip(targets.tolist(), nontargets.tolist(), ends.tolist(), strict=True):
        while groups and groups[-1][0] * nontarget >= target * groups[-1][1]:
            before = groups.pop()
            target, nontarget = target + before[0], nontarget + before[1]
        groups.append((target, nontarget, end))
    return np.array([end for _, _, end in groups])


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
        min_cllr: Cllr in bits after the best rising map; ``None`` in results that were kept without it.
        act_dcf_001: normalised detection cost at the Bayes threshold for a prior of 0.01; ``None``, as the two that
            follow, where the scores are no log-likelihood ratios.
        act_dcf_005: the same at 0.05.
        cllr: Cllr in bits.
    """

    eer: float
    eer_threshold: float
    min_dcf_001: float
    min_dcf_005: float
    targets: int
    nontargets: int
    min_cllr: float | None = None
    act_dcf_001: float | None = None
    act_dcf_005: float | None = None
    cllr: float | None = None

    def to_table(self, name: str = "scores") -> str:
        """A table of one row."""
        return metrics_table({name: self})

    def to_json(self) -> str:
        """A JSON object with the attributes."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


# Attributes that are measured rates and costs: heading, factor, decimals. In the order of the table.
FIGURES = {
    "eer": ("EER %", 100, 3),
    "min_dcf_001": ("minDCF 0.01", 1, 4),
    "act_dcf_001": ("actDCF 0.01", 1, 4),
    "min_dcf_005": ("minDCF 0.05", 1, 4),
    "act_dcf_005": ("actDCF 0.05", 1, 4),
    "min_cllr": ("minCllr", 1, 4),
    "cllr": ("Cllr", 1, 4),
}


def metrics_table(named: Mapping[str, VerificationMetrics]) -> str:
    """Plain-text table, one row a system; a figure that no system has gets no column."""
    shown = {
        name: figure
        for name, figure in FIGURES.items()
        if any(getattr(metrics, name) is not None for metrics in named.values())
    }
    rows = [["scores", *(heading for heading, _, _ in shown.values()), "trials", "targets"]]
    for system, metrics in named.items():
        values = {name: getattr(metrics, name) for name in shown}
        cells = ["-" if value is None else figure_text(name, value) for name, value in values.items()]
        rows.append([system, *cells, str(metrics.targets + metrics.nontargets), str(metrics.targets)])
    return text_table(rows)


def figure_text(figure: str, value: float) -> str:
    """A value of one of :data:`FIGURES` in the units and with the decimals of the table."""
    _, factor, decimals = FIGURES[figure]
    return f"{factor * value:.{decimals}f}"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text set under one another: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        rest = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *rest]))
    return "\n".join(lines)


def error_curve(scores: npt.ArrayLike, labels: npt.ArrayLike, source: str = "scores") -> ErrorCurve:
    """Count errors at every threshold, in O(n log n).

    Args:
        scores: (trials,) higher says same speaker.
        labels: (trials,) true for same-speaker trials.
        source: file that error messages name.

    Raises:
        DataError: scores that are not finite or beyond 1e100, labels of another length, or trials of one kind only.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise DataError(source, f"scores {values.shape} for labels {truth.shape}", "each trial needs one of each")
    wild = ~(np.abs(values) <= LARGEST)
    if wild.any():
        fault = f"{np.sum(wild)} of {len(values)} scores are NaN or beyond {LARGEST:g}"
        raise DataError(source, fault, "look for broken embeddings")
    targets = int(truth.sum())
    nontargets = len(truth) - targets
    if not targets or not nontargets:
        raise DataError(
            source, f"has {targets} target and {nontargets} nontarget trials", "error rates need both; check the labels"
        )
    of_targets = np.sort(values[truth])
    values = np.sort(values)  # twice as fast as to sort once with the labels
    last = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)  # of each run of ties
    values = values[last]
    misses = np.append(0, np.searchsorted(of_targets, values, side="right"))
    rejected = np.append(0, last + 1)
    return ErrorCurve(values, misses, nontargets - (rejected - misses), targets, nontargets)


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


def act_dcf(
    scores: npt.ArrayLike, labels: npt.ArrayLike, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Normalised detection cost of log-likelihood ratios (trials,) at the Bayes threshold; may exceed 1.

    Raises:
        DataError: as :func:`error_curve`.
        ConfigError: a prior outside (0, 1), or a cost that is not positive.
    """
    return error_curve(scores, labels).act_dcf(p_target, c_miss, c_fa)


def cllr(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Cllr in bits of log-likelihood ratios (trials,), natural logarithm.

    Raises:
        DataError: as :func:`error_curve`.
    """
    return error_curve(scores, labels).cllr()


def min_cllr(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Cllr in bits of scores (trials,) after the best rising map, in [0, 1].

    Raises:
        DataError: as :func:`error_curve`.
    """
    return error_curve(scores, labels).min_cllr()


def labelled_curve(scores: Scores) -> ErrorCurve:
    """Error curve of scored trials.

    Raises:
        DataError: the trials have no labels, or as :func:`error_curve`.
    """
    if scores.trials.labels is None:
        raise DataError(scores.trials.source, "has no labels", "score trials that end in target|nontarget")
    return error_curve(scores.scores, scores.trials.labels, scores.trials.source)


def evaluate(scores: Scores, *, llr: bool = False) -> VerificationMetrics:
    """Error rates and costs of scored, labelled trials.

    Args:
        scores: what was measured.
        llr: the scores are log-likelihood ratios (natural logarithm): actDCF and Cllr are measured too.

    Raises:
        DataError: as :func:`labelled_curve`.
    """
    return curve_metrics(labelled_curve(scores), llr=llr)


def curve_metrics(curve: ErrorCurve, *, llr: bool = False) -> VerificationMetrics:
    """What :func:`evaluate` says of the trials that a curve counts."""
    equal = curve.eer()
    return VerificationMetrics(
        equal.value,
        equal.threshold,
        curve.min_dcf(0.01),
        curve.min_dcf(0.05),
        curve.targets,
        curve.nontargets,
        curve.min_cllr(),
        curve.act_dcf(0.01) if llr else None,
        curve.act_dcf(0.05) if llr else None,
        curve.cllr() if llr else None,
    )
