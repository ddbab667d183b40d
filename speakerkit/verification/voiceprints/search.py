"""Whose voice is nearest: exact search by blocks of matrix products, and faiss indexes for millions of voices."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from speakerkit.errors import DataError, MissingExtraError, first_line
from speakerkit.files import atomic_path
from speakerkit.verification.voiceprints.sqlite import IndexNote, SqliteStore
from speakerkit.verification.voiceprints.store import (
    EMPTY,
    ENROL,
    Block,
    CandidateIndex,
    Ids,
    Match,
    Vector,
    VoiceStore,
)

logger = logging.getLogger("speakerkit")

Kind = Literal["flat", "ivf", "hnsw"]

EXACT_UP_TO = 100_000  # voices: beyond, an index is worth its building
FLAT_UP_TO = 1_000_000  # voices: beyond, an index that looks at a part of them only
SPARE = 16  # candidates beyond those asked for: cosines in single precision may change places
REFINED = 4  # times as many candidates as asked for of an index that holds rounded vectors
# Inverted lists: about sqrt(n), of which one in so many is looked through, but not fewer than these.
LISTS_LOOKED_AT, FEWEST_LISTS = 8, 16
TRAINING_ROWS = 64  # a list
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 128


@dataclass(frozen=True)
class Candidate:
    """A voice and its cosine in [-1, 1]."""

    name: str
    cosine: float


def exact_search(
    blocks: Iterable[Block], queries: Vector, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The rows with the highest inner products, exactly; memory is that of one block.

    Args:
        blocks: what to search.
        queries: (queries, dim).
        count: rows to find for each.

    Returns:
        inner products (queries, count), highest first, and the ids; -inf and -1 where there are fewer rows.
    """
    best: npt.NDArray[Any] = np.full((len(queries), count), -np.inf, dtype=np.float32)
    ids: npt.NDArray[Any] = np.full((len(queries), count), -1, dtype=np.int64)
    for block in blocks:
        scores: npt.NDArray[Any] = queries @ block.vectors.T  # (queries, rows)
        numbers: npt.NDArray[Any] = np.broadcast_to(block.ids, scores.shape)
        if scores.shape[1] > count:
            scores, numbers = _picked(np.argpartition(scores, -count, axis=1)[:, -count:], scores, numbers)
        scores, numbers = np.hstack([best, scores]), np.hstack([ids, numbers])
        best, ids = _picked(np.argsort(-scores, axis=1, kind="stable")[:, :count], scores, numbers)
    return best, ids


def _picked(columns: npt.NDArray[np.intp], *arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Of each row of each array, the columns (rows, picked)."""
    return tuple(np.take_along_axis(array, columns, axis=1) for array in arrays)


class ExactIndex:
    """Looks at every vector: of the store as it is now, or of blocks that stay in memory."""

    def __init__(self, store: VoiceStore, match: Match, *, in_memory: bool = False) -> None:
        self.generation: int | None = store.generation() if in_memory else None
        self._store, self._match = store, match
        self._blocks = list(store.blocks(match)) if in_memory else None

    def candidates(self, vector: Vector, count: int) -> Ids:
        """As :class:`CandidateIndex`."""
        blocks = self._store.blocks(self._match) if self._blocks is None else self._blocks
        ids = exact_search(blocks, vector[None], count)[1][0]
        return ids[ids >= 0]


class FaissIndex:
    """An index of faiss over the vectors of a store, in a file beside it.

    Args:
        index: faiss's own, over ids of voices.
        generation: of the store when it was built.
    """

    def __init__(self, index: Any, generation: int) -> None:
        self.index = index
        self.generation: int | None = generation

    def candidates(self, vector: Vector, count: int) -> Ids:
        """As :class:`CandidateIndex`."""
        count = min(count * REFINED, self.index.ntotal)
        ids = self.index.search(np.ascontiguousarray(vector[None], dtype=np.float32), count)[1][0]
        return ids[ids >= 0]


class Searcher:
    """Finds the nearest voices of a store, also those that were enrolled after its index was built.

    Cosines are computed from the store, in double precision; the index only says which are worth it.

    Args:
        store: what to search.
        match: compare with the mean of a voice, or with each of its recordings.
        index: what proposes candidates; ``None`` looks at all.
    """

    def __init__(self, store: VoiceStore, match: Match = "mean", index: CandidateIndex | None = None) -> None:
        self._store, self._match = store, match
        self.index = index or ExactIndex(store, match)

    def nearest(self, vector: Vector, count: int) -> list[Candidate]:
        """The ``count`` voices nearest to a vector (dim,) of length one, nearest first; all where there are fewer.

        Raises:
            DataError: the store is empty, or of another dimension.
        """
        stamp = self._store.stamp()
        if stamp is None:
            raise DataError(self._store.location, EMPTY, ENROL)
        if vector.shape != (stamp.dimension,):
            fault = f"holds voiceprints of {stamp.dimension} values, not of shape {vector.shape}"
            raise DataError(self._store.location, fault, "use the model that made them")
        changed, recent = self._changed_since(self.index.generation, vector, count)
        wanted = count + SPARE
        while True:
            ids = self.index.candidates(vector, wanted)
            lasting = [number for number in ids.tolist() if number not in changed]
            found = self._store.cosines([*lasting, *recent], vector, self._match)
            if len(found) >= count + len(recent) or len(ids) < wanted:
                break
            wanted *= 4  # recordings of one voice, or voices that changed or are gone, took the places
        if not found:  # removed this moment
            raise DataError(self._store.location, EMPTY, ENROL)
        ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]
        return [Candidate(name, cosine) for name, cosine in ranked]

    def _changed_since(self, generation: int | None, vector: Vector, count: int) -> tuple[set[int], list[int]]:
        """The voices that changed after an index was built, and the nearest ``count`` (or more) of them."""
        changed: set[int] = set()
        if generation is None or generation == self._store.generation():
            return changed, []

        def noted() -> Iterator[Block]:
            for block in self._store.blocks(self._match, since=generation):
                changed.update(block.ids.tolist())
                yield block

        wanted = count + SPARE
        while True:
            ids = exact_search(noted(), vector[None], wanted)[1][0]
            nearest = {int(number) for number in ids if number >= 0}
            if len(nearest) >= count or ids[-1] < 0:
                return changed, sorted(nearest)
            wanted *= 4


def open_searcher(store: VoiceStore, match: Match = "mean") -> Searcher:
    """The fastest search that there is: the server's own, a faiss index that ``voices index`` built, or all one by one.

    Raises:
        DataError: an index that cannot be read.
    """
    index = store.own_index(match) or _read_index(store, match)
    if index is None and len(store) > EXACT_UP_TO:
        logger.warning("%s: all voices are compared; `speakerkit voices index` makes this faster", store.location)
    return Searcher(store, match, index)


def build_index(store: VoiceStore, match: Match = "mean", kind: Kind | None = None) -> Path:
    """Build a faiss index beside a store and take the place of an earlier one.

    Args:
        store: one whose index is a file.
        match: as for :class:`Searcher`.
        kind: "flat" looks at all, "ivf" (inverted lists) and "hnsw" (a graph), of a byte a value, at a part of
            them; ``None`` chooses "flat" up to a million vectors, else "ivf".

    Raises:
        DataError: an empty store, or one that needs no file.
        MissingExtraError: faiss is not installed.
    """
    faiss = _faiss()
    stamp, generation = store.stamp(), store.generation()
    if not isinstance(store, SqliteStore) or stamp is None:
        fault = "holds no voices" if stamp is None else "has an index of its own"
        raise DataError(store.location, fault, "an index is built of the voices of a SQLite file")
    rows = sum(len(block.ids) for block in store.blocks(match))
    index = new_index(faiss, kind or ("flat" if rows <= FLAT_UP_TO else "ivf"), stamp.dimension, rows)
    if not index.is_trained:
        step = max(1, rows // (TRAINING_ROWS * _lists(rows)))
        index.train(np.concatenate([block.vectors[::step] for block in store.blocks(match)]))
    for block in store.blocks(match):
        index.add_with_ids(block.vectors, block.ids)
    note = IndexNote(secrets.token_hex(4), generation)
    path = store.index_path(match, note)
    with atomic_path(path) as temporary:
        faiss.write_index(index, str(temporary))
    earlier = store.index_note(match)
    store.note_index(match, note)
    if earlier is not None:
        store.index_path(match, earlier).unlink(missing_ok=True)
    return path


def new_index(faiss: ModuleType, kind: Kind, dimension: int, rows: int) -> Any:
    """An empty faiss index for about ``rows`` vectors, with inner products and ids of our own."""
    if kind == "flat":
        return faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
    if kind == "hnsw":
        quantizer = faiss.ScalarQuantizer.QT_8bit
        graph = faiss.IndexHNSWSQ(dimension, quantizer, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
        return faiss.IndexIDMap2(graph)
    lists = _lists(rows)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimension), dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = max(min(lists, FEWEST_LISTS), lists // LISTS_LOOKED_AT)
    index.cp.seed, index.cp.min_points_per_centroid = 0, 1
    return index


def _lists(rows: int) -> int:
    """Inverted lists: the power of two nearest to the root of the number of vectors."""
    return 1 << round(np.log2(max(1, rows)) / 2)


def _read_index(store: VoiceStore, match: Match) -> FaissIndex | None:
    note = store.index_note(match) if isinstance(store, SqliteStore) else None
    if note is None or not isinstance(store, SqliteStore):
        return None
    path = store.index_path(match, note)
    if not path.is_file():
        logger.warning("%s is gone: all voices are compared; `speakerkit voices index` builds it anew", path)
        return None
    try:
        faiss = _faiss()
    except MissingExtraError as error:
        logger.warning("%s is not used: %s", path, error)
        return None
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except Exception as error:  # faiss raises RuntimeError, MemoryError and classes of its own on broken files
        raise DataError(path, f"is damaged ({first_line(error)})", "delete it, or `speakerkit voices index`") from None
    stamp = store.stamp()
    if stamp is not None and index.d != stamp.dimension:
        raise DataError(path, f"is of {index.d} values, {store.location} of {stamp.dimension}", "delete it")
    _without_prefetching(faiss, index)
    return FaissIndex(index, note.generation)


def _without_prefetching(faiss: ModuleType, index: Any) -> None:
    """Lists in a mapped file are read ahead by threads that each query starts anew, at several times its cost."""
    if hasattr(index, "invlists"):
        lists = faiss.downcast_InvertedLists(index.invlists)
        if hasattr(lists, "prefetch_nthread"):
            lists.prefetch_nthread = 0


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("an index of voiceprints", "search") from None
    return faiss
