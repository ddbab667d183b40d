"""Decisions on cosines, recordings that stand apart, and sounds that are no speech."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speakerkit.audio import Audio
from speakerkit.bundle import Bundle, BundleConfig
from speakerkit.config import NamedConfig
from speakerkit.errors import AudioError
from speakerkit.features import FrontEnd
from speakerkit.verification.voiceprints.decision import identify, verify
from speakerkit.verification.voiceprints.enrolment import outliers, require_speech, speakers_apart, speech_seconds
from speakerkit.verification.voiceprints.search import Candidate
from tests.conftest import speech_like


def bundle(folder: Path, **calibration: object) -> Bundle:
    """A bundle of which only the calibration is looked at."""
    (folder / "model.safetensors").write_bytes(b"weights")
    if calibration:
        (folder / "calibration.json").write_text(json.dumps(calibration))
    return Bundle(folder, BundleConfig(NamedConfig("ECAPA_TDNN"), FrontEnd(), 16))


def test_an_uncalibrated_model_decides_nothing(tmp_path: Path) -> None:
    result = verify(bundle(tmp_path), 0.999)
    assert (result.decision, result.threshold, result.threshold_source) == ("undecided", None, "uncalibrated")
    assert (result.llr, result.calibrated) == (None, False)
    asked = verify(bundle(tmp_path), 0.3, 0.2)
    assert (asked.decision, asked.threshold_source, asked.calibrated) == ("same", "--threshold", False)


def test_a_calibrated_model(tmp_path: Path) -> None:
    model = bundle(tmp_path, threshold=0.4, source="dev trials", llr={"scale": 20.0, "offset": -8.0})
    for cosine, decision in ((0.4, "same"), (0.3999, "different"), (-1.0, "different")):
        result = verify(model, cosine)
        assert result.decision == decision
        assert result.llr == pytest.approx(20 * cosine - 8)
        assert (result.threshold, result.threshold_source, result.calibrated) == (0.4, "dev trials", True)
    assert verify(model, 0.5, 0.6).decision == "different"
    assert verify(model, 0.3, 0.2).decision == "same"


CANDIDATES = (Candidate("a", 0.5), Candidate("b", 0.45), Candidate("c", -0.9))


@pytest.mark.parametrize(
    ("asked", "margin", "name", "reason"),
    [
        (0.5, 0.0, "a", ""),
        (0.5001, 0.0, "unknown", "below the threshold"),
        (None, 0.0, "a", ""),
        (None, 0.04, "a", ""),
        (None, 0.06, "unknown", "leads by 0.0500, less than 0.06"),
        (-1.0, 0.06, "unknown", "leads by"),
    ],
)
def test_open_set(tmp_path: Path, asked: float | None, margin: float, name: str, reason: str) -> None:
    result = identify(bundle(tmp_path, threshold=0.4, source="x"), CANDIDATES, asked, margin)
    assert result.name == name
    assert reason in result.reason
    assert bool(reason) == bool(result.reason)
    assert result.candidates == CANDIDATES


def test_identify_without_a_threshold(tmp_path: Path) -> None:
    result = identify(bundle(tmp_path), CANDIDATES)
    assert (result.name, result.calibrated, result.threshold_source) == ("unknown", False, "uncalibrated")
    assert result.llrs == (None, None, None)
    alone = identify(bundle(tmp_path), CANDIDATES[:1], 0.3, margin=0.5)
    assert alone.name == "a"  # nobody else to be told from


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
