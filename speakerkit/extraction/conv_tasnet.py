"""Conv-TasNet: separation by masks on learnt filters, found by a temporal convolution network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speakerkit.errors import ConfigError
from speakerkit.extraction.filters import Decoder, Encoder
from speakerkit.extraction.registry import Extracted, Extractor, blind_sources, register_extractor
from speakerkit.nn.conditioning import Conditioning, for_each_voice
from speakerkit.nn.tcn import CumulativeNorm, GlobalNorm, TemporalStack


@register_extractor("conv_tasnet")
class ConvTasNet(Extractor):
    """Conv-TasNet (Luo and Mesgarani 2019, 1809.07454), in the configuration of its table II that does best.

    Blind, or told a voice at the start of each stack. The last block has no residual output, which nothing would hear:
    65 664 parameters fewer than published. Level and silence are those of the input, as in SpEx+.

    Args:
        sources: C of a blind separator, 2 unless given.
        voice_size: D of the voices that it extracts; 0 for a blind separator.
        filters: N.
        window: L, samples of a filter.
        features: B, channels of the residual path.
        hidden: H, channels of the depthwise convolutions.
        skip: Sc, channels of the skip path.
        kernel: P, frames of the depthwise convolutions.
        blocks: X, of each stack.
        stacks: R.
        causal: it hears nothing later than the L samples of a frame, and normalises with cLN in place of gLN.
        conditioning: how a voice enters each stack, a kind of :class:`Conditioning`.

    Raises:
        ConfigError: both ``sources`` and ``voice_size`` are given.
    """

    def __init__(
        self,
        sources: int | None = None,
        voice_size: int = 0,
        filters: int = 512,
        window: int = 16,
        features: int = 128,
        hidden: int = 512,
        skip: int = 128,
        kernel: int = 3,
        blocks: int = 8,
        stacks: int = 3,
        causal: bool = False,
        conditioning: str = "concatenate",
    ) -> None:
        super().__init__()
        if stacks < 1 or skip < 1:
            raise ConfigError("stacks and skip", f"are {stacks} and {skip}", "they are 1 or more")
        self.sources = blind_sources(sources, voice_size)
        self.voice_size = voice_size
        self.encoder = Encoder(filters, (window,))
        self.min_samples = window
        norm = CumulativeNorm if causal else GlobalNorm
        self.bottleneck = nn.Sequential(norm(filters), nn.Conv1d(filters, features, 1))
        self.stacks = nn.ModuleList(
            TemporalStack(
                features,
                hidden,
                kernel,
                blocks,
                skip=skip,
                conditioning=Conditioning(conditioning, features, voice_size) if voice_size else None,
                causal=causal,
                last=stack == stacks - 1,
            )
            for stack in range(stacks)
        )
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(skip, max(self.sources, 1) * filters, 1), nn.Sigmoid())
        self.decoder = Decoder(filters, (window,))

    def forward(self, mixture: Tensor, voices: Tensor | None = None) -> Extracted:
        """Mixtures (B, S), and voices (B, K, D) unless blind, to estimates (B, K, S)."""
        encoded = self.encoder(mixture)
        x = self.bottleneck(encoded[0])
        voice = None
        count = self.sources
        if voices is not None:
            x, voice = for_each_voice(x, voices)
            count = voices.shape[1]
        skips = []
        for stack in self.stacks:
            x, skip = stack(x, voice)
            skips.append(skip)
        masks = self.masks(torch.stack(skips).sum(0))
        masks = masks.view(mixture.shape[0], count, -1, masks.shape[-1])  # (B, K, N, T)
        return Extracted(*self.decoder(encoded, [masks], mixture.shape[-1]))
