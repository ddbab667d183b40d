"""What surrounds an extraction model: embeddings brought to directions, encoders, and models out of their folders."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speakerkit.bundle import read_bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.embedder import load
from speakerkit.embedding.model import open_backbone
from speakerkit.errors import BundleError, ConfigError
from speakerkit.extraction.bundle import read_extractor, write_extractor
from speakerkit.extraction.model import ExtractionNet, VoiceEncoder, build_conditioned, open_conditioned
from tests.conftest import speech_like
from tests.extraction.bundles import random_extractor

BSRNN = {"n_fft": 64, "window": 64, "hop": 16, "features": 6, "hidden": 5, "mask_hidden": [7], "repeats": 1}
TCN = {"filters": 16, "features": 12, "hidden": 20, "blocks": 3, "stacks": 2}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_models_are_told_the_rate_and_the_size_of_embeddings() -> None:
    narrow, wide = (build_conditioned(NamedConfig("bsrnn", BSRNN), rate, 16) for rate in (8000, 16000))
    assert len(narrow.extractor.split.bands) != len(wide.extractor.split.bands)
    assert narrow.extractor.voice_size == len(narrow.centre) == 16
    assert build_conditioned(NamedConfig("spex_plus", TCN), 8000, None).centre.numel() == 0
    with pytest.raises(ConfigError, match="voice_size"):
        build_conditioned(NamedConfig("bsrnn", {**BSRNN, "voice_size": 8}), 8000, 16)
    with pytest.raises(ConfigError, match="hiden"):
        build_conditioned(NamedConfig("bsrnn", {"hiden": 5}), 8000, 16)


def test_of_an_embedding_its_direction_from_the_centre_counts() -> None:
    conditioned = build_conditioned(NamedConfig("bsrnn", BSRNN), 8000, 16).eval()
    conditioned.centre.copy_(noise(16))
    mixture, voices = noise(2, 500), noise(2, 3, 16, seed=1)
    wanted = (voices - conditioned.centre).double().numpy()
    wanted *= 4 / np.linalg.norm(wanted, axis=-1, keepdims=True)
    with torch.no_grad():
        told = conditioned(mixture, voices).waveform
        torch.testing.assert_close(told, conditioned.extractor(mixture, torch.tensor(wanted).float()).waveform)
        farther = conditioned.centre + 5 * (voices - conditioned.centre)
        torch.testing.assert_close(told, conditioned(mixture, farther).waveform, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(told, conditioned(mixture, 5 * voices).waveform, atol=1e-3)


def test_voices_of_a_joint_encoder_stay_as_they_are() -> None:
    conditioned = build_conditioned(NamedConfig("spex_plus", TCN), 8000, None).eval()
    net = ExtractionNet(conditioned, None, 5).eval()
    enrolments, lengths = noise(2, 2, 3000), torch.tensor([[3000, 2000], [1000, 3000]])
    with torch.no_grad():
        extracted, logits = net(noise(2, 500), enrolments, lengths)
        voices = conditioned.extractor.enrol(enrolments.flatten(0, 1), lengths.flatten()).unflatten(0, (2, 2))
        torch.testing.assert_close(extracted.waveform, conditioned.extractor(noise(2, 500), voices).waveform)
        torch.testing.assert_close(logits, net.classifier(voices))


def test_a_blind_net_hears_nothing_but_the_mixture() -> None:
    net = ExtractionNet(build_conditioned(NamedConfig("conv_tasnet", TCN | {"skip": 6}), 8000, None), None, 0).eval()
    with torch.no_grad():
        extracted, logits = net(noise(2, 500), None, None)
    assert extracted.waveform.shape == (2, 2, 500)
    assert logits is None


def test_the_voice_encoder_gives_what_the_embedding_model_gives(small_bundle: Path) -> None:
    bundle = read_bundle(small_bundle)
    encoder = VoiceEncoder(open_backbone(bundle), bundle.config.frontend, tuned=False).train()
    samples = np.stack([speech_like(1.0, 16000, seed) for seed in range(2)])
    wanted = [load(small_bundle, "cpu").embed(each, rate=16000) for each in samples]
    voices = encoder(torch.from_numpy(samples))
    np.testing.assert_allclose(voices, wanted, atol=1e-3)
    assert not voices.requires_grad
    tuned = VoiceEncoder(open_backbone(bundle), bundle.config.frontend, tuned=True).train()
    assert tuned.backbone.training
    assert tuned(torch.from_numpy(samples)).requires_grad


@pytest.mark.parametrize(("name", "args"), [("bsrnn", BSRNN), ("spex_plus", TCN)])
def test_a_folder_gives_back_its_model(name: str, args: dict, small_bundle: Path, tmp_path: Path) -> None:
    bundle = random_extractor(tmp_path / "model", name, args, embedder=small_bundle if name == "bsrnn" else None)
    first, again = open_conditioned(bundle), open_conditioned(bundle)
    assert not first.training
    voices = noise(1, 2, first.extractor.voice_size)
    with torch.no_grad():
        one, other = (each(noise(1, 600), voices).waveform for each in (first, again))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_folders_that_hold_no_model_are_refused(small_bundle: Path, tmp_path: Path) -> None:
    bundle = random_extractor(tmp_path / "model", "bsrnn", BSRNN, embedder=small_bundle)
    tensors = bundle.tensors()
    name = next(iter(tensors))
    write_extractor(bundle.path, bundle.config, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(BundleError, match=name):
        open_conditioned(bundle)
    write_extractor(bundle.path, bundle.config, {**tensors, "more": noise(1)})
    with pytest.raises(BundleError, match="more"):
        open_conditioned(bundle)
    (bundle.path / "config.yaml").write_text(
        (bundle.path / "config.yaml").read_text().replace("features: 6", "features: 7")
    )
    with pytest.raises(BundleError):
        open_conditioned(read_extractor(bundle.path))
