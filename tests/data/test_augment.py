"""Augmentations against closed forms: the SNR asked for, the identity of an impulse, no delay, one length."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate

from speakerkit.audio import Samples
from speakerkit.config import read_yaml
from speakerkit.data.augment import (
    AUGMENTATIONS,
    Babble,
    BandLimit,
    Chain,
    Clip,
    Codec,
    Gain,
    Noise,
    Reverb,
    add_at_snr,
    build_chain,
    list_augmentations,
    speed_perturb,
)
from speakerkit.data.stores import AudioStore, open_store
from speakerkit.errors import ConfigError

RATE = 16000


def speech_like(count: int = 2 * RATE, rate: int = RATE, level: float = 0.1) -> Samples:
    """Noise with most energy under 3 kHz, switched on and off at 4 Hz, of rms ``level``."""
    rng = np.random.default_rng(7)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.fft.rfftfreq(count, 1 / rate)
    samples = np.fft.irfft(spectrum / (1 + (frequencies / 1000) ** 4), count) if count > 1 else np.ones(count)
    samples *= 1.1 + np.sin(2 * np.pi * 4 * np.arange(count) / rate)
    return (samples * level / np.sqrt(np.mean(samples**2))).astype(np.float32)


def power_db(samples: Samples) -> float:
    return float(10 * np.log10(np.mean(samples.astype(np.float64) ** 2)))


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    root = tmp_path_factory.mktemp("musan")
    rng = np.random.default_rng(0)
    for kind, seconds in (("noise", 0.3), ("music", 5.0), ("speech", 6.0), ("speech", 0.7), ("speech", 8.0)):
        (root / kind).mkdir(exist_ok=True)
        samples = 0.1 * rng.standard_normal(round(seconds * RATE))
        soundfile.write(root / kind / f"{seconds}.flac", samples, RATE)
    return open_store(root)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    root = tmp_path_factory.mktemp("rooms")
    rng = np.random.default_rng(1)
    for number, decay in enumerate((0.03, 0.1)):
        response = 0.05 * rng.standard_normal(RATE // 2) * np.exp(-np.arange(RATE // 2) / (decay * RATE))
        response[:400] = 0  # time of flight
        response[400] = 0.9
        soundfile.write(root / f"room{number}.wav", response.clip(-1, 1), RATE, subtype="FLOAT")
    return open_store(root)


def store_of(folder: Path, **recordings: Samples) -> AudioStore:
    for name, samples in recordings.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    return open_store(folder)


@pytest.fixture(scope="module")
def every(noises: AudioStore, rooms: AudioStore) -> dict[str, Any]:
    config = [
        {"name": "noise", "snr": {"noise": [5, 5], "music": [5, 5], "speech": [5, 5]}},
        {"name": "babble"},
        {"name": "reverb"},
        {"name": "codec", "codecs": ["mp3"]},
        {"name": "codec", "codecs": ["vorbis"]},
        {"name": "codec", "codecs": ["opus"], "narrow_band": 1},
        {"name": "codec", "codecs": ["mulaw", "alaw"], "narrow_band": 0.5},
        {"name": "band_limit", "bands": ["telephone"]},
        {"name": "band_limit", "bands": ["low_pass"]},
        {"name": "gain"},
        {"name": "clip"},
    ]
    chain = build_chain(config, noise_store=noises, rir_store=rooms)
    assert {step["name"] for step in config} == set(AUGMENTATIONS)
    return {
        f"{step['name']}{index}": augmentation
        for index, (step, (_, augmentation)) in enumerate(zip(config, chain.steps, strict=True))
    }


@pytest.mark.parametrize("level", [0.1, 0.001])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 7.3, 20.0, 30.0])
@pytest.mark.parametrize("kind", ["noise", "music", "speech"])
def test_the_snr_asked_for_is_the_snr_got(noises: AudioStore, kind: str, snr: float, level: float) -> None:
    clean = speech_like(level=level)
    for augmentation in (
        Noise(noises, snr={kind: (snr, snr)}, kinds=(kind,)),
        Babble(noises, snr=(snr, snr), kind=kind),
    ):
        noisy = augmentation(clean, RATE, np.random.default_rng(3))
        measured = power_db(clean) - power_db(noisy.astype(np.float64) - clean)
        assert measured == pytest.approx(snr, abs=0.01)


def test_snr_is_drawn_from_the_range_of_the_kind(noises: AudioStore) -> None:
    clean, rng = speech_like(), np.random.default_rng(0)
    for kinds, low, high in ((("noise",), 0, 15), (("music",), 5, 15), (("speech",), 10, 30)):
        augmentation = Noise(noises, snr={}, kinds=kinds)
        drawn = [power_db(clean) - power_db(augmentation(clean, RATE, rng) - clean) for _ in range(60)]
        assert low - 0.01 <= min(drawn) < low + 0.2 * (high - low)
        assert high + 0.01 >= max(drawn) > high - 0.2 * (high - low)


def test_short_noises_are_repeated(tmp_path: Path) -> None:
    period = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 0.1
    noise = Noise(store_of(tmp_path, a=period))
    clean = speech_like()
    added = noise(clean, RATE, np.random.default_rng(0)) - clean
    np.testing.assert_allclose(added[1000:], added[:-1000], atol=1e-7)
    gain = np.sqrt(np.mean(added[:1000] ** 2) / np.mean(period**2))
    starts = [np.abs(np.roll(period, -shift) * gain - added[:1000]).max() for shift in range(1000)]
    assert min(starts) < 1e-6


def test_digital_silence_stays_what_it_is(every: dict[str, Any]) -> None:
    silence = np.zeros(RATE, np.float32)
    for augmentation in every.values():
        np.testing.assert_array_equal(augmentation(silence, RATE, np.random.default_rng(0)), silence)
    clean = speech_like()
    np.testing.assert_array_equal(add_at_snr(clean, silence, 10), clean)


@pytest.mark.parametrize("delay", [0, 1, 333])
def test_an_impulse_as_response_is_the_identity(tmp_path: Path, delay: int) -> None:
    response = np.zeros(2000, np.float32)
    response[delay] = 0.25  # neither delay nor level of the response reaches the output
    reverb = Reverb(store_of(tmp_path, a=response))
    clean = speech_like()
    np.testing.assert_allclose(reverb(clean, RATE, np.random.default_rng(0)), clean, atol=1e-6)


def test_reverb_is_the_aligned_convolution_at_the_same_energy(rooms: AudioStore) -> None:
    clean, rng = speech_like(4000), np.random.default_rng(0)
    responses = [rooms.read(key, RATE).astype(np.float64) for key in rooms]
    for _ in range(4):
        wet = Reverb(rooms)(clean, RATE, rng)
        assert power_db(wet) == pytest.approx(power_db(clean), abs=1e-4)
        expected = [np.convolve(clean, response)[400:4400] for response in responses]
        expected = [each * np.sqrt(np.mean(clean**2) / np.mean(each**2)) for each in expected]
        assert min(np.abs(each - wet).max() for each in expected) < 1e-5
        assert np.argmax(correlate(wet, clean)) == len(clean) - 1  # lag 0


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("narrow_band", [0.0, 1.0])
@pytest.mark.parametrize("codec", ["mp3", "vorbis", "opus", "mulaw", "alaw"])
def test_codecs_keep_length_time_and_level(codec: Any, narrow_band: float, rate: int) -> None:
    for count in (2 * rate, 2 * rate + 777):
        clean = speech_like(count, rate, 0.01)
        coded = Codec((codec,), narrow_band=narrow_band)(clean, rate, np.random.default_rng(0))
        assert coded.shape == clean.shape
        assert coded.dtype == np.float32
        correlation = correlate(coded, clean, method="fft")
        assert abs(int(np.argmax(correlation)) - (count - 1)) <= 1
        assert correlation.max() / np.sqrt(np.sum(coded**2) * np.sum(clean**2)) > 0.8
        assert abs(power_db(coded) - power_db(clean)) < 1.5
        assert np.abs(coded - clean).max() > 1e-5  # something was lost


def tone_gain_db(augmentation: Any, frequency: float) -> float:
    tone = (0.5 * np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE)).astype(np.float32)
    out = augmentation(tone, RATE, np.random.default_rng(0))
    return power_db(out[RATE // 4 : -RATE // 4]) - power_db(tone)


def test_bands() -> None:
    telephone, low_pass = BandLimit(("telephone",)), BandLimit(("low_pass",))
    for augmentation, frequency, low, high in (
        (telephone, 1000, -0.1, 0.1),
        (telephone, 2500, -0.5, 0.1),
        (telephone, 100, -200, -30),
        (telephone, 5000, -200, -60),
        (low_pass, 100, -0.1, 0.1),
        (low_pass, 3400, -0.5, 0.1),
        (low_pass, 4500, -200, -60),
    ):
        assert low <= tone_gain_db(augmentation, frequency) <= high, (augmentation, frequency)
    clean = speech_like()
    for augmentation in (telephone, low_pass):
        out = augmentation(clean, RATE, np.random.default_rng(0))
        assert np.argmax(correlate(out, clean, method="fft")) == len(clean) - 1
    np.testing.assert_array_equal(low_pass(clean, 8000, np.random.default_rng(0)), clean)


def test_gain_and_clip_do_what_they_say() -> None:
    clean, rng = speech_like(), np.random.default_rng(0)
    np.testing.assert_allclose(Gain((-6, -6))(clean, RATE, rng), clean * 10**-0.3, rtol=1e-6)
    for share in (0.001, 0.05, 0.3):
        hard = Clip((share, share), ("hard",))(clean, RATE, rng)
        changed = hard != clean
        assert np.mean(changed) == pytest.approx(share, abs=2 / len(clean))
        assert len(set(np.abs(hard[changed]))) == 1
        soft = Clip((share, share), ("soft",))(clean, RATE, rng)
        assert np.abs(soft).max() <= np.abs(hard).max()
        assert np.all(np.diff(soft[np.argsort(clean)]) >= 0)  # monotonous: clipped, not folded


@settings(max_examples=60)
@given(count=st.integers(1, 16000), seed=st.integers(0, 2**32 - 1), rate=st.sampled_from([8000, 16000]))
def test_every_length_is_kept_and_finite(every: dict[str, Any], count: int, seed: int, rate: int) -> None:
    samples = np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)
    before = samples.copy()
    for name, augmentation in every.items():
        out = augmentation(samples, rate, np.random.default_rng(seed))
        assert out.shape == (count,), name
        assert out.dtype == np.float32, name
        assert np.isfinite(out).all(), name
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("rate", [4000, 6000, 11025, 48000, 96000])
@pytest.mark.parametrize("level", [1.0, 1e-6, 1e-30])
def test_shortest_inputs_odd_rates_and_tiny_levels(every: dict[str, Any], count: int, rate: int, level: float) -> None:
    samples = np.full(count, level, np.float32)
    for name, augmentation in every.items():
        out = augmentation(samples, rate, np.random.default_rng(0))
        assert out.shape == (count,), name
        assert np.isfinite(out).all(), name


def test_the_generator_is_the_only_chance(every: dict[str, Any]) -> None:
    clean = speech_like(8000)
    for name, augmentation in every.items():
        again = pickle.loads(pickle.dumps(augmentation))  # as in a spawned worker
        same = [each(clean, RATE, np.random.default_rng(5)) for each in (augmentation, augmentation, again)]
        np.testing.assert_array_equal(same[0], same[1], err_msg=name)
        np.testing.assert_array_equal(same[0], same[2], err_msg=name)
    varied = {
        augmentation(clean, RATE, np.random.default_rng(seed)).tobytes()
        for seed in range(8)
        for augmentation in [every["noise0"]]
    }
    assert len(varied) == 8


def test_chain_follows_probabilities_and_order(noises: AudioStore, rooms: AudioStore) -> None:
    clean = speech_like()
    assert build_chain([])(clean, RATE, np.random.default_rng(0)) is clean
    never = build_chain([{"name": "gain", "prob": 0}])
    assert never(clean, RATE, np.random.default_rng(0)) is clean
    half = build_chain([{"name": "gain", "prob": 0.5, "db": [-6, -6]}])
    rng = np.random.default_rng(0)
    applied = [half(clean, RATE, rng) is not clean for _ in range(1000)]
    assert np.mean(applied) == pytest.approx(0.5, abs=0.05)
    twice = build_chain([{"name": "gain", "db": [-6, -6]}, {"name": "gain", "db": [-4, -4]}])
    np.testing.assert_allclose(twice(clean, RATE, rng), clean * 10**-0.5, rtol=1e-6)
    both = build_chain([{"name": "reverb"}, {"name": "noise"}], noise_store=noises, rir_store=rooms)
    first, second = (both(clean, RATE, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(clean, first)


def test_the_peak_is_only_ever_lowered() -> None:
    clean = speech_like()
    loud = build_chain([{"name": "gain", "db": [40, 40]}])(clean, RATE, np.random.default_rng(0))
    assert np.abs(loud).max() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(loud / np.abs(loud).max(), clean / np.abs(clean).max(), atol=1e-6)
    quiet = build_chain([{"name": "gain", "db": [-40, -40]}])(clean, RATE, np.random.default_rng(0))
    np.testing.assert_allclose(quiet, clean * 0.01, rtol=1e-6)
    assert len(Chain()(np.zeros(0, np.float32), RATE, np.random.default_rng(0))) == 0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"name": "nois"}, "did you mean 'noise'"),
        ({"name": "noise", "snrr": {}}, "did you mean 'snr'"),
        ({"name": "noise", "snr": {"noise": [15, 0]}}, "low, high"),
        ({"name": "noise", "snr": {"noise": [1, 2, 3]}}, "3 values"),
        ({"name": "noise", "snr": {"musik": [0, 1]}}, "did you mean 'music'"),
        ({"name": "noise", "kinds": ["sirens"]}, "sirens"),
        ({"name": "noise", "snr": 10}, "snr"),
        ({"name": "noise", "snr": {"noise": [0, float("nan")]}}, "finite"),
        ({"name": "noise", "store": "x"}, "store"),
        ({"name": "noise", "prob": 1.5}, "probability"),
        ({"name": "noise", "prob": True}, "probability"),
        ({"name": "babble", "talkers": [0, 3]}, "least"),
        ({"name": "babble", "talkers": [1.5, 3]}, "talkers"),
        ({"name": "babble", "kind": "crowd"}, "crowd"),
        ({"name": "codec", "codecs": ["mp4"]}, "mp3"),
        ({"name": "codec", "codecs": []}, "empty"),
        ({"name": "codec", "compression": [0, 2]}, "0 to 1"),
        ({"name": "codec", "narrow_band": -1}, "0 to 1"),
        ({"name": "clip", "share": [0, 3]}, "0 to 1"),
        ({"name": "gain", "db": "loud"}, "db"),
        ({"prob": 1}, "write"),
        ("noise", "write"),
    ],
)
def test_wrong_configurations_are_named(noises: AudioStore, rooms: AudioStore, step: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_chain([step], noise_store=noises, rir_store=rooms)


def test_a_missing_store_names_its_key(noises: AudioStore, rooms: AudioStore) -> None:
    for name, key, stores in (
        ("noise", "noise_store", {"rir_store": rooms}),
        ("babble", "noise_store", {}),
        ("reverb", "rir_store", {"noise_store": noises}),
    ):
        with pytest.raises(ConfigError, match=f"set {key}"):
            build_chain([{"name": name}], **stores)


def test_yaml_as_a_user_writes_it(tmp_path: Path, noises: AudioStore) -> None:
    (tmp_path / "x.yaml").write_text(
        "augment:\n  - {name: noise, prob: 0.6, snr: {noise: [0, 15], music: [5, 15], speech: [10, 30]}}\n"
        "  - {name: codec, prob: 0.2, codecs: [mp3, opus]}\n"
    )
    config: Mapping[str, Any] = read_yaml(tmp_path / "x.yaml")
    chain = build_chain(config["augment"], noise_store=noises)
    assert [probability for probability, _ in chain.steps] == [0.6, 0.2]
    assert chain.steps[0][1].snr["noise"] == (0.0, 15.0)  # type: ignore[attr-defined]


def test_all_augmentations_are_listed() -> None:
    listed = {each.name: each for each in list_augmentations()}
    assert set(listed) == set(AUGMENTATIONS) == {
        "noise", "babble", "reverb", "codec", "band_limit", "gain", "clip"
    }  # fmt: skip
    assert all(each.doc.endswith(".") for each in listed.values())
    assert "snr" in listed["noise"].parameters
    assert "store" not in listed["noise"].parameters
    assert listed["reverb"].needs == "rir_store"


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_moves_pitch_and_length_together(factor: float) -> None:
    tone = np.sin(2 * np.pi * 500 * np.arange(2 * RATE) / RATE).astype(np.float32)
    out = speed_perturb(tone, RATE, factor)
    assert len(out) == pytest.approx(2 * RATE / factor, abs=1)
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out)), 1 << 18))
    assert np.argmax(spectrum) * RATE / (1 << 18) == pytest.approx(500 * factor, abs=0.2)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError):
            speed_perturb(tone, RATE, wrong)
