"""PLDA at the size of VoxCeleb: training and scoring against the loops that a reader would write.

    OMP_NUM_THREADS=1 python benchmarks/bench_plda.py

Training: 5 994 speakers x 20 embeddings of 256; the loop inverts a matrix for each speaker, as the definition says. It
runs over a sample of the speakers and is scaled to all. Scoring: 500 000 trials over 4 708 embeddings, with and without
reading and writing the files; the loop evaluates the two Gaussian densities of each trial, on a sample of the trials.
Medians of five runs, all in this process.
"""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import numpy as np
from timing import RUNS, report, timed

from speakerkit.data.ark import Embeddings, read_embeddings, write_embeddings
from speakerkit.verification.backend import Backend, score_backend
from speakerkit.verification.backend_file import read_backend, write_backend
from speakerkit.verification.chain import Chain, fit_chain
from speakerkit.verification.plda import LOG_2PI, Plda, _Diagonal, train_plda
from speakerkit.verification.psda import train_psda
from speakerkit.verification.speakers import SpeakerStatistics
from speakerkit.verification.trials import Trials, read_trials, write_scores, write_trials
from speakerkit.verification.vectors import unit

SPEAKERS, SESSIONS, DIM = 5994, 20, 256
TRIALS, UTTERANCES = 500_000, 4708
SPEAKER_SAMPLE, TRIAL_SAMPLE = 100, 10_000


def draw(rng: np.random.Generator, speakers: int, sessions: int) -> tuple[np.ndarray, list[str]]:
    """Random speakers, three times as much variance within as between in the last directions as in the first."""
    speaker = np.repeat(np.arange(speakers), sessions)
    scale = np.linspace(1, 3, DIM)
    rows = rng.normal(size=(speakers, DIM))[speaker] + scale * rng.normal(size=(len(speaker), DIM))
    return rows.astype(np.float32), [f"id{number:05d}" for number in speaker]


def naive_iteration(
    means: np.ndarray, scatter: np.ndarray, within: np.ndarray, between: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One iteration of EM with an inverse for each speaker; ``means`` (speakers, dim) are centred."""
    within_stats, between_stats = scatter.copy(), np.zeros_like(scatter)
    within_inverse, between_inverse = np.linalg.inv(within), np.linalg.inv(between)
    for mean in means:
        variance = np.linalg.inv(between_inverse + SESSIONS * within_inverse)
        posterior = variance @ (SESSIONS * within_inverse @ mean)
        residual = mean - posterior
        between_stats += variance + np.outer(posterior, posterior)
        within_stats += SESSIONS * (variance + np.outer(residual, residual))
    return within_stats / (len(means) * SESSIONS), between_stats / len(means)


def naive_llr(psi: np.ndarray, enrol: np.ndarray, test: np.ndarray) -> float:
    """Two densities of one trial, from projected vectors."""
    mean, variance = psi / (psi + 1) * enrol, 1 + psi / (psi + 1)
    same = np.sum(np.log(variance)) + LOG_2PI * len(psi) + np.sum((test - mean) ** 2 / variance)
    other = np.sum(np.log(1 + psi)) + LOG_2PI * len(psi) + np.sum(test**2 / (1 + psi))
    return float(0.5 * (other - same))


def training(rng: np.random.Generator) -> Plda:
    rows, speakers = draw(rng, SPEAKERS, SESSIONS)
    print(f"training, {SPEAKERS} speakers x {SESSIONS} embeddings of {DIM}, median of {RUNS}")
    report("statistics of the embeddings, once", timed(lambda: SpeakerStatistics.of(rows, speakers)))
    statistics = SpeakerStatistics.of(rows, speakers)
    within, between = np.eye(DIM), np.eye(DIM)
    for _ in range(2):
        within, between = _Diagonal.of(within, between, statistics).maximise()
    sample = statistics.means[:SPEAKER_SAMPLE] - statistics.mean
    scaled = timed(lambda: naive_iteration(sample, statistics.scatter, within, between)).times(
        SPEAKERS / SPEAKER_SAMPLE
    )

    def iteration() -> None:
        diagonal = _Diagonal.of(within, between, statistics)
        diagonal.log_likelihood()
        diagonal.maximise()

    report("loop over speakers, an iteration", scaled, note=f"  (scaled from {SPEAKER_SAMPLE} speakers)")
    report("ours, an iteration with its likelihood", timed(iteration), scaled)
    small = SpeakerStatistics.of(rows[: SPEAKER_SAMPLE * SESSIONS], speakers[: SPEAKER_SAMPLE * SESSIONS])
    theirs = naive_iteration(small.means - small.mean, small.scatter, within, between)
    differences = zip(_Diagonal.of(within, between, small).maximise(), theirs, strict=True)
    print(f"{'largest difference after an iteration':<42}{max(np.abs(a - b).max() for a, b in differences):9.1e}")
    report("train_plda, 10 iterations", timed(lambda: train_plda(statistics, 10)))
    on_sphere = SpeakerStatistics.of(unit(rows), speakers)
    report("train_psda, 10 iterations", timed(lambda: train_psda(on_sphere, 10)))
    chain = "mean-subtract | lda 128 | length-norm"
    report(f"fit_chain, {chain}", timed(lambda: fit_chain(chain, rows, speakers)))
    return train_plda(statistics, 10).model


def scoring(rng: np.random.Generator, plda: Plda) -> None:
    speaker = rng.integers(40, size=UTTERANCES)
    vectors = rng.normal(size=(40, DIM))[speaker] + 2 * rng.normal(size=(UTTERANCES, DIM))
    keys = [f"id{who:05d}/video{number:05d}/00001.wav" for number, who in enumerate(speaker)]
    embeddings = Embeddings(keys, vectors.astype(np.float32))
    pairs = rng.integers(UTTERANCES, size=(TRIALS, 2))
    names = [[keys[row] for row in column] for column in pairs.T]
    trials = Trials.from_pairs(*names, speaker[pairs[:, 0]] == speaker[pairs[:, 1]])
    backend = Backend(Chain(()), plda, DIM)
    projected = plda.project(embeddings.vectors.astype(np.float64))

    def loop() -> list[float]:
        return [naive_llr(plda.psi, projected[enrol], projected[test]) for enrol, test in pairs[:TRIAL_SAMPLE]]

    difference = np.abs(score_backend(backend, embeddings, trials).scores[:TRIAL_SAMPLE] - loop()).max()
    scaled = timed(loop).times(TRIALS / TRIAL_SAMPLE)
    print(f"\nscoring, {TRIALS} trials over {UTTERANCES} embeddings; largest difference {difference:.1e}")
    report("loop over trials, from projected arrays", scaled, note=f"  (scaled from {TRIAL_SAMPLE} trials)")
    report("score_backend, from arrays", timed(lambda: score_backend(backend, embeddings, trials)), scaled)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scp = write_embeddings(folder / "embeddings.scp", embeddings)
        write_trials(folder / "trials", trials)
        write_backend(folder / "plda.safetensors", backend)

        def through_files() -> None:
            scores = score_backend(
                read_backend(folder / "plda.safetensors"), read_embeddings(scp), read_trials(folder / "trials")
            )
            write_scores(folder / "scores", scores)

        report("the same, text files and ark", timed(through_files), scaled)


def main() -> None:
    rng = np.random.default_rng(0)
    scoring(rng, training(rng))
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
