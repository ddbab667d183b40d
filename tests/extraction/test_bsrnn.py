"""BSRNN: the published size, and bands in one batch against a loop over them."""

import pytest
import torch
from torch import nn

from speakerkit.errors import ConfigError
from speakerkit.extraction.bsrnn import (
    BANDS,
    BSRNN,
    EPS,
    AlongBands,
    AlongTime,
    BandMasks,
    Bands,
    BandSplit,
    band_widths,
)

WIDTHS = [1, 4, 2]
SMALL = {"rate": 8000, "n_fft": 64, "window": 64, "hop": 32, "features": 6, "hidden": 5, "mask_hidden": [7]}


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_bands_are_the_published_ones():
    """16 kHz, 512 points: 15 bands of 100 Hz, 10 of 200, 5 of 500, one of 2000, and the rest."""
    assert band_widths(BANDS, 16000, 512) == 15 * [3] + 10 * [6] + 5 * [16] + [64, 8]


def test_bands_end_at_half_the_rate_and_are_never_empty():
    assert band_widths(BANDS, 8000, 256) == 15 * [3] + 10 * [6] + [16, 8]
    assert band_widths([[8, 125], [4, 250], [4, 500]], 8000, 256) == 8 * [4] + 4 * [8] + 3 * [16] + [17]
    assert band_widths([[3, 1]], 8000, 16) == [1, 1, 1, 6]


def test_default_size_is_that_of_the_published_recipe():
    """Summed over its layer table: 32 bands of 257 bins, 6 repeats, 128 features, 256-d voices that multiply."""
    lstm = 2 * 4 * 256 * (128 + 256 + 2)
    repeats = 6 * 2 * (2 * 128 + lstm + 512 * 128 + 128)
    split = 257 * 4 + 257 * 2 * 128 + 32 * 128
    masks = 32 * (2 * 128 + 128 * 512 + 512 + 512 * 512 + 512) + 4 * 257 * (512 + 1)
    voice = 256 * 128 + 128
    with torch.device("meta"):
        assert sum(each.numel() for each in BSRNN().parameters()) == repeats + split + masks + voice == 21_435_272


def test_split_is_a_norm_and_a_linear_layer_for_each_band():
    layer = randomised(BandSplit(Bands(WIDTHS), parts=2, features=3, local_norm=False))
    spectrum = randn(2, 5, 2, 7)
    out = layer(spectrum)
    assert out.shape == (5, 2, 3, 3)
    starts = (slice(0, 1), slice(1, 5), slice(5, 7))
    for band, bins in enumerate(starts):
        rows = spectrum[..., bins].permute(0, 2, 3, 1).flatten(1, 2)  # (batch, parts * width, frames)
        weight, bias = (each[:, bins].flatten() for each in (layer.norm.weight, layer.norm.bias))
        normed = nn.functional.group_norm(rows, 1, weight, bias, EPS)
        expected = layer.weight[:, bins].flatten(0, 1).T @ normed + layer.bias[band, 0, :, None]
        assert torch.allclose(out[:, :, band], expected.permute(2, 0, 1))


@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_masks_are_gated_layers_for_each_band(hidden):
    layer = randomised(BandMasks(Bands(WIDTHS), features=3, hidden=hidden, local_norm=False, sources=3))
    x = randn(5, 2, 3, 3)
    masks = layer(x)
    assert masks.shape == (2, 3, 5, 2, 7)
    for band, bins in enumerate((slice(0, 1), slice(1, 5), slice(5, 7))):
        y = nn.functional.group_norm(x[:, :, band].permute(1, 2, 0), 1, layer.gain[band], layer.shift[band], EPS)
        for weight, bias in zip(layer.weights, layer.biases, strict=True):
            y = torch.tanh(weight[band].T @ y + bias[band].T)
        y = torch.einsum("hkpf,mht->mktpf", layer.last_weight[..., bins], y) + layer.last_bias[..., bins]
        assert torch.allclose(masks[..., bins], y[..., :2, :] * torch.sigmoid(y[..., 2:, :]))


@pytest.mark.parametrize("along", [AlongTime, AlongBands])
def test_recurrent_layers_hear_along_their_axis_alone(along):
    layer = randomised(along(3, 4, True, local_norm=False))
    x = randn(5, 2, 6, 3)  # (frames, mixtures, bands, features)
    axis = 0 if along is AlongTime else 2
    sequences = x.movedim(axis, 2).flatten(0, 1)  # (sequences, length, features)
    norm = nn.functional.group_norm(sequences.mT, 1, layer.norm.weight, layer.norm.bias, EPS).mT
    expected = sequences + layer.linear(layer.lstm(norm.transpose(0, 1))[0]).transpose(0, 1)
    others = [size for i, size in enumerate(x.shape[:3]) if i != axis]
    assert torch.allclose(layer(x), expected.unflatten(0, others).movedim(2, axis))


def test_masks_multiply_the_spectrum_as_complex_numbers(monkeypatch):
    """A constant mask is a phase shift and a gain of every frequency but 0 and the highest, which stay real."""
    torch.manual_seed(0)
    model = BSRNN(8, **SMALL).double().eval()
    mask = torch.tensor([0.3, -0.4], dtype=torch.float64).view(2, 1)
    monkeypatch.setattr(model.masks, "forward", lambda x: mask.expand(x.shape[1], 1, x.shape[0], 2, 33))
    mixture = randn(1, 640)
    options = {"n_fft": 64, "hop_length": 32, "window": torch.hann_window(64, dtype=torch.float64)}
    spectrum = torch.stft(mixture, pad_mode="constant", return_complex=True, **options) * (0.3 - 0.4j)
    expected = torch.istft(spectrum, length=640, **options)
    with torch.no_grad():
        assert torch.allclose(model(mixture, randn(1, 1, 8)).waveform[0], expected, atol=1e-6)


def test_untrained_masks_are_near_one_half():
    torch.manual_seed(0)
    masks = BandMasks(Bands(WIDTHS), features=64, hidden=(), local_norm=True)(torch.zeros(5, 2, 3, 64))
    assert torch.equal(masks, torch.tensor([0.5, 0.0]).view(2, 1).expand(2, 1, 5, 2, 7))


def test_repeats_before_the_voice_hear_a_mixture_once():
    torch.manual_seed(0)
    model = BSRNN(8, repeats=3, join=[1, 2], **SMALL)
    heard = []
    for repeat in model.repeats:
        repeat.register_forward_hook(lambda module, inputs, out: heard.append(inputs[0].shape[1]))
    model(torch.randn(2, 300), torch.randn(2, 3, 8))
    assert heard == [2, 6, 6]


@pytest.mark.parametrize("join", [[], [2], [-1, 0]])
def test_voice_must_join_before_a_repeat(join):
    with pytest.raises(ConfigError, match="join: is"):
        BSRNN(8, repeats=2, join=join, **SMALL)


def test_repeats_before_the_voice_can_separate_in_training():
    torch.manual_seed(0)
    model = BSRNN(8, repeats=2, join=[1], separate=3, **SMALL)
    mixture, voices = 0.1 * torch.randn(2, 300), torch.randn(2, 1, 8)
    separated = model(mixture, voices).separated
    assert separated.shape == (2, 3, 300)
    assert torch.equal(separated, model(mixture, -voices).separated)
    separated.square().sum().backward()
    heard = {name.split(".")[0] for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
    assert heard == {"split", "repeats", "blind_masks"}
    assert model.eval()(mixture, voices).separated is None
    with pytest.raises(ConfigError, match="separate: is 2, but"):
        BSRNN(8, separate=2, **SMALL)


def test_a_spectrum_undivided_has_nothing_along_its_bands():
    model = BSRNN(8, bands=[[1, 4000]], repeats=2, **SMALL)
    assert [[type(layer) for layer in repeat] for repeat in model.repeats] == 2 * [[AlongTime]]
    assert model(torch.randn(2, 300), torch.randn(2, 1, 8)).waveform.shape == (2, 1, 300)


def test_complete_voices_hear_each_other_and_are_the_mixture():
    torch.manual_seed(0)
    model = randomised(BSRNN(8, repeats=2, join=[1], exchange=True, **SMALL)).eval()
    mixture, voices = randn(2, 640), randn(2, 2, 8)
    other = torch.cat([voices[:, :1], -voices[:, 1:]], dim=1)

    def run(told, complete):
        return model(mixture, told, torch.tensor(complete, dtype=torch.float64)).waveform

    with torch.no_grad():
        alone = model(mixture, voices).waveform
        assert torch.allclose(run(voices, [0.0, 0.0]), alone)
        assert torch.equal(model(mixture, other).waveform[:, 0], alone[:, 0])
        both = run(voices, [0.0, 1.0])
        assert torch.allclose(both[0], alone[0])
        assert torch.allclose(both[1].sum(0), mixture[1])
        assert not torch.allclose(both[1], alone[1], rtol=0.1)
        assert torch.allclose(run(voices.flip(1), [1.0, 1.0]), run(voices, [1.0, 1.0]).flip(1))
        level = torch.tensor([1.0, 1.0], dtype=torch.float64)
        assert torch.allclose(model(3 * mixture, voices, level).waveform, 3 * model(mixture, voices, level).waveform)


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    model = BSRNN(8, repeats=2, dropout=0.5, **SMALL)
    mixture, voices = 0.1 * torch.randn(1, 640), torch.randn(1, 1, 8)
    assert not torch.equal(model(mixture, voices).waveform, model(mixture, voices).waveform)
    model.eval()
    assert torch.equal(model(mixture, voices).waveform, model(mixture, voices).waveform)
