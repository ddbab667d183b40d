"""Metrics of 500 000 trials, from arrays: ours against the loop over thresholds that a reader would write.

    python benchmarks/bench_metrics.py

The loop counts the errors at each threshold anew, in numpy; it is timed on a subsample of the thresholds and scaled to
all. Medians of five runs, all in this process; processor time stands beside wall time, which other jobs lengthen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from speakerkit.verification.bootstrap import bootstrap
from speakerkit.verification.calibration import fit_linear, fit_pav
from speakerkit.verification.metrics import cllr, error_curve, evaluate, min_cllr
from speakerkit.verification.trials import Scores, Trials

TRIALS, UTTERANCES, SPEAKERS = 500_000, 4708, 40
THRESHOLDS = 200
REPLICATES = 20
RUNS = 5


def make(rng: np.random.Generator) -> Scores:
    """Random pairs of utterances of random speakers; targets score 2.5 deviations higher."""
    speaker = rng.integers(SPEAKERS, size=UTTERANCES)
    keys = [f"id{who:05d}/{number:05d}" for number, who in enumerate(speaker)]
    pairs = rng.integers(UTTERANCES, size=(TRIALS, 2))
    same = speaker[pairs[:, 0]] == speaker[pairs[:, 1]]
    trials = Trials.from_pairs([keys[n] for n in pairs[:, 0]], [keys[n] for n in pairs[:, 1]], same)
    return Scores(trials, 0.1 * (rng.normal(size=TRIALS) + 2.5 * same))


def naive(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> tuple[float, float]:
    """EER and minDCF (0.01) from the error rates at each threshold."""
    targets, nontargets = scores[labels], scores[~labels]
    nearest, equal, least = np.inf, 1.0, 1.0
    for threshold in thresholds:
        miss, accept = np.mean(targets < threshold), np.mean(nontargets >= threshold)
        least = min(least, (0.01 * miss + 0.99 * accept) / 0.01)
        if abs(miss - accept) < nearest:
            nearest, equal = abs(miss - accept), (miss + accept) / 2
    return float(equal), float(least)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of wall and of processor."""
    wall, processor = [], []
    for _ in range(RUNS):
        start, busy = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    return median(wall), median(processor)


def main() -> None:
    rng = np.random.default_rng(0)
    scored = make(rng)
    scores, labels = scored.scores, np.asarray(scored.trials.labels)
    ratios = fit_linear(scores, labels)(scores)
    subsample = rng.choice(scores, THRESHOLDS, replace=False)
    loop = [seconds * TRIALS / THRESHOLDS for seconds in timed(lambda: naive(scores, labels, subsample))]

    def ours() -> tuple[float, float]:
        curve = error_curve(scores, labels)
        return curve.eer().value, curve.min_dcf(0.01)

    few, few_labels = scores[:2000], labels[:2000]
    curve = error_curve(few, few_labels)
    expected = naive(few, few_labels, few)
    difference = max(abs(curve.eer().value - expected[0]), abs(curve.min_dcf(0.01) - expected[1]))
    print(f"{TRIALS} trials, median of {RUNS}; on 2000 trials the loop differs by {difference:.1e} (it does not")
    print("interpolate the EER)")
    seconds = timed(ours)
    ratio = loop[1] / seconds[1]
    print(f"{'':32} {'wall':>10}   {'processor':>10}")
    print(f"{'loop over all thresholds':32} {loop[0]:10.3f} s {loop[1]:10.3f} s  (from {THRESHOLDS} of them)")
    print(f"{'EER and minDCF':32} {seconds[0]:10.3f} s {seconds[1]:10.3f} s  {ratio:.0f} times as fast")
    for name, work in (
        ("minCllr", lambda: min_cllr(scores, labels)),
        ("Cllr", lambda: cllr(ratios, labels)),
        ("all figures of `metrics --llr`", lambda: evaluate(Scores(scored.trials, ratios), llr=True)),
        ("fit of an affine map", lambda: fit_linear(scores, labels)),
        ("fit of a PAV map", lambda: fit_pav(scores, labels)),
    ):
        wall, processor = timed(work)
        print(f"{name:32} {wall:10.3f} s {processor:10.3f} s")
    start, busy = time.perf_counter(), time.process_time()
    bootstrap(scored, REPLICATES)
    wall, processor = (
        (now - then) / REPLICATES for now, then in ((time.perf_counter(), start), (time.process_time(), busy))
    )
    print(f"{'a bootstrap replicate':32} {wall:10.3f} s {processor:10.3f} s")


if __name__ == "__main__":
    main()
