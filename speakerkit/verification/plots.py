"""Pictures of verification results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri

from speakerkit.errors import ConfigError, DataError
from speakerkit.pictures import COLOURS, INK, LEGEND, Target, canvas, require_picture
from speakerkit.verification.metrics import ErrorCurve, labelled_curve
from speakerkit.verification.trials import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
# Rates in percent that an axis may begin with, and those that it may be marked with.
LOWEST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
MARKS = (*LOWEST, 10, 20, 30, 40, 60, 80, 90, 95, 98, 99)
OUTSIDE = -9.0  # probit beyond any axis
DASHES = ("-", "--", "-.", ":")  # tell systems apart in grey
SHORT: Any = {"fontsize": 8, "columnspacing": 1.0, "handlelength": 1.4}  # for long entries in one line


def plot_det(named_scores: Mapping[str, Scores], path: Target, title: str = "") -> None:
    """Detection error trade-off: miss against false-accept rate on normal-deviate axes, with the EER marked.

    Gaussian scores give a straight line (Martin et al., "The DET curve in assessment of detection task performance",
    Eurospeech 1997). Zero, which has no place on such an axis, gets one below the lowest rate that the trials
    can tell.

    Args:
        named_scores: labelled scores of each system, by the name for the legend.
        path: ``.png`` or ``.svg``, written atomically; or a text stream, which gets SVG. The same bytes for the same
            scores.
        title: text above the picture.

    Raises:
        DataError: nothing to draw, another suffix, or scores that have no error rates.
        MissingExtraError: matplotlib is not installed.
    """
    curves = {name: labelled_curve(scores) for name, scores in named_scores.items()}
    with _canvas(path, named_scores, "DET plot", title or "Detection error trade-off") as axes:
        floor = _draw_axes(axes, curves)
        for (name, curve), line in zip(curves.items(), _lines(), strict=False):
            _draw_curve(axes, curve, name, floor, line)
        axes.legend(loc="upper right", **LEGEND)


def plot_roc(named_scores: Mapping[str, Scores], path: Target, title: str = "") -> None:
    """Receiver operating characteristic: targets accepted against nontargets accepted, with the area under each curve.

    Args:
        named_scores: as for :func:`plot_det`; so are ``path`` and ``title``.
        path: where the picture goes.
        title: text above it.

    Raises:
        DataError: as :func:`plot_det`.
        MissingExtraError: matplotlib is not installed.
    """
    curves = {name: labelled_curve(scores) for name, scores in named_scores.items()}
    with _canvas(path, named_scores, "ROC plot", title or "Receiver operating characteristic") as axes:
        axes.plot([0, 100], [0, 100], color="#B0B0B0", linewidth=0.9, linestyle=(0, (4, 4)), zorder=1)
        for (name, curve), line in zip(curves.items(), _lines(), strict=False):
            across, up = _thinned(100 * curve.false_accept_rates[::-1], 100 * (1 - curve.miss_rates[::-1]), 10)
            axes.plot(across, up, **line, label=f" {name}   area {area_under(curve):.4f}", clip_on=False)
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.set(xlabel="False-accept rate (%)", ylabel="Targets accepted (%)")
        axes.legend(loc="lower right", **LEGEND)


def plot_histogram(scores: Scores, path: Target, title: str = "", threshold: float | None = None) -> None:
    """Density of the scores of targets and of nontargets, each with area one.

    Args:
        scores: labelled scores of one system.
        path: as for :func:`plot_det`; so is ``title``.
        title: text above it.
        threshold: where to draw a line; ``None`` for the score at the EER.

    Raises:
        DataError: as :func:`plot_det`.
        MissingExtraError: matplotlib is not installed.
    """
    curve = labelled_curve(scores)
    labels = np.asarray(scores.trials.labels)
    edges = _bin_edges(scores.scores)
    with _canvas(path, {"": scores}, "histogram", title or "Scores") as axes:
        for kind, name, colour in ((False, "nontarget", COLOURS[1]), (True, "target", COLOURS[0])):
            of_kind = scores.scores[labels == kind]
            density = np.histogram(of_kind, edges)[0] / (len(of_kind) * np.diff(edges))
            label = f"{len(of_kind)} {name} trials"
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.35, zorder=2)
            axes.stairs(density, edges, color=colour, linewidth=1.6, label=label, zorder=3)
        equal = curve.eer()
        at = equal.threshold if threshold is None else threshold
        what = f"EER {100 * equal.value:.2f} % at" if threshold is None else "threshold"
        axes.axvline(at, color=INK, linewidth=1.2, linestyle="--", label=f"{what} {at:.4g}", zorder=4)
        axes.set(xlabel="Score", ylabel="Density", xlim=(edges[0], edges[-1]))
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3, borderaxespad=0, **SHORT, **LEGEND)


def plot_reliability(
    named_scores: Mapping[str, Scores], path: Target, title: str = "", p_target: float = 0.5, groups: int = 15
) -> None:
    """Share of targets that is found against the share that log-likelihood ratios promise.

    Targets and nontargets are weighted so that targets have the prior ``p_target``; sorted by score, trials are cut
    into groups of equal weight, ties together. Calibrated scores lie on the diagonal. (DeGroot and Fienberg,
    "The comparison and evaluation of forecasters", 1983.)

    Args:
        named_scores: labelled log-likelihood ratios (natural logarithm) of each system.
        path: as for :func:`plot_det`; so is ``title``.
        title: text above it.
        p_target: prior at which ratios become probabilities.
        groups: at most so many points a system.

    Raises:
        DataError: as :func:`plot_det`.
        MissingExtraError: matplotlib is not installed.
    """
    curves = {name: labelled_curve(scores) for name, scores in named_scores.items()}
    with _canvas(path, named_scores, "reliability plot", title or "Reliability") as axes:
        axes.plot([0, 1], [0, 1], color="#B0B0B0", linewidth=0.9, linestyle=(0, (4, 4)), zorder=1)
        for (name, curve), line in zip(curves.items(), _lines(), strict=False):
            promised, found = reliability(curve, p_target, groups)
            label = f" {name}   Cllr {curve.cllr():.3g}, at best {curve.min_cllr():.3g}"
            axes.plot(promised, found, **line, marker="o", markersize=5, label=label, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set(xlabel=f"Promised probability of a target (prior {p_target:g})", ylabel="Share of targets found")
        axes.legend(loc="best", **LEGEND)


def area_under(curve: ErrorCurve) -> float:
    """Area under the ROC: the chance that a target scores above a nontarget, ties counting one half."""
    accepted = 1 - curve.miss_rates
    return float(-np.diff(curve.false_accept_rates) @ (accepted[1:] + accepted[:-1]) / 2)


def reliability(curve: ErrorCurve, p_target: float = 0.5, groups: int = 15) -> tuple[Floats, Floats]:
    """Mean promised probability and found share of targets (groups,) of groups of trials, as the plot shows them."""
    if not (0 < p_target < 1 and groups >= 1):
        raise ConfigError("reliability", f"prior {p_target}, {groups} groups", "0 < prior < 1, and a group or more")
    targets = np.diff(curve.misses) * p_target / curve.targets
    nontargets = -np.diff(curve.false_accepts) * (1 - p_target) / curve.nontargets
    promised = expit(curve.values + logit(p_target))
    weights = targets + nontargets
    group = np.floor((np.cumsum(weights) - weights / 2) * groups)  # by the middle of each value's weight
    starts = np.append(0, np.flatnonzero(np.diff(group)) + 1)
    in_group = np.add.reduceat(weights, starts)
    return np.add.reduceat(promised * weights, starts) / in_group, np.add.reduceat(targets, starts) / in_group


@contextmanager
def _canvas(path: Target, named: Mapping[str, Scores], what: str, title: str) -> Iterator[Axes]:
    """Axes of a picture of scores."""
    require_picture(path)
    if not named:
        raise DataError(what, "there are no scores to draw", "give at least one score file")
    with canvas(path, what, title) as axes:
        yield axes


def _lines() -> Iterator[dict[str, Any]]:
    """Colour and dashes of one system after another."""
    for dashes in cycle(DASHES):
        for colour in COLOURS:
            yield {"color": colour, "linestyle": dashes, "linewidth": 2}


def _bin_edges(values: Floats) -> Floats:
    """Edges of at most 100 bins of equal width: as many as the square root of the number of scores."""
    low, high = float(values.min()), float(values.max())
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-300):  # one value only
        room = max(0.5, 0.1 * abs(low))
        low, high = low - room, high + room
    return np.linspace(low, high, 1 + min(100, max(10, math.isqrt(len(values)))))


def _thinned(across: Floats, up: Floats, cells: float) -> tuple[Floats, Floats]:
    """A curve without the points that lie in one cell with the point before: they only make the file large."""
    cell = np.round(np.stack([across, up]) * cells)
    keep = np.append(True, (cell[:, 1:] != cell[:, :-1]).any(axis=0))
    keep[-1] = True
    return across[keep], up[keep]


def _draw_axes(axes: Axes, curves: Mapping[str, ErrorCurve]) -> float:
    """Draw the axes; returns the probit at which the rate zero is drawn."""
    low, high = _limits(curves)
    first, last = ndtri(low / 100), ndtri(high / 100)
    room = 0.07 * (last - first)
    marks = [(float(ndtri(mark / 100)), f"{mark:g}") for mark in MARKS if low <= mark <= high]
    floor = OUTSIDE
    if low <= _one_error(curves):
        floor = float(first - room)
        marks.insert(0, (floor, "0"))
    shown = marks[:1]
    for mark in marks[1:]:
        if mark[0] - shown[-1][0] > 0.85 * room:
            shown.append(mark)
    span = (shown[0][0] - room / 2, float(last + room / 2))
    axes.set_xticks([place for place, _ in shown], [label for _, label in shown])
    axes.set_yticks([place for place, _ in shown], [label for _, label in shown])
    axes.set(xlim=span, ylim=span, aspect="equal", xlabel="False-accept rate (%)", ylabel="Miss rate (%)")
    axes.plot(span, span, color="#B0B0B0", linewidth=0.9, linestyle=(0, (4, 4)), zorder=1)
    return floor


def _draw_curve(axes: Axes, curve: ErrorCurve, name: str, floor: float, line: dict[str, Any]) -> None:
    equal = curve.eer().value
    dot: dict[str, Any] = {"marker": "o", "markersize": 8, "markeredgecolor": "white"}
    place = np.clip(_probit(np.array([equal]), floor), *axes.get_xlim())
    axes.plot(*_path(curve, floor), **line, solid_joinstyle="round", zorder=2)
    axes.plot(place, place, color=line["color"], **dot, zorder=3, clip_on=False)
    axes.plot([], [], **line, **dot, label=f" {name}   EER {100 * equal:.2f} %")  # "_" in front would hide it


def _path(curve: ErrorCurve, floor: float) -> tuple[Floats, Floats]:
    """Probits of false-accept and miss rates along the curve; straight in rates between its points, as the EER is."""
    steps = np.arange(len(curve.misses), dtype=np.float64)
    dense = np.linspace(0, steps[-1], 1 + int(steps[-1]) * max(1, 4000 // len(steps)))
    across = _probit(np.interp(dense, steps, curve.false_accept_rates), floor)
    up = _probit(np.interp(dense, steps, curve.miss_rates), floor)
    return _thinned(across, up, 500)  # a fifth of a pixel


def _probit(rates: Floats, floor: float) -> Floats:
    return np.clip(ndtri(rates), floor, -OUTSIDE)


def _limits(curves: Mapping[str, ErrorCurve]) -> tuple[float, float]:
    """Lowest and highest mark in percent, so that each EER and the lowest rates that the trials can tell are seen."""
    rates = [100 * curve.eer().value for curve in curves.values()]
    wanted = min([max(_one_error(curves), 0.01), *(rate / 4 for rate in rates if rate > 0)])
    low = max((mark for mark in LOWEST if mark <= wanted), default=LOWEST[0])
    worst = max(rates)
    return low, 40 if worst < 20 else 60 if worst < 45 else 99


def _one_error(curves: Mapping[str, ErrorCurve]) -> float:
    """The lowest rate in percent above zero."""
    return min(100 / max(curve.targets, curve.nontargets) for curve in curves.values())
