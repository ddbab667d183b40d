"""ECAPA-TDNN: 1-D Res2Net blocks with squeeze-excitation, joined before attentive pooling (Desplanques et al. 2020).

Paper: 2005.07143. Layer names and shapes are those of the WeSpeaker model zoo, which feeds each block the output of the
block before it (the paper: the sum of all before it).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.errors import ConfigError
from speakerkit.nn.pooling import POOLINGS, Pooling

SCALE = 8  # s, splits of a Res2 convolution
JOINED = 1536  # channels before the pooling in the paper, for any C


class ConvReluBn(nn.Module):
    """Convolution, ReLU, batch normalisation, in this order; the length T is kept."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, convolution: type[nn.Conv1d] = nn.Conv1d
    ) -> None:
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel, padding=kernel // 2, bias=True)
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.relu(self.conv(x)))


class Res2ConvReluBn(nn.Module):
    """Channels in s splits: each is convolved after the result before it was added to it, the last passes through."""

    def __init__(self, channels: int, kernel: int, dilation: int, convolution: type[nn.Conv1d] = nn.Conv1d) -> None:
        super().__init__()
        width = channels // SCALE
        padding = dilation * (kernel // 2)
        self.convs = nn.ModuleList(
            convolution(width, width, kernel, dilation=dilation, padding=padding) for _ in range(SCALE - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(SCALE - 1))

    def forward(self, x: Tensor) -> Tensor:
        *splits, last = x.chunk(SCALE, dim=1)
        outputs: list[Tensor] = []
        for split, conv, bn in zip(splits, self.convs, self.bns, strict=True):
            summed = split + outputs[-1] if outputs else split
            outputs.append(bn(torch.relu(conv(summed))))
        return torch.cat((*outputs, last), dim=1)


class SqueezeExcitation(nn.Module):
    """A gate per channel, from the channels' means over time."""

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, bottleneck)
        self.linear2 = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.linear2(torch.relu(self.linear1(x.mean(-1)))).sigmoid()  # (batch, channels)
        return x * gate.unsqueeze(-1)


class SERes2Block(nn.Module):
    """Figure 2 of the paper: 1x1, dilated Res2 convolution, 1x1, squeeze-excitation, and the residual."""

    def __init__(self, channels: int, dilation: int, convolution: type[nn.Conv1d] = nn.Conv1d) -> None:
        super().__init__()
        self.se_res2block = nn.Sequential(
            ConvReluBn(channels, channels),
            Res2ConvReluBn(channels, kernel=3, dilation=dilation, convolution=convolution),
            ConvReluBn(channels, channels),
            SqueezeExcitation(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_res2block(x)


@register_backbone("ECAPA_TDNN")
class ECAPA_TDNN(Backbone):
    """Figure 3 of the paper.

    Args:
        channels: C, a multiple of 8.
        feat_dim: F, mel bands.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
        global_context_att: the attention sees the utterance's statistics (ASTP only), as in the paper.
        emb_bn: batch normalisation of the embedding.
        joined: channels before the pooling.
    """

    def __init__(
        self,
        channels: int = 512,
        feat_dim: int = 80,
        embed_dim: int = 192,
        pooling_func: str = "ASTP",
        global_context_att: bool = False,
        emb_bn: bool = False,
        joined: int = JOINED,
    ) -> None:
        super().__init__()
        if channels % SCALE:
            raise ConfigError("channels", f"is {channels}", f"choose a multiple of {SCALE}")
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 2

        self.layer1 = ConvReluBn(feat_dim, channels, kernel=5)
        self.layer2 = SERes2Block(channels, dilation=2)
        self.layer3 = SERes2Block(channels, dilation=3)
        self.layer4 = SERes2Block(channels, dilation=4)
        self.conv = nn.Conv1d(3 * channels, joined, kernel_size=1)
        self.pool = _pooling(pooling_func, joined, global_context_att)
        self.bn = nn.BatchNorm1d(self.pool.out_dim)
        self.linear = nn.Linear(self.pool.out_dim, embed_dim)
        self.bn2 = nn.BatchNorm1d(embed_dim) if emb_bn else nn.Identity()

    def forward(self, feats: Tensor) -> Tensor:
        return self._embedding(self._frames(feats))

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, T, joined)."""
        return self._frames(feats).transpose(1, 2)

    def embed_frames(self, frames: Tensor) -> Tensor:
        """(B, T, joined) to (B, embed_dim)."""
        return self._embedding(frames.transpose(1, 2))

    def _embedding(self, frames: Tensor) -> Tensor:
        return self.bn2(self.linear(self.bn(self.pool(frames))))  # (batch, embed_dim)

    def _frames(self, feats: Tensor) -> Tensor:
        out1 = self.layer1(feats.transpose(1, 2))  # (batch, channels, frames)
        out2 = self.layer2(out1)
        out3 = self.layer3(out2)
        out4 = self.layer4(out3)
        return torch.relu(self.conv(torch.cat((out2, out3, out4), dim=1)))


def _pooling(name: str, joined: int, global_context_att: bool) -> Pooling:
    if not global_context_att:
        return POOLINGS[name](joined)  # type: ignore[call-arg]
    if name != "ASTP":
        raise ConfigError(f"pooling {name!r}", "has no global context", "use 'ASTP', or an ECAPA_TDNN without GLOB")
    return POOLINGS[name](joined, global_context_att=True)  # type: ignore[call-arg]


@register_backbone("ECAPA_TDNN_c512")
def ecapa_tdnn_c512(
    feat_dim: int = 80, embed_dim: int = 192, pooling_func: str = "ASTP", emb_bn: bool = False
) -> ECAPA_TDNN:
    """C = 512."""
    return ECAPA_TDNN(512, feat_dim, embed_dim, pooling_func, False, emb_bn)


@register_backbone("ECAPA_TDNN_c1024")
def ecapa_tdnn_c1024(
    feat_dim: int = 80, embed_dim: int = 192, pooling_func: str = "ASTP", emb_bn: bool = False
) -> ECAPA_TDNN:
    """C = 1024."""
    return ECAPA_TDNN(1024, feat_dim, embed_dim, pooling_func, False, emb_bn)


@register_backbone("ECAPA_TDNN_GLOB_c512")
def ecapa_tdnn_glob_c512(
    feat_dim: int = 80, embed_dim: int = 192, pooling_func: str = "ASTP", emb_bn: bool = False
) -> ECAPA_TDNN:
    """C = 512 with global context."""
    return ECAPA_TDNN(512, feat_dim, embed_dim, pooling_func, True, emb_bn)


@register_backbone("ECAPA_TDNN_GLOB_c1024")
def ecapa_tdnn_glob_c1024(
    feat_dim: int = 80, embed_dim: int = 192, pooling_func: str = "ASTP", emb_bn: bool = False
) -> ECAPA_TDNN:
    """C = 1024 with global context."""
    return ECAPA_TDNN(1024, feat_dim, embed_dim, pooling_func, True, emb_bn)


@register_backbone("XI_VEC_ECAPA_TDNN_c512")
def xi_vec_ecapa_tdnn_c512(
    feat_dim: int = 80, embed_dim: int = 192, pooling_func: str = "XI", emb_bn: bool = False
) -> ECAPA_TDNN:
    """The xi-vector on this network (Lee et al. 2021), C = 512."""
    return ECAPA_TDNN(512, feat_dim, embed_dim, pooling_func, False, emb_bn)


@register_backbone("XI_VEC_ECAPA_TDNN_c1024")
def xi_vec_ecapa_tdnn_c1024(
    feat_dim: int = 80, embed_dim: int = 192, pooling_func: str = "XI", emb_bn: bool = False
) -> ECAPA_TDNN:
    """The xi-vector on this network (Lee et al. 2021), C = 1024."""
    return ECAPA_TDNN(1024, feat_dim, embed_dim, pooling_func, False, emb_bn)
