"""Pooling over time: a sequence of frames of any length becomes one vector.

Every pooling has ``in_dim`` (rows per frame) and ``out_dim`` (length of its vector), and takes (B, C, T) or
(B, C, F, T), of which row ``c * F + f`` is frequency ``f`` of channel ``c``. Statistics are taken in float32 at least,
whatever autocast does around them, and one single frame has the standard deviation ``sqrt(EPS)``, not NaN.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.registry import Registry

EPS = 1e-7  # under the root of every variance, as in the published checkpoints
XI_ROOTS = (math.exp(-7.5), math.exp(7.5))  # square roots of a frame's precision stay within: its log within 15


class Pooling(nn.Module):
    """What all poolings share: ``forward((B, C, T) or (B, C, F, T)) -> (B, out_dim)``.

    Args:
        in_dim: C, or C * F.
        out_dim: length of the pooled vector.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim


POOLINGS: Registry[type[Pooling]] = Registry("pooling")


def frame_rows(x: Tensor) -> Tensor:
    """(B, C, T) or (B, C, F, T) to (B, C * F, T), channel-major, in float32 or better."""
    return x.flatten(1, -2).to(torch.promote_types(x.dtype, torch.float32))


def mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over the last axis: (..., T) to twice (...)."""
    frames = x.shape[-1]
    var, mean = torch.var_mean(x, dim=-1, correction=0)
    unbiased = var * (frames / torch.sym_max(frames - 1, 1))
    return mean, (unbiased + EPS).sqrt()


def weighted_mean_std(x: Tensor, alpha: Tensor, floor: float = EPS) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation under weights ``alpha`` summing to one over the last axis; variance from floor up."""
    mean = (alpha * x).sum(-1)
    var = (alpha * (x - mean.unsqueeze(-1)).square()).sum(-1)
    return mean, var.clamp(min=floor).sqrt()


@POOLINGS.register("TAP")
class TAP(Pooling):
    """Temporal average pooling: the mean."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)

    def forward(self, x: Tensor) -> Tensor:
        return frame_rows(x).mean(-1)


@POOLINGS.register("TSDP")
class TSDP(Pooling):
    """Temporal standard deviation pooling: the second-order statistic alone."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)

    def forward(self, x: Tensor) -> Tensor:
        return mean_std(frame_rows(x))[1]


@POOLINGS.register("TSTP")
class TSTP(Pooling):
    """Temporal statistics pooling (Snyder et al. 2018, "X-vectors"): all means, then all standard deviations."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, 2 * in_dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(mean_std(frame_rows(x)), dim=1)


@POOLINGS.register("ASTP")
class ASTP(Pooling):
    """Attentive statistics pooling, a weight per channel and frame (Okabe et al. 2018; ECAPA-TDNN, eq. 1-3).

    Args:
        in_dim: rows per frame.
        bottleneck_dim: width of the attention's hidden layer.
        global_context_att: let the attention see mean and standard deviation of the whole utterance beside each frame.
    """

    def __init__(self, in_dim: int, bottleneck_dim: int = 128, global_context_att: bool = False) -> None:
        super().__init__(in_dim, 2 * in_dim)
        self.global_context_att = global_context_att
        self.linear1 = nn.Conv1d(3 * in_dim if global_context_att else in_dim, bottleneck_dim, kernel_size=1)
        self.linear2 = nn.Conv1d(bottleneck_dim, in_dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = frame_rows(x)  # (batch, rows, frames)
        alpha = self.linear2(torch.tanh(self._hidden(x))).softmax(dim=-1)
        return torch.cat(weighted_mean_std(x, alpha), dim=1)

    def _hidden(self, x: Tensor) -> Tensor:
        if not self.global_context_att:
            return self.linear1(x)
        # The utterance's statistics are the same in every frame: their share of linear1 is computed once, not T times.
        of_frame, of_utterance = self.linear1.weight.split((self.in_dim, 2 * self.in_dim), dim=1)
        context = torch.cat(mean_std(x), dim=1).unsqueeze(-1)  # (batch, 2 rows, 1)
        return F.conv1d(x, of_frame) + F.conv1d(context, of_utterance, self.linear1.bias)


@POOLINGS.register("ASP")
class ASP(Pooling):
    """Attentive statistics pooling whose attention has ReLU and batch normalisation, as in SimAM-ResNet.

    Args:
        in_dim: rows per frame.
        bottleneck_dim: width of the attention's hidden layer.
    """

    floor = 1e-5  # of every variance, as in the published checkpoints: a hundred times that of the other poolings

    def __init__(self, in_dim: int, bottleneck_dim: int = 128) -> None:
        super().__init__(in_dim, 2 * in_dim)
        self.attention = nn.Sequential(
            nn.Conv1d(in_dim, bottleneck_dim, kernel_size=1),
            nn.ReLU(),
            nn.BatchNorm1d(bottleneck_dim),
            nn.Conv1d(bottleneck_dim, in_dim, kernel_size=1),
            nn.Softmax(dim=-1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = frame_rows(x)  # (batch, rows, frames)
        return torch.cat(weighted_mean_std(x, self.attention(x), self.floor), dim=1)


@POOLINGS.register("MHASTP")
class MHASTP(Pooling):
    """Multi-head attentive statistics pooling: the rows are split among heads, each with an attention of its own.

    The heads' layers are grouped convolutions. The output is (mean, standard deviation) of head 1, of head 2, ...

    Args:
        in_dim: rows per frame, a multiple of ``head_num``.
        layer_num: layers of each attention, tanh between them.
        head_num: heads.
        d_s: 1 for one weight per head and frame, more for a weight per row and frame (published recipes write 2).
        bottleneck_dim: width of the hidden layers of one head.
    """

    def __init__(
        self, in_dim: int, layer_num: int = 2, head_num: int = 8, d_s: int = 2, bottleneck_dim: int = 64
    ) -> None:
        super().__init__(in_dim, 2 * in_dim)
        if in_dim % head_num:
            raise ConfigError("head_num", f"is {head_num}, which does not divide the {in_dim} rows", "choose a divisor")
        self.head_num = head_num
        d_k = in_dim // head_num
        widths = [d_k] + [bottleneck_dim] * (layer_num - 1) + [d_k if d_s > 1 else 1]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Tanh()] if layers else []
            layers += [nn.Conv1d(head_num * width_in, head_num * width_out, kernel_size=1, groups=head_num)]
        self.attention = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = frame_rows(x)
        alpha = self.attention(x).softmax(dim=-1).unflatten(1, (self.head_num, -1))  # (batch, heads, d_k or 1, frames)
        mean, std = weighted_mean_std(x.unflatten(1, (self.head_num, -1)), alpha)  # (batch, heads, d_k)
        return torch.cat((mean, std), dim=-1).flatten(1)


@POOLINGS.register("MQMHASTP")
class MQMHASTP(Pooling):
    """Multi-query multi-head attentive statistics pooling (Zhao et al. 2022): several MHASTP side by side.

    Args:
        in_dim: rows per frame.
        query_num: how many MHASTP look at the same frames; the others are its arguments.
    """

    def __init__(
        self,
        in_dim: int,
        layer_num: int = 2,
        query_num: int = 2,
        head_num: int = 8,
        d_s: int = 2,
        bottleneck_dim: int = 64,
    ) -> None:
        super().__init__(in_dim, 2 * in_dim * query_num)
        self.queries = nn.ModuleList(MHASTP(in_dim, layer_num, head_num, d_s, bottleneck_dim) for _ in range(query_num))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([query(x) for query in self.queries], dim=1)


@POOLINGS.register("XI")
class XI(Pooling):
    """The mean of a Gaussian posterior, every frame an observation with a precision of its own (xi-vector).

    Lee, Wang, Koshinaka 2021 (2108.05679), with diagonal precisions:
    ``phi = (sum_t L_t z_t + L_p mu_p) / (sum_t L_t + L_p)``, of which the prior's ``mu_p`` and ``log L_p`` are learnt.

    Args:
        in_dim: rows per frame.
        hidden_size: width of the hidden layer that estimates the precisions.
    """

    def __init__(self, in_dim: int, hidden_size: int = 256) -> None:
        super().__init__(in_dim, in_dim)
        self.prior_mean = nn.Parameter(torch.zeros(1, in_dim))
        self.prior_logprec = nn.Parameter(torch.zeros(1, in_dim))
        self.lin1_relu_bn = nn.Sequential(
            nn.Conv1d(in_dim, hidden_size, kernel_size=1), nn.ReLU(), nn.BatchNorm1d(hidden_size)
        )
        self.lin2 = nn.Conv1d(hidden_size, in_dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = frame_rows(x)  # (batch, rows, frames)
        root = F.softplus(self.lin2(self.lin1_relu_bn(x)))
        logprec = 2 * root.clamp(*XI_ROOTS).log()
        # The prior counts as one more frame: a softmax of log precisions is their share of the posterior's precision.
        prior_mean, prior_logprec = (
            p.expand(x.shape[0], -1).unsqueeze(-1) for p in (self.prior_mean, self.prior_logprec)
        )
        share = torch.cat((logprec, prior_logprec), dim=-1).softmax(dim=-1)
        return (share * torch.cat((x, prior_mean), dim=-1)).sum(-1)
