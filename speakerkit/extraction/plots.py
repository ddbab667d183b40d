"""Pictures of extraction's scores."""

from __future__ import annotations

from typing import Any

from speakerkit.extraction.scores import FIGURES, ExtractionScore, ItemScore
from speakerkit.pictures import COLOURS, GRID, INK, LEGEND, Target, canvas

SHOWN = 5000  # points of a scatter plot, at most: more only make the file large


def plot_improvements(score: ExtractionScore, path: Target, figure: str = "si_sdr", title: str = "") -> None:
    """Box plots of a figure's improvement: over all items, and of each group; the number behind a name counts items.

    A box holds the middle half, its line is the median, its dot the mean; whiskers reach to the last item within
    1.5 heights of the box (Tukey, 1977), items beyond are circles.

    Args:
        score: of items that have the figure.
        path: ``.png`` or ``.svg``, written atomically; or a text stream, which gets SVG.
        figure: of :data:`speakerkit.extraction.scores.FIGURES`.
        title: text above the picture.

    Raises:
        DataError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    groups = {"all": score.items, **score.groups()}
    gains = {name: _improvements(items, figure) for name, items in groups.items()}
    rows = {f"{name} ({len(values)})": values for name, values in gains.items() if values}
    size = (7.5, 1.4 + 0.36 * max(2, len(rows)))
    with canvas(path, "box plots", title or f"Improvement of {FIGURES[figure].heading}", size) as axes:
        line = {"color": INK, "linewidth": 1.1}
        axes.boxplot(
            list(rows.values()),
            orientation="horizontal",
            widths=0.6,
            patch_artist=True,
            showmeans=True,
            boxprops={"facecolor": COLOURS[5], "edgecolor": INK, "linewidth": 1.1},
            medianprops={**line, "linewidth": 2},
            whiskerprops=line,
            capprops=line,
            flierprops={"marker": "o", "markersize": 3, "markeredgecolor": INK, "alpha": 0.6},
            meanprops={"marker": "o", "markersize": 6, "markerfacecolor": COLOURS[1], "markeredgecolor": "white"},
        )
        axes.set_yticks(range(1, len(rows) + 1), list(rows))
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=1.0, linestyle="--", zorder=1)
        axes.set_xlabel(f"Improvement of {FIGURES[figure].heading}")


def plot_before_after(score: ExtractionScore, path: Target, figure: str = "si_sdr", title: str = "") -> None:
    """A figure of each estimate against that of its mixture, swapped ones marked; above the diagonal it is better.

    Args:
        score: as for :func:`plot_improvements`; so are the others.
        path: where the picture goes.
        figure: which.
        title: text above it.

    Raises:
        DataError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    measured = [item for item in score.items if figure in item.measured]
    shown = measured[:: max(1, -(-len(measured) // SHOWN))]
    with canvas(path, "scatter plot", title or f"{FIGURES[figure].heading} before and after", (6.4, 5.0)) as axes:
        kinds = ((False, "extracted", COLOURS[0], "o"), (True, "nearer to another voice", COLOURS[1], "X"))
        for swapped, label, colour, marker in kinds:
            items = [item for item in shown if bool(item.swapped) == swapped]
            if not items:
                continue
            before, after = (
                [getattr(item.measured[figure], side) for item in items] for side in ("mixture", "estimate")
            )
            style: Any = {"alpha": 0.7, "edgecolors": "white", "linewidths": 0.4}
            axes.scatter(before, after, s=28, color=colour, marker=marker, label=f"{label} ({len(items)})", **style)
        axes.axline((0, 0), slope=1, color=GRID, linewidth=1.5, zorder=1)
        axes.set(xlabel=f"Mixture: {FIGURES[figure].heading}", ylabel=f"Estimate: {FIGURES[figure].heading}")
        if shown:
            axes.legend(loc="best", **LEGEND)


def _improvements(items: tuple[ItemScore, ...], figure: str) -> list[float]:
    found = [item.measured[figure].improvement for item in items if figure in item.measured]
    return [value for value in found if value is not None]
