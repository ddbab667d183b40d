"""Windows cover the speech, and each is embedded as if it stood alone."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerkit.audio import load_audio, resample
from speakerkit.diarization.windows import Windows, cut_windows, embed_windows, fuse_scales, multi_scale
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.errors import ConfigError, DataError
from tests.conftest import speech_like

RATE = 16000


def disjoint(points: list[float]) -> list[tuple[float, float]]:
    ordered = sorted(set(points))
    return list(zip(ordered[::2], ordered[1::2], strict=False))


SPANS = st.lists(st.floats(0, 30).map(lambda time: round(time, 3)), max_size=12).map(disjoint)


@pytest.fixture
def model(onnx_bundle: Path) -> Embedder:
    return load(onnx_bundle, "cpu", threads=2)


def test_by_hand() -> None:
    windows = cut_windows([(1.0, 4.0), (5.0, 6.0), (7.0, 7.05), (8.0, 10.0)])
    expected = [(1.0, 2.5), (1.75, 3.25), (2.5, 4.0), (5.0, 6.0), (8.0, 9.5), (8.5, 10.0)]
    np.testing.assert_allclose(np.stack([windows.starts, windows.ends], axis=1), expected)
    np.testing.assert_allclose(windows.centres[:2], [1.75, 2.5])
    assert len(cut_windows([])) == 0


@given(spans=SPANS, length=st.floats(0.3, 3), share=st.floats(0.2, 1), minimum=st.floats(0, 0.3))
@settings(max_examples=200)
def test_windows_cover_the_speech(
    spans: list[tuple[float, float]], length: float, share: float, minimum: float
) -> None:
    windows = cut_windows(spans, length, share * length, minimum)
    tiny, place = 1e-5, 0
    for start, end in spans:
        if end - start < max(minimum, 1e-6):
            continue
        own = []
        while place < len(windows) and windows.starts[place] < end:
            own.append((windows.starts[place], windows.ends[place]))
            place += 1
        assert own[0][0] == start
        assert own[-1][1] == end
        assert all(begin >= start and stop <= end + tiny for begin, stop in own)
        assert all(abs(stop - begin - min(length, end - start)) < tiny for begin, stop in own)
        hops = np.diff([begin for begin, _ in own])
        assert ((hops > 0) & (hops <= share * length + tiny)).all()
    assert place == len(windows)


@given(spans=SPANS)
@settings(max_examples=100)
def test_scales_share_their_places(spans: list[tuple[float, float]]) -> None:
    scales = multi_scale(spans, (1.5, 1.0, 0.5))
    base = cut_windows(spans, 0.5, 0.25)
    assert [len(scale) for scale in scales] == [len(base)] * 3
    np.testing.assert_array_equal(scales[2].starts, base.starts)
    for length, scale in zip((1.5, 1.0), scales, strict=False):
        for number in range(len(base)):
            start, end = next(span for span in spans if span[0] <= base.starts[number] < span[1])
            assert start <= scale.starts[number] <= base.starts[number] + 1e-9
            assert base.ends[number] - 1e-9 <= scale.ends[number] <= end
            assert scale.seconds[number] == pytest.approx(min(length, end - start))
            if start + length / 2 <= base.centres[number] <= end - length / 2:
                assert scale.centres[number] == pytest.approx(base.centres[number])


def test_impossible_windows() -> None:
    for wrong in ({"length": 0}, {"hop": 2.0}, {"hop": 0}, {"minimum": 2.0}, {"length": float("nan")}):
        with pytest.raises(ConfigError):
            cut_windows([(0, 9)], **wrong)
    with pytest.raises(ConfigError):
        multi_scale([(0, 9)], ())
    for starts, ends in (([0, 1], [2]), ([1], [1]), ([-1], [1]), ([0], [np.nan])):
        with pytest.raises(DataError):
            Windows(np.array(starts), np.array(ends))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_as_if_cut_out(model: Embedder, batch_size: int) -> None:
    samples = speech_like(70.0)  # more than two blocks
    windows = cut_windows([(0.0, 2.01), (2.5, 3.1), (28.1, 33.0), (59.0, 70.0)])
    found = embed_windows(model, samples, windows, rate=RATE, batch_size=batch_size)
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (len(windows), 16)
    np.testing.assert_array_equal(found.kept, np.arange(len(windows)))
    for start, end, vector in zip(windows.starts, windows.ends, found.vectors, strict=True):
        alone = model.embed(samples[round(start * RATE) : round(start * RATE) + round((end - start) * RATE)], rate=RATE)
        np.testing.assert_allclose(vector, alone, atol=1e-5 * np.abs(alone).max())


def test_order_and_threads(onnx_bundle: Path) -> None:
    samples, windows = speech_like(40.0), cut_windows([(0.2, 5.5), (29.0, 40.0)])
    shuffled = np.random.default_rng(0).permutation(len(windows))
    results = [
        embed_windows(load(onnx_bundle, "cpu", threads), samples, windows, rate=RATE, batch_size=4).vectors
        for threads in (1, 4)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    other = embed_windows(load(onnx_bundle, "cpu", 1), samples, windows.select(shuffled), rate=RATE, batch_size=4)
    np.testing.assert_allclose(other.vectors, results[0][shuffled], atol=1e-5 * np.abs(results[0]).max())


def test_files_of_other_rates_and_channels(model: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.wav"
    stereo = np.stack([speech_like(35.0, 44100), speech_like(35.0, 44100, 1)], axis=1)
    soundfile.write(path, stereo, 44100)
    windows = cut_windows([(1.0, 4.0), (28.0, 35.0)])
    found = embed_windows(model, path, windows, channel=1)
    whole = load_audio(path, RATE, channel=1).samples
    np.testing.assert_array_equal(found.vectors, embed_windows(model, whole, windows, rate=RATE).vectors)
    assert not caplog.records
    embed_windows(model, resample(whole, RATE, 8000), windows, rate=8000)
    assert "8000 Hz, the model at 16000 Hz" in caplog.text


def test_short_windows_are_repeated(model: Embedder) -> None:
    samples = speech_like(3.0)
    found = embed_windows(model, samples, Windows(np.array([1.0]), np.array([1.1])), rate=RATE)
    alone = model.embed(samples[RATE : RATE + 1600], rate=RATE, short="pad")
    np.testing.assert_allclose(found.vectors[0], alone, atol=1e-5 * np.abs(alone).max())


def test_silent_windows_are_told(model: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    samples = speech_like(6.0)
    samples[2 * RATE : 4 * RATE] = 0
    found = embed_windows(model, samples, cut_windows([(0.0, 6.0)], 1.0, 1.0), rate=RATE)
    np.testing.assert_array_equal(found.kept, [0, 1, 4, 5])
    np.testing.assert_array_equal(found.windows.starts, [0, 1, 4, 5])
    np.testing.assert_array_equal(found.silent.starts, [2, 3])
    assert "2 of 6 windows hold digital silence, the first at 2.00 s" in caplog.text
    with caplog.at_level(logging.ERROR):
        nothing = embed_windows(model, np.zeros(RATE), cut_windows([(0.0, 1.0)]), rate=RATE)
    assert nothing.vectors.shape == (0, 16)
    assert embed_windows(model, samples, cut_windows([]), rate=RATE).vectors.shape == (0, 16)


def test_windows_at_and_beyond_the_end(model: Embedder) -> None:
    samples = speech_like(3.0)
    at_end = embed_windows(model, samples, Windows(np.array([1.5]), np.array([3.0])), rate=RATE)
    little_beyond = embed_windows(model, samples, Windows(np.array([1.55]), np.array([3.05])), rate=RATE)
    np.testing.assert_array_equal(little_beyond.vectors, at_end.vectors)
    for start, end in ((2.0, 3.5), (5.0, 5.5)):
        with pytest.raises(DataError, match=r"lasts 3\.000 s"):
            embed_windows(model, samples, Windows(np.array([start]), np.array([end])), rate=RATE)
    with pytest.raises(ConfigError):
        embed_windows(model, samples, cut_windows([(0, 1)]), rate=RATE, batch_size=0)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_fused_cosine_is_the_mean_of_cosines(weights: list[float] | None) -> None:
    rng = np.random.default_rng(0)
    scales = [rng.standard_normal((7, 5)).astype(np.float32) for _ in range(3)]
    fused = fuse_scales(scales, weights)
    assert fused.dtype == np.float32
    units = [scale / np.linalg.norm(scale, axis=1, keepdims=True) for scale in scales]
    expected = np.average([unit @ unit.T for unit in units], axis=0, weights=weights)
    np.testing.assert_allclose(fused @ fused.T, expected, atol=1e-6)
    with pytest.raises(ConfigError):
        fuse_scales(scales, [1.0, -1.0, 1.0])


@pytest.mark.parametrize("minutes", [(2, 10), pytest.param((10, 60), marks=pytest.mark.slow)])
def test_memory_does_not_grow(model: Embedder, write_minutes: Callable[[int], Path], minutes: tuple[int, int]) -> None:
    peaks = []
    for length in minutes:
        path = write_minutes(length)
        windows = cut_windows([(start, start + 1.5) for start in np.linspace(0, 60 * length - 2, 12)])
        tracemalloc.start()
        assert embed_windows(model, path, windows).vectors.shape == (12, 16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 40e6  # 1 h whole at 16 kHz: 230 MB
