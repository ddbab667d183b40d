"""Context along time, as ReDimNet has it between its 2-D blocks: ConvNeXt-like convolutions, then self-attention."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4  # of every self-attention
TIME_KERNELS = (7, 19, 31, 59)  # frames that the convolutions before it see
NORM_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over axis 1, of each frame (and band) by itself."""

    def __init__(self, channels: int, eps: float = NORM_EPS) -> None:
        super().__init__(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """A grouped convolution, normalisation, GELU, a 1x1 convolution, and the residual; 2-D or 1-D."""

    def __init__(self, channels: int, kernel: int, groups: int, dim: int) -> None:
        super().__init__()
        convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if dim == 1 else (nn.Conv2d, nn.BatchNorm2d)
        grouped = convolution(channels, channels, kernel, padding=kernel // 2, groups=groups)
        self.dwconvs = nn.ModuleList([grouped])
        self.norm = norm(channels)
        self.pwconv1 = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pwconv1(F.gelu(self.norm(self.dwconvs[0](x))))


class SelfAttention(nn.Module):
    """Multi-head attention of every frame to all frames (Vaswani et al. 2017), (B, T, rows) to the same."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(rows, rows)
        self.k_proj = nn.Linear(rows, rows)
        self.v_proj = nn.Linear(rows, rows)
        self.out_proj = nn.Linear(rows, rows)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (batch, heads, frames, rows / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(_attend(query, key, value).transpose(1, 2).flatten(2))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(query, key, value)
    # An exported graph holds all its T x T weights, 144 MB a head for a minute of speech: one head at a time.
    heads = zip(query.unbind(1), key.unbind(1), value.unbind(1), strict=True)  # each (batch, frames, rows / heads)
    scale = query.shape[-1] ** -0.5
    return torch.stack([((scale * q) @ k.mT).softmax(-1) @ v for q, k, v in heads], dim=1)


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward layer of the same width, each with a residual and normalised after it."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.attention = SelfAttention(rows)
        self.layer_norm = nn.LayerNorm(rows, NORM_EPS)
        self.feed_forward = nn.Sequential(
            OrderedDict(
                intermediate_dense=nn.Linear(rows, rows),
                gelu=nn.GELU(approximate="tanh"),
                output_dense=nn.Linear(rows, rows),
            )
        )
        self.final_layer_norm = nn.LayerNorm(rows, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # (batch, frames, rows)
        x = self.layer_norm(x + self.attention(x))
        x = self.final_layer_norm(x + self.feed_forward(x))
        return x.transpose(1, 2)


class TimeContext(nn.Module):
    """The 1-D block: among fewer rows, convolutions of growing length and self-attention; then all rows, residual."""

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__()
        self.red_dim_conv = nn.Sequential(nn.Conv1d(rows, hidden, 1), ChannelNorm(hidden))
        convolutions = (ConvNeXtBlock(hidden, kernel, groups=hidden, dim=1) for kernel in TIME_KERNELS)
        self.tcm = nn.Sequential(*convolutions, TransformerLayer(hidden))
        self.exp_dim_conv = nn.Conv1d(hidden, rows, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.exp_dim_conv(self.tcm(self.red_dim_conv(x)))
