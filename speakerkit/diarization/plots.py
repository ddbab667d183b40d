"""A picture of who speaks when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speakerkit.diarization.turns import Diarization
from speakerkit.errors import DataError, MissingExtraError
from speakerkit.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart with any kind of colour vision (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, GRID = "#333333", "#E3E3E3"
PALEST = 0.35  # opacity of a turn that is not sure at all
SUFFIXES = (".png", ".svg")


def plot_turns(diarization: Diarization, path: str | Path | None = None) -> Figure:
    """A timeline, a row a speaker in order of appearance; the less sure a turn, the paler.

    Args:
        diarization: what to draw.
        path: ``.png`` or ``.svg`` to write too, atomically; the same bytes for the same turns.

    Raises:
        DataError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise DataError(path, "is neither .png nor .svg", "name the picture so")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a picture of turns", "train") from None
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        mpl.rcParams.update({"text.parse_math": False, "svg.hashsalt": "speakerkit", "text.color": INK})
        labels = diarization.labels
        figure = Figure(figsize=(10.0, 1.2 + 0.35 * max(1, len(labels))), dpi=120, layout="constrained")
        _draw(figure, diarization)
        if path is not None:
            metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else {"Software": None}
            with atomic_path(path) as temporary:
                figure.savefig(temporary, metadata=metadata)
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
