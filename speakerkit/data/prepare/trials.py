"""Trial lists: VoxCeleb's (``1 enrol test``) and Kaldi's (``enrol test target``) to Kaldi's, and all pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

from speakerkit.data.lists import read_lines, read_table
from speakerkit.errors import DataError
from speakerkit.files import write_lines

ALL_PAIRS = "all-pairs"
LABELS = {"1": "target", "0": "nontarget", "target": "target", "nontarget": "nontarget"}


def parse_trials(path: str | Path) -> Iterator[tuple[str, str, str]]:
    """(enrolment, test, "target" or "nontarget") of each line of a list in either format.

    Raises:
        DataError: a line of neither format.
    """
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split()
        if len(parts) == 3 and parts[2] in LABELS:
            yield parts[0], parts[1], LABELS[parts[2]]
        elif len(parts) == 3 and parts[0] in ("0", "1"):
            yield parts[1], parts[2], LABELS[parts[0]]
        else:
            raise DataError(
                path, f"line {number} is not a trial: {line!r}", "expected `enrol test target|nontarget` or `1|0 a b`"
            )


def all_pairs(speakers: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Every unordered pair of the utterances in ``speakers`` (key to speaker), in the order of the keys."""
    for first, second in combinations(sorted(speakers), 2):
        yield first, second, "target" if speakers[first] == speakers[second] else "nontarget"


def write_trials(path: Path, source: str | Path, keys: Collection[str]) -> int:
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
        trials: Iterable[tuple[str, str, str]] = all_pairs(speakers)
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
    write_lines(path, (" ".join(trial) for trial in trials))
    return count
