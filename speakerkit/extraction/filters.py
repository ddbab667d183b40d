"""Learnt filters of the time-domain models: waveforms to frames on one scale or several, masked, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError


class Encoder(nn.Module):
    """Convolutions of several lengths with the same stride, and ReLU (Ge et al. 2020, 2005.04686, section 2.1).

    They have no bias, so that silence gives zeros and twice the level twice the values.

    Args:
        filters: N, of each scale.
        kernels: L1, L2, ..., their samples, rising, the first even. All scales start at the same sample; the stride is
            half of L1.

    Raises:
        ConfigError: the kernels are not like that.
    """

    def __init__(self, filters: int, kernels: Sequence[int]) -> None:
        super().__init__()
        if not kernels or list(kernels) != sorted(kernels) or kernels[0] < 2 or kernels[0] % 2:
            raise ConfigError(
                "filters", f"of {list(kernels)} samples cannot be used", "the first is even, the others longer"
            )
        self.kernels = tuple(kernels)
        self.stride = kernels[0] // 2
        self.scales = nn.ModuleList(nn.Conv1d(1, filters, size, self.stride, bias=False) for size in kernels)

    def whole_frames(self, samples: Tensor) -> Tensor:
        """How many of the frames lie on a waveform of so many samples to their end, on the shortest scale."""
        return (samples - self.kernels[0]) // self.stride + 1

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """(B, S) to (B, N, T) of each scale; zeros after the end, so that T = ceil((S - L1) / stride) + 1 on all."""
        fill = -(waveform.shape[-1] - self.kernels[0]) % self.stride
        x = waveform.unsqueeze(1)
        return [
            torch.relu(scale(F.pad(x, (0, fill + size - self.kernels[0]))))
            for scale, size in zip(self.scales, self.kernels, strict=True)
        ]


class Decoder(nn.Module):
    """Masks on the frames of an :class:`Encoder`, and transposed convolutions like its own, without bias too."""

    def __init__(self, filters: int, kernels: Sequence[int]) -> None:
        super().__init__()
        stride = kernels[0] // 2
        self.scales = nn.ModuleList(nn.ConvTranspose1d(filters, 1, size, stride, bias=False) for size in kernels)

    def forward(self, frames: Sequence[Tensor], masks: Sequence[Tensor], samples: int) -> list[Tensor]:
        """Frames (B, N, T) and K masks on them (B, K, N, T), of each scale, to (B, K, S), S being ``samples``."""
        waveforms = []
        for scale, encoded, mask in zip(self.scales, frames, masks, strict=True):
            masked = (mask * encoded.unsqueeze(1)).flatten(0, 1)  # (B * K, N, T)
            waveforms.append(scale(masked)[:, 0, :samples].unflatten(0, (-1, mask.shape[1])))
        return waveforms
