"""Scoring of extracted voices: a directory of mixtures and the estimates, to what each estimate is worth."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from speakerkit.audio import Audio, load_audio
from speakerkit.data.ark import Embeddings
from speakerkit.data.lists import read_scp
from speakerkit.data.mixing.lists import ListedMixture, Target, read_mixture_dir, target_key
from speakerkit.data.sources import read_genders
from speakerkit.errors import AudioError, ConfigError, DataError, SpeakerKitError
from speakerkit.extraction import metrics
from speakerkit.extraction.metrics import Bools, Signal
from speakerkit.extraction.scores import DECIMALS, METRICS, ExtractionScore, ItemScore, Measured
from speakerkit.registry import suggest

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")  # of estimates in a folder
SLACK = 0.02  # seconds that an estimate may be shorter or longer than its mixture: what models' strides leave
SHORTEST = 0.01  # seconds of a scenario that is measured

Measure = Callable[[Signal], float]

logger = logging.getLogger("speakerkit.extraction")


@dataclass(frozen=True)
class Item:
    """One voice of one mixture, and where its files are.

    Attributes:
        key: MIXTURE-SPEAKER.
        mixture: id.
        speaker: whose voice is wanted.
        mixture_wav: path; so are the following.
        target_wav: "" where the target is absent.
        enrolment_wav: of another utterance.
        others: path of each other voice of the mixture that is known alone, by speaker.
        turns: (start, end, speaker) in seconds of all who speak; empty where that is not known.
        genders: of all voices of the mixture, sorted, such as "F+M"; "" where one is not known.
    """

    key: str
    mixture: str
    speaker: str
    mixture_wav: str
    target_wav: str = ""
    enrolment_wav: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[tuple[float, float, str], ...] = ()
    genders: str = ""


def read_items(folder: str | Path) -> list[Item]:
    """Every target of a directory of mixtures, sorted by key; genders are those of its ``spk2gender``, if it has one.

    Raises:
        DataError: as :func:`speakerkit.data.mixing.lists.read_mixture_dir`; no targets, or a gender that is not known.
    """
    mixtures = read_mixture_dir(folder)
    listed = Path(folder) / "spk2gender"
    genders = read_genders(listed) if listed.exists() else {}
    items = [_item(each, target, genders) for each in mixtures for target in each.targets]
    if not items:
        raise DataError(folder, "has no targets", "they stand in utt2spk and enroll.scp")
    return sorted(items, key=lambda item: item.key)


def _item(mixture: ListedMixture, target: Target, genders: Mapping[str, str]) -> Item:
    present = [each for each in mixture.targets if each.reference]
    heard = {each.speaker for each in present} | {speaker for _, _, speaker in mixture.turns}
    known = [genders.get(speaker, "") for speaker in heard]
    return Item(
        target_key(mixture.key, target.speaker),
        mixture.key,
        target.speaker,
        mixture.wav,
        target.reference,
        target.enrolment,
        {each.speaker: each.reference for each in present if each.speaker != target.speaker},
        mixture.turns,
        "+".join(sorted(known)) if all(known) else "",
    )


def read_estimates(path: str | Path) -> dict[str, str]:
    """Paths of estimates by MIXTURE-SPEAKER: of a scp, or of the files in a folder, called after their keys.

    Raises:
        DataError: nothing is there, or two files of one key.
    """
    path = Path(path)
    if not path.is_dir():
        return read_scp(path)
    found: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in SUFFIXES:
            if file.stem in found:
                raise DataError(path, f"holds both {Path(found[file.stem]).name} and {file.name}", "keep one")
            found[file.stem] = str(file)
    if not found:
        raise DataError(path, f"holds no estimates ({', '.join(SUFFIXES)})", "they are called MIXTURE-SPEAKER.wav")
    return found


def score_extraction(
    items: Sequence[Item],
    estimates: Mapping[str, str],
    wanted: Iterable[str] = METRICS,
    *,
    embeddings: Embeddings | None = None,
    voices: Embeddings | None = None,
    replicates: int = 0,
    seed: int = 0,
    workers: int = 1,
) -> ExtractionScore:
    """Score estimates by their keys; what cannot be measured is counted, and says why.

    Args:
        items: what was to be extracted.
        estimates: path of each estimate, at the rate of its mixture.
        wanted: of :data:`METRICS`. SI-SDR, also by scenario, power and swaps cost little and are always measured.
        embeddings: of the estimates, for swaps by cosine.
        voices: embeddings of the enrolments by MIXTURE-SPEAKER, of the same model; needed with ``embeddings``.
        replicates: draws of the target speakers for 95 % intervals of the improvements' means; 0 for none.
        seed: of the draws.
        workers: processes.

    Raises:
        DataError: no item has an estimate, or the references contradict each other.
        AudioError: a mixture or a reference that cannot be read.
        ConfigError: an unknown metric, or one of ``embeddings`` and ``voices`` without the other.
        MissingExtraError: STOI or PESQ without their packages.
    """
    names = check_metrics(wanted)
    if (embeddings is None) != (voices is None):
        raise ConfigError("embeddings", "are needed of both estimates and enrolments", "give both, of one model")
    if not any(item.key in estimates for item in items):
        fault = f"name none of the {len(items)} targets, such as {items[0].key!r}"
        raise DataError("estimates", fault, "keys are MIXTURE-SPEAKER")
    extra = sorted(set(estimates) - {item.key for item in items})
    if extra:
        logger.warning("%d estimates are of no target of the reference, %r first", len(extra), extra[0])
    jobs = [(item, estimates.get(item.key, "")) for item in items]
    scores = list(_in_processes(partial(_score, wanted=names), jobs, workers))
    if embeddings is not None and voices is not None:
        scores = _with_voices(scores, items, embeddings, voices)
    return ExtractionScore(tuple(scores), replicates, seed)


def check_metrics(wanted: Iterable[str]) -> tuple[str, ...]:
    """The names and SI-SDR's, if all are known and can be measured here.

    Raises:
        ConfigError: an unknown one.
        MissingExtraError: packages are not installed.
    """
    names = tuple(dict.fromkeys(("si-sdr", *wanted)))
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metric {name!r}", "is not known", suggest(name, list(METRICS)))
    tone = np.sin(np.arange(16000, dtype=np.float64))
    for name, metric in (("stoi", metrics.stoi), ("pesq", metrics.pesq)):
        if any(name in each for each in names):
            metric(tone, tone, 16000)
    return names


def _in_processes(
    score: Callable[[tuple[Item, str]], ItemScore], jobs: Sequence[tuple[Item, str]], workers: int
) -> Iterator[ItemScore]:
    """Scores in the order of the jobs, with progress on a terminal."""
    with tqdm(total=len(jobs), desc="score", unit="item", disable=None) as bar:
        if workers <= 1 or len(jobs) == 1:
            for job in jobs:
                yield score(job)
                bar.update()
            return
        pool = ProcessPoolExecutor(min(workers, len(jobs)))
        try:
            for scored in pool.map(score, jobs, chunksize=4):
                yield scored
                bar.update()
        except BrokenProcessPool:
            raise DataError("scoring", "a worker process was killed", "use fewer --workers, it may be memory") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _score(job: tuple[Item, str], wanted: tuple[str, ...]) -> ItemScore:
    try:
        return score_item(*job, wanted)
    except SpeakerKitError as error:
        # DataError alone: an error crosses the process border only if its class is made from these three.
        raise DataError(error.subject, error.fault, error.remedy) from None


def score_item(item: Item, estimate_wav: str, wanted: Sequence[str] = METRICS) -> ItemScore:
    """Score one estimate; ``estimate_wav`` is "" where there is none.

    Raises:
        DataError: as :func:`score_extraction`.
        AudioError: a mixture or a reference that cannot be read.
    """
    mixture = load_audio(item.mixture_wav)
    references = {name: voice for name, path in item.others.items() if np.any(voice := _reference(path, mixture, item))}
    target = _reference(item.target_wav, mixture, item) if item.target_wav else np.zeros_like(mixture.samples)
    present = bool(np.any(target))
    estimate: Signal | None = None
    error = ""
    try:
        estimate = _estimate(estimate_wav, mixture)
    except (AudioError, DataError) as fault:
        error = str(fault)
    spoken = metrics.activity(item.turns, len(mixture.samples), mixture.rate)
    measures = _measures(item, mixture, target, spoken, wanted) if present else _absent(mixture.samples)
    measured: dict[str, Measured] = {}
    failures: dict[str, str] = {}
    for name, measure in measures.items():
        try:
            if estimate is None:
                raise DataError(None, error)
            values = [round(measure(each), DECIMALS) for each in (mixture.samples, estimate)]
            measured[name] = Measured(*values)
        except DataError as fault:
            failures[name] = str(fault)
    return ItemScore(
        item.key,
        item.mixture,
        item.speaker,
        round(mixture.seconds, DECIMALS),
        present,
        len({*references, *spoken} | ({item.speaker} if present else set())),
        _overlap(spoken),
        item.genders,
        measured,
        failures,
        error,
        _nearest(estimate, {item.speaker: target, **references}) if present and references else "",
    )


def _reference(path: str, mixture: Audio, item: Item) -> Signal:
    audio = load_audio(path)
    if (audio.rate, len(audio.samples)) != (mixture.rate, len(mixture.samples)):
        has = f"has {len(audio.samples)} samples at {audio.rate} Hz"
        fault = f"{has}, its mixture {item.mixture!r} {len(mixture.samples)} at {mixture.rate} Hz"
        raise DataError(path, fault[:500], "references are as long as their mixture")
    return audio.samples


def _estimate(path: str, mixture: Audio) -> Signal:
    """The estimate at the mixture's length: a missing end is silence."""
    if not path:
        raise DataError(None, "there is no estimate")
    audio = load_audio(path)
    if audio.rate != mixture.rate:
        raise DataError(path, f"is at {audio.rate} Hz, its mixture at {mixture.rate} Hz")
    surplus = len(audio.samples) - len(mixture.samples)
    if abs(surplus) > SLACK * mixture.rate:
        raise DataError(path, f"lasts {audio.seconds:.3f} s, its mixture {mixture.seconds:.3f} s")
    return np.pad(audio.samples, (0, max(0, -surplus)))[: len(mixture.samples)]


def _measures(
    item: Item, mixture: Audio, target: Signal, spoken: Mapping[str, Bools], wanted: Sequence[str]
) -> dict[str, Measure]:
    """How to measure each figure of a signal, where the target is present."""
    rate = mixture.rate
    asked: dict[str, Measure] = {
        "si_sdr": lambda signal: metrics.si_sdr(signal, target),
        "sdr": lambda signal: metrics.sdr(signal, target),
        "stoi": lambda signal: metrics.stoi(signal, target, rate),
        "estoi": lambda signal: metrics.stoi(signal, target, rate, extended=True),
        "pesq": lambda signal: metrics.pesq(signal, target, rate),
    }
    chosen = {name: measure for name, measure in asked.items() if name.replace("_", "-") in wanted}
    if not spoken:
        return chosen
    if item.speaker not in spoken:
        fault = f"says nothing of {item.speaker!r} in {item.mixture!r}, whose voice alone is not silent"
        raise DataError("rttm", fault, "check that it and ref.scp belong together")
    return chosen | _by_scenario(item, mixture, target, spoken)


def _by_scenario(item: Item, mixture: Audio, target: Signal, spoken: Mapping[str, Bools]) -> dict[str, Measure]:
    own = spoken[item.speaker]
    others = np.logical_or.reduce(
        [np.zeros_like(own), *(mask for name, mask in spoken.items() if name != item.speaker)]
    )
    masks = metrics.scenarios(own, others)
    masks["quiet"] = masks["QQ"] | masks["QS"]
    found: dict[str, Measure] = {}
    for name, mask in masks.items():
        if mask.sum() < SHORTEST * mixture.rate:
            continue
        if name in ("SS", "SQ"):
            found[f"si_sdr_{name.lower()}"] = partial(_si_sdr_where, mask=mask, target=target)
        else:
            found[f"power_{name.lower()}"] = partial(_power_where, mask=mask, rate=mixture.rate)
            found[f"levelled_{name.lower()}"] = partial(
                _power_where, mask=mask, rate=mixture.rate, level=mixture.samples
            )
    return found


def _si_sdr_where(signal: Signal, mask: Bools, target: Signal) -> float:
    return metrics.si_sdr(signal[mask], target[mask])


def _power_where(signal: Signal, mask: Bools, rate: int, level: Signal | None = None) -> float:
    return metrics.power((signal if level is None else metrics.levelled(signal, level))[mask], rate)


def _absent(mixture: Signal) -> dict[str, Measure]:
    return {"leakage": lambda signal: metrics.leakage(signal, mixture)}


def _overlap(spoken: Mapping[str, Bools]) -> float | None:
    if not spoken:
        return None
    count = np.sum(list(spoken.values()), axis=0)
    speech = int((count > 0).sum())
    return round(int((count > 1).sum()) / speech, DECIMALS) if speech else None


def _nearest(estimate: Signal | None, voices: Mapping[str, Signal]) -> str:
    """Speaker whose voice the estimate has the best SI-SDR with; "" of silence. The first of equals: the target."""
    if estimate is None:
        return ""
    found: dict[str, float] = {}
    for name, voice in voices.items():
        try:
            found[name] = metrics.si_sdr(estimate, voice)
        except DataError:  # a voice that is silent here is no rival
            continue
    return max(found, key=found.__getitem__, default="")


def _with_voices(
    scores: Sequence[ItemScore], items: Sequence[Item], embeddings: Embeddings, voices: Embeddings
) -> list[ItemScore]:
    """The scores with the enrolment that each estimate's embedding is nearest to, of those of its mixture."""
    if embeddings.dim != voices.dim:
        fault = f"has {embeddings.dim} values an embedding, {voices.source} {voices.dim}"
        raise DataError(embeddings.source, fault, "make both with one model")
    estimated, enrolled = (_directions(each) for each in (embeddings, voices))
    if not any(item.key in estimated for item in items):
        raise DataError(embeddings.source, f"has no embedding of {items[0].key!r}", "keys are MIXTURE-SPEAKER")
    found = []
    for score, item in zip(scores, items, strict=True):
        names = [item.speaker, *(name for name in item.others)]
        keys = [target_key(item.mixture, name) for name in names]
        nearest = ""
        if score.present and len(names) > 1 and item.key in estimated and all(key in enrolled for key in keys):
            cosines = [float(estimated[item.key] @ enrolled[key]) for key in keys]
            nearest = names[int(np.argmax(cosines))]
        found.append(replace(score, nearest_voice=nearest))
    return found


def _directions(embeddings: Embeddings) -> dict[str, metrics.Floats]:
    """Embeddings at length one, by key; those without a direction are left out."""
    vectors = embeddings.vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    return {
        key: vector / length
        for key, vector, length in zip(embeddings.keys, vectors, lengths, strict=True)
        if length > 0
    }
