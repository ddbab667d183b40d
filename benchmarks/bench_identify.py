"""Identification among many enrolled voices: all compared, by the indexes of faiss, and as a reader would write it.

    OMP_NUM_THREADS=1 python benchmarks/bench_identify.py --voices 20000                       # half a minute
    OMP_NUM_THREADS=1 python benchmarks/bench_identify.py --voices 1000000 --kinds flat ivf    # for docs/scale.md

A store of one SQLite file is filled, indexed and asked as `speakerkit identify` does it. Voices are drawn with a
falling spectrum, as embeddings have; a query is another session of an enrolled voice, at a mean cosine of 0.7 to it.
The loop goes over the voices one by one and is timed on a part of them, scaled; the product is
``numpy.argsort(-(vectors @ query))``. Recall@1 counts how often the first is the one that the comparison of all in
memory finds. Times are seconds of the processor, so that a busy machine counts less; medians of five runs over all
rows in turn, in this process, with one thread (indexes are built with all: their seconds are those of all together).
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from speakerkit.verification.voiceprints.search import (
    ExactIndex,
    Kind,
    Searcher,
    build_index,
    exact_search,
    open_searcher,
)
from speakerkit.verification.voiceprints.store import BLOCK, Block, Enrolment, ModelStamp, VoiceStore, open_store

TOP = 10
RUNS = 5
COSINE = 0.7
COMMIT = 50_000  # voices a transaction
LOOPED = 20_000  # voices that the loop is timed on
KINDS: tuple[Kind, ...] = ("flat", "ivf", "hnsw")

Vectors = np.ndarray


@dataclass
class Way:
    """One way to identify: what finds the first of the voices, the queries of a run, and the row's other figures."""

    name: str
    first: Callable[[Vectors], str]
    queries: int
    megabytes: float
    build: float = 0.0
    scale: float = 1.0


def directions(rng: np.random.Generator, rows: int, dim: int) -> Vectors:
    """(rows, dim) float32 of length one; the spread falls with the number of the dimension."""
    vectors = rng.standard_normal((rows, dim), dtype=np.float32) / (1 + np.arange(dim, dtype=np.float32) / 32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def session(rng: np.random.Generator, voices: Vectors) -> Vectors:
    """Another recording of each voice."""
    vectors = voices + np.sqrt(1 / COSINE - 1).astype(np.float32) * directions(rng, *voices.shape)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(store: VoiceStore, vectors: Vectors) -> None:
    """Enrol one recording a voice."""
    stamp = ModelStamp("0" * 64, vectors.shape[1])
    for start in range(0, len(vectors), COMMIT):
        entries = (
            (str(number), [Enrolment.from_embedding(vectors[number], 5.0, f"{number:064x}", f"{number}.wav")])
            for number in range(start, min(start + COMMIT, len(vectors)))
        )
        store.add_all(entries, stamp)


def searched(name: str, searcher: Searcher, queries: int, megabytes: float, build: float = 0.0) -> Way:
    """A search of the package."""
    return Way(name, lambda query: searcher.nearest(query, TOP)[0].name, queries, megabytes, build)


def indexed(store: VoiceStore, kind: Kind) -> Way:
    """A search by an index."""
    import faiss

    start = time.process_time()
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    path = build_index(store, "mean", kind)
    build = time.process_time() - start
    faiss.omp_set_num_threads(1)
    print(f"{kind}: built", flush=True)
    return searched(kind, open_searcher(store), 20, path.stat().st_size / 1e6, build)


def written_out(vectors: Vectors) -> tuple[Way, Way]:
    """What a reader would write: a loop over voices, and a matrix product with a sort."""
    table = {str(number): row for number, row in enumerate(vectors[:LOOPED])}

    def loop(query: Vectors) -> str:
        scores = {name: float(np.dot(row, query)) for name, row in table.items()}
        return sorted(scores, key=lambda name: -scores[name])[:TOP][0]

    def product(query: Vectors) -> str:
        return str(np.argsort(-(vectors @ query))[:TOP][0])

    size = vectors.nbytes / 1e6
    return Way("plain loop", loop, 1, size, scale=len(vectors) / len(table)), Way("plain product", product, 5, size)


def seconds(way: Way, queries: Vectors) -> float:
    """Of one query, in the mean of a run."""
    start = time.process_time()
    for query in queries[: way.queries]:
        way.first(query)
    return way.scale * (time.process_time() - start) / min(way.queries, len(queries))


def report(ways: list[Way], queries: Vectors, nearest: list[str]) -> None:
    """Time all in turn, and print the table."""
    runs = [[seconds(way, queries) for way in ways] for _ in range(RUNS)]
    times = [median(column) for column in zip(*runs, strict=True)]
    plain = times[[way.name for way in ways].index("plain product")]
    print(f"{'':18s}{'ms a query':>12s}{'x product':>11s}{'MB':>8s}{'recall@1 %':>12s}{'build s':>9s}")
    for way, took in zip(ways, times, strict=True):
        line = f"{way.name:18s}{1000 * took:12.2f}{plain / took:11.2f}{way.megabytes:8.0f}"
        if way.scale == 1:
            asked = queries if way.build else queries[:RUNS]  # without an index, all voices are compared
            hits = [way.first(query) == best for query, best in zip(asked, nearest, strict=False)]
            line += f"{100 * np.mean(hits):12.1f}{way.build:9.1f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--voices", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--queries", type=int, default=200, help="of which recall is counted")
    parser.add_argument("--db", type=Path, help="keep the store here, or use the one that an earlier run left")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    parts = [directions(rng, min(BLOCK, asked.voices - first), asked.dim) for first in range(0, asked.voices, BLOCK)]
    vectors = np.concatenate(parts)
    del parts
    truth = rng.integers(asked.voices, size=asked.queries)
    queries = session(rng, vectors[truth])
    blocks = (
        Block(np.arange(start, min(start + BLOCK, len(vectors))), vectors[start : start + BLOCK])
        for start in range(0, len(vectors), BLOCK)
    )
    start = time.process_time()
    best = exact_search(blocks, queries, TOP)
    together = 1000 * (time.process_time() - start) / len(queries)
    nearest = [str(number) for number in best[1][:, 0]]
    print(f"{asked.voices} voices x {asked.dim}, top {TOP}, {asked.queries} queries, {sys.platform}", flush=True)
    with tempfile.TemporaryDirectory() as folder, open_store(asked.db or f"{folder}/voices.db", create=True) as store:
        if len(store) != len(vectors):
            start = time.process_time()
            fill(store, vectors)
            print(f"enrolled in {1e6 * (time.process_time() - start) / len(vectors):.0f} us a voice", flush=True)
        print(f"the file has {Path(store.location).stat().st_size / len(vectors):.0f} bytes a voice", flush=True)
        ways = [
            *written_out(vectors),
            searched("exact, the file", Searcher(store), 1, BLOCK * asked.dim * 4 / 1e6),
            searched(
                "exact, in memory",
                Searcher(store, index=ExactIndex(store, "mean", in_memory=True)),
                5,
                vectors.nbytes / 1e6,
            ),
            *(indexed(store, kind) for kind in asked.kinds),
        ]
        report(ways, queries, nearest)
    print(f"exact, {len(queries)} queries in one: {together:.2f} ms a query")
    print(f"the enrolled voice is the nearest of all in {100 * np.mean(best[1][:, 0] == truth):.1f} % of the queries")
    print(f"peak memory of all this together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
