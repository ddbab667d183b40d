"""Identification among many voices: all compared, and by the indexes of faiss.

    python benchmarks/bench_identify.py                     # 100 000 voices, seconds
    python benchmarks/bench_identify.py --voices 1000000    # the table of docs/scale.md

One thread, and seconds of processor time, so that a busy machine does not count. Voices are drawn with a falling
spectrum, as embeddings have; a query is another session of an enrolled voice, at a mean cosine of 0.7 to it. Recall@1
counts how often an index finds first what the full comparison finds first. The store is measured on fewer voices: what
it costs to enrol, and to identify straight from its file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from speakerkit.verification.voiceprints.search import FaissIndex, exact_search, new_index, open_searcher
from speakerkit.verification.voiceprints.store import BLOCK, Block, Enrolment, ModelStamp, open_store

TOP = 10
TIMED = 50  # queries, one at a time
COSINE = 0.7


def directions(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """(rows, dim) float32 of length one; the spread falls with the number of the dimension."""
    vectors = rng.standard_normal((rows, dim), dtype=np.float32) / (1 + np.arange(dim, dtype=np.float32) / 32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def session(rng: np.random.Generator, voices: np.ndarray) -> np.ndarray:
    """Another recording of each voice."""
    vectors = voices + np.sqrt(1 / COSINE - 1).astype(np.float32) * directions(rng, *voices.shape)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def blocks(vectors: np.ndarray) -> Iterator[Block]:
    """The rows, numbered."""
    for start in range(0, len(vectors), BLOCK):
        part = vectors[start : start + BLOCK]
        yield Block(np.arange(start, start + len(part)), part)


def milliseconds(work: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """Median of one query."""
    seconds = []
    for query in queries[:TIMED]:
        start = time.process_time()
        work(query)
        seconds.append(time.process_time() - start)
    return 1000 * median(seconds)


def measure_index(kind: str, vectors: np.ndarray, queries: np.ndarray, nearest: np.ndarray) -> str:
    """A row of the table."""
    import faiss

    faiss.omp_set_num_threads(1)
    start = time.process_time()
    index = new_index(faiss, kind, vectors.shape[1], len(vectors))
    if not index.is_trained:
        index.train(vectors[:: max(1, len(vectors) // (64 * index.nlist))])
    for block in blocks(vectors):
        index.add_with_ids(block.vectors, block.ids)
    build = time.process_time() - start
    size = faiss.serialize_index(index).nbytes
    found = FaissIndex(index, 0)

    def identify(query: np.ndarray) -> np.ndarray:
        ids = found.candidates(query, TOP)
        return ids[np.argsort(-(vectors[ids] @ query))[:TOP]]  # as the store does, by the vectors themselves

    took = milliseconds(identify, queries)
    recall = np.mean([identify(query)[0] == best for query, best in zip(queries, nearest, strict=True)])
    return f"{kind:16s}{took:12.2f}{size / 1e6:12.0f}{100 * recall:12.1f}{build:12.1f}"


def measure_store(voices: int, dim: int, rng: np.random.Generator) -> None:
    """Print what the SQLite store takes."""
    vectors = directions(rng, voices, dim)
    stamp = ModelStamp("0" * 64, dim)
    entries = (
        (f"voice {number}", [Enrolment.from_embedding(row, 5.0, f"{number:064x}", f"{number}.wav")])
        for number, row in enumerate(vectors)
    )
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "voices.db", create=True) as store:
        start = time.process_time()
        store.add_all(entries, stamp)
        added = time.process_time() - start
        size = (Path(folder) / "voices.db").stat().st_size
        took = milliseconds(lambda query: open_searcher(store).nearest(query, TOP), session(rng, vectors[:5]))
        print(
            f"store of {voices} voices: {1e6 * added / voices:.0f} us to enrol one of many, {size / voices:.0f} bytes "
            f"a voice, {took:.0f} ms to identify from the file"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--voices", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kinds", nargs="*", default=["flat", "ivf"], help="of flat, ivf, hnsw")
    parser.add_argument("--store", type=int, default=20_000, help="voices in the store that is measured")
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors = np.concatenate(
        [directions(rng, min(BLOCK, asked.voices - start), asked.dim) for start in range(0, asked.voices, BLOCK)]
    )
    truth = rng.integers(asked.voices, size=asked.queries)
    queries = session(rng, vectors[truth])

    took = milliseconds(lambda query: exact_search(blocks(vectors), query[None], TOP), queries)
    start = time.process_time()
    nearest = exact_search(blocks(vectors), queries, TOP)[1][:, 0]
    batch = 1000 * (time.process_time() - start) / len(queries)
    print(f"{asked.voices} voices x {asked.dim}, top {TOP}, {asked.queries} queries, 1 thread")
    print(f"{'':16s}{'ms a query':>12s}{'MB':>12s}{'recall@1 %':>12s}{'build s':>12s}")
    print(f"{'exact':16s}{took:12.2f}{vectors.nbytes / 1e6:12.0f}{100.0:12.1f}{0.0:12.1f}")
    print(f"{'exact, in one':16s}{batch:12.2f}{vectors.nbytes / 1e6:12.0f}{100.0:12.1f}{0.0:12.1f}")
    for kind in asked.kinds:
        print(measure_index(kind, vectors, queries, nearest), flush=True)
    print(f"the enrolled voice is the nearest of all in {100 * np.mean(nearest == truth):.1f} % of the queries")
    measure_store(asked.store, asked.dim, rng)


if __name__ == "__main__":
    main()
