"""Recordings to enrolments: what cannot stand for a voice is refused, what looks wrong is named."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from speakerkit.audio import Channel, load_audio
from speakerkit.embedding.embedder import Embedder, Short
from speakerkit.embedding.enrolment import outliers, parts_apart, require_speech, speech_seconds
from speakerkit.verification.voiceprints.store import Enrolment


def enrolment_of(embedder: Embedder, path: str | Path, channel: Channel = "mix", short: Short = "error") -> Enrolment:
    """Embed a recording for enrolment or comparison.

    Raises:
        AudioError: no speech, too short, or not readable.
    """
    audio = load_audio(path, channel=channel)
    require_speech(audio, str(path))
    embedding = embedder.embed(path, channel=channel, short=short)
    return Enrolment.from_embedding(embedding, audio.seconds, _sha256(path), str(path), speech_seconds(audio))


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
        audio, shortest = load_audio(path, channel=channel), embedder.frontend.min_duration
        apart = parts_apart(audio, lambda part: embedder.embed(part.samples, rate=part.rate), shortest, threshold)
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
