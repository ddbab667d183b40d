"""Faults of a data directory, all of them at once and before training: ``speakerkit data check``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from speakerkit.audio import audio_info, load_audio, require_signal
from speakerkit.data.lists import read_lines, refuse_pipe
from speakerkit.data.parallel import map_threads
from speakerkit.data.trials import parse_trial
from speakerkit.errors import AudioError, DataError, SpeakerKitError

NOISE_TYPES = frozenset({"noise", "music", "speech", "rir"})
KINDS: dict[str, Literal["error", "warning"]] = {
    "missing list": "error",
    "empty list": "error",
    "malformed line": "error",
    "duplicate id": "error",
    "list disagreement": "error",
    "command in scp": "error",
    "missing audio": "error",
    "empty audio": "error",
    "unreadable audio": "error",
    "wrong rate": "error",
    "trial without audio": "error",
    "noise without type": "error",
    "mixed rates": "warning",
    "silent audio": "warning",
    "one-utterance speaker": "warning",
}


@dataclass(frozen=True)
class CheckRow:
    """One kind of fault: how many, and the first few."""

    kind: str
    severity: Literal["error", "warning"]
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """What a data directory holds and what is wrong with it.

    Attributes:
        folder: the directory.
        utterances: distinct ids of its ``wav.scp``.
        speakers: distinct speakers of its ``utt2spk``.
        seconds: sum of the lengths of the files that could be read, as their headers declare them.
        rates: sampling rate in Hz to number of files.
        decoded: whether the samples were decoded, not the headers only.
        rows: a row for each kind of fault found; empty when all is well.
    """

    folder: str
    utterances: int
    speakers: int
    seconds: float
    rates: dict[int, int]
    decoded: bool
    rows: tuple[CheckRow, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return all(row.severity != "error" for row in self.rows)

    def to_json(self) -> str:
        """The report as JSON, with ``ok``."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2, ensure_ascii=False)

    def to_table(self) -> str:
        """The report as text: a line of totals, then a line for each kind of fault and its examples."""
        rates = ", ".join(f"{rate} Hz: {count}" for rate, count in self.rates.items()) or "no readable audio"
        totals = f"{self.utterances} utterances, {self.speakers} speakers, {self.seconds / 3600:.2f} h"
        lines = [f"{self.folder}: {totals}; {rates}"]
        for row in self.rows:
            lines.append(f"{row.severity:<8} {row.kind:<22} {row.count:>8}")
            lines.extend(f"{'':<9}- {example}" for example in row.examples)
        errors = sum(row.count for row in self.rows if row.severity == "error")
        how = "decoded" if self.decoded else "headers only"
        lines.append(f"{errors} errors ({how})" if errors else f"no errors ({how})")
        return "\n".join(lines)


@dataclass
class _Faults:
    """Collects faults by kind; keeps the first few of each."""

    keep: int
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < self.keep:
            kept.append(example)

    def rows(self) -> tuple[CheckRow, ...]:
        return tuple(
            CheckRow(kind, severity, self.counts[kind], tuple(self.examples[kind]))
            for kind, severity in KINDS.items()
            if self.counts[kind]
        )


@dataclass(frozen=True)
class _Finding:
    """What one file is: ``kind`` and ``text`` name its fault, rate and seconds are 0 where unknown."""

    kind: str = ""
    text: str = ""
    rate: int = 0
    seconds: float = 0.0


def check_data_dir(
    folder: str | Path,
    *,
    sample_rate: int | None = None,
    decode: bool = False,
    trials: str | Path | None = None,
    noise: str | Path | None = None,
    allow_pipes: bool = False,
    workers: int = 8,
    examples: int = 5,
) -> CheckReport:
    """Check a Kaldi data directory (``wav.scp``, ``utt2spk``, and ``spk2utt`` where there is one).

    Args:
        folder: the data directory.
        sample_rate: the rate in Hz that every file must have; ``None`` only warns where rates differ.
        decode: decode every file, which also finds damage behind the header, non-finite samples and silence.
        trials: a trial list; ``None`` takes every ``trials*`` of the folder.
        noise: a directory of noises or room responses (``wav.scp``, ``utt2type``) to check as well. The type of an
            entry is that in ``utt2type``, or else the first part of its key (``music/x.wav``).
        allow_pipes: take entries that are commands as they are; they are not run here.
        workers: threads that read files.
        examples: how many faults of a kind to name.

    Raises:
        DataError: a directory or a named trial list that does not exist, or a list that is not text.
    """
    folder = _existing(folder)
    faults = _Faults(examples)
    wavs = _read_list(folder / "wav.scp", faults)
    speakers = _read_list(folder / "utt2spk", faults)
    _compare_lists(folder, wavs, speakers, faults)
    for speaker, count in Counter(speakers.values()).items():
        if count == 1:
            faults.add("one-utterance speaker", speaker)
    for trial_list in sorted(folder.glob("trials*")) if trials is None else [Path(trials)]:
        _check_trials(trial_list, wavs, faults)
    noises = {} if noise is None else _check_noise_types(_existing(noise), faults)
    speech = _without_commands(wavs, "wav.scp", allow_pipes, faults)
    entries = speech + _without_commands(noises, "noise", allow_pipes, faults)
    findings = _check_files([path for _, path in entries], decode, workers)
    rates: Counter[int] = Counter()
    for (name, path), finding in zip(entries, findings, strict=True):
        if finding.rate:
            rates[finding.rate] += 1
        if finding.kind:
            faults.add(finding.kind, f"{name}: {path} {finding.text}")
        if sample_rate is not None and finding.rate not in (0, sample_rate):
            faults.add("wrong rate", f"{name}: {path} has {finding.rate} Hz, not {sample_rate}")
    if sample_rate is None and len(rates) > 1:
        for rate, count in sorted(rates.items()):
            faults.add("mixed rates", f"{count} files of {rate} Hz")
    return CheckReport(
        folder=str(folder),
        utterances=len(wavs),
        speakers=len(set(speakers.values())),
        seconds=sum(finding.seconds for finding in findings[: len(speech)]),
        rates=dict(sorted(rates.items())),
        decoded=decode,
        rows=faults.rows(),
    )


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "no such directory", "give a folder with wav.scp, written by `data prepare`")
    return folder


def _read_list(path: Path, faults: _Faults, required: bool = True) -> dict[str, str]:
    """A two-column list; the first of two entries with one key counts, faults are noted instead of raised."""
    if not path.exists():
        if required:
            faults.add("missing list", str(path))
        return {}
    table: dict[str, str] = {}
    for line in read_lines(path):
        parts = line.split(maxsplit=1)
        if len(parts) != 2:
            faults.add("malformed line", f"{path.name}: {line!r}")
        elif parts[0] in table:
            faults.add("duplicate id", f"{path.name}: {parts[0]}")
        else:
            table[parts[0]] = parts[1]
    if required and not table:
        faults.add("empty list", str(path))
    return table


def _compare_lists(folder: Path, wavs: dict[str, str], speakers: dict[str, str], faults: _Faults) -> None:
    for key, speaker in speakers.items():
        if len(speaker.split()) != 1:
            faults.add("malformed line", f"utt2spk: {key} {speaker}")
    _note(faults, "list disagreement", (f"{key} is not in utt2spk" for key in wavs if key not in speakers))
    _note(faults, "list disagreement", (f"{key} is not in wav.scp" for key in speakers if key not in wavs))
    members = _read_list(folder / "spk2utt", faults, required=False)
    if not members:
        return
    listed = {key: speaker for speaker, keys in members.items() for key in keys.split()}
    for key in sorted(listed.keys() | speakers.keys()):
        if listed.get(key) != speakers.get(key):
            faults.add(
                "list disagreement",
                f"{key} is of {listed.get(key, 'nobody')} in spk2utt, of {speakers.get(key, 'nobody')} in utt2spk",
            )


def _note(faults: _Faults, kind: str, examples: Iterable[str]) -> None:
    for example in examples:
        faults.add(kind, example)


def _check_trials(path: Path, wavs: dict[str, str], faults: _Faults) -> None:
    missing: Counter[str] = Counter()
    for line in read_lines(path):
        trial = parse_trial(line)
        if trial is None:
            faults.add("malformed line", f"{path.name}: {line[:200]!r}")
            continue
        missing.update(key for key in trial[:2] if key not in wavs)
    _note(faults, "trial without audio", (f"{path.name}: {key} (in {count} trials)" for key, count in missing.items()))


def _check_noise_types(folder: Path, faults: _Faults) -> dict[str, str]:
    wavs = _read_list(folder / "wav.scp", faults)
    types = _read_list(folder / "utt2type", faults, required=False)
    for key in wavs:
        kind = types.get(key, key.partition("/")[0])
        if kind not in NOISE_TYPES:
            known = f"has the unknown type {kind!r}" if key in types else "has none in utt2type nor in its key"
            faults.add("noise without type", f"{key} {known}")
    return wavs


def _without_commands(wavs: dict[str, str], name: str, allow_pipes: bool, faults: _Faults) -> list[tuple[str, str]]:
    """(name for messages, path) of the entries that are files; commands are never run here."""
    files: list[tuple[str, str]] = []
    for key, path in wavs.items():
        try:
            refuse_pipe(name, key, path)
        except DataError:
            if not allow_pipes:
                faults.add("command in scp", f"{name}: {key} {path}")
        else:
            files.append((f"{name}: {key}", path))
    return files


def _check_files(paths: Sequence[str], decode: bool, workers: int) -> list[_Finding]:
    unique = list(dict.fromkeys(paths))
    results = map_threads(
        partial(_check_file, decode=decode),
        unique,
        workers=workers,
        description="decoding" if decode else "reading headers",
        block=4 if decode else 64,
    )
    by_path = dict(zip(unique, results, strict=True))
    return [by_path[path] for path in paths]


def _check_file(path: str, decode: bool) -> _Finding:
    try:
        if os.stat(path).st_size == 0:
            return _Finding("empty audio", "is an empty file")
        info = audio_info(path)
    except FileNotFoundError:
        return _Finding("missing audio", "does not exist")
    except (OSError, ValueError) as error:
        return _Finding("unreadable audio", f"cannot be opened ({error})")
    except SpeakerKitError as error:
        return _Finding("unreadable audio", error.fault)
    if info.frames <= 0:
        return _Finding("empty audio", "holds no samples", info.rate)
    kind, text = _decoding_fault(path) if decode else ("", "")
    return _Finding(kind, text, info.rate, info.seconds)


def _decoding_fault(path: str) -> tuple[str, str]:
    try:
        audio = load_audio(path)
    except SpeakerKitError as error:
        return "unreadable audio", error.fault
    try:
        require_signal(audio, path)
    except AudioError as error:
        return "silent audio", error.fault
    return "", ""
