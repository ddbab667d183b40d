"""Trial lists on the ground floor: the forms of a line, all pairs, and Kaldi lists from those that others publish."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

from speakerkit.data.lists import read_lines, read_table
from speakerkit.errors import DataError
from speakerkit.files import write_lines

ALL_PAIRS = "all-pairs"
VOXCELEB_LABELS = {"1": True, "0": False}
LABELS = {"target": True, "nontarget": False, "tgt": True, "imp": False, **VOXCELEB_LABELS}
NAMES = {True: "target", False: "nontarget"}

Trial = tuple[str, str, bool]
"""Enrolment id, test id, same speaker."""


def parse_trial(line: str) -> Trial | None:
    """``enrol test target|nontarget`` (or ``tgt|imp``, ``1|0``), VoxCeleb's ``1|0 enrol test``; ``None`` for others."""
    parts = line.split()
    if len(parts) != 3:
        return None
    if parts[2] in LABELS:
        return parts[0], parts[1], LABELS[parts[2]]
    return (parts[1], parts[2], VOXCELEB_LABELS[parts[0]]) if parts[0] in VOXCELEB_LABELS else None


def parse_trials(path: str | Path) -> Iterator[Trial]:
    """The trials of a labelled list.

    Raises:
        DataError: a line of another form.
    """
    for number, line in enumerate(read_lines(path), start=1):
        trial = parse_trial(line)
        if trial is None:
            raise DataError(
                path,
                f"line {number} is not a trial: {line[:200]!r}",
                "expected `enrol test target|nontarget` or `1|0 a b`",
            )
        yield trial


def all_pairs(speakers: Mapping[str, str]) -> Iterator[Trial]:
    """Every unordered pair of the utterances in ``speakers`` (key to speaker), in the order of the keys."""
    for first, second in combinations(sorted(speakers), 2):
        yield first, second, speakers[first] == speakers[second]


def write_trial_list(path: str | Path, trials: Iterable[Trial]) -> None:
    """Write ``enrol test target|nontarget``, atomically."""
    write_lines(path, (f"{enrol} {test} {NAMES[same]}" for enrol, test, same in trials))


def prepare_trials(path: Path, source: str | Path, keys: Collection[str]) -> int:
    """Write a Kaldi trial list into a data directory and return its length.

    Args:
        path: the list to write; ``utt2spk`` lies beside it.
        source: "all-pairs", or a list to convert.
        keys: the utterances there are.

    Raises:
        DataError: the list names an utterance that is not in ``keys``, or there would be no trial.
    """
    if source == ALL_PAIRS:
        speakers = read_table(path.parent / "utt2spk")
        trials: Iterable[Trial] = all_pairs(speakers)
        count = len(speakers) * (len(speakers) - 1) // 2
    else:
        trials = list(parse_trials(source))
        count = len(trials)
        missing = {key for enrolment, test, _ in trials for key in (enrolment, test)} - set(keys)
        if missing:
            raise DataError(
                source, f"names {len(missing)} utterances that are not there, {min(missing)!r} first", "check the list"
            )
    if not count:
        raise DataError(source, "gives no trials", "two utterances or more are needed")
    write_trial_list(path, trials)
    return count
