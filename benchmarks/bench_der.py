"""DER of 16 recordings, 8.9 h, about 6000 turns: ours, spy-der (a C++ extension) and a plain loop over events.

    python benchmarks/bench_der.py

The turns are drawn so that four speakers take turns and overlap as in meetings; the hypothesis has moved edges, lost
turns and wrong labels. Medians of five runs, one thread, from turns in memory (spy-der: from its lists of tuples).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import spyder
from scipy.optimize import linear_sum_assignment

from speakerkit.diarization.der import Convention, score_diarization
from speakerkit.diarization.turns import Diarization, Turn

RECORDINGS, HOURS, TURNS, SPEAKERS = 16, 8.9, 8300, 4  # drawn; what overlaps of one speaker is merged
COLLAR = 0.25
RUNS = 5

Listed = dict[str, list[tuple[str, float, float]]]


def draw(rng: np.random.Generator, name: str) -> tuple[Diarization, Diarization]:
    """A reference and what a system might make of it."""
    count, seconds = TURNS // RECORDINGS, HOURS * 3600 / RECORDINGS
    starts = np.sort(rng.uniform(0, seconds - 30, count))
    ends = starts + np.minimum(rng.exponential(1.1 * seconds / count, count) + 0.2, 30)
    who = rng.integers(SPEAKERS, size=count)
    truth = [Turn(float(a), float(b), f"s{s}") for a, b, s in zip(starts, ends, who, strict=True)]
    found = []
    for turn, (one, other), chance in zip(truth, rng.normal(0, 0.15, (count, 2)), rng.random(count), strict=True):
        start, end = max(0.0, turn.start + one), turn.end + other
        label = f"h{rng.integers(SPEAKERS)}" if chance < 0.08 else f"h{turn.speaker}"
        if chance < 0.95 and end > start:
            found.append(Turn(float(start), float(end), label))
    return Diarization(name, tuple(truth)), Diarization(name, tuple(found))


def listed(diarizations: dict[str, Diarization]) -> Listed:
    """As spy-der takes them."""
    return {name: [(turn.speaker, turn.start, turn.end) for turn in each.turns] for name, each in diarizations.items()}


def plain(reference: Listed, hypothesis: Listed, collar: float) -> float:
    """Pooled DER from sets of open speakers, event by event."""
    wrong = speech = 0.0
    for name in reference:
        events = []
        for side, turns in (("ref", reference[name]), ("hyp", hypothesis[name])):
            for speaker, start, end in turns:
                events += [(start, side, 1, speaker), (end, side, -1, speaker)]
        for _, start, end in reference[name]:
            for bound in (start, end):
                events += [(bound - collar, "collar", 1, ""), (bound + collar, "collar", -1, "")]
        events.sort(key=lambda event: event[0])
        open_now: dict[str, set[str]] = {"ref": set(), "hyp": set()}
        collars, last, intervals, shared = 0, events[0][0], [], {}
        for at, side, change, speaker in events:
            if at > last:
                ref, hyp = frozenset(open_now["ref"]), frozenset(open_now["hyp"])
                intervals.append((at - last, ref, hyp, collars == 0))
                for one in ref:
                    for other in hyp:
                        shared[one, other] = shared.get((one, other), 0.0) + at - last
                last = at
            if side == "collar":
                collars += change
            elif change > 0:
                open_now[side].add(speaker)
            else:
                open_now[side].discard(speaker)
        rows, columns = sorted({one for one, _ in shared}), sorted({other for _, other in shared})
        table = np.array([[shared.get((one, other), 0.0) for other in columns] for one in rows])
        mapped = {rows[r]: columns[c] for r, c in zip(*linear_sum_assignment(table, maximize=True), strict=True)}
        for seconds, ref, hyp, scored in intervals:
            if scored:
                right = sum(mapped.get(one) in hyp for one in ref)
                speech += seconds * len(ref)
                wrong += seconds * (max(len(ref), len(hyp)) - right)
    return wrong / speech


def timed(work: Callable[[], object]) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main() -> None:
    rng = np.random.default_rng(0)
    drawn = {f"meeting{number:02d}": draw(rng, f"meeting{number:02d}") for number in range(RECORDINGS)}
    reference = {name: pair[0] for name, pair in drawn.items()}
    hypothesis = {name: pair[1] for name, pair in drawn.items()}
    ref, hyp = listed(reference), listed(hypothesis)
    turns = sum(map(len, ref.values()))

    def ours() -> float:
        return score_diarization(reference, hypothesis, convention=Convention(collar=COLLAR)).errors.der or 0.0

    def theirs() -> float:
        return spyder.DER(ref, hyp, collar=COLLAR)["Overall"].der

    def loop() -> float:
        return plain(ref, hyp, COLLAR)

    print(f"{RECORDINGS} recordings, {HOURS} h, {turns} turns, collar {COLLAR} s on each side, median of {RUNS}")
    base = timed(ours)
    print(f"ours (DER and JER, all groups)  {base:8.4f} s  DER {100 * ours():.4f} %")
    for name, work in (("spy-der", theirs), ("plain loop", loop)):
        seconds = timed(work)
        print(f"{name:30}  {seconds:8.4f} s  DER {100 * work():.4f} %  {seconds / base:6.2f} times ours")
    explained = timed(lambda: score_diarization(reference, hypothesis, convention=Convention(COLLAR), explain=True))
    filtered = timed(lambda: score_diarization(reference, hypothesis, convention=Convention(COLLAR, median=11)))
    print(f"ours with every error listed    {explained:8.4f} s")
    print(f"ours with the median filter     {filtered:8.4f} s")


if __name__ == "__main__":
    main()
