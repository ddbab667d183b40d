"""SpEx+: time-domain speaker extraction with one multi-scale encoder for mixture and enrolment (Ge et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.extraction.filters import Decoder, Encoder
from speakerkit.extraction.registry import Extracted, Extractor, register_extractor
from speakerkit.nn.conditioning import Conditioning, for_each_voice
from speakerkit.nn.tcn import EPS, TemporalStack
from speakerkit.nn.time_context import ChannelNorm

POOL = 3  # frames that each residual block of the speaker encoder makes one


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of (N, C, T) by the statistics of real frames alone, those where ``real`` (N, T) is true."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        if not self.training:
            normalised: Tensor = self.norm(x)
            return normalised
        rows = self.norm(x.transpose(1, 2)[real])  # (real frames, C)
        out = rows.new_zeros(*real.shape, x.shape[1])
        out[real] = rows
        return out.transpose(1, 2)


class ResBlock(nn.Module):
    """Two 1x1 convolutions with batch normalisation beside a residual path, then the largest of each three frames."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_features, features, 1, bias=False)
        self.norm1 = MaskedBatchNorm(features)
        self.prelu1 = nn.PReLU()
        self.conv2 = nn.Conv1d(features, features, 1, bias=False)
        self.norm2 = MaskedBatchNorm(features)
        self.prelu2 = nn.PReLU()
        self.skip = nn.Identity() if in_features == features else nn.Conv1d(in_features, features, 1, bias=False)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(N, in_features, T), of which the frames in ``real`` (N, T) count, to (N, features, T // 3)."""
        y = self.prelu1(self.norm1(self.conv1(x), real))
        y = self.norm2(self.conv2(y), real)
        return F.max_pool1d(self.prelu2(y + self.skip(x)), POOL)


class SpeakerEncoder(nn.Module):
    """Encoded frames to a voice: residual blocks, and the mean over those frames that hold no padding.

    Args:
        in_features: 3N, all scales.
        features: O.
        channels: of each block; SpEx+ has O, P and P.
    """

    def __init__(self, in_features: int, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(ChannelNorm(in_features, EPS), nn.Conv1d(in_features, features, 1))
        sizes = (features, *channels)
        self.blocks = nn.ModuleList(ResBlock(sizes[i], sizes[i + 1]) for i in range(len(channels)))
        self.last = nn.Conv1d(sizes[-1], features, 1)

    def forward(self, encoded: Tensor, frames: Tensor) -> Tensor:
        """(N, 3N, T), of which the first ``frames`` (N,) count, to voices (N, O)."""
        x = self.bottleneck(encoded)
        for block in self.blocks:
            x = block(x, _first(frames, x.shape[-1]))
            frames = frames // POOL  # what has only a third of padding in it has padding in it
        x = self.last(x).masked_fill(~_first(frames, x.shape[-1]).unsqueeze(1), 0)
        return x.sum(-1) / frames.unsqueeze(1)

    def shortest(self, encoder: Encoder) -> int:
        """Samples that make one frame after all blocks."""
        return encoder.kernels[0] + int(POOL ** len(self.blocks) - 1) * encoder.stride

    def hear(self, encoder: Encoder, enrolment: Tensor, lengths: Tensor) -> Tensor:
        """Enrolments (N, S), of which the first ``lengths`` (N,) samples are real, to voices (N, O)."""
        shortest = self.shortest(encoder)
        heard = enrolment.masked_fill(~_first(lengths, enrolment.shape[-1]), 0)
        heard = F.pad(heard, (0, max(0, shortest - enrolment.shape[-1])))
        frames = encoder.whole_frames(lengths.clamp_min(shortest))
        voice: Tensor = self(torch.cat(encoder(heard), dim=1), frames)
        return voice


def _first(frames: Tensor, total: int) -> Tensor:
    return torch.arange(total, device=frames.device) < frames.unsqueeze(1)  # (N, total)


@register_extractor("spex_plus")
class SpExPlus(Extractor):
    """SpEx+ (Ge et al. 2020, 2005.04686): masks on three scales from R stacks of X blocks, each told the voice first.

    ``waveform`` is the estimate of the shortest filters, ``scales`` those of the others. Filters have no bias and
    features are normalised, so that silence gives zeros and the output follows the level of the input; at what ratio,
    only a loss can say that is not scale-invariant.

    Args:
        voice_size: D of voices that are embeddings from elsewhere; 0 for a speaker encoder of its own, which hears
            enrolments through the encoder of the mixture and makes voices of O values.
        filters: N, of each scale.
        kernels: L1, L2, L3, their samples.
        features: O, channels of the residual path.
        hidden: P, channels of the depthwise convolutions.
        kernel: Q, their frames.
        blocks: X, of each stack.
        stacks: R.
        conditioning: how the voice enters each stack, a kind of :class:`Conditioning`.
    """

    def __init__(
        self,
        voice_size: int = 0,
        filters: int = 256,
        kernels: Sequence[int] = (20, 80, 160),
        features: int = 256,
        hidden: int = 512,
        kernel: int = 3,
        blocks: int = 8,
        stacks: int = 4,
        conditioning: str = "concatenate",
    ) -> None:
        super().__init__()
        if stacks < 1:
            raise ConfigError("stacks", f"are {stacks}", "it takes one to hear the voice")
        self.voice_size = voice_size or features
        self.encoder = Encoder(filters, kernels)
        self.min_samples = kernels[0]
        encoded = filters * len(kernels)
        self.bottleneck = nn.Sequential(ChannelNorm(encoded, EPS), nn.Conv1d(encoded, features, 1))
        self.stacks = nn.ModuleList(
            TemporalStack(
                features, hidden, kernel, blocks, conditioning=Conditioning(conditioning, features, self.voice_size)
            )
            for _ in range(stacks)
        )
        self.masks = nn.ModuleList(nn.Conv1d(features, filters, 1) for _ in kernels)
        self.decoder = Decoder(filters, kernels)
        self.speaker_encoder = None if voice_size else SpeakerEncoder(encoded, features, (features, hidden, hidden))
        if self.speaker_encoder is not None:
            self.min_enrolment = self.speaker_encoder.shortest(self.encoder)

    def forward(self, mixture: Tensor, voices: Tensor) -> Extracted:
        """Mixtures (B, S) and voices (B, K, D) to three estimates (B, K, S) of each voice."""
        encoded = self.encoder(mixture)
        x = self.bottleneck(torch.cat(encoded, dim=1))  # (B, O, T)
        x, voice = for_each_voice(x, voices)
        for stack in self.stacks:
            x, _ = stack(x, voice)
        masks = [torch.relu(mask(x)).unflatten(0, voices.shape[:2]) for mask in self.masks]
        waveform, *scales = self.decoder(encoded, masks, mixture.shape[-1])
        return Extracted(waveform, tuple(scales))

    def enrol(self, enrolment: Tensor, lengths: Tensor) -> Tensor:
        if self.speaker_encoder is None:
            return super().enrol(enrolment, lengths)
        return self.speaker_encoder.hear(self.encoder, enrolment, lengths)
