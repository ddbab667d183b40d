"""A small directory of mixtures with estimates of every kind, of noise that swings like speech."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speakerkit.data.mixing.lists import ListedMixture, Target, write_mixture_dir
from tests.conftest import speech_like

RATE = 8000
SECONDS = 2.0


@dataclass(frozen=True)
class MixtureSet:
    """Its folders, and the samples by name: "m0" a mixture, "m0-ann" a voice."""

    folder: Path
    estimates: Path
    samples: dict[str, np.ndarray]

    def estimate(self, key: str, samples: np.ndarray, rate: int = RATE) -> None:
        """Put an estimate there."""
        soundfile.write(self.estimates / f"{key}.wav", samples.astype(np.float32), rate, subtype="FLOAT")


def write_mixture_set(folder: Path) -> MixtureSet:
    """Mixtures m0 and m1 of ann and bob, m2 of cy alone with noise, who is wanted; in m1 cy is wanted and absent.

    In m0, ann speaks in [0, 1.5) and bob in [0.5, 1.75); in m1 both speak from start to end. No estimates yet.
    """
    samples: dict[str, np.ndarray] = {}
    listed = []

    def save(key: str, signal: np.ndarray) -> str:
        samples[key] = signal.astype(np.float32)
        path = folder / "wav" / f"{key}.wav"
        soundfile.write(path, samples[key], RATE, subtype="FLOAT")
        return str(path)

    (folder / "wav").mkdir(parents=True)
    (folder / "est").mkdir()
    for number, spans in enumerate(({"ann": (0.0, 1.5), "bob": (0.5, 1.75)}, {"ann": (0.0, 2.0), "bob": (0.0, 2.0)})):
        voices, key = {}, f"m{number}"
        for seed, (name, (start, end)) in enumerate(spans.items()):
            time = np.arange(round(SECONDS * RATE)) / RATE
            voices[name] = speech_like(SECONDS, RATE, seed=10 * number + seed) * ((time >= start) & (time < end))
        targets = [
            Target(name, save(f"{key}-{name}-enrol", speech_like(1.0, RATE, seed=50)), save(f"{key}-{name}", voice))
            for name, voice in voices.items()
        ]
        if number == 1:
            targets.append(Target("cy", save("cy-enrol", speech_like(1.0, RATE, seed=51))))
        turns = tuple((start, end, name) for name, (start, end) in spans.items())
        listed.append(ListedMixture(key, save(key, sum(voices.values())), SECONDS, tuple(targets), turns))
    alone = speech_like(SECONDS, RATE, seed=30)
    target = Target("cy", save("m2-cy-enrol", speech_like(1.0, RATE, seed=52)), save("m2-cy", alone))
    listed.append(
        ListedMixture("m2", save("m2", alone + 0.1 * speech_like(SECONDS, RATE, seed=31)), SECONDS, (target,))
    )
    write_mixture_dir(folder, listed)
    (folder / "spk2gender").write_text("ann f\nbob M\ncy f\n")
    return MixtureSet(folder, folder / "est", samples)


def write_estimates(made: MixtureSet) -> None:
    """One of each kind: good, swapped, silent, missing, too loud, and of an absent target."""
    one, other = made.samples["m0-ann"], made.samples["m0-bob"]
    made.estimate("m0-ann", one + 0.1 * other)
    made.estimate("m0-bob", one + 0.1 * other)  # swapped
    made.estimate("m1-ann", 0 * made.samples["m1"])
    made.estimate("m1-cy", 0.01 * made.samples["m1"])
    made.estimate("m2-cy", 30 * made.samples["m2-cy"] + made.samples["m2"])
