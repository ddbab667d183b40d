"""Dual-path networks: a long sequence as half-overlapping segments, heard within each and across them in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.nn.conditioning import Conditioning
from speakerkit.nn.lstm import lstm_outputs
from speakerkit.nn.positions import sinusoids
from speakerkit.nn.tcn import GlobalNorm
from speakerkit.registry import suggest


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
        local_norm: the layer normalisation of each position by itself, as GALR has it, in place of gLN.
    """

    def __init__(self, in_features: int, features: int, hidden: int, local_norm: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_features, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, features)
        self.local_norm = local_norm
        self.norm = nn.LayerNorm(features) if local_norm else GlobalNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, A, L, in_features), where A sequences of L run side by side, to (N, A, L, features)."""
        out = self.linear(lstm_outputs(self.lstm, x.flatten(0, 1))).view(*x.shape[:3], -1)
        normalised: Tensor = self.norm(out) if self.local_norm else self.norm(out.movedim(-1, 1)).movedim(1, -1)
        return normalised


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


class Attention(nn.Module):
    """Multi-head attention of positions to a memory (Vaswani et al. 2017), scores over sqrt(D / heads).

    Raises:
        ConfigError: D is no multiple of the heads.
    """

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or features % heads:
            raise ConfigError("heads", f"are {heads}, for {features} features", "give a divisor of these")
        self.heads = heads
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.out = nn.Linear(features, features)

    def forward(self, x: Tensor, memory: Tensor, real: Tensor | None = None) -> Tensor:
        """(N, L, D), and (N, M, D) of which those in ``real`` (N, M) are heard, to (N, L, D)."""
        query, key, value = (
            layer(each).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, L, D / heads)
            for layer, each in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        mask = None if real is None else real[:, None, None]
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended: Tensor = self.out(heard.transpose(1, 2).flatten(2))
        return attended


STEERING = ("dual", "film", "ga_film")


class Steering(nn.Module):
    """A voice Z enters an attentive layer, by linear maps r(Z) and h(Z), which begin at 1 and 0 without it.

    Args:
        kind: "dual": keys and values are of LayerNorm(r G + h), queries of G (Tune-In, eq. 15 to 17; eq. 3 and 4 print
            no normalisation); "film": what attention gives becomes PReLU(r X + h) (eq. 18 to 20); "ga_film": keys and
            values are of PReLU(r G + h) (eq. 21 to 23).

    Raises:
        ConfigError: the kind is unknown.
    """

    def __init__(self, kind: str, features: int, voice_size: int) -> None:
        super().__init__()
        if kind not in STEERING:
            raise ConfigError(f"steering {kind!r}", "is not known", suggest(kind, list(STEERING)))
        self.after = kind == "film"
        self.film = Conditioning("film", features, voice_size)
        self.last = nn.LayerNorm(features) if kind == "dual" else nn.PReLU()

    def forward(self, x: Tensor, voice: Tensor) -> Tensor:
        """(N, *, D) and voices (N, V) to (N, *, D)."""
        steered: Tensor = self.last(self.film(x.movedim(-1, 1), voice).movedim(1, -1))
        return steered


class AttentivePath(nn.Module):
    """Self-attention along the third axis, after a position code; the branch beside a residual path (Tune-In, 2.2).

    G = LN(C(x)) + P, where C reduces the A sequences side by side to Q; then LN(G + attention(G)), and back to A.
    There is no feed-forward layer: with one, the model would be larger than it is said to be. P is of sines, so that
    sequences may have any length.

    Args:
        features: D.
        heads: of the attention.
        reduction: (A, Q), K and Q of GALR; ``None`` leaves the sequences as many as they are.
        steering: how a voice enters.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        reduction: tuple[int, int] | None = None,
        steering: Steering | None = None,
    ) -> None:
        super().__init__()
        self.reduce = nn.Linear(*reduction) if reduction else nn.Identity()
        self.expand = nn.Linear(*reduction[::-1]) if reduction else nn.Identity()
        self.norm = nn.LayerNorm(features)
        self.attention = Attention(features, heads)
        self.last = nn.LayerNorm(features)
        self.steering = steering

    def forward(self, x: Tensor, voice: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """(N, A, L, D), of which positions in ``real`` (N, L) are heard, and voices (N, V), to (N, A, L, D)."""
        g = self.norm(self.reduce(x.movedim(1, -1)).movedim(-1, 1))  # (N, Q, L, D)
        g = g + sinusoids(g.shape[2], g.shape[3], g)
        steering = self.steering if voice is not None else None
        memory = g if steering is None or steering.after else steering(g, voice)
        beside = None if real is None else real.unsqueeze(1).expand(-1, g.shape[1], -1).flatten(0, 1)
        heard = self.attention(g.flatten(0, 1), memory.flatten(0, 1), beside).view(g.shape)
        if steering is not None and steering.after:
            heard = steering(heard, voice)
        back: Tensor = self.expand(self.last(g + heard).movedim(1, -1)).movedim(-1, 1)
        return back


class GALRBlock(DualPathBlock):
    """Globally attentive, locally recurrent: an LSTM within the segments, attention across them (Tune-In, 2.2).

    Args:
        features: D.
        segment: K, frames of a segment.
        reduced: Q, to which K is reduced before attention.
        hidden: H, cells of each direction of the LSTM.
        heads: of the attention.
        within, across: "rnn" or "attention", the summarisers that its table 4 exchanges.
        steering: how a voice enters the attention across segments, for which ``across`` is "attention".

    Raises:
        ConfigError: an unknown summariser, or none that a voice could steer.
    """

    def __init__(
        self,
        features: int,
        segment: int,
        reduced: int,
        hidden: int = 128,
        heads: int = 8,
        *,
        within: str = "rnn",
        across: str = "attention",
        steering: Steering | None = None,
    ) -> None:
        for place, kind in (("within", within), ("across", across)):
            if kind not in ("rnn", "attention"):
                raise ConfigError(place, f"is {kind!r}", 'it is "rnn" or "attention"')
        if steering is not None and across != "attention":
            raise ConfigError("across", "is 'rnn', which no voice can steer", 'give "attention"')

        recurrent = partial(RecurrentPath, hidden=hidden, local_norm=True)

        def attentive_within(features: int, _: int) -> nn.Module:
            return AttentivePath(features, heads)

        def attentive_across(features: int, _: int) -> nn.Module:
            return AttentivePath(features, heads, reduction=(segment, reduced), steering=steering)

        super().__init__(
            features,
            recurrent if within == "rnn" else attentive_within,
            recurrent if across == "rnn" else attentive_across,
        )

    def forward(self, x: Tensor, voice: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """Segments (N, S, K, D), of which those in ``real`` (N, S) are heard, and voices (N, V), to (N, S, K, D)."""
        x = x + self.within(x)
        beside = x.transpose(1, 2)
        told = (beside, voice, real) if isinstance(self.across, AttentivePath) else (beside,)
        across: Tensor = self.across(*told)
        return x + across.transpose(1, 2)
