"""Embeddings depend on the recording and on nothing else."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.embedding import embedder as module
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.errors import AudioError, BundleError, ConfigError
from speakerkit.zoo.registry import known_models
from tests.conftest import speech_like

RATE = 16000
LENGTHS = (0.5, 1.0, 1.0, 1.37, 0.31, 2.2, 1.0, 0.5, 3.01, 1.0)


@pytest.fixture(params=["onnx", "torch"])
def model(request: pytest.FixtureRequest) -> Embedder:
    return load(request.getfixturevalue(f"{request.param}_bundle"), "cpu", threads=2)


@pytest.fixture
def recordings(write_wav: Callable[..., Path]) -> list[tuple[str, str]]:
    return [(f"u{n}", str(write_wav(f"u {n}.wav", seconds, seed=n))) for n, seconds in enumerate(LENGTHS)]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_alone_in_a_batch_in_any_order(model: Embedder, recordings: list[tuple[str, str]]) -> None:
    alone = {key: model.embed(path) for key, path in recordings}
    assert min(cosine(alone["u0"], alone[key]) for key in alone if key != "u0") < 0.999  # the model tells them apart
    for order in (recordings, recordings[::-1], recordings[3:] + recordings[:3]):
        for batch_size in (1, 4, 16):
            batch = {item.key: item.vector for item in model.embed_many(order, batch_size=batch_size)}
            assert batch.keys() == alone.keys()
            for key, vector in batch.items():
                assert vector is not None
                assert cosine(vector, alone[key]) > 0.99999


def test_threads_do_not_change_a_bit(
    onnx_bundle: Path, recordings: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH_FRAMES", 400)  # several stretches
    results = []
    for threads in (1, 2, 5):
        items = load(onnx_bundle, "cpu", threads).embed_many(recordings, batch_size=3)
        results.append([(item.key, None if item.vector is None else item.vector.tobytes()) for item in items])
    assert results[0] == results[1] == results[2]


def test_the_two_hundredth_call(onnx_bundle: Path) -> None:
    model = load(onnx_bundle, "cpu")
    samples = speech_like(1.0)
    first = model.embed(samples, rate=RATE)
    for number in range(200):
        model.embed(speech_like(0.35, seed=number), rate=RATE)
    np.testing.assert_array_equal(model.embed(samples, rate=RATE), first)


def test_torch_and_onnx_agree(torch_bundle: Path, onnx_bundle: Path) -> None:
    by_torch, by_onnx = load(torch_bundle, "cpu"), load(onnx_bundle, "cpu")
    assert (by_torch.device, by_onnx.device) == ("cpu (torch)", "cpu (onnxruntime)")
    for seconds in (0.3, 1.0, 4.7):
        one, other = (each.embed(speech_like(seconds), rate=RATE) for each in (by_torch, by_onnx))
        assert cosine(one, other) > 0.9999
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())


def test_short_audio(model: Embedder, write_wav: Callable[..., Path]) -> None:
    path = write_wav("short.wav", 0.1)
    with pytest.raises(AudioError, match=r"short\.wav: lasts 0\.100 s, the model needs 0\.300 s.*--short pad"):
        model.embed(path)
    assert np.isfinite(model.embed(path, short="pad")).all()
    (item,) = model.embed_many([("a", str(path))], short="pad")
    assert item.padded
    assert item.vector is not None
    assert item.seconds == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_rates(onnx_bundle: Path, tmp_path: Path, rate: int) -> None:
    """The same sound, which has nothing above 3 kHz, at several rates."""
    time = np.arange(2 * rate) / rate
    sound = sum(
        np.sin(2 * np.pi * (150 * k) * time + k) * np.sin(2 * np.pi * (0.5 + k / 7) * time) / k for k in range(1, 21)
    )
    soundfile.write(tmp_path / "a.wav", 0.2 * sound, rate, subtype="FLOAT")
    time = np.arange(2 * RATE) / RATE
    original = sum(
        np.sin(2 * np.pi * (150 * k) * time + k) * np.sin(2 * np.pi * (0.5 + k / 7) * time) / k for k in range(1, 21)
    )
    model = load(onnx_bundle, "cpu")
    reference = model.embed((0.2 * original).astype(np.float32), rate=RATE)
    # Above its band a resampled recording holds the resampler's noise floor, which log-mel features see.
    assert cosine(model.embed(tmp_path / "a.wav"), reference) > 0.9


def test_low_rate_warns_once(
    onnx_bundle: Path, write_wav: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = load(onnx_bundle, "cpu", threads=4)
    paths = [(f"u{n}", str(write_wav(f"{n}.wav", rate=8000, seed=n))) for n in range(8)]
    with caplog.at_level(logging.WARNING, logger="speakerkit"):
        assert all(item.vector is not None for item in model.embed_many(paths))
        model.embed(paths[0][1])
    assert len(caplog.records) == 1
    assert "8000 Hz" in caplog.text


def test_arrays_need_their_rate(onnx_bundle: Path) -> None:
    model = load(onnx_bundle, "cpu")
    samples = speech_like(1.0)
    with pytest.raises(TypeError, match="needs its rate"):
        model.embed(samples)
    stereo = model.embed(np.stack([samples, samples]), rate=RATE)
    assert cosine(stereo, model.embed(samples, rate=RATE)) > 0.99999


def test_similarity(model: Embedder, recordings: list[tuple[str, str]]) -> None:
    assert model.similarity(recordings[0][1], recordings[0][1]) == pytest.approx(1.0, abs=1e-6)
    value = model.similarity(recordings[0][1], recordings[5][1])
    assert -1 <= value < 0.9999
    assert value == pytest.approx(cosine(*(model.embed(recordings[n][1]) for n in (0, 5))))


def test_similarity_of_arrays_and_channels(onnx_bundle: Path, tmp_path: Path) -> None:
    model = load(onnx_bundle, "cpu")
    left, right = speech_like(1.0, seed=1), speech_like(1.0, seed=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    assert model.similarity(left, left, rate=RATE) == pytest.approx(1.0, abs=1e-6)
    expected = model.similarity(left, right, rate=RATE)
    assert model.similarity(tmp_path / "a.wav", right, rate=RATE, channel=0) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(TypeError, match="needs its rate"):
        model.similarity(left, right)


def test_onnxruntime_that_does_not_load(onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match=r"onnxruntime cannot be imported .*speakerkit doctor"):
        load(onnx_bundle, "cpu")


def test_one_bad_recording_does_not_spoil_its_batch(onnx_bundle: Path, recordings: list[tuple[str, str]]) -> None:
    model = load(onnx_bundle, "cpu", threads=2)
    run = model._run
    model._run = lambda feats: np.where(np.arange(len(feats))[:, None] == 1, np.nan, run(feats)).astype(np.float32)
    items = list(model.embed_many([recordings[n] for n in (1, 2, 6)]))
    assert [item.error == "" for item in items] == [True, False, True]
    assert "zero or not finite" in items[1].error


def test_trouble_while_reading_is_one_failure(
    onnx_bundle: Path, recordings: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.load_audio

    def broken(source: object, *args: object, **options: object) -> object:
        if source == recordings[0][1]:
            raise OSError(5, "Input/output error")
        if source == recordings[1][1]:
            raise MemoryError
        return original(source, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_audio", broken)
    items = {item.key: item for item in load(onnx_bundle, "cpu").embed_many(recordings)}
    assert "Input/output error" in items["u0"].error
    assert "MemoryError" in items["u1"].error
    assert all(items[key].vector is not None for key, _ in recordings[2:])


def test_no_network(model: Embedder, recordings: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    again = load(model.bundle.path, "cpu")
    assert np.isfinite(again.embed(recordings[0][1])).all()


def test_cuda_that_is_not_there(onnx_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is usable here")
    with pytest.raises(ConfigError, match=r"device cuda: cannot be used: onnxruntime offers .*CPUExecutionProvider"):
        load(onnx_bundle, "cuda")
    assert load(onnx_bundle, "auto").device == "cpu (onnxruntime)"


def test_a_registered_name_that_has_not_been_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEAKERKIT_HOME", str(tmp_path))
    with pytest.raises(BundleError, match=r"has not been fetched to .*speakerkit models fetch"):
        load(next(iter(known_models())))
