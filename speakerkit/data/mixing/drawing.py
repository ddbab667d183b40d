"""Mixtures drawn at random, as recipes: who is mixed, how far they overlap, how loud each is, and with what noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from speakerkit.audio import audio_info, load_audio
from speakerkit.config import require
from speakerkit.data.lists import Utterance
from speakerkit.data.mixing.recipes import Piece, Recipe
from speakerkit.data.parallel import map_threads
from speakerkit.data.sampling import ShuffledOrder
from speakerkit.errors import AudioError, DataError, MissingExtraError

PEAK = 0.9  # LibriMix's: a mixture above it is made quieter as a whole
RATE = 16000  # Hz, at which loudness and peaks are measured
SHORTEST_NOISE = 1.0  # seconds; one that is too short for its mixture is repeated


@dataclass(frozen=True)
class DrawSettings:
    """What drawn mixtures are like. Pairs of numbers are (low, high), drawn from uniformly.

    Attributes:
        speakers: (fewest, most) in a mixture.
        overlap: share of the shorter of two utterances that follow each other that lies in both. At 1 all begin at 0,
            as in LibriMix.
        loudness: LUFS of the first utterance.
        sir: dB, of the first utterance's loudness over that of each other.
        snr: dB, of the first utterance's loudness over the noise's.
        absent_share: of the mixtures, those in which somebody is looked for who is not in them, beside those who are.

    Raises:
        ConfigError: values out of range.
    """

    speakers: tuple[int, int] = (2, 2)
    overlap: tuple[float, float] = (1.0, 1.0)
    loudness: tuple[float, float] = (-33.0, -25.0)
    sir: tuple[float, float] = (-5.0, 5.0)
    snr: tuple[float, float] = (0.0, 10.0)
    absent_share: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.speakers[0] <= self.speakers[1], "speakers", self.speakers, "give the fewest and the most")
        for name in ("overlap", "loudness", "sir", "snr"):
            low, high = getattr(self, name)
            require(low <= high, name, (low, high), "give the lower end first")
        require(0 <= self.absent_share <= 1, "absent_share", self.absent_share, "it is from 0 to 1")
        low, high = self.overlap
        require(low >= 0 and high <= 1, "overlap", self.overlap, "it is from 0 to 1")


@dataclass(frozen=True)
class _Draw:
    """What of a mixture is decided before any sound is read."""

    key: str
    cast: tuple[Utterance, ...]
    enrolments: tuple[str, ...]
    overlaps: tuple[float, ...]
    levels: tuple[float, ...]
    noise: str | None
    noise_level: float
    absent: tuple[str, str] | None


def draw_recipes(
    utterances: Sequence[Utterance],
    settings: DrawSettings,
    count: int,
    seed: int,
    noises: Sequence[str] = (),
    workers: int = 1,
) -> list[Recipe]:
    """``count`` mixtures of whole utterances; each of the list is the first of one, as long as there are enough.

    Every speaker is enrolled with another of their utterances. Gains are such that loudness (BS.1770) is as drawn, and
    that mixture, sources and noise stay within 0.9.

    Args:
        noises: paths; none for clean mixtures only.

    Raises:
        DataError: too few speakers with two utterances, recordings that cannot be used (counted), no noise of a second.
        MissingExtraError: without pyloudnorm.
    """
    _meter(RATE)
    draws = _draws(utterances, settings, count, seed, _long_enough(noises))
    found = list(map_threads(_recipe_or_error, draws, workers=workers, description="loudness", unit="mix", block=1))
    faults = {str(each) for each in found if isinstance(each, AudioError)}
    if faults:
        raise DataError(None, f"{len(faults)} recordings cannot be mixed, one of them {min(faults)}", "leave them out")
    return [each for each in found if isinstance(each, Recipe)]


def split_speakers(utterances: Sequence[Utterance], shares: Sequence[float], seed: int) -> list[list[Utterance]]:
    """Utterances in parts that have no speaker in common, of ``shares`` of the speakers.

    Raises:
        ConfigError: shares that are not positive, or sum up to more than 1.
        DataError: a part without speakers.
    """
    require(all(each > 0 for each in shares) and sum(shares) < 1 + 1e-9, "shares", shares, "they sum up to 1 at most")
    speakers = sorted({utterance.speaker for utterance in utterances})
    shuffled = np.random.default_rng(seed).permutation(speakers).tolist()
    edges = np.round(np.cumsum([0.0, *shares]) * len(speakers)).astype(int)
    parts = []
    for first, last in pairwise(edges):
        own = set(shuffled[first:last])
        if not own:
            raise DataError(None, f"{len(speakers)} speakers are too few for parts of {shares}", "ask for fewer parts")
        parts.append([utterance for utterance in utterances if utterance.speaker in own])
    return parts


def _draws(
    utterances: Sequence[Utterance], settings: DrawSettings, count: int, seed: int, noises: Sequence[str]
) -> list[_Draw]:
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda each: each.key):
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    by_speaker = {speaker: group for speaker, group in by_speaker.items() if len(group) > 1}
    wanted = settings.speakers[1] + (settings.absent_share > 0)
    if len(by_speaker) < wanted:
        fault = f"{len(by_speaker)} speakers with two utterances are fewer than the {wanted} that a mixture takes"
        raise DataError(None, fault, "give more, or ask for fewer")
    listed = [utterance for group in by_speaker.values() for utterance in group]
    order = ShuffledOrder([list(range(len(listed)))], seed)
    return [
        _draw(by_speaker, listed[order.item(index)], settings, noises, index, np.random.default_rng([seed, index]))
        for index in range(count)
    ]


def _draw(
    by_speaker: dict[str, list[Utterance]],
    first: Utterance,
    settings: DrawSettings,
    noises: Sequence[str],
    index: int,
    rng: np.random.Generator,
) -> _Draw:
    count = int(rng.integers(settings.speakers[0], settings.speakers[1] + 1))
    others = [speaker for speaker in by_speaker if speaker != first.speaker]
    cast = [first]
    for number in rng.choice(len(others), count - 1, replace=False):
        group = by_speaker[others[number]]
        cast.append(group[rng.integers(len(group))])
    enrolments = []
    for utterance in cast:
        rest = [each for each in by_speaker[utterance.speaker] if each.key != utterance.key]
        enrolments.append(rest[rng.integers(len(rest))].wav)
    level = rng.uniform(*settings.loudness)
    draw = _Draw(
        key=f"mix{index:06d}",
        cast=tuple(cast),
        enrolments=tuple(enrolments),
        overlaps=tuple(rng.uniform(*settings.overlap) for _ in cast[1:]),
        levels=(level, *(level - rng.uniform(*settings.sir) for _ in cast[1:])),
        noise=noises[int(rng.integers(len(noises)))] if noises else None,
        noise_level=level - rng.uniform(*settings.snr),
        absent=None,
    )
    if rng.random() >= settings.absent_share:
        return draw
    speakers = {utterance.speaker for utterance in cast}
    free = [speaker for speaker in by_speaker if speaker not in speakers]
    speaker = free[rng.integers(len(free))]
    return replace(draw, absent=(speaker, by_speaker[speaker][rng.integers(len(by_speaker[speaker]))].wav))


def _recipe_or_error(draw: _Draw) -> Recipe | AudioError:
    try:
        return _recipe(draw)
    except AudioError as error:
        return error


def _recipe(draw: _Draw) -> Recipe:
    voices = [load_audio(utterance.wav, RATE).samples for utterance in draw.cast]
    gains = [
        10 ** ((level - loudness(samples, RATE, utterance.wav)) / 20)
        for samples, level, utterance in zip(voices, draw.levels, draw.cast, strict=True)
    ]
    starts = _starts([len(samples) / RATE for samples in voices], draw.overlaps)
    size = max(round(start * RATE) + len(samples) for start, samples in zip(starts, voices, strict=True))
    parts = [
        np.pad(gain * samples, (round(start * RATE), 0))
        for gain, samples, start in zip(gains, voices, starts, strict=True)
    ]
    noise = None
    if draw.noise is not None:
        heard = load_audio(draw.noise, RATE, channel=0, duration=size / RATE).samples
        gain = 10 ** ((draw.noise_level - loudness(heard, RATE, draw.noise)) / 20)
        noise = Piece(draw.noise, gain=gain)
        parts.append(np.resize(heard, size) * gain)
    total = sum(np.pad(part, (0, size - len(part))) for part in parts)
    peak = max(float(np.abs(each).max()) for each in (*parts, np.asarray(total)))
    scale = min(1.0, PEAK / peak)
    return Recipe(
        draw.key,
        tuple(
            (Piece(utterance.wav, gain=gain * scale, start=start),)
            for utterance, gain, start in zip(draw.cast, gains, starts, strict=True)
        ),
        tuple(utterance.speaker for utterance in draw.cast),
        tuple(utterance.key for utterance in draw.cast),
        None if noise is None else replace(noise, gain=(noise.gain or 0.0) * scale),
        enrolments=draw.enrolments,
        absent=draw.absent,
    )


def _starts(lengths: Sequence[float], overlaps: Sequence[float]) -> list[float]:
    """Second at which each begins: its share of the shorter of the two before the one before it ends."""
    starts, end = [0.0], lengths[0]
    for before, length, share in zip(lengths[:-1], lengths[1:], overlaps, strict=True):
        starts.append(0.0 if share == 1 else round(max(0.0, end - share * min(before, length)), 3))
        end = max(end, starts[-1] + length)
    return starts


def loudness(samples: npt.NDArray[Any], rate: int, name: str, block: float = 0.4) -> float:
    """LUFS of (samples,) by BS.1770.

    Raises:
        AudioError: less than a block of ``block`` seconds, or silence, which has no loudness.
        MissingExtraError: without pyloudnorm.
    """
    meter = _meter(rate, block)
    try:
        value = float(meter.integrated_loudness(samples))
    except ValueError:
        raise AudioError(name, f"is {len(samples) / rate:.2f} s long, without loudness", "leave it out") from None
    if not np.isfinite(value):
        raise AudioError(name, "is silent, without loudness", "leave it out")
    return value


def _meter(rate: int, block: float = 0.4) -> Any:
    try:
        import pyloudnorm
    except ImportError:
        raise MissingExtraError("loudness by BS.1770", "eval") from None
    return pyloudnorm.Meter(rate, block_size=block)


def _long_enough(noises: Sequence[str]) -> list[str]:
    kept = [path for path in sorted(noises) if audio_info(path).seconds >= SHORTEST_NOISE]
    if noises and not kept:
        raise DataError(None, f"none of {len(noises)} noises lasts {SHORTEST_NOISE:g} s", "give longer ones")
    return kept
