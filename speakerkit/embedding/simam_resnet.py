"""SimAM-ResNet: residual blocks with an attention that has no parameters (Qin et al. 2022, 2110.06534).

The attention is that of Yang et al. 2021 (ICML, "SimAM"). Layer names and shapes are those of the WeSpeaker model zoo.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.embedding.resnet import convolution, shortcut
from speakerkit.nn.pooling import ASP

LAMBDA = 1e-4  # lambda of eq. 5, as in the published checkpoints


def simam(x: Tensor) -> Tensor:
    """Every value weighted by how much it stands out from its channel: (B, C, F, T) to (B, C, F, T).

    The weight is the sigmoid of the inverse of the least energy, ``1 / e = (x - mean)^2 / (4 (var + lambda)) + 1 / 2``
    (Yang et al. 2021, eq. 5 and 6); mean and unbiased variance are over frequency and time.
    """
    squares = (x - x.mean((2, 3), keepdim=True)).square()
    variance = squares.sum((2, 3), keepdim=True) / torch.sym_max(x.shape[2] * x.shape[3] - 1, 1)
    return x * (squares / (4 * (variance + LAMBDA)) + 0.5).sigmoid()


class SimAMBlock(nn.Module):
    """Two 3x3 convolutions and the attention, (B, in_channels, F, T) to (B, channels, F / stride, T / stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = simam(self.bn2(self.conv2(out)))
        return torch.relu(out + self.downsample(x))


class Front(nn.Module):
    """Four stages of blocks, the last three halving: (B, 1, F, T) to (B, 8 in_planes, F / 8, T / 8)."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, num_blocks: tuple[int, int, int, int], in_planes: int) -> None:
        super().__init__()
        self.conv1 = convolution(1, in_planes, 3)
        self.bn1 = nn.BatchNorm2d(in_planes)
        channels = in_planes
        for stage, blocks in enumerate(num_blocks):
            width = in_planes * 2**stage
            first = SimAMBlock(channels, width, 2 if stage else 1)
            rest = (SimAMBlock(width, width, 1) for _ in range(blocks - 1))
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class SimAMResNet(Backbone):
    """A residual network with SimAM, attentive statistics pooling and a linear embedding.

    Args:
        num_blocks: blocks in each of the four stages.
        feat_dim: F, mel bands.
        embed_dim: D.
        in_planes: channels of the first stage; they double from stage to stage.
        dropout: share of pooled statistics that training drops.
    """

    def __init__(
        self,
        num_blocks: tuple[int, int, int, int],
        feat_dim: int = 80,
        embed_dim: int = 256,
        in_planes: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 9  # ceil(9 / 8) = 2

        self.front = Front(num_blocks, in_planes)
        bands = -(-feat_dim // 8)  # three strides of two, each rounding up
        self.pooling = ASP(8 * in_planes * bands)
        self.drop = nn.Dropout(dropout)
        self.bottleneck = nn.Linear(self.pooling.out_dim, embed_dim)

    def forward(self, feats: Tensor) -> Tensor:
        return self.bottleneck(self.drop(self.pooling(self._maps(feats))))  # (batch, embed_dim)

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, ceil(T / 8), channels * bands), channel-major."""
        return self._maps(feats).flatten(1, 2).transpose(1, 2)

    def _maps(self, feats: Tensor) -> Tensor:
        return self.front(feats.transpose(1, 2).unsqueeze(1))  # (batch, channels, mels / 8, frames / 8)


register_backbone("SimAM_ResNet34_ASP")(partial(SimAMResNet, (3, 4, 6, 3)))
register_backbone("SimAM_ResNet100_ASP")(partial(SimAMResNet, (6, 16, 24, 3)))
