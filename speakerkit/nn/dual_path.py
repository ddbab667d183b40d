"""Dual-path networks: a long sequence as half-overlapping segments, heard within each and across them in turn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.nn.conditioning import Conditioning
from speakerkit.nn.lstm import lstm_outputs
from speakerkit.nn.tcn import GlobalNorm


def segmented(x: Tensor, length: int) -> Tensor:
    """Frames (N, T, C) to segments (N, S, K, C) of K = ``length`` frames, a new one every K / 2.

    Zeros at both ends see to it that each frame is in two segments: S = ceil(2T / K) + 1.

    Raises:
        ConfigError: K is odd or below 2.
    """
    if length < 2 or length % 2:
        raise ConfigError("segment", f"is {length} frames", "give an even number, 2 or more")
    hop = length // 2
    padded = F.pad(x, (0, 0, hop, hop + -x.shape[1] % hop))
    halves = padded.unflatten(1, (-1, hop))  # (N, S + 1, K / 2, C)
    return torch.cat([halves[:, :-1], halves[:, 1:]], dim=2)


def overlap_added(segments: Tensor, frames: int) -> Tensor:
    """The mean of the two segments that each of the first T = ``frames`` is in: (N, S, K, C) to (N, T, C).

    It undoes :func:`segmented`.
    """
    hop = segments.shape[2] // 2
    early, late = segments[:, :, hop:], segments[:, :, :hop]  # of half s, as segments s - 1 and s have it
    x = ((early[:, :-1] + late[:, 1:]) / 2).flatten(1, 2)
    return F.pad(x, (0, 0, 0, frames - x.shape[1]))  # not x[:, :frames], of which an exporter forgets the length


class RecurrentPath(nn.Module):
    """A bidirectional LSTM along the third axis, a linear layer and gLN: the branch beside a residual path.

    Args:
        in_features: channels in.
        features: channels out.
        hidden: H, cells of each direction.
    """

    def __init__(self, in_features: int, features: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_features, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, features)
        self.norm = GlobalNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, A, L, in_features), where A sequences of L run side by side, to (N, A, L, features)."""
        out = self.linear(lstm_outputs(self.lstm, x.flatten(0, 1))).view(*x.shape[:3], -1)
        return self.norm(out.movedim(-1, 1)).movedim(1, -1)


Path = Callable[[int, int], nn.Module]


class DualPathBlock(nn.Module):
    """One path within the segments, then one across them, each added to what it heard (Luo et al. 2020, 1910.06379).

    Args:
        features: D.
        within, across: from channels in and out to a path, a module (N, A, L, in) -> (N, A, L, out) that hears along L.
        conditioning: how a voice enters what the first path hears; the residual path goes past it.
    """

    def __init__(self, features: int, within: Path, across: Path, *, conditioning: Conditioning | None = None) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.within = within(features if conditioning is None else conditioning.out_features, features)
        self.across = across(features, features)

    def forward(self, x: Tensor, voice: Tensor | None = None) -> Tensor:
        """Segments (N, S, K, D) and voices (N, V) to segments (N, S, K, D)."""
        heard = x
        if self.conditioning is not None:
            heard = self.conditioning(x.movedim(-1, 1), voice).movedim(1, -1)
        x = x + self.within(heard)
        return x + self.across(x.transpose(1, 2)).transpose(1, 2)
