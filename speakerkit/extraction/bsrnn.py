"""BSRNN with a voice: bands of a spectrum, recurrent along time and along bands in turn, a complex mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.extraction.registry import Extracted, Extractor, levelled, register_extractor
from speakerkit.nn.conditioning import Conditioning
from speakerkit.nn.lstm import lstm_outputs
from speakerkit.nn.stft import STFT, magnitude

BANDS = ((15, 100), (10, 200), (5, 500), (1, 2000))  # how many, Hz
EPS = 1e-5  # under the root of a variance, of values near 1
FLOOR = 1e-5  # added to magnitudes that are divided by or in a logarithm; speech is near 1


def band_widths(bands: Sequence[Sequence[float]], rate: int, n_fft: int) -> list[int]:
    """Bins of each band, n_fft / 2 + 1 in all; ``bands`` are (how many, Hz), from 0 Hz up.

    Widths are rounded down. What remains above them is one band more, what reaches beyond rate / 2 is cut, and the bin
    of rate / 2 is part of the last band.
    """
    edges = [0]
    for count, hertz in (*bands, (1, rate)):
        for _ in range(int(count)):
            edges.append(min(edges[-1] + max(1, int(hertz * n_fft / rate)), n_fft // 2))
    edges = sorted(set(edges))
    edges[-1] += 1
    return [end - start for start, end in pairwise(edges)]


class Bands(nn.Module):
    """Which bins each of Q bands has: bands as wide as the widest, filled up with zeros, are one batch of matrices."""

    members: Tensor
    places: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        bins, widest = sum(widths), max(widths)
        members = torch.full((len(widths), widest), bins)  # bin F is a zero behind the others
        for band, bins_of_band in zip(members, torch.arange(bins).split(self.widths), strict=True):
            band[: len(bins_of_band)] = bins_of_band
        self.register_buffer("members", members.flatten(), persistent=False)
        self.register_buffer("places", (members.flatten() < bins).nonzero().flatten(), persistent=False)

    def __len__(self) -> int:
        return len(self.widths)

    def spread(self, x: Tensor) -> Tensor:
        """(..., F) to (..., Q, width of the widest)."""
        return F.pad(x, (0, 1)).index_select(-1, self.members).unflatten(-1, (len(self), -1))

    def joined(self, x: Tensor) -> Tensor:
        """(..., Q, width of the widest) to (..., F)."""
        return x.flatten(-2).index_select(-1, self.places)

    def of_bins(self, x: Tensor) -> Tensor:
        """One value a band for each of its bins: (..., Q) to (..., F)."""
        return self.joined(x.unsqueeze(-1).expand(*x.shape, len(self.members) // len(self)))


class BandNorm(nn.Module):
    """Each band by its mean and variance over frames, parts and bins; a gain and a bias for each part of a bin."""

    def __init__(self, bands: Bands, parts: int) -> None:
        super().__init__()
        self.bands = bands
        self.weight = nn.Parameter(torch.ones(parts, sum(bands.widths)))
        self.bias = nn.Parameter(torch.zeros(parts, sum(bands.widths)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, parts, F) to the same."""
        centred = x - self._mean(x)
        return centred * (self._mean(centred.square()) + EPS).rsqrt() * self.weight + self.bias

    def _mean(self, x: Tensor) -> Tensor:
        of_bins = self.bands.spread(x.mean((1, 2), keepdim=True)).sum(-1)  # (batch, 1, 1, Q)
        return self.bands.of_bins(of_bins / of_bins.new_tensor(self.bands.widths))


class BandSplit(nn.Module):
    """Each band of a spectrum to N features, by a normalisation and a linear layer of its own."""

    def __init__(self, bands: Bands, parts: int, features: int, local_norm: bool) -> None:
        super().__init__()
        self.bands = bands
        self.norm = nn.Identity() if local_norm else BandNorm(bands, parts)
        bounds = [(parts * width) ** -0.5 for width in bands.widths]
        weights = [torch.empty(parts, width, features).uniform_(-1, 1) for width in bands.widths]
        self.weight = nn.Parameter(torch.cat([b * w for b, w in zip(bounds, weights, strict=True)], dim=1))
        self.bias = nn.Parameter(torch.zeros(len(bands), 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, parts, F) to (T, B, Q, N)."""
        rows = self.bands.spread(self.norm(x)).permute(3, 1, 0, 2, 4)  # (Q, frames, batch, parts, width)
        weight = self.bands.spread(self.weight.transpose(1, 2)).permute(2, 0, 3, 1)  # (Q, parts, width, N)
        out = torch.baddbmm(self.bias, rows.flatten(1, 2).flatten(2), weight.flatten(1, 2))
        return out.transpose(0, 1).unflatten(0, rows.shape[1:3]).to(x.dtype)


class SequenceNorm(nn.Module):
    """Sequences (L, M, N) by their mean and variance over L and N, a gain and a bias for each of N."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(0, 2), correction=0, keepdim=True)
        return (x - mean) * (variance + EPS).rsqrt() * self.weight + self.bias


class RecurrentLayer(nn.Module):
    """Normalisation, an LSTM and a linear layer beside a residual path: (L, M, N) to the same, M sequences of L."""

    def __init__(self, features: int, hidden: int, bidirectional: bool, local_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, EPS) if local_norm else SequenceNorm(features)
        self.lstm = nn.LSTM(features, hidden, bidirectional=bidirectional)
        self.linear = nn.Linear((1 + bidirectional) * hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(lstm_outputs(self.lstm, self.norm(x)))


class TimeAndBands(nn.Module):
    """One repeat: every band along time, then every frame along its bands, (T, M, Q, N) to the same."""

    def __init__(self, features: int, hidden: int, bidirectional: bool, local_norm: bool) -> None:
        super().__init__()
        self.time = RecurrentLayer(features, hidden, bidirectional, local_norm)
        self.bands = RecurrentLayer(features, hidden, True, local_norm)

    def forward(self, x: Tensor) -> Tensor:
        frames, mixtures, bands, _ = x.shape
        x = self.time(x.flatten(1, 2)).unflatten(1, (mixtures, bands))
        x = self.bands(x.flatten(0, 1).transpose(0, 1).contiguous())  # (Q, frames * mixtures, N)
        return x.transpose(0, 1).unflatten(0, (frames, mixtures))


class VoiceLayer(nn.Module):
    """A voice enters every band and frame alike: (T, M, Q, N) and (M, D) to (T, M, Q, N)."""

    def __init__(self, kind: str, features: int, voice_size: int) -> None:
        super().__init__()
        self.conditioning = Conditioning(kind, features, voice_size)
        wide = self.conditioning.out_features
        self.linear = nn.Identity() if wide == features else nn.Linear(wide, features)

    def forward(self, x: Tensor, voice: Tensor) -> Tensor:
        heard = self.conditioning(x.permute(1, 3, 0, 2), voice)  # (M, N or more, frames, Q)
        return self.linear(heard.permute(2, 0, 3, 1))


class BandMasks(nn.Module):
    """Each band's N features to the complex masks of its bins: layers of its own with tanh, then a gated linear one."""

    def __init__(self, bands: Bands, features: int, hidden: Sequence[int], local_norm: bool) -> None:
        super().__init__()
        self.bands = bands
        self.normed = (3,) if local_norm else (0, 3)
        self.gain = nn.Parameter(torch.ones(len(bands), features))
        self.shift = nn.Parameter(torch.zeros(len(bands), features))
        sizes = [features, *hidden]
        self.weights = nn.ParameterList(_uniform((len(bands), *pair), pair[0]) for pair in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(len(bands), 1, size) for size in hidden)
        self.last_weight = nn.Parameter(_uniform((sizes[-1], 4, sum(bands.widths)), sizes[-1]))
        # Masks start near 1/2: the mixture, which a loss on the shape of waveforms takes for a better start than noise.
        start = torch.tensor([1.0, 0.0, 0.0, 0.0]).unsqueeze(1)
        self.last_bias = nn.Parameter(start.repeat(1, sum(bands.widths)))

    def forward(self, x: Tensor) -> Tensor:
        """(T, M, Q, N) to (M, T, 2, F)."""
        variance, mean = torch.var_mean(x, dim=self.normed, correction=0, keepdim=True)
        y = (x - mean) * (variance + EPS).rsqrt() * self.gain + self.shift
        y = y.flatten(0, 1).transpose(0, 1)  # (Q, frames * mixtures, N)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            y = torch.tanh(torch.baddbmm(bias, y, weight))
        last_weight = self.bands.spread(self.last_weight).permute(2, 0, 1, 3).flatten(2)  # (Q, hidden, 4 * width)
        y = torch.bmm(y, last_weight).unflatten(1, x.shape[:2]).unflatten(-1, (4, -1))
        y = self.bands.joined(y.permute(2, 1, 3, 0, 4)) + self.last_bias  # (mixtures, frames, 4, F)
        value, gate = y.chunk(2, dim=2)
        return value * torch.sigmoid(gate)


def _uniform(shape: tuple[int, ...], fan_in: int) -> Tensor:
    return torch.empty(shape).uniform_(-1, 1) * fan_in**-0.5


@register_extractor("bsrnn")
class BSRNN(Extractor):
    """Band-split RNN (Luo and Yu 2023, 2209.15174) that is told a voice; sizes by default are those of WeSep's recipe.

    WeSep (Wang et al. 2024, 2409.15799) multiplies the features by the voice once, before all repeats. All bands of a
    layer are one batch of matrices. The mixture is brought to an RMS of 1 first, and its level given back at the end.

    Args:
        voice_size: D.
        rate: of the samples, which the bands are for.
        n_fft, window, hop: of the STFT, in samples; F = n_fft / 2 + 1.
        bands: (how many, Hz) from 0 Hz up, see :func:`band_widths`; Q in all.
        features: N, of each band.
        repeats: of the layers along time and along bands.
        hidden: LSTM units each way; 2 N unless given.
        mask_hidden: widths of the layers before the masks; 4 N twice unless given.
        bidirectional: LSTMs both ways along time; along bands they always are.
        conditioning: how the voice enters, a kind of :class:`Conditioning`.
        join: the repeats before which it does; those before the first of them hear the mixture alone, and run once for
            all its voices.
        voice_hidden: width of a linear layer with ReLU that the voice passes first; 0 for none.
        power: of the magnitudes that the network sees, under the mixture's phase; masks are for the plain spectrum.
        log_magnitude: let the network see it beside real and imaginary part.
        local_norm: normalise every frame and band by itself over its features, and the spectrum not at all; else over
            frames or bands too.

    Raises:
        ConfigError: the voice joins nowhere, or not before a repeat.
    """

    min_samples = 1

    def __init__(
        self,
        voice_size: int = 256,
        rate: int = 16000,
        n_fft: int = 512,
        window: int = 512,
        hop: int = 128,
        bands: Sequence[Sequence[float]] = BANDS,
        features: int = 128,
        repeats: int = 6,
        hidden: int | None = None,
        mask_hidden: Sequence[int] | None = None,
        bidirectional: bool = True,
        conditioning: str = "multiply",
        join: Sequence[int] = (0,),
        voice_hidden: int = 0,
        power: float = 1.0,
        log_magnitude: bool = False,
        local_norm: bool = False,
    ) -> None:
        super().__init__()
        if not join or not set(join) <= set(range(repeats)):
            raise ConfigError("join", f"is {list(join)}", f"give repeats from 0 to {repeats - 1}, at least one")
        self.voice_size = voice_size
        self.power = power
        self.log_magnitude = log_magnitude
        self.stft = STFT(n_fft, window, hop)
        split = Bands(band_widths(bands, rate, n_fft))
        self.split = BandSplit(split, 2 + log_magnitude, features, local_norm)
        self.repeats = nn.ModuleList(
            TimeAndBands(features, hidden or 2 * features, bidirectional, local_norm) for _ in range(repeats)
        )
        self.first_join = min(join)
        self.voice = nn.Sequential(nn.Linear(voice_size, voice_hidden), nn.ReLU()) if voice_hidden else nn.Identity()
        self.joins = nn.ModuleDict(
            {str(i): VoiceLayer(conditioning, features, voice_hidden or voice_size) for i in join}
        )
        self.masks = BandMasks(split, features, (4 * features,) * 2 if mask_hidden is None else mask_hidden, local_norm)

    def forward(self, mixture: Tensor, voices: Tensor) -> Extracted:
        mixture, level = levelled(mixture)
        spectrum = self.stft(mixture)  # (batch, frames, 2, F)
        x = self.split(self._seen(spectrum))  # (frames, batch, Q, N)
        voice = self.voice(voices.flatten(0, 1))
        for i, repeat in enumerate(self.repeats):
            if str(i) in self.joins:
                if i == self.first_join:
                    x = x.unsqueeze(2).expand(-1, -1, voices.shape[1], -1, -1).flatten(1, 2)
                x = self.joins[str(i)](x, voice)
            x = repeat(x)
        masks = self.masks(x).to(spectrum.dtype).unflatten(0, voices.shape[:2])  # (batch, voices, frames, 2, F)
        waveform = self.stft.inverse(_multiplied(spectrum.unsqueeze(1), masks), mixture.shape[-1])
        return Extracted(waveform * level.unsqueeze(1))

    def _seen(self, spectrum: Tensor) -> Tensor:
        """What the network sees of a spectrum: (B, T, 2, F) to (B, T, 2 or 3, F)."""
        if self.power == 1 and not self.log_magnitude:
            return spectrum
        magnitudes = magnitude(spectrum).unsqueeze(2) + FLOOR
        seen = spectrum * magnitudes ** (self.power - 1)
        return torch.cat([seen, magnitudes.log()], dim=2) if self.log_magnitude else seen


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    """The product of complex numbers whose parts stand on the last axis but one."""
    (a_real, a_imag), (b_real, b_imag) = a.unbind(-2), b.unbind(-2)
    return torch.stack([a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real], dim=-2)
