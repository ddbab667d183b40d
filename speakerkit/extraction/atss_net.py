"""Atss-Net (Li et al. 2020): dilated convolutions over magnitudes and voice, attention along time, a magnitude mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.extraction.magnitude import MagnitudeExtractor
from speakerkit.extraction.registry import blind_sources, register_extractor
from speakerkit.extraction.voicefilter import convolution

BINS_AT_ONCE = 32  # whose attention is held at one time


class TemporalAttention(nn.Module):
    """Every bin's frames attend to each other, in several heads (eq. 7-8): (N, C, T, F) to the same.

    Queries, keys and values are 1x1 convolutions, here linear layers; what joins the heads is a 3x3 one.
    """

    def __init__(self, channels: int, heads: int, head_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(channels, 3 * heads * head_channels)
        self.join = nn.Conv2d(heads * head_channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Some bins at a time: an exported graph, and some devices, hold all T x T weights of what is asked for at once.
        return self.join(torch.cat([self._attend(bins) for bins in x.split(BINS_AT_ONCE, dim=3)], dim=3))

    def _attend(self, x: Tensor) -> Tensor:
        """(N, C, T, bins) to (N, heads * head_channels, T, bins)."""
        maps = self.queries_keys_values(x.permute(0, 3, 2, 1).flatten(0, 1))  # (N * bins, T, 3 * heads * head_channels)
        query, key, value = maps.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)  # (N * bins, heads, T, head_channels)
        return out.transpose(1, 2).flatten(2).unflatten(0, (x.shape[0], -1)).permute(0, 3, 2, 1)


class AttentionBlock(nn.Module):
    """Attention along time, then two linear layers along frequency, each normalised before and added (eq. 13)."""

    def __init__(self, channels: int, rows: int, heads: int, head_channels: int, expansion: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(rows)
        self.attention = TemporalAttention(channels, heads, head_channels)
        self.forward_norm = nn.LayerNorm(rows)
        self.feed_forward = nn.Sequential(
            nn.Linear(rows, expansion * rows), nn.ReLU(), nn.Linear(expansion * rows, rows)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.forward_norm(x))


@register_extractor("atss_net")
class AtssNet(MagnitudeExtractor):
    """Figures 2 and 3 and Table 1 of the paper; 4.676 M parameters, 0.516 M without attention (4.68 and 0.65 there).

    The voice stands beside the magnitudes, as further bins of every frame, so that all layers see it and only the STFT
    is shared by several voices. Where the paper is silent, what its parameter count suggests: the dilated convolutions
    come once, before all blocks, with the batch normalisation and ReLU of VoiceFilter, a head has 128 channels, the
    normalisations in the blocks are over F, and the mask is a sigmoid. No layer depends on a number of frames.

    Args:
        voice_size: D; 0 for the blind ablation (PIT in Table 3), which sees no voice.
        sources: K of the blind ablation, 2 unless given.
        n_fft, window, hop: of the STFT, in samples.
        power: of the magnitudes that the network sees; the paper has plain ones.
        channels: of every layer between the first and the last, d_k.
        dilations: of the 5x5 convolutions, along time.
        blocks: attention blocks, N.
        heads: of an attention, h.
        head_channels: of a head.
        expansion: rows in the middle of a feed-forward layer, by those around it.
        attention: with the blocks; without is an ablation of Table 3.
        voice_rows: bins that a linear layer makes of the voice, for less work; 0 for the voice itself, as published.

    Raises:
        ConfigError: both ``sources`` and ``voice_size`` are given.
    """

    def __init__(
        self,
        voice_size: int = 128,
        sources: int | None = None,
        n_fft: int = 512,
        window: int = 400,
        hop: int = 160,
        power: float = 1.0,
        channels: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        blocks: int = 3,
        heads: int = 2,
        head_channels: int = 128,
        expansion: int = 4,
        attention: bool = True,
        voice_rows: int = 0,
    ) -> None:
        super().__init__(voice_size, blind_sources(sources, voice_size), n_fft, window, hop, power)
        rows = self.stft.bins + (voice_rows or voice_size)
        self.voice = nn.Linear(voice_size, voice_rows) if voice_rows else nn.Identity()
        self.stem = nn.Sequential(
            convolution(1, channels, (5, 5), dilations[0]),
            *(convolution(channels, channels, (5, 5), dilation) for dilation in dilations[1:]),
            convolution(channels, channels, (1, 1)),
        )
        self.blocks = nn.Sequential(
            *(AttentionBlock(channels, rows, heads, head_channels, expansion) for _ in range(attention * blocks))
        )
        self.dense = nn.Linear(rows, self.stft.bins)
        self.mask = nn.Conv2d(channels, max(self.sources, 1), 3, padding=1)

    def masks(self, magnitudes: Tensor, voices: Tensor) -> Tensor:
        voices = self.voice(voices)
        shape = (*voices.shape[:2], magnitudes.shape[1], -1)  # (batch, voices, frames, rows)
        rows = torch.cat([magnitudes.unsqueeze(1).expand(shape), voices.unsqueeze(2).expand(shape)], dim=3)
        maps = self.blocks(self.stem(rows.flatten(0, 1).unsqueeze(1)))  # (batch * voices, channels, frames, rows)
        masks = torch.sigmoid(self.mask(self.dense(maps)))  # (batch * voices, 1 or sources, frames, F)
        return masks.unflatten(0, voices.shape[:2]).flatten(1, 2)
