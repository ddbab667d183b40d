"""The front-end as a batched torch module: runs on the device, in training and in waveform-in graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.features import (
    LOG_FLOOR,
    LOG_OFFSET,
    POWER_FLOOR,
    RANGE_DB,
    WAVE_EPS,
    FrontEnd,
    centre_lengths,
    mel_filters,
    mirror_lengths,
    window_function,
)


class Fbank(nn.Module):
    """Log-mel filterbank, Kaldi's or another; the numpy twin is :func:`speakerkit.features.fbank`.

    Dither is added in training mode only. Mean normalisation is part of it where the front-end says so.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, frontend: FrontEnd) -> None:
        super().__init__()
        self.frontend = frontend
        self.register_buffer("window", torch.from_numpy(window_function(frontend)).float(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(frontend)).float(), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, samples: Tensor) -> Tensor:
        """(batch, samples) in [-1, 1] to (batch, frames, mels); computed in float32 also under autocast."""
        frontend = self.frontend
        scaled = self._extended(samples.float() * frontend.amplitude)
        frames = scaled.unfold(1, frontend.window_samples, frontend.shift_samples)  # (batch, frames, window)
        if self.training and frontend.dither > 0:
            frames = frames + frontend.dither * torch.randn_like(frames)
        if frontend.filterbank == "kaldi":
            frames = frames - frames.mean(dim=2, keepdim=True)
            previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            frames = frames - frontend.preemphasis * previous
        spectrum = torch.fft.rfft(frames * self.window, frontend.fft_size)  # (batch, frames, fft_size // 2 + 1)
        power = spectrum.real.square() + spectrum.imag.square()
        output = self._logarithm(power @ self.filters)
        return output - output.mean(dim=1, keepdim=True) if frontend.mean_norm else output

    def _extended(self, scaled: Tensor) -> Tensor:
        """The signals that are cut into frames, (batch, samples) to (batch, samples and what is added at the ends)."""
        frontend = self.frontend
        if frontend.centred:
            previous = torch.cat([scaled[:, 1:2], scaled[:, :-1]], dim=1)
            mode = "reflect" if frontend.filterbank == "torchaudio" else "constant"
            emphasised = scaled - frontend.preemphasis * previous
            return F.pad(emphasised.unsqueeze(1), centre_lengths(frontend), mode).squeeze(1)
        if frontend.snip_edges:
            return scaled
        left, right = mirror_lengths(scaled.shape[1], frontend)
        parts = [scaled[:, :left].flip(1), scaled]
        if right:
            parts.append(scaled[:, -right:].flip(1))
        return torch.cat(parts, dim=1)

    def _logarithm(self, energies: Tensor) -> Tensor:
        if self.frontend.filterbank == "torchaudio":
            return (energies + LOG_OFFSET).log()
        if self.frontend.filterbank == "speechbrain":
            decibels = 10 * energies.clamp_min(POWER_FLOOR).log10()
            return torch.maximum(decibels, decibels.amax(dim=(1, 2), keepdim=True) - RANGE_DB)
        return energies.clamp_min(LOG_FLOOR).log()


class Waveform(nn.Module):
    """Samples as features; the numpy twin is :func:`speakerkit.features.waveform`."""

    def __init__(self, frontend: FrontEnd) -> None:
        super().__init__()
        self.frontend = frontend

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, samples: Tensor) -> Tensor:
        """(batch, samples) in [-1, 1] to (batch, samples, 1), in float32 also under autocast."""
        samples = samples.float()
        if self.frontend.wave_norm:
            samples = F.layer_norm(samples, samples.shape[1:], eps=WAVE_EPS)
        return samples.unsqueeze(2)


def front_end_module(frontend: FrontEnd) -> Fbank | Waveform:
    """The module that turns waveforms into what the model is fed."""
    return Waveform(frontend) if frontend.kind == "waveform" else Fbank(frontend)


class SpecAugment(nn.Module):
    """Time and frequency masking (Park et al., 2019), drawn anew for each utterance; the identity in evaluation.

    Args:
        prob: share of utterances that are masked.
        time_masks, time_width: number of masks and their largest width in frames.
        freq_masks, freq_width: number of masks and their largest width in mels.

    Masked values become 0, the mean after mean normalisation.
    """

    def __init__(
        self, prob: float = 0.6, time_masks: int = 1, time_width: int = 10, freq_masks: int = 1, freq_width: int = 8
    ) -> None:
        super().__init__()
        self.prob = prob
        self.masks = ((1, time_masks, time_width), (2, freq_masks, freq_width))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, frames, mels) to the same shape."""
        if not self.training or self.prob <= 0:
            return features
        batch, device = features.shape[0], features.device
        chosen = torch.rand(batch, 1, device=device) < self.prob
        masked = torch.zeros(features.shape, dtype=torch.bool, device=device)
        for axis, count, width in self.masks:
            length = features.shape[axis]
            positions = torch.arange(length, device=device)
            for _ in range(count):
                size = (torch.rand(batch, 1, device=device) * (min(width, length) + 1)).floor()
                start = (torch.rand(batch, 1, device=device) * (length - size + 1)).floor()
                inside = (positions >= start) & (positions < start + size) & chosen  # (batch, length)
                masked |= inside[:, :, None] if axis == 1 else inside[:, None, :]
        return features.masked_fill(masked, 0.0)
