"""ERes2Net: Res2Net with features fused within a block and across stages (Chen et al. 2023).

Paper: 2305.12838. Layer names and shapes are those of the WeSpeaker model zoo, where the first convolution of a fusing
block has a name of its own (3D-Speaker: ``convs.0``).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from speakerkit.embedding.registry import register_backbone
from speakerkit.embedding.res2net import Res2Block, Res2Net, clipped_relu
from speakerkit.embedding.resnet import convolution

REDUCTION = 4  # r, by which the attention of a fusion narrows its channels


class AttentionalFusion(nn.Module):
    """Attentional feature fusion (AFF): two maps (B, C, F, T) weighted against each other become one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // REDUCTION
        self.local_att = nn.Sequential(
            nn.Conv2d(2 * channels, narrow, kernel_size=1),
            nn.BatchNorm2d(narrow),
            nn.SiLU(),
            nn.Conv2d(narrow, channels, kernel_size=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        balance = self.local_att(torch.cat((x, y), dim=1)).tanh()  # -1: all y, 1: all x
        return x * (1.0 + balance) + y * (1.0 - balance)


class FusionBlock(Res2Block):
    """A block whose splits meet by attentional fusion, not by a sum (local feature fusion, LFF)."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, baseWidth: int = 32, scale: int = 2, expansion: int = 2
    ) -> None:
        super().__init__(in_channels, channels, stride, baseWidth, scale, expansion)
        width = channels * baseWidth // 64
        self.conv2_1 = convolution(width, width, 3)
        self.bn2_1 = nn.BatchNorm2d(width)
        self.fuse_models = nn.ModuleList(AttentionalFusion(width) for _ in range(scale - 1))

    def _convolved(self, splits: tuple[Tensor, ...]) -> list[Tensor]:
        first, *others = splits
        outputs = [clipped_relu(self.bn2_1(self.conv2_1(first)))]
        for split, fuse, conv, bn in zip(others, self.fuse_models, self.convs, self.bns, strict=True):
            outputs.append(clipped_relu(bn(conv(fuse(outputs[-1], split)))))
        return outputs


class ERes2Net(Res2Net):
    """The four stages' outputs are fused bottom-up before the pooling (global fusion, GFF).

    Args:
        feat_dim: F, mel bands.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
        two_emb_layer: a second linear layer after ReLU and normalisation; the embedding is then its output.
        m_channels: channels of the first stage; they double from stage to stage.
        baseWidth, scale, expansion: of the blocks, see :class:`speakerkit.embedding.res2net.Res2Block`.
    """

    def __init__(
        self,
        feat_dim: int = 80,
        embed_dim: int = 512,
        pooling_func: str = "TSTP",
        two_emb_layer: bool = False,
        m_channels: int = 32,
        *,
        baseWidth: int = 32,
        scale: int = 2,
        expansion: int = 2,
    ) -> None:
        widths = {"baseWidth": baseWidth, "scale": scale, "expansion": expansion}
        blocks = (partial(Res2Block, **widths, pass_last=False), partial(FusionBlock, **widths))
        super().__init__(
            feat_dim, embed_dim, pooling_func, two_emb_layer, m_channels, expansion=expansion, blocks=blocks
        )
        wide = [expansion * m_channels * 2**stage for stage in range(4)]
        self.layer1_downsample = convolution(wide[0], wide[1], 3, stride=2)
        self.layer2_downsample = convolution(wide[1], wide[2], 3, stride=2)
        self.layer3_downsample = convolution(wide[2], wide[3], 3, stride=2)
        self.fuse_mode12 = AttentionalFusion(wide[1])
        self.fuse_mode123 = AttentionalFusion(wide[2])
        self.fuse_mode1234 = AttentionalFusion(wide[3])

    def maps(self, feats: Tensor) -> Tensor:
        out1 = self.layer1(self._stem(feats))
        out2 = self.layer2(out1)
        out3 = self.layer3(out2)
        out4 = self.layer4(out3)
        fused = self.fuse_mode12(out2, self.layer1_downsample(out1))
        fused = self.fuse_mode123(out3, self.layer2_downsample(fused))
        return self.fuse_mode1234(out4, self.layer3_downsample(fused))


@register_backbone("ERes2Net34_Base")
def eres2net34_base(
    feat_dim: int = 80,
    embed_dim: int = 512,
    pooling_func: str = "TSTP",
    two_emb_layer: bool = False,
    m_channels: int = 32,
) -> ERes2Net:
    """Channels 32 to 256, w = 32, s = 2."""
    return ERes2Net(feat_dim, embed_dim, pooling_func, two_emb_layer, m_channels)


register_backbone("ERes2Net34_Large")(partial(eres2net34_base, m_channels=64))
register_backbone("ERes2Net34_aug")(partial(ERes2Net, m_channels=64, baseWidth=24, scale=3, expansion=4))
