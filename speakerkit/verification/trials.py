"""Trials (is the test speaker the enrolled one?) and their scores, as text files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speakerkit.data.lists import read_lines
from speakerkit.data.trials import LABELS, VOXCELEB_LABELS
from speakerkit.errors import DataError
from speakerkit.files import atomic_open

# Text goes through in blocks: a list of millions of trials is held as numbers, never as words.
READ_CHARACTERS = 1 << 22
WRITTEN_LINES = 1 << 16
# Stands for the end of a line among words; no word of a list of ours.
LINE_END = "\0"


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
        enrol_names, test_names = _Names(), _Names()
        enrol_names.add(enrol)
        test_names.add(test)
        return cls(enrol_names.ids, test_names.ids, enrol_names.index, test_names.index, truth, source)

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

    The first line tells which; all lines must be of its kind. Memory is 17 bytes a trial beside the names.

    Raises:
        DataError: missing file, no trials, a label that is not known, or lines with different columns.
    """
    enrol, test = _Names(), _Names()
    truth: list[npt.NDArray[np.bool_]] = []
    voxceleb: bool | None = None
    for block in _blocks(path, (2, 3), "enrolment test target|nontarget"):
        columns = block.columns
        if voxceleb is None:
            voxceleb = len(columns) == 3 and columns[2][0] not in LABELS and columns[0][0] in VOXCELEB_LABELS
        ids = columns[1:] if voxceleb else columns
        enrol.add(ids[0])
        test.add(ids[1])
        if len(columns) == 3:
            truth.append(block.labels(0, VOXCELEB_LABELS) if voxceleb else block.labels(2, LABELS))
    labels = np.concatenate(truth) if truth else None
    return Trials(enrol.ids, test.ids, enrol.index, test.index, labels, str(path))


def write_trials(path: str | Path, trials: Trials) -> None:
    """Write ``enrol test target|nontarget`` (two columns where labels are not known), atomically."""
    with atomic_open(path) as stream:
        stream.writelines(_text(trials))


def read_scores(path: str | Path) -> Scores:
    """Read ``enrol test score [target|nontarget]``.

    Raises:
        DataError: missing file, no trials, a score that is no finite number, an unknown label, or ragged lines.
    """
    enrol, test = _Names(), _Names()
    scores: list[npt.NDArray[np.float64]] = []
    truth: list[npt.NDArray[np.bool_]] = []
    for block in _blocks(path, (3, 4), "enrolment test score target|nontarget"):
        enrol.add(block.columns[0])
        test.add(block.columns[1])
        scores.append(block.numbers(2))
        if len(block.columns) == 4:
            truth.append(block.labels(3, LABELS))
    labels = np.concatenate(truth) if truth else None
    return Scores(Trials(enrol.ids, test.ids, enrol.index, test.index, labels, str(path)), np.concatenate(scores))


def write_scores(path: str | Path, scores: Scores) -> None:
    """Write ``enrol test score [target|nontarget]``, atomically.

    Scores have as many digits as give the same float64 back, so that a file makes no ties and metrics of the file
    are those of the array.
    """
    write_score_blocks(path, [scores])


def write_score_blocks(path: str | Path, blocks: Iterable[Scores]) -> int:
    """Write scores as :func:`write_scores` does, block after block as they come; returns the number of trials."""
    count = 0
    with atomic_open(path) as stream:
        for scores in blocks:
            stream.writelines(_text(scores.trials, scores.scores))
            count += len(scores)
    return count


def _text(trials: Trials, scores: npt.NDArray[np.float64] | None = None) -> Iterator[str]:
    """Lines of the ids, the scores, and the labels where they are known; many lines at a time."""
    enrol_ids, test_ids = np.array(trials.enrol_ids, dtype=object), np.array(trials.test_ids, dtype=object)
    label_names = np.array(["nontarget", "target"], dtype=object)
    for start in range(0, len(trials), WRITTEN_LINES):
        part = slice(start, start + WRITTEN_LINES)
        columns: list[Iterable[str]] = [enrol_ids[trials.enrol[part]].tolist(), test_ids[trials.test[part]].tolist()]
        if scores is not None:
            columns.append(map(repr, scores[part].tolist()))
        if trials.labels is not None:
            columns.append(label_names[trials.labels[part].astype(np.intp)].tolist())
        yield "\n".join(map(" ".join, zip(*columns, strict=True))) + "\n"


def _names(names: Sequence[str], index: npt.NDArray[Any]) -> Iterator[str]:
    return map(names.__getitem__, index.tolist())


class _Names:
    """Unique names in order of appearance, and which of them each trial has."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__
        self._index: list[npt.NDArray[np.intp]] = []

    def add(self, names: Sequence[str]) -> None:
        self._index.append(np.fromiter(map(self._numbers.__getitem__, names), dtype=np.intp, count=len(names)))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._numbers)

    @property
    def index(self) -> npt.NDArray[np.intp]:
        return np.concatenate(self._index)


@dataclass(frozen=True, eq=False)
class _Block:
    """Whole lines of a text file, and the columns of those that are not blank."""

    path: str | Path
    text: str
    first_number: int
    columns: list[list[str]]

    def labels(self, column: int, known: Mapping[str, bool]) -> npt.NDArray[np.bool_]:
        words = self.columns[column]
        if not set(words) <= known.keys():
            row = next(row for row, word in enumerate(words) if word not in known)
            raise self._fault(
                row, f"has an unknown label {words[row][:200]!r}", f"labels are {' '.join(LABELS)}, or 1 0 in front"
            )
        return np.fromiter(map(known.__getitem__, words), dtype=np.bool_, count=len(words))

    def numbers(self, column: int) -> npt.NDArray[np.float64]:
        words = self.columns[column]
        try:
            numbers = np.fromiter(map(float, words), dtype=np.float64, count=len(words))
        except ValueError:
            numbers = np.array([_number(word) for word in words])
        finite = np.isfinite(numbers)
        if not finite.all():
            raise self._fault(int(np.argmin(finite)), "has no finite score", "expected: enrolment test score label")
        return numbers

    def _fault(self, row: int, fault: str, remedy: str) -> DataError:
        lines = ((number, line) for number, line in enumerate(self.text.split("\n"), self.first_number) if line.split())
        number, line = next(islice(lines, row, None))
        return DataError(self.path, f"line {number} {fault}: {line[:200]!r}", remedy)


def _blocks(path: str | Path, widths: tuple[int, int], form: str) -> Iterator[_Block]:
    """Blocks of a text file whose lines all have as many words as its first."""
    width, number = 0, 1
    for text in _whole_lines(path):
        width = width or len(next(filter(None, map(str.split, text.split("\n"))), ()))
        if width:
            columns = _plain_columns(text, width) if width in widths else None
            if columns is None:
                columns = _checked_columns(path, text, number, width, widths, form)
            yield _Block(path, text, number, columns)
        number += text.count("\n")
    if not width:
        raise DataError(path, "holds no trials", f"a line is: {form}")


def _plain_columns(text: str, width: int) -> list[list[str]] | None:
    """Columns of a text of plain lines, split in one go; ``None`` where one is blank or has another width."""
    lines = text.count("\n")
    words = text.replace("\n", f" {LINE_END} ").split()
    ends = words[width :: width + 1]
    if LINE_END in text or len(words) != lines * (width + 1) or ends.count(LINE_END) != lines:
        return None
    return [words[column :: width + 1] for column in range(width)]


def _checked_columns(
    path: str | Path, text: str, first: int, width: int, widths: tuple[int, int], form: str
) -> list[list[str]]:
    """Columns of any text, line by line."""
    words: list[str] = []
    for number, line in enumerate(text.split("\n"), start=first):
        row = line.split()
        if row and (len(row) != width or width not in widths):
            fault = f"line {number} has {len(row)} columns: {line[:200]!r}"
            raise DataError(path, fault, f"every line is: {form}; the last may be left out in all of them")
        words += row
    return [words[column::width] for column in range(width)]


def _whole_lines(path: str | Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            while text := stream.read(READ_CHARACTERS) + stream.readline():
                yield text if text.endswith("\n") else text + "\n"
    except (OSError, UnicodeDecodeError):
        read_lines(path)  # says what is wrong, as it does of every list
        raise


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")
