"""What every corpus preparation shares: finding audio, safe ids, reading headers, writing the data directory."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from speakerkit.audio import CONTAINER_SUFFIXES, audio_info
from speakerkit.data.lists import Utterance, write_data_dir, write_table
from speakerkit.data.parallel import map_threads
from speakerkit.data.trials import prepare_trials
from speakerkit.errors import AudioError, DataError
from speakerkit.files import write_lines
from speakerkit.registry import Registry

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aiff", ".aif"} | CONTAINER_SUFFIXES)


@dataclass(frozen=True)
class Prepared:
    """What a preparation wrote.

    Attributes:
        out: the data directory.
        utterances: entries of its ``wav.scp``.
        speakers: distinct speakers (0 for noises and room responses).
        seconds: sum of the durations that the headers declare.
        trials: trials in each list written, by file name.
        failed: (key, path, reason) of the files that were left out; also in ``failed.tsv``.
        notes: what was found but not used, for a person to read.
    """

    out: Path
    utterances: int
    speakers: int
    seconds: float
    trials: Mapping[str, int]
    failed: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()


class Preparation(Protocol):
    """Turns a corpus as distributed under ``root`` into a data directory ``out``.

    ``subset`` names a part of the corpus (each module says which there are; ``None`` is its default), ``trials`` is
    "all-pairs", the path of a list to convert, or ``None`` for the lists that come with the corpus, if any.
    """

    def __call__(
        self, root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
    ) -> Prepared:
        """See the class."""
        ...


CORPORA: Registry[Preparation] = Registry("corpus")


def find_audio(root: Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[str]:
    """Audio files below ``root``, as sorted paths relative to it with forward slashes; links are followed once.

    Hidden files are left out: archives made on a Mac carry a ``._x.wav`` beside each ``x.wav``.

    Raises:
        DataError: no such directory.
    """
    if not root.is_dir():
        raise DataError(root, "no such directory", "give the folder that the corpus was unpacked to")
    found: list[str] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        found.extend(
            prefix + name
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        )
    return sorted(found)


def safe_id(name: str) -> str:
    """``name`` as a Kaldi id: each run of blanks becomes one underscore ("Ana Maria" to "Ana_Maria")."""
    return "_".join(name.split())


def under(relative: str, folder: str) -> bool:
    """Whether the path ``relative`` lies in a folder called ``folder``, at any depth."""
    return folder in PurePosixPath(relative).parts[:-1]


def write_corpus(
    root: Path,
    out: Path,
    utterances: Sequence[Utterance],
    *,
    expected: str,
    trials: Mapping[str, str] | None = None,
    workers: int = 8,
    notes: Sequence[str] = (),
) -> Prepared:
    """Write ``wav.scp utt2spk spk2utt utt2dur`` and the trial lists; files without a readable header are left out.

    Args:
        root: for messages.
        utterances: what was found; ``wav`` is relative to ``root``.
        expected: the layout that was looked for, for the message when there is nothing.
        trials: file name in ``out`` to "all-pairs" or the list to convert.

    Raises:
        DataError: nothing was found, nothing could be read, or a trial names an utterance that is not there.
    """
    good, durations, failed = _read_headers(root, utterances, expected, workers)
    write_data_dir(out, good, durations)
    _write_failed(out, failed)
    counts = {name: prepare_trials(out / name, source, durations.keys()) for name, source in (trials or {}).items()}
    speakers = {utterance.speaker for utterance in good}
    return Prepared(out, len(good), len(speakers), sum(durations.values()), counts, tuple(failed), tuple(notes))


def write_noises(
    root: Path,
    out: Path,
    types: Mapping[str, tuple[str, str]],
    *,
    expected: str,
    trials: str | None = None,
    workers: int = 8,
) -> Prepared:
    """Write ``wav.scp``, ``utt2type`` and ``utt2dur`` of noises, music, babble or room responses.

    Args:
        types: key to (path relative to ``root``, type). The loader chooses the SNR range by the type.

    Raises:
        DataError: nothing was found, nothing could be read, or trials are asked for.
    """
    if trials is not None:
        raise DataError("--trials", "noises and room responses have no trials", "leave the option out")
    entries = [Utterance(key, kind, relative) for key, (relative, kind) in types.items()]
    good, durations, failed = _read_headers(root, entries, expected, workers)
    write_table(out / "wav.scp", {entry.key: entry.wav for entry in good})
    write_table(out / "utt2type", {entry.key: entry.speaker for entry in good})
    write_table(out / "utt2dur", {key: f"{seconds:.4f}" for key, seconds in durations.items()})
    _write_failed(out, failed)
    return Prepared(out, len(good), 0, sum(durations.values()), {}, tuple(failed))


def unique_key(table: Mapping[str, object], key: str, root: Path) -> str:
    """``key``, or DataError where the table has it: two names that differ in their blanks only."""
    if key in table:
        raise DataError(root, f"two files have the id {key!r}", "rename one; blanks in names become underscores")
    return key


def _read_headers(
    root: Path, utterances: Sequence[Utterance], expected: str, workers: int
) -> tuple[list[Utterance], dict[str, float], list[tuple[str, str, str]]]:
    """Utterances with absolute paths, their durations in seconds, and those that cannot be used."""
    if not utterances:
        raise DataError(root, f"holds nothing like {expected}", "check the folder, the corpus name and the subset")
    base = os.path.abspath(root)
    paths = [os.path.join(base, *utterance.wav.split("/")) for utterance in utterances]
    good: list[Utterance] = []
    durations: dict[str, float] = {}
    failed: list[tuple[str, str, str]] = []
    results = map_threads(_seconds, paths, workers=workers, description="reading headers")
    for utterance, path, seconds in zip(utterances, paths, results, strict=True):
        if isinstance(seconds, str):
            failed.append((utterance.key, path, seconds))
        else:
            good.append(Utterance(utterance.key, utterance.speaker, path))
            durations[utterance.key] = seconds
    if not good:
        raise DataError(root, f"none of {len(failed)} files can be used", f"the first: {failed[0][1]} {failed[0][2]}")
    return good, durations, failed


def _seconds(path: str) -> float | str:
    """Length in seconds, or why the file cannot stand in a list."""
    if len(path.splitlines()) != 1 or not _is_text(path):
        return "has a line break or bytes that are not UTF-8 in its name; rename it"
    try:
        seconds = audio_info(path).seconds
    except AudioError as error:
        return f"{error.fault}; {error.remedy}"
    return seconds if seconds > 0 else "holds no samples; leave it out"


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _write_failed(out: Path, failed: Sequence[tuple[str, str, str]]) -> None:
    path = out / "failed.tsv"
    if failed:
        write_lines(path, _failed_rows(failed))
    else:
        path.unlink(missing_ok=True)


def _failed_rows(failed: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    for row in failed:
        fields = (" ".join(field.encode("utf-8", "backslashreplace").decode().split()) for field in row)
        yield "\t".join(fields)
