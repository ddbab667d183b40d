"""Models that learn four mixtures by heart: their gradients lead somewhere."""

from typing import Any

import pytest
import torch

from speakerkit.extraction.losses import si_sdr
from speakerkit.extraction.registry import build_extractor

TCN = {"filters": 128, "features": 64, "hidden": 128, "blocks": 6, "stacks": 2}
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "spex_plus": (TCN, 2e-3),
    "conv_tasnet": (TCN | {"skip": 64}, 2e-3),
    "dprnn": ({"filters": 64, "features": 32, "hidden": 48, "blocks": 2, "segment": 64}, 5e-3),
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
