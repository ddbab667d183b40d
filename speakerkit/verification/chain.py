"""Processing of embeddings before a back-end, as a chain: ``mean-subtract | whiten | lda 128 | length-norm``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.speakers import SpeakerStatistics
from speakerkit.verification.vectors import Floats, length_normalised, rank, require_directions

STEPS = ("mean-subtract", "whiten", "lda", "length-norm")
NOTHING = "none"  # the chain without steps


@dataclass(frozen=True, eq=False)
class Step:
    """One fitted step: subtract ``mean``, multiply by ``matrix``, or scale to a length.

    Attributes:
        name: one of ``STEPS``.
        mean: (dim,) subtracted first, where there is one.
        matrix: (out, dim) multiplied then, where there is one.
    """

    name: str
    mean: Floats | None = None
    matrix: Floats | None = None

    def __str__(self) -> str:
        return f"lda {len(self.matrix)}" if self.name == "lda" and self.matrix is not None else self.name

    def apply(self, vectors: Floats) -> Floats:
        """(rows, dim) to (rows, out). Rows of length zero stay zero under ``length-norm``."""
        if self.mean is not None:
            vectors = vectors - self.mean
        if self.matrix is not None:
            vectors = vectors @ self.matrix.T
        return length_normalised(vectors) if self.name == "length-norm" else vectors


@dataclass(frozen=True, eq=False)
class Chain:
    """Fitted steps, applied from left to right.

    Attributes:
        steps: the steps; none leaves embeddings as they are.
    """

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return " | ".join(map(str, self.steps)) or NOTHING

    def apply(self, vectors: npt.ArrayLike, names: Sequence[str] | None = None, source: str = "embeddings") -> Floats:
        """Process rows (rows, dim) in float64.

        Args:
            vectors: embeddings.
            names: what error messages call the rows.
            source: the file that they name.

        Raises:
            DataError: rows of another dimension than the chain was fitted on, NaN, or a row that has no direction
                left where its length is to be normalised.
        """
        rows = np.asarray(vectors, dtype=np.float64)
        for step in self.steps:
            _check_width(step, rows, source)
            if step.name == "length-norm":
                require_directions(rows, names, source)
            rows = step.apply(rows)
        return rows

    def recentred(self, vectors: npt.ArrayLike) -> Chain:
        """The same chain with the means of ``mean-subtract`` taken of other embeddings (rows, dim), as Kaldi's recipes
        do for a new domain; every other step stays."""
        rows = np.asarray(vectors, dtype=np.float64)
        steps = []
        for step in self.steps:
            steps.append(replace(step, mean=rows.mean(axis=0)) if step.name == "mean-subtract" else step)
            rows = steps[-1].apply(rows)
        return Chain(tuple(steps))

    def tensors(self) -> dict[str, Floats]:
        """Arrays of the steps by name, ``0.mean`` and so on."""
        return {
            f"{number}.{name}": array
            for number, step in enumerate(self.steps)
            for name, array in (("mean", step.mean), ("matrix", step.matrix))
            if array is not None
        }


def parse_chain(text: str) -> tuple[tuple[str, int | None], ...]:
    """Names and sizes of the steps in ``mean-subtract | whiten | lda 128 | length-norm``; ``none`` or "" has none.

    Raises:
        ConfigError: an unknown step (suggests the nearest), a size that is missing, superfluous or not positive.
    """
    if text.strip() in ("", NOTHING):
        return ()
    return tuple(_parse_step(part, text) for part in text.split("|"))


def _parse_step(part: str, text: str) -> tuple[str, int | None]:
    name, *sizes = part.split() or [""]
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"steps are {', '.join(STEPS)}"
        raise ConfigError(f"chain {text!r}", f"has no step {name!r}", hint)
    if name != "lda":
        if sizes:
            raise ConfigError(f"chain {text!r}", f"{name} takes no size, not {' '.join(sizes)!r}", "leave it out")
        return name, None
    if len(sizes) != 1 or not (sizes[0].isascii() and sizes[0].isdigit()) or int(sizes[0][:9]) < 1:
        raise ConfigError(f"chain {text!r}", "lda needs the number of dimensions to keep", "write it as: lda 128")
    return name, int(sizes[0][:9])


def fit_chain(text: str, vectors: npt.ArrayLike, speakers: Sequence[str], source: str = "embeddings") -> Chain:
    """Fit the steps one after the other, each on what the earlier ones make of the embeddings.

    - ``mean-subtract``: mean of the rows.
    - ``whiten``: symmetric inverse root of the total covariance.
    - ``lda K``: the K directions with the largest ratio of variance between speakers to variance within, scaled to unit
      variance within (as Kaldi's ivector-compute-lda with a total covariance factor of 0).
    - ``length-norm``: to a length of sqrt(dim), as Kaldi's ivector-normalize-length.

    Args:
        text: see :func:`parse_chain`.
        vectors: embeddings (rows, dim).
        speakers: speaker of each row.
        source: file that error messages name.

    Raises:
        ConfigError: as :func:`parse_chain`, or an lda of more dimensions than the data allow.
        DataError: too few rows, covariances that cannot be inverted, rows without a direction.
    """
    steps: list[Step] = []
    rows = np.asarray(vectors, dtype=np.float64)
    for name, size in parse_chain(text):
        if name == "mean-subtract":
            step = Step(name, mean=rows.mean(axis=0))
        elif name == "whiten":
            step = Step(name, matrix=_whitening(rows, source))
        elif name == "lda":
            step = Step(name, matrix=_discriminants(rows, speakers, size or 0, source))
        else:
            step = Step(name)
        rows = Chain((step,)).apply(rows, source=source)
        steps.append(step)
    return Chain(tuple(steps))


def load_chain(text: str, tensors: Mapping[str, Floats]) -> Chain:
    """The chain that :meth:`Chain.tensors` and its text stand for.

    Raises:
        KeyError, ValueError: an array is missing, superfluous, or does not fit its neighbours.
        ConfigError: as :func:`parse_chain`.
    """
    steps = []
    used: set[str] = set()
    width: int | None = None
    for number, (name, size) in enumerate(parse_chain(text)):
        arrays = {part: tensors.get(f"{number}.{part}") for part in ("mean", "matrix")}
        used |= {f"{number}.{part}" for part, array in arrays.items() if array is not None}
        mean, matrix = arrays["mean"], arrays["matrix"]
        if (mean is None and name == "mean-subtract") or (matrix is None) != (name not in ("whiten", "lda")):
            raise KeyError(f"step {number} ({name}) lacks its arrays")
        if (mean is not None and mean.ndim != 1) or (matrix is not None and matrix.ndim != 2):
            raise ValueError(f"step {number} ({name}) has arrays of the wrong shape")
        widths = {width, *(array.shape[-1] for array in (mean, matrix) if array is not None)} - {None}
        if len(widths) > 1 or (matrix is not None and name == "lda" and len(matrix) != size):
            raise ValueError(f"step {number} ({name}) does not fit the one before it")
        width = len(matrix) if matrix is not None else next(iter(widths), None)
        steps.append(Step(name, mean, matrix))
    if used != tensors.keys():
        raise ValueError(f"{min(tensors.keys() - used)} belongs to no step")
    return Chain(tuple(steps))


def signed(rows: Floats) -> Floats:
    """Directions (rows, dim) with the largest component positive: eigenvectors have a sign by chance only."""
    largest = np.take_along_axis(rows, np.argmax(np.abs(rows), axis=1, keepdims=True), axis=1)
    return rows * np.where(largest < 0, -1.0, 1.0)


def _whitening(rows: Floats, source: str) -> Floats:
    variances, directions = np.linalg.eigh(np.cov(rows.T, bias=True).reshape(rows.shape[1], rows.shape[1]))
    shown = rank(variances, float(np.sum(rows**2) / len(rows)))
    if shown < rows.shape[1]:
        raise DataError(
            source,
            f"{len(rows)} embeddings vary in {shown} of {rows.shape[1]} directions only, which cannot be whitened",
            "leave whiten out, or take more embeddings",
        )
    return directions / np.sqrt(variances) @ directions.T


def _discriminants(rows: Floats, speakers: Sequence[str], size: int, source: str) -> Floats:
    statistics = SpeakerStatistics.of(rows, speakers, source=source)
    most = min(statistics.dim, len(statistics.counts) - 1)
    if size > most:
        raise ConfigError(
            f"lda {size}",
            f"asks for more than {statistics.dim} dimensions and {len(statistics.counts)} speakers allow",
            f"keep {most} at most",
        )
    statistics.require_full_rank()
    total = statistics.counts.sum()
    deviations = statistics.means - statistics.counts @ statistics.means / total
    between = (deviations.T * statistics.counts) @ deviations / total
    first = statistics.dim - size
    directions = eigh(between, statistics.scatter / total, subset_by_index=(first, statistics.dim - 1))[1]
    return signed(np.ascontiguousarray(directions.T[::-1]))


def _check_width(step: Step, rows: Floats, source: str) -> None:
    expected = next((array.shape[-1] for array in (step.mean, step.matrix) if array is not None), rows.shape[-1])
    if rows.ndim != 2 or rows.shape[-1] != expected:
        raise DataError(
            source, f"{step} expects {expected} values, not {rows.shape[-1]}", "use embeddings of the same model"
        )
