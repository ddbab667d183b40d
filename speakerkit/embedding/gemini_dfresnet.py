"""Gemini DF-ResNet: deep and narrow inverted bottlenecks that keep half the frame rate (Liu et al. 2023, 2312.03620).

Depth-first residual networks are those of Liu et al. 2022 (Interspeech, "DF-ResNet"); their strides are the "golden
Gemini" T14c: frequency is halved four times, time once. Layer names and shapes are those of the WeSpeaker model zoo.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from speakerkit.embedding.pooled import PooledBackbone
from speakerkit.embedding.registry import register_backbone
from speakerkit.embedding.resnet import convolution
from speakerkit.nn.pooling import POOLINGS

STRIDES = ((2, 1), (2, 2), (2, 1), (2, 1))  # (frequency, time) of the four downsampling layers
EXPANSION = 4


class InvertedBottleneck(nn.Module):
    """A depth-wise 3x3 convolution of four times the channels, between two 1x1, and a shortcut; shapes stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.conv1 = convolution(channels, wide, 1)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = convolution(wide, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(x + self.bn3(self.conv3(out)))


class GeminiDFResNet(PooledBackbone):
    """A stem, then four times a strided convolution and a stage of blocks; pooling and a linear embedding.

    Args:
        depths: blocks in each of the four stages.
        feat_dim: F, mel bands.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
        two_emb_layer: a second linear layer after ReLU and normalisation; the embedding is then its output.
        m_channels: channels of the stem and of the first stage; they double from stage to stage.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        feat_dim: int = 80,
        embed_dim: int = 256,
        pooling_func: str = "TSTP",
        two_emb_layer: bool = False,
        m_channels: int = 32,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 3  # ceil(3 / 2) = 2

        channels = [m_channels] + [m_channels * 2**stage for stage in range(4)]
        stem = nn.Sequential(convolution(1, m_channels, 3), nn.BatchNorm2d(m_channels), nn.ReLU())
        self.downsample_layers = nn.ModuleList([stem])
        self.stages = nn.ModuleList()
        for stage, (depth, stride) in enumerate(zip(depths, STRIDES, strict=True)):
            width_in, width = channels[stage : stage + 2]
            down = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
            self.downsample_layers.append(nn.Sequential(down, nn.BatchNorm2d(width)))
            self.stages.append(nn.Sequential(*(InvertedBottleneck(width) for _ in range(depth))))

        bands = -(-feat_dim // 16)  # four strides of two, each rounding up
        self.end_with(POOLINGS[pooling_func](channels[-1] * bands), two_emb_layer)  # type: ignore[call-arg]

    def maps(self, feats: Tensor) -> Tensor:
        x = self.downsample_layers[0](feats.transpose(1, 2).unsqueeze(1))  # (batch, channels, mels, frames)
        for downsample, stage in zip(self.downsample_layers[1:], self.stages, strict=True):
            x = stage(downsample(x))
        return x  # (batch, 8 m_channels, mels / 16, frames / 2)


register_backbone("Gemini_DF_ResNet60")(partial(GeminiDFResNet, (3, 3, 9, 3)))
register_backbone("Gemini_DF_ResNet114")(partial(GeminiDFResNet, (3, 3, 27, 3)))
register_backbone("Gemini_DF_ResNet183")(partial(GeminiDFResNet, (3, 8, 45, 3)))
register_backbone("Gemini_DF_ResNet237")(partial(GeminiDFResNet, (3, 8, 63, 3)))
