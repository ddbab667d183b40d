"""Res2Net speaker embeddings: residual blocks whose channels are split and convolved one after another.

Paper: Gao et al. 2019 (1904.01169). Layer names and shapes are those of the 3D-Speaker and WeSpeaker model zoos, whose
blocks have two splits, half of ResNet's width and a ReLU that saturates at 20.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from speakerkit.embedding.pooled import PooledBackbone
from speakerkit.embedding.registry import register_backbone
from speakerkit.embedding.resnet import convolution, shortcut
from speakerkit.nn.pooling import POOLINGS

NUM_BLOCKS = (3, 4, 6, 3)  # of ResNet34

BlockBuilder = Callable[[int, int, int], nn.Module]  # of (in_channels, channels, stride)


def clipped_relu(x: Tensor) -> Tensor:
    """min(max(x, 0), 20)."""
    return x.clamp(0.0, 20.0)


class Res2Block(nn.Module):
    """Splits between two 1x1 convolutions: (B, in_channels, F, T) to (B, expansion * channels, F / stride, T / stride).

    Each split is convolved after the result before it was added to it.

    Args:
        baseWidth: w, width of a split when ``channels`` is 64.
        scale: s, splits.
        expansion: output channels for each of ``channels``.
        pass_last: the last split goes through as it is (Gao et al., eq. 1), else it is convolved like the others.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        baseWidth: int = 32,
        scale: int = 2,
        expansion: int = 2,
        pass_last: bool = True,
    ) -> None:
        super().__init__()
        width = channels * baseWidth // 64
        convolved = scale - 1 if pass_last else scale
        self.scale = scale
        self.conv1 = convolution(in_channels, width * scale, 1, stride)
        self.bn1 = nn.BatchNorm2d(width * scale)
        self.convs = nn.ModuleList(convolution(width, width, 3) for _ in range(convolved))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(convolved))
        self.conv3 = convolution(width * scale, expansion * channels, 1)
        self.bn3 = nn.BatchNorm2d(expansion * channels)
        self.shortcut = shortcut(in_channels, expansion * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        splits = clipped_relu(self.bn1(self.conv1(x))).chunk(self.scale, dim=1)
        out = self.bn3(self.conv3(torch.cat(self._convolved(splits), dim=1)))
        return clipped_relu(out + self.shortcut(x))

    def _convolved(self, splits: tuple[Tensor, ...]) -> list[Tensor]:
        outputs: list[Tensor] = []
        for split, conv, bn in zip(splits, self.convs, self.bns, strict=False):
            summed = outputs[-1] + split if outputs else split
            outputs.append(clipped_relu(bn(conv(summed))))
        return outputs + list(splits[len(outputs) :])


class Res2Net(PooledBackbone):
    """Four stages of blocks, the last three halving frequency and time, then pooling and a linear embedding.

    Args:
        feat_dim: F, mel bands.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
        two_emb_layer: a second linear layer after ReLU and normalisation; the embedding is then its output.
        m_channels: channels of the first stage; they double from stage to stage.
        expansion: a block's output has this many times the channels of its stage.
        blocks: what builds the blocks of the first two and of the last two stages.
    """

    def __init__(
        self,
        feat_dim: int = 80,
        embed_dim: int = 256,
        pooling_func: str = "TSTP",
        two_emb_layer: bool = False,
        m_channels: int = 32,
        *,
        expansion: int = 2,
        blocks: tuple[BlockBuilder, BlockBuilder] = (Res2Block, Res2Block),
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 9  # ceil(9 / 8) = 2

        self.conv1 = convolution(1, m_channels, 3)
        self.bn1 = nn.BatchNorm2d(m_channels)
        wide = [expansion * m_channels * 2**stage for stage in range(4)]
        early, late = blocks
        self.layer1 = _stage(early, m_channels, m_channels, expansion, NUM_BLOCKS[0], stride=1)
        self.layer2 = _stage(early, wide[0], 2 * m_channels, expansion, NUM_BLOCKS[1], stride=2)
        self.layer3 = _stage(late, wide[1], 4 * m_channels, expansion, NUM_BLOCKS[2], stride=2)
        self.layer4 = _stage(late, wide[2], 8 * m_channels, expansion, NUM_BLOCKS[3], stride=2)

        bands = -(-feat_dim // 8)  # three strides of two, each rounding up
        self.end_with(POOLINGS[pooling_func](wide[3] * bands), two_emb_layer)  # type: ignore[call-arg]

    def maps(self, feats: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(self._stem(feats)))))

    def _stem(self, feats: Tensor) -> Tensor:
        x = feats.transpose(1, 2).unsqueeze(1)  # (batch, 1, mels, frames)
        return torch.relu(self.bn1(self.conv1(x)))


def _stage(
    block: BlockBuilder, in_channels: int, channels: int, expansion: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(expansion * channels, channels, 1) for _ in range(blocks - 1)))


@register_backbone("Res2Net34_Base")
def res2net34_base(
    feat_dim: int = 80,
    embed_dim: int = 256,
    pooling_func: str = "TSTP",
    two_emb_layer: bool = False,
    m_channels: int = 32,
) -> Res2Net:
    """Channels 32 to 256, w = 32, s = 2."""
    return Res2Net(feat_dim, embed_dim, pooling_func, two_emb_layer, m_channels)


register_backbone("Res2Net34_Large")(partial(res2net34_base, m_channels=64))
