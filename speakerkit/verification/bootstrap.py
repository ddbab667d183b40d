"""What a figure of a test set is worth: bootstrap over its speakers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.errors import DataError
from speakerkit.intervals import Interval, percentiles, require_replicates
from speakerkit.verification.metrics import FIGURES, Counts, ErrorCurve, VerificationMetrics, curve_metrics, evaluate
from speakerkit.verification.trials import Scores, Trials

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
SpeakerOf = Mapping[str, str] | Callable[[str], str]

SEPARATORS = "/-_"  # what may end the speaker in a key


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """A figure's value on the test set, and on replicates of it.

    Attributes:
        metrics: on the trials as they are.
        replicates: (replicates,) of each figure, by the names of :data:`speakerkit.verification.metrics.FIGURES`.
        unit: "speakers", or "trials" where speakers were not known.
        units: how many of these there are.
        drawn_from: tells one test set from another: draws of equal ones are the same.
    """

    metrics: VerificationMetrics
    replicates: Mapping[str, Floats]
    unit: str
    units: int
    drawn_from: tuple[object, ...]

    def interval(self, figure: str, level: float = 0.95) -> Interval:
        """Percentile interval of a figure."""
        return percentiles(self.replicates[figure], level)

    def difference(self, other: Bootstrap, figure: str, level: float = 0.95) -> Interval:
        """Percentile interval of this system's figure less the other's, both on the same replicates.

        Much narrower than the two intervals let think, since both systems meet the same easy and hard speakers.

        Raises:
            DataError: the two are of other trials, seeds or numbers of replicates.
        """
        if self.drawn_from != other.drawn_from:
            raise DataError("bootstrap", "the two systems scored different trials", "score the same list with both")
        return percentiles(self.replicates[figure] - other.replicates[figure], level)


def bootstrap(
    scores: Scores,
    replicates: int = 1000,
    *,
    speaker_of: SpeakerOf | None = None,
    seed: int = 0,
    llr: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> Bootstrap:
    """Measure a scored test set again and again with its speakers drawn with replacement.

    Trials that share a speaker err together, so single trials are no sample: a speaker drawn w times brings each of
    his target trials w times, and each nontarget trial with a speaker drawn v times w·v times, on whichever side they
    stand (the vertex bootstrap of Snijders and Borgatti, 1999; two-way as Owen's pigeonhole bootstrap, 2007).
    Replicates without trials of both kinds are drawn again. With fewer than about twenty speakers intervals are
    too narrow.

    Args:
        scores: labelled trials.
        replicates: how many times.
        speaker_of: speaker of each id; ``None`` looks for them in front of "/", "-" or "_" in the ids, takes them
            where the labels of all trials agree, and else draws single trials, targets and nontargets apart.
        seed: of the draws, which depend on it and on the trials, in any order, and not on the scores.
        llr: as for :func:`speakerkit.verification.metrics.evaluate`.
        progress: called after each replicate.

    Raises:
        DataError: ids without speaker, labels that contradict the speakers, or as ``evaluate``.
        ConfigError: fewer than two replicates.
    """
    require_replicates(replicates)
    metrics = evaluate(scores, llr=llr)
    speakers = trial_speakers(scores.trials, speaker_of)
    rng = np.random.default_rng(seed)
    trials = _Ordered(scores, speakers)
    measured = [name for name in FIGURES if getattr(metrics, name) is not None]
    values = np.empty((replicates, len(measured)))
    for number in range(replicates):
        replicate = curve_metrics(trials.draw(rng), llr=llr)
        values[number] = [getattr(replicate, name) for name in measured]
        progress()
    unit, units = ("trials", len(scores)) if speakers is None else ("speakers", speakers.count)
    drawn_from = (seed, replicates, unit, units, trials.fingerprint())
    return Bootstrap(metrics, dict(zip(measured, values.T, strict=True)), unit, units, drawn_from)


@dataclass(frozen=True, eq=False)
class TrialSpeakers:
    """Numbers of the enrolled and the test speaker (trials,) of each trial, among ``count`` in the order of names."""

    enrol: Rows
    test: Rows
    count: int


def trial_speakers(trials: Trials, speaker_of: SpeakerOf | None = None) -> TrialSpeakers | None:
    """Who stands on the two sides of each trial; ``None`` where nothing says so.

    Args:
        trials: labelled.
        speaker_of: as for :func:`bootstrap`.

    Raises:
        DataError: an id has no speaker, or a label says otherwise than the speakers.
    """
    if speaker_of is not None:
        found = _numbered(trials, speaker_of)
        wrong = (found.enrol == found.test) != trials.labels
        if wrong.any():
            row = int(np.argmax(wrong))
            pair = f"{trials.enrol_ids[trials.enrol[row]]} {trials.test_ids[trials.test[row]]}"
            raise DataError(
                trials.source,
                f"{np.sum(wrong)} labels contradict the speakers, {pair!r} first",
                "check that trials and utt2spk belong together",
            )
        return found
    for separator in SEPARATORS:
        found = _numbered(trials, lambda key, end=separator: key.partition(end)[0])  # type: ignore[misc]
        if np.array_equal(found.enrol == found.test, trials.labels):  # type: ignore[arg-type]
            return found
    return None


def _numbered(trials: Trials, speaker_of: SpeakerOf) -> TrialSpeakers:
    find = speaker_of.__getitem__ if isinstance(speaker_of, Mapping) else speaker_of
    sides = []
    for ids in (trials.enrol_ids, trials.test_ids):
        try:
            sides.append([find(key) for key in ids])
        except KeyError as error:
            raise DataError(trials.source, f"no speaker is known of {error.args[0]!r}", "add it to utt2spk") from None
    numbers = {name: number for number, name in enumerate(sorted({*sides[0], *sides[1]}))}
    enrol, test = (np.array([numbers[name] for name in side], dtype=np.intp) for side in sides)
    return TrialSpeakers(enrol[trials.enrol], test[trials.test], len(numbers))


class _Ordered:
    """Trials sorted by score once, for all replicates."""

    def __init__(self, scores: Scores, speakers: TrialSpeakers | None) -> None:
        trials = scores.trials
        labels = np.asarray(trials.labels)
        # Sorted by names first, so that draws of single trials mean the same in any order of the list.
        names = [np.argsort(np.argsort(ids)) for ids in (trials.enrol_ids, trials.test_ids)]
        canonical = np.lexsort((scores.scores, names[1][trials.test], names[0][trials.enrol]))
        order = canonical[np.argsort(scores.scores[canonical], kind="stable")]
        values = scores.scores[order]
        self.last = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)  # of each run of ties
        self.values = values[self.last]
        self.labels = labels[order]
        place = np.empty(len(order), dtype=np.intp)
        place[order] = np.arange(len(order))
        self.kinds = [place[canonical[labels[canonical] == kind]] for kind in (True, False)]
        self.trials, self.canonical = trials, canonical
        self.speakers = speakers and TrialSpeakers(speakers.enrol[order], speakers.test[order], speakers.count)

    def fingerprint(self) -> int:
        """Equal for equal sets of trials."""
        trials = self.trials
        enrol, test = (
            np.array([hash(key) for key in ids])[side[self.canonical]]
            for ids, side in ((trials.enrol_ids, trials.enrol), (trials.test_ids, trials.test))
        )
        return hash((enrol.tobytes(), test.tobytes()))

    def draw(self, rng: np.random.Generator) -> ErrorCurve:
        """A replicate of the test set."""
        return self._by_trial(rng) if self.speakers is None else self._by_speaker(rng, self.speakers)

    def _by_speaker(self, rng: np.random.Generator, speakers: TrialSpeakers) -> ErrorCurve:
        """The trials of speakers drawn with replacement."""
        count = speakers.count
        while True:  # some five draws at worst
            drawn = np.bincount(rng.integers(count, size=count), minlength=count)
            weights = drawn[speakers.enrol] * np.where(self.labels, 1, drawn[speakers.test])
            curve = self._curve(weights)
            if curve.targets and curve.nontargets:
                return curve

    def _by_trial(self, rng: np.random.Generator) -> ErrorCurve:
        """As many target and nontarget trials as there are, drawn with replacement."""
        weights = np.zeros(len(self.labels), dtype=np.int64)
        for places in self.kinds:
            weights[places] = np.bincount(rng.integers(len(places), size=len(places)), minlength=len(places))
        return self._curve(weights)

    def _curve(self, weights: Counts) -> ErrorCurve:
        """Error counts of trials that count ``weights`` (trials,) times."""
        misses = np.append(0, np.cumsum(np.where(self.labels, weights, 0))[self.last])
        rejected = np.append(0, np.cumsum(weights)[self.last])
        targets = int(misses[-1])
        nontargets = int(rejected[-1]) - targets
        return ErrorCurve(self.values, misses, nontargets - (rejected - misses), targets, nontargets)
