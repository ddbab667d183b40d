"""Extraction around a model that is known exactly: voices are bands of noise, the model a filter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from scipy.signal import fftconvolve, firwin

from speakerkit.config import NamedConfig
from speakerkit.errors import AudioError, BundleError, ConfigError, DataError
from speakerkit.extraction import pipeline
from speakerkit.extraction.bundle import ExtractionBundle, ExtractorConfig
from speakerkit.extraction.metrics import si_sdr
from speakerkit.extraction.pipeline import BlockSettings, ExtractedVoice, VoiceExtractor, extract
from speakerkit.extraction.presence import PresenceRule, presence_rule

RATE = 8000
TAPS = 401
BANDS = ((200, 1200), (1400, 2400), (2600, 3600))  # Hz, of three voices
RULE = PresenceRule(0.5, "test")


def band(samples: np.ndarray, number: int) -> np.ndarray:
    """What of (samples,) is in a voice's band."""
    return fftconvolve(samples, firwin(TAPS, BANDS[number], pass_zero=False, fs=RATE), "same").astype(np.float32)


def speech_of(number: int, seconds: float, seed: int = 0) -> np.ndarray:
    """A recording of a voice."""
    noise = np.random.default_rng(100 * number + seed).standard_normal(round(seconds * RATE))
    swing = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * np.arange(len(noise)) / RATE)
    return (0.1 * swing * band(noise, number)).astype(np.float32)


class BandModel:
    """Hears a voice by its energies in the bands, and gives what of the mixture is in the loudest of these.

    Args:
        gain: of its outputs.
        order: the band that it takes each band for.
    """

    device, shortest_part, can_complete = "cpu (test)", 0.1, False

    def __init__(self, gain: float = 1.0, order: tuple[int, ...] = (0, 1, 2), *, scale_free: bool = False) -> None:
        self.gain, self.order = gain, order
        self.rate = self.enrolment_rate = RATE
        config = ExtractorConfig(NamedConfig("bands"), RATE, "joint", 3, scale_free=scale_free)
        self.bundle = ExtractionBundle(Path("nowhere"), config)
        self.mixtures: list[int] = []  # samples of each run
        self.enrolled = 0

    def voice(self, enrolment: np.ndarray) -> np.ndarray:
        self.enrolled += 1
        return np.array([np.sqrt(np.mean(band(enrolment, number) ** 2)) for number in range(3)], dtype=np.float32)

    def run(self, mixture: np.ndarray, voices: np.ndarray, complete: bool = False) -> np.ndarray:
        self.mixtures.append(len(mixture))
        return np.stack([np.float32(self.gain) * band(mixture, self.order[int(voice.argmax())]) for voice in voices])


def extractor(model: BandModel, block: float = 10.0, overlap: float = 2.0) -> VoiceExtractor:
    rule = replace(presence_rule(model.bundle), threshold=RULE.threshold, source=RULE.source)
    return VoiceExtractor(model, BlockSettings(block, overlap), rule)


def run(
    model: BandModel, mixture: np.ndarray, *numbers: int, rate: int = RATE, **blocks: float
) -> list[ExtractedVoice]:
    """Voices of a mixture, each by four seconds of another recording."""
    ready = extractor(model, **blocks)
    voices = [ready.enrol(f"voice {number}", [speech_of(number, 4.0, seed=9)], rate=RATE) for number in numbers]
    return ready.extract(mixture, voices, rate=rate)


def db(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(np.sum(one.astype(np.float64) ** 2) / np.sum(other.astype(np.float64) ** 2))


def test_two_voices_in_one_pass_at_their_level() -> None:
    sources = [speech_of(number, 3.0) for number in (0, 1)]
    model = BandModel()
    found = run(model, sources[0] + 0.3 * sources[1], 0, 1)
    assert model.mixtures == [3 * RATE]
    for voice, source in zip(found, (sources[0], 0.3 * sources[1]), strict=True):
        assert si_sdr(voice.waveform, source) > 25
        assert abs(db(voice.waveform, source)) < 0.1
        assert (voice.rate, voice.target_present, voice.likely_swap, voice.warnings) == (RATE, True, False, ())
        assert voice.presence.similarity == pytest.approx(1, abs=0.01)
        assert voice.presence.rest_similarity < 0.15
        assert (voice.presence.threshold, voice.presence.threshold_source) == (0.5, "test")
    assert db(sources[0], sources[0] + 0.3 * sources[1]) == pytest.approx(found[0].presence.level_db, abs=0.2)


@pytest.mark.parametrize("memory", [pipeline.IN_MEMORY, 50_000])
def test_blocks_are_the_whole(memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each is heard with more around it than the filter needs; also where it all goes through a file."""
    monkeypatch.setattr(pipeline, "IN_MEMORY", memory)
    monkeypatch.setattr(pipeline, "STEP", 7000)
    mixture = sum(speech_of(number, 20.0) for number in (0, 1))
    model = BandModel()
    (whole,) = run(model, mixture, 0, block=0)
    assert model.mixtures == [len(mixture)]
    for block, overlap in ((4.0, 1.0), (3.1, 0.5), (2.0, 1.0)):
        model.mixtures.clear()
        (found,) = run(model, mixture, 0, block=block, overlap=overlap)
        assert len(found.waveform) == len(mixture)
        assert si_sdr(found.waveform[RATE:-RATE], whole.waveform[RATE:-RATE]) > 80
        assert max(model.mixtures) == block * RATE
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_differ_are_faded() -> None:
    """A model that gives each block another constant: no step in the output is more than the fade's."""

    class Counting(BandModel):
        def run(self, mixture: np.ndarray, voices: np.ndarray, complete: bool = False) -> np.ndarray:
            self.mixtures.append(len(mixture))
            return np.full((len(voices), len(mixture)), len(self.mixtures), dtype=np.float32)

    model = Counting()
    (found,) = run(model, speech_of(0, 10.0), 0, block=2.0, overlap=0.5)
    assert model.mixtures == [2 * RATE] * 7
    steps = np.diff(found.waveform / found.waveform[0])
    assert steps.min() > -1e-6
    assert steps.max() == pytest.approx(1 / (0.25 * RATE), rel=1e-3)
    assert found.waveform[-1] / found.waveform[0] == pytest.approx(7)
    (found,) = run(model, speech_of(0, 3.4), 0, block=2.0, overlap=0.5)
    assert model.mixtures[7:] == [3.4 * RATE]


def test_complete_voices_keep_their_shares() -> None:
    class Sharing(BandModel):
        can_complete = True

        def run(self, mixture: np.ndarray, voices: np.ndarray, complete: bool = False) -> np.ndarray:
            self.told = complete
            return np.stack([0.75 * mixture, 0.25 * mixture])

    model = Sharing(scale_free=True)
    ready = extractor(model)
    mixture = speech_of(0, 3.0)
    voices = [ready.enrol(str(number), [speech_of(number, 4.0, seed=9)], rate=RATE) for number in (0, 1)]
    one = ready.extract(mixture, voices, rate=RATE)[0]
    assert not model.told
    assert db(one.waveform, mixture) == pytest.approx(0, abs=1e-3)
    one = ready.extract(mixture, voices, rate=RATE, complete=True)[0]
    assert model.told
    assert db(one.waveform, mixture) == pytest.approx(20 * np.log10(0.75), abs=1e-3)
    (stranger,) = ready.extract(mixture, [ready.enrol("2", [speech_of(2, 4.0, seed=9)], rate=RATE)], rate=RATE)
    assert not stranger.target_present
    told = [voices[0], ready.enrol("2", [speech_of(2, 4.0, seed=9)], rate=RATE)]
    both = ready.extract(mixture, told, rate=RATE, complete=True)
    assert all(each.target_present for each in both)
    np.testing.assert_allclose(both[0].waveform + both[1].waveform, mixture, atol=1e-6)
    with pytest.raises(DataError, match="is said of one voice"):
        ready.extract(mixture, voices[:1], rate=RATE, complete=True)
    with pytest.raises(BundleError, match="cannot use that voices are complete"):
        extractor(BandModel()).extract(mixture, voices, rate=RATE, complete=True)


@pytest.mark.parametrize("gain", [0.02, -3.0])
def test_free_scale_is_brought_to_the_mixture(gain: float) -> None:
    sources = [speech_of(number, 3.0) for number in (0, 1)]
    (found,) = run(BandModel(gain, scale_free=True), sum(sources), 0)
    assert db(found.waveform, sources[0]) == pytest.approx(0, abs=0.1)
    assert np.sum(found.waveform * sources[0]) > 0
    assert found.target_present
    (kept,) = run(BandModel(gain), sum(sources), 0)
    if gain < 0:
        assert db(kept.waveform, sources[0]) == pytest.approx(20 * np.log10(3), abs=0.1)
    else:  # a model that leaves so little says "absent"
        assert not kept.target_present


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 0)])
@pytest.mark.parametrize("scale_free", [False, True])
def test_an_absent_target_is_told_and_turned_down(order: tuple[int, ...], scale_free: bool) -> None:
    """By a model that gives nothing, and one that gives another voice; a present one beside it stays as it is."""
    mixture = sum(speech_of(number, 6.0) for number in (0, 1))
    absent, present = run(BandModel(order=order, scale_free=scale_free), mixture, 2, 1)
    assert not absent.target_present
    assert not absent.likely_swap
    assert db(absent.waveform, mixture) <= -20
    assert any("is not heard in the mixture" in line for line in absent.warnings)
    assert present.target_present
    assert db(present.waveform, speech_of(1, 6.0)) == pytest.approx(0, abs=0.1)


def test_a_short_appearance_in_a_long_mixture_counts() -> None:
    mixture = speech_of(0, 60.0)
    mixture[20 * RATE : 21 * RATE] += speech_of(1, 1.0)
    (found,) = run(BandModel(), mixture, 1)
    assert found.target_present
    assert db(found.waveform, mixture) < -15


def test_the_wrong_voice_is_flagged() -> None:
    mixture = sum(speech_of(number, 4.0) for number in (0, 1))
    (found,) = run(BandModel(order=(1, 0, 2)), mixture, 0)
    assert found.likely_swap
    assert found.target_present
    assert found.presence.rest_similarity > 0.9 > 0.1 > found.presence.similarity
    assert any("likely swap" in line for line in found.warnings)


def test_silence_stays_silence() -> None:
    for scale_free in (False, True):
        (found,) = run(BandModel(scale_free=scale_free), np.zeros(3 * RATE, np.float32), 0)
        assert not found.waveform.any()
        assert not found.target_present
        assert (found.presence.similarity, found.presence.score, found.presence.level_db) == (None, None, -100.0)
        found.to_dict()


@pytest.mark.parametrize("rate", [16000, 44100])
def test_other_rates_and_channels(rate: int, tmp_path: Path) -> None:
    sources = [speech_of(number, 5.0) for number in (0, 1)]
    high = [soxr.resample(source, RATE, rate) for source in sources]
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([high[0] + high[1], high[1]], axis=1), rate, subtype="FLOAT")
    ready = extractor(BandModel(), 2.0, 0.5)
    voice = ready.enrol("0", [speech_of(0, 4.0)], rate=RATE)
    (found,) = ready.extract(path, [voice], channel=0)
    assert (found.rate, len(found.waveform), found.warnings) == (rate, len(high[0]), ())
    assert si_sdr(found.waveform[rate:-rate], high[0][rate:-rate]) > 25
    (other,) = ready.extract(path, [voice], channel=1)
    assert not other.target_present


def test_a_mixture_below_the_models_rate_is_warned_about() -> None:
    model = BandModel()
    model.rate = 16000
    (found,) = run(model, speech_of(0, 2.0), 0)
    assert found.warnings == ("the mixture is at 8000 Hz, the model at 16000 Hz",)
    assert (found.rate, len(found.waveform)) == (RATE, 2 * RATE)


def test_files_hold_the_samples_and_never_clip(tmp_path: Path) -> None:
    (found,) = run(BandModel(), 30 * speech_of(0, 3.0), 0)
    assert np.abs(found.waveform).max() > 1
    assert any("is louder than full scale" in line for line in found.warnings)
    found.to_wav(tmp_path / "a.wav")
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(samples, found.waveform)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.wav"]


def test_enrolments_are_checked() -> None:
    ready = extractor(BandModel())
    assert ready.enrol("a", [speech_of(0, 4.0)], rate=RATE).warnings == ()
    short = ready.enrol("a", [speech_of(0, 1.0)], rate=RATE)
    assert short.warnings == ("a: is enrolled with 1.0 s of speech; 3 s or more tell a voice better",)
    assert ready.enrol("a", [speech_of(0, 2.0), speech_of(0, 2.0, seed=1)], rate=RATE).warnings == ()
    two = np.concatenate([speech_of(0, 9.0), speech_of(1, 9.0)])
    assert (
        "may hold several speakers: it sounds unlike itself from 9.0 s"
        in ready.enrol("a", [two], rate=RATE).warnings[0]
    )
    mixed = ready.enrol("a", [speech_of(0, 4.0), speech_of(0, 4.0, seed=1), speech_of(1, 4.0)], rate=RATE)
    assert "enrolment 3 of 3 is unlike the others" in mixed.warnings[0]
    low = ready.enrol("a", [soxr.resample(speech_of(0, 4.0), RATE, 6000)], rate=6000)
    assert "is at 6000 Hz, the model hears enrolments at 8000 Hz" in low.warnings[0]
    for nobody in (np.zeros(RATE, np.float32), np.full(RATE, 0.1, np.float32)):
        with pytest.raises(AudioError, match="silent"):
            ready.enrol("a", [nobody], rate=RATE)
    with pytest.raises(DataError, match="a: has no enrolment"):
        ready.enrol("a", [])


def test_a_voice_is_the_mean_of_its_enrolments_and_embedded_once() -> None:
    model = BandModel()
    ready = extractor(model, 2.0, 0.5)
    parts = [speech_of(0, 2.0, seed=seed) for seed in range(3)]
    voice = ready.enrol("a", parts, rate=RATE)
    np.testing.assert_allclose(voice.vector, np.mean([model.voice(part) for part in parts], axis=0), rtol=1e-6)
    assert voice.speech == pytest.approx(6.0, abs=0.3)
    before = model.enrolled
    ready.extract(speech_of(0, 9.0), [voice], rate=RATE)
    assert model.enrolled == before + 2  # the output and what remains, however many blocks


def test_an_own_encoder_hears_long_enrolments_in_parts() -> None:
    class Listening(BandModel):
        def voice(self, enrolment: np.ndarray) -> np.ndarray:
            heard.append(len(enrolment))
            return np.array([np.mean(enrolment), np.mean(enrolment**2), 1], dtype=np.float32)

    ready, heard = extractor(Listening()), list[int]()
    ready.rule = replace(ready.rule, threshold=None)  # which compares no parts, and heard are those of the voice
    rng = np.random.default_rng(0)
    recording = (rng.uniform(0.0, 0.2, 70 * RATE) * np.repeat(rng.uniform(0.1, 1, 700), RATE // 10)).astype(np.float32)
    voice = ready.enrol("a", [recording], rate=RATE)
    assert len(heard) == 3
    assert sum(heard) == len(recording)
    assert max(heard) <= 30 * RATE
    exact = recording.astype(np.float64)
    np.testing.assert_allclose(voice.vector, [exact.mean(), (exact**2).mean(), 1], rtol=1e-4)
    heard.clear()
    recording[: 25 * RATE] = 0
    ready.enrol("a", [recording], rate=RATE)
    assert len(heard) == 2  # of digital silence no voice is made
    heard.clear()
    ready.enrol("a", [recording[-30 * RATE :]], rate=RATE)
    assert heard == [30 * RATE]


def test_own_cosines_without_a_threshold_are_not_compared() -> None:
    ready = extractor(BandModel())
    two = [np.concatenate([speech_of(number, 9.0) for number in (0, 1)])]
    mixed = [speech_of(0, 4.0), speech_of(0, 4.0, seed=1), speech_of(1, 4.0)]
    assert [len(ready.enrol("a", each, rate=RATE).warnings) for each in (two, mixed)] == [1, 1]
    ready.rule = replace(ready.rule, threshold=None)
    assert [ready.enrol("a", each, rate=RATE).warnings for each in (two, mixed)] == [(), ()]


def test_in_one_call() -> None:
    ready = extractor(BandModel())
    mixture = sum(speech_of(number, 3.0) for number in (0, 1))
    found = extract(mixture, speech_of(0, 4.0), ready, rate=RATE)
    again = extract(mixture, [speech_of(0, 4.0)], ready, rate=RATE)
    enrolled = extract(mixture, ready.enrol("target", [speech_of(0, 4.0)], rate=RATE), ready, rate=RATE)
    assert found.name == "target"
    for other in (again, enrolled):
        np.testing.assert_array_equal(found.waveform, other.waveform)
    with pytest.raises(TypeError, match="rate"):
        extract(mixture, speech_of(0, 4.0), ready)


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for block, overlap in ((4.0, 2.1), (4.0, -1.0), (-1.0, 0.0)):
        with pytest.raises(ConfigError):
            BlockSettings(block, overlap)
    ready = extractor(BandModel())
    with pytest.raises(DataError, match="is told no voices"):
        ready.extract(speech_of(0, 1.0), [], rate=RATE)
    monkeypatch.delenv("SPEAKERKIT_EXTRACTOR", raising=False)
    with pytest.raises(ConfigError, match="SPEAKERKIT_EXTRACTOR"):
        extract("a.wav", "b.wav")
    assert replace(RULE, threshold=0.6) == RULE.with_threshold(0.6, "test")


@pytest.mark.slow
def test_an_hour_takes_less_than_a_gigabyte_and_a_half(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
        for minute in range(60):
            file.write(soxr.resample(sum(speech_of(number, 60.0, seed=minute) for number in (0, 1)), RATE, 16000))
    code = """
import resource, sys
from tests.extraction.test_pipeline import BandModel, extractor, speech_of, RATE
ready = extractor(BandModel())
voices = [ready.enrol(str(n), [speech_of(n, 4.0)], rate=RATE) for n in (0, 1)]
for number, found in enumerate(ready.extract(sys.argv[1], voices, scratch=sys.argv[2])):
    assert len(found.waveform) == 3600 * 16000 and found.target_present
    found.to_wav(f"{sys.argv[2]}/{number}.wav")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_500_000  # kB
