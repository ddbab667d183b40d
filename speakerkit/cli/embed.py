"""``speakerkit embed``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from speakerkit.cli.options import (
    AllowPipes,
    ChannelOption,
    Device,
    Model,
    ShortAudio,
    check_channel,
    check_short,
    open_model,
)


def embed(
    model: Model,
    files: Annotated[list[Path] | None, typer.Argument(help="Recordings.")] = None,
    scp: Annotated[Path | None, typer.Option(help="List of many: lines `key path`; paths may hold blanks.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="emb.scp (with emb.ark), emb.npy, emb.npz or emb.jsonl; also npy:PATH, jsonl:PATH, "
            "ark,scp:a.ark,a.scp, or a bare npy, jsonl or ark,scp for embeddings.* here. Default: JSON on stdout."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do all again; else only what is missing.")] = False,
    short: ShortAudio = "error",
    channel: ChannelOption = "mix",
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings of equal length run as one batch.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Recordings worked on at once; 0 for one a core.")] = 0,
    device: Device = "auto",
    allow_pipes: AllowPipes = False,
) -> None:
    """Embeddings of whole recordings. Bad files of a list are named in failed.tsv, the others are written (exit 3)."""
    from speakerkit.data.lists import read_scp
    from speakerkit.embedding.extract import embed_to_file, file_keys
    from speakerkit.errors import DataError, PartialFailure

    if bool(files) == bool(scp):
        raise DataError("embed", "takes either recordings or --scp", "give one of the two")
    entries = read_scp(scp, allow_pipes) if scp else file_keys(files or [])
    if not entries:
        raise DataError(scp, "names no recordings", "check the list")
    settings: dict[str, Any] = {
        "short": check_short(short),
        "channel": check_channel(channel),
        "batch_size": batch_size,
        "allow_pipes": bool(scp) and allow_pipes,
    }
    embedder = open_model(model, device, threads)
    if out is None:
        failed = 0
        for item in embedder.embed_many(entries.items(), **settings):
            if item.vector is None:
                failed += 1
                typer.echo(f"speakerkit: error: {item.error}", err=True)
                continue
            key = entries[item.key] if files else item.key
            row = {"key": key, "seconds": round(item.seconds, 4), "padded": item.padded}
            sys.stdout.write(json.dumps({**row, "embedding": item.vector.tolist()}) + "\n")
        if failed:
            raise typer.Exit(PartialFailure.exit_code if failed < len(entries) else DataError.exit_code)
        return
    summary = embed_to_file(embedder, entries, out, resume=not overwrite, **settings)
    if summary.written + summary.kept:
        typer.echo(f"{summary.path}: {summary.written} written, {summary.kept} were there, {summary.failed} failed")
    if summary.failed:
        kind = PartialFailure if summary.written + summary.kept else DataError
        raise kind(
            summary.failures_path,
            f"{summary.failed} of {len(entries)} recordings failed, the first: {summary.first_failure}",
            "mend them and run the same command again",
        )
