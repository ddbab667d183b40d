"""CALLHOME as in NIST's evaluation of 2000 (LDC2001S97, r65_8_1): recordings, who speaks when, and Kaldi's parts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from speakerkit.data.lists import Utterance, read_lines, read_table, write_table
from speakerkit.data.prepare.corpus import CORPORA, Prepared, find_audio, write_corpus
from speakerkit.errors import DataError
from speakerkit.files import write_lines

LAYOUT = "r65_8_1/sid00sg1/data/NAME.sph"
SUFFIXES = (".wav", ".flac", ".sph")  # the first where a recording lies there converted as well
REFERENCE = "fullref.rttm"
# Names under which the lists of the two parts go about; a Kaldi directory's wav.scp is one, too.
PARTS = {
    "part1": ("part1.txt", "part1.list", "callhome1.list", "callhome1/wav.scp"),
    "part2": ("part2.txt", "part2.list", "callhome2.list", "callhome2/wav.scp"),
}


@CORPORA.register("callhome")
def prepare(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """CALLHOME; recordings are the entries, and their own speakers in ``utt2spk``.

    Below ``root`` lie, at any depth, the recordings of LDC2001S97, ``fullref.rttm`` (of OpenSLR 10) and lists of the
    recordings of Kaldi's two parts (``part1.txt`` and ``part2.txt``, or its ``callhome1`` and ``callhome2``). ``out``
    also gets ``rttm`` and ``reco2num_spk``, and ``part1`` and ``part2`` the same for each part.

    Raises:
        DataError: what is missing of these, recordings without turns or without audio, parts that share recordings.
    """
    for name, value in (("--subset", subset), ("--trials", trials)):
        if value is not None:
            raise DataError(name, "is nothing that CALLHOME has", "leave the option out; both parts are written")
    found = find_audio(root, {*SUFFIXES, ".rttm", ".txt", ".list", ".scp"})
    recordings = _recordings(found)
    if not recordings:
        fault = f"holds nothing like {LAYOUT}"
        raise DataError(root, fault, "LDC2001S97 comes from the LDC, by licence; give the folder it lies in")
    reference = root / _only(root, found, (REFERENCE,), "who speaks when", "take it from sre2000-key of OpenSLR 10")
    turns = _turns(reference)
    parts = {name: _part(root, found, name, names, turns) for name, names in PARTS.items()}
    both = sorted(parts["part1"] & parts["part2"])
    if both:
        raise DataError(root, f"has {both[0]!r} in both parts", "take the lists of one split")
    absent = sorted(turns.keys() - recordings.keys())
    if absent:
        fault = f"lacks {len(absent)} of the {len(turns)} recordings of {REFERENCE}, {absent[0]} first"
        raise DataError(root, fault, "copy all of r65_8_1 from LDC2001S97")
    prepared = write_corpus(
        *(root, out, [Utterance(name, name, recordings[name]) for name in turns]), expected=LAYOUT, workers=workers
    )
    _write_lists(out, turns, {name for name in turns if name in read_table(out / "wav.scp")})
    for name, listed in parts.items():
        _write_part(out, out / name, turns, listed)
    spoken = {(name, speaker) for name, lines in turns.items() for speaker in _speakers(lines)}
    rest = len(turns.keys() - parts["part1"] - parts["part2"])
    notes = [f"{rest} recordings are in neither part"] if rest else []
    return replace(prepared, speakers=len(spoken), notes=tuple(notes))


def _recordings(found: Collection[str]) -> dict[str, str]:
    """Name to path of each recording, the converted one where there are several."""
    best: dict[str, str] = {}
    for relative in found:
        path = PurePosixPath(relative)
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            other = best.get(path.stem)
            if other is None or SUFFIXES.index(suffix) < SUFFIXES.index(PurePosixPath(other).suffix.lower()):
                best[path.stem] = relative
    return best


def _only(root: Path, found: Collection[str], names: Collection[str], what: str, remedy: str) -> str:
    """The one file of those called so."""
    listed = [relative for relative in found if any(f"/{relative}".endswith(f"/{name}") for name in names)]
    if len(listed) != 1:
        fault = f"has no {' or '.join(names)}: {what}" if not listed else f"has {listed[0]} and {listed[1]}"
        raise DataError(root, fault, remedy if not listed else "leave one of them")
    return listed[0]


def _turns(path: Path) -> dict[str, list[str]]:
    """Lines of each recording."""
    turns: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if len(fields) < 8 or fields[0] != "SPEAKER" or not all(map(_is_time, fields[3:5])):
            remedy = "a line is: SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>"
            raise DataError(path, f"line {number} is no turn: {line[:200]!r}", remedy)
        turns.setdefault(fields[1], []).append(" ".join(fields))
    if not turns:
        raise DataError(path, "is empty", "take it from sre2000-key of OpenSLR 10")
    return dict(sorted(turns.items()))


def _is_time(word: str) -> bool:
    try:
        return 0 <= float(word) < math.inf
    except ValueError:
        return False


def _speakers(lines: Collection[str]) -> set[str]:
    return {line.split()[7] for line in lines}


def _part(
    root: Path, found: Collection[str], name: str, names: Collection[str], turns: Mapping[str, object]
) -> set[str]:
    remedy = f"list the recordings of Kaldi's callhome{name[-1]} in {name}.txt there, one a line"
    path = root / _only(root, found, names, "which recordings are its part of Kaldi's split", remedy)
    listed = {line.split()[0] for line in read_lines(path)}
    unknown = sorted(listed - turns.keys())
    if unknown or not listed:
        fault = f"names {unknown[0]!r}, which {REFERENCE} has not" if unknown else "is empty"
        raise DataError(path, fault, remedy)
    return listed


def _write_lists(out: Path, turns: Mapping[str, list[str]], chosen: Collection[str]) -> None:
    write_lines(out / "rttm", (line for name, lines in turns.items() if name in chosen for line in lines))
    counts = {name: str(len(_speakers(lines))) for name, lines in turns.items() if name in chosen}
    write_table(out / "reco2num_spk", counts)


def _write_part(whole: Path, out: Path, turns: Mapping[str, list[str]], listed: Collection[str]) -> None:
    """The lists of ``whole``, of its recordings that are ``listed``."""
    kept: set[str] = set()
    for name in ("wav.scp", "utt2spk", "spk2utt", "utt2dur"):
        table = {key: value for key, value in read_table(whole / name).items() if key in listed}
        write_table(out / name, table)
        kept.update(table)
    _write_lists(out, turns, kept)
