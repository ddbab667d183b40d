"""Augmentations of a waveform: small seeded functions, chosen and chained in YAML.

Every augmentation is a frozen dataclass of its parameters, called as ``(samples, rate, rng)``: samples (n,) float32,
the rate in Hz, and a seeded generator, its only source of chance. It returns (n,) finite float32.
"""

from __future__ import annotations

import dataclasses
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import butter, fftconvolve, sosfiltfilt

from speakerkit.audio import Samples, resample
from speakerkit.config import parse
from speakerkit.data.stores import UNTYPED, AudioStore, FileStore
from speakerkit.errors import ConfigError
from speakerkit.registry import Registry, suggest

Range = tuple[float, float]  # drawn from uniformly

NO_STORE: AudioStore = FileStore("no store", {})
TELEPHONE_RATE = 8_000  # Hz
TELEPHONE_BAND = (300.0, 3_400.0)  # Hz
# Ranges of WeSpeaker's recipes for MUSAN, dB.
SNR_BY_KIND: Mapping[str, Range] = {"noise": (0, 15), "music": (5, 15), "speech": (10, 30), UNTYPED: (0, 15)}

SMALLEST = float(np.finfo(np.float32).tiny)  # below it, samples are digital silence
WRITE_BLOCK = 8192  # samples; libvorbis puts a whole block on its stack
CODEC_PEAK = 0.9  # codecs clip at 1 and are deaf to very quiet speech: they hear every recording at this peak
_CODECS: Mapping[str, tuple[str, str, tuple[int, ...]]] = {  # container, subtype, rates in Hz if not any
    "mp3": ("MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    "vorbis": ("OGG", "VORBIS", ()),
    "opus": ("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
    "mulaw": ("WAV", "ULAW", ()),
    "alaw": ("WAV", "ALAW", ()),
}


@dataclass(frozen=True)
class Augmentation(ABC):
    """Parameters of one augmentation. Pairs of numbers are (low, high).

    Raises:
        ConfigError: a pair that is not in order or not finite.
    """

    needs: ClassVar[str] = ""  # configuration key of the store that it reads

    def __post_init__(self) -> None:
        for parameter in dataclasses.fields(self):
            value = getattr(self, parameter.name)
            for item in value.values() if isinstance(value, Mapping) else [value]:
                numbers = item if isinstance(item, tuple) else (item,)
                numbers = tuple(number for number in numbers if isinstance(number, (int, float)))
                if list(numbers) != sorted(numbers) or not all(map(math.isfinite, numbers)):
                    raise ConfigError(f"{type(self).__name__}.{parameter.name}", f"is {item}", "give [low, high]")

    @abstractmethod
    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        """(n,) at ``rate`` Hz to (n,)."""


AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation")


@dataclass(frozen=True)
class FromStore(Augmentation):
    """An augmentation that reads recordings of a store."""

    store: AudioStore = field(default=NO_STORE, repr=False)

    @cached_property
    def by_kind(self) -> dict[str, list[str]]:
        """Kind to the keys of the store's recordings of that kind."""
        keys: dict[str, list[str]] = {}
        for key in self.store:
            keys.setdefault(self.store.kind(key), []).append(key)
        return keys

    def kinds_read(self) -> Sequence[str]:
        """Kinds that it draws from; empty for all."""
        return ()

    @cached_property
    def recordings(self) -> list[str]:
        """Keys that it draws from."""
        kinds = self.kinds_read()
        return sorted(key for kind in kinds for key in self.by_kind[kind]) if kinds else self.store.keys()

    def check_kinds(self) -> None:
        """Raise ConfigError where the store has no recording of a kind that the parameters name."""
        _check_known("kind", self.kinds_read(), self.by_kind, self.store.name)


@AUGMENTATIONS.register("noise")
@dataclass(frozen=True)
class Noise(FromStore):
    """Add a recording of the noise store at a signal-to-noise ratio drawn for its kind.

    Args:
        snr: kind of noise to (low, high) in dB; kinds left out keep their ranges, unknown ones take that of "other".
        kinds: the kinds to draw from; empty for all.
    """

    needs: ClassVar[str] = "noise_store"

    snr: dict[str, Range] = field(default_factory=lambda: dict(SNR_BY_KIND))
    kinds: tuple[str, ...] = ()

    def kinds_read(self) -> Sequence[str]:
        return self.kinds

    def check_kinds(self) -> None:
        super().check_kinds()
        _check_known("snr of", self.snr, {*self.by_kind, *SNR_BY_KIND}, self.store.name)

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        key = self.recordings[rng.integers(len(self.recordings))]
        ranges = {**SNR_BY_KIND, **self.snr}
        snr = rng.uniform(*ranges.get(self.store.kind(key), ranges[UNTYPED]))
        return add_at_snr(samples, read_section(self.store, key, len(samples), rate, rng), snr)


@AUGMENTATIONS.register("babble")
@dataclass(frozen=True)
class Babble(FromStore):
    """Add several speech recordings of the noise store at once, equally loud.

    Args:
        talkers: (fewest, most) recordings.
        snr: (low, high) in dB, of the speech to all talkers together.
        kind: of the recordings that are speech.
    """

    needs: ClassVar[str] = "noise_store"

    talkers: tuple[int, int] = (3, 7)
    snr: Range = (13, 20)
    kind: str = "speech"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.talkers[0] < 1:
            raise ConfigError("Babble.talkers", f"is {list(self.talkers)}", "one talker is the least")

    def kinds_read(self) -> Sequence[str]:
        return (self.kind,)

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        keys = self.recordings
        count = int(rng.integers(self.talkers[0], self.talkers[1] + 1))
        babble = np.zeros(len(samples))
        for index in rng.choice(len(keys), count, replace=count > len(keys)):
            talker = read_section(self.store, keys[index], len(samples), rate, rng)
            power = _power(talker)
            babble += talker / math.sqrt(power) if power else 0.0
        return add_at_snr(samples, babble, rng.uniform(*self.snr))


@AUGMENTATIONS.register("reverb")
@dataclass(frozen=True)
class Reverb(FromStore):
    """Convolve with a room response of the RIR store, neither delayed nor louder.

    The response's greatest tap, the direct path, stands at time zero, and the energy stays that of the input.
    """

    needs: ClassVar[str] = "rir_store"

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        return reverberate(samples, self.store.read(self.recordings[rng.integers(len(self.recordings))], rate))


@AUGMENTATIONS.register("codec")
@dataclass(frozen=True)
class Codec(Augmentation):
    """Encode and decode with a lossy codec, in time with the input and at its level.

    Args:
        codecs: to draw from: mp3, vorbis, opus, mulaw, alaw. Opus costs four times what mp3 does.
        compression: (low, high) of 0 (best) to 1 (smallest), for mp3, vorbis and opus.
        narrow_band: share of the calls that go through the codec at 8 kHz.
    """

    codecs: tuple[Literal["mp3", "vorbis", "opus", "mulaw", "alaw"], ...] = ("mp3", "vorbis")
    compression: Range = (0.5, 0.99)
    narrow_band: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.codecs:
            raise ConfigError("Codec.codecs", "is empty", f"name some of {', '.join(_CODECS)}")
        _check_shares("Codec", compression=self.compression, narrow_band=(self.narrow_band,))

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        name = self.codecs[rng.integers(len(self.codecs))]
        level = rng.uniform(*self.compression)
        narrow = rng.random() < self.narrow_band
        peak = float(np.max(np.abs(samples), initial=0.0))
        if peak < SMALLEST:
            return samples
        _, _, rates = _CODECS[name]
        target = min(rate, TELEPHONE_RATE) if narrow else rate
        if rates:
            target = min((each for each in rates if each >= target), default=max(rates))
        scaled = samples * np.float32(CODEC_PEAK / peak)
        decoded = _at_rate(scaled, rate, target, lambda part: _through_codec(part, target, name, level))
        return decoded * np.float32(peak / CODEC_PEAK)


@AUGMENTATIONS.register("band_limit")
@dataclass(frozen=True)
class BandLimit(Augmentation):
    """Keep a telephone's band, 300 to 3400 Hz, or what 8 kHz sampling leaves, without a delay.

    Args:
        bands: to draw from: telephone, low_pass.
    """

    bands: tuple[Literal["telephone", "low_pass"], ...] = ("telephone", "low_pass")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bands:
            raise ConfigError("BandLimit.bands", "is empty", "name telephone, low_pass or both")

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        target = min(rate, TELEPHONE_RATE)
        if self.bands[rng.integers(len(self.bands))] == "low_pass":
            return _at_rate(samples, rate, target, lambda part: part)
        return _at_rate(samples, rate, target, lambda part: _telephone(part, target))


@AUGMENTATIONS.register("gain")
@dataclass(frozen=True)
class Gain(Augmentation):
    """Make the whole recording louder or quieter.

    Args:
        db: (low, high) in dB.
    """

    db: Range = (-15, 6)

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        return samples * np.float32(10 ** (rng.uniform(*self.db) / 20))


@AUGMENTATIONS.register("clip")
@dataclass(frozen=True)
class Clip(Augmentation):
    """Clip the loudest samples, as an overdriven microphone does.

    Args:
        share: (low, high) of the samples that lie above the threshold.
        modes: to draw from: hard (cut off at the threshold), soft (tanh that tends to it).
    """

    share: Range = (0.001, 0.05)
    modes: tuple[Literal["hard", "soft"], ...] = ("hard", "soft")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.modes:
            raise ConfigError("Clip.modes", "is empty", "name hard, soft or both")
        _check_shares("Clip", share=self.share)

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        mode = self.modes[rng.integers(len(self.modes))]
        share = rng.uniform(*self.share)
        threshold = np.float32(np.quantile(np.abs(samples), 1.0 - share)) if len(samples) else np.float32(0)
        if threshold < SMALLEST:
            return samples
        return np.clip(samples, -threshold, threshold) if mode == "hard" else threshold * np.tanh(samples / threshold)


@dataclass(frozen=True)
class Chain:
    """Augmentations one after the other, each with its probability; the peak is lowered to 1 only if it is above.

    Attributes:
        steps: (probability, augmentation) in their order.
    """

    steps: tuple[tuple[float, Augmentation], ...] = ()

    def __call__(self, samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
        """(n,) at ``rate`` Hz to (n,); the input is left as it is."""
        for probability, augmentation in self.steps:
            if rng.random() < probability and len(samples):
                samples = augmentation(samples, rate, rng)
        peak = float(np.max(np.abs(samples), initial=0.0))
        return samples / np.float32(peak) if peak > 1.0 else samples


def build_chain(
    config: Sequence[Mapping[str, Any]], *, noise_store: AudioStore | None = None, rir_store: AudioStore | None = None
) -> Chain:
    """A chain from a list of ``{name: noise, prob: 0.6, <parameters>}``; ``prob`` is 1 where it is not given.

    Raises:
        ConfigError: an unknown augmentation or parameter (with the nearest name), a value of the wrong kind, or a
            store that is needed and not set.
    """
    stores = {"noise_store": noise_store, "rir_store": rir_store}
    return Chain(tuple(_step(step, stores, f"augment[{index}]") for index, step in enumerate(config)))


def _step(step: Any, stores: Mapping[str, AudioStore | None], where: str) -> tuple[float, Augmentation]:
    if not isinstance(step, Mapping) or not isinstance(step.get("name"), str):
        raise ConfigError(where, f"is {step!r}", "write {name: noise, prob: 0.6}")
    parameters = {key: value for key, value in step.items() if key not in ("name", "prob")}
    kind = AUGMENTATIONS[step["name"]]
    where = f"{where} ({step['name']})"
    if "store" in parameters:
        raise ConfigError(f"{where}.store", "is an unknown key", f"stores are set by {' and '.join(stores)}")
    probability = step.get("prob", 1.0)
    if isinstance(probability, bool) or not isinstance(probability, (int, float)) or not 0.0 <= probability <= 1.0:
        raise ConfigError(f"{where}.prob", f"is {probability!r}", "give a probability from 0 to 1")
    augmentation = parse(kind, parameters, where)
    if isinstance(augmentation, FromStore):
        store = stores[kind.needs]
        if store is None or not len(store):
            raise ConfigError(where, f"needs recordings and {kind.needs} is not set", f"set {kind.needs} to a folder")
        augmentation = dataclasses.replace(augmentation, store=store)
        augmentation.check_kinds()
    return float(probability), augmentation


@dataclass(frozen=True)
class AugmentationInfo:
    """What can be written in a configuration.

    Attributes:
        name: of the augmentation.
        doc: one line.
        needs: configuration key of the store that it reads, or "".
        parameters: name to (type, default).
    """

    name: str
    doc: str
    needs: str
    parameters: dict[str, tuple[str, Any]]


def list_augmentations() -> list[AugmentationInfo]:
    """All augmentations with their parameters, sorted by name."""
    return [_describe(name, AUGMENTATIONS[name]) for name in AUGMENTATIONS]


def _describe(name: str, kind: type[Augmentation]) -> AugmentationInfo:
    defaults = kind()
    parameters = {
        parameter.name: (str(parameter.type), getattr(defaults, parameter.name))
        for parameter in dataclasses.fields(kind)
        if parameter.name != "store"
    }
    return AugmentationInfo(name, (kind.__doc__ or "").strip().splitlines()[0], kind.needs, parameters)


def speed_perturb(samples: Samples, rate: int, factor: float) -> Samples:
    """Play (n,) ``factor`` times as fast, (about n / factor,): pitch and tempo change together.

    Raises:
        ConfigError: a factor that is not above 0.
    """
    if not factor > 0 or not math.isfinite(factor):
        raise ConfigError("speed_perturb", f"has the factor {factor}", "factors are above 0, as 0.9 and 1.1")
    return samples if factor == 1.0 else resample(samples, factor * rate, rate)


def add_at_snr(samples: Samples, noise: npt.NDArray[np.floating[Any]], snr: float) -> Samples:
    """(n,) plus ``noise`` (m,), tiled or cut to n, ``snr`` dB below it in mean power over these n samples.

    No floor is put under either power, so quiet speech gets the same ratio; where one of them is digital silence there
    is no ratio, and the samples come back unchanged.
    """
    noise = np.resize(noise, len(samples)).astype(np.float64)
    wanted, given = _power(samples), _power(noise)
    if not wanted or not given:
        return samples
    return (samples + noise * (math.sqrt(wanted / given) * 10 ** (-snr / 20))).astype(np.float32)


def reverberate(samples: Samples, response: Samples) -> Samples:
    """(n,) through a room response (m,), neither delayed nor louder: see :class:`Reverb`."""
    direct = int(np.argmax(np.abs(response)))
    wet = fftconvolve(samples, response[: direct + len(samples)])[direct : direct + len(samples)]
    before, after = _power(samples), _power(wet)
    if not before or not after:
        return samples
    return (wet * math.sqrt(before / after)).astype(np.float32)


def read_section(store: AudioStore, key: str, count: int, rate: int, rng: np.random.Generator) -> Samples:
    """A random section of a recording, (count,); a short one is repeated, from a random point on."""
    section = store.read(key, rate, rng, duration=count / rate)
    if len(section) < count:
        section = np.roll(section, -int(rng.integers(len(section))))
    return np.resize(section, count)


def _power(samples: npt.NDArray[np.floating[Any]]) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0


def _check_known(what: str, names: Iterable[str], known: Collection[str], store: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} {name!r}", f"is not among the recordings of {store}", suggest(name, list(known)))


def _check_shares(name: str, **shares: tuple[float, ...]) -> None:
    for parameter, values in shares.items():
        if not all(0.0 <= value <= 1.0 for value in values):
            raise ConfigError(f"{name}.{parameter}", f"is {list(values)}", "give shares from 0 to 1")


def _at_rate(samples: Samples, rate: int, target: int, apply: Callable[[Samples], Samples]) -> Samples:
    """(n,) through ``apply`` at another rate and back to (n,)."""
    if rate == target:
        return _fitted(apply(samples), len(samples))
    padded = np.pad(samples, (0, math.ceil(rate / target)))  # one sample must not vanish on the way
    return _fitted(resample(apply(resample(padded, rate, target)), target, rate), len(samples))


def _fitted(samples: Samples, count: int) -> Samples:
    return np.pad(samples[:count], (0, max(0, count - len(samples)))).astype(np.float32, copy=False)


def _through_codec(samples: Samples, rate: int, name: str, level: float) -> Samples:
    """Encode and decode in memory; libsndfile takes the codecs' delays and paddings out again."""
    container, subtype, _ = _CODECS[name]
    options = {} if container == "WAV" else {"compression_level": level}
    encoded = io.BytesIO()
    with soundfile.SoundFile(encoded, "w", rate, 1, subtype, format=container, **options) as sound:
        for first in range(0, len(samples), WRITE_BLOCK):
            sound.write(samples[first : first + WRITE_BLOCK])
    encoded.seek(0)
    return soundfile.read(encoded, dtype="float32")[0]


def _telephone(samples: Samples, rate: int) -> Samples:
    return sosfiltfilt(_telephone_filter(rate), samples, padtype=None).astype(np.float32)


@lru_cache
def _telephone_filter(rate: int) -> npt.NDArray[np.float64]:
    low, high = TELEPHONE_BAND
    if high >= 0.49 * rate:
        return butter(4, low, "highpass", fs=rate, output="sos")
    return butter(4, (low, high), "bandpass", fs=rate, output="sos")
