"""BSRNN with a voice: bands of a spectrum, recurrent along time and along bands in turn, a complex mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

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
LOG_SCALE = 0.3  # brings logarithms of magnitudes to the range of the spectrum beside them


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
        starts = accumulate(widths, initial=0)
        filled = [(start, width, widest - width) for start, width in zip(starts, widths, strict=False)]
        members = [[*range(start, start + width), *gap * [bins]] for start, width, gap in filled]  # bin F is a zero
        places = [band * widest + i for band, width in enumerate(widths) for i in range(width)]
        self.register_buffer("members", torch.tensor(members).flatten(), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

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

    def __init__(self, features: int, hidden: int, bidirectional: bool, local_norm: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, EPS) if local_norm else SequenceNorm(features)
        self.lstm = nn.LSTM(features, hidden, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear((1 + bidirectional) * hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.dropout(lstm_outputs(self.lstm, self.norm(x))))


class AlongTime(RecurrentLayer):
    """Each band by itself, from frame to frame: (T, M, Q, N) to the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


class AlongBands(RecurrentLayer):
    """Each frame by itself, from band to band: (T, M, Q, N) to the same."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.flatten(0, 1).transpose(0, 1).contiguous())  # (Q, frames * mixtures, N)
        return out.transpose(0, 1).unflatten(0, x.shape[:2])


class AcrossBands(nn.Module):
    """Each frame by itself, all its bands and features at once: a perceptron, (T, M, Q, N) to the same."""

    def __init__(self, bands: int, features: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, EPS)
        self.layers = nn.Sequential(nn.Linear(bands * features, hidden), nn.SiLU(), nn.Linear(hidden, bands * features))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm(x).flatten(2)).unflatten(2, x.shape[2:])


class Exchange(nn.Module):
    """What each voice's features learn from the mean of the other voices'.

    After "transform, average, concatenate" (Luo et al. 2020, 1910.14104).
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, EPS)
        self.layers = nn.Sequential(nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, features))

    def forward(self, x: Tensor, complete: Tensor) -> Tensor:
        """(T, B, K, Q, N) to the same, unchanged where ``complete`` (B,) is 0 and not 1."""
        own = self.norm(x)
        others = (own.sum(2, keepdim=True) - own) / max(x.shape[2] - 1, 1)
        return x + complete.view(-1, 1, 1, 1) * self.layers(torch.cat([own, others], dim=-1))


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
    """Each band's N features to K complex masks of its bins: layers of its own with tanh, then a gated linear one."""

    def __init__(self, bands: Bands, features: int, hidden: Sequence[int], local_norm: bool, sources: int = 1) -> None:
        super().__init__()
        self.bands = bands
        self.normed = (3,) if local_norm else (0, 3)
        self.gain = nn.Parameter(torch.ones(len(bands), features))
        self.shift = nn.Parameter(torch.zeros(len(bands), features))
        sizes = [features, *hidden]
        self.weights = nn.ParameterList(_uniform((len(bands), *pair), pair[0]) for pair in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(len(bands), 1, size) for size in hidden)
        self.last_weight = nn.Parameter(_uniform((sizes[-1], sources, 4, sum(bands.widths)), sizes[-1]))
        # Masks start near 1/2: the mixture, which a loss on the shape of waveforms takes for a better start than noise.
        start = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 4, 1)
        self.last_bias = nn.Parameter(start.repeat(sources, 1, 1, sum(bands.widths)))

    def forward(self, x: Tensor) -> Tensor:
        """(T, M, Q, N) to (M, K, T, 2, F)."""
        variance, mean = torch.var_mean(x, dim=self.normed, correction=0, keepdim=True)
        y = (x - mean) * (variance + EPS).rsqrt() * self.gain + self.shift
        y = y.flatten(0, 1).transpose(0, 1)  # (Q, frames * mixtures, N)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            y = torch.tanh(torch.baddbmm(bias, y, weight))
        last_weight = self.bands.spread(self.last_weight).permute(3, 0, 1, 2, 4)  # (Q, hidden, K, 4, width)
        y = torch.bmm(y, last_weight.flatten(2)).unflatten(1, x.shape[:2]).unflatten(-1, last_weight.shape[2:])
        y = self.bands.joined(y.permute(2, 3, 1, 4, 0, 5)) + self.last_bias  # (mixtures, K, frames, 4, F)
        value, gate = y.chunk(2, dim=3)
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
        log_magnitude: let the network see it.
        phase: let the network see real and imaginary part. With little data it learns much sooner without.
        local_norm: normalise every frame and band by itself over its features, and the spectrum not at all; else over
            frames or bands too.
        band_mlp: width of a perceptron over all bands of a frame, in the place of the LSTM along them; 0 for that LSTM.
            Much the cheaper of the two. With a single band, a spectrum undivided, there is neither.
        separate: sources that the repeats before the voice joins are to separate in training as well, for a loss that
            knows no order (``Extracted.separated``); 0 for none.
        exchange: learn to use that voices are ``complete``: they hear each other before every repeat from the first
            join on, and what their estimates lack of the mixture is shared out among them.
        dropout: share of LSTM outputs that training leaves out.

    Raises:
        ConfigError: the voice joins nowhere, or not before a repeat; or before all, with sources to ``separate``.
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
        phase: bool = True,
        local_norm: bool = False,
        band_mlp: int = 0,
        separate: int = 0,
        exchange: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = hidden or 2 * features
        if not join or not set(join) <= set(range(repeats)):
            raise ConfigError("join", f"is {list(join)}", f"give repeats from 0 to {repeats - 1}, at least one")
        if separate and 0 in join:
            raise ConfigError("separate", f"is {separate}, but the voice joins at once", "let it join later")
        self.voice_size = voice_size
        if not (phase or log_magnitude):
            raise ConfigError("phase", "is off, and log_magnitude too", "let the network see one of them")
        self.power = power
        self.log_magnitude, self.phase = log_magnitude, phase
        self.stft = STFT(n_fft, window, hop)
        split = Bands(band_widths(bands, rate, n_fft))
        self.split = BandSplit(split, 2 * phase + log_magnitude, features, local_norm)
        self.repeats = nn.ModuleList()
        for _ in range(repeats):
            layers: list[nn.Module] = [AlongTime(features, hidden, bidirectional, local_norm, dropout)]
            if len(split) > 1 and band_mlp:
                layers.append(AcrossBands(len(split), features, band_mlp))
            elif len(split) > 1:
                layers.append(AlongBands(features, hidden, True, local_norm, dropout))
            self.repeats.append(nn.Sequential(*layers))
        self.first_join = min(join)
        self.voice = nn.Sequential(nn.Linear(voice_size, voice_hidden), nn.ReLU()) if voice_hidden else nn.Identity()
        self.joins = nn.ModuleDict(
            {str(i): VoiceLayer(conditioning, features, voice_hidden or voice_size) for i in join}
        )
        later = range(self.first_join, repeats) if exchange else ()
        self.can_complete = exchange
        self.exchanges = nn.ModuleDict({str(i): Exchange(features) for i in later})
        widths = (4 * features,) * 2 if mask_hidden is None else mask_hidden
        self.masks = BandMasks(split, features, widths, local_norm)
        self.blind_masks = BandMasks(split, features, widths, local_norm, separate) if separate else None

    def forward(self, mixture: Tensor, voices: Tensor, complete: Tensor | None = None) -> Extracted:
        mixture, level = levelled(mixture)
        spectrum = self.stft(mixture)  # (batch, frames, 2, F)
        x = self.split(self._seen(spectrum))  # (frames, batch, Q, N)
        repeats = list(self.repeats)
        for repeat in repeats[: self.first_join]:
            x = repeat(x)
        separated = None
        if self.training and self.blind_masks is not None:
            separated = self._estimates(spectrum, self.blind_masks(x), mixture.shape[-1]) * level.unsqueeze(1)
        x = x.unsqueeze(2).expand(-1, -1, voices.shape[1], -1, -1).flatten(1, 2)  # (frames, batch * voices, Q, N)
        voice = self.voice(voices.flatten(0, 1))
        for i, repeat in enumerate(repeats[self.first_join :], self.first_join):
            x = self.joins[str(i)](x, voice) if str(i) in self.joins else x
            if complete is not None:
                x = self.exchanges[str(i)](x.unflatten(1, voices.shape[:2]), complete).flatten(1, 2)
            x = repeat(x)
        masks = self.masks(x).unflatten(0, voices.shape[:2]).squeeze(2)  # (batch, voices, frames, 2, F)
        waveform = self._estimates(spectrum, masks, mixture.shape[-1])
        if complete is not None:
            left = (mixture.unsqueeze(1) - waveform.sum(1, keepdim=True)) / voices.shape[1]
            waveform = waveform + complete.view(-1, 1, 1) * left
        return Extracted(waveform * level.unsqueeze(1), separated=separated)

    def _seen(self, spectrum: Tensor) -> Tensor:
        """What the network sees of a spectrum: (B, T, 2, F) to (B, T, 1 to 3, F)."""
        if self.power == 1 and not self.log_magnitude:
            return spectrum
        magnitudes = magnitude(spectrum).unsqueeze(2) + FLOOR
        seen = [spectrum * magnitudes ** (self.power - 1)] if self.phase else []
        return torch.cat([*seen, *([LOG_SCALE * magnitudes.log()] if self.log_magnitude else [])], dim=2)

    def _estimates(self, spectrum: Tensor, masks: Tensor, samples: int) -> Tensor:
        """A spectrum (B, T, 2, F) under K complex masks (B, K, T, 2, F), as waveforms (B, K, S)."""
        return self.stft.inverse(_multiplied(spectrum.unsqueeze(1), masks.to(spectrum.dtype)), samples)


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    """The product of complex numbers whose parts stand on the last axis but one."""
    (a_real, a_imag), (b_real, b_imag) = a.unbind(-2), b.unbind(-2)
    return torch.stack([a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real], dim=-2)
