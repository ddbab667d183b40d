"""Training on the CPU: samples a second of the data pipeline, and what a step costs beside forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/bench_train.py

The data are made here: recordings of about 11 s, noises and room responses of noise. The naive pipeline, in this file
and in the same process, is what a reader would write first: decode the whole file, resample the whole for the change of
speed (scipy), cut the chunk, add noise and reverberation, torchaudio's fbank one utterance at a time. Ours yields what
the naive one does, with the batched filterbank of the model included. Medians of RUNS runs.

Published, not measured here (research notes of 2026-11-21, torch 2.8, 2 quiet cores, same chunk and augmentation):
WeSpeaker's pipeline gives 79 (shard) and 78 (raw) samples/s without loading processes, 73 and 102 with one, 114 and 131
with two, 12.4 ms of processor time a sample.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from scipy.signal import fftconvolve, resample_poly

from speakerkit.config import NamedConfig
from speakerkit.data.augment import add_at_snr
from speakerkit.data.lists import Utterance, write_utterance_list
from speakerkit.data.shards import write_shards
from speakerkit.embedding.config import DataConfig, EmbeddingConfig
from speakerkit.embedding.task import EmbeddingTask
from speakerkit.nn.fbank import Fbank
from speakerkit.training.config import OptimConfig, ScheduleConfig, TrainerConfig
from speakerkit.training.distributed import World
from speakerkit.training.trainer import Trainer

RATE, SECONDS, UTTERANCES, SPEAKERS = 16000, 11.0, 200, 20
BATCH, FRAMES, RUNS = 64, 200, 5
ECAPA = NamedConfig("ECAPA_TDNN", {"channels": 256})


def make(folder: Path) -> None:
    """``raw.list``, ``shards/``, ``noise/`` and ``rir/``."""
    rng = np.random.default_rng(0)
    utterances = []
    for number in range(UTTERANCES):
        length = round(SECONDS * RATE * rng.uniform(0.7, 1.3))
        path = folder / "wav" / f"u{number:04d}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(length), RATE)
        utterances.append(Utterance(path.stem, f"s{number % SPEAKERS}", str(path)))
    write_utterance_list(folder / "raw.list", utterances)
    write_shards(utterances, folder / "shards", per_shard=50)
    for name, count, seconds in (("noise/noise", 20, 10.0), ("rir/room", 20, 0.5)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            samples = rng.standard_normal(round(seconds * RATE))
            decay = np.exp(-np.arange(len(samples)) / 1600) if name.startswith("rir") else 1.0
            soundfile.write(folder / name / f"{number}.wav", 0.1 * samples * decay, RATE)


def settings(folder: Path, kind: str, augmented: bool, workers: int) -> EmbeddingConfig:
    """The configuration of one row."""
    augment: list[dict[str, Any]] = [{"name": "noise", "prob": 0.3}, {"name": "reverb", "prob": 0.3}]
    return EmbeddingConfig(
        data=DataConfig(
            train=str(folder / "raw.list" if kind == "raw" else folder / "shards" / "shard.list"),
            format=kind,  # type: ignore[arg-type]
            noise=str(folder / "noise"),
            rir=str(folder / "rir"),
            batch_size=BATCH,
            chunk_frames=FRAMES,
            speeds=[1.0, 0.9, 1.1] if augmented else [1.0],
            augment=augment if augmented else [],
            workers=workers,
        ),
        model=ECAPA,
        head=NamedConfig("arc_margin"),
    )


def ours(config: EmbeddingConfig) -> Iterator[torch.Tensor]:
    """Features (BATCH, FRAMES, mels), as the model sees them."""
    fbank = Fbank(config.frontend)
    for batch in EmbeddingTask(config).train_batches(0, 1):
        yield fbank(batch["inputs"])


def naive(config: EmbeddingConfig, folder: Path, augmented: bool) -> Iterator[torch.Tensor]:
    """The same features, each utterance by itself, from whole files."""
    rng = np.random.default_rng(0)
    paths = sorted((folder / "wav").iterdir())
    stores = {name: sorted((folder / name).rglob("*.wav")) for name in ("noise", "rir")}
    wanted = config.frontend.chunk_samples(FRAMES)
    while True:
        rows = []
        for _ in range(BATCH):
            samples, _ = soundfile.read(paths[rng.integers(len(paths))], dtype="float32")
            ratio = [(1, 1), (10, 9), (10, 11)][rng.integers(3)] if augmented else (1, 1)
            if ratio != (1, 1):
                samples = resample_poly(samples, *ratio)
            first = rng.integers(len(samples) - wanted + 1)
            samples = samples[first : first + wanted]
            if augmented and rng.random() < 0.3:
                noise, _ = soundfile.read(stores["noise"][rng.integers(20)], dtype="float32")
                start = rng.integers(len(noise) - wanted)
                samples = add_at_snr(samples, noise[start : start + wanted], rng.uniform(0, 15))
            if augmented and rng.random() < 0.3:
                response, _ = soundfile.read(stores["rir"][rng.integers(20)], dtype="float32")
                samples = fftconvolve(samples, response)[:wanted].astype(np.float32)
            feats = torchaudio.compliance.kaldi.fbank(
                torch.from_numpy(samples * 32768)[None], num_mel_bins=80, window_type="hamming"
            )
            rows.append(feats - feats.mean(dim=0))
        yield torch.stack(rows)


def rates(streams: list[Iterator[torch.Tensor]], batches: int) -> list[float]:
    """Median samples a second of each, taken in turn."""
    for stream in streams:
        next(stream)
    seconds: list[list[float]] = [[] for _ in streams]
    for _ in range(RUNS):
        for index, stream in enumerate(streams):
            start = time.perf_counter()
            for _ in range(batches):
                next(stream)
            seconds[index].append(time.perf_counter() - start)
    return [batches * BATCH / median(each) for each in seconds]


def pipelines(folder: Path) -> None:
    """Print the table of the data pipeline."""
    print(
        f"data pipeline, {SECONDS:.0f} s recordings, chunks of {FRAMES} frames, samples/s (ratio to naive, 0 workers)"
    )
    for augmented in (False, True):
        for kind in ("raw", "shard"):
            config = settings(folder, kind, augmented, 0)
            plain, simple = rates([ours(config), naive(config, folder, augmented)], batches=3)
            row = [plain]
            for workers in (1, 2):
                # With loading processes, prefetched batches would flatter a short run.
                row += rates([ours(settings(folder, kind, augmented, workers))], batches=16)
            cells = "  ".join(
                f"{workers} workers {rate:6.0f} ({rate / simple:4.1f}x)" for workers, rate in enumerate(row)
            )
            print(f"  {kind:5s} augmentation {'on ' if augmented else 'off'}  naive {simple:5.0f}  {cells}", flush=True)


def step_costs(folder: Path) -> None:
    """Print what the loop's guards cost beside the step itself."""
    config = settings(folder, "raw", False, 0)
    task = EmbeddingTask(config)
    trainer = Trainer(
        task,
        folder / "exp",
        World(0, 1, torch.device("cpu")),
        trainer=TrainerConfig(device="cpu"),
        optim=OptimConfig(),
        schedule=ScheduleConfig(),
        seed=0,
        batch_size=BATCH,
    )
    batch = next(task.train_batches(0, 1))
    model = trainer.model.train()
    gradients = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def whole() -> None:
        trainer._train_step(model, [batch])

    def bare() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        task.loss(model, batch)[0].backward()
        trainer.optimizer.step()

    parts: dict[str, Callable[[], object]] = {
        "buffer copies": lambda: [buffer.clone() for buffer in model.buffers()],
        "seeding": lambda: trainer._seed_step(1),
        "gradient norm": lambda: torch.nn.utils.clip_grad_norm_(gradients, float("inf")),
        "margin": lambda: task.start_step(model, 1),
        "finite check of weights (when saving)": lambda: [torch.isfinite(t).all() for t in model.state_dict().values()],
    }
    whole(), bare()
    times: dict[str, list[float]] = {name: [] for name in ("step", "bare step", *parts)}
    for _ in range(RUNS):
        for name, work in {"step": whole, "bare step": bare, **parts}.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    step = median(times["step"])
    print(f"a step of ECAPA-TDNN c256, {BATCH} x {FRAMES} frames, {torch.get_num_threads()} thread(s), processor time")
    for name, values in times.items():
        print(f"  {name:38s} {1000 * median(values):9.2f} ms  {100 * median(values) / step:6.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("pipeline", "step"), help="one of the two tables")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        if only != "step":
            pipelines(Path(name))
        if only != "pipeline":
            step_costs(Path(name))


if __name__ == "__main__":
    main()
