"""Quality measures of recordings, for calibration that knows how far a score can be trusted (QMF)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speakerkit.data.lists import read_lines
from speakerkit.errors import ConfigError, DataError
from speakerkit.files import write_lines
from speakerkit.verification.trials import Trials

logger = logging.getLogger("speakerkit")

Floats = npt.NDArray[np.float64]
Measure = Mapping[str, float] | Callable[[Sequence[str]], npt.ArrayLike]
Pair = tuple[str, str]

CONDITIONS = ("short-short", "short-long", "long-long")
SNR_WINDOW, SNR_SHIFT = 0.025, 0.010  # seconds
SNR_RANGE = (-10.0, 60.0)  # dB
ACTIVE = 2.0  # frames of this power over the noise count as speech
ROUNDS = 15  # of two draws a wanted trial, before what was found must do


@dataclass(frozen=True, eq=False)
class Quality:
    """Measures of recordings, found by key.

    Attributes:
        keys: utterance ids, unique.
        names: of the measures.
        values: (utterances, measures), all finite.
        source: file that they come from; error messages name it.

    Raises:
        DataError: values of another shape or not finite, or a key that comes twice.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    values: Floats
    source: str = "quality measures"

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.keys), len(self.names)) or not self.values.size:
            fault = f"holds values of shape {self.values.shape} for {len(self.keys)} keys, {len(self.names)} measures"
            raise DataError(self.source, fault, "give (keys, measures), one or more of each")
        if len(set(self.keys)) != len(self.keys):
            raise DataError(self.source, "holds a key twice", "keys must be unique")
        bad = ~np.isfinite(self.values)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DataError(self.source, f"{self.names[column]} of {self.keys[row]!r} is not finite", "measure again")

    def of(self, keys: Sequence[str]) -> Floats:
        """Measures (keys, measures).

        Raises:
            DataError: a key was not measured.
        """
        rows = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in rows]
        if missing:
            fault = f"has no measures of {missing[0]!r} ({len(missing)} of {len(keys)} keys are missing)"
            raise DataError(self.source, fault, "measure all recordings of the trials")
        return self.values[[rows[key] for key in keys]]


def measure(keys: Sequence[str], measures: Mapping[str, Measure]) -> Quality:
    """Collect measures of recordings.

    Args:
        keys: utterance ids.
        measures: by name, either values by key or a function that gives (keys,) of them, such as the mean score
            of each recording with a cohort.

    Raises:
        DataError: a key without value, or as :class:`Quality`.
    """
    columns: list[npt.ArrayLike] = []
    for name, values in measures.items():
        if isinstance(values, Mapping):
            missing = [key for key in keys if key not in values]
            if missing:
                raise DataError(name, f"is not known of {missing[0]!r} ({len(missing)} of {len(keys)})", "measure all")
            columns.append([values[key] for key in keys])
        else:
            columns.append(values(keys))
    table = np.array(columns, dtype=np.float64).T.reshape(len(keys), len(columns))
    return Quality(tuple(keys), tuple(measures), table)


def log_of(values: Mapping[str, float], name: str = "durations") -> dict[str, float]:
    """Natural logarithm of positive values by key: of durations in seconds, of lengths of embeddings.

    Raises:
        DataError: a value that is not positive.
    """
    bad = [key for key, value in values.items() if not 0 < value < math.inf]
    if bad:
        raise DataError(name, f"{bad[0]!r} has {values[bad[0]]!r} ({len(bad)} of {len(values)})", "must be positive")
    return {key: math.log(value) for key, value in values.items()}


def estimate_snr(samples: npt.ArrayLike, rate: int) -> float:
    """Signal-to-noise ratio in dB, in [-10, 60], from the levels of frames.

    Noise is the mean power of the quietest tenth of the 25 ms frames; speech that of the frames 3 dB above it or more,
    less the noise. It takes noise that is steady and speech that pauses: without pauses the quietest speech is
    taken for noise.

    Args:
        samples: (samples,)
        rate: in Hz.

    Raises:
        DataError: fewer samples than a frame, or samples that are not finite.
    """
    signal = np.asarray(samples, dtype=np.float64)
    width, shift = round(SNR_WINDOW * rate), round(SNR_SHIFT * rate)
    if signal.ndim != 1 or len(signal) < width or not np.isfinite(signal).all():
        fault = f"cannot be told of samples of shape {signal.shape}"
        raise DataError("SNR", fault, f"give {width} finite samples or more")
    total = np.concatenate([[0.0], np.cumsum(signal**2)])
    starts = np.arange(0, len(signal) - width + 1, shift)
    powers = np.maximum(total[starts + width] - total[starts], 0) / width  # (frames,)
    noise = float(np.sort(powers)[: max(1, len(powers) // 10)].mean())
    active = powers[powers >= ACTIVE * noise]
    speech = float(active.mean()) - noise if len(active) else 0.0
    low, high = SNR_RANGE
    if speech <= 0:
        return low
    return float(np.clip(10 * np.log10(speech / noise), low, high)) if noise > 0 else high


def trial_quality(quality: Quality, trials: Trials) -> tuple[tuple[str, ...], Floats]:
    """Of each measure the smaller and the larger of a trial's two: names, and values (trials, 2 measures).

    So it does not matter which side is which; sum, difference and, of logarithms, ratio are linear in them.
    (After Thienpondt et al., "The IDLab VoxSRC-20 submission", ICASSP 2021.)

    Raises:
        DataError: a recording was not measured.
    """
    enrol = quality.of(trials.enrol_ids)[trials.enrol]
    test = quality.of(trials.test_ids)[trials.test]
    names = tuple(f"{name}.{end}" for end in ("min", "max") for name in quality.names)
    return names, np.concatenate([np.minimum(enrol, test), np.maximum(enrol, test)], axis=1)


def write_quality(path: str | Path, quality: Quality) -> None:
    """Write ``key`` and measures as tab-separated columns under a line of their names, atomically."""
    rows = ("\t".join([key, *map(repr, row)]) for key, row in zip(quality.keys, quality.values.tolist(), strict=True))
    write_lines(path, ["\t".join(["key", *quality.names]), *rows])


def read_quality(path: str | Path) -> Quality:
    """Read what :func:`write_quality` wrote; columns of other measures may have been added.

    Raises:
        DataError: the file is missing or malformed.
    """
    lines = [line.split("\t") for line in read_lines(path)]
    if len(lines) < 2 or lines[0][0] != "key" or len(lines[0]) < 2:
        raise DataError(path, "is no table of quality measures", "its first line is: key, names of the measures")
    rows = []
    for number, row in enumerate(lines[1:], start=2):
        try:
            rows.append([float(word) for word in row[1:]])
        except ValueError as error:
            raise DataError(path, f"line {number}: {error}", "every measure is a number") from None
        if len(row) != len(lines[0]):
            raise DataError(path, f"line {number} has {len(row)} columns, the first {len(lines[0])}", "write it again")
    keys = tuple(row[0] for row in lines[1:])
    return Quality(keys, tuple(lines[0][1:]), np.array(rows, dtype=np.float64), str(path))


def draw_trials(
    speakers: Mapping[str, str],
    seconds: Mapping[str, float],
    count: int = 30_000,
    *,
    nontargets_each: int = 1,
    shortest: float = 2.0,
    boundary: float = 6.0,
    seed: int = 0,
) -> Trials:
    """Trials of whole recordings to learn calibration from: balanced over conditions and kinds.

    Conditions are short-short, short-long and long-long. No recording meets itself, no pair comes twice. Speakers are
    drawn before recordings, so that one with many counts no more than another. Where a condition has too few
    targets, or fewer nontargets than targets, it gets fewer of both, with a warning.

    Args:
        speakers: speaker of each key.
        seconds: duration of each key.
        count: trials wanted, a sixth of each condition and kind.
        nontargets_each: so many times as many nontargets, for thresholds at low false-accept rates.
        shortest: recordings below are left out, in seconds.
        boundary: recordings below are short, the others long.
        seed: of the draws; the order of the mappings does not matter.

    Raises:
        DataError: a key without duration, or recordings that allow no trials.
        ConfigError: fewer than six trials wanted, or a boundary below the shortest.
    """
    if count < 6 or nontargets_each < 1 or not 0 <= shortest <= boundary:
        raise ConfigError("trials", f"{count} trials, short from {shortest} to {boundary} s", "six or more, in order")
    missing = [key for key in speakers if not 0 <= seconds.get(key, math.nan) < math.inf]
    if missing:
        raise DataError("durations", f"none is known of {missing[0]!r} ({len(missing)} keys)", "complete utt2dur")
    lengths: dict[str, dict[str, list[str]]] = {"short": {}, "long": {}}
    for key in sorted(speakers):
        if seconds[key] >= shortest:
            kind = "short" if seconds[key] < boundary else "long"
            lengths[kind].setdefault(speakers[key], []).append(key)
    rng = np.random.default_rng(seed)
    enrol: list[str] = []
    test: list[str] = []
    labels: list[bool] = []
    for condition in CONDITIONS:
        first, second = (lengths[end] for end in condition.split("-"))
        wanted = count // 6
        targets = _target_pairs(first, second, wanted, rng)
        nontargets = _nontarget_pairs(first, second, wanted * nontargets_each, rng)
        found = min(len(targets), len(nontargets))
        if found < wanted:
            logger.warning("%s trials: %d of each kind instead of %d", condition, found, wanted)
        for pairs, label in ((targets[:found], True), (nontargets[: found * nontargets_each], False)):
            enrol += [pair[0] for pair in pairs]
            test += [pair[1] for pair in pairs]
            labels += [label] * len(pairs)
    if not enrol:
        raise DataError("trials", "no two recordings of a speaker, and of two speakers, are long enough", "lower it")
    return Trials.from_pairs(enrol, test, labels)


def _target_pairs(
    first: Mapping[str, list[str]], second: Mapping[str, list[str]], wanted: int, rng: np.random.Generator
) -> list[Pair]:
    """Pairs of one speaker, unlike each other, from as many speakers and as few a speaker as will do."""
    same = first is second
    speakers = [speaker for speaker in first if speaker in second]
    sizes = [(len(first[speaker]), len(second[speaker])) for speaker in speakers]
    counts = np.array([a * (a - 1) // 2 if same else a * b for a, b in sizes], dtype=np.int64)
    most = next((cap for cap in range(1, wanted) if np.minimum(counts, cap).sum() >= wanted), wanted)
    pairs: list[Pair] = []
    for speaker, count in zip(speakers, counts.tolist(), strict=True):
        keys, others = first[speaker], second[speaker]
        for number in rng.choice(count, size=min(count, most), replace=False).tolist():
            if same:  # the pairs (0, 1), (0, 2), (1, 2), (0, 3) and so on
                later = (1 + math.isqrt(1 + 8 * number)) // 2
                pairs.append((keys[number - later * (later - 1) // 2], keys[later]))
            else:
                pairs.append((keys[number // len(others)], others[number % len(others)]))
    return [pairs[index] for index in rng.permutation(len(pairs))[:wanted]]


def _nontarget_pairs(
    first: Mapping[str, list[str]], second: Mapping[str, list[str]], wanted: int, rng: np.random.Generator
) -> list[Pair]:
    """Pairs of two speakers, unlike each other."""
    chosen: dict[tuple[str, ...], Pair] = {}
    if not first or not second:
        return []
    names, others = list(first), list(second)
    for _ in range(ROUNDS):
        one, other = rng.integers(len(names), size=2 * wanted), rng.integers(len(others), size=2 * wanted)
        places = rng.random((2, 2 * wanted)).tolist()
        for a, b, place, other_place in zip(one.tolist(), other.tolist(), *places, strict=True):
            if names[a] == others[b]:
                continue
            keys, other_keys = first[names[a]], second[others[b]]
            pair = keys[int(place * len(keys))], other_keys[int(other_place * len(other_keys))]
            chosen.setdefault(tuple(sorted(pair)), pair)
            if len(chosen) == wanted:
                return list(chosen.values())
    return list(chosen.values())
