"""Whether the enrolled voice is in a mixture at all, and in the output rather than in what remains of the mixture."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Samples
from speakerkit.errors import AudioError, BundleError, DataError, one_line
from speakerkit.extraction.bundle import PRESENCE, ExtractionBundle
from speakerkit.files import write_json

FORMAT = "speakerkit-presence-1"
ABSENT_DB = -20.0  # output over mixture, where the output is loudest: a model that gives no more says itself "absent"
FREE_DB = 20.0  # that much less of a model whose loss left the scale of its output free
# What is left of other voices takes an output's cosine down. With our small model, whose threshold is 0.49, cosines
# with the enrolment were above 0.56 at an SDR of 10 dB, 0.47 at 5 dB and 0.37 at 0 dB, of others below 0.31.
SHARE_OF_THRESHOLD = 2 / 3
UNCALIBRATED = 0.25  # threshold where nobody has calibrated anything
SWAP_MARGIN = 0.1  # by which what remains has to be more like the enrolment than the output is
WINDOW = 1.0  # seconds, of what is chosen to be embedded
MOST = 30  # windows: the loudest ones
QUIET_DB = 20.0  # windows that much under the loudest one are left out
HEARD_AT = 0.05  # RMS that is embedded: embeddings shall not depend on level
SILENT = 1e-7  # RMS, -140 dB: nothing to embed

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PresenceRule:
    """When a voice counts as present.

    Attributes:
        threshold: cosine from which on it does; ``None`` where the level alone decides.
        source: where the threshold is from, in words.
        level_db: output over mixture, as the model gives it, above which it does.
    """

    threshold: float | None
    source: str
    level_db: float = ABSENT_DB

    def with_threshold(self, threshold: float, source: str) -> PresenceRule:
        """The same with another threshold."""
        return replace(self, threshold=threshold, source=source)


@dataclass(frozen=True)
class Presence:
    """What is known of a target by its output.

    Attributes:
        target_present: whether the enrolled voice is in the mixture.
        score: the larger of the two similarities, which is compared with the threshold.
        threshold: cosine; ``None`` where the level alone decides.
        threshold_source: where it is from, in words.
        similarity: cosine of output and enrolment, where the output is loudest; ``None`` where it is silent.
        rest_similarity: cosine of enrolment and what remains, mixture minus output; ``None`` where that is silent.
        level_db: energy of output over mixture where the output is loudest, as the model gives it; -100 at least.
        likely_swap: whether what remains is the target rather than the output.
    """

    target_present: bool
    score: float | None
    threshold: float | None
    threshold_source: str
    similarity: float | None
    rest_similarity: float | None
    level_db: float
    likely_swap: bool


def presence_rule(bundle: ExtractionBundle) -> PresenceRule:
    """That of ``presence.json``, else two thirds of the threshold of the embedding model, else 0.25.

    Cosines of a model's own speaker encoder mean nothing without ``presence.json``: there the level alone decides.

    Raises:
        BundleError: a file that holds no threshold, or one of other weights.
    """
    path, level = bundle.path / PRESENCE, ABSENT_DB - FREE_DB * bundle.config.scale_free
    if path.is_file():
        return PresenceRule(*_read(path, bundle), level)
    if bundle.config.voices != "embedding":
        return PresenceRule(None, "level alone, uncalibrated", level)
    known = bundle.voice().threshold()
    if known is None:
        return PresenceRule(UNCALIBRATED, "uncalibrated", level)
    return PresenceRule(SHARE_OF_THRESHOLD * known[0], f"2/3 of the embedding model's {known[0]:.3f}", level)


def _read(path: Path, bundle: ExtractionBundle) -> tuple[float, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        threshold, source, digest = float(values["threshold"]), str(values["source"]), str(values["model_sha256"])
        if values["format"] != FORMAT or not -1 <= threshold <= 1:
            raise ValueError(f"format {values['format']!r}, threshold {threshold}")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise BundleError(path, f"holds no threshold ({error!r})", "calibrate the model again, or remove it") from None
    if digest != bundle.digest():
        raise BundleError(path, "is the calibration of other weights", "calibrate the model again, or remove it")
    return threshold, one_line(source)


def calibrate_presence(bundle: ExtractionBundle, scores: npt.ArrayLike, present: npt.ArrayLike, data: str) -> float:
    """Write ``presence.json``: the threshold that lets in as many absent targets, in shares, as it loses present ones.

    Args:
        scores: (N,) :attr:`Presence.score` of targets.
        present: (N,) whether they are in their mixtures.
        data: what they are, in words.

    Returns:
        the threshold.

    Raises:
        DataError: present or absent targets are missing.
    """
    values, known = np.asarray(scores, dtype=np.float64), np.asarray(present, dtype=bool)
    require_both(known, data)
    cuts = np.unique(values)
    middles = np.concatenate([[cuts[0]], (cuts[1:] + cuts[:-1]) / 2])
    misses = np.array([np.mean(values[known] < cut) for cut in middles])
    alarms = np.array([np.mean(values[~known] >= cut) for cut in middles])
    best = np.lexsort((misses + alarms, np.maximum(misses, alarms)))[0]
    source = f"{100 * misses[best]:.1f} % missed, {100 * alarms[best]:.1f} % let in, of {len(values)} in {data}"
    threshold = float(middles[best])
    told = {"format": FORMAT, "threshold": threshold, "source": source, "model_sha256": bundle.digest()}
    write_json(bundle.path / PRESENCE, told)
    return threshold


def require_both(present: npt.ArrayLike, data: str) -> None:
    """Raise DataError unless some of the targets of ``data`` are present (N,), and some are not."""
    known = np.asarray(present, dtype=bool)
    if known.all() or not known.any():
        kind = "absent" if known.all() else "present"
        raise DataError(data, f"has no {kind} targets", "a threshold lies between both")


@dataclass(frozen=True, eq=False)
class Loudest:
    """The loudest windows of a signal, in their order.

    Attributes:
        samples: (samples,) of them, joined.
        level_db: energy of the signal over that of a reference in these windows; -100 at least.
    """

    samples: Samples
    level_db: float


def loudest(blocks: Iterable[tuple[Samples, Samples]], rate: int) -> Loudest:
    """Of a signal and a reference, in blocks of equally many samples (n,): up to 30 windows of a second, none quiet."""
    size = round(WINDOW * rate)
    kept: list[tuple[float, int, Samples, float]] = []  # a heap: the least energy first
    for number, (signal, reference) in enumerate(_windows(blocks, size)):
        energy = _energy(signal)
        item = (energy, number, signal, _energy(reference))
        if len(kept) < MOST:
            heapq.heappush(kept, item)
        elif energy > kept[0][0]:
            heapq.heapreplace(kept, item)
    limit = max((item[0] for item in kept), default=0.0) * 10 ** (-QUIET_DB / 10)
    chosen = sorted((item for item in kept if item[0] >= limit and item[0] > 0), key=lambda item: item[1])
    if not chosen:
        return Loudest(np.zeros(0, dtype=np.float32), -100.0)
    signal_energy, reference_energy = (sum(item[index] for item in chosen) for index in (0, 3))
    ratio = signal_energy / max(reference_energy, np.finfo(np.float64).tiny)
    level = min(100.0, 10 * math.log10(max(ratio, 1e-10)))
    return Loudest(np.concatenate([item[2] for item in chosen]), level)


def _windows(blocks: Iterable[tuple[Samples, Samples]], size: int) -> Iterable[tuple[Samples, Samples]]:
    """Pairs of ``size`` samples; the last is shorter."""
    rest = np.zeros((2, 0), dtype=np.float32)
    for block in blocks:
        joined = np.concatenate([rest, np.stack(block)], axis=1)
        whole = joined.shape[1] // size * size
        for first in range(0, whole, size):
            yield joined[0, first : first + size].copy(), joined[1, first : first + size]
        rest = joined[:, whole:]
    if rest.shape[1]:
        yield rest[0], rest[1]


def _energy(samples: Samples) -> float:
    exact = samples.astype(np.float64)
    return float(exact @ exact)


def similarity_to(voice: Vector, samples: Samples, embed: Callable[[Samples], Vector]) -> float | None:
    """Cosine of a voice (D,) with what is heard in (samples,), in [-1, 1]; ``None`` where nothing is.

    The samples are brought to one level before they are embedded.
    """
    rms = np.sqrt(_energy(samples) / max(len(samples), 1))
    if rms < SILENT:
        return None
    try:
        heard = embed((samples * (HEARD_AT / rms)).astype(np.float32)).astype(np.float64)
    except AudioError:  # a constant, or a handful of samples
        return None
    exact = voice.astype(np.float64)
    return float(np.clip(heard @ exact / max(float(np.linalg.norm(heard) * np.linalg.norm(exact)), 1e-12), -1, 1))


def judged(
    rule: PresenceRule, level_db: float, similarity: float | None, rest_similarity: float | None, *, known: bool = False
) -> Presence:
    """Present is a voice that is like the output or what remains, unless the model left next to nothing in the output.

    A voice that is ``known`` to be in the mixture is present, whatever the output is like.

    Where the voice is in what remains and less so in the output, the model has most likely taken another voice for it.
    """
    score = max((value for value in (similarity, rest_similarity) if value is not None), default=None)
    alike = rule.threshold is None or (score is not None and score >= rule.threshold)
    present, swap = known or (level_db > rule.level_db and similarity is not None and alike), False
    if present and similarity is not None and rest_similarity is not None:
        swap = rest_similarity > similarity + SWAP_MARGIN
    return Presence(present, score, rule.threshold, rule.source, similarity, rest_similarity, level_db, swap)
