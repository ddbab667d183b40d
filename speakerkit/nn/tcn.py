"""Temporal convolution networks: stacks of dilated depthwise convolutions over frames of a mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.nn.conditioning import Conditioning

EPS = 1e-8  # under the root of every variance: far below the features of the quietest speech


class GlobalNorm(nn.GroupNorm):
    """gLN: (N, C, T) by the mean and variance over C and T, then a gain and a bias for each of C (1809.07454)."""

    def __init__(self, features: int) -> None:
        super().__init__(1, features, EPS)


class CumulativeNorm(nn.Module):
    """cLN: as gLN, but frame t by the mean and variance of frames 0 to t (Luo and Mesgarani 2019, 1809.07454)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features, 1))
        self.bias = nn.Parameter(torch.zeros(features, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Sums over hours of frames, and the difference of two of them: in double precision, of one row alone.
        frames = torch.stack([x.sum(1), x.square().sum(1)]).double()  # (2, N, T)
        seen = x.shape[1] * torch.arange(1, x.shape[2] + 1, device=x.device, dtype=torch.float64)
        mean, square = frames.cumsum(-1) / seen
        deviation = ((square - mean.square()).clamp_min(0) + EPS).sqrt()
        mean, deviation = (each.unsqueeze(1).to(x.dtype) for each in (mean, deviation))
        return (x - mean) / deviation * self.weight + self.bias


class TemporalBlock(nn.Module):
    """1x1, PReLU, norm, depthwise dilated convolution, PReLU, norm, 1x1: the branch beside a residual path.

    Args:
        in_features: channels in.
        out_features: channels out.
        hidden: H, channels of the depthwise convolution.
        kernel: P, its frames.
        dilation: frames between them.
        causal: it hears no later frames, and cLN stands in the place of gLN.
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: int, kernel: int, dilation: int, *, causal: bool = False
    ) -> None:
        super().__init__()
        norm = CumulativeNorm if causal else GlobalNorm
        reach = (kernel - 1) * dilation
        self.padding = (reach, 0) if causal else (reach // 2, reach - reach // 2)
        self.widen = nn.Sequential(nn.Conv1d(in_features, hidden, 1), nn.PReLU(), norm(hidden))
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, dilation=dilation, groups=hidden)
        self.narrow = nn.Sequential(nn.PReLU(), norm(hidden), nn.Conv1d(hidden, out_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features, T) to (N, out_features, T)."""
        out: Tensor = self.narrow(self.depthwise(F.pad(self.widen(x), self.padding)))
        return out


class TemporalStack(nn.Module):
    """X blocks of dilations 1, 2, 4, ... 2^(X-1), each added to what it heard; the first of them may hear a voice.

    Args:
        features: B, channels of the residual path.
        hidden, kernel, causal: of each block, see :class:`TemporalBlock`.
        blocks: X.
        skip: Sc, channels of a second output, the sum of what each block puts there; 0 for none.
        conditioning: how the voice enters the first block; the residual path goes past it.
        last: nothing hears the residual path after this stack, so that its last block adds to the skip output alone.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        kernel: int,
        blocks: int,
        *,
        skip: int = 0,
        conditioning: Conditioning | None = None,
        causal: bool = False,
        last: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("kernel", kernel), ("blocks", blocks)):
            if size < 1:
                raise ConfigError(f"a stack's {name}", f"is {size}", "it is 1 or more")
        self.features = features
        self.skip = skip
        self.conditioning = conditioning
        heard = features if conditioning is None else conditioning.out_features
        self.blocks = nn.ModuleList(
            TemporalBlock(
                heard if i == 0 else features,
                skip if last and skip and i == blocks - 1 else features + skip,
                hidden,
                kernel,
                2**i,
                causal=causal,
            )
            for i in range(blocks)
        )

    def forward(self, x: Tensor, voice: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (N, B, T) and voices (N, D) to features (N, B, T) and the skip output (N, Sc, T), if it has one."""
        total = None
        for i, block in enumerate(self.blocks):
            heard = self.conditioning(x, voice) if i == 0 and self.conditioning is not None else x
            branch = block(heard)
            if self.skip:
                aside = branch[:, -self.skip :]
                total = aside if total is None else total + aside
                branch = branch[:, : -self.skip]
            if branch.shape[1]:
                x = x + branch
        return x, total
