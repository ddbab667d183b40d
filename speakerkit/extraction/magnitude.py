"""What the models share that mask magnitudes and keep the phase of the mixture."""

from __future__ import annotations

from torch import Tensor

from speakerkit.extraction.registry import Extracted, Extractor, levelled
from speakerkit.nn.stft import STFT, magnitude

FLOOR = 1e-6  # added to magnitudes, since the slope of a root at 0 is infinite


class MagnitudeExtractor(Extractor):
    """Masks for the magnitudes of a spectrum, whose phase remains; a model file defines ``masks``.

    The mixture is brought to an RMS of 1 first, and its level given back to what is estimated.

    Args:
        n_fft, window, hop: of the :class:`STFT`, in samples; F = n_fft / 2 + 1.
        power: of the magnitudes that the network sees; masks are for plain ones.
    """

    min_samples = 1

    def __init__(self, voice_size: int, sources: int, n_fft: int, window: int, hop: int, power: float) -> None:
        super().__init__()
        self.voice_size = voice_size
        self.sources = sources
        self.stft = STFT(n_fft, window, hop)
        self.power = power

    def masks(self, magnitudes: Tensor, voices: Tensor) -> Tensor:
        """Powers of magnitudes (B, T, F) of levelled mixtures, and voices (B, K, D), to masks (B, K, T, F).

        A blind separator's voices are (B, 1, 0), its masks those of all sources.
        """
        raise NotImplementedError

    def forward(self, mixture: Tensor, voices: Tensor | None = None) -> Extracted:
        mixture, level = levelled(mixture)
        spectrum = self.stft(mixture)  # (batch, frames, 2, F)
        magnitudes = magnitude(spectrum)
        if voices is None:
            voices = mixture.new_zeros(mixture.shape[0], 1, 0)
        masks = self.masks((magnitudes + FLOOR).pow(self.power), voices).to(spectrum.dtype)
        waveform = self.stft.inverse(masks.unsqueeze(-2) * spectrum.unsqueeze(1), mixture.shape[-1])
        level = level.unsqueeze(1)
        return Extracted(waveform * level, magnitude=masks * magnitudes.unsqueeze(1) * level.unsqueeze(-1))

    def magnitudes(self, waveform: Tensor) -> Tensor:
        return magnitude(self.stft(waveform))
