"""Cosine and AS-norm at the size of VoxCeleb1-H: ours against the loops that a reader would write.

    OMP_NUM_THREADS=1 python benchmarks/bench_scoring.py

The loops go over trials: scikit-learn's cosine_similarity for each pair, as the peer's scorer does, and for AS-norm a
product with the cohort and a sort for either side, anew for each trial or once for each embedding. They are timed on a
subsample, from arrays, and scaled to all trials. Medians of five runs, all in this process. Peak memory is that of the
command in a process of its own (Linux only).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity
from timing import RUNS, Seconds, once, report, timed

from speakerkit.data.ark import Embeddings, read_embeddings, write_embeddings
from speakerkit.verification.cosine import cosine_sides, score_all, score_cosine
from speakerkit.verification.metrics import evaluate
from speakerkit.verification.normalisation import make_cohort, normalise_cosine
from speakerkit.verification.trials import (
    Trials,
    read_scores,
    read_trials,
    write_score_blocks,
    write_scores,
    write_trials,
)
from speakerkit.verification.vectors import Floats

TRIALS, UTTERANCES, DIM, SPEAKERS = 500_000, 4708, 256, 40
COHORT, TOP = 5994, 300
SUBSAMPLE = 5_000
COHORT_SUBSAMPLE = 200


def make(rng: np.random.Generator) -> tuple[Embeddings, Trials, Embeddings]:
    """Random speakers with random utterances, random pairs, and a cohort of other speakers."""
    speaker = rng.integers(SPEAKERS, size=UTTERANCES)
    vectors = rng.normal(size=(SPEAKERS, DIM))[speaker] + 2 * rng.normal(size=(UTTERANCES, DIM))
    keys = [f"id{who:05d}/video{number:05d}/00001.wav" for number, who in enumerate(speaker)]
    pairs = rng.integers(UTTERANCES, size=(TRIALS, 2))
    enrol, test = ([keys[row] for row in column] for column in pairs.T)
    trials = Trials.from_pairs(enrol, test, speaker[pairs[:, 0]] == speaker[pairs[:, 1]])
    impostors = rng.normal(size=(COHORT, DIM)).astype(np.float32)
    cohort = Embeddings([f"impostor{number:05d}" for number in range(COHORT)], impostors)
    return Embeddings(keys, vectors.astype(np.float32)), trials, cohort


def cosine_loop(embeddings: Embeddings, pairs: list[tuple[str, str]]) -> list[float]:
    """One call a trial."""
    return [
        float(cosine_similarity(embeddings[enrol].reshape(1, -1), embeddings[test].reshape(1, -1))[0, 0])
        for enrol, test in pairs
    ]


def cohort_loop(vectors: dict[str, Floats], cohort: Floats, keys: list[str]) -> list[tuple[float, float]]:
    """Mean and deviation of the best cohort scores, embedding by embedding."""
    found = []
    for key in keys:
        best = np.sort(cohort @ vectors[key])[-TOP:]
        found.append((float(best.mean()), float(best.std())))
    return found


def norm_loop(vectors: dict[str, Floats], cohort: Floats, pairs: list[tuple[str, str]]) -> list[float]:
    """The definition, trial by trial."""
    scores = []
    for enrol, test in pairs:
        score = float(vectors[enrol] @ vectors[test])
        (enrol_mean, enrol_std), (test_mean, test_std) = cohort_loop(vectors, cohort, [enrol, test])
        scores.append(((score - enrol_mean) / enrol_std + (score - test_mean) / test_std) / 2)
    return scores


def peak_of_command(*arguments: object) -> float:
    """Largest memory (MB) of a command in a process of its own."""
    code = """
from pathlib import Path
from speakerkit.cli.main import main
try:
    main()
finally:
    print(Path("/proc/self/status").read_text())
"""
    ran = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True)
    (peak,) = (int(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("VmHWM:"))
    return peak / 1024


def main() -> None:
    embeddings, trials, impostors = make(np.random.default_rng(0))
    pairs = list(trials.pairs())
    print(f"{TRIALS} trials, {UTTERANCES} utterances x {DIM}, cohort {COHORT}, top {TOP}, median of {RUNS}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scp, cohort_scp = folder / "embeddings.scp", folder / "cohort.scp"
        write_embeddings(scp, embeddings)
        write_embeddings(cohort_scp, impostors)
        write_trials(folder / "trials", trials)
        listed, out = folder / "trials", folder / "scores"
        cosine(embeddings, trials, pairs[:SUBSAMPLE], scp, listed, out)
        as_norm(embeddings, trials, pairs, impostors, scp, cohort_scp, listed, out)
        peaks = [
            peak_of_command("score", "cosine", scp, listed, out),
            peak_of_command("score", "norm", scp, listed, out, "--cohort", cohort_scp),
        ]
    print("peak memory of the commands: cosine {:.0f} MB, AS-norm {:.0f} MB".format(*peaks))


def cosine(
    embeddings: Embeddings, trials: Trials, sample: list[tuple[str, str]], scp: Path, listed: Path, out: Path
) -> None:
    """Cosine of the trials, and what is around it."""
    scores = score_cosine(embeddings, trials)
    difference = np.abs(scores.scores[: len(sample)] - cosine_loop(embeddings, sample)).max()
    loop = timed(lambda: cosine_loop(embeddings, sample)).times(TRIALS / len(sample))
    report("cosine: loop over pairs", loop, note=f"  (scaled from {len(sample)} trials)")
    report("cosine, from arrays", timed(lambda: score_cosine(embeddings, trials)), loop)
    through_files = timed(lambda: write_scores(out, score_cosine(read_embeddings(scp), read_trials(listed))))
    report("cosine, text files and ark", through_files, loop, f"  (largest difference {difference:.1e})")
    report("reading the trials", timed(lambda: read_trials(listed)))
    report("writing the scores", timed(lambda: write_scores(out, scores)))
    report("reading the scores", timed(lambda: read_scores(out)))
    report("EER and minDCF, from arrays", timed(lambda: evaluate(scores)))
    sides = cosine_sides(embeddings, embeddings.keys, embeddings.keys)
    report(f"all {sides.pairs} pairs, written (one run)", once(lambda: write_score_blocks(out, score_all(sides))))


def as_norm(
    embeddings: Embeddings,
    trials: Trials,
    pairs: list[tuple[str, str]],
    impostors: Embeddings,
    scp: Path,
    cohort_scp: Path,
    listed: Path,
    out: Path,
) -> None:
    """Adaptive score normalisation of the trials."""
    sides = cosine_sides(embeddings, trials.enrol_ids, trials.test_ids)
    cohort = make_cohort(impostors)
    vectors = {name: sides.vectors[row] for name, row in zip(sides.enrol_ids, sides.enrol, strict=True)}
    vectors |= {name: sides.vectors[row] for name, row in zip(sides.test_ids, sides.test, strict=True)}
    sample, keys = pairs[:COHORT_SUBSAMPLE], list(vectors)[:COHORT_SUBSAMPLE]
    ours = normalise_cosine(sides, trials, cohort).scores[: len(sample)]
    difference = np.abs(ours - norm_loop(vectors, cohort.vectors, sample)).max()

    loop = timed(lambda: norm_loop(vectors, cohort.vectors, sample)).times(TRIALS / len(sample))
    statistics = timed(lambda: cohort_loop(vectors, cohort.vectors, keys)).times(len(vectors) / len(keys))
    found = dict(zip(vectors, cohort_loop(vectors, cohort.vectors, keys) * len(vectors), strict=False))

    def over_trials() -> list[float]:
        scores = []
        for enrol, test in pairs[:SUBSAMPLE]:
            score = float(vectors[enrol] @ vectors[test])
            (enrol_mean, enrol_std), (test_mean, test_std) = found[enrol], found[test]
            scores.append(((score - enrol_mean) / enrol_std + (score - test_mean) / test_std) / 2)
        return scores

    trial_loop = timed(over_trials).times(TRIALS / SUBSAMPLE)
    remembering = Seconds(statistics.processor + trial_loop.processor, statistics.clock + trial_loop.clock)
    report("AS-norm: loop over trials", loop, note=f"  (scaled from {len(sample)} trials)")
    report("AS-norm: loop, statistics once an embedding", remembering, note=f"  (scaled from {len(keys)})")
    from_arrays = timed(lambda: normalise_cosine(sides, trials, cohort))
    report(
        "AS-norm 1, from arrays",
        from_arrays,
        loop,
        f", {remembering.processor / from_arrays.processor:.1f} of the second",
    )
    report("AS-norm 2, from arrays", timed(lambda: normalise_cosine(sides, trials, cohort, "as-norm2")), loop)

    def through_files() -> None:
        read, asked = read_embeddings(scp), read_trials(listed)
        both = cosine_sides(read, asked.enrol_ids, asked.test_ids)
        write_scores(out, normalise_cosine(both, asked, make_cohort(read_embeddings(cohort_scp))))

    files = timed(through_files)
    report(
        "AS-norm 1, text files and ark", files, loop, f", {remembering.processor / files.processor:.1f} of the second"
    )
    print(f"largest difference from the loop: {difference:.1e}")


if __name__ == "__main__":
    main()
