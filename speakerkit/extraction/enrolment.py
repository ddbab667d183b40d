"""Enrolments to the voices that an extraction model is told; what looks wrong with them is named."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Audio, AudioSource, Channel, load_audio
from speakerkit.embedding.enrolment import outliers, parts_apart, require_speech, speech_seconds
from speakerkit.errors import DataError
from speakerkit.extraction.runner import Runner

SHORT_SPEECH = 3.0  # seconds of speech under which a voice is told poorly
PART = 30.0  # seconds that a model's own encoder hears at once: at the papers' sizes a second takes 16 MB


@dataclass(frozen=True, eq=False)
class TargetVoice:
    """Whom to extract.

    Attributes:
        name: who it is.
        vector: (D,) as the embedding model or the model's own encoder gives it; the mean of several enrolments.
        speech: seconds of speech that it was made of.
        warnings: what looks wrong with the enrolments.
    """

    name: str
    vector: npt.NDArray[np.float32]
    speech: float
    warnings: tuple[str, ...] = ()


def enrol(
    runner: Runner,
    name: str,
    sources: Sequence[AudioSource],
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    threshold: float | None = None,
) -> TargetVoice:
    """The voice of one person by one or more recordings, each of which is embedded once.

    A model's own encoder hears what is longer than 30 s in parts of equal length, so that memory is bounded; the voice
    is the mean of theirs.

    Args:
        rate: Hz of those that are arrays.
        channel: that is heard.
        threshold: cosine below which the model tells two speakers apart; ``None`` where it has none. Cosines of a
            model's own encoder mean nothing without: there recordings are not compared.

    Raises:
        AudioError: a recording that cannot be read, or in which nobody speaks.
        DataError: no recordings.
    """
    if not sources:
        raise DataError(name, "has no enrolment", "give a recording of this voice alone")
    vectors, warnings, speech = [], [], 0.0
    comparable = threshold is not None or runner.bundle.config.voices == "embedding"
    for number, source in enumerate(sources):
        label = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"enrolment {number + 1} of {name}"
        audio = load_audio(source, rate=rate if isinstance(source, np.ndarray) else None, channel=channel)
        require_speech(audio, str(label))
        speech += speech_seconds(audio)
        if audio.rate < runner.enrolment_rate:
            warnings.append(f"{label}: is at {audio.rate} Hz, the model hears enrolments at {runner.enrolment_rate} Hz")
        audio = load_audio(audio.samples, runner.enrolment_rate, rate=audio.rate)
        vectors.append(_voice(runner, audio))
        if comparable:
            warnings.extend(_several_speakers(runner, audio, str(label), threshold))
    warnings[:0] = short_of_speech(name, speech)
    rows = np.stack(vectors)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    warnings.extend(
        f"{name}: enrolment {outlier.number + 1} of {len(rows)} is unlike the others (cosine {outlier.cosine:.2f} to "
        "their mean); is it the same speaker?"
        for outlier in (outliers(directions, threshold) if comparable else ())
    )
    return TargetVoice(name, rows.mean(axis=0), speech, tuple(warnings))


def _voice(runner: Runner, audio: Audio) -> npt.NDArray[np.float32]:
    count = math.ceil(audio.seconds / PART)
    if runner.bundle.config.voices == "embedding" or count < 2:
        return runner.voice(audio.samples)
    parts = [part for part in np.array_split(audio.samples, count) if part.any()]  # of silence no voice is made
    return np.average([runner.voice(part) for part in parts], axis=0, weights=[*map(len, parts)]).astype(np.float32)


def short_of_speech(name: str, seconds: float) -> tuple[str, ...]:
    """A warning where so many seconds of speech tell a voice poorly."""
    if seconds >= SHORT_SPEECH:
        return ()
    return (f"{name}: is enrolled with {seconds:.1f} s of speech; {SHORT_SPEECH:g} s or more tell a voice better",)


def _several_speakers(runner: Runner, audio: Audio, label: str, threshold: float | None) -> list[str]:
    apart = parts_apart(audio, lambda part: runner.voice(part.samples), runner.shortest_part, threshold)
    if not apart:
        return []
    places = ", ".join(f"{start:.1f} s" for start in apart)
    return [f"{label}: may hold several speakers: it sounds unlike itself from {places}"]
