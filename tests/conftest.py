"""What several tests share: real recordings where they are, and small audio files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings, or a skip that says where they would be."""
    folder = Path(os.environ.get("SPEAKERKIT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "librispeech-mini").is_dir():
        pytest.skip("no real recordings: set SPEAKERKIT_DATA to a folder that holds librispeech-mini")
    return folder


@pytest.fixture
def write_wav(tmp_path: Path) -> Callable[..., Path]:
    """``write_wav(name, seconds=1.0, rate=16000, seed=0)``: a file of coloured noise with speech-like level changes."""

    def write(name: str, seconds: float = 1.0, rate: int = 16000, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(seconds, rate, seed), rate)
        return path

    return write


def speech_like(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """(samples,) float32: low-passed noise whose level swings four times a second, peak 0.5."""
    rng = np.random.default_rng(seed)
    count = max(1, round(seconds * rate))
    noise = np.convolve(rng.standard_normal(count + 8), np.ones(8) / 8, mode="valid")[:count]
    swing = 0.6 + 0.4 * np.sin(2 * np.pi * (3 + seed % 5) * np.arange(count) / rate)
    samples = noise * swing
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)
