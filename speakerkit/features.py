"""The front-end: log-mel filterbanks in numpy, or the samples themselves; and the fields that travel with a model."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from speakerkit.audio import MAX_RATE, MIN_RATE, Samples
from speakerkit.errors import AudioError, ConfigError

Features = npt.NDArray[np.float32]

KINDS = ("fbank", "waveform")
FILTERBANKS = ("kaldi", "torchaudio", "speechbrain")
WINDOWS = ("hamming", "povey", "hanning")
SCALES = {"int16": 32768.0, "unit": 1.0}
LOG_FLOOR = float(np.finfo(np.float32).eps)  # Kaldi's floor under the logarithm
LOG_OFFSET = 1e-6  # "torchaudio": added before the logarithm
POWER_FLOOR, RANGE_DB = 1e-10, 80.0  # "speechbrain": floor under the logarithm; decibels kept below the loudest value
WAVE_EPS = 1e-5  # added to the variance of a waveform, as fairseq does
BLOCK_FRAMES = 1024  # rfft blocks of this many frames stay in the cache


@dataclass(frozen=True)
class FrontEnd:
    """Everything that decides what a model hears; stored in its bundle and read by training, torch and ONNX alike.

    Attributes:
        sample_rate: Hz.
        num_mels: mel filters, the feature dimension F.
        filterbank: whose log-mel features these are.

            - "kaldi": what :func:`fbank` describes.
            - "torchaudio": ``MelSpectrogram`` after pre-emphasis of the whole signal, and ln(x + 1e-6). Frames are
              centred on multiples of the hop, the signal mirrored at its ends; filters are triangles over Hz.
            - "speechbrain": as its ``Fbank``, in decibels, at most 80 under the loudest value of the recording. Frames
              are centred too, with zeros at the ends; each triangle is as wide above its centre as below.
        frame_length: window in ms.
        frame_shift: hop in ms.
        window: "hamming" (WeSpeaker), "povey" (Kaldi) or "hanning"; periodic in filterbanks other than Kaldi's.
        scale: "int16" multiplies samples by 32768 before the filterbank (Kaldi, WeSpeaker), "unit" leaves [-1, 1].
        low_freq: lower edge of the first filter in Hz.
        high_freq: upper edge of the last filter in Hz; 0 or negative counts from the Nyquist frequency.
        preemphasis: coefficient of the pre-emphasis, which Kaldi applies to each frame, 0 for none.
        dither: standard deviation of noise added to each frame **in training only**, in units of ``scale``.
        snip_edges: only whole windows (Kaldi's default); otherwise the signal is mirrored at both ends. Kaldi's only.
        mean_norm: subtract the mean over time of each utterance or chunk (CMN).
        min_duration: shortest input in seconds that the model accepts.
        kind: "fbank", or "waveform": the samples in [-1, 1] as (samples, 1), for models that learn their own front-end.
            Of the other fields, only ``sample_rate``, ``frame_shift`` (the unit of a chunk's length), ``min_duration``
            and ``wave_norm`` then count.
        wave_norm: bring each waveform to mean 0 and variance 1, as the models need that were pre-trained so.
    """

    sample_rate: int = 16000
    num_mels: int = 80
    frame_length: float = 25.0
    frame_shift: float = 10.0
    window: str = "hamming"
    scale: str = "int16"
    low_freq: float = 20.0
    high_freq: float = 0.0
    preemphasis: float = 0.97
    dither: float = 0.0
    snip_edges: bool = True
    mean_norm: bool = True
    min_duration: float = 0.3
    filterbank: str = "kaldi"
    kind: str = "fbank"
    wave_norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("frontend.kind", f"{self.kind!r} is not known", f"choose from {', '.join(KINDS)}")
        if self.wave_norm and self.kind == "fbank":
            raise ConfigError("frontend.wave_norm", "normalises waveforms", "set frontend.kind: waveform, or drop it")
        if self.window not in WINDOWS:
            raise ConfigError("frontend.window", f"{self.window!r} is not known", f"choose from {', '.join(WINDOWS)}")
        if self.filterbank not in FILTERBANKS:
            known = ", ".join(FILTERBANKS)
            raise ConfigError("frontend.filterbank", f"{self.filterbank!r} is not known", f"choose from {known}")
        if self.scale not in SCALES:
            raise ConfigError("frontend.scale", f"{self.scale!r} is not known", f"choose from {', '.join(SCALES)}")
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise ConfigError("frontend.sample_rate", f"is {self.sample_rate}", f"{MIN_RATE} to {MAX_RATE} Hz")
        if min(self.num_mels, self.window_samples, self.shift_samples) <= 0:
            raise ConfigError("frontend", "rates, mels and frame sizes must be positive", "check its fields")
        if self.dither < 0:
            raise ConfigError("frontend.dither", f"is {self.dither}", "it is at least 0")
        if not 0 <= self.low_freq < self.upper_edge <= self.sample_rate / 2:
            raise ConfigError("frontend", "low_freq and high_freq leave no band", "0 <= low < high <= Nyquist")

    @property
    def window_samples(self) -> int:
        """Samples in a window."""
        return int(self.sample_rate * self.frame_length / 1000)

    @property
    def shift_samples(self) -> int:
        """Samples between windows."""
        return int(self.sample_rate * self.frame_shift / 1000)

    @property
    def centred(self) -> bool:
        """Whether frames are centred on multiples of the hop, the first on the first sample; Kaldi's are not."""
        return self.filterbank != "kaldi"

    @property
    def fft_size(self) -> int:
        """The next power of two above the window; the window itself in SpeechBrain."""
        return self.window_samples if self.filterbank == "speechbrain" else 1 << (self.window_samples - 1).bit_length()

    @property
    def upper_edge(self) -> float:
        """Upper edge of the last filter in Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    @property
    def amplitude(self) -> float:
        """What samples in [-1, 1] are multiplied with."""
        return SCALES[self.scale]

    @property
    def feature_dim(self) -> int:
        """F, values in a row of features."""
        return 1 if self.kind == "waveform" else self.num_mels

    @property
    def rows_per_shift(self) -> int:
        """Rows of features in one ``frame_shift``: 1, or as many as samples where each is a row."""
        return self.shift_samples if self.kind == "waveform" else 1

    @property
    def min_samples(self) -> int:
        """Samples in the shortest accepted input."""
        return max(self.row_samples(1), round(self.min_duration * self.sample_rate))

    def num_frames(self, samples: int) -> int:
        """Rows of features that ``samples`` samples give."""
        if self.kind == "waveform":
            return samples
        if self.centred:
            return 1 + samples // self.shift_samples if samples >= self.window_samples else 0
        if self.snip_edges:
            return max(0, 1 + (samples - self.window_samples) // self.shift_samples)
        return (samples + self.shift_samples // 2) // self.shift_samples

    def chunk_samples(self, frames: int) -> int:
        """Samples in a training chunk of ``frames`` frames, whatever the kind of front-end."""
        return frames * self.shift_samples if self.kind == "waveform" else self.row_samples(frames)

    def row_samples(self, rows: int) -> int:
        """Samples that give exactly ``rows`` rows of features (at least as many where frames are centred)."""
        if self.kind == "waveform":
            return rows
        if self.centred:
            return max((rows - 1) * self.shift_samples, self.window_samples)
        return (rows - 1) * self.shift_samples + self.window_samples

    def with_minimum(self, rows: int) -> FrontEnd:
        """The same with a minimum duration that gives a model the ``rows`` of features it needs."""
        needed = self.row_samples(rows) / self.sample_rate
        return replace(self, min_duration=max(self.min_duration, needed))


def window_function(frontend: FrontEnd) -> npt.NDArray[np.float64]:
    """The analysis window, (window_samples,), symmetric as in Kaldi's ``FeatureWindowFunction``, else periodic."""
    period = frontend.window_samples if frontend.centred else frontend.window_samples - 1
    phase = 2 * np.pi * np.arange(frontend.window_samples) / period
    if frontend.window == "hamming":
        return 0.54 - 0.46 * np.cos(phase)
    hanning = 0.5 - 0.5 * np.cos(phase)
    return hanning**0.85 if frontend.window == "povey" else hanning


def mel_filters(frontend: FrontEnd) -> npt.NDArray[np.float64]:
    """Triangular filters, equally wide on the mel scale 1127 ln(1 + f/700), (fft_size // 2 + 1, num_mels).

    Kaldi's are triangles over mel and leave the Nyquist bin out, the others' are triangles over Hz.
    """

    def mel(frequency: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return 1127.0 * np.log1p(np.asarray(frequency, dtype=np.float64) / 700.0)

    edges = np.linspace(mel(frontend.low_freq), mel(frontend.upper_edge), frontend.num_mels + 2)
    bins = (np.arange(frontend.fft_size // 2 + 1) * frontend.sample_rate / frontend.fft_size)[:, None]
    if frontend.filterbank == "kaldi":
        bins = mel(bins[:-1])
    else:
        edges = 700.0 * np.expm1(edges / 1127.0)
    below = edges[1:-1] - edges[:-2]
    above = below if frontend.filterbank == "speechbrain" else edges[2:] - edges[1:-1]
    rising = (bins - edges[:-2]) / below
    falling = 1 - (bins - edges[1:-1]) / above
    filters = np.maximum(0.0, np.minimum(rising, falling))
    return np.pad(filters, ((0, 1), (0, 0))) if frontend.filterbank == "kaldi" else filters


@functools.lru_cache(maxsize=8)
def _tables(frontend: FrontEnd) -> tuple[npt.NDArray[np.float64], Features]:
    return window_function(frontend), mel_filters(frontend).astype(np.float32)


def fbank(samples: Samples, frontend: FrontEnd) -> Features:
    """Log-mel filterbank features of one recording, without dither and before mean normalisation.

    Kaldi's, per frame: remove the mean, pre-emphasise (the first sample against itself), window, power spectrum, mel
    filters, natural logarithm. Equal to ``compute-fbank-feats --use-energy=false`` within float32 rounding.

    Args:
        samples: (samples,) float32 in [-1, 1] at ``frontend.sample_rate``.

    Returns:
        (frames, num_mels) float32.

    Raises:
        AudioError: shorter than one window.
    """
    window, filters = _tables(frontend)
    size, shift = frontend.window_samples, frontend.shift_samples
    count = frontend.num_frames(len(samples))
    if count == 0:
        raise AudioError(None, f"{len(samples)} samples are less than one window of {size}", "give longer audio")
    scaled = _extended(samples.astype(np.float64) * frontend.amplitude, count, frontend)
    frames = np.lib.stride_tricks.sliding_window_view(scaled, size)[::shift][:count]  # (frames, size), a view
    output = np.empty((count, frontend.num_mels), dtype=np.float32)
    for first in range(0, count, BLOCK_FRAMES):
        block = frames[first : first + BLOCK_FRAMES]
        if frontend.filterbank == "kaldi":
            block = block - block.mean(axis=1, keepdims=True)
            previous = np.concatenate([block[:, :1], block[:, :-1]], axis=1)
            block = block - frontend.preemphasis * previous
        spectrum = np.fft.rfft(block * window, frontend.fft_size)  # (block, fft_size // 2 + 1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        output[first : first + BLOCK_FRAMES] = _logarithm(power @ filters, frontend)
    return np.maximum(output, output.max() - RANGE_DB) if frontend.filterbank == "speechbrain" else output


def _logarithm(energies: Features, frontend: FrontEnd) -> Features:
    if frontend.filterbank == "torchaudio":
        return np.log(energies + LOG_OFFSET)
    if frontend.filterbank == "speechbrain":
        return 10 * np.log10(np.maximum(energies, POWER_FLOOR))
    return np.log(np.maximum(energies, LOG_FLOOR))


def _extended(scaled: npt.NDArray[np.float64], count: int, frontend: FrontEnd) -> npt.NDArray[np.float64]:
    """The signal that is cut into frames: with what is added at its ends, pre-emphasised where that is done at once."""
    if frontend.centred:
        previous = np.concatenate([scaled[1:2], scaled[:-1]])
        mode: Literal["reflect", "constant"] = "reflect" if frontend.filterbank == "torchaudio" else "constant"
        return np.pad(scaled - frontend.preemphasis * previous, centre_lengths(frontend), mode=mode)
    return scaled if frontend.snip_edges else _mirror(scaled, count, frontend)


def centre_lengths(frontend: FrontEnd) -> tuple[int, int]:
    """How many samples are added before and after the signal where frames are centred."""
    before = frontend.fft_size // 2 - (frontend.fft_size - frontend.window_samples) // 2
    return before, frontend.window_samples - before


def mirror_lengths(samples: int, frontend: FrontEnd) -> tuple[int, int]:
    """How many samples Kaldi mirrors before and after the signal where ``snip_edges`` is false."""
    count = frontend.num_frames(samples)
    left = (frontend.window_samples - frontend.shift_samples) // 2
    right = max(0, (count - 1) * frontend.shift_samples + frontend.window_samples - left - samples)
    return left, right


def _mirror(scaled: npt.NDArray[np.float64], count: int, frontend: FrontEnd) -> npt.NDArray[np.float64]:
    left, right = mirror_lengths(len(scaled), frontend)
    return np.pad(scaled, (left, right), mode="symmetric")


def waveform(samples: Samples, frontend: FrontEnd) -> Features:
    """Samples as features (samples, 1); with ``wave_norm`` (x - mean) / sqrt(variance + 1e-5)."""
    if not frontend.wave_norm:
        return samples[:, None]
    centred = samples.astype(np.float64) - samples.mean(dtype=np.float64)
    return (centred / np.sqrt(np.square(centred).mean() + WAVE_EPS)).astype(np.float32)[:, None]


def features(samples: Samples, frontend: FrontEnd) -> Features:
    """What the model is fed at inference, (rows, ``feature_dim``), normalised as the front-end says."""
    if frontend.kind == "waveform":
        return waveform(samples, frontend)
    output = fbank(samples, frontend)
    return output - output.mean(axis=0, dtype=np.float64).astype(np.float32) if frontend.mean_norm else output
