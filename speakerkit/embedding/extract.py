"""Bulk extraction into files that can be taken up again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from speakerkit.audio import Channel
from speakerkit.data.ark import READ_SUFFIXES, WRITE_FORMATS, EmbeddingWriter
from speakerkit.data.lists import read_lines
from speakerkit.embedding.embedder import Embedder, Short
from speakerkit.errors import DataError
from speakerkit.files import write_json, write_lines


@dataclass(frozen=True)
class ExtractionSummary:
    """What :func:`embed_to_file` did: counts, the finished file, and where failures are named."""

    path: Path
    written: int
    kept: int
    failed: int
    failures_path: Path
    first_failure: str


def file_keys(files: Sequence[Path]) -> dict[str, str]:
    """Paths as entries: the key is the path, what a key may not hold (blanks, non-ASCII) percent-encoded.

    Raises:
        DataError: a file is named twice.
    """
    entries: dict[str, str] = {}
    for file in files:
        key = quote(os.fsencode(file), safe="/\\:._-+=,@()[]~!")
        if key in entries:
            raise DataError(file, "is named twice", "name each recording once")
        entries[key] = str(file)
    return entries


def output_of(text: str) -> tuple[Path, str | None]:
    """``--out`` to path and format: ``emb.npy``, ``npy:emb``, ``ark,scp:emb.ark,emb.scp``, or a bare format.

    Raises:
        DataError: no format is named, or an ark and a scp that do not lie beside each other under one name.
    """
    head, _, tail = text.partition(":")
    if head not in WRITE_FORMATS:
        if Path(text).suffix not in READ_SUFFIXES:
            raise DataError(
                text,
                "the suffix names no embedding format",
                f"end it in {', '.join(READ_SUFFIXES)}, or name the format: npy:PATH, jsonl:PATH, "
                "ark,scp:a.ark,a.scp, or npy, jsonl or ark,scp alone for embeddings.* here",
            )
        return Path(text), None
    if head == "ark,scp" and (".ark," in tail or ".scp," in tail):
        stem, _, scp = tail.partition(".ark,")
        if Path(f"{stem}.scp") != Path(scp):
            raise DataError(text, "names an ark and a scp apart", "give one name to both: ark,scp:a.ark,a.scp")
        tail = scp
    return Path(tail or "embeddings"), head


def embed_to_file(
    embedder: Embedder,
    entries: Mapping[str, str],
    out: str,
    *,
    resume: bool = True,
    channel: Channel = "mix",
    short: Short = "error",
    **settings: Any,
) -> ExtractionSummary:
    """Embed entries (key to path) that ``out`` does not hold yet.

    Beside the output, ``failed.tsv`` names each recording that failed and why, ``NAME.padded.tsv`` those that were
    shorter than the model's minimum and were padded (``short="pad"``), and ``NAME.model.json`` the model and the
    settings that made the vectors.

    Raises:
        DataError: ``out`` was made by another model, from another channel, or with short recordings padded that shall
            now be refused.
    """
    path, form = output_of(out)
    writer = EmbeddingWriter(path, form, resume=resume)
    note: dict[str, Any] = {**_model_of(embedder), "channel": channel, "short": short}
    _claim(note, writer)
    missing = [(key, entry) for key, entry in entries.items() if key not in writer.done]
    kept = len(entries) - len(missing)
    failures: dict[str, str] = {}
    bar = tqdm(total=len(missing), unit="file", desc="embed", disable=not sys.stderr.isatty())
    with writer, _PaddedNotes(writer, resume) as notes, bar:
        for item in embedder.embed_many(missing, channel=channel, short=short, **settings):
            bar.update()
            if item.vector is None:
                failures[item.key] = item.error
                continue
            if item.padded:
                notes.add(item.key, item.seconds)
            writer.add(item.key, item.vector)
    _sign(note, writer)
    failures_path = writer.path.with_name("failed.tsv")
    write_failures(failures_path, entries, failures)
    first = next((failures[key] for key, _ in missing if key in failures), "")
    return ExtractionSummary(writer.path, len(missing) - len(failures), kept, len(failures), failures_path, first)


def write_failures(path: Path, tried: Iterable[str], failures: Mapping[str, str]) -> None:
    """Name this run's failures; rows of keys that it did not try stay, since outputs may share a folder."""
    tried = set(tried)
    earlier = read_lines(path) if path.exists() else []
    rows = [row for row in earlier if row.partition("\t")[0] not in tried]
    rows += [f"{key}\t{reason}" for key, reason in failures.items()]
    if rows:
        write_lines(path, sorted(rows))
    else:
        path.unlink(missing_ok=True)


class _PaddedNotes:
    """``NAME.padded.tsv``; a row goes in before its vector, so that a killed run leaves no vector unmarked."""

    def __init__(self, writer: EmbeddingWriter, resume: bool) -> None:
        self.writer = writer
        self.path = _beside(writer, "padded.tsv")
        if not resume:
            self.path.unlink(missing_ok=True)

    def add(self, key: str, seconds: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(f"{key}\t{seconds:.4f}\n")

    def __enter__(self) -> _PaddedNotes:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.path.exists():
            return
        rows = sorted(row for row in {*read_lines(self.path)} if row.partition("\t")[0] in self.writer.done)
        if rows:
            write_lines(self.path, rows)
        else:
            self.path.unlink()


def _beside(writer: EmbeddingWriter, name: str) -> Path:
    return writer.path.with_name(f"{writer.path.stem}.{name}")


def _model_of(embedder: Embedder) -> dict[str, Any]:
    return {"sha256": embedder.bundle.digest(), "dimension": embedder.bundle.config.embedding_size}


def _claim(note: dict[str, Any], writer: EmbeddingWriter) -> None:
    """Refuse to mix vectors of two models or settings in one file; say what makes these before the first is written.

    From short="error" to "pad" nothing is mixed: recordings that are long enough get the same vectors.

    While old vectors are being replaced there is no note: killed there, neither model would be the right one.
    """
    path = _beside(writer, "model.json")
    if not writer.done:
        if writer.path.exists():
            path.unlink(missing_ok=True)
        else:
            write_json(path, note)
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DataError(
            writer.path, f"was made by a model that {path.name} does not tell", "use --overwrite, or another file"
        ) from None
    remedy = "use --overwrite, or write to another file"
    if not isinstance(theirs, dict) or any(theirs.get(name) != note[name] for name in ("sha256", "dimension")):
        raise DataError(writer.path, "was made by another model", remedy)
    for name in ("channel", "short"):
        made_with = theirs.get(name, "unknown")
        if made_with != note[name] and (made_with, note[name]) != ("error", "pad"):
            raise DataError(writer.path, f"was made with --{name} {made_with}, not {note[name]}", remedy)
    if theirs != note:
        write_json(path, note)


def _sign(note: dict[str, Any], writer: EmbeddingWriter) -> None:
    """Leave the note of :func:`_claim` beside the finished file, and none where there is no file."""
    path = _beside(writer, "model.json")
    if writer.done:
        write_json(path, note)
    else:
        path.unlink(missing_ok=True)
