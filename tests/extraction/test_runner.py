"""Models at work: on onnxruntime and on torch, of any length, and folders that cannot be run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speakerkit.embedding.embedder import load, needs_torch
from speakerkit.errors import AudioError, BundleError, ConfigError
from speakerkit.extraction.bundle import ExtractionBundle, read_extractor
from speakerkit.extraction.runner import ExtractionRunner
from tests.conftest import speech_like
from tests.extraction.bundles import RATE, gain_extractor, random_extractor
from tests.extraction.test_registry import SMALL
from tests.graphs import write_gain_graph


@pytest.fixture
def gain_model(tmp_path: Path, onnx_bundle: Path) -> ExtractionBundle:
    """A model without weights whose output is known."""
    return gain_extractor(tmp_path / "gain", onnx_bundle)


@pytest.fixture
def joint(tmp_path: Path) -> ExtractionBundle:
    """A model with a speaker encoder of its own."""
    return random_extractor(tmp_path / "joint", "spex_plus", SMALL["spex_plus"][0])


def test_on_onnxruntime(gain_model: ExtractionBundle, onnx_bundle: Path) -> None:
    runner = ExtractionRunner(gain_model, "cpu", 1)
    assert (runner.device, runner.rate, runner.enrolment_rate) == ("cpu (onnxruntime)", RATE, 16000)
    enrolment = speech_like(2.0)
    voice = runner.voice(enrolment)
    np.testing.assert_array_equal(voice, load(onnx_bundle, "cpu").embed(enrolment, rate=16000))
    voices = np.stack([voice, -2 * voice])
    for samples in (1, 3, 5, 777):  # the graph says that it needs 5
        mixture = speech_like(samples / RATE, RATE)
        found = runner.run(mixture, voices)
        np.testing.assert_allclose(found, voices.mean(axis=1)[:, None] * mixture, rtol=1e-5)
    assert not runner.run(np.zeros(9, np.float32), voices).any()


def test_a_short_enrolment_is_repeated_and_silence_refused(
    gain_model: ExtractionBundle, joint: ExtractionBundle
) -> None:
    for bundle in (gain_model, joint):
        runner = ExtractionRunner(bundle, "cpu", 1)
        samples = speech_like(0.01, runner.enrolment_rate)
        need = round(runner.shortest_part * runner.enrolment_rate)
        assert len(samples) < need
        np.testing.assert_allclose(runner.voice(samples), runner.voice(np.resize(samples, need)), rtol=1e-4, atol=1e-6)
    with pytest.raises(AudioError, match="silent"):
        ExtractionRunner(gain_model, "cpu", 1).voice(np.zeros(16000, np.float32))


@pytest.mark.parametrize("name", ["spex_plus", "bsrnn"])
def test_on_torch(name: str, tmp_path: Path, onnx_bundle: Path, joint: ExtractionBundle) -> None:
    import torch

    from speakerkit.extraction.model import open_conditioned

    bundle = joint
    if name == "bsrnn":
        bundle = random_extractor(tmp_path / name, name, SMALL[name][0], embedder=onnx_bundle)
    runner, model = ExtractionRunner(read_extractor(bundle.path), "cpu"), open_conditioned(bundle)
    assert runner.device == "cpu (torch)"
    mixture, enrolment = speech_like(0.7, RATE), speech_like(1.5, runner.enrolment_rate, seed=3)
    voice = runner.voice(enrolment)
    with torch.no_grad():
        if name == "spex_plus":
            told = model.extractor.enrol(torch.from_numpy(enrolment)[None], torch.tensor([len(enrolment)]))[0]
            np.testing.assert_allclose(voice, told.numpy(), rtol=1e-5)
        expected = model(torch.from_numpy(mixture)[None], torch.from_numpy(voice)[None, None]).waveform[0].numpy()
    np.testing.assert_allclose(runner.run(mixture, voice[None]), expected, atol=1e-7)
    assert runner.run(mixture[:1], np.stack([voice] * 3)).shape == (3, 1)


def test_a_blind_separator_is_refused(tmp_path: Path) -> None:
    bundle = random_extractor(tmp_path / "blind", "conv_tasnet", SMALL["conv_tasnet"][0])
    with pytest.raises(BundleError, match="separates blindly, it cannot be told a voice"):
        ExtractionRunner(bundle, "cpu")


def damaged(path: Path) -> None:
    (path / "model.onnx").write_bytes(b"no graph")


def other_rate(path: Path) -> None:
    write_gain_graph(path / "model.onnx", rate=16000)


def no_number(path: Path) -> None:
    write_gain_graph(path / "model.onnx", metadata={"min_samples": "few"})


def other_weights(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"weights")
    write_gain_graph(path / "model.onnx", metadata={"weights_sha256": "0" * 64})


def embedding_graph(path: Path) -> None:
    shutil.copyfile(path / "voice" / "model.onnx", path / "model.onnx")


def no_voice(path: Path) -> None:
    shutil.rmtree(path / "voice")


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (damaged, "cannot be loaded"),
        (other_rate, "is for 16000 Hz, its config.yaml says 8000"),
        (no_number, "says that min_samples is 'few'"),
        (other_weights, "was exported from other weights than model.safetensors"),
        (embedding_graph, "has inputs and outputs"),
        (no_voice, "no such model folder"),
    ],
)
def test_folders_that_cannot_be_run(gain_model: ExtractionBundle, harm: Callable[[Path], None], fault: str) -> None:
    harm(gain_model.path)
    with pytest.raises(BundleError, match=fault):
        ExtractionRunner(read_extractor(gain_model.path), "cpu", 1)


def test_cuda_is_not_promised(gain_model: ExtractionBundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="device cuda: cannot be used"):
        ExtractionRunner(gain_model, "cuda", 1)


@pytest.mark.parametrize(
    ("device", "providers", "torch_has", "expected"),
    [
        ("cuda", ["CPUExecutionProvider"], True, True),
        ("cuda", ["CPUExecutionProvider"], False, False),
        ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"], True, False),
        ("auto", ["CPUExecutionProvider"], True, False),
        ("cpu", ["CPUExecutionProvider"], True, False),
    ],
)
def test_torch_has_the_gpu_where_onnxruntime_has_none(
    device: str, providers: list[str], torch_has: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime
    import torch

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has)
    assert needs_torch(Path("model.onnx"), True, device) is expected
    assert needs_torch(Path("model.onnx"), False, device) is False
    assert needs_torch(None, True, device) is True


def test_both_models_are_on_the_device_that_is_asked_for(
    tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX files beside the weights are passed over, of the model that is told voices and of that in ``voice``."""
    import torch

    from speakerkit.nn import device

    bundle = random_extractor(tmp_path / "model", "bsrnn", SMALL["bsrnn"][0], embedder=small_bundle)
    assert bundle.voice().graph
    (bundle.path / "model.onnx").write_bytes(b"no graph")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(device, "usable_device", lambda name: asked.append(name) or torch.device("cpu"))
    ExtractionRunner(bundle, "cuda", 1)
    assert asked == ["cuda", "cuda"]


def test_a_model_that_gives_no_numbers(gain_model: ExtractionBundle) -> None:
    runner = ExtractionRunner(gain_model, "cpu", 1)
    with pytest.raises(BundleError, match="not finite"):
        runner.run(speech_like(0.1, RATE), np.full((1, 16), np.nan, np.float32))
