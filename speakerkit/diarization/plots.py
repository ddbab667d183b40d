"""A picture of who speaks when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speakerkit.diarization.turns import Diarization
from speakerkit.pictures import COLOURS, GRID, INK, require_picture, save, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALEST = 0.35  # opacity of a turn that is not sure at all


def plot_turns(diarization: Diarization, path: str | Path | None = None) -> Figure:
    """A timeline, a row a speaker in order of appearance; the less sure a turn, the paler.

    Args:
        diarization: what to draw.
        path: ``.png`` or ``.svg`` to write too, atomically; the same bytes for the same turns.

    Raises:
        DataError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    if path is not None:
        require_picture(path)
    with styled("a picture of turns"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 1.2 + 0.35 * max(1, len(diarization.labels))), dpi=120, layout="constrained")
        _draw(figure, diarization)
        if path is not None:
            save(figure, path)
    return figure


def _draw(figure: Figure, diarization: Diarization) -> None:
    axes = figure.add_subplot()
    labels = diarization.labels
    for row, label in enumerate(labels):
        turns = [turn for turn in diarization.turns if turn.speaker == label]
        sure = [1.0 if turn.confidence is None else turn.confidence for turn in turns]
        axes.broken_barh(
            [(turn.start, turn.seconds) for turn in turns],
            (row - 0.35, 0.7),
            facecolors=COLOURS[row % len(COLOURS)],
            alpha=[PALEST + (1 - PALEST) * value for value in sure],
        )
    end = diarization.duration or max((turn.end for turn in diarization.turns), default=1.0)
    axes.set_xlim(0.0, end)
    axes.set_ylim(max(1, len(labels)) - 0.5, -0.5)  # the first speaker on top
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("seconds")
    axes.set_title(diarization.recording, loc="left", fontsize=11, fontweight="bold")
