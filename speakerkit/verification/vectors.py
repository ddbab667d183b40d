"""Arithmetic on rows of embeddings that the ways to score share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from speakerkit.errors import DataError

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

# Of the mean square of a set's lengths; below it, what float32 embeddings show in a direction is rounding.
SMALLEST_VARIANCE = 1e-12
# Pairs whose two rows stay in the cache of a core while they are multiplied.
PAIRS_AT_ONCE = 512


def unit(vectors: npt.ArrayLike) -> Floats:
    """Rows (rows, dim) of length one; rows of zeros stay zero."""
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def length_normalised(vectors: Floats) -> Floats:
    """Rows (rows, dim) scaled to a length of sqrt(dim), as Kaldi's; rows of zeros stay zero."""
    return unit(vectors) * np.sqrt(vectors.shape[-1])


def require_directions(rows: Floats, names: Sequence[str] | None, source: str) -> None:
    """Refuse rows (rows, dim) of zeros where their length is to be normalised.

    Raises:
        DataError: names the first (or its number, without ``names``) and counts them.
    """
    bad = np.logical_not(rows.any(axis=1))
    if bad.any():
        number = int(np.argmax(bad))
        name = f"row {number}" if names is None else repr(names[number])
        raise DataError(
            source,
            f"embedding {name} has no direction where its length is to be normalised ({np.sum(bad)} of {len(bad)})",
            "extract it again, or take it out",
        )


def pair_products(left: Floats, right: Floats, pairs: tuple[Rows, Rows], block: int = PAIRS_AT_ONCE) -> Floats:
    """(pairs,) inner products of the rows of ``left`` and ``right`` (rows, dim) that ``pairs`` names; memory beside
    them is about 2 x block x dim x 8 bytes."""
    products = np.empty(len(pairs[0]))
    for start in range(0, len(products), block):
        part = slice(start, start + block)
        np.einsum("td,td->t", left[pairs[0][part]], right[pairs[1][part]], out=products[part])
    return products


def rank(variances: npt.NDArray[np.floating], mean_square: float) -> int:
    """How many of the variances of a set along its axes are more than rounding, given the mean square of its lengths:
    where all rows are alike, all variances are rounding, and none stands out from the others."""
    return int(np.sum(variances > SMALLEST_VARIANCE * mean_square))
