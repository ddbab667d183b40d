"""Trials (is the test speaker the enrolled one?) and their scores, as text files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speakerkit.data.lists import read_lines
from speakerkit.data.trials import LABELS, VOXCELEB_LABELS
from speakerkit.errors import DataError
from speakerkit.files import write_lines


@dataclass(frozen=True, eq=False)
class Trials:
    """Pairs to compare: names once each, and where each trial finds its two.

    Attributes:
        enrol_ids: enrolment ids, unique.
        test_ids: test ids, unique.
        enrol: (trials,) indices into ``enrol_ids``.
        test: (trials,) indices into ``test_ids``.
        labels: (trials,) True for the same speaker; ``None`` where it is not known.
        source: file that they come from; error messages name it.
    """

    enrol_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    enrol: npt.NDArray[np.intp]
    test: npt.NDArray[np.intp]
    labels: npt.NDArray[np.bool_] | None = None
    source: str = "trials"

    @classmethod
    def from_pairs(
        cls,
        enrol: Sequence[str],
        test: Sequence[str],
        labels: npt.ArrayLike | None = None,
        source: str = "trials",
    ) -> Trials:
        """Trials from two columns of ids and, where they are known, the labels.

        Raises:
            DataError: no trials, or columns of different lengths.
        """
        truth = None if labels is None else np.asarray(labels, dtype=np.bool_)
        if not len(enrol):
            raise DataError(source, "holds no trials", "a line is: enrolment test target|nontarget")
        if len(enrol) != len(test) or (truth is not None and truth.shape != (len(enrol),)):
            raise DataError(source, "has columns of different lengths", "each trial needs its two ids and a label")
        enrol_ids, enrol_index = _index(enrol)
        test_ids, test_index = _index(test)
        return cls(enrol_ids, test_ids, enrol_index, test_index, truth, source)

    def __len__(self) -> int:
        return len(self.enrol)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The two ids of each trial, in order."""
        return zip(_names(self.enrol_ids, self.enrol), _names(self.test_ids, self.test), strict=True)


@dataclass(frozen=True, eq=False)
class Scores:
    """Trials with a score each; higher says same speaker.

    Attributes:
        trials: what was compared.
        scores: (trials,) float64.
    """

    trials: Trials
    scores: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        if scores.shape != (len(self.trials),):
            fault = f"has {len(self.trials)} trials for scores of shape {scores.shape}"
            raise DataError(self.trials.source, fault, "score each trial once")
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        return len(self.scores)


def read_trials(path: str | Path) -> Trials:
    """Read ``enrol test [target|nontarget]`` (``tgt|imp`` too), or VoxCeleb's ``1|0 enrol test``.

    The first line tells which; all lines must be of its kind.

    Raises:
        DataError: missing file, no trials, a label that is not known, or lines with different columns.
    """
    columns, lines = _columns(path, (2, 3), "enrolment test target|nontarget")
    if len(columns) == 2:
        return Trials.from_pairs(columns[0], columns[1], source=str(path))
    if columns[2][0] not in LABELS and columns[0][0] in VOXCELEB_LABELS:
        labels = _labels(path, columns[0], VOXCELEB_LABELS, lines)
        return Trials.from_pairs(columns[1], columns[2], labels, str(path))
    return Trials.from_pairs(columns[0], columns[1], _labels(path, columns[2], LABELS, lines), str(path))


def write_trials(path: str | Path, trials: Trials) -> None:
    """Write ``enrol test target|nontarget`` (two columns where labels are not known), atomically."""
    _write(path, trials)


def read_scores(path: str | Path) -> Scores:
    """Read ``enrol test score [target|nontarget]``.

    Raises:
        DataError: missing file, no trials, a score that is no finite number, an unknown label, or ragged lines.
    """
    columns, lines = _columns(path, (3, 4), "enrolment test score target|nontarget")
    try:
        scores = np.fromiter(map(float, columns[2]), dtype=np.float64, count=len(lines))
    except ValueError:
        scores = np.array([_number(word) for word in columns[2]])
    finite = np.isfinite(scores)
    if not finite.all():
        number = int(np.argmin(finite))
        raise DataError(
            path, f"line {number + 1} has no finite score: {lines[number]!r}", "expected: enrolment test score label"
        )
    labels = _labels(path, columns[3], LABELS, lines) if len(columns) == 4 else None
    return Scores(Trials.from_pairs(columns[0], columns[1], labels, str(path)), scores)


def write_scores(path: str | Path, scores: Scores) -> None:
    """Write ``enrol test score [target|nontarget]``, atomically.

    Scores have as many digits as give the same float64 back, so that a file makes no ties and metrics of the file
    are those of the array.
    """
    _write(path, scores.trials, map(repr, scores.scores.tolist()))


def _write(path: str | Path, trials: Trials, *columns: Iterable[str]) -> None:
    """Write the ids, ``columns``, and the labels where they are known."""
    columns = (_names(trials.enrol_ids, trials.enrol), _names(trials.test_ids, trials.test), *columns)
    if trials.labels is not None:
        columns = (*columns, _names(("nontarget", "target"), trials.labels))
    write_lines(path, map(" ".join, zip(*columns, strict=True)))


def _names(names: Sequence[str], index: npt.NDArray[Any]) -> Iterator[str]:
    return map(names.__getitem__, index.tolist())


def _index(names: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.intp]]:
    """Unique names in order of appearance, and where each of ``names`` stands among them."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers), np.fromiter(map(numbers.__getitem__, names), dtype=np.intp, count=len(names))


def _columns(path: str | Path, widths: tuple[int, int], form: str) -> tuple[list[list[str]], list[str]]:
    """Columns of a text file whose lines all have as many words as its first; and its lines."""
    lines = read_lines(path)
    if not lines:
        raise DataError(path, "holds no trials", f"a line is: {form}")
    width = len(lines[0].split())
    words: list[str] = []
    for number, line in enumerate(lines, start=1):
        row = line.split()
        if len(row) != width or width not in widths:
            fault = f"line {number} has {len(row)} columns: {line[:200]!r}"
            raise DataError(path, fault, f"every line is: {form}; the last may be left out in all of them")
        words += row
    return [words[column::width] for column in range(width)], lines


def _labels(
    path: str | Path, words: Sequence[str], known: dict[str, bool], lines: Sequence[str]
) -> npt.NDArray[np.bool_]:
    if not set(words) <= known.keys():
        number = next(number for number, word in enumerate(words) if word not in known)
        raise DataError(
            path,
            f"line {number + 1} has an unknown label {words[number]!r}: {lines[number][:200]!r}",
            f"labels are {' '.join(LABELS)}, or 1 0 in the first column",
        )
    return np.fromiter(map(known.__getitem__, words), dtype=np.bool_, count=len(words))


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")
