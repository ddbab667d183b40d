"""Segments and dual-path blocks against loops."""

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.nn.conditioning import Conditioning
from speakerkit.nn.dual_path import DualPathBlock, RecurrentPath, overlap_added, segmented


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
