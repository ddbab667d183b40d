"""What a recording is worth as an enrolment: whether somebody speaks in it, for how long, and one person only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

from speakerkit.audio import Audio, require_signal
from speakerkit.errors import AudioError, SpeakerKitError

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
    audio: Audio, embed: Callable[[Audio], npt.NDArray[np.float32]], shortest: float, threshold: float | None = None
) -> list[float]:
    """Seconds at which parts of a recording begin that sound like another speaker than the rest of it.

    Recordings of fewer than three parts of ``PART_SECONDS`` are too short to tell.

    Args:
        embed: gives a part its embedding (dim,).
        shortest: seconds that it needs.
        threshold: as for :func:`outliers`.
    """
    length = round(max(PART_SECONDS, shortest) * audio.rate)
    starts, vectors = [], []
    for start in range(0, len(audio.samples) - length + 1, length):
        vector = _part(Audio(audio.samples[start : start + length], audio.rate), embed)
        if vector is not None:
            starts.append(start / audio.rate)
            vectors.append(vector)
    return [starts[number] for number in speakers_apart(np.stack(vectors), threshold)] if vectors else []


def _part(audio: Audio, embed: Callable[[Audio], npt.NDArray[np.float32]]) -> npt.NDArray[np.float64] | None:
    """Its embedding, of length one; ``None`` where nobody speaks in it."""
    try:
        require_speech(audio, "part")
        vector = embed(audio).astype(np.float64)
    except SpeakerKitError:
        return None
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
