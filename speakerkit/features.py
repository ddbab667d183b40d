"""The front-end: Kaldi-compatible log-mel filterbank in numpy, and the fields that travel with every model."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.audio import MAX_RATE, MIN_RATE, Samples
from speakerkit.errors import AudioError, ConfigError

Features = npt.NDArray[np.float32]

WINDOWS = ("hamming", "povey", "hanning")
SCALES = {"int16": 32768.0, "unit": 1.0}
LOG_FLOOR = float(np.finfo(np.float32).eps)  # Kaldi's floor under the logarithm
BLOCK_FRAMES = 1024  # rfft blocks of this many frames stay in the cache


@dataclass(frozen=True)
class FrontEnd:
    """Everything that decides what a model hears; stored in its bundle and read by training, torch and ONNX alike.

    Attributes:
        sample_rate: Hz.
        num_mels: mel filters, the feature dimension F.
        frame_length: window in ms.
        frame_shift: hop in ms.
        window: "hamming" (WeSpeaker), "povey" (Kaldi) or "hanning".
        scale: "int16" multiplies samples by 32768 before the filterbank (Kaldi, WeSpeaker), "unit" leaves [-1, 1].
        low_freq: lower edge of the first filter in Hz.
        high_freq: upper edge of the last filter in Hz; 0 or negative counts from the Nyquist frequency.
        preemphasis: coefficient of Kaldi's pre-emphasis.
        dither: standard deviation of noise added to each frame **in training only**, in units of ``scale``.
        snip_edges: only whole windows (Kaldi's default); otherwise the signal is mirrored at both ends.
        mean_norm: subtract the mean over time of each utterance or chunk (CMN).
        min_duration: shortest input in seconds that the model accepts.
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

    def __post_init__(self) -> None:
        if self.window not in WINDOWS:
            raise ConfigError("frontend.window", f"{self.window!r} is not known", f"choose from {', '.join(WINDOWS)}")
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
    def fft_size(self) -> int:
        """The next power of two above the window, as in Kaldi."""
        return 1 << (self.window_samples - 1).bit_length()

    @property
    def upper_edge(self) -> float:
        """Upper edge of the last filter in Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    @property
    def amplitude(self) -> float:
        """What samples in [-1, 1] are multiplied with."""
        return SCALES[self.scale]

    @property
    def min_samples(self) -> int:
        """Samples in the shortest accepted input."""
        return max(self.window_samples, round(self.min_duration * self.sample_rate))

    def num_frames(self, samples: int) -> int:
        """Frames that ``samples`` samples give."""
        if self.snip_edges:
            return max(0, 1 + (samples - self.window_samples) // self.shift_samples)
        return (samples + self.shift_samples // 2) // self.shift_samples

    def chunk_samples(self, frames: int) -> int:
        """Samples that give exactly ``frames`` frames."""
        return (frames - 1) * self.shift_samples + self.window_samples


def window_function(frontend: FrontEnd) -> npt.NDArray[np.float64]:
    """The analysis window, (window_samples,), symmetric as in Kaldi's ``FeatureWindowFunction``."""
    phase = 2 * np.pi * np.arange(frontend.window_samples) / (frontend.window_samples - 1)
    if frontend.window == "hamming":
        return 0.54 - 0.46 * np.cos(phase)
    hanning = 0.5 - 0.5 * np.cos(phase)
    return hanning**0.85 if frontend.window == "povey" else hanning


def mel_filters(frontend: FrontEnd) -> npt.NDArray[np.float64]:
    """Triangular filters on Kaldi's mel scale 1127 ln(1 + f/700), (fft_size // 2 + 1, num_mels)."""

    def mel(frequency: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return 1127.0 * np.log1p(np.asarray(frequency, dtype=np.float64) / 700.0)

    edges = np.linspace(mel(frontend.low_freq), mel(frontend.upper_edge), frontend.num_mels + 2)
    bins = mel(np.arange(frontend.fft_size // 2) * frontend.sample_rate / frontend.fft_size)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    return np.pad(filters, ((0, 1), (0, 0)))  # Kaldi leaves the Nyquist bin out


@functools.lru_cache(maxsize=8)
def _tables(frontend: FrontEnd) -> tuple[npt.NDArray[np.float64], Features]:
    return window_function(frontend), mel_filters(frontend).astype(np.float32)


def fbank(samples: Samples, frontend: FrontEnd) -> Features:
    """Log-mel filterbank features of one recording, without dither and before mean normalisation.

    Per frame: remove the mean, pre-emphasise (the first sample against itself), window, power spectrum, mel filters,
    natural logarithm. Equal to Kaldi's ``compute-fbank-feats --use-energy=false`` within float32 rounding.

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
    scaled = samples.astype(np.float64) * frontend.amplitude
    if not frontend.snip_edges:
        scaled = _mirror(scaled, count, frontend)
    frames = np.lib.stride_tricks.sliding_window_view(scaled, size)[::shift][:count]  # (frames, size), a view
    output = np.empty((count, frontend.num_mels), dtype=np.float32)
    for first in range(0, count, BLOCK_FRAMES):
        block = frames[first : first + BLOCK_FRAMES]
        block = block - block.mean(axis=1, keepdims=True)
        previous = np.concatenate([block[:, :1], block[:, :-1]], axis=1)
        block = (block - frontend.preemphasis * previous) * window
        spectrum = np.fft.rfft(block, frontend.fft_size)  # (block, fft_size // 2 + 1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        output[first : first + BLOCK_FRAMES] = np.log(np.maximum(power @ filters, LOG_FLOOR))
    return output


def mirror_lengths(samples: int, frontend: FrontEnd) -> tuple[int, int]:
    """How many samples Kaldi mirrors before and after the signal where ``snip_edges`` is false."""
    count = frontend.num_frames(samples)
    left = (frontend.window_samples - frontend.shift_samples) // 2
    right = max(0, (count - 1) * frontend.shift_samples + frontend.window_samples - left - samples)
    return left, right


def _mirror(scaled: npt.NDArray[np.float64], count: int, frontend: FrontEnd) -> npt.NDArray[np.float64]:
    left, right = mirror_lengths(len(scaled), frontend)
    return np.pad(scaled, (left, right), mode="symmetric")


def features(samples: Samples, frontend: FrontEnd) -> Features:
    """What the model is fed at inference: :func:`fbank`, mean-normalised over time where the front-end says so."""
    output = fbank(samples, frontend)
    return output - output.mean(axis=0, dtype=np.float64).astype(np.float32) if frontend.mean_norm else output
