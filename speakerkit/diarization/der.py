"""Error rates of diarization: DER as md-eval counts it, JER as dscore does; exact, by a sweep over all events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from speakerkit.diarization.turns import Diarization, Span, Turn
from speakerkit.errors import ConfigError, DataError
from speakerkit.tables import text_table

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Kind = Literal["missed", "false alarm", "confusion"]

FRAMES_A_SECOND = 100  # of the median filter
LARGEST_MEDIAN = 1001  # frames, 10 s; memory grows with it


@dataclass(frozen=True)
class Convention:
    """What counts.

    Attributes:
        collar: seconds on *each* side of every start and end in the reference that are not scored (pyannote.metrics'
            ``collar`` is the width of both sides together).
        overlap: score where several speak in the reference.
        median: frames of 10 ms of a median filter on each speaker of the hypothesis; 0 for none, 11 is usual.
        extent: what is scored without a UEM: "both", the time that either side speaks of (as dscore and spy-der), or
            "reference", from its first start to its last end (as md-eval), so that no false alarm beyond counts.

    Raises:
        ConfigError: a collar below 0 or not finite, a filter of an even length or above 1001 frames, another extent.
    """

    collar: float = 0.0
    overlap: bool = True
    median: int = 0
    extent: Literal["both", "reference"] = "both"

    def __post_init__(self) -> None:
        if not 0 <= self.collar < math.inf:
            raise ConfigError("collar", f"is {self.collar} s", "it is 0 or more")
        if not 0 <= self.median <= LARGEST_MEDIAN or (self.median and self.median % 2 == 0):
            raise ConfigError("median", f"is {self.median} frames", f"it is odd, to {LARGEST_MEDIAN}, or 0 for none")
        if self.extent not in ("both", "reference"):
            raise ConfigError("extent", f"is {self.extent!r}", "it is 'both' or 'reference'")

    def __str__(self) -> str:
        collar = (
            f"collar {self.collar:g} s: that much on each side of every start and end in the reference is not scored"
            if self.collar
            else "no collar"
        )
        overlap = (
            "overlapping speech is scored" if self.overlap else "where several speak in the reference is not scored"
        )
        median = f"; median filter of {self.median} frames of 10 ms on the hypothesis" if self.median else ""
        extent = "; from the reference's first start to its last end" if self.extent == "reference" else ""
        return f"{collar}; {overlap}{median}{extent}"


@dataclass(frozen=True)
class ErrorTimes:
    """Seconds of speakers: where two speak, a second counts twice.

    Attributes:
        speech: in the reference; what rates are of.
        missed: speakers of the reference without one of the hypothesis.
        false_alarm: speakers of the hypothesis without one of the reference.
        confusion: speakers of the reference under another's label.
    """

    speech: float = 0.0
    missed: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0

    @property
    def wrong(self) -> float:
        """Seconds of all errors."""
        return self.missed + self.false_alarm + self.confusion

    @property
    def der(self) -> float | None:
        """Diarization error rate, which may exceed 1; ``None`` where the reference has no speech to divide by."""
        return self.rate(self.wrong)

    def rate(self, seconds: float) -> float | None:
        """``seconds`` as a part of the speech."""
        return seconds / self.speech if self.speech > 0 else None

    def __add__(self, other: ErrorTimes) -> ErrorTimes:
        return ErrorTimes(
            self.speech + other.speech,
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
        )

    def to_dict(self) -> dict[str, float | None]:
        """Seconds, and ``der``."""
        return {**asdict(self), "der": self.der}


@dataclass(frozen=True)
class ErrorSpan:
    """A stretch with one kind of error.

    Attributes:
        kind: "missed", "false alarm" or "confusion".
        seconds: of error: the length times the speakers it hits.
        reference: speakers of the reference who were not found here.
        hypothesis: labels that should not be here.
    """

    recording: str
    start: float
    end: float
    kind: Kind
    seconds: float
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


@dataclass(frozen=True)
class RecordingScore:
    """Errors of one recording.

    Attributes:
        recording: its id, with its channel where there are several.
        speakers: how many speak in the scored part of the reference.
        hypothesis_speakers: the same of the hypothesis.
        errors: all that is scored.
        overlap: of them, where several speak in the reference.
        single: of them, where one or nobody does.
        jaccard: Jaccard error rate of each speaker of the reference.
        mapping: labels of the hypothesis to the speakers that they stand for; others stand for nobody.
        spans: the errors one by one, where they were asked for.
    """

    recording: str
    speakers: int
    hypothesis_speakers: int
    errors: ErrorTimes
    overlap: ErrorTimes
    single: ErrorTimes
    jaccard: Mapping[str, float]
    mapping: Mapping[str, str]
    spans: tuple[ErrorSpan, ...] = ()

    @property
    def jer(self) -> float:
        """Jaccard error rate, in [0, 1]; with nobody in the reference, 1 where the hypothesis has somebody, else 0."""
        return _mean_jaccard(self.jaccard.values(), self.hypothesis_speakers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "recording": self.recording,
            "speakers": self.speakers,
            "hypothesis_speakers": self.hypothesis_speakers,
            "errors": self.errors.to_dict(),
            "overlap": self.overlap.to_dict(),
            "single": self.single.to_dict(),
            "jer": self.jer,
            "jaccard": dict(self.jaccard),
            "mapping": dict(self.mapping),
        }


@dataclass(frozen=True)
class DiarizationScore:
    """Errors of some recordings, one by one and pooled.

    Attributes:
        recordings: sorted by id.
        convention: what counted.
        missing: recordings that the hypothesis lacks, scored as if nobody spoke in it.
        extra: recordings of the hypothesis that the reference lacks; not scored.
        outside: recordings of the reference that the UEM lacks; not scored.
    """

    recordings: tuple[RecordingScore, ...]
    convention: Convention
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    @property
    def errors(self) -> ErrorTimes:
        """Pooled: recordings weigh as much as is spoken in them."""
        return sum((each.errors for each in self.recordings), ErrorTimes())

    @property
    def overlap(self) -> ErrorTimes:
        """Pooled, where several speak in the reference."""
        return sum((each.overlap for each in self.recordings), ErrorTimes())

    @property
    def single(self) -> ErrorTimes:
        """Pooled, where one or nobody speaks in the reference."""
        return sum((each.single for each in self.recordings), ErrorTimes())

    @property
    def jer(self) -> float:
        """Mean over the reference's speakers of all recordings."""
        return _pooled_jer(self.recordings)

    def by_speakers(self) -> dict[int, tuple[RecordingScore, ...]]:
        """Recordings by the number of the reference's speakers."""
        counts = sorted({each.speakers for each in self.recordings})
        return {count: tuple(each for each in self.recordings if each.speakers == count) for count in counts}

    def worst(self, count: int) -> tuple[ErrorSpan, ...]:
        """The spans that cost the most."""
        spans = [span for each in self.recordings for span in each.spans]
        return tuple(sorted(spans, key=lambda span: (-round(span.seconds, 6), span.recording, span.start))[:count])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: rates in [0, 1], times in seconds."""
        return {
            "convention": {**asdict(self.convention), "text": str(self.convention)},
            "errors": self.errors.to_dict(),
            "overlap": self.overlap.to_dict(),
            "single": self.single.to_dict(),
            "jer": self.jer,
            "by_speakers": {
                str(count): {
                    "recordings": len(group),
                    "errors": _pooled(group).to_dict(),
                    "jer": _pooled_jer(group),
                }
                for count, group in self.by_speakers().items()
            },
            "recordings": [each.to_dict() for each in self.recordings],
            "missing": list(self.missing),
            "extra": list(self.extra),
            "outside": list(self.outside),
        }

    def table(self) -> str:
        """Recordings, then by number of speakers, with and without overlap, and all; and what counted."""
        rows = [["recording", "speech s", "DER %", "missed %", "false alarm %", "confusion %", "JER %"]]
        rows += [_row(each.recording, each.errors, each.jer) for each in self.recordings]
        for count, group in self.by_speakers().items():
            name = f"{count} speaker{'s' * (count != 1)} ({len(group)})"
            rows.append(_row(name, _pooled(group), _pooled_jer(group)))
        rows += [_row("one speaker at a time", self.single), _row("overlapping speech", self.overlap)]
        rows.append(_row(f"all ({len(self.recordings)})", self.errors, self.jer))
        return f"{text_table(rows)}\n{self.convention}"


def _row(name: str, errors: ErrorTimes, jer: float | None = None) -> list[str]:
    rates = (errors.der, *(errors.rate(part) for part in (errors.missed, errors.false_alarm, errors.confusion)), jer)
    return [name, f"{errors.speech:.2f}", *("-" if rate is None else f"{100 * rate:.2f}" for rate in rates)]


def _pooled(group: Iterable[RecordingScore]) -> ErrorTimes:
    return sum((each.errors for each in group), ErrorTimes())


def _pooled_jer(group: Sequence[RecordingScore]) -> float:
    rates = [rate for each in group for rate in each.jaccard.values()]
    return _mean_jaccard(rates, sum(each.hypothesis_speakers for each in group))


def _mean_jaccard(rates: Iterable[float], hypothesis_speakers: int) -> float:
    listed = list(rates)
    return sum(listed) / len(listed) if listed else float(hypothesis_speakers > 0)


def score_diarization(
    reference: Mapping[str, Diarization],
    hypothesis: Mapping[str, Diarization],
    uem: Mapping[str, Sequence[Span]] | None = None,
    convention: Convention | None = None,
    *,
    missing_as_silence: bool = False,
    explain: bool = False,
) -> DiarizationScore:
    """Score recordings by their ids.

    Where one side has several channels of a recording and the other a single one (formats do not tell of channels in
    which nobody speaks), that one is scored against the same channel of the several.

    Args:
        uem: regions to score of each recording, in seconds, of all its channels; what it lacks is not scored.
        missing_as_silence: score a recording that the hypothesis lacks as one in which nobody speaks.
        explain: list the errors one by one.

    Raises:
        DataError: a recording that the hypothesis lacks, or nothing to score.
    """
    convention = convention or Convention()
    regions = {
        key: None if uem is None else uem.get(key, uem.get(_without_channel(key, each)))
        for key, each in reference.items()
    }
    outside = () if uem is None else tuple(sorted(key for key, spans in regions.items() if spans is None))
    wanted = sorted(set(reference) - set(outside))
    hypothesis = _named_alike(hypothesis, reference)
    missing = tuple(key for key in wanted if key not in hypothesis)
    if missing and not missing_as_silence:
        fault = f"lacks {len(missing)} recordings of the reference: {some(missing)}"
        raise DataError("hypothesis", fault, "name them alike, or count them as silence (--missing-as-silence)")
    if not wanted:
        raise DataError("reference", "has no recording to score", "check it, and the UEM")
    scores = tuple(
        score_recording(
            reference[key],
            hypothesis.get(key, Diarization(reference[key].recording)),
            regions[key],
            convention,
            explain=explain,
            name=key,
        )
        for key in wanted
    )
    extra = tuple(sorted(set(hypothesis) - set(reference)))
    return DiarizationScore(scores, convention, missing, extra, outside)


def _named_alike(hypothesis: Mapping[str, Diarization], reference: Mapping[str, Diarization]) -> dict[str, Diarization]:
    """The hypothesis by the reference's keys, which have channels where that has several of a recording."""
    named: dict[str, Diarization] = {}
    for key, each in hypothesis.items():
        own, plain = f"{key}:{each.channel}", _without_channel(key, each)
        if key not in reference and own in reference:
            key = own
        elif key not in reference and plain in reference and reference[plain].channel == each.channel:
            key = plain
        named[key] = each
    return named


def _without_channel(key: str, diarization: Diarization) -> str:
    return key.removesuffix(f":{diarization.channel}")


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(name[:200] for name in names[:5]) + (", ..." if len(names) > 5 else "")


def score_recording(
    reference: Diarization,
    hypothesis: Diarization,
    uem: Sequence[Span] | None = None,
    convention: Convention | None = None,
    *,
    explain: bool = False,
    name: str | None = None,
) -> RecordingScore:
    """Score one recording.

    Speakers are mapped one to one so that they share the most time (Hungarian method) within the UEM, collars and
    overlaps included, as md-eval does. The Jaccard error rate of a speaker is one less the time that both share over
    the time that either speaks, under the mapping that makes the sum of them least; it regards no collar (dscore).

    Args:
        name: what it is called in the result; the reference's recording unless given.
    """
    convention, name = convention or Convention(), name or reference.recording
    if convention.median:
        hypothesis = median_filtered(hypothesis, convention.median)
    if uem is None and convention.extent == "reference":
        uem = [(reference.turns[0].start, max(turn.end for turn in reference.turns))] if reference.turns else []
    sweep = _sweep(reference, hypothesis, uem, convention)
    times = np.where(sweep.inside, sweep.lengths, 0.0)  # (intervals,)
    joint = (sweep.reference * times) @ sweep.hypothesis.T  # (reference's speakers, hypothesis' speakers) seconds
    pairs = [(r, h) for r, h in zip(*linear_sum_assignment(joint, maximize=True), strict=True) if joint[r, h] > 0]
    found = _Found.of(sweep, pairs)
    several = sweep.reference.sum(axis=0) >= 2
    spans = tuple(_spans(name, sweep, found)) if explain else ()
    spoken, heard = sweep.reference @ times, sweep.hypothesis @ times  # seconds of each speaker
    return RecordingScore(
        name,
        int((spoken > 0).sum()),
        int((heard > 0).sum()),
        found.errors(sweep, np.ones_like(several)),
        found.errors(sweep, several),
        found.errors(sweep, ~several),
        _jaccard(joint, spoken, heard, sweep.speakers),
        {sweep.labels[h]: sweep.speakers[r] for r, h in pairs},
        spans,
    )


@dataclass(frozen=True)
class _Sweep:
    """The time between the first and the last event, cut at every event into intervals in which nothing changes."""

    times: Floats  # (intervals + 1,)
    reference: Floats  # (speakers, intervals), 1 where one speaks
    hypothesis: Floats  # (labels, intervals)
    inside: Bools  # (intervals,) of the UEM
    scored: Bools  # (intervals,) of them, what collars and overlaps leave
    speakers: tuple[str, ...]
    labels: tuple[str, ...]
    lengths: Floats = field(init=False)  # (intervals,) seconds

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.diff(self.times))


def _sweep(
    reference: Diarization, hypothesis: Diarization, uem: Sequence[Span] | None, convention: Convention
) -> _Sweep:
    ref_spans, hyp_spans = _spans_of(reference.turns), _spans_of(hypothesis.turns)
    uem_spans = np.array(uem, dtype=np.float64).reshape(-1, 2) if uem is not None else np.empty((0, 2))
    bounds = ref_spans.ravel()[:, None] if convention.collar > 0 else np.empty((0, 1))
    collars = bounds + np.array([-convention.collar, convention.collar])
    times = np.unique(np.concatenate([each.ravel() for each in (ref_spans, hyp_spans, uem_spans, collars)]))
    if len(times) < 2:
        times = np.array([0.0, 0.0])
    active = _activity(reference, ref_spans, times)
    inside = np.ones(len(times) - 1, dtype=bool) if uem is None else _covered(uem_spans, times)
    scored = inside & ~_covered(collars, times)
    if not convention.overlap:
        scored &= active.sum(axis=0) < 2
    heard = _activity(hypothesis, hyp_spans, times)
    return _Sweep(times, active, heard, inside, scored, reference.labels, hypothesis.labels)


def _spans_of(turns: Sequence[Turn]) -> Floats:
    return np.array([(turn.start, turn.end) for turn in turns], dtype=np.float64).reshape(-1, 2)


def _activity(diarization: Diarization, spans: Floats, times: Floats) -> Floats:
    """(speakers, intervals), 1 where one speaks. Turns of one speaker never touch, so that no event comes twice."""
    row_of = {label: row for row, label in enumerate(diarization.labels)}
    rows = np.array([row_of[turn.speaker] for turn in diarization.turns], dtype=np.intp)
    changes = np.zeros((len(row_of), len(times)))
    places = np.searchsorted(times, spans)
    changes[rows, places[:, 0]] = 1
    changes[rows, places[:, 1]] = -1
    return np.cumsum(changes, axis=1)[:, :-1]


def _covered(spans: Floats, times: Floats) -> Bools:
    """(intervals,) where at least one span is open."""
    changes = np.zeros(len(times), dtype=np.intp)
    places = np.searchsorted(times, spans)
    np.add.at(changes, places[:, 0], 1)
    np.add.at(changes, places[:, 1], -1)
    return np.cumsum(changes)[:-1] > 0


@dataclass(frozen=True)
class _Found:
    """Who is not found and who should not be there, (speakers, intervals) and (labels, intervals)."""

    lost: Bools
    wrong: Bools

    @classmethod
    def of(cls, sweep: _Sweep, pairs: Sequence[tuple[int, int]]) -> _Found:
        lost, wrong = sweep.reference > 0, sweep.hypothesis > 0
        rows, columns = [r for r, _ in pairs], [h for _, h in pairs]
        right = lost[rows] & wrong[columns]
        lost[rows] &= ~right
        wrong[columns] &= ~right
        return cls(lost, wrong)

    def errors(self, sweep: _Sweep, where: Bools) -> ErrorTimes:
        times = np.where(sweep.scored & where, sweep.lengths, 0.0)
        lost, wrong = self.lost.sum(axis=0), self.wrong.sum(axis=0)
        return ErrorTimes(
            float(sweep.reference.sum(axis=0) @ times),
            float(np.maximum(lost - wrong, 0) @ times),
            float(np.maximum(wrong - lost, 0) @ times),
            float(np.minimum(lost, wrong) @ times),
        )


def _jaccard(joint: Floats, spoken: Floats, heard: Floats, speakers: Sequence[str]) -> dict[str, float]:
    rows, columns = np.flatnonzero(spoken > 0), np.flatnonzero(heard > 0)
    either = spoken[rows, None] + heard[None, columns] - joint[np.ix_(rows, columns)]
    rates = 1 - joint[np.ix_(rows, columns)] / either
    least = dict(zip(rows.tolist(), [1.0] * len(rows), strict=True))
    for row, column in zip(*linear_sum_assignment(rates), strict=True):
        least[int(rows[row])] = float(rates[row, column])
    return {speakers[row]: rate for row, rate in least.items()}


def _spans(name: str, sweep: _Sweep, found: _Found) -> Iterable[ErrorSpan]:
    """Errors, as long as nothing about them changes."""
    state = np.concatenate([sweep.scored[None], found.lost & sweep.scored, found.wrong & sweep.scored])
    first = np.flatnonzero(np.concatenate([[True], (state[:, 1:] != state[:, :-1]).any(axis=0)]))
    last = np.append(first[1:], state.shape[1])
    erring = state[1:, first].any(axis=0)
    for one, other in zip(first[erring].tolist(), last[erring].tolist(), strict=True):
        lost = tuple(sweep.speakers[row] for row in np.flatnonzero(found.lost[:, one]))
        wrong = tuple(sweep.labels[row] for row in np.flatnonzero(found.wrong[:, one]))
        start, end = float(sweep.times[one]), float(sweep.times[other])
        confused, rest = min(len(lost), len(wrong)), len(lost) - len(wrong)
        counts: tuple[tuple[Kind, int], ...] = (("confusion", confused), ("missed", rest), ("false alarm", -rest))
        for kind, count in counts:
            if count > 0:
                yield ErrorSpan(name, start, end, kind, count * (end - start), lost, wrong)


def median_filtered(diarization: Diarization, frames: int) -> Diarization:
    """Each speaker on frames of 10 ms, each frame as most of the ``frames`` around it are (outside nobody speaks)."""
    by_speaker: dict[str, list[Turn]] = {}
    for turn in diarization.turns:
        by_speaker.setdefault(turn.speaker, []).append(turn)
    limit = math.inf if diarization.duration is None else diarization.duration
    turns = [
        Turn(first / FRAMES_A_SECOND, min(last / FRAMES_A_SECOND, limit), speaker)
        for speaker, own in by_speaker.items()
        for first, last in _majority(_spans_of(own), frames // 2)
    ]
    return Diarization(diarization.recording, tuple(turns), diarization.duration, diarization.channel)


def _majority(spans: Floats, half: int) -> list[tuple[int, int]]:
    """Runs of frames (first, behind the last) of one speaker after the filter; only frames near an edge can change."""
    # A frame is spoken where its middle is.
    runs = np.ceil(np.round(spans * FRAMES_A_SECOND - 0.5, 6)).astype(np.int64)  # (turns, 2)
    lengths = runs[:, 1] - runs[:, 0]
    before = np.cumsum(lengths) - lengths

    def spoken_until(frame: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        run = np.searchsorted(runs[:, 0], frame, side="right") - 1
        within = np.clip(frame - runs[run, 0], 0, lengths[run])
        return np.where(run < 0, 0, before[run] + within)

    near = np.unique(runs.ravel()[:, None] + np.arange(-half - 1, half + 2))
    active = spoken_until(near + half + 1) - spoken_until(near - half) > half
    edges = np.diff(np.concatenate([[False], active]).astype(np.int8))
    return list(zip(near[edges > 0].tolist(), near[edges < 0].tolist(), strict=True))
