"""VoxCeleb1 and VoxCeleb2 as distributed (``[dev|test]/[wav|aac]/idNNNNN/VIDEO/NNNNN.wav|m4a``), and Vox1-O/E/H."""

from __future__ import annotations

import re
from pathlib import Path

from speakerkit.data.lists import Utterance
from speakerkit.data.prepare.corpus import CORPORA, Prepared, find_audio, write_corpus
from speakerkit.data.trials import parse_trials
from speakerkit.errors import DataError

LAYOUT = re.compile(r"(?:^|/)(?P<stem>(?P<speaker>id\d{5})/[^/]+/[^/]+)\.(?P<suffix>wav|flac|m4a)$")
PREFERENCE = ("wav", "flac", "m4a")  # where an utterance lies there converted as well
VOX1_TEST = range(10270, 10310)  # the 40 speakers whose names start with E
CLEANED_LISTS = {
    "trials": "veri_test2.txt",
    "trials_E": "list_test_all2.txt",
    "trials_H": "list_test_hard2.txt",
}


@CORPORA.register("voxceleb1")
def prepare_voxceleb1(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """VoxCeleb1, speakers id10001 to id11251; the key is ``id10001/1zcIwhmdeo4/00001.wav``.

    ``subset`` is "dev" (1211 speakers), "test" (40, those of Vox1-O) or "all", the default, which Vox1-E and Vox1-H
    need. The cleaned lists found under ``root`` become ``trials`` (Vox1-O), ``trials_E`` and ``trials_H``; one that
    names utterances which are not there is left out, with a note.
    """
    subset = _known_subset(subset or "all")
    utterances = [
        utterance
        for utterance in _find(root, first="id1")
        if subset == "all" or (int(utterance.speaker[2:]) in VOX1_TEST) == (subset == "test")
    ]
    sources, notes = ({"trials": trials}, []) if trials else _cleaned_lists(root, utterances)
    return write_corpus(root, out, utterances, expected=_expected("id1"), trials=sources, workers=workers, notes=notes)


@CORPORA.register("voxceleb2")
def prepare_voxceleb2(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """VoxCeleb2, speakers id00012 to id09272; keys end in ``.wav``, as other toolkits have them, also for m4a.

    ``subset`` is "dev" (5994 speakers, the default: whatever does not lie in a folder ``test``), "test" or "all".
    """
    subset = _known_subset(subset or "dev")
    utterances = [
        utterance
        for utterance in _find(root, first="id0")
        if subset == "all" or _in_test(root, utterance.wav) == (subset == "test")
    ]
    sources = {"trials": trials} if trials else None
    return write_corpus(root, out, utterances, expected=_expected("id0"), trials=sources, workers=workers)


def _known_subset(subset: str) -> str:
    if subset not in ("dev", "test", "all"):
        raise DataError("--subset", f"{subset!r} is no part of VoxCeleb", "choose from dev, test, all")
    return subset


def _expected(first: str) -> str:
    return f"{first}NNNN/VIDEO/NNNNN.wav|m4a"


def _in_test(root: Path, relative: str) -> bool:
    parts = [*root.absolute().parts, *relative.split("/")[:-3]]
    part = next((part for part in reversed(parts) if part in ("dev", "test")), "dev")
    return part == "test"


def _find(root: Path, first: str) -> list[Utterance]:
    best: dict[str, tuple[int, Utterance]] = {}
    for relative in find_audio(root, {f".{suffix}" for suffix in PREFERENCE}):
        match = LAYOUT.search(relative)
        if match is None or not match["speaker"].startswith(first):
            continue
        rank = PREFERENCE.index(match["suffix"])
        key = f"{match['stem']}.wav"
        if key not in best or rank < best[key][0]:
            best[key] = rank, Utterance(key, match["speaker"], relative)
    return [utterance for _, utterance in best.values()]


def _cleaned_lists(root: Path, utterances: list[Utterance]) -> tuple[dict[str, str], list[str]]:
    """Lists under ``root`` whose utterances are all there, and a note for each that lacks some."""
    keys = {utterance.key for utterance in utterances}
    lists: dict[str, str] = {}
    notes: list[str] = []
    for name, file_name in CLEANED_LISTS.items():
        path = next(iter(sorted([*root.glob(file_name), *root.glob(f"*/{file_name}")])), None)
        if path is None:
            continue
        missing = {key for enrolment, test, _ in parse_trials(path) for key in (enrolment, test)} - keys
        if missing:
            notes.append(f"{path}: {len(missing)} of its utterances are not there ({min(missing)}); not converted")
        else:
            lists[name] = str(path)
    return lists, notes
