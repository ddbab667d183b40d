"""ReDimNet: 2-D convolutions and 1-D time context by turns, on one map that is only reshaped (Yakovlev et al. 2024).

Paper: 2407.18223. A stage trades bands for channels, so that all maps have the same C * F rows per frame, in 2-D as in
1-D, and can be added up; time is never strided. Layer names and shapes are those of the WeSpeaker model zoo.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speakerkit.embedding.pooled import PooledBackbone
from speakerkit.embedding.registry import register_backbone
from speakerkit.errors import ConfigError
from speakerkit.nn.pooling import POOLINGS, Pooling
from speakerkit.nn.time_context import HEADS, NORM_EPS, ChannelNorm, ConvNeXtBlock, TimeContext
from speakerkit.registry import suggest


class StageSetup(NamedTuple):
    """One row of a size's table.

    Attributes:
        stride: bands become this many times fewer, channels more.
        blocks: 2-D blocks.
        expansion: the 2-D blocks have this many times the channels.
        reduction: the 1-D block has this many times fewer than C * F rows; ``None`` for no 1-D block.
    """

    stride: int
    blocks: int
    expansion: int = 1
    reduction: int | None = None


def to_1d(x: Tensor) -> Tensor:
    """A map as a sequence, (B, C, F, T) to (B, F * C, T): row ``f * C + c`` is channel c of band f."""
    return x.transpose(1, 2).flatten(1, 2)


def to_2d(x: Tensor, channels: int) -> Tensor:
    """The way back, (B, F * C, T) to (B, C, F, T)."""
    return x.unflatten(1, (-1, channels)).transpose(1, 2)


class To1d(nn.Module):
    """:func:`to_1d` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return to_1d(x)


class FrequencyGate(nn.Module):
    """Frequency-wise squeeze-excitation (Thienpondt et al. 2021): a gate per band, from its mean over the rest."""

    def __init__(self, bands: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(bands, hidden)
        self.exitation = nn.Linear(hidden, bands)  # spelled so in published files

    def forward(self, x: Tensor) -> Tensor:
        gate = self.exitation(torch.relu(self.squeeze(x.mean((1, 3))))).sigmoid()  # (batch, bands)
        return x * gate[:, None, :, None]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each grouped and then 1x1, with a shortcut; the first ReLU precedes its normalisation."""

    def __init__(self, channels: int, groups: int, gate: FrequencyGate | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.conv1pw = nn.Conv2d(channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.conv2pw = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = gate or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(torch.relu(self.conv1pw(self.conv1(x))))
        out = self.se(self.bn2(self.conv2pw(self.conv2(out))))
        return torch.relu(out + x)


def _gated(channels: int, bands: int, groups: int) -> ResidualBlock:
    return ResidualBlock(channels, groups, FrequencyGate(bands, hidden=min(64, max(channels, 32))))


BLOCKS: dict[str, Callable[[int, int, int], nn.Module]] = {  # of (channels, bands, groups)
    "convnext_like": lambda channels, bands, groups: ConvNeXtBlock(channels, 3, groups, dim=2),
    "basic_resnet": lambda channels, bands, groups: ResidualBlock(channels, groups),
    "basic_resnet_fwse": _gated,
}


class Stage(nn.Sequential):
    """To 2-D, bands strided into channels, 2-D blocks, to 1-D, and the 1-D block: (B, C * F, T) to the same.

    Args:
        setup: what the stage consists of.
        channels, bands: C and F of the map that it gets.
        block: a key of ``BLOCKS``.
        group_divisor: channels of one group in the 2-D convolutions.
    """

    def __init__(self, setup: StageSetup, channels: int, bands: int, block: str, group_divisor: int) -> None:
        rows, narrow, left = channels * bands, setup.stride * channels, bands // setup.stride
        wide = setup.expansion * narrow
        layers: list[nn.Module] = [nn.Conv2d(channels, wide, (setup.stride, 1), (setup.stride, 1))]
        for _ in range(setup.blocks):
            conv_block = BLOCKS[block](wide, left, _groups(wide, group_divisor))
            layers.append(nn.Sequential(OrderedDict(conv_block=conv_block)))
        if setup.expansion != 1:
            layers.append(_squeeze(wide, narrow, _groups(narrow, group_divisor)))
        layers.append(To1d())
        if setup.reduction is not None:
            layers.append(TimeContext(rows, _hidden(rows, setup.reduction)))
        super().__init__(*layers)
        self.in_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(to_2d(x, self.in_channels))


def _squeeze(wide: int, narrow: int, groups: int) -> nn.Sequential:
    """From the expanded channels back to as many as the reshape to 1-D needs."""
    return nn.Sequential(
        nn.Conv2d(wide, narrow, 3, padding=1, groups=groups),
        nn.BatchNorm2d(narrow, NORM_EPS),
        nn.GELU(),
        nn.Conv2d(narrow, narrow, 1),
    )


def _groups(channels: int, group_divisor: int) -> int:
    groups = channels // group_divisor  # rounded down: 12 channels in groups of 8 are one group of 12
    if groups == 0 or channels % groups:
        fault = f"is {group_divisor}, which does not group the {channels} channels of a stage"
        raise ConfigError("group_divisor", fault, "choose a divisor of them")
    return groups


def _hidden(rows: int, reduction: int) -> int:
    hidden = rows // reduction
    if hidden == 0 or hidden % HEADS:
        fault = f"and a reduction by {reduction} leave {hidden} of {rows} rows to {HEADS} attention heads"
        raise ConfigError("feat_dim", fault, "use 60 mel bands for B0, 72 for larger sizes, or stages of your own")
    return hidden


class InputWeights(nn.Module):
    """Aggregation of all maps so far: a mean of each row with learned weights, for every stage and for the pooling."""

    def __init__(self, rows: int, stages: int) -> None:
        super().__init__()
        self.register_buffer("0", torch.ones(1, 1, 1, 1))  # published files weight the first stage's only map, by one
        for before in range(1, stages + 1):
            self.register_parameter(str(before), nn.Parameter(torch.zeros(1, before + 1, rows, 1)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if len(maps) == 1:
            return maps[0]
        weights = self.get_parameter(str(len(maps) - 1)).softmax(dim=1).unbind(1)  # one (1, rows, 1) for every map
        return reduce(torch.add, (weight * each for weight, each in zip(weights, maps, strict=True)))


class ReDimNetTrunk(nn.Module):
    """Stem and stages, each of which sees the maps of all before it: (B, 1, F, T) to (B, C * F, T)."""

    def __init__(
        self, feat_dim: int, channels: int, stages: Sequence[StageSetup], block: str, group_divisor: int
    ) -> None:
        super().__init__()
        self.inputs_weights = InputWeights(channels * feat_dim, len(stages))
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), ChannelNorm(channels))
        bands = feat_dim
        for number, setup in enumerate(stages):
            self.add_module(f"stage{number}", Stage(setup, channels, bands, block, group_divisor))
            channels, bands = channels * setup.stride, bands // setup.stride
        self.depth = len(stages)

    def forward(self, x: Tensor) -> Tensor:
        maps = [to_1d(self.stem(x))]
        for number in range(self.depth):
            stage = self.get_submodule(f"stage{number}")
            maps.append(stage(self.inputs_weights(maps)))
        return self.inputs_weights(maps)


class Size(NamedTuple):
    """One size of the paper, C and its stages, as the WeSpeaker model zoo has it."""

    channels: int
    block: str
    group_divisor: int
    stages: tuple[tuple[int, int, int, int | None], ...]
    feat_dim: int = 72


SIZES = {
    "B0": Size(10, "basic_resnet", 1, ((1, 2, 1, 30), (2, 3, 2, 30), (1, 3, 3, 30), (2, 4, 2, 10), (1, 3, 1, 10)), 60),
    "B1": Size(12, "convnext_like", 8, ((1, 2, 1, None), (2, 3, 1, None), (3, 4, 1, 12), (2, 5, 1, 12), (2, 3, 1, 8))),
    "B2": Size(
        16, "convnext_like", 4, ((1, 2, 1, 12), (2, 2, 1, 12), (1, 3, 1, 12), (2, 4, 1, 8), (1, 4, 1, 8), (2, 4, 1, 4))
    ),
    "B3": Size(
        16,
        "basic_resnet_fwse",
        1,
        ((1, 6, 4, 32), (2, 6, 2, 32), (1, 8, 2, 32), (2, 10, 2, 16), (1, 10, 1, 16), (2, 8, 1, 16)),
    ),
    "B4": Size(
        32,
        "basic_resnet_fwse",
        1,
        ((1, 4, 2, 48), (2, 4, 2, 48), (1, 6, 2, 48), (2, 6, 1, 32), (1, 8, 1, 24), (2, 4, 1, 16)),
    ),
    "B6": Size(
        32,
        "basic_resnet",
        32,
        ((1, 4, 4, 32), (2, 6, 2, 32), (1, 6, 2, 24), (3, 8, 1, 24), (1, 8, 1, 16), (2, 8, 1, 16)),
    ),
}
SIZES["B5"] = SIZES["B4"]._replace(group_divisor=16)
BASE = SIZES["B2"]


@register_backbone("ReDimNet")
class ReDimNet(PooledBackbone):
    """The network of the paper, with attentive pooling and a linear embedding.

    Args:
        channels: C of the stem.
        block: kind of the 2-D blocks, "convnext_like", "basic_resnet", or "basic_resnet_fwse", which has a gate per
            band.
        group_divisor: channels of one group in the 2-D convolutions; 1 for depth-wise ones.
        stages: (stride, blocks, expansion, reduction) of each, see :class:`StageSetup`.
        feat_dim: F, mel bands, a multiple of the product of all strides.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``; ASTP sees the utterance's statistics.
        two_emb_layer: a second linear layer after ReLU and normalisation; the embedding is then its output.

    Raises:
        ConfigError: an argument that does not fit the others; the message says which values would.
    """

    def __init__(
        self,
        channels: int = BASE.channels,
        block: str = BASE.block,
        group_divisor: int = BASE.group_divisor,
        stages: Sequence[Sequence[int | None]] = BASE.stages,
        feat_dim: int = BASE.feat_dim,
        embed_dim: int = 192,
        pooling_func: str = "ASTP",
        two_emb_layer: bool = False,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise ConfigError(f"block {block!r}", "is not known", suggest(block, list(BLOCKS)))
        setups = [StageSetup(*stage) for stage in stages]  # type: ignore[arg-type]
        _require_strides(feat_dim, setups)
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 2

        self.backbone = ReDimNetTrunk(feat_dim, channels, setups, block, group_divisor)
        self.end_with(_pooling(pooling_func, channels * feat_dim), two_emb_layer)

    def maps(self, feats: Tensor) -> Tensor:
        return self.backbone(feats.transpose(1, 2).unsqueeze(1))


def _require_strides(feat_dim: int, setups: Sequence[StageSetup]) -> None:
    product = math.prod(setup.stride for setup in setups)
    if feat_dim % product:
        below = feat_dim - feat_dim % product
        fits = f"{below} or {below + product}" if below else f"{product}"
        fault = f"is {feat_dim}, which the stages' strides ({product} in all) do not divide"
        raise ConfigError("feat_dim", fault, f"use {fits} mel bands")


def _pooling(name: str, rows: int) -> Pooling:
    if name == "ASTP":
        return POOLINGS[name](rows, global_context_att=True)  # type: ignore[call-arg]
    return POOLINGS[name](rows)  # type: ignore[call-arg]


for _name, _size in SIZES.items():
    _sized = partial(ReDimNet, _size.channels, _size.block, _size.group_divisor, _size.stages, feat_dim=_size.feat_dim)
    register_backbone(f"ReDimNet{_name}")(_sized)
