"""Medians of five runs, for the benchmarks: seconds of the processor, which other work on the machine does not stretch,
and of the clock beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

RUNS = 5


@dataclass(frozen=True)
class Seconds:
    """How long something takes, by the processor and by the clock."""

    processor: float
    clock: float

    def times(self, factor: float) -> Seconds:
        """The same of ``factor`` times as much."""
        return Seconds(self.processor * factor, self.clock * factor)


def once(work: Callable[[], object]) -> Seconds:
    """Seconds of one run."""
    processor, clock = time.process_time(), time.perf_counter()
    work()
    return Seconds(time.process_time() - processor, time.perf_counter() - clock)


def timed(work: Callable[[], object]) -> Seconds:
    """Median seconds."""
    runs = [once(work) for _ in range(RUNS)]
    return Seconds(median(run.processor for run in runs), median(run.clock for run in runs))


def report(name: str, taken: Seconds, loop: Seconds | None = None, note: str = "") -> None:
    """Print a line: what took how long, and how many times as long the loop takes the processor."""
    ratio = "" if loop is None else f"{loop.processor / taken.processor:8.0f} times as fast"
    print(f"{name:48}{taken.processor:9.3f} s ({taken.clock:.3f} by the clock){ratio}{note}", flush=True)
