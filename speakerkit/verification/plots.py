"""Pictures of verification results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from speakerkit.errors import DataError, MissingExtraError
from speakerkit.files import atomic_path
from speakerkit.verification.metrics import ErrorCurve, labelled_curve
from speakerkit.verification.trials import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

# Rates in percent that an axis may begin with, and those that it may be marked with.
LOWEST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
MARKS = (*LOWEST, 10, 20, 30, 40, 60, 80, 90, 95, 98, 99)
OUTSIDE = -9.0  # probit beyond any axis
# Told apart with any kind of colour vision (Okabe and Ito 2008), and by dashes in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
INK, GRID = "#333333", "#E3E3E3"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "text.parse_math": False,
    "svg.hashsalt": "speakerkit",
    "svg.fonttype": "path",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def plot_det(named_scores: Mapping[str, Scores], path: str | Path, title: str = "") -> None:
    """Detection error trade-off: miss against false-accept rate on normal-deviate axes, with the EER marked.

    Gaussian scores give a straight line (Martin et al., "The DET curve in assessment of detection task performance",
    Eurospeech 1997). Zero, which has no place on such an axis, gets one below the lowest rate that the trials
    can tell.

    Args:
        named_scores: labelled scores of each system, by the name for the legend.
        path: ``.png`` or ``.svg``; written atomically, the same bytes for the same scores.
        title: text above the picture.

    Raises:
        DataError: nothing to draw, another suffix, or scores that have no error rates.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise DataError(path, "is neither .png nor .svg", "name the picture so")
    if not named_scores:
        raise DataError(path, "there are no scores to draw", "give at least one score file")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("DET plot", "train") from None
    curves = {name: labelled_curve(scores) for name, scores in named_scores.items()}
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(6.4, 6.4), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        floor = _draw_axes(axes, curves)
        axes.set_title(title or "Detection error trade-off", loc="left", fontsize=12, fontweight="bold", pad=12)
        for number, (name, curve) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            dashes = DASHES[number // len(COLOURS) % len(DASHES)]
            _draw_curve(axes, curve, name, floor, {"color": colour, "linestyle": dashes, "linewidth": 2})
        axes.legend(loc="upper right", frameon=True, framealpha=0.95, edgecolor=GRID, fancybox=False)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        with atomic_path(path) as temporary:
            figure.savefig(temporary, metadata=metadata)


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
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
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
    # Points nearer than a fifth of a pixel only make the file large.
    cell = np.round(np.stack([across, up]) * 500)
    keep = np.append(True, (cell[:, 1:] != cell[:, :-1]).any(axis=0))
    keep[-1] = True
    return across[keep], up[keep]


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
