"""Recordings that stand apart, several speakers in one, and sounds that are no speech."""

from __future__ import annotations

import numpy as np
import pytest

from speakerkit.audio import Audio
from speakerkit.embedding.enrolment import outliers, parts_apart, require_speech, speakers_apart, speech_seconds
from speakerkit.errors import AudioError
from tests.conftest import speech_like


def speakers(cosine: float, counts: tuple[int, ...], dim: int = 400) -> np.ndarray:
    """Recordings of orthogonal speakers, each at about ``cosine`` to the others of its speaker."""
    rng = np.random.default_rng(0)
    rows = []
    for speaker, count in enumerate(counts):
        noise = rng.normal(size=(count, dim)) / np.sqrt(dim)
        rows.append(np.sqrt(cosine) * np.eye(dim)[speaker] + np.sqrt(1 - cosine) * noise)
    table = np.concatenate(rows)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def test_an_outlier_is_found() -> None:
    for count in (2, 3, 6):
        found = outliers(speakers(0.7, (count, 1)))
        assert [item.number for item in found] == [count]
        rows = speakers(0.7, (count, 1))
        rest = rows[:count].mean(axis=0)
        assert found[0].cosine == pytest.approx(rows[count] @ rest / np.linalg.norm(rest))


def test_none_is_found_where_all_are_alike() -> None:
    for count in (1, 2, 5, 20):
        assert outliers(speakers(0.6, (count,))) == []
    assert [item.number for item in outliers(speakers(0.7, (1, 1)))] == [0, 1]  # which of the two, nobody knows


def test_the_threshold_of_the_model_counts() -> None:
    pair = speakers(0.5, (2,))
    assert outliers(pair, 0.3) == []
    assert len(outliers(pair, 0.8)) == 2


def test_two_speakers_in_one_recording() -> None:
    """Also where each speaks for half of it: then no part is unlike the mean of the others."""
    half = speakers(0.6, (5, 5))
    assert outliers(half) == []
    assert speakers_apart(half) == [5, 6, 7, 8, 9]
    assert speakers_apart(half[::-1]) == [5, 6, 7, 8, 9]
    assert speakers_apart(speakers(0.6, (7, 2))) == [7, 8]
    assert speakers_apart(speakers(0.6, (1, 6))) == [0]
    assert len(speakers_apart(speakers(0.6, (4, 4, 4)))) == 4


def test_one_speaker_in_a_recording() -> None:
    for count in (1, 2, 3, 10, 40):
        assert speakers_apart(speakers(0.5, (count,))) == []
    same = np.tile(speakers(0.5, (1,)), (4, 1))
    assert speakers_apart(same, 0.99) == []
    assert speakers_apart(speakers(0.5, (6,)), 0.999) != []  # the threshold of the model counts


def test_parts_of_another_speaker_are_named() -> None:
    """A voice is its level here: seven seconds, then another voice; parts in which nobody speaks are passed over."""
    noise = speech_like(24.0, 1000)
    samples = np.where(np.arange(24000) < 9000, noise, 0.1 * noise)
    samples[15000:18000] = 0
    asked = []

    def embed(audio: Audio) -> np.ndarray:
        asked.append(audio.seconds)
        return np.array([1.0, 0.0] if np.std(audio.samples) > 0.03 else [0.0, 1.0], dtype=np.float32)

    found = parts_apart(Audio(samples.astype(np.float32), 1000), embed, 0.5)
    assert found == [0.0, 3.0, 6.0]
    assert asked == [3.0] * 7
    assert parts_apart(Audio(samples[:9000].astype(np.float32), 1000), embed, 0.5) == []
    assert parts_apart(Audio(samples.astype(np.float32), 1000), embed, 12.0) == []  # two parts are too few to tell


def test_speech_is_what_is_loud() -> None:
    """One second of three is 40 dB softer than the others, half of another 20 dB."""
    rng = np.random.default_rng(0)
    gains = np.repeat([1.0, 0.01, 1.0, 0.1, 1.0, 1.0], 8000)
    for rate in (8000, 16000):
        audio = Audio((0.1 * gains * rng.normal(size=len(gains))).astype(np.float32), rate)
        assert speech_seconds(audio) == pytest.approx(5 / 6 * audio.seconds)
    assert speech_seconds(Audio(np.ones(10, dtype=np.float32), 16000)) == 10 / 16000


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_steady_sounds_are_no_speech(rate: int) -> None:
    time = np.arange(2 * rate) / rate
    rng = np.random.default_rng(0)
    for samples in (
        np.sin(2 * np.pi * 440 * time),
        np.sin(2 * np.pi * 440 * time) + 0.5 * np.sin(2 * np.pi * 1000 * time),
        rng.normal(size=2 * rate) / 5,
    ):
        with pytest.raises(AudioError, match=r"x\.wav: holds a steady sound"):
            require_speech(Audio(samples.astype(np.float32) / 2, rate), "x.wav")
    for silence in (np.zeros(2 * rate), np.full(2 * rate, 0.5)):
        with pytest.raises(AudioError, match="is silent"):
            require_speech(Audio(silence.astype(np.float32), rate), "x.wav")


def test_sounds_that_change_pass() -> None:
    """Also in as much white noise as there is speech, and five decibels more."""
    rng = np.random.default_rng(0)
    for seconds in (0.3, 1.0, 10.0):
        samples = speech_like(seconds)
        for decibels in (-100, 0, 5):
            noise = rng.normal(size=len(samples)) * np.std(samples) * 10 ** (decibels / 20)
            require_speech(Audio((samples + noise).astype(np.float32), 16000), "x.wav")
