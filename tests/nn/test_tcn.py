"""Temporal convolution networks against formulas written out."""

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.nn.conditioning import Conditioning
from speakerkit.nn.tcn import EPS, CumulativeNorm, GlobalNorm, TemporalBlock, TemporalStack


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / (x.var(correction=0) + EPS).sqrt()


def test_global_norm_is_over_features_and_frames():
    layer = randomised(GlobalNorm(3))
    x = 5 + torch.randn(2, 3, 7, dtype=torch.float64)
    for row, out in zip(x, layer(x), strict=True):
        assert torch.allclose(out, layer.weight[:, None] * normalised(row) + layer.bias[:, None])


def test_cumulative_norm_hears_what_was_so_far():
    layer = randomised(CumulativeNorm(3))
    x = 5 + torch.randn(2, 3, 7, dtype=torch.float64)
    out = layer(x)
    for row in range(2):
        for t in range(7):
            expected = layer.weight[:, 0] * normalised(x[row, :, : t + 1])[:, t] + layer.bias[:, 0]
            assert torch.allclose(out[row, :, t], expected)


def test_cumulative_norm_keeps_its_precision_over_long_input():
    layer = CumulativeNorm(2)
    x = 10 + torch.randn(1, 2, 200_000, generator=torch.Generator().manual_seed(0))
    expected = normalised(x.double())[0, :, -1]
    assert torch.allclose(layer(x)[0, :, -1].double(), expected, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_block_is_its_formula(causal):
    block = randomised(TemporalBlock(3, 2, 4, kernel=3, dilation=2, causal=causal))
    x = torch.randn(1, 3, 9, dtype=torch.float64)

    def prelu_norm(y: torch.Tensor, prelu: torch.nn.PReLU, norm: torch.nn.Module) -> torch.Tensor:
        y = torch.where(y > 0, y, prelu.weight * y)
        past = [normalised(y[:, : t + 1] if causal else y)[:, t] for t in range(9)]
        return norm.weight.view(-1, 1) * torch.stack(past, dim=1) + norm.bias.view(-1, 1)

    widen, prelu, norm = block.widen
    y = prelu_norm(widen.weight[:, :, 0] @ x[0] + widen.bias[:, None], prelu, norm)
    offsets = (-4, -2, 0) if causal else (-2, 0, 2)
    z = block.depthwise.bias[:, None] + sum(
        block.depthwise.weight[:, 0, tap, None]
        * torch.stack([y[:, t + offset] if 0 <= t + offset < 9 else 0 * y[:, 0] for t in range(9)], dim=1)
        for tap, offset in enumerate(offsets)
    )
    prelu, norm, narrow = block.narrow
    expected = narrow.weight[:, :, 0] @ prelu_norm(z, prelu, norm) + narrow.bias[:, None]
    assert torch.allclose(block(x)[0], expected)


def test_stack_adds_branches_and_lets_the_voice_into_the_first():
    conditioning = Conditioning("film", 4, 5)
    stack = randomised(TemporalStack(4, 6, 3, 3, skip=2, conditioning=conditioning, last=True))
    assert [block.depthwise.dilation for block in stack.blocks] == [(1,), (2,), (4,)]
    x, voice = torch.randn(2, 4, 11, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    first = stack.blocks[0](conditioning(x, voice))
    between = x + first[:, :4]
    second = stack.blocks[1](between)
    residual, skip = stack(x, voice)
    assert torch.allclose(residual, between + second[:, :4])
    assert torch.allclose(skip, first[:, 4:] + second[:, 4:] + stack.blocks[2](residual))


def test_stack_without_skip_or_voice():
    stack = randomised(TemporalStack(4, 6, 3, 2))
    x = torch.randn(2, 4, 11, dtype=torch.float64)
    between = x + stack.blocks[0](x)
    residual, skip = stack(x)
    assert torch.allclose(residual, between + stack.blocks[1](between))
    assert skip is None


@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_causal_stack_hears_nothing_later(kernel):
    stack = randomised(TemporalStack(4, 6, kernel, 3, causal=True))
    x = torch.randn(1, 4, 40, dtype=torch.float64)
    later = x.clone()
    later[..., 21:] += 1
    out, changed = stack(x)[0], stack(later)[0]
    assert torch.equal(out[..., :21], changed[..., :21])
    assert (out[..., 21:] != changed[..., 21:]).any()


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_frames_stay_as_many_whatever_the_kernel(kernel):
    assert TemporalStack(4, 6, kernel, 3)(torch.randn(1, 4, 10))[0].shape == (1, 4, 10)


def test_empty_stacks_are_refused():
    with pytest.raises(ConfigError, match="stack's blocks: is 0"):
        TemporalStack(4, 6, 3, 0)
    with pytest.raises(ConfigError, match="stack's kernel: is 0"):
        TemporalStack(4, 6, 0, 3)
