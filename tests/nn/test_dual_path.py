"""Segments and dual-path blocks against loops."""

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.nn.conditioning import Conditioning
from speakerkit.nn.dual_path import (
    STEERING,
    Attention,
    AttentivePath,
    DualPathBlock,
    GALRBlock,
    RecurrentPath,
    Steering,
    overlap_added,
    segmented,
)
from speakerkit.nn.positions import sinusoids


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 11, 12])
@pytest.mark.parametrize("length", [2, 4, 6])
def test_segments_overlap_by_half_and_add_up_to_the_frames(frames, length):
    x = torch.randn(2, frames, 3)
    segments = segmented(x, length)
    hop = length // 2
    assert segments.shape == (2, -(-2 * frames // length) + 1, length, 3)
    for s in range(segments.shape[1]):
        for k in range(length):
            t = (s - 1) * hop + k
            assert torch.equal(segments[:, s, k], x[:, t] if 0 <= t < frames else torch.zeros(2, 3))
    assert torch.equal(overlap_added(segments, frames), x)


def test_overlap_add_takes_the_mean_of_both_segments():
    segments = torch.zeros(1, 4, 6, 1)
    segments[0, 2] = torch.arange(6.0)[:, None]
    assert overlap_added(segments, 9)[0, :, 0].tolist() == [0, 0, 0, 0, 0.5, 1, 1.5, 2, 2.5]


@pytest.mark.parametrize("length", [0, 3])
def test_segments_of_odd_length_are_refused(length):
    with pytest.raises(ConfigError, match=f"segment: is {length} frames"):
        segmented(torch.zeros(1, 9, 2), length)


def test_recurrent_path_runs_along_each_sequence_by_itself():
    torch.manual_seed(0)
    path = RecurrentPath(3, 4, hidden=5).double()
    torch.nn.init.normal_(path.norm.weight)
    torch.nn.init.normal_(path.norm.bias)
    x = torch.randn(2, 6, 7, 3, dtype=torch.float64)
    with torch.no_grad():
        out = path(x)
        for row, result in zip(x, out, strict=True):
            branch = torch.stack([path.linear(path.lstm(sequence[None])[0][0]) for sequence in row])
            normalised = (branch - branch.mean()) / (branch.var(correction=0) + 1e-8).sqrt()
            assert torch.allclose(result, normalised * path.norm.weight + path.norm.bias)


class Running(torch.nn.Module):
    """Sums along the third axis so far, of as many channels as it is to give."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.in_features, self.features = in_features, features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.in_features
        return x[..., : self.features].cumsum(2)


@pytest.mark.parametrize("kind", ["concatenate", "add"])
def test_block_hears_within_segments_then_across_them(kind):
    torch.manual_seed(0)
    conditioning = Conditioning(kind, 3, 5).double()
    x, voice = torch.randn(2, 4, 6, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    told = DualPathBlock(3, Running, Running, conditioning=conditioning)(x, voice)
    heard = x if kind == "concatenate" else x + conditioning.shift(voice)[:, None, None]
    within = x + heard.cumsum(2)
    assert torch.allclose(told, within + within.cumsum(1))
    between = x + x.cumsum(2)
    assert torch.allclose(DualPathBlock(3, Running, Running)(x), between + between.cumsum(1))


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3).double(), torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([each.weight for each in (ours.query, ours.key, ours.value)]))
        theirs.in_proj_bias.copy_(torch.cat([each.bias for each in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, memory = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    real = torch.arange(7) < torch.tensor([[7], [4]])
    assert torch.allclose(ours(x, memory), theirs(x, memory, memory)[0])
    assert torch.allclose(ours(x, memory, real), theirs(x, memory, memory, key_padding_mask=~real)[0])
    with pytest.raises(ConfigError, match="heads: are 5, for 12 features"):
        Attention(12, 5)


def attended(path: AttentivePath, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """One head's output for (L, D), position by position."""
    layer = path.attention
    rows = []
    for position in queries:
        scores = torch.stack([layer.query(position) @ layer.key(each) for each in memory]) / memory.shape[1] ** 0.5
        rows.append(sum(w * layer.value(each) for w, each in zip(scores.softmax(0), memory, strict=True)))
    return layer.out(torch.stack(rows))


@pytest.mark.parametrize("kind", [None, *STEERING])
def test_attentive_path_is_its_formula(kind):
    """K to Q, LN, position code, attention (eq. 15 to 23 with a voice), LN of the residual, Q to K."""
    torch.manual_seed(0)
    steering = None if kind is None else Steering(kind, 4, 3)
    path = AttentivePath(4, 1, reduction=(6, 2), steering=steering).double()
    for parameter in path.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x, voice = torch.randn(2, 6, 5, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        out = path(x, None if kind is None else voice)
        code = sinusoids(5, 4, x)
        for n in range(2):
            summed = []
            for q in range(2):
                reduced = sum(path.reduce.weight[q, k] * x[n, k] for k in range(6)) + path.reduce.bias[q]  # (L, D)
                g = path.norm(reduced) + code
                if steering is None:
                    heard = attended(path, g, g)
                else:
                    r, h = steering.film.scale(voice[n]), steering.film.shift(voice[n])
                    if kind == "film":
                        heard = steering.last(r * attended(path, g, g) + h)
                    else:
                        heard = attended(path, g, steering.last(r * g + h))
                summed.append(path.last(g + heard))
            for k in range(6):
                expected = sum(path.expand.weight[k, q] * summed[q] for q in range(2)) + path.expand.bias[k]
                assert torch.allclose(out[n, k], expected)


def test_unknown_steering_is_refused():
    with pytest.raises(ConfigError, match="steering 'duel': is not known; did you mean 'dual'"):
        Steering("duel", 4, 3)


@pytest.mark.parametrize("within", ["rnn", "attention"])
@pytest.mark.parametrize("across", ["rnn", "attention"])
def test_galr_block_adds_what_it_hears_within_and_across(within, across):
    torch.manual_seed(0)
    block = GALRBlock(4, 6, 2, hidden=5, heads=2, within=within, across=across).double()
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    assert isinstance(block.within, RecurrentPath if within == "rnn" else AttentivePath)
    between = x + block.within(x)
    for n in range(2):
        across = block.across(between[n : n + 1].transpose(1, 2))[0].transpose(0, 1)
        assert torch.allclose(block(x)[n], between[n] + across)


def test_galr_normalises_each_position_by_itself():
    torch.manual_seed(0)
    path = RecurrentPath(3, 4, hidden=5, local_norm=True).double()
    x = torch.randn(1, 2, 7, 3, dtype=torch.float64)
    out = path(x)
    branch = path.linear(path.lstm(x[0, 1][None])[0][0, 3])
    normalised = (branch - branch.mean()) / (branch.var(correction=0) + 1e-5).sqrt()
    assert torch.allclose(out[0, 1, 3], normalised)


def test_galr_block_hears_no_segment_that_is_not_real():
    torch.manual_seed(0)
    block = GALRBlock(4, 6, 2, hidden=5, heads=2).double()
    x = torch.randn(1, 5, 6, 4, dtype=torch.float64)
    longer = torch.cat([x, torch.randn(1, 3, 6, 4, dtype=torch.float64)], dim=1)
    real = torch.arange(8)[None] < 5
    assert torch.allclose(block(longer, None, real)[:, :5], block(x))


def test_galr_block_has_no_feed_forward_layer():
    """LSTM, linear layer and LN; K to Q and back; LN, attention and LN."""
    block = GALRBlock(128, 256, 8)
    sizes = [2 * 4 * 128 * (256 + 2), 257 * 128 + 256, 257 * 8 + 9 * 256, 256 + 4 * 128 * 129 + 256]
    assert sum(each.numel() for each in block.parameters()) == sum(sizes)


def test_galr_blocks_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="within: is 'lstm'"):
        GALRBlock(4, 6, 2, within="lstm")
    with pytest.raises(ConfigError, match="across: is 'rnn', which no voice can steer"):
        GALRBlock(4, 6, 2, across="rnn", steering=Steering("dual", 4, 4))
