"""Kaldi-like directories of mixtures: what is mixed, who speaks when, and the enrolment of each voice to extract."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from speakerkit.data.lists import read_durations, read_lines, read_scp, read_table, write_table
from speakerkit.errors import DataError
from speakerkit.files import write_lines

RTTM_REMEDY = "a line is: SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>"


@dataclass(frozen=True)
class Target:
    """A voice to extract from a mixture.

    Attributes:
        speaker: who it is.
        enrolment: path of a recording of them, of another utterance than the one in the mixture.
        reference: path of the voice alone, as long as the mixture; "" where the speaker is not in it.
    """

    speaker: str
    enrolment: str
    reference: str = ""


@dataclass(frozen=True)
class ListedMixture:
    """One mixture of a directory.

    Attributes:
        key: its id.
        wav: path.
        seconds: its length.
        targets: voices to extract, by speaker.
        turns: (start, end, speaker) in seconds, of all who speak in it, targets or not.
        utterances: ids of what is mixed in it.
    """

    key: str
    wav: str
    seconds: float
    targets: tuple[Target, ...]
    turns: tuple[tuple[float, float, str], ...] = ()
    utterances: tuple[str, ...] = ()


def target_key(mixture: str, speaker: str) -> str:
    """The key of a target in ``ref.scp``, ``enroll.scp`` and ``utt2spk``."""
    return f"{mixture}-{speaker}"


def write_mixture_dir(out: str | Path, mixtures: Iterable[ListedMixture]) -> None:
    """Write ``wav.scp reco2dur reco2utts rttm`` of mixtures and ``ref.scp enroll.scp utt2spk spk2utt`` of targets.

    A target who is not in the mixture stands in ``enroll.scp`` and ``utt2spk`` and not in ``ref.scp``.

    Raises:
        DataError: no mixtures, a key twice, ids with blanks, or a reference that is also the enrolment.
    """
    out = Path(out)
    listed = sorted(mixtures, key=lambda each: each.key)
    if not listed:
        raise DataError(out, "would hold no mixtures", "check what it is made from")
    twice = next((one.key for one, two in pairwise(listed) if one.key == two.key), None)
    if twice is not None:
        raise DataError(out, f"the mixture {twice!r} comes twice", "ids must be unique")
    rows: dict[str, Target] = {}
    for each in listed:
        for target in each.targets:
            key = target_key(each.key, target.speaker)
            if key in rows:
                raise DataError(out, f"the target {key!r} comes twice", "keys are MIXTURE-SPEAKER: rename one")
            rows[key] = target
    for name in [*(each.key for each in listed), *(target.speaker for target in rows.values())]:
        if not name or len(name.split()) != 1:
            raise DataError(out, f"id {name!r} is empty or holds blanks", "rename it")
    same = next((key for key, target in rows.items() if target.enrolment == target.reference), None)
    if same is not None:
        raise DataError(out, f"{same!r} is enrolled with the very recording to extract", "take another utterance")
    by_speaker: dict[str, list[str]] = {}
    for key, target in sorted(rows.items()):
        by_speaker.setdefault(target.speaker, []).append(key)
    write_table(out / "ref.scp", {key: each.reference for key, each in rows.items() if each.reference})
    write_table(out / "enroll.scp", {key: each.enrolment for key, each in rows.items()})
    write_table(out / "utt2spk", {key: each.speaker for key, each in rows.items()})
    write_table(out / "spk2utt", {speaker: " ".join(keys) for speaker, keys in by_speaker.items()})
    write_table(out / "reco2dur", {each.key: f"{each.seconds:.4f}" for each in listed})
    write_table(out / "reco2utts", {each.key: " ".join(each.utterances) for each in listed if each.utterances})
    write_lines(out / "rttm", (line for each in listed for line in _rttm(each)))
    write_table(out / "wav.scp", {each.key: each.wav for each in listed})  # last: with it, the directory is whole


def _rttm(mixture: ListedMixture) -> list[str]:
    return [
        f"SPEAKER {mixture.key} 1 {start:.3f} {end - start:.3f} <NA> <NA> {speaker} <NA> <NA>"
        for start, end, speaker in sorted(mixture.turns)
        if round(end - start, 3) > 0
    ]


def read_mixture_dir(folder: str | Path) -> list[ListedMixture]:
    """The mixtures of a directory, sorted by key; mixtures without targets are among them.

    Raises:
        DataError: files that are missing or contradict each other, or that name files that are not there (counted).
    """
    folder = Path(folder)
    wavs, enrolments = read_scp(folder / "wav.scp"), read_scp(folder / "enroll.scp")
    references, speakers = read_scp(folder / "ref.scp"), read_table(folder / "utt2spk")
    seconds = read_durations(folder / "reco2dur")
    for name, lacking in (
        ("reco2dur", wavs.keys() - seconds.keys()),
        ("utt2spk", enrolments.keys() - speakers.keys()),
        ("enroll.scp", (references.keys() | speakers.keys()) - enrolments.keys()),
    ):
        if lacking:
            raise DataError(folder / name, f"lacks {len(lacking)} keys, {min(lacking)!r} first", "make it anew")
    if not wavs:
        raise DataError(folder / "wav.scp", "names no mixtures", "make it anew")
    paths = [*wavs.values(), *references.values(), *enrolments.values()]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DataError(folder, f"names {len(missing)} files that are not there, {missing[0]} first", "check the paths")
    targets: dict[str, list[Target]] = {key: [] for key in wavs}
    for key, speaker in sorted(speakers.items()):
        mixture = key.removesuffix(f"-{speaker}")
        if mixture == key or mixture not in wavs:
            raise DataError(folder / "utt2spk", f"{key!r} is no target of a mixture", "keys are MIXTURE-SPEAKER")
        targets[mixture].append(Target(speaker, enrolments[key], references.get(key, "")))
    turns = _read_turns(folder / "rttm")
    utterances = read_table(folder / "reco2utts") if (folder / "reco2utts").exists() else {}
    return [
        ListedMixture(
            key,
            wavs[key],
            seconds[key],
            tuple(targets[key]),
            tuple(turns.get(key, ())),
            tuple(utterances.get(key, "").split()),
        )
        for key in sorted(wavs)
    ]


def _read_turns(path: Path) -> dict[str, list[tuple[float, float, str]]]:
    turns: dict[str, list[tuple[float, float, str]]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            kind, key, _, start, length, _, _, speaker, *_ = line.split()
            first, seconds = float(start), float(length)
        except ValueError:
            kind, first, seconds = "", math.nan, math.nan
        if kind != "SPEAKER" or not 0 <= first < math.inf or not 0 < seconds < math.inf:
            raise DataError(path, f"line {number} is no turn: {line[:200]!r}", RTTM_REMEDY)
        turns.setdefault(key, []).append((first, first + seconds, speaker))
    return turns


def spans_of(turns: Sequence[tuple[float, float, str]], speaker: str) -> tuple[tuple[float, float], ...]:
    """(start, end) in seconds where ``speaker`` speaks."""
    return tuple((start, end) for start, end, name in sorted(turns) if name == speaker)
