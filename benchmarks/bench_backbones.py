"""Experiments side by side as a Markdown table: size, MACs, steps, EER, and extraction speed on one thread.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_backbones.py examples/voxceleb/exp/mini-backbone-* [--rounds 5]

The speed is of `Embedder.embed` (features and onnxruntime, one thread) on 10 s of noise, in seconds of audio a second;
its ratio is to the first experiment, all of them measured in turns in the same run. Without experiments, the registered
small configurations with random weights are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from speakerkit.bundle import Bundle, BundleConfig, read_bundle, write_bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.embedder import Embedder
from speakerkit.embedding.model import backbone_for, open_backbone
from speakerkit.export.bundle import export_bundle
from speakerkit.features import FrontEnd

SECONDS = 10.0
FRAMES = 200  # 2 s
COLUMNS = (
    *("experiment", "model", "parameters", "MACs for 2 s", "steps", "EER %", "EER %, mean subtracted"),
    *("x real time, 1 thread", "ratio"),
)
UNTRAINED = {
    "resnet34-thin": NamedConfig("ResNet34", {"m_channels": 16}),
    "ecapa-c512": NamedConfig("ECAPA_TDNN_GLOB_c512"),
    "xvector": NamedConfig("XVEC"),
}


def untrained(folder: Path) -> list[Path]:
    """Bundles with random weights."""
    for name, model in UNTRAINED.items():
        torch.manual_seed(0)
        backbone = backbone_for(model, FrontEnd())
        config = BundleConfig(model, FrontEnd(), backbone.embed_dim)
        write_bundle(folder / name / "bundle", config, backbone.state_dict())
        export_bundle(folder / name / "bundle")
    return [folder / name for name in UNTRAINED]


def millions_of_macs(bundle: Bundle) -> tuple[float, float]:
    """Parameters as trained, and multiply-accumulates (convolutions, matrix products) of 2 s at inference, in 10^6."""
    backbone = open_backbone(bundle).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.deployed()(torch.randn(1, FRAMES, backbone.feat_dim))
    return sum(parameter.numel() for parameter in backbone.parameters()) / 1e6, counter.get_total_flops() / 2e6


def speeds(embedders: list[Embedder], rounds: int) -> list[float]:
    """Median seconds of audio a second of each, measured in turns."""
    audio = (0.1 * np.random.default_rng(0).standard_normal(round(SECONDS * 16000))).astype(np.float32)
    times: list[list[float]] = [[] for _ in embedders]
    for turn in range(rounds + 1):
        for embedder, taken in zip(embedders, times, strict=True):
            started = time.perf_counter()
            embedder.embed(audio, rate=16000)
            if turn:  # the first warms up
                taken.append(time.perf_counter() - started)
    return [SECONDS / statistics.median(taken) for taken in times]


def eers(exp_dir: Path) -> list[str]:
    """EER in percent of each score file, cosine first."""
    path = exp_dir / "results.json"
    if not path.is_file():
        return ["-", "-"]
    scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
    return [f"{100 * scores[name]['eer']:.2f}" for name in sorted(scores)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folders = options.experiments or untrained(Path(scratch))
        bundles = [read_bundle(folder / "bundle") for folder in folders]
        measured = speeds([Embedder(bundle, "cpu", threads=1) for bundle in bundles], options.rounds)
        print("| " + " | ".join(COLUMNS) + " |")
        print("| --- " * len(COLUMNS) + "|")
        for folder, bundle, speed in zip(folders, bundles, measured, strict=True):
            size, macs = millions_of_macs(bundle)
            steps = bundle.config.provenance.get("steps", 0)
            cells = [folder.name, bundle.config.model.name, f"{size:.2f} M", f"{macs:.0f} M", str(steps), *eers(folder)]
            print("| " + " | ".join([*cells, f"{speed:.0f}", f"{speed / measured[0]:.2f}"]) + " |")


if __name__ == "__main__":
    sys.exit(main())
