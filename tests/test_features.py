"""The numpy and torch front-ends against kaldi-native-fbank and torchaudio, on noise and on real speech."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch
import torchaudio
import torchaudio.compliance.kaldi as kaldi

from speakerkit.audio import load_audio
from speakerkit.errors import AudioError, ConfigError
from speakerkit.features import FrontEnd, fbank, features
from speakerkit.nn.fbank import Fbank, SpecAugment
from tests.conftest import speech_like

FRONTENDS = [
    FrontEnd(mean_norm=False),
    FrontEnd(mean_norm=False, window="povey", scale="unit"),
    FrontEnd(mean_norm=False, num_mels=72, low_freq=50, high_freq=-400),
    FrontEnd(mean_norm=False, snip_edges=False, high_freq=-400, window="povey"),
    FrontEnd(mean_norm=False, sample_rate=8000, num_mels=40, window="hanning"),
]


def oracle_torchaudio(samples: np.ndarray, frontend: FrontEnd) -> np.ndarray:
    return kaldi.fbank(
        torch.from_numpy(samples).double()[None] * frontend.amplitude,
        num_mel_bins=frontend.num_mels,
        sample_frequency=frontend.sample_rate,
        window_type=frontend.window,
        low_freq=frontend.low_freq,
        high_freq=frontend.high_freq,
        snip_edges=frontend.snip_edges,
        dither=0.0,
    ).numpy()


def oracle_knf(samples: np.ndarray, frontend: FrontEnd) -> np.ndarray:
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = frontend.sample_rate
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = frontend.window
    options.frame_opts.snip_edges = frontend.snip_edges
    options.mel_opts.num_bins = frontend.num_mels
    options.mel_opts.low_freq = frontend.low_freq
    options.mel_opts.high_freq = frontend.high_freq
    extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(frontend.sample_rate, (samples * frontend.amplitude).tolist())
    extractor.input_finished()
    return np.stack([extractor.get_frame(index) for index in range(extractor.num_frames_ready)])


@pytest.mark.parametrize("frontend", FRONTENDS, ids=lambda frontend: f"{frontend.window}-{frontend.num_mels}")
def test_fbank_equals_two_other_libraries(frontend: FrontEnd) -> None:
    samples = speech_like(1.37, frontend.sample_rate)
    ours = fbank(samples, frontend)
    module = Fbank(frontend).eval()(torch.from_numpy(samples)[None])[0].numpy()
    assert ours.shape == (frontend.num_frames(len(samples)), frontend.num_mels)
    np.testing.assert_allclose(ours, oracle_torchaudio(samples, frontend), atol=1e-3)
    np.testing.assert_allclose(module, ours, atol=1e-3)
    if frontend.window != "hanning":  # kaldi-native-fbank's hanning is periodic, Kaldi's is symmetric
        np.testing.assert_allclose(ours, oracle_knf(samples, frontend), atol=4e-3)
        assert np.abs(ours - oracle_knf(samples, frontend)).mean() < 1e-4


@pytest.mark.real_audio
def test_fbank_on_real_speech(real_data: Path) -> None:
    path = min((real_data / "librispeech-mini" / "test-other").rglob("*.flac"))
    samples = load_audio(path, 16000).samples
    frontend = FrontEnd()
    ours = features(samples, frontend)
    reference = oracle_torchaudio(samples, frontend)
    np.testing.assert_allclose(ours, reference - reference.mean(axis=0), atol=1e-3)
    module = Fbank(frontend).eval()(torch.from_numpy(samples)[None])[0].numpy()
    # Single precision cannot hold a mel 140 dB under the peak of its frame: a few such values in a million differ more.
    difference = np.abs(module - ours)
    assert np.mean(difference > 1e-3) < 3e-5
    assert difference.max() < 5e-3
    np.testing.assert_allclose(ours.mean(axis=0), 0.0, atol=1e-4)


@pytest.mark.parametrize("window", ["hamming", "hanning"])
def test_torchaudio_filterbank(window: str) -> None:
    frontend = FrontEnd(filterbank="torchaudio", num_mels=72, high_freq=7600, scale="unit", window=window)
    samples = speech_like(1.37)
    emphasised = torch.from_numpy(np.append(samples[:1] - 0.97 * samples[1:2], samples[1:] - 0.97 * samples[:-1]))
    window_fn = {"hamming": torch.hamming_window, "hanning": torch.hann_window}[window]
    spectrogram = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=512, win_length=400, hop_length=160, f_min=20, f_max=7600, n_mels=72, window_fn=window_fn
    ).double()
    expected = (spectrogram(emphasised.double()) + 1e-6).log().T.numpy()
    ours = fbank(samples, frontend)
    module = Fbank(replace(frontend, mean_norm=False)).eval()(torch.from_numpy(samples)[None])[0].numpy()
    assert ours.shape == (frontend.num_frames(len(samples)), 72)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    np.testing.assert_allclose(module, expected, atol=1e-3)


def test_speechbrain_filterbank() -> None:
    """Against SpeechBrain 1.1.2, ``Fbank(n_mels=80)``, on a signal that falls under the 80 dB that are kept."""
    frontend = FrontEnd(filterbank="speechbrain", preemphasis=0.0, low_freq=0.0, scale="unit", mean_norm=False)
    samples = speech_like(0.5, seed=3)
    samples[4000:] *= np.float32(1e-5)
    golden = [
        [-6.980, 6.235, -3.952, -9.004],
        [1.779, 17.479, -0.647, -4.662],
        [-0.574, 6.156, -10.615, -10.765],
        [3.472, 5.459, -10.105, -13.074],
        [-24.412, -16.254, -36.622, -30.920],
        [-61.237, -61.237, -61.237, -61.237],
    ]
    both = torch.from_numpy(np.stack([samples, 0.1 * samples]))
    for feats in (fbank(samples, frontend), Fbank(frontend).eval()(both)[0].numpy()):
        assert feats.shape == (51, 80) == (frontend.num_frames(len(samples)), 80)
        np.testing.assert_allclose(feats[np.ix_([0, 1, 10, 25, 26, 50], [0, 7, 40, 79])], golden, atol=2e-3)
        assert feats.max() - feats.min() == pytest.approx(80)
        assert (feats <= feats.max() - 80 + 1e-4).sum() == 1920
        assert feats.mean(dtype=np.float64) == pytest.approx(-29.856522, abs=1e-4)


def test_chunks_of_centred_frames() -> None:
    frontend = FrontEnd(filterbank="torchaudio", high_freq=7600)
    assert [frontend.num_frames(frontend.chunk_samples(count)) for count in (4, 9, 200)] == [4, 9, 200]
    assert frontend.num_frames(frontend.chunk_samples(1)) == 3  # no window is left half empty at both ends
    with pytest.raises(AudioError, match="less than one window"):
        fbank(np.zeros(399, dtype=np.float32), frontend)


def test_chunk_samples_give_exactly_the_frames() -> None:
    frontend = FrontEnd()
    assert frontend.chunk_samples(200) == 32240  # 200 frames, as WeSpeaker cuts them
    assert [frontend.num_frames(frontend.chunk_samples(count)) for count in (1, 2, 200)] == [1, 2, 200]
    assert frontend.num_frames(frontend.chunk_samples(200) - 1) == 199


def test_less_than_a_window_is_an_error() -> None:
    with pytest.raises(AudioError, match="less than one window"):
        fbank(np.zeros(399, dtype=np.float32), FrontEnd())


def test_digital_silence_is_finite() -> None:
    assert np.isfinite(features(np.zeros(16000, dtype=np.float32), FrontEnd())).all()


@pytest.mark.parametrize(
    "change",
    [{"window": "blackman"}, {"scale": "int8"}, {"num_mels": 0}, {"low_freq": 9000.0}, {"filterbank": "librosa"}],
    ids=str,
)
def test_impossible_front_ends_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError):
        replace(FrontEnd(), **change)


def test_dither_only_in_training() -> None:
    module = Fbank(replace(FrontEnd(), dither=1.0))
    samples = torch.from_numpy(speech_like(0.5))[None]
    torch.manual_seed(0)
    assert not torch.equal(module.train()(samples), module.eval()(samples))
    assert torch.equal(module(samples), Fbank(FrontEnd(**{**asdict(module.frontend), "dither": 0.0})).eval()(samples))


def test_spec_augment_masks_each_utterance_on_its_own() -> None:
    torch.manual_seed(1)
    augment = SpecAugment(prob=1.0, time_masks=1, time_width=10, freq_masks=1, freq_width=8)
    ones = torch.ones(64, 100, 80)
    masked = augment.train()(ones)
    time = (masked.sum(dim=2) == 0).sum(dim=1)  # masked frames an utterance
    mels = (masked.sum(dim=1) == 0).sum(dim=1)
    assert time.max() <= 10
    assert mels.max() <= 8
    assert len(set(time.tolist())) > 3
    assert len({tuple(row.tolist()) for row in masked[:, 0]}) > 3
    assert torch.equal(augment.eval()(ones), ones)
    assert torch.equal(SpecAugment(prob=0.0).train()(ones), ones)
