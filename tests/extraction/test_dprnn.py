"""DPRNN-TasNet: published size, and its head against a formula."""

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.extraction.dprnn import GatedMasks
from speakerkit.extraction.registry import build_extractor


@pytest.mark.parametrize("args", [{}, {"window": 2, "segment": 250}])
def test_published_number_of_parameters(args):
    with torch.device("meta"):
        model = build_extractor("dprnn", **args)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 2.6


def test_masks_of_each_source_are_gated():
    torch.manual_seed(0)
    head = GatedMasks(4, 3, 6).double()
    segments = torch.randn(2, 5, 8, 4, dtype=torch.float64)
    masks = head(segments, 13)
    assert masks.shape == (2, 3, 6, 13)
    prelu, split = head.split
    at = [(s, 9 + 4 - 4 * s) for s in range(5) if 0 <= 9 + 4 - 4 * s < 8]  # where frame 9 is
    assert at == [(2, 5), (3, 1)]
    heard = sum(split(prelu(segments[1, s, k])) for s, k in at) / 2
    x = heard[4 * 2 :]  # the last source
    expected = head.mask(torch.tanh(head.value(x)) * torch.sigmoid(head.gate(x))).clamp_min(0)
    assert torch.allclose(masks[1, 2, :, 9], expected)


@pytest.mark.parametrize("args", [{"segment": 25}, {"segment": 0}, {"blocks": 0}])
def test_what_cannot_be_built_is_refused(args):
    with pytest.raises(ConfigError, match="blocks and segment: are"):
        build_extractor("dprnn", **args)
