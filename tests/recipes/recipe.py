"""What the tests of recipes share: how one is run, and a small corpus of invented voices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from tests.conftest import REPOSITORY, speech_like

RATE = 16000


def run_recipe(name: str, *arguments: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    """``examples/NAME/run.sh``, with the interpreter of the tests."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(REPOSITORY / "examples" / name / "run.sh"), "--workdir", str(workdir), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)


def assert_refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    """Exit code 2, and one line that says why."""
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def tone(speaker: int, seconds: float, seed: int) -> np.ndarray:
    """Noise with a tone of its own for each speaker, with pauses, as a detector of speech expects."""
    samples = speech_like(seconds, RATE, seed)
    times = np.arange(len(samples)) / RATE
    loud = np.sin(2 * np.pi * 0.7 * times - 1.0) > -0.5
    voice = 0.5 * samples + 0.2 * np.sin(2 * np.pi * 220 * (speaker + 1) * times)
    return (voice * np.where(loud, 1, 1e-2)).astype("f4")


def write_librispeech(folder: Path, speakers: Iterable[int]) -> None:
    """Three utterances of 3 s of each speaker, in the layout of a subset of LibriSpeech."""
    for speaker in speakers:
        chapter = folder / str(speaker) / "7"
        chapter.mkdir(parents=True)
        for number in range(3):
            samples = tone(speaker, 3.0, 10 * speaker + number)
            soundfile.write(chapter / f"{speaker}-7-{number:04d}.flac", samples, RATE)
