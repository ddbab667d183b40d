"""Bulk extraction into files that can be taken up again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from speakerkit.data.ark import WRITE_FORMATS, EmbeddingWriter
from speakerkit.data.lists import read_lines
from speakerkit.embedding.embedder import Embedder
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
    entries = {quote(str(path), safe="/\\:._-+=,@()[]~!"): str(path) for path in files}
    if len(entries) < len(files):
        raise DataError(None, "a recording is named twice", "name each once")
    return entries


def output_of(text: str) -> tuple[Path, str | None]:
    """``--out`` to path and format: ``emb.npy``, ``npy:emb``, ``ark,scp:emb.ark,emb.scp``, or a bare format."""
    head, colon, tail = text.partition(":")
    if head in WRITE_FORMATS:
        return Path(tail.split(",")[-1] if colon else "embeddings"), head
    return Path(text), None


def embed_to_file(
    embedder: Embedder, entries: Mapping[str, str], out: str, *, resume: bool = True, **settings: Any
) -> ExtractionSummary:
    """Embed entries (key to path) that ``out`` does not hold yet.

    Beside the output, ``failed.tsv`` names each recording that failed and why, ``NAME.padded.tsv`` those that were
    shorter than the model's minimum and were padded (``settings["short"] == "pad"``), and ``NAME.model.json`` the model
    that made the vectors.

    Raises:
        DataError: ``out`` was made by another model.
    """
    path, form = output_of(out)
    writer = EmbeddingWriter(path, form, resume=resume)
    _same_model(embedder, writer, resume)
    missing = [(key, entry) for key, entry in entries.items() if key not in writer.done]
    kept = len(entries) - len(missing)
    failures: dict[str, str] = {}
    padded: list[str] = []
    bar = tqdm(total=len(missing), unit="file", desc="embed", disable=not sys.stderr.isatty())
    with writer, bar:
        for item in embedder.embed_many(missing, **settings):
            bar.update()
            if item.vector is None:
                failures[item.key] = item.error
                continue
            writer.add(item.key, item.vector)
            if item.padded:
                padded.append(f"{item.key}\t{item.seconds:.4f}")
    _note(writer.path.with_name(f"{writer.path.stem}.padded.tsv"), padded, resume)
    failures_path = writer.path.with_name("failed.tsv")
    if failures:
        write_lines(failures_path, (f"{key}\t{failures[key]}" for key in sorted(failures)))
    else:
        failures_path.unlink(missing_ok=True)
    first = next((failures[key] for key, _ in missing if key in failures), "")
    return ExtractionSummary(writer.path, len(missing) - len(failures), kept, len(failures), failures_path, first)


def _note(path: Path, lines: list[str], resume: bool) -> None:
    """Add ``lines`` to those an earlier part of the same extraction left."""
    earlier = read_lines(path) if resume and path.exists() else []
    if earlier or lines:
        write_lines(path, sorted({*earlier, *lines}))
    elif path.exists():
        path.unlink()


def _same_model(embedder: Embedder, writer: EmbeddingWriter, resume: bool) -> None:
    """Refuse to mix vectors of two models in one file; note which one makes these."""
    path = writer.path.with_name(f"{writer.path.stem}.model.json")
    mine = {"sha256": embedder.bundle.digest(), "dimension": embedder.bundle.config.embedding_size}
    if resume and writer.done and path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != mine:
            raise DataError(writer.path, "was made by another model", "use --overwrite, or write to another file")
        return
    write_json(path, mine)
