"""Recordings to enrolments: what cannot stand for a voice is refused, what looks wrong is named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Audio, Channel, load_audio, require_signal
from speakerkit.embedding.embedder import Embedder, Short
from speakerkit.errors import AudioError, SpeakerKitError
from speakerkit.verification.voiceprints.store import Enrolment, Vector, unit

STEADY_DB = 0.5  # standard deviation of the level of 25 ms: 0 for a tone, 0.3 for white noise at 16 kHz, 5 for speech
PART_SECONDS = 3.0  # of the parts of a recording that are compared with one another
FAR = 0.25  # cosine to the rest below which a recording stands apart where the model has no threshold
GAP = 0.25  # so much below the median of all recordings, and it stands apart in any case


@dataclass(frozen=True)
class Outlier:
    """An item whose cosine to the mean of the others is low."""

    number: int
    cosine: float


def require_speech(audio: Audio, name: str) -> None:
    """Raise AudioError for silence and for steady sounds (tones, hum, noise): where nobody speaks, nobody can be known.

    A steady sound has a level that does not change. For white noise, the level of n samples spreads by
    10 / ln 10 * sqrt(2 / n) dB: 0.3 dB in 25 ms at 16 kHz. Speech of a second has pauses and syllables.
    """
    require_signal(audio, name)
    window = max(1, round(0.025 * audio.rate))
    count = len(audio.samples) // window
    if count < 4:
        return  # too short to tell; whether it is too short for the model, the model knows
    frames = audio.samples[: count * window].reshape(count, window).astype(np.float64)  # (windows, samples)
    levels = 10 * np.log10(np.var(frames, axis=1) + 1e-12)
    if float(np.std(levels)) < STEADY_DB:
        raise AudioError(name, "holds a steady sound and no speech", "check the channel and the microphone")


def enrolment_of(embedder: Embedder, path: str | Path, channel: Channel = "mix", short: Short = "error") -> Enrolment:
    """Embed a recording for enrolment or comparison.

    Raises:
        AudioError: no speech, too short, or not readable.
    """
    audio = load_audio(path, channel=channel)
    require_speech(audio, str(path))
    embedding = embedder.embed(path, channel=channel, short=short)
    return Enrolment.from_embedding(embedding, audio.seconds, _sha256(path), str(path))


def outliers(vectors: npt.ArrayLike, threshold: float | None = None) -> list[Outlier]:
    """Which of several vectors (items, dim) of length one are unlike the mean of the others.

    Args:
        threshold: cosine below which the model tells two speakers apart; ``None`` where it has none.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if len(rows) < 2:
        return []
    rest = rows.sum(axis=0) - rows  # (items, dim)
    to_rest = (rows * rest).sum(axis=1) / np.maximum(np.linalg.norm(rest, axis=1), 1e-12)
    limit = max(FAR if threshold is None else threshold, float(np.median(to_rest)) - GAP)
    return [Outlier(number, float(cosine)) for number, cosine in enumerate(to_rest) if cosine < limit]


def parts_apart(
    embedder: Embedder, path: str | Path, channel: Channel = "mix", threshold: float | None = None
) -> list[tuple[float, Outlier]]:
    """Seconds at which parts of a recording begin that sound unlike the rest of it, as another speaker's would.

    Recordings of fewer than three parts of ``PART_SECONDS`` are too short to tell.
    """
    audio = load_audio(path, channel=channel)
    length = round(max(PART_SECONDS, embedder.frontend.min_duration) * audio.rate)
    starts, vectors = [], []
    for start in range(0, len(audio.samples) - length + 1, length):
        vector = _part(embedder, Audio(audio.samples[start : start + length], audio.rate), str(path))
        if vector is not None:
            starts.append(start / audio.rate)
            vectors.append(vector)
    if len(vectors) < 3:
        return []
    return [(starts[outlier.number], outlier) for outlier in outliers(np.stack(vectors), threshold)]


def _part(embedder: Embedder, audio: Audio, name: str) -> Vector | None:
    """Its embedding, of length one; ``None`` where nobody speaks in it."""
    try:
        require_speech(audio, name)
        return unit(embedder.embed(audio.samples, rate=audio.rate), name)[0]
    except SpeakerKitError:
        return None


def warnings_of(
    embedder: Embedder, enrolments: Sequence[Enrolment], earlier: Sequence[Enrolment], channel: Channel
) -> list[str]:
    """What is odd about new recordings of a voice: one is unlike the others, or seems to hold several speakers."""
    known = embedder.bundle.threshold()
    threshold = known[0] if known else None
    fresh = {enrolment.sha256: enrolment for enrolment in enrolments}
    everything = [*fresh.values(), *(old for old in earlier if old.sha256 not in fresh)]
    lines = [
        f"{everything[outlier.number].source}: is unlike the other recordings of this voice (cosine "
        f"{outlier.cosine:.2f} to their mean); is it the same speaker?"
        for outlier in outliers([enrolment.vector for enrolment in everything], threshold)
    ]
    for enrolment in fresh.values():
        apart = parts_apart(embedder, enrolment.source, channel, threshold)
        if apart:
            places = ", ".join(f"{start:.1f} s" for start, _ in apart)
            lines.append(f"{enrolment.source}: may hold several speakers: it sounds unlike itself from {places}")
    return lines


def _sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
