"""Recordings to enrolments: what cannot stand for a voice is refused, what looks wrong is named."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

from speakerkit.audio import Audio, Channel, load_audio, require_signal
from speakerkit.embedding.embedder import Embedder, Short
from speakerkit.errors import AudioError, SpeakerKitError
from speakerkit.verification.voiceprints.store import Enrolment, Vector, unit

STEADY_DB = 0.5  # standard deviation of the level of 25 ms: 0 for a tone, 0.3 for white noise at 16 kHz, 5 for speech
SPEECH_DB = 30.0  # under the level of the loud parts: what is softer is taken for a pause
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
    levels = _levels(audio)
    if len(levels) < 4:
        return  # too short to tell; whether it is too short for the model, the model knows
    if float(np.std(levels)) < STEADY_DB:
        raise AudioError(name, "holds a steady sound and no speech", "check the channel and the microphone")


def speech_seconds(audio: Audio) -> float:
    """Seconds of the audio that are at most ``SPEECH_DB`` softer than its loud parts: what is left without pauses."""
    levels = _levels(audio)
    if not len(levels):
        return audio.seconds
    return audio.seconds * float(np.mean(levels > np.percentile(levels, 95) - SPEECH_DB))


def _levels(audio: Audio) -> npt.NDArray[np.float64]:
    """Level in dB of each 25 ms (windows,)."""
    window = max(1, round(0.025 * audio.rate))
    count = len(audio.samples) // window
    frames = audio.samples[: count * window].reshape(count, window).astype(np.float64)  # (windows, samples)
    return np.asarray(10 * np.log10(np.var(frames, axis=1) + 1e-12))


def enrolment_of(embedder: Embedder, path: str | Path, channel: Channel = "mix", short: Short = "error") -> Enrolment:
    """Embed a recording for enrolment or comparison.

    Raises:
        AudioError: no speech, too short, or not readable.
    """
    audio = load_audio(path, channel=channel)
    require_speech(audio, str(path))
    embedding = embedder.embed(path, channel=channel, short=short)
    return Enrolment.from_embedding(embedding, audio.seconds, _sha256(path), str(path), speech_seconds(audio))


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


def speakers_apart(vectors: npt.ArrayLike, threshold: float | None = None) -> list[int]:
    """Which of the parts (items, dim) of one recording seem to be another speaker's; none where all seem to be one's.

    The parts are split in two by average linkage of their cosines. The means of the two groups are compared: means of
    one speaker's parts are near to each other even where the parts are short, and means of two speakers' are not.

    Args:
        threshold: as for :func:`outliers`.

    Returns:
        numbers of the parts in the smaller group (in the later one of two equal groups).
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if len(rows) < 3:
        return []
    labels = fcluster(linkage(rows, "average", metric="cosine"), 2, "maxclust")
    if len(np.unique(labels)) < 2:
        return []
    later = labels != labels[0]
    means = rows[~later].mean(axis=0), rows[later].mean(axis=0)
    cosine = means[0] @ means[1] / max(float(np.linalg.norm(means[0]) * np.linalg.norm(means[1])), 1e-12)
    if cosine >= (FAR if threshold is None else threshold):
        return []
    return np.flatnonzero(later if 2 * later.sum() <= len(rows) else ~later).tolist()


def parts_apart(
    embedder: Embedder, path: str | Path, channel: Channel = "mix", threshold: float | None = None
) -> list[float]:
    """Seconds at which parts of a recording begin that sound like another speaker than the rest of it.

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
    return [starts[number] for number in speakers_apart(np.stack(vectors), threshold)] if vectors else []


def _part(embedder: Embedder, audio: Audio, name: str) -> Vector | None:
    """Its embedding, of length one; ``None`` where nobody speaks in it."""
    try:
        require_speech(audio, name)
        return unit(embedder.embed(audio.samples, rate=audio.rate), name)[0]
    except SpeakerKitError:
        return None


def warnings_of(
    embedder: Embedder, recordings: Mapping[Path, Enrolment], earlier: Sequence[Enrolment], channel: Channel
) -> list[str]:
    """What is odd about new recordings of a voice: one is unlike the others, or seems to hold several speakers."""
    known = embedder.bundle.threshold()
    threshold = known[0] if known else None
    fresh = {enrolment.sha256: (path, enrolment) for path, enrolment in recordings.items()}
    everything = [enrolment for _, enrolment in fresh.values()]
    everything += [old for old in earlier if old.sha256 not in fresh]
    lines = [
        f"{everything[outlier.number].source}: is unlike the other recordings of this voice (cosine "
        f"{outlier.cosine:.2f} to their mean); is it the same speaker?"
        for outlier in outliers([enrolment.vector for enrolment in everything], threshold)
    ]
    for path, _ in fresh.values():
        apart = parts_apart(embedder, path, channel, threshold)
        if apart:
            places = ", ".join(f"{start:.1f} s" for start in apart)
            lines.append(f"{path}: may hold several speakers: it sounds unlike itself from {places}")
    return lines


def _sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
