"""Cosine scoring at the size of VoxCeleb1-H: ours against the loop that a reader would write.

    python benchmarks/bench_cosine.py

The loop calls scikit-learn's cosine_similarity for each pair, as the peer's scorer does. It is timed on a subsample and
scaled to all trials. Medians of five runs, both in this process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity

from speakerkit.data.ark import Embeddings, read_embeddings, write_embeddings
from speakerkit.verification.cosine import score_cosine
from speakerkit.verification.metrics import evaluate
from speakerkit.verification.trials import Trials, read_scores, read_trials, write_scores, write_trials

TRIALS, UTTERANCES, DIM, SPEAKERS = 500_000, 4708, 256, 40
SUBSAMPLE = 5_000
RUNS = 5


def make(rng: np.random.Generator) -> tuple[Embeddings, Trials]:
    """Random speakers with random utterances, random pairs."""
    speaker = rng.integers(SPEAKERS, size=UTTERANCES)
    vectors = rng.normal(size=(SPEAKERS, DIM))[speaker] + 2 * rng.normal(size=(UTTERANCES, DIM))
    keys = [f"id{who:05d}/video{number:05d}/00001.wav" for number, who in enumerate(speaker)]
    pairs = rng.integers(UTTERANCES, size=(TRIALS, 2))
    enrol, test = ([keys[row] for row in column] for column in pairs.T)
    trials = Trials.from_pairs(enrol, test, speaker[pairs[:, 0]] == speaker[pairs[:, 1]])
    return Embeddings(keys, vectors.astype(np.float32)), trials


def naive(embeddings: Embeddings, pairs: list[tuple[str, str]]) -> list[float]:
    """One call a trial."""
    return [
        float(cosine_similarity(embeddings[enrol].reshape(1, -1), embeddings[test].reshape(1, -1))[0, 0])
        for enrol, test in pairs
    ]


def timed(work: Callable[[], object]) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main() -> None:
    embeddings, trials = make(np.random.default_rng(0))
    pairs = list(trials.pairs())[:SUBSAMPLE]
    difference = np.abs(score_cosine(embeddings, trials).scores[:SUBSAMPLE] - naive(embeddings, pairs)).max()
    loop = timed(lambda: naive(embeddings, pairs)) * TRIALS / SUBSAMPLE
    ours = timed(lambda: score_cosine(embeddings, trials))
    scores = score_cosine(embeddings, trials)
    rates = timed(lambda: evaluate(scores))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scp = write_embeddings(folder / "embeddings.scp", embeddings)
        write_trials(folder / "trials", trials)

        def through_files() -> None:
            write_scores(folder / "scores", score_cosine(read_embeddings(scp), read_trials(folder / "trials")))

        files = timed(through_files)
        reading = timed(lambda: read_scores(folder / "scores"))

    print(f"{TRIALS} trials, {UTTERANCES} utterances x {DIM}, median of {RUNS}; largest difference {difference:.1e}")
    print(f"loop over pairs, from arrays   {loop:9.3f} s  (scaled from {SUBSAMPLE} trials)")
    print(f"score_cosine, from arrays      {ours:9.3f} s  {loop / ours:7.0f} times as fast")
    print(f"the same, text files and ark   {files:9.3f} s  {loop / files:7.0f} times as fast")
    print(f"reading the score file         {reading:9.3f} s")
    print(f"EER and minDCF, from arrays    {rates:9.3f} s")


if __name__ == "__main__":
    main()
