"""TS-VAD: the published size, what its slots mean, and where its frames lie."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from speakerkit.config import NamedConfig
from speakerkit.diarization.config import TSVADSettings
from speakerkit.diarization.tsvad import TSVAD, Backend, sinusoids
from speakerkit.embedding.model import backbone_for
from speakerkit.errors import ConfigError
from speakerkit.features import FrontEnd

SMALL = TSVADSettings(size=32, feed_forward=16, slots=3, dropout=0.0)
ENCODER = NamedConfig("ECAPA_TDNN", {"channels": 16, "joined": 24, "embed_dim": 16})


def small(settings: TSVADSettings = SMALL, encoder: NamedConfig = ENCODER) -> TSVAD:
    torch.manual_seed(0)
    frontend = FrontEnd()
    backbone = backbone_for(encoder, frontend)
    return TSVAD(backbone, frontend, backbone.embed_dim, settings).eval()


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("feed_forward", "count"), [(1536, 9_311_235), (768, 6_948_867)])
def test_size_of_the_back_end(feed_forward: int, count: int) -> None:
    """By hand: 4 layers of 4 (d^2 + d) + 2 d f + f + d + 4 d, a convolution of 15 d^2 + d, a linear one of 3 d + 3."""
    d, f = 384, feed_forward
    layers = 4 * (4 * (d * d + d) + 2 * d * f + f + d + 4 * d)
    assert size(Backend(TSVADSettings(feed_forward=f))) == layers + 3 * d * d * 5 + d + 3 * d + 3 == count


def test_positions_are_sines_and_cosines() -> None:
    table = sinusoids(7, 8, torch.zeros(1))
    for place in range(7):
        for pair in range(4):
            angle = place / 10000 ** (2 * pair / 8)
            assert float(table[place, 2 * pair]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[place, 2 * pair + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


def test_an_empty_slot_is_zeros_and_loudness_of_an_embedding_means_nothing() -> None:
    model, sound, voices = small(), 0.1 * torch.randn(2, 16000), torch.randn(2, 3, 16)
    voices[0, 1] = 0
    with torch.no_grad():
        model.empty.fill_(0.3)
        plain = model(sound, voices)
        assert torch.allclose(model(sound, 7 * voices), plain, atol=1e-5)
        model.empty.fill_(-0.3)
        other = model(sound, voices)
    assert not torch.allclose(other[0], plain[0], atol=1e-3)
    assert torch.allclose(other[1], plain[1], atol=1e-6)


@pytest.mark.parametrize(
    "encoder", [ENCODER, NamedConfig("ResNet18", {"m_channels": 4, "embed_dim": 16, "two_emb_layer": True})]
)
def test_a_frame_is_the_embedding_of_its_window(encoder: NamedConfig) -> None:
    settings = TSVADSettings(size=32, feed_forward=16, average=2, window=0.4, fusion="product")
    model, sound = small(settings, encoder), 0.1 * torch.randn(2, 32000)
    with torch.no_grad():
        features = model.encoder.frame_features(model.fbank(sound))
        whole = model.encoder(model.fbank(sound))
        local = model._local_embeddings(features)
        assert torch.allclose(model.encoder.embed_frames(features), whole, atol=1e-5)
        for frame in (local.shape[1] // 2, local.shape[1] // 3):
            start = 2 * frame - (model.window - 2) // 2
            expected = model.encoder.embed_frames(features[:, start : start + model.window])
            assert torch.allclose(local[:, frame], expected, atol=1e-5)
        assert model(sound, torch.randn(2, 3, 16)).shape == (2, features.shape[1] // 2, 3)
    assert model.window == pytest.approx(0.4 / (model.frames.period / 2))


def test_the_centre_is_taken_from_embeddings() -> None:
    model, sound, voices = small(), 0.1 * torch.randn(2, 16000), torch.randn(2, 3, 16)
    with torch.no_grad():
        plain = model(sound, voices)
        model.centre.fill_(0.5)
        assert torch.allclose(model(sound, voices + 0.5), plain, atol=1e-5)


def test_batches_do_not_mix() -> None:
    model, sound, voices = small(), 0.1 * torch.randn(3, 12000), torch.randn(3, 3, 16)
    with torch.no_grad():
        together = model(sound, voices)
        alone = torch.cat([model(sound[index : index + 1], voices[index : index + 1]) for index in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "average", "period"),
    [(ENCODER, 1, 0.01), (ENCODER, 4, 0.04), (NamedConfig("ResNet18", {"m_channels": 4, "embed_dim": 16}), 1, 0.08)],
)
def test_frames_lie_where_the_sound_is(encoder: NamedConfig, average: int, period: float) -> None:
    """Sound that changes at 2 s changes what the encoder gives for frames that lie around it."""
    model = small(TSVADSettings(size=32, feed_forward=16, average=average), encoder)
    assert model.frames.period == pytest.approx(period)
    sound = torch.zeros(1, 64000)
    clicked = sound.clone()
    clicked[:, 32000:32160] = torch.randn(160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = [
            model.encoder.frame_features(model.fbank(each)).transpose(1, 2) for each in (sound + 1e-3, clicked + 1e-3)
        ]
        difference = nn.functional.avg_pool1d((change[0] - change[1]).abs().mean(1), average)[0]
        count = model(sound, torch.zeros(1, model.slots, 16)).shape[1]
    difference = difference - difference.median()  # mean normalisation changes all frames
    centre = float((difference.clamp_min(0) * torch.arange(len(difference))).sum() / difference.clamp_min(0).sum())
    assert model.frames.first + centre * model.frames.period == pytest.approx(2.005, abs=0.08)
    assert count == len(difference)


@pytest.mark.parametrize("window", [0.0, 0.4])
def test_what_is_not_needed_is_not_trained(window: float) -> None:
    model = small(TSVADSettings(size=32, feed_forward=16, window=window, dropout=0.0))
    model.train()
    model(0.1 * torch.randn(2, 16000), torch.randn(2, 3, 16)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(parameter.requires_grad == (window > 0) for parameter in model.encoder.linear.parameters())
    assert all(parameter.requires_grad for parameter in model.encoder.conv.parameters())


def test_an_encoder_that_listens_only_stays_as_it_is() -> None:
    model = small()
    model.train()
    model.listen(False)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model(0.1 * torch.randn(2, 16000), torch.randn(2, 3, 16)).sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.encoder.state_dict().items())
    model.train()
    assert not model.encoder.training
    model.listen(True)
    assert model.encoder.training


@pytest.mark.parametrize("values", [{"size": 30}, {"kernel": 4}, {"slots": 0}, {"dropout": 1.0}])
def test_impossible_sizes(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TSVADSettings(**values)  # type: ignore[arg-type]
