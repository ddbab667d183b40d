"""Many mixtures to a folder of voices that can be taken up again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speakerkit.audio import Channel
from speakerkit.data.lists import open_entry, read_lines, read_scp, read_table, write_table
from speakerkit.embedding.extract import write_failures
from speakerkit.errors import DataError, SpeakerKitError
from speakerkit.extraction.enrolment import TargetVoice
from speakerkit.extraction.pipeline import ExtractedVoice, VoiceExtractor
from speakerkit.files import write_lines

RESULTS, LIST, FAILED = "results.jsonl", "wav.scp", "failed.tsv"


@dataclass(frozen=True)
class Wanted:
    """One voice to extract.

    Attributes:
        speaker: whose.
        enrolment: path or command of the recording to enrol with, or what tells in words where ``voice`` is from.
        voice: where it is enrolled already.
    """

    speaker: str
    enrolment: str
    voice: TargetVoice | None = None


@dataclass(frozen=True)
class Job:
    """One mixture, its path or command, and the voices to extract by their keys, which hold no blanks."""

    mixture: str
    targets: Mapping[str, Wanted]


@dataclass(frozen=True)
class BatchSummary:
    """What :func:`extract_to_folder` did.

    Attributes:
        rows: what is known of each voice that is there now, by key, as in ``results.jsonl``.
        written, kept: of them, those of this run and of earlier ones.
        failures: why the others failed, by key.
    """

    rows: Mapping[str, Mapping[str, Any]]
    written: int
    kept: int
    failures: Mapping[str, str]


def read_jobs(folder: str | Path, allow_pipes: bool = False) -> list[Job]:
    """The mixtures of a directory (``wav.scp enroll.scp utt2spk``), whose targets are keyed ``MIXTURE-SPEAKER``.

    Raises:
        DataError: lists that are missing or contradict each other.
    """
    folder = Path(folder)
    wavs, enrolments = (read_scp(folder / name, allow_pipes) for name in ("wav.scp", "enroll.scp"))
    speakers = read_table(folder / "utt2spk")
    if lacking := enrolments.keys() ^ speakers.keys():
        name = "utt2spk" if min(lacking) in enrolments else "enroll.scp"
        raise DataError(folder / name, f"lacks {min(lacking)!r}", "both name the same targets")
    targets: dict[str, dict[str, Wanted]] = {key: {} for key in sorted(wavs)}
    for key in sorted(enrolments):
        mixture = key.removesuffix(f"-{speakers[key]}")
        if mixture == key or mixture not in targets:
            raise DataError(folder / "utt2spk", f"{key!r} is no target of a mixture", "keys are MIXTURE-SPEAKER")
        targets[mixture][key] = Wanted(speakers[key], enrolments[key])
    jobs = [Job(wavs[mixture], found) for mixture, found in targets.items() if found]
    if not jobs:
        raise DataError(folder / "enroll.scp", "names no targets", "check the list")
    return jobs


def extract_to_folder(
    extractor: VoiceExtractor,
    jobs: Sequence[Job],
    out: Path,
    *,
    channel: Channel = "mix",
    complete: bool = False,
    resume: bool = True,
    alone: bool = False,
    file_name: Callable[[str], str] = str,
) -> BatchSummary:
    """Extract what ``out`` lacks: ``KEY.wav`` of each voice, and ``wav.scp``, ``results.jsonl`` and ``failed.tsv``.

    Args:
        channel: of the mixtures.
        complete: a mixture's targets are all that is heard in it; they are done together or not at all.
        resume: keep what is there of the same mixture and enrolment; otherwise all that is told of earlier voices,
            those of other targets too, is forgotten: they may be of other settings.
        alone: raise the first error instead of going on.
        file_name: what a file is called for its key.

    Raises:
        SpeakerKitError: with ``alone``.
    """
    folder = _Folder(out, file_name, resume, {key: _origin(job, key) for job in jobs for key in job.targets})
    if complete:
        folder.drop(key for job in jobs for key in job.targets if not folder.rows.keys() >= job.targets.keys())
    batch = _Batch(extractor, channel, complete, alone)
    open_jobs = [(job, {key: one for key, one in job.targets.items() if key not in folder.rows}) for job in jobs]
    kept = len(folder.rows)
    waiting = [(job, targets) for job, targets in open_jobs if targets]
    for job, targets in tqdm(waiting, unit="mixture", desc="extract", disable=not sys.stderr.isatty()):
        for key, found in batch.voices(job, targets, out):
            folder.add(key, found)
    tried = [key for job in jobs for key in job.targets]
    folder.finish(tried, batch.failures)
    rows = {key: folder.rows[key] for key in tried if key in folder.rows}
    return BatchSummary(rows, len(folder.rows) - kept, len(rows) - (len(folder.rows) - kept), batch.failures)


@dataclass
class _Batch:
    """Extracts, and remembers what failed and the voices that came again and again."""

    extractor: VoiceExtractor
    channel: Channel
    complete: bool
    alone: bool
    failures: dict[str, str] = field(default_factory=dict)
    _enrolled: dict[str, TargetVoice] = field(default_factory=dict)

    def voices(self, job: Job, targets: Mapping[str, Wanted], scratch: Path) -> Iterator[tuple[str, ExtractedVoice]]:
        told: dict[str, TargetVoice] = {}
        for key, wanted in targets.items():
            try:
                told[key] = self._voice(wanted)
            except (SpeakerKitError, OSError, MemoryError) as error:
                self._failed([key], error)
        lacking = targets.keys() - told.keys()
        if self.complete and lacking and told:
            self._failed(told, DataError(job.mixture, f"{min(lacking)!r} of its targets failed", "they go together"))
        if not told or (self.complete and lacking):
            return
        try:
            found = self.extractor.extract(
                open_entry(job.mixture),
                list(told.values()),
                channel=self.channel,
                complete=self.complete,
                scratch=scratch,
            )
        except (SpeakerKitError, OSError, MemoryError) as error:
            self._failed(told, error)
            return
        yield from zip(told, found, strict=True)

    def _voice(self, wanted: Wanted) -> TargetVoice:
        if wanted.voice is not None:
            return wanted.voice
        if wanted.enrolment not in self._enrolled:
            source = open_entry(wanted.enrolment)
            self._enrolled[wanted.enrolment] = self.extractor.enrol(wanted.speaker, [source])
        return self._enrolled[wanted.enrolment]

    def _failed(self, keys: Sequence[str] | Mapping[str, Any], error: Exception) -> None:
        if self.alone:
            raise error
        for key in keys:
            self.failures[key] = str(error) or type(error).__name__


def _origin(job: Job, key: str) -> dict[str, str]:
    return {"mixture": job.mixture, "enrolment": job.targets[key].enrolment}


class _Folder:
    """The files of a batch; a row follows its WAV, so that a killed run leaves no row without one."""

    def __init__(
        self, path: Path, file_name: Callable[[str], str], resume: bool, origins: Mapping[str, dict[str, str]]
    ) -> None:
        self.path, self._file_name, self._origins = path, file_name, origins
        path.mkdir(parents=True, exist_ok=True)
        self.rows = {row["key"]: row for row in self._earlier()} if resume else {}
        self.drop([key for key in origins if not self._fits(key)])
        self._write_rows()
        for name in () if resume else (LIST, FAILED):
            (path / name).unlink(missing_ok=True)

    def _earlier(self) -> Iterator[dict[str, Any]]:
        for line in read_lines(self.path / RESULTS) if (self.path / RESULTS).is_file() else ():
            try:
                row = json.loads(line)
                if (self.path / row["file"]).is_file() and isinstance(row["key"], str):
                    yield row
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the last line of a killed run

    def _fits(self, key: str) -> bool:
        row = self.rows.get(key, {})
        return all(row.get(name) == value for name, value in self._origins[key].items())

    def drop(self, keys: Iterable[str]) -> None:
        """Forget voices, which are to be made again."""
        for key in list(keys):
            self.rows.pop(key, None)

    def add(self, key: str, found: ExtractedVoice) -> None:
        """Write a voice, and what is known of it."""
        name = f"{self._file_name(key)}.wav"
        found.to_wav(self.path / name)
        self.rows[key] = {"key": key, "file": name, **self._origins[key], **found.to_dict()}
        with open(self.path / RESULTS, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(self.rows[key], ensure_ascii=False) + "\n")

    def finish(self, tried: Sequence[str], failures: Mapping[str, str]) -> None:
        """Write the lists of what is there now and of what failed."""
        self._write_rows()
        write_table(self.path / LIST, {key: str(self.path / row["file"]) for key, row in self.rows.items()})
        write_failures(self.path / FAILED, tried, failures)

    def _write_rows(self) -> None:
        lines = [json.dumps(self.rows[key], ensure_ascii=False) for key in sorted(self.rows)]
        if lines or os.path.lexists(self.path / RESULTS):
            write_lines(self.path / RESULTS, lines)
