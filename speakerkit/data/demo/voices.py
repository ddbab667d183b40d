"""Invented speakers: espeak-ng voice variants drawn by chance, and speech in them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speakerkit.audio import Samples, resample
from speakerkit.errors import DataError, MissingExtraError

ACCENTS = {  # file of the voice below `lang`: share; the foreign ones read English by their own rules
    "gmw/en-US": 5,
    "gmw/en": 4,
    "gmw/en-GB-x-rp": 2,
    "gmw/en-GB-scotland": 2,
    "gmw/en-GB-x-gbclan": 2,
    "gmw/en-GB-x-gbcwmd": 2,
    "gmw/en-US-nyc": 2,
    "gmw/en-029": 2,
    "gmw/nl": 1,
    "gmq/sv": 1,
    "roa/it": 1,
    "roa/es": 1,
    "roa/ro": 1,
    "zlw/pl": 1,
}
DATA_FILES = ("phondata", "phonindex", "phontab", "intonations", "lang")
FORMANTS = 9
MIN_SECONDS = 0.3  # of a sentence; less means that a dictionary is missing
SYNTHESIS_SECONDS = 120  # a speaker takes a fraction of one; more means that espeak-ng hangs


@dataclass(frozen=True)
class Voice:
    """What makes a speaker: accent, glottis and vocal tract.

    Attributes:
        accent: espeak-ng's voice, one of ``ACCENTS``.
        pitch: base pitch in Hz.
        pitch_range: ratio of the highest pitch to the base.
        formants: factor on the frequency of each of the formants 0 to 8.
        strengths: factor on their amplitudes.
        widths: factor on their bandwidths.
        words_per_minute: speed.
        tone: amplitudes (0 to 255) at 600, 1200 and 2000 Hz, the slope of the voice's spectrum.
        breath: noise of the formants 1 to 8.
        roughness, flutter: creak (0 to 7) and tremor (0 to 20).
        voicing: strength of the vowels in percent.
        consonants: strength in percent of the noise in unvoiced and in voiced consonants.
        stress: additions to the lengths of the eight kinds of syllable.
    """

    accent: str
    pitch: float
    pitch_range: float
    formants: tuple[float, ...]
    strengths: tuple[float, ...]
    widths: tuple[float, ...]
    words_per_minute: float
    tone: tuple[int, ...]
    breath: tuple[int, ...]
    roughness: int
    flutter: int
    voicing: int
    consonants: tuple[int, ...]
    stress: tuple[int, ...]

    def variant(self, name: str) -> str:
        """The text of an espeak-ng voice variant (docs/voices.md there)."""
        lines = ["language variant", f"name {name}"]
        lines.append(f"pitch {round(self.pitch)} {round(self.pitch * self.pitch_range)}")
        for number in range(FORMANTS):
            factors = (self.formants[number], self.strengths[number], self.widths[number])
            lines.append(f"formant {number} {_words(100 * factor for factor in factors)}")
        lines.append(f"tone 600 {self.tone[0]} 1200 {self.tone[1]} 2000 {self.tone[2]}")
        lines += [f"roughness {self.roughness}", f"flutter {self.flutter}", f"voicing {self.voicing}"]
        lines += [f"consonants {_words(self.consonants)}", f"breath {_words(self.breath)}"]
        lines.append(f"stressAdd {_words(self.stress)}")
        return "\n".join(lines) + "\n"


def _words(values: Sequence[float] | Iterator[float]) -> str:
    return " ".join(str(round(value)) for value in values)


def draw_voice(rng: np.random.Generator) -> Voice:
    """A speaker by chance. The spreads between speakers are about those of people: a vocal tract differs by some
    8 % within a sex and 12 % between them, the base pitch by 18 % within one."""
    accents, shares = list(ACCENTS), np.array(list(ACCENTS.values()), dtype=np.float64)
    low_voice = rng.random() < 0.5
    tract = (0.98 if low_voice else 1.1) * np.exp(rng.normal(0, 0.05))
    formants = np.clip(tract * np.exp(rng.normal(0, 0.05, FORMANTS)), 0.8, 1.35)
    breathiness = rng.choice([0.0, 0.0, 2.0, 5.0])
    return Voice(
        accent=str(rng.choice(accents, p=shares / shares.sum())),
        pitch=float(np.clip((100 if low_voice else 175) * np.exp(rng.normal(0, 0.18)), 65, 290)),
        pitch_range=float(rng.uniform(1.15, 1.7)),
        formants=tuple(formants.tolist()),
        strengths=tuple(np.exp(rng.normal(0, 0.25, FORMANTS)).tolist()),
        widths=tuple(np.exp(rng.normal(0, 0.2, FORMANTS)).tolist()),
        words_per_minute=float(np.clip(rng.normal(165, 20), 120, 220)),
        tone=tuple(int(value) for value in np.clip(rng.normal((170, 135, 110), 30), 40, 255)),
        breath=tuple(int(value) for value in np.round(breathiness * rng.uniform(0.3, 1.0, FORMANTS - 1))),
        roughness=int(rng.choice([0, 0, 1, 2, 3, 4])),
        flutter=int(rng.integers(0, 8)),
        voicing=int(rng.integers(75, 135)),
        consonants=tuple(int(value) for value in rng.integers(60, 145, 2)),
        stress=tuple(int(value) for value in rng.integers(-20, 25, 8)),
    )


def vary_voice(voice: Voice, rng: np.random.Generator) -> Voice:
    """The same speaker on another occasion: other pitch, speed, effort, and a little of everything else."""
    return replace(
        voice,
        pitch=float(np.clip(voice.pitch * np.exp(rng.normal(0, 0.07)), 60, 320)),
        pitch_range=float(voice.pitch_range * np.exp(rng.normal(0, 0.06))),
        words_per_minute=float(np.clip(voice.words_per_minute * np.exp(rng.normal(0, 0.08)), 100, 250)),
        formants=tuple(factor * np.exp(rng.normal(0, 0.012)) for factor in voice.formants),
        strengths=tuple(factor * np.exp(rng.normal(0, 0.08)) for factor in voice.strengths),
        tone=tuple(int(np.clip(value + rng.normal(0, 12), 20, 255)) for value in voice.tone),
        roughness=int(np.clip(voice.roughness + rng.integers(-1, 2), 0, 7)),
    )


class Speech:
    """espeak-ng with a data directory of its own; made by :func:`espeak_speech`."""

    def __init__(self, library: str, data: Path) -> None:
        self._library = library
        self._data = data

    def say(self, name: str, voices: Sequence[Voice], texts: Sequence[str], rate: int) -> list[Samples]:
        """Each text in its voice, as (samples,) float32 at ``rate`` Hz, peak at most 1. Safe to call from threads.

        Args:
            name: a name for the voice's file that no other call uses.

        Raises:
            DataError: espeak-ng failed.
        """
        utterances = [
            {
                "accent": voice.accent,
                "voice": voice.variant(name),
                "words_per_minute": round(voice.words_per_minute),
                "text": text,
            }
            for voice, text in zip(voices, texts, strict=True)
        ]
        request = {"library": self._library, "data": str(self._data), "variant": name, "utterances": utterances}
        script = Path(__file__).with_name("espeak.py")
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(script)],
                input=json.dumps(request).encode(),
                capture_output=True,
                check=True,
                timeout=SYNTHESIS_SECONDS,
            )
        except subprocess.SubprocessError as error:
            reason = getattr(error, "stderr", None) or str(error).encode()
            raise DataError(
                "espeak-ng", f"failed for {name}: {reason.decode(errors='replace')}", "reinstall espeakng-loader"
            ) from None
        head, _, body = done.stdout.partition(b"\n")
        answer = json.loads(head)
        if min(answer["samples"]) < MIN_SECONDS * answer["rate"]:
            raise DataError("espeak-ng", f"said next to nothing for {name}", "reinstall espeakng-loader")
        samples = np.frombuffer(body, dtype=np.int16).astype(np.float32) / 32768.0
        parts = np.split(samples, np.cumsum(answer["samples"])[:-1])
        return [resample(part, answer["rate"], rate) for part in parts]


@contextmanager
def espeak_speech() -> Iterator[Speech]:
    """espeak-ng from the wheel, with a temporary data directory (1 MB, removed afterwards) to hold the voices.

    Raises:
        MissingExtraError: ``espeakng_loader`` is not installed.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise MissingExtraError("the demo corpus (espeak-ng)", "train") from None
    source = Path(espeakng_loader.get_data_path())
    languages = sorted({accent.partition("/")[2].partition("-")[0] for accent in ACCENTS})
    with tempfile.TemporaryDirectory(prefix="speakerkit-espeak-") as folder:
        data = Path(folder) / "espeak-ng-data"
        (data / "voices" / "!v").mkdir(parents=True)
        for name in (*DATA_FILES, *(f"{language}_dict" for language in languages)):
            copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
            copy(source / name, data / name)
        yield Speech(espeakng_loader.get_library_path(), data)
