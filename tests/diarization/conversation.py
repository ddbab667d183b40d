"""A made-up conversation whose speakers a stand-in for a model tells apart by the pitch of their voices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speakerkit.audio import resample
from speakerkit.diarization.turns import Diarization, Turn
from speakerkit.embedding.embedder import Embedder, load

RATE = 16000
LOWEST, STEP = 200.0, 250.0  # Hz: the first speaker's voice, and from one to the next


def conversation(
    speakers: int, turns: int, seed: int = 0, rate: int = RATE, seconds: tuple[float, float] = (2.0, 4.0)
) -> tuple[np.ndarray, Diarization]:
    """Samples (n,) float32 and their turns: everybody in order, then by chance, with pauses of half a second."""
    rng = np.random.default_rng(seed)
    order = [*range(speakers)]
    while len(order) < turns:
        order.append(int(rng.choice([each for each in range(max(2, speakers)) if each != order[-1] or speakers == 1])))
    order = [each % speakers for each in order]
    parts, listed, now = [np.zeros(RATE // 2)], [], 0.5
    for speaker in order:
        length = round(float(rng.uniform(*seconds)), 3)
        count = round(length * RATE)
        times = np.arange(count) / RATE
        swing = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * times)
        voice = np.sin(2 * np.pi * (LOWEST + STEP * speaker) * times) * swing
        parts += [0.3 * voice + 1e-3 * rng.standard_normal(count), np.zeros(RATE // 2)]
        listed.append(Turn(now, now + length, f"s{speaker}"))
        now += length + 0.5
    samples = resample(np.concatenate(parts).astype(np.float32), RATE, rate)
    return samples, Diarization("talk", tuple(listed), len(samples) / rate)


def pitch_embedder(bundle: Path, threads: int = 1) -> Embedder:
    """The embedder of a bundle (D = 16) with a spectrum in 16 bands of 250 Hz for embeddings."""
    embedder = load(bundle, "cpu", threads)

    def embed(batches: Iterable[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, np.ndarray]]:
        for tag, samples in batches:
            power = np.abs(np.fft.rfft(samples, n=2 * RATE // 2, axis=1)) ** 2  # a bin a Hz
            bands = power[:, 75 : 75 + 16 * 250].reshape(len(samples), 16, 250).sum(axis=2)
            yield tag, (bands / bands.sum(axis=1, keepdims=True) + 1e-3).astype(np.float32)

    embedder.embed_batches = embed  # type: ignore[assignment, method-assign]
    return embedder


def agreement(found: Diarization, true: Diarization) -> float:
    """Share of the true speech whose label stands for its speaker: the one with whom it shares the most time."""
    shared: dict[str, dict[str, float]] = {}
    for turn in found.turns:
        for other in true.turns:
            seconds = min(turn.end, other.end) - max(turn.start, other.start)
            if seconds > 0:
                row = shared.setdefault(turn.speaker, {})
                row[other.speaker] = row.get(other.speaker, 0.0) + seconds
    owners = [max(row, key=lambda each: row[each]) for row in shared.values()]
    assert len(set(owners)) == len(owners), "a speaker has two labels"
    return sum(max(row.values()) for row in shared.values()) / sum(turn.seconds for turn in true.turns)
