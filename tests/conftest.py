"""What several tests share: real recordings where they are, and small audio files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import soundfile

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, before torch is loaded

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings, or a skip that says where they would be."""
    folder = Path(os.environ.get("SPEAKERKIT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "librispeech-mini").is_dir():
        pytest.skip("no real recordings: set SPEAKERKIT_DATA to a folder that holds librispeech-mini")
    return folder


@pytest.fixture
def write_wav(tmp_path: Path) -> Callable[..., Path]:
    """``write_wav(name, seconds=1.0, rate=16000, seed=0)``: a file of coloured noise with speech-like level changes."""

    def write(name: str, seconds: float = 1.0, rate: int = 16000, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(seconds, rate, seed), rate)
        return path

    return write


@pytest.fixture
def write_minutes(tmp_path: Path) -> Callable[[int], Path]:
    """``write_minutes(count)``: a file of so many minutes at 8 kHz, one like the other, never whole in memory."""

    def write(count: int) -> Path:
        path, minute = tmp_path / f"{count}.wav", speech_like(60.0, 8000)
        with soundfile.SoundFile(path, "w", 8000, 1) as stream:
            for _ in range(count):
                stream.write(minute)
        return path

    return write


def speech_like(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """(samples,) float32: low-passed noise whose level swings four times a second, peak 0.5."""
    rng = np.random.default_rng(seed)
    count = max(1, round(seconds * rate))
    noise = np.convolve(rng.standard_normal(count + 8), np.ones(8) / 8, mode="valid")[:count]
    swing = 0.6 + 0.4 * np.sin(2 * np.pi * (3 + seed % 5) * np.arange(count) / rate)
    samples = noise * swing
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small ECAPA-TDNN with lively random weights (D = 16), as safetensors and as ONNX."""
    torch = pytest.importorskip("torch")
    from speakerkit.bundle import BundleConfig, write_bundle
    from speakerkit.config import NamedConfig
    from speakerkit.embedding.model import backbone_for
    from speakerkit.export.bundle import export_bundle
    from speakerkit.features import FrontEnd

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, frontend = NamedConfig("ECAPA_TDNN", {"channels": 32, "embed_dim": 16, "joined": 48}), FrontEnd()
        backbone = backbone_for(model, frontend)
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    path = tmp_path_factory.mktemp("models") / "small"
    write_bundle(path, BundleConfig(model, frontend, embedding_size=16), backbone.state_dict())
    export_bundle(path)
    return path


@pytest.fixture(scope="session")
def onnx_bundle(small_bundle: Path) -> Path:
    """The same without its weights: configuration and ONNX file."""
    path = small_bundle.parent / "onnx_only"
    shutil.copytree(small_bundle, path, ignore=shutil.ignore_patterns("*.safetensors"))
    return path


@pytest.fixture(scope="session")
def torch_bundle(small_bundle: Path) -> Path:
    """The same without its ONNX file."""
    path = small_bundle.parent / "torch_only"
    shutil.copytree(small_bundle, path, ignore=shutil.ignore_patterns("*.onnx"))
    return path
