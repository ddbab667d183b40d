"""DPRNN-TasNet: separation by masks on learnt filters, found by a dual-path recurrent network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from speakerkit.errors import ConfigError
from speakerkit.extraction.filters import Decoder, Encoder
from speakerkit.extraction.registry import Extracted, Extractor, blind_sources, register_extractor
from speakerkit.nn.conditioning import Conditioning, for_each_voice
from speakerkit.nn.dual_path import DualPathBlock, RecurrentPath, overlap_added, segmented
from speakerkit.nn.tcn import GlobalNorm


class GatedMasks(nn.Module):
    """What the blocks found, (N, S, K, D), to masks: a map for each source, overlap-add, a gate, and ReLU."""

    def __init__(self, features: int, sources: int, filters: int) -> None:
        super().__init__()
        self.split = nn.Sequential(nn.PReLU(), nn.Linear(features, sources * features))
        self.value = nn.Linear(features, features)
        self.gate = nn.Linear(features, features)
        self.mask = nn.Linear(features, filters, bias=False)

    def forward(self, segments: Tensor, frames: int) -> Tensor:
        """(N, S, K, D) to (N, sources, filters, T), T being ``frames``."""
        return self.gated(self.split(segments), frames)

    def gated(self, segments: Tensor, frames: int) -> Tensor:
        """What each source is given, (N, S, K, sources * D), to (N, sources, filters, T)."""
        x = overlap_added(segments, frames)
        x = x.unflatten(-1, (-1, self.value.in_features))  # (N, T, sources, D)
        x = self.mask(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))
        return torch.relu(x).permute(0, 2, 3, 1)


@register_extractor("dprnn")
class DPRNN(Extractor):
    """DPRNN-TasNet (Luo et al. 2020, 1910.06379): blind, or told a voice at the start of each block.

    A window of 16 samples and segments of 100 frames are its fastest configuration; a window of 2 with segments of 250
    its best, at eight times the cost. Level and silence are those of the input, as in SpEx+.

    Args:
        sources: C of a blind separator, 2 unless given.
        voice_size: D of the voices that it extracts; 0 for a blind separator.
        filters: N.
        window: L, samples of a filter.
        segment: K, frames of a segment.
        features: channels of the residual path.
        hidden: H, cells of each direction of an LSTM.
        blocks: how many, each of one path within the segments and one across them.
        conditioning: how a voice enters each block, a kind of :class:`Conditioning`.

    Raises:
        ConfigError: both ``sources`` and ``voice_size`` are given.
    """

    def __init__(
        self,
        sources: int | None = None,
        voice_size: int = 0,
        filters: int = 64,
        window: int = 16,
        segment: int = 100,
        features: int = 64,
        hidden: int = 128,
        blocks: int = 6,
        conditioning: str = "concatenate",
    ) -> None:
        super().__init__()
        if blocks < 1 or segment < 2 or segment % 2:
            raise ConfigError("blocks and segment", f"are {blocks} and {segment}", "one block or more, an even segment")
        self.sources = blind_sources(sources, voice_size)
        self.voice_size = voice_size
        self.segment = segment
        self.encoder = Encoder(filters, (window,))
        self.min_samples = window
        self.bottleneck = nn.Sequential(GlobalNorm(filters), nn.Conv1d(filters, features, 1, bias=False))
        path = partial(RecurrentPath, hidden=hidden)
        self.blocks = nn.ModuleList(
            DualPathBlock(
                features,
                path,
                path,
                conditioning=Conditioning(conditioning, features, voice_size) if voice_size else None,
            )
            for _ in range(blocks)
        )
        self.masks = GatedMasks(features, max(self.sources, 1), filters)
        self.decoder = Decoder(filters, (window,))

    def forward(self, mixture: Tensor, voices: Tensor | None = None) -> Extracted:
        """Mixtures (B, S), and voices (B, K, D) unless blind, to estimates (B, K, S)."""
        encoded = self.encoder(mixture)
        frames = encoded[0].shape[-1]
        x = segmented(self.bottleneck(encoded[0]).transpose(1, 2), self.segment)  # (B, S, K, D)
        voice = None
        if voices is not None:
            x, voice = for_each_voice(x, voices)
        for block in self.blocks:
            x = block(x, voice)
        masks = self.masks(x, frames)
        if voices is not None:
            masks = masks.view(*voices.shape[:2], *masks.shape[2:])
        return Extracted(*self.decoder(encoded, [masks], mixture.shape[-1]))
