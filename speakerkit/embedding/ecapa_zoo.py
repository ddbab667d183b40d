"""ECAPA-TDNN in the two forms that SpeechBrain (3D-Speaker too) and TaoRuijie's ECAPA-TDNN publish weights for.

Both follow 2005.07143 with an attention that has ReLU and batch normalisation before its tanh. Layer names are those of
:mod:`speakerkit.embedding.ecapa_tdnn`; :mod:`speakerkit.embedding.importers` translates the published ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.ecapa_tdnn import ConvReluBn, SERes2Block
from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.nn.pooling import Pooling, frame_rows, weighted_mean_std


class ReflectConv1d(nn.Conv1d):
    """A convolution whose input is mirrored at its ends, over and over where it is shorter than the padding."""

    def forward(self, x: Tensor) -> Tensor:
        pad = int(self.padding[0])
        if pad:
            last = torch.arange(x.shape[-1], device=x.device)[-1]  # a tensor: ONNX takes no remainder by a size
            steps = torch.arange(1, pad + 1, device=x.device) % (2 * last).clamp(min=1)
            inner = torch.minimum(steps, 2 * last - steps)  # how far from the end a mirrored frame is
            x = torch.cat((x[..., inner.flip(0)], x, x[..., last - inner]), dim=-1)
        return F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormalisedASTP(Pooling):
    """Attentive statistics pooling over global context, its hidden layer normalised: ReLU, batch normalisation, tanh.

    Args:
        in_dim: rows per frame.
        bottleneck_dim: width of the hidden layer.
        floor: the least variance.
        unbiased: whether the context's variance is over T - 1 frames instead of T.
    """

    def __init__(self, in_dim: int, bottleneck_dim: int, floor: float, unbiased: bool) -> None:
        super().__init__(in_dim, 2 * in_dim)
        self.floor, self.unbiased = floor, unbiased
        self.linear1 = nn.Conv1d(3 * in_dim, bottleneck_dim, kernel_size=1)
        self.bn = nn.BatchNorm1d(bottleneck_dim)
        self.linear2 = nn.Conv1d(bottleneck_dim, in_dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = frame_rows(x)  # (batch, rows, frames)
        # The utterance's statistics are the same in every frame: their share of linear1 is computed once, not T times.
        of_frame, of_utterance = self.linear1.weight.split((self.in_dim, 2 * self.in_dim), dim=1)
        hidden = F.conv1d(x, of_frame) + F.conv1d(self._context(x), of_utterance, self.linear1.bias)
        alpha = self.linear2(torch.tanh(self.bn(torch.relu(hidden)))).softmax(dim=-1)
        return torch.cat(weighted_mean_std(x, alpha, self.floor), dim=1)

    def _context(self, x: Tensor) -> Tensor:
        """Mean and standard deviation of each row, (B, rows, T) to (B, 2 rows, 1)."""
        frames = x.shape[-1]
        var, mean = torch.var_mean(x, dim=-1, correction=0)
        if self.unbiased:
            var = var * (frames / torch.sym_max(frames - 1, 1))
        return torch.cat((mean, var.clamp(min=self.floor).sqrt()), dim=1).unsqueeze(-1)


@register_backbone("ECAPA_TDNN_SpeechBrain")
class SpeechBrainECAPA(Backbone):
    """SpeechBrain's: convolutions over mirrored ends, and a normalised joining layer.

    Args:
        channels: C, a multiple of 8.
        feat_dim: F, mel bands.
        embed_dim: D.
        joined: channels before the pooling.
        attention: width of the attention's hidden layer.
    """

    def __init__(
        self, channels: int = 1024, feat_dim: int = 80, embed_dim: int = 192, joined: int = 3072, attention: int = 128
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 2

        self.layer1 = ConvReluBn(feat_dim, channels, 5, ReflectConv1d)
        self.layer2 = SERes2Block(channels, 2, ReflectConv1d)
        self.layer3 = SERes2Block(channels, 3, ReflectConv1d)
        self.layer4 = SERes2Block(channels, 4, ReflectConv1d)
        self.conv = ConvReluBn(3 * channels, joined)
        self.pool = NormalisedASTP(joined, attention, floor=1e-12, unbiased=False)
        self.bn = nn.BatchNorm1d(self.pool.out_dim)
        self.linear = nn.Linear(self.pool.out_dim, embed_dim)

    def forward(self, feats: Tensor) -> Tensor:
        return self.linear(self.bn(self.pool(self._frames(feats))))  # (batch, embed_dim)

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, T, joined)."""
        return self._frames(feats).transpose(1, 2)

    def _frames(self, feats: Tensor) -> Tensor:
        out1 = self.layer1(feats.transpose(1, 2))  # (batch, channels, frames)
        out2 = self.layer2(out1)
        out3 = self.layer3(out2)
        out4 = self.layer4(out3)
        return self.conv(torch.cat((out2, out3, out4), dim=1))


@register_backbone("ECAPA_TDNN_TaoRuijie")
class TaoRuijieECAPA(Backbone):
    """TaoRuijie's: blocks fed the sum of all outputs before them, as in the paper, and a normalised embedding.

    Args:
        channels: C, a multiple of 8.
        feat_dim: F, mel bands.
        embed_dim: D.
        joined: channels before the pooling.
        attention: width of the attention's hidden layer.
    """

    def __init__(
        self, channels: int = 1024, feat_dim: int = 80, embed_dim: int = 192, joined: int = 1536, attention: int = 256
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 2

        self.layer1 = ConvReluBn(feat_dim, channels, kernel=5)
        self.layer2 = SERes2Block(channels, dilation=2)
        self.layer3 = SERes2Block(channels, dilation=3)
        self.layer4 = SERes2Block(channels, dilation=4)
        self.conv = nn.Conv1d(3 * channels, joined, kernel_size=1)
        self.pool = NormalisedASTP(joined, attention, floor=1e-4, unbiased=True)
        self.bn = nn.BatchNorm1d(self.pool.out_dim)
        self.linear = nn.Linear(self.pool.out_dim, embed_dim)
        self.bn2 = nn.BatchNorm1d(embed_dim)

    def forward(self, feats: Tensor) -> Tensor:
        return self.bn2(self.linear(self.bn(self.pool(self._frames(feats)))))  # (batch, embed_dim)

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, T, joined)."""
        return self._frames(feats).transpose(1, 2)

    def _frames(self, feats: Tensor) -> Tensor:
        out1 = self.layer1(feats.transpose(1, 2))  # (batch, channels, frames)
        out2 = self.layer2(out1)
        out3 = self.layer3(out1 + out2)
        out4 = self.layer4(out1 + out2 + out3)
        return torch.relu(self.conv(torch.cat((out2, out3, out4), dim=1)))
