"""ResNet speaker embeddings: 2-D residual convolutions over frequency and time, after He et al. 2016 (1512.03385).

The r-vectors of Zeinali et al. 2019 (1910.12592). Layer names and shapes are those of the WeSpeaker model zoo, which
also brought the depths 221 and 293.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from speakerkit.embedding.pooled import PooledBackbone
from speakerkit.embedding.registry import register_backbone
from speakerkit.nn.pooling import POOLINGS


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A padded square convolution without bias, which the batch normalisation after it would cancel."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The identity where shapes agree, else a strided 1x1 projection."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, (B, in_channels, F, T) to (B, channels, F / stride, T / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1, (B, in_channels, F, T) to (B, 4 channels, F / stride, T / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = self.expansion * channels
        self.conv1 = convolution(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = convolution(channels, wide, 1)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut = shortcut(in_channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + self.shortcut(x))


class ResNet(PooledBackbone):
    """Four stages of residual blocks, the last three halving frequency and time, then pooling and a linear embedding.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        num_blocks: blocks in each of the four stages.
        feat_dim: F, mel bands.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
        two_emb_layer: a second linear layer after ReLU and normalisation; the embedding is then its output.
        m_channels: channels of the first stage; they double from stage to stage.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: tuple[int, int, int, int],
        feat_dim: int = 80,
        embed_dim: int = 256,
        pooling_func: str = "TSTP",
        two_emb_layer: bool = False,
        m_channels: int = 32,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 9  # ceil(9 / 8) = 2

        self.conv1 = convolution(1, m_channels, 3)
        self.bn1 = nn.BatchNorm2d(m_channels)
        wide = [block.expansion * m_channels * 2**stage for stage in range(4)]
        self.layer1 = self._stage(block, m_channels, m_channels, num_blocks[0], stride=1)
        self.layer2 = self._stage(block, wide[0], 2 * m_channels, num_blocks[1], stride=2)
        self.layer3 = self._stage(block, wide[1], 4 * m_channels, num_blocks[2], stride=2)
        self.layer4 = self._stage(block, wide[2], 8 * m_channels, num_blocks[3], stride=2)

        bands = -(-feat_dim // 8)  # three strides of two, each rounding up
        self.end_with(POOLINGS[pooling_func](wide[3] * bands), two_emb_layer)  # type: ignore[call-arg]

    @staticmethod
    def _stage(
        block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, blocks: int, stride: int
    ) -> nn.Sequential:
        first = block(in_channels, channels, stride)
        return nn.Sequential(first, *(block(block.expansion * channels, channels, 1) for _ in range(blocks - 1)))

    def maps(self, feats: Tensor) -> Tensor:
        x = feats.transpose(1, 2).unsqueeze(1)  # (batch, 1, mels, frames)
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (batch, channels, mels / 8, frames / 8)


register_backbone("ResNet18")(partial(ResNet, BasicBlock, (2, 2, 2, 2)))
register_backbone("ResNet34")(partial(ResNet, BasicBlock, (3, 4, 6, 3)))
register_backbone("ResNet50")(partial(ResNet, Bottleneck, (3, 4, 6, 3)))
register_backbone("ResNet101")(partial(ResNet, Bottleneck, (3, 4, 23, 3)))
register_backbone("ResNet152")(partial(ResNet, Bottleneck, (3, 8, 36, 3)))
register_backbone("ResNet221")(partial(ResNet, Bottleneck, (6, 16, 48, 3)))
register_backbone("ResNet293")(partial(ResNet, Bottleneck, (10, 20, 64, 3)))
