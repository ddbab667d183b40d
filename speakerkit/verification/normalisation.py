"""Score normalisation: a cosine as deviations from what impostors, the cohort, score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.data.ark import Embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.cosine import (
    ROUNDING,
    Sides,
    at_length_one,
    directions,
    mean_directions,
    score_trials,
)
from speakerkit.verification.speakers import speakers_of
from speakerkit.verification.trials import Scores, Trials
from speakerkit.verification.vectors import Floats, Rows

ADAPTIVE = ("as-norm1", "as-norm2")
METHODS = (*ADAPTIVE, "s-norm", "z-norm", "t-norm")
TOP = 300
# Cohort scores held at once: 16 MB of whole rows, or 1 MB picked out of them, which stays in the cache of a core.
SCORES_AT_ONCE = 1 << 21
GATHERED_AT_ONCE = 1 << 17


@dataclass(frozen=True, eq=False)
class Cohort:
    """Impostors.

    Attributes:
        ids: speakers, or keys of utterances.
        vectors: (members, dim) directions.
        source: file that they come from; error messages name it.
    """

    ids: tuple[str, ...]
    vectors: Floats
    source: str = "cohort"

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class CohortStatistics:
    """Mean and standard deviation (of the population, as ``np.std``) of cohort scores.

    Attributes:
        enrol_means: (trials,) of the enrolment's cosines with the cohort.
        enrol_stds: (trials,)
        test_means: (trials,) of the test's cosines with the cohort.
        test_stds: (trials,)
    """

    enrol_means: Floats
    enrol_stds: Floats
    test_means: Floats
    test_stds: Floats


def make_cohort(
    embeddings: Embeddings, speakers: Mapping[str, str] | None = None, mean: npt.ArrayLike | None = None
) -> Cohort:
    """A cohort of speakers, each the mean of its embeddings' directions, or without ``speakers`` of all embeddings.

    Args:
        embeddings: those of the cohort, all of which are used.
        speakers: speaker of each key; may know more keys.
        mean: (dim,) subtracted first, the same as from the sides of the trials.

    Raises:
        DataError: a key without speaker, or an embedding without direction.
    """
    if speakers is None:
        return Cohort(tuple(embeddings.keys), directions(embeddings, embeddings.keys, mean), embeddings.source)
    groups: dict[str, list[str]] = {}
    for key, speaker in zip(embeddings.keys, speakers_of(embeddings, speakers), strict=True):
        groups.setdefault(speaker, []).append(key)
    means = mean_directions(embeddings, groups, mean)
    return Cohort(tuple(groups), at_length_one(means, tuple(groups), embeddings.source), embeddings.source)


def cohort_overlap(
    cohort_keys: Iterable[str],
    trial_keys: Iterable[str],
    cohort_speakers: Mapping[str, str] | None = None,
    trial_speakers: Mapping[str, str] | None = None,
) -> list[str]:
    """Speakers and utterances that stand in the cohort and in the trials, sorted.

    A cohort score of a speaker with itself is no impostor's. Speakers are known as far as the maps (key to speaker)
    tell; a key may itself be a speaker's name.
    """
    return sorted(_named(cohort_keys, cohort_speakers or {}) & _named(trial_keys, trial_speakers or {}))


def normalise_cosine(
    sides: Sides, trials: Trials, cohort: Cohort, method: str = "as-norm1", top: int | None = None
) -> Scores:
    """Normalised cosine of each trial.

    With s the cosine of enrolment e and test t, S(x) the cosines of x with the cohort, and T(x) the ``top`` members
    nearest to x (Matejka et al., "Analysis of score normalization in multilingual speaker recognition", Interspeech
    2017):

    - z-norm: (s - mean S(e)) / std S(e); t-norm: the same of t; s-norm: the mean of the two.
    - as-norm1: s-norm, with S(e) over T(e) and S(t) over T(t): each side chooses its own impostors.
    - as-norm2: s-norm, with S(e) over T(t) and S(t) over T(e): each side is held against those that are near the other.

    With ``top`` the whole cohort both adaptive methods are s-norm.

    Args:
        sides: directions of the ids of ``trials``, in their order.
        trials: what to compare.
        cohort: impostors.
        method: one of ``METHODS``.
        top: members of the adaptive cohorts; ``None`` is 300. The others take the whole cohort.

    Raises:
        ConfigError: an unknown method, or a top that it has no use for.
        DataError: as :func:`cohort_statistics`, and :func:`normalise`.
    """
    if method not in METHODS:
        raise ConfigError("method", f"{method!r} is not known", f"choose one of {' '.join(METHODS)}")
    if method not in ADAPTIVE and top is not None:
        raise ConfigError("top", f"{method} takes the whole cohort", f"leave it out, or choose {' or '.join(ADAPTIVE)}")
    members = (TOP if top is None else top) if method in ADAPTIVE else len(cohort)
    statistics = cohort_statistics(sides, trials, cohort, members, crossed=method == "as-norm2")
    return normalise(score_trials(sides, trials), statistics, method)


def normalise(scores: Scores, statistics: CohortStatistics, method: str) -> Scores:
    """Scores as deviations from the statistics of one side, or as the mean of both.

    Raises:
        DataError: the cohort scores of a trial are all equal; names the id.
    """
    trials = scores.trials
    deviations: list[Floats] = []
    if method != "t-norm":
        _check_spread(statistics.enrol_stds, trials.source, trials.enrol_ids, trials.enrol)
        deviations.append((scores.scores - statistics.enrol_means) / statistics.enrol_stds)
    if method != "z-norm":
        _check_spread(statistics.test_stds, trials.source, trials.test_ids, trials.test)
        deviations.append((scores.scores - statistics.test_means) / statistics.test_stds)
    return Scores(trials, np.mean(deviations, axis=0))


def cohort_statistics(
    sides: Sides, trials: Trials, cohort: Cohort, top: int | None = None, *, crossed: bool = False
) -> CohortStatistics:
    """What the cohort scores against both sides of each trial; the means are also measures of quality.

    Memory beside the arguments and the result is a few blocks of 16 MB (or of one row of cohort scores), and for
    ``crossed`` the numbers of the chosen members: ids x top x 8 bytes.

    Args:
        sides: directions of the ids of ``trials``, in their order.
        trials: what to compare.
        cohort: impostors.
        top: how many of the cohort count, the best-scoring ones; ``None`` is all.
        crossed: the members are those that score best against the other side of the trial.

    Raises:
        DataError: a cohort of another dimension, or of fewer members than ``top``.
        ConfigError: a ``top`` under two, which has no deviation.
    """
    if cohort.vectors.shape[1] != sides.vectors.shape[1]:
        raise DataError(
            cohort.source,
            f"has {cohort.vectors.shape[1]} values a row, the trials' embeddings {sides.vectors.shape[1]}",
            "both must come from one model",
        )
    top = len(cohort) if top is None else top
    if top > len(cohort):
        raise DataError(
            cohort.source, f"is a cohort of {len(cohort)}, of which the top {top} are asked for", "ask for fewer"
        )
    if top < 2:
        raise ConfigError("top", f"{top} cohort scores have no standard deviation", "take two or more, such as 300")
    enrol, test = sides.enrol[trials.enrol], sides.test[trials.test]
    if crossed:
        chosen = _nearest(sides.vectors, cohort, top)
        return CohortStatistics(
            *_crossed_statistics(sides.vectors, cohort, chosen, enrol, test),
            *_crossed_statistics(sides.vectors, cohort, chosen, test, enrol),
        )
    means, stds = _own_statistics(sides.vectors, cohort, top)
    return CohortStatistics(means[enrol], stds[enrol], means[test], stds[test])


def _own_statistics(vectors: Floats, cohort: Cohort, top: int) -> tuple[Floats, Floats]:
    """Mean and deviation (rows,) of the ``top`` best cohort scores of each row."""
    means, stds = np.empty(len(vectors)), np.empty(len(vectors))
    for part, scores in _cohort_scores(vectors, cohort):
        scores.partition(-top, axis=1)
        means[part], stds[part] = _moments(scores[:, -top:])
    return means, stds


def _nearest(vectors: Floats, cohort: Cohort, top: int) -> Rows:
    """The ``top`` members (rows, top) that score best against each row, in no order."""
    chosen = np.empty((len(vectors), top), dtype=np.intp)
    for part, scores in _cohort_scores(vectors, cohort):
        chosen[part] = np.argpartition(scores, -top, axis=1)[:, -top:]
    return chosen


def _crossed_statistics(vectors: Floats, cohort: Cohort, chosen: Rows, own: Rows, other: Rows) -> tuple[Floats, Floats]:
    """Mean and deviation (trials,) of the scores of row ``own`` with the members that row ``other`` has chosen."""
    means, stds = np.empty(len(own)), np.empty(len(own))
    order = np.argsort(own, kind="stable")
    sorted_own = own[order]
    at_once = max(1, GATHERED_AT_ONCE // chosen.shape[1])
    for part, scores in _cohort_scores(vectors, cohort):
        first, last = np.searchsorted(sorted_own, (part.start, part.stop))
        for start in range(first, last, at_once):
            trials = order[start : min(start + at_once, last)]
            members = chosen[other[trials]]  # (trials, top)
            members += ((own[trials] - part.start) * len(cohort))[:, None]
            means[trials], stds[trials] = _moments(scores.take(members))
    return means, stds


def _moments(scores: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (rows,) of each row; the scores are overwritten."""
    means = scores.mean(axis=1)
    scores -= means[:, None]
    return means, np.sqrt(np.einsum("rt,rt->r", scores, scores) / scores.shape[1])


def _cohort_scores(vectors: Floats, cohort: Cohort) -> Iterator[tuple[slice, Floats]]:
    """Cosines of blocks of rows with the whole cohort."""
    height = max(1, SCORES_AT_ONCE // len(cohort))
    for start in range(0, len(vectors), height):
        part = slice(start, start + height)
        yield part, vectors[part] @ cohort.vectors.T  # (height, members)


def _check_spread(stds: Floats, source: str, ids: tuple[str, ...], index: Rows) -> None:
    equal = stds <= ROUNDING
    if equal.any():
        raise DataError(
            source,
            f"the cohort scores of {ids[index[int(np.argmax(equal))]]!r} are all equal "
            f"({np.sum(equal)} of {len(equal)} trials)",
            "take a cohort of different speakers, or more of it",
        )


def _named(keys: Iterable[str], speakers: Mapping[str, str]) -> set[str]:
    names = set(keys)
    return names | {speakers[key] for key in names if key in speakers}
