"""RepVGG: parallel convolutions in training, one plain convolution a layer at inference (Ding et al. 2021, 2101.03697).

For speakers, and with the dilated branch of RSBB: Ma et al. 2021, "Rep Works in Speaker Verification" (2110.09720).
Layer names and shapes are those of the WeSpeaker model zoo, which also brought the TINY variants.
"""

from __future__ import annotations

import copy
from functools import partial, reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.nn.pooling import POOLINGS

GROUPED_LAYERS = range(2, 27, 2)  # of the B models all that are even; the deeper D2SE was published with the same list


class ConvNorm(nn.Sequential):
    """A padded square convolution without bias, then batch normalisation."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, groups: int, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation, groups, bias=False)
        self.add_module("conv", conv)
        self.add_module("bn", nn.BatchNorm2d(channels))


class SqueezeExcitation(nn.Module):
    """Channels scaled by what they are on average in the utterance, through a quarter of their number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(channels, channels // 4)
        self.fc_2 = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc_2(torch.relu(self.fc_1(x.mean((2, 3))))).sigmoid()
        return x * scale[..., None, None]


class RepVGGBlock(nn.Module):
    """ReLU of the sum of a 3x3 convolution, a 1x1 convolution and, where shapes agree, the input, each normalised.

    (B, in_channels, F, T) to (B, channels, F / stride, T / stride). With ``deploy``, one 3x3 convolution is them all.
    """

    kernel = 3  # of the convolution that all branches are together

    def __init__(
        self, in_channels: int, channels: int, stride: int, groups: int = 1, deploy: bool = False, use_se: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        if deploy:
            self.rbr_reparam = self._plain(in_channels, channels)
        else:
            self.rbr_dense = ConvNorm(in_channels, channels, 3, stride, groups)
            self._add_second(in_channels, channels)
            if stride == 1 and in_channels == channels:
                self.rbr_identity = nn.BatchNorm2d(channels)
        self.se = SqueezeExcitation(channels) if use_se else nn.Identity()

    def _add_second(self, in_channels: int, channels: int) -> None:
        self.rbr_1x1 = ConvNorm(in_channels, channels, 1, self.stride, self.groups)

    def _plain(self, in_channels: int, channels: int) -> nn.Conv2d:
        return nn.Conv2d(in_channels, channels, self.kernel, self.stride, self.kernel // 2, groups=self.groups)

    def _branches(self) -> dict[str, nn.Module]:
        return {name: branch for name, branch in self.named_children() if name.startswith("rbr_")}

    def forward(self, x: Tensor) -> Tensor:
        return self.se(torch.relu(reduce(torch.add, (branch(x) for branch in self._branches().values()))))

    @torch.no_grad()
    def fold(self) -> None:
        """Put one convolution in the place of the branches, with the normalisations' running statistics (figure 4)."""
        branches = self._branches()
        if "rbr_reparam" in branches:
            return
        folded = [as_convolution(branch, self.groups, self.kernel) for branch in branches.values()]
        dense = self.rbr_dense.conv
        plain = self._plain(dense.in_channels, dense.out_channels).to(dense.weight)
        plain.weight.copy_(torch.stack([weight for weight, _ in folded]).sum(0))
        plain.bias.copy_(torch.stack([bias for _, bias in folded]).sum(0))  # type: ignore[union-attr]
        for name in branches:
            delattr(self, name)
        self.rbr_reparam = plain


class RSBBBlock(RepVGGBlock):
    """The block of RepSPKNet (2110.09720): a 3x3 convolution of dilation 2 in place of the 1x1; 5x5 in all."""

    kernel = 5

    def _add_second(self, in_channels: int, channels: int) -> None:
        self.rbr_dense_dilation = ConvNorm(in_channels, channels, 3, self.stride, self.groups, dilation=2)


def as_convolution(branch: nn.Module, groups: int, kernel: int) -> tuple[Tensor, Tensor]:
    """Weight (C, C_in / groups, kernel, kernel) and bias (C,) equal to a branch in eval mode, in float64.

    Args:
        branch: a :class:`ConvNorm`, or a normalisation of the input itself.
        groups: of the convolution.
        kernel: side of the weight; smaller ones get zeros around, dilated ones also between.
    """
    if isinstance(branch, ConvNorm):
        norm, weight, dilation = branch.bn, branch.conv.weight.double(), branch.conv.dilation[0]
    else:
        norm, dilation = cast(nn.BatchNorm2d, branch), 1
        same = torch.eye(norm.num_features // groups, dtype=torch.float64, device=norm.weight.device)
        weight = same.repeat(groups, 1)[..., None, None]
    state = {key: value.double() for key, value in norm.state_dict().items()}
    scale = state["weight"] / (state["running_var"] + norm.eps).sqrt()
    side = dilation * (weight.shape[-1] - 1) + 1
    spread = weight.new_zeros(*weight.shape[:2], side, side)
    spread[..., ::dilation, ::dilation] = weight * scale[:, None, None, None]
    return F.pad(spread, [(kernel - side) // 2] * 4), state["bias"] - state["running_mean"] * scale


class RepVGG(Backbone):
    """One block, then four stages of them, the last three halving frequency and time; pooling and a linear embedding.

    Args:
        block: :class:`RepVGGBlock` or :class:`RSBBBlock`.
        num_blocks: blocks in each of the four stages.
        multipliers: a and b of the paper: channels of each stage in units of 1, 2, 4, 8 times ``base_width``.
        groups: of every second convolution, up to the 26th.
        feat_dim: F, mel bands.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
        deploy: build the inference form, for weights that are in that form.
        use_se: squeeze and excitation after every block.
        base_width: channels that the multipliers multiply.
    """

    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(
        self,
        block: type[RepVGGBlock],
        num_blocks: tuple[int, int, int, int],
        multipliers: tuple[float, float, float, float],
        groups: int = 1,
        feat_dim: int = 80,
        embed_dim: int = 256,
        pooling_func: str = "TSTP",
        deploy: bool = False,
        use_se: bool = False,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 9  # ceil(9 / 8) = 2

        widths = [int(base_width * 2**stage * multiplier) for stage, multiplier in enumerate(multipliers)]
        channels, layer = min(64, widths[0]), 0
        self.stage0 = block(1, channels, 1, 1, deploy, use_se)
        for stage, (width, blocks) in enumerate(zip(widths, num_blocks, strict=True), start=1):
            layers = []
            for stride in [1 if stage == 1 else 2] + [1] * (blocks - 1):
                layer += 1
                layer_groups = groups if layer in GROUPED_LAYERS else 1
                layers.append(block(channels, width, stride, layer_groups, deploy, use_se))
                channels = width
            self.add_module(f"stage{stage}", nn.Sequential(*layers))

        bands = -(-feat_dim // 8)  # three strides of two, each rounding up
        self.pool = POOLINGS[pooling_func](channels * bands)  # type: ignore[call-arg]
        self.seg = nn.Linear(self.pool.out_dim, embed_dim)
        self.apply(_kaiming)

    def forward(self, feats: Tensor) -> Tensor:
        return self.seg(self.pool(self._maps(feats)))  # (batch, embed_dim)

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, ceil(T / 8), channels * bands), channel-major."""
        return self._maps(feats).flatten(1, 2).transpose(1, 2)

    def deployed(self) -> RepVGG:
        """A copy with every block folded, in float64, to its one convolution; its state dictionary fits ``deploy``."""
        plain = copy.deepcopy(self)
        for module in plain.modules():
            if isinstance(module, RepVGGBlock):
                module.fold()
        return plain

    def _maps(self, feats: Tensor) -> Tensor:
        x = self.stage0(feats.transpose(1, 2).unsqueeze(1))  # (batch, channels, mels, frames)
        x = self.stage2(self.stage1(x))
        return self.stage4(self.stage3(x))  # (batch, channels, mels / 8, frames / 8)


def _kaiming(module: nn.Module) -> None:
    """The published recipe's start for convolutions: variance kept in the backward pass."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


TINY, A, B, D = (3, 4, 23, 3), (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)  # blocks in each stage (table 3)
A0, A1, A2 = (0.75, 0.75, 0.75, 2.5), (1.0, 1.0, 1.0, 2.5), (1.5, 1.5, 1.5, 2.75)
B0, B1, B2, B3 = A1, (2.0, 2.0, 2.0, 4.0), (2.5, 2.5, 2.5, 5.0), (3.0, 3.0, 3.0, 5.0)

register_backbone("REPVGG_TINY_A0")(partial(RepVGG, RepVGGBlock, TINY, (0.5, 0.5, 0.5, 0.5), 1))
register_backbone("REPVGG_TINY_RSBB_A0")(partial(RepVGG, RSBBBlock, TINY, (0.5, 0.5, 0.5, 0.5), 1))
register_backbone("REPVGG_A0")(partial(RepVGG, RepVGGBlock, A, A0, 1))
register_backbone("REPVGG_RSBB_A0")(partial(RepVGG, RSBBBlock, A, A0, 1))
register_backbone("REPVGG_A1")(partial(RepVGG, RepVGGBlock, A, A1, 1))
register_backbone("REPVGG_A2")(partial(RepVGG, RepVGGBlock, A, A2, 1))
register_backbone("REPVGG_RSBB_A2")(partial(RepVGG, RSBBBlock, A, A2, 1))
register_backbone("REPVGG_B0")(partial(RepVGG, RepVGGBlock, B, B0, 1))
register_backbone("REPVGG_RSBB_B0")(partial(RepVGG, RSBBBlock, B, B0, 1))
register_backbone("REPVGG_B1")(partial(RepVGG, RepVGGBlock, B, B1, 1))
register_backbone("REPVGG_B1g2")(partial(RepVGG, RepVGGBlock, B, B1, 2))
register_backbone("REPVGG_B1g4")(partial(RepVGG, RepVGGBlock, B, B1, 4))
register_backbone("REPVGG_B2")(partial(RepVGG, RepVGGBlock, B, B2, 1))
register_backbone("REPVGG_B2g2")(partial(RepVGG, RepVGGBlock, B, B2, 2))
register_backbone("REPVGG_B2g4")(partial(RepVGG, RepVGGBlock, B, B2, 4))
register_backbone("REPVGG_B3")(partial(RepVGG, RepVGGBlock, B, B3, 1))
register_backbone("REPVGG_B3g2")(partial(RepVGG, RepVGGBlock, B, B3, 2))
register_backbone("REPVGG_B3g4")(partial(RepVGG, RepVGGBlock, B, B3, 4))
register_backbone("REPVGG_D2SE")(partial(RepVGG, RepVGGBlock, D, B2, 4, use_se=True))
