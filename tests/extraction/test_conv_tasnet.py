"""Conv-TasNet: published size, masks, and what a causal one hears."""

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.extraction.registry import build_extractor

SMALL = {"filters": 8, "features": 6, "hidden": 10, "skip": 5, "blocks": 3, "stacks": 2}
UNHEARD = 512 * 128 + 128  # residual output of the last block, which the published count includes


def test_published_number_of_parameters():
    with torch.device("meta"):
        model = build_extractor("conv_tasnet")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round((count + UNHEARD) / 1e6, 1) == 5.1


def test_masks_are_of_the_sum_of_all_skips():
    torch.manual_seed(0)
    model = build_extractor("conv_tasnet", **SMALL, sources=3).eval()
    mixture = 0.1 * torch.randn(2, 333)
    with torch.no_grad():
        (encoded,) = model.encoder(mixture)
        between, first = model.stacks[0](model.bottleneck(encoded))
        _, second = model.stacks[1](between)
        masks = model.masks(first + second).reshape(2, 3, 8, -1)
        expected = [model.decoder([encoded], [masks[:, k : k + 1]], 333)[0][:, 0] for k in range(3)]
        assert torch.allclose(model(mixture).waveform, torch.stack(expected, dim=1), atol=1e-6)
    assert masks.min() >= 0
    assert masks.max() <= 1


def test_causal_one_hears_no_further_than_its_window():
    torch.manual_seed(0)
    model = build_extractor("conv_tasnet", **SMALL, causal=True).eval()
    mixture = 0.1 * torch.randn(1, 800)
    later = mixture.clone()
    later[:, 500:] *= -1
    with torch.no_grad():
        difference = (model(mixture).waveform - model(later).waveform).abs().amax(1)[0]
    assert difference[: 500 - 16].max() < 1e-7
    assert difference[500:].max() > 1e-4


def test_stacks_and_skips_cannot_be_none():
    with pytest.raises(ConfigError, match="stacks and skip: are 0 and 4"):
        build_extractor("conv_tasnet", stacks=0, skip=4)
