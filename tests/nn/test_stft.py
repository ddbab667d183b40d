"""The real-valued STFT against torch's complex one, and back."""

import pytest
import torch
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.nn.stft import STFT, magnitude

# (n_fft, window, hop): what models use, and windows that no whole number of hops fills.
SIZES = [(512, 512, 128), (512, 400, 160), (1200, 400, 160), (256, 256, 128), (302, 241, 97), (20, 17, 5)]
LENGTHS = (1, 2, 127, 128, 129, 399, 400, 401, 1777)


def double_stft(sizes: tuple[int, int, int]) -> STFT:
    torch.set_default_dtype(torch.float64)
    try:
        return STFT(*sizes)
    finally:
        torch.set_default_dtype(torch.float32)


def signals(samples: int) -> torch.Tensor:
    return torch.randn(2, 3, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(samples))


@pytest.mark.parametrize("sizes", SIZES)
def test_spectrum_and_inverse_are_those_of_torch(sizes):
    n_fft, window, hop = sizes
    options = {"n_fft": n_fft, "hop_length": hop, "win_length": window, "center": True}
    options["window"] = torch.hann_window(window, dtype=torch.float64)
    stft = double_stft(sizes)
    for samples in LENGTHS:
        x = signals(samples)
        spectrum = stft(x)
        padded = F.pad(x, (0, -samples % hop)).flatten(0, 1)
        expected = torch.stft(padded, pad_mode="constant", return_complex=True, **options)
        actual = torch.complex(*spectrum.unbind(-2)).flatten(0, 1).mT
        assert actual.shape == (6, n_fft // 2 + 1, 1 + -(-samples // hop))
        assert torch.allclose(actual, expected, rtol=0, atol=1e-12 * n_fft)

        other = signals(spectrum.numel() // 6).reshape(spectrum.shape)  # of no signal: a least-squares inverse
        expected = torch.istft(torch.complex(*other.unbind(-2)).flatten(0, 1).mT, length=samples, **options)
        assert torch.allclose(stft.inverse(other, samples).flatten(0, 1), expected, rtol=0, atol=1e-12 * n_fft)


@pytest.mark.parametrize("sizes", SIZES)
def test_inverse_gives_the_signal_back_in_single_precision(sizes):
    stft = STFT(*sizes)
    for samples in LENGTHS:
        x = signals(samples).float()
        with torch.autocast("cpu", torch.bfloat16):
            assert (stft.inverse(stft(x), samples) - x).abs().max() < 1e-5


@pytest.mark.parametrize("sizes", [(301, 241, 60), (512, 600, 128), (512, 200, 101), (512, 0, 0)])
def test_sizes_without_an_inverse_are_refused(sizes):
    with pytest.raises(ConfigError, match="cannot be inverted"):
        STFT(*sizes)


def test_magnitude_is_the_modulus_and_has_no_gradient_at_zero():
    spectrum = torch.tensor([[3.0, 0.0, -5.0], [4.0, 0.0, 12.0]], requires_grad=True)
    out = magnitude(spectrum)
    assert torch.allclose(out, torch.tensor([5.0, 0.0, 13.0]))
    out.sum().backward()
    assert torch.allclose(spectrum.grad, torch.tensor([[0.6, 0.0, -5 / 13], [0.8, 0.0, 12 / 13]]))
