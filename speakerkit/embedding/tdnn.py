"""The x-vector: a time-delay network over frames, statistics pooling and two layers (Snyder et al. 2018).

Paper: "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018. Layer names and shapes are those of the
WeSpeaker model zoo, whose embedding is the output of the second layer after the pooling (the paper: of the first).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.pooled import PooledBackbone
from speakerkit.embedding.registry import register_backbone
from speakerkit.nn.pooling import POOLINGS

CONTEXT = 15  # frames that one frame before the pooling sees


class TDNNLayer(nn.Module):
    """Convolution, ReLU, normalisation without affine part; no padding, so the context's outer frames are lost."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_1d = nn.Conv1d(in_channels, out_channels, kernel, dilation=dilation)
        self.bn = nn.BatchNorm1d(out_channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.relu(self.conv_1d(x)))


@register_backbone("XVEC")
class XVEC(PooledBackbone):
    """Table 1 of the paper.

    Args:
        feat_dim: F, mel bands.
        hid_dim: channels of the first four layers.
        stats_dim: channels before the pooling.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
    """

    def __init__(
        self,
        feat_dim: int = 80,
        hid_dim: int = 512,
        stats_dim: int = 1500,
        embed_dim: int = 512,
        pooling_func: str = "TSTP",
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = CONTEXT + 1

        self.frame_1 = TDNNLayer(feat_dim, hid_dim, kernel=5)
        self.frame_2 = TDNNLayer(hid_dim, hid_dim, kernel=3, dilation=2)
        self.frame_3 = TDNNLayer(hid_dim, hid_dim, kernel=3, dilation=3)
        self.frame_4 = TDNNLayer(hid_dim, hid_dim, kernel=1)
        self.frame_5 = TDNNLayer(hid_dim, stats_dim, kernel=1)
        self.end_with(POOLINGS[pooling_func](stats_dim), two_emb_layer=True)  # type: ignore[call-arg]

    def maps(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, stats_dim, T - 14), at least one frame."""
        x = whole_context(feats.transpose(1, 2))  # (batch, mels, frames)
        return self.frame_5(self.frame_4(self.frame_3(self.frame_2(self.frame_1(x)))))


def whole_context(x: Tensor) -> Tensor:
    """(B, C, T) as it is; one shorter than the context has its last frame repeated up to 15 frames."""
    missing = CONTEXT - x.shape[-1]
    return F.pad(x, (0, missing), mode="replicate") if missing > 0 else x


@register_backbone("XI_VEC_XVEC")
def xi_vec_xvec(feat_dim: int = 80, embed_dim: int = 512, pooling_func: str = "XI") -> XVEC:
    """The xi-vector on this network (Lee et al. 2021)."""
    return XVEC(feat_dim, embed_dim=embed_dim, pooling_func=pooling_func)
