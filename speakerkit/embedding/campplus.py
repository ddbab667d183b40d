"""CAM++: a 2-D convolutional head, then densely connected TDNN layers with context-aware masks (Wang et al. 2023).

Paper: 2303.00332. Layer names and shapes are those of the 3D-Speaker and WeSpeaker model zoos.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.errors import ConfigError
from speakerkit.nn.pooling import POOLINGS
from speakerkit.registry import suggest

SEGMENT = 100  # frames of one segment in the context of a mask
HEAD_CHANNELS = 32
BLOCKS = ((12, 1), (24, 2), (16, 2))  # (layers, dilation) of the three D-TDNN blocks


def nonlinear(config_str: str, channels: int) -> nn.Sequential:
    """Layers named after their kind: "batchnorm-relu" is BatchNorm1d, then ReLU; "batchnorm_" has no affine part."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "batchnorm": lambda: nn.BatchNorm1d(channels),
        "batchnorm_": lambda: nn.BatchNorm1d(channels, affine=False),
        "relu": nn.ReLU,
        "prelu": lambda: nn.PReLU(channels),
    }
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for kind in config_str.split("-"):
        if kind not in kinds:
            raise ConfigError("config_str", f"has the unknown layer {kind!r}", suggest(kind, list(kinds)))
        layers[kind.rstrip("_")] = kinds[kind]()
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the stride is one of frequency only."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            projection = nn.Conv2d(channels, channels, 1, (stride, 1), bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class FrontConvolution(nn.Module):
    """The front-end convolution module (FCM, section 2.3): (B, F, T) to (B, 32 ceil(F / 8), T)."""

    def __init__(self, feat_dim: int) -> None:
        super().__init__()
        channels = HEAD_CHANNELS
        self.out_channels = channels * -(-feat_dim // 8)
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.layer2 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, (2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x.unsqueeze(1))))  # (batch, 32, mels, frames)
        x = self.layer2(self.layer1(x))
        x = torch.relu(self.bn2(self.conv2(x)))  # (batch, 32, mels / 8, frames)
        return x.flatten(1, 2)


class TDNN(nn.Module):
    """The first 1-D layer: five frames of context, half the frame rate."""

    def __init__(self, in_channels: int, out_channels: int, config_str: str) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, 5, stride=2, padding=2, bias=False)
        self.nonlinear = nonlinear(config_str, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x))


class ContextAwareMask(nn.Module):
    """A convolution, gated by what its input is on average in the utterance and in the segment (eq. 1-5)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.linear_local = nn.Conv1d(in_channels, out_channels, kernel, dilation=dilation, padding=padding, bias=False)
        self.linear1 = nn.Conv1d(in_channels, in_channels // 2, kernel_size=1)
        self.linear2 = nn.Conv1d(in_channels // 2, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        context = x.mean(-1, keepdim=True) + segment_means(x)  # (batch, in, segments)
        # The context is constant within a segment, and so is the mask: computed once per segment, then spread.
        mask = self.linear2(torch.relu(self.linear1(context))).sigmoid()
        return self.linear_local(x) * spread_segments(mask, x.shape[-1])


def segment_means(x: Tensor) -> Tensor:
    """Means of segments of 100 frames, (B, C, T) to (B, C, ceil(T / 100)); the last is over its own length."""
    frames = x.shape[-1]
    segments = (frames + SEGMENT - 1) // SEGMENT
    padded = F.pad(x, (0, segments * SEGMENT - frames))
    lengths = (frames - SEGMENT * torch.arange(segments, device=x.device)).clamp(max=SEGMENT)
    return F.avg_pool1d(padded, SEGMENT) * (SEGMENT / lengths)


def spread_segments(x: Tensor, frames: int) -> Tensor:
    """One column per segment back to one per frame, (B, C, S) to (B, C, frames)."""
    return x.unsqueeze(-1).expand(-1, -1, -1, SEGMENT).flatten(-2)[..., :frames]


class DenseTDNNLayer(nn.Module):
    """One layer of a D-TDNN block: a bottleneck, then the masked convolution; its output is appended to its input."""

    def __init__(
        self, in_channels: int, growth_rate: int, bottleneck: int, kernel: int, dilation: int, config_str: str
    ) -> None:
        super().__init__()
        self.nonlinear1 = nonlinear(config_str, in_channels)
        self.linear1 = nn.Conv1d(in_channels, bottleneck, 1, bias=False)
        self.nonlinear2 = nonlinear(config_str, bottleneck)
        self.cam_layer = ContextAwareMask(bottleneck, growth_rate, kernel, dilation)

    def forward(self, x: Tensor) -> Tensor:
        new = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))
        return torch.cat((x, new), dim=1)


class Transit(nn.Module):
    """After a block: half the channels."""

    def __init__(self, in_channels: int, out_channels: int, config_str: str) -> None:
        super().__init__()
        self.nonlinear = nonlinear(config_str, in_channels)
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.nonlinear(x))


class Dense(nn.Module):
    """The embedding: a 1x1 convolution of the pooled vector, normalised without affine part."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.nonlinear = nonlinear("batchnorm_", out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x.unsqueeze(-1)).squeeze(-1))


@register_backbone("CAMPPlus")
class CAMPPlus(Backbone):
    """Figure 1 of the paper.

    Args:
        feat_dim: F, mel bands.
        embed_dim: D.
        pooling_func: a name in ``POOLINGS``.
        growth_rate: channels that one dense layer adds.
        bn_size: a layer's bottleneck is this many times the growth rate.
        init_channels: channels before the first block.
        config_str: the layers of every nonlinearity but the last.
    """

    def __init__(
        self,
        feat_dim: int = 80,
        embed_dim: int = 512,
        pooling_func: str = "TSTP",
        growth_rate: int = 32,
        bn_size: int = 4,
        init_channels: int = 128,
        config_str: str = "batchnorm-relu",
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 3  # ceil(3 / 2) = 2

        self.head = FrontConvolution(feat_dim)
        self.xvector = nn.Sequential()
        self.xvector.add_module("tdnn", TDNN(self.head.out_channels, init_channels, config_str))
        channels = init_channels
        for number, (layers, dilation) in enumerate(BLOCKS, start=1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                dense = DenseTDNNLayer(channels, growth_rate, bn_size * growth_rate, 3, dilation, config_str)
                block.add_module(f"tdnnd{layer}", dense)
                channels += growth_rate
            self.xvector.add_module(f"block{number}", block)
            self.xvector.add_module(f"transit{number}", Transit(channels, channels // 2, config_str))
            channels //= 2
        self.xvector.add_module("out_nonlinear", nonlinear(config_str, channels))
        self.pool = POOLINGS[pooling_func](channels)  # type: ignore[call-arg]
        self.xvector.add_module("dense", Dense(self.pool.out_dim, embed_dim))
        self.apply(_kaiming)

    def forward(self, feats: Tensor) -> Tensor:
        return self.xvector[-1](self.pool(self._frames(feats)))  # (batch, embed_dim)

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, ceil(T / 2), 512 with the default widths)."""
        return self._frames(feats).transpose(1, 2)

    def _frames(self, feats: Tensor) -> Tensor:
        x = self.head(feats.transpose(1, 2))  # (batch, rows, frames)
        return self.xvector[:-1](x)  # all but the dense layer


def _kaiming(module: nn.Module) -> None:
    """The published recipe's start for all 1-D convolutions; torch's own lets the signal fade over 52 layers."""
    if isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
