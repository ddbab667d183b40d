"""The short-time Fourier transform and its inverse in real arithmetic: sums of matrix products, of any length."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError


class STFT(nn.Module):
    """Centred transform of signals in zeros, and the inverse that gives them back exactly.

    The spectrum is that of ``torch.stft(center=True, pad_mode="constant", normalized=False)`` of the signal followed by
    zeros up to a multiple of ``hop``: S samples have ``T = 1 + ceil(S / hop)`` frames, at least two, and no sample
    stands beyond the last frame's centre, where a synthesis would divide by next to nothing. The inverse is the
    least-squares one (Griffin and Lim 1984, eq. 6). Real and imaginary part stand on an axis of their own, so that no
    complex type occurs, and both ways are slices and matrix products: they export with a free length. In float32 also
    under autocast.

    Args:
        n_fft: points of the transform, an even number, of which ``F = n_fft // 2 + 1`` bins remain.
        window: samples of the periodic Hann window, in the middle of those points.
        hop: samples between frames.

    Raises:
        ConfigError: the transform is odd, or the window longer than it or shorter than two hops.
    """

    analysis: Tensor
    synthesis: Tensor
    power: Tensor

    def __init__(self, n_fft: int, window: int, hop: int) -> None:
        super().__init__()
        if n_fft % 2 or not 2 <= 2 * hop <= window <= n_fft:
            fault = f"n_fft {n_fft}, window {window}, hop {hop} cannot be inverted"
            raise ConfigError("STFT", fault, "choose 2 * hop <= window <= n_fft, and n_fft even")
        self.hop = hop
        self.bins = n_fft // 2 + 1
        self.hops = -(-window // hop)  # of a window; it is filled up with zeros to a whole number of them
        offset = (n_fft - window) // 2  # of the window within the transform
        self.before = n_fft // 2 - offset  # samples of the window before its centre
        taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        angle = 2 * np.pi / n_fft * np.outer(np.arange(window) + offset, np.arange(self.bins))
        waves = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)  # (window, 2 F)
        twice = np.where((np.arange(self.bins) == 0) | (2 * np.arange(self.bins) == n_fft), 1, 2) / n_fft
        rows = ((0, self.hops * hop - window), (0, 0))
        self._keep("analysis", np.pad(taper[:, None] * waves, rows))
        self._keep("synthesis", np.pad(taper[:, None] * waves * np.tile(twice, 2), rows).T)
        self._keep("power", np.pad(taper**2, rows[0]))

    def _keep(self, name: str, matrix: np.ndarray) -> None:
        self.register_buffer(name, torch.tensor(matrix, dtype=torch.get_default_dtype()), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, signal: Tensor) -> Tensor:
        """(..., S) to (..., T, 2, F), real part first."""
        samples = signal.shape[-1]
        hops = (samples + self.hop - 1) // self.hop  # of the signal: T - 1
        behind = (hops + self.hops) * self.hop - self.before - samples
        padded = F.pad(signal.to(self.analysis.dtype), (self.before, behind))
        blocks = padded.unflatten(-1, (-1, self.hop))  # (..., T + hops of a window - 1, hop)
        frames = torch.cat([blocks[..., i : i + hops + 1, :] for i in range(self.hops)], dim=-1)  # (..., T, window)
        return (frames @ self.analysis).unflatten(-1, (2, self.bins))

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def inverse(self, spectrum: Tensor, samples: int) -> Tensor:
        """(..., T, 2, F) to (..., samples), of which there are at most ``hop * (T - 1)``."""
        frames = spectrum.to(self.synthesis.dtype).flatten(-2) @ self.synthesis  # (..., T, window)
        weight = self._overlap_add(self.power.expand(frames.shape[-2], -1))
        kept = slice(self.before, self.before + samples)
        return self._overlap_add(frames)[..., kept] / weight[kept]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(..., T, window) to (..., hop * (T + hops of a window - 1))."""
        parts = frames.unflatten(-1, (self.hops, self.hop)).unbind(-2)  # each (..., T, hop)
        shifted = [F.pad(part, (0, 0, i, self.hops - 1 - i)) for i, part in enumerate(parts)]
        return torch.stack(shifted).sum(0).flatten(-2)


def magnitude(spectrum: Tensor) -> Tensor:
    """(..., 2, F) to (..., F); where it is 0, so is its gradient."""
    return torch.linalg.vector_norm(spectrum, dim=-2)
