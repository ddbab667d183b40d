"""Pictures in one style: the same bytes for the same input, on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from speakerkit.errors import DataError, MissingExtraError
from speakerkit.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Target = str | Path | TextIO

# Told apart with any kind of colour vision (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, GRID = "#333333", "#E3E3E3"
LEGEND: Any = {"frameon": True, "framealpha": 0.95, "edgecolor": GRID, "fancybox": False}
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


def require_matplotlib(what: str) -> None:
    """Raise MissingExtraError where ``what`` cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError(what, "train") from None


def require_picture(path: Target) -> None:
    """Raise DataError for a file that is neither ``.png`` nor ``.svg``."""
    if isinstance(path, str | Path) and Path(path).suffix.lower() not in (".png", ".svg"):
        raise DataError(path, "is neither .png nor .svg", "name the picture so")


@contextmanager
def styled(what: str) -> Iterator[None]:
    """matplotlib in our style, whatever the user's matplotlibrc says.

    Raises:
        MissingExtraError: it is not installed, so ``what`` cannot be drawn.
    """
    require_matplotlib(what)
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


@contextmanager
def canvas(path: Target, what: str, title: str, size: tuple[float, float] = (6.4, 6.4)) -> Iterator[Axes]:
    """Axes of a picture that is written when the block ends.

    Args:
        path: ``.png`` or ``.svg``, written atomically; or a text stream, which gets SVG.
        what: is drawn, for messages.
        title: text above it.
        size: inches.

    Raises:
        DataError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    require_picture(path)
    with styled(what):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        yield axes
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
        save(figure, path)


def save(figure: Figure, path: Target) -> None:
    """Write a picture, atomically, without the date and the program that made it."""
    if not isinstance(path, str | Path):
        figure.savefig(path, format="svg", metadata={"Date": None})
        return
    metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else {"Software": None}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata=metadata)
