"""Utterances a second: `embed_many`, a loop of `embed`, and torch one by one on one thread (as WeSpeaker's CLI does).

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_embed.py [--utterances 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from speakerkit.bundle import BundleConfig, read_bundle, write_bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.embedding.model import backbone_for, open_backbone
from speakerkit.export.bundle import export_bundle
from speakerkit.features import FrontEnd, features

RATE = 16000


def make_bundle(folder: Path, name: str) -> Path:
    """A bundle with random weights and its ONNX file."""
    torch.manual_seed(0)
    model, frontend = NamedConfig(name), FrontEnd()
    backbone = backbone_for(model, frontend)
    write_bundle(folder, BundleConfig(model, frontend, backbone.embed_dim), backbone.state_dict())
    export_bundle(folder)
    return folder


def make_audio(folder: Path, count: int, equal: bool) -> list[tuple[str, str]]:
    """Noise of 2 to 8 s, or all of 4 s, as 16-bit wav."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(count):
        seconds = 4.0 if equal else rng.uniform(2, 8)
        path = folder / f"{'equal' if equal else 'mixed'}{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * RATE)), RATE)
        entries.append((str(number), str(path)))
    return entries


def torch_one_by_one(bundle: Path) -> Callable[[list[tuple[str, str]]], None]:
    """Batches of one on one torch thread."""
    backbone = open_backbone(read_bundle(bundle)).eval()

    def run(entries: list[tuple[str, str]]) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            for _, path in entries:
                samples, _ = soundfile.read(path, dtype="float32")
                backbone(torch.from_numpy(features(samples, FrontEnd()))[None])

    return run


def loop(model: Embedder, entries: list[tuple[str, str]]) -> None:
    """One call a recording."""
    for _, path in entries:
        model.embed(path)


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="ECAPA_TDNN_GLOB_c512")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder / "bundle", options.model)
        model, single = load(bundle, "cpu"), load(bundle, "cpu", threads=1)
        by_torch = torch_one_by_one(bundle)
        print(f"{options.model}, {options.utterances} utterances, median of {options.rounds}, {os.cpu_count()} cores")
        for equal in (True, False):
            entries = make_audio(folder, options.utterances, equal)
            runs: dict[str, Callable[[], object]] = {
                "torch, one by one, 1 thread": lambda e=entries: by_torch(e),
                "embed, one by one": lambda e=entries: loop(model, e),
                "embed_many, 1 thread": lambda e=entries: list(single.embed_many(e)),
                "embed_many, all cores": lambda e=entries: list(model.embed_many(e)),
            }
            times: dict[str, list[float]] = {label: [] for label in runs}
            for _ in range(options.rounds):  # in turns, so that a busy moment of the machine hits all of them
                for label, run in runs.items():
                    started = time.perf_counter()
                    run()
                    times[label].append(time.perf_counter() - started)
            print("lengths: " + ("all 4 s" if equal else "2 to 8 s"))
            slowest = statistics.median(times["torch, one by one, 1 thread"])
            one_by_one = statistics.median(times["embed, one by one"])
            for label, taken in times.items():
                median = statistics.median(taken)
                print(
                    f"  {label:<28} {options.utterances / median:7.1f} utt/s"
                    f"  {slowest / median:5.2f} x torch  {one_by_one / median:5.2f} x one by one"
                )


if __name__ == "__main__":
    main()
