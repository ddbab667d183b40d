"""Directions of embeddings, their cosines in blocks, and the graph of nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import sparse

from speakerkit.errors import DataError

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.intp]

BLOCK_VALUES = 1 << 22  # cosines in memory at a time: 16 MB


def directions(embeddings: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Rows (N, D) at unit length.

    Raises:
        DataError: not a table of finite numbers, or a row that is all zero.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise DataError("embeddings", f"have the shape {rows.shape}", "give one row a window")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise DataError("embeddings", f"window {bad[0]} is not finite ({len(bad)} in all)", "leave such windows out")
    largest = np.abs(rows).max(axis=1, initial=0.0)
    if (largest == 0).any():
        empty = np.flatnonzero(largest == 0)
        fault = f"window {empty[0]} is all zero ({len(empty)} in all), it has no direction"
        raise DataError("embeddings", fault, "leave such windows out")
    rows = rows / largest[:, None]  # squares of very large or small values would leave the range of float64
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def canonical_order(rows: Floats) -> Labels:
    """(N,) places of the rows in an order that depends on their values alone.

    Methods that see no time work in this order, so that the order in which windows come cannot change the result.
    """
    keys = [row.tobytes() for row in np.ascontiguousarray(rows + 0.0)]  # -0.0 becomes 0.0
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.intp)


def cosine_blocks(left: Floats, right: Floats) -> Iterator[tuple[slice, Floats]]:
    """Products of rows of ``left`` with all of ``right``, some rows (a slice) at a time."""
    height = max(1, BLOCK_VALUES // max(1, len(right)))
    for start in range(0, len(left), height):
        part = slice(start, min(start + height, len(left)))
        yield part, left[part] @ right.T


def nearest(rows: Floats, count: int) -> tuple[Labels, Floats]:
    """Places and cosines (N, count) of the nearest other rows of unit vectors (N, D), in no order; ``count`` < N."""
    places = np.empty((len(rows), count), dtype=np.intp)
    cosines = np.empty((len(rows), count), dtype=np.float32)
    for part, block in cosine_blocks(rows, rows):
        block[np.arange(len(block)), np.arange(part.start, part.stop)] = -np.inf
        places[part] = np.argpartition(block, len(rows) - count, axis=1)[:, len(rows) - count :]
        cosines[part] = np.take_along_axis(block, places[part], axis=1)
    return places, cosines


def neighbour_graph(rows: Floats, neighbours: int, binary: bool = False) -> sparse.csr_array:
    """Affinities (N, N), symmetric, without loops, between unit vectors (N, D) and their nearest.

    Args:
        rows: unit vectors.
        neighbours: of each row the largest affinities are kept, the row's own among them: it has ``neighbours`` - 1
            others. Then ``(W + W^T)/2``.
        binary: kept affinities are 1, not ``(1 + cosine)/2``.
    """
    count = min(neighbours, len(rows)) - 1
    if count < 1:
        return sparse.csr_array((len(rows), len(rows)))
    places, cosines = nearest(rows, count)
    weights = np.ones(places.size) if binary else (1.0 + cosines.astype(np.float64).ravel()) / 2
    starts = np.arange(0, places.size + 1, count)
    kept = sparse.csr_array((np.maximum(weights, 0.0), places.ravel(), starts), shape=(len(rows), len(rows)))
    return sparse.csr_array((kept + kept.T) * 0.5)
