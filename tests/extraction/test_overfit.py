"""Models that learn four mixtures by heart: their gradients lead somewhere."""

from typing import Any

import pytest
import torch

from speakerkit.extraction.losses import magnitude_mse, si_sdr
from speakerkit.extraction.registry import build_extractor

SPECTRUM = {"n_fft": 256, "window": 256, "hop": 64}
BANDS = {"rate": 8000, "bands": [[8, 125], [4, 250], [4, 500]], "features": 24, "repeats": 2, "mask_hidden": [48]}
TCN = {"filters": 128, "features": 64, "hidden": 128, "blocks": 6, "stacks": 2}
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "spex_plus": (TCN, 2e-3),
    "conv_tasnet": (TCN | {"skip": 64}, 2e-3),
    "dprnn": ({"filters": 64, "features": 32, "hidden": 48, "blocks": 2, "segment": 64}, 5e-3),
    "bsrnn": (SPECTRUM | BANDS | {"band_mlp": 128, "local_norm": True, "power": 0.3}, 5e-3),
}
MASKING: dict[str, tuple[dict[str, Any], float]] = {
    "voicefilter": ({"channels": 8, "bottleneck": 4, "lstm": 96, "hidden": 128}, 5e-3),
    "atss_net": (
        {"channels": 8, "dilations": [1, 2, 4], "blocks": 1, "heads": 1, "head_channels": 16, "power": 0.3},
        5e-3,
    ),
}
RATE = 8000
SECONDS = 0.5
MIXTURES = 4


def harmonic_voices(count: int) -> torch.Tensor:
    """Voices (count, samples) of pitches of their own, whose 20 harmonics come and go by themselves."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(int(SECONDS * RATE)) / RATE
    pitch = 90 + 180 * torch.rand(count, 1, 1, generator=generator)
    order = torch.arange(1.0, 21.0)[:, None]
    phase, rate = (
        torch.rand(2, count, 20, 1, generator=generator) * torch.tensor([6.28, 5.0])[:, None, None, None]
    ).unbind()
    partials = torch.sin(6.2832 * pitch * order * time + phase) * torch.sin(6.2832 * rate * time + phase).relu()
    voices = (partials / order).sum(1)
    return 0.05 * voices / voices.std(-1, keepdim=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_four_mixtures_are_learnt_by_heart(name):
    args, rate = MODELS[name]
    targets = harmonic_voices(2 * MIXTURES).view(MIXTURES, 2, -1)
    mixture = targets.sum(1)
    torch.manual_seed(0)
    voices = torch.randn(MIXTURES, 2, 16)
    model = build_extractor(name, voice_size=16, **args)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(400):
        extracted = model(mixture, voices)
        quality = si_sdr(extracted.waveform, targets).mean()
        if quality > 15:
            break
        optimizer.zero_grad()
        (-quality - sum(si_sdr(scale, targets).mean() for scale in extracted.scales) / 10).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert si_sdr(mixture[:, None].expand_as(targets), targets).mean() < 1
    assert quality > 15


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKING)
def test_masks_of_four_mixtures_come_near_the_ideal_ones(name):
    """The ratio mask of each bin, as far as the mixture's phase lets a mask of magnitudes come."""
    args, rate = MASKING[name]
    targets = harmonic_voices(2 * MIXTURES).view(MIXTURES, 2, -1)
    mixture = targets.sum(1)
    torch.manual_seed(0)
    voices = torch.randn(MIXTURES, 2, 16)
    model = build_extractor(name, voice_size=16, **SPECTRUM, **args)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    wanted = model.magnitudes(targets)
    ideal = wanted / wanted.sum(1, keepdim=True).clamp_min(1e-9)
    ideal_waveform = model.stft.inverse(ideal.unsqueeze(-2) * model.stft(mixture).unsqueeze(1), mixture.shape[-1])
    limit = si_sdr(ideal_waveform, targets).mean()
    for _ in range(400):
        extracted = model(mixture, voices)
        quality = si_sdr(extracted.waveform, targets).mean()
        if quality > limit - 2:
            break
        optimizer.zero_grad()
        magnitude_mse(extracted.magnitude, wanted, 0.3).mean().backward()
        optimizer.step()
    assert limit > 8
    assert quality > limit - 2
