"""VoiceFilter: published sizes, and what all models do that mask magnitudes."""

import pytest
import torch

from speakerkit.extraction.voicefilter import VoiceFilter

SMALL = {
    "n_fft": 64,
    "window": 50,
    "hop": 20,
    "channels": 4,
    "bottleneck": 2,
    "dilations": [1, 2],
    "lstm": 6,
    "hidden": 7,
}


@pytest.mark.parametrize(
    ("args", "millions"),
    [
        ({}, 9.453),  # Atss-Net's baseline, "9.45M" in its table 3
        ({"voice_size": 256, "n_fft": 1200}, 18.876),
        ({"voice_size": 256, "n_fft": 1200, "bidirectional": False}, 9.890),
    ],
)
def test_parameter_counts(args, millions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in VoiceFilter(**args).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-4)


def test_convolutions_have_the_shapes_of_table_1():
    with torch.device("meta"):
        convolutions = [block[0] for block in VoiceFilter().convolutions]
    shapes = [(1, 7), (7, 1), *5 * [(5, 5)], (1, 1)]
    assert [convolution.kernel_size for convolution in convolutions] == shapes
    assert [convolution.dilation for convolution in convolutions[2:7]] == [(2**i, 1) for i in range(5)]
    assert [convolution.out_channels for convolution in convolutions] == 7 * [64] + [8]


def test_convolutions_hear_a_mixture_once_for_all_voices():
    torch.manual_seed(0)
    model = VoiceFilter(8, **SMALL)
    heard = []
    model.convolutions.register_forward_hook(lambda module, inputs, out: heard.append(inputs[0].shape[0]))
    assert model(torch.randn(2, 500), torch.randn(2, 3, 8)).waveform.shape == (2, 3, 500)
    assert heard == [2]


def test_estimate_is_a_masked_magnitude_under_the_phase_of_the_mixture():
    torch.manual_seed(0)
    model = VoiceFilter(8, **SMALL).eval()
    mixture = 0.1 * torch.randn(2, 500)
    with torch.no_grad():
        extracted = model(mixture, torch.randn(2, 1, 8))
    options = {"n_fft": 64, "hop_length": 20, "win_length": 50, "window": torch.hann_window(50)}
    spectrum = torch.stft(mixture, pad_mode="constant", return_complex=True, **options)
    assert torch.allclose(model.magnitudes(mixture), spectrum.abs().mT, atol=1e-5)
    masked = extracted.magnitude[:, 0].mT
    assert ((masked > 0) & (masked < spectrum.abs())).all()  # masks of a sigmoid
    waveform = torch.istft(torch.polar(masked, spectrum.angle()), length=500, **options)
    assert torch.allclose(extracted.waveform[:, 0], waveform, atol=1e-6)
