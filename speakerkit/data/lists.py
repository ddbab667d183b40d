"""Lists of recordings: Kaldi data directories, and the raw, shard and feature lists that training reads."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speakerkit.errors import DataError
from speakerkit.files import write_lines


@dataclass(frozen=True)
class Utterance:
    """One recording of one speaker.

    Attributes:
        key: utterance id; may hold slashes and dots, not blanks.
        speaker: speaker id.
        wav: path of the audio file ("" where ``feat`` is given).
        vad: speech segments in seconds ((start, end), ...), concatenated on reading; empty means the whole file.
        feat: Kaldi ark position ``x.ark:offset`` of a feature matrix (frames, mels).
    """

    key: str
    speaker: str
    wav: str = ""
    vad: tuple[tuple[float, float], ...] = ()
    feat: str = ""


def read_lines(path: str | Path) -> list[str]:
    """Non-empty lines of a UTF-8 text file, stripped.

    Raises:
        DataError: the file is missing, unreadable or not UTF-8 text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(path, "no such file", "check the path, or run the earlier stage that writes it") from None
    except IsADirectoryError:
        raise DataError(path, "is a directory", "name the list file itself") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read as text ({error})", "lists are UTF-8 text") from None
    # Not splitlines(): it also breaks at form feeds and Unicode separators, which names may hold.
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_table(path: str | Path) -> dict[str, str]:
    """A two-column Kaldi file (``wav.scp``, ``utt2spk``, ``utt2dur``): first word to the rest of the line.

    Raises:
        DataError: a line has one column only, or a key comes twice.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split(maxsplit=1)
        if len(parts) != 2:
            raise DataError(path, f"line {number} has one column: {line[:200]!r}", "each line is a key and a value")
        if parts[0] in table:
            raise DataError(path, f"key {parts[0][:200]!r} comes twice (line {number})", "keys must be unique")
        table[parts[0]] = parts[1]
    return table


def read_durations(path: str | Path) -> dict[str, float]:
    """Read a ``utt2dur``: key to seconds.

    Raises:
        DataError: also for what is no duration.
    """
    durations = {}
    for key, word in read_table(path).items():
        try:
            durations[key] = float(word)
        except ValueError:
            durations[key] = math.nan
        if not 0 <= durations[key] < math.inf:
            raise DataError(path, f"{key[:200]!r} has {word[:100]!r}", "a line is: key seconds")
    return durations


def write_table(path: str | Path, table: Mapping[str, str]) -> None:
    """Write a two-column Kaldi file, sorted by key, atomically."""
    write_lines(path, (f"{key} {table[key]}" for key in sorted(table)))


def read_scp(path: str | Path, allow_pipes: bool = False) -> dict[str, str]:
    """Read a ``wav.scp``: key to audio path (blanks in paths are kept).

    Raises:
        DataError: also for an entry that is a command (``cmd |``) unless ``allow_pipes``.
    """
    table = read_table(path)
    if not allow_pipes:
        for key, value in table.items():
            refuse_pipe(path, key, value)
    return table


def refuse_pipe(path: str | Path, key: str, value: str) -> None:
    """Raise DataError where ``value`` is a shell command instead of a file."""
    if command_of(value):
        raise DataError(
            path, f"entry {key[:200]!r} is a command, which would be run", "list files, or allow it with --allow-pipes"
        )


def command_of(value: str) -> str:
    """The shell command in an entry ``cmd |`` (Kaldi's) or ``pipe:cmd`` (webdataset's); "" for a path."""
    value = value.strip()
    if value.startswith("pipe:"):
        return value.removeprefix("pipe:").strip()
    if value.endswith("|"):
        return value[:-1].strip() or value
    return value if value.startswith("|") else ""


def open_entry(value: str) -> str | bytes:
    """What a list entry stands for: its path, or the output of its command where pipes were allowed on reading."""
    return run_entry(value) if command_of(value) else value


def run_entry(value: str) -> bytes:
    """What the command of a list entry prints.

    Raises:
        DataError: the command fails.
    """
    # A shell on purpose: Kaldi's commands are pipelines, and the user has allowed them.
    done = subprocess.run(command_of(value), shell=True, capture_output=True)  # noqa: S602
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise DataError(value, f"failed with status {done.returncode} ({reason[0]})", "run it by hand")
    return done.stdout


def read_data_dir(folder: str | Path, allow_pipes: bool = False) -> list[Utterance]:
    """Utterances of a Kaldi data directory (``wav.scp`` and ``utt2spk``), sorted by key.

    Raises:
        DataError: an utterance stands in one of the two files only.
    """
    folder = Path(folder)
    wavs = read_scp(folder / "wav.scp", allow_pipes)
    speakers = read_table(folder / "utt2spk")
    for name, extra in (("utt2spk", wavs.keys() - speakers.keys()), ("wav.scp", speakers.keys() - wavs.keys())):
        if extra:
            raise DataError(folder / name, f"lacks {len(extra)} keys, {min(extra)!r} first", "run `data check`")
    if not wavs:
        raise DataError(folder / "wav.scp", "names no recordings", "run the earlier stage that writes it")
    blank = next((key for key in sorted(speakers) if len(speakers[key].split()) > 1), None)
    if blank is not None:
        raise DataError(folder / "utt2spk", f"{blank!r} has the speaker {speakers[blank]!r}", "ids hold no blanks")
    return [Utterance(key, speakers[key], wavs[key]) for key in sorted(wavs)]


def read_vad(path: str | Path) -> dict[str, tuple[tuple[float, float], ...]]:
    """Speech segments of a Kaldi ``segments`` or ``vad`` file, lines ``segment utterance start end`` in seconds.

    Returns:
        utterance id to its segments, in order of time.

    Raises:
        DataError: a line of another form, or a segment that ends before it starts.
    """
    segments: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            _, utterance, start, end = line.split()
            span = float(start), float(end)
        except ValueError:
            raise DataError(
                path, f"line {number} is no segment: {line[:200]!r}", "segment utterance start end"
            ) from None
        if not 0 <= span[0] < span[1] < math.inf:
            raise DataError(path, f"line {number}: the segment ends before it starts", "times are start, end in s")
        segments.setdefault(utterance, []).append(span)
    return {utterance: tuple(sorted(spans)) for utterance, spans in segments.items()}


def write_data_dir(
    folder: str | Path, utterances: Iterable[Utterance], durations: Mapping[str, float] | None = None
) -> None:
    """Write ``wav.scp``, ``utt2spk``, ``spk2utt`` and, where durations (seconds) are given, ``utt2dur``.

    Raises:
        DataError: a key or speaker id is empty or holds blanks, or a key comes twice.
    """
    folder = Path(folder)
    by_key: dict[str, Utterance] = {}
    by_speaker: dict[str, list[str]] = {}
    for utterance in utterances:
        for name in (utterance.key, utterance.speaker):
            if not name or any(character.isspace() for character in name):
                raise DataError(folder, f"id {name!r} is empty or holds blanks", "rename it")
        if utterance.key in by_key:
            raise DataError(folder, f"utterance id {utterance.key!r} comes twice", "ids must be unique")
        by_key[utterance.key] = utterance
        by_speaker.setdefault(utterance.speaker, []).append(utterance.key)
    write_table(folder / "wav.scp", {key: utterance.wav for key, utterance in by_key.items()})
    write_table(folder / "utt2spk", {key: utterance.speaker for key, utterance in by_key.items()})
    write_table(folder / "spk2utt", {speaker: " ".join(sorted(keys)) for speaker, keys in by_speaker.items()})
    if durations is not None:
        write_table(folder / "utt2dur", {key: f"{durations[key]:.4f}" for key in by_key})


def read_utterance_list(path: str | Path, allow_pipes: bool = False) -> list[Utterance]:
    """Read ``raw.list`` or ``feat.list``: one JSON object a line with ``key``, ``spk`` and ``wav`` or ``feat``.

    ``vad`` may hold segments ``[["start", "end"], ...]`` in seconds, as strings or numbers.

    Raises:
        DataError: a line that is not such an object, a duplicate key, or a command for audio.
    """
    utterances: dict[str, Utterance] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            utterance = _utterance(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                path,
                f"line {number} is not an utterance ({type(error).__name__}: {error})",
                'expected {"key": .., "spk": .., "wav": ..}',
            ) from None
        if not (utterance.wav or utterance.feat):
            raise DataError(path, f"line {number} names neither wav nor feat", "add one of the two")
        if not all(0 <= start < end < math.inf for start, end in utterance.vad):
            raise DataError(path, f"line {number}: a vad segment ends before it starts", "times are start, end")
        if utterance.key in utterances:
            raise DataError(path, f"key {utterance.key[:200]!r} comes twice (line {number})", "keys must be unique")
        for location in (utterance.wav, utterance.feat):
            if location and not allow_pipes:
                refuse_pipe(path, utterance.key, location)
        utterances[utterance.key] = utterance
    return list(utterances.values())


def _utterance(row: dict[str, Any]) -> Utterance:
    """The utterance of a row of JSON; numbers count as text, since some speaker ids are written so."""

    def text(name: str, default: str | None = None) -> str:
        value = row[name] if default is None else row.get(name, default)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise ValueError(f"{name} is {type(value).__name__}")
        return str(value)

    def word(name: str) -> str:
        value = text(name)
        if value.split() != [value]:
            raise ValueError(f"{name} is {value[:100]!r}: empty, or with blanks")
        return value

    vad = tuple((float(start), float(end)) for start, end in row.get("vad", ()))
    return Utterance(word("key"), word("spk"), text("wav", ""), vad, text("feat", ""))


def write_utterance_list(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write ``raw.list`` or ``feat.list`` as JSON lines, atomically; vad times are strings, as peers write them."""

    def row(utterance: Utterance) -> str:
        fields: dict[str, object] = {"key": utterance.key, "spk": utterance.speaker}
        if utterance.feat:
            fields["feat"] = utterance.feat
        else:
            fields["wav"] = utterance.wav
        if utterance.vad:
            fields["vad"] = [[f"{start:.3f}", f"{end:.3f}"] for start, end in utterance.vad]
        return json.dumps(fields, ensure_ascii=False)

    write_lines(path, (row(utterance) for utterance in utterances))
