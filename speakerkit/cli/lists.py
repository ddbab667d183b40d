"""`speakerkit data raw|shards|lmdb|augmentations`: lists, tar shards and noise stores for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speakerkit.cli.options import AllowPipes, Json

if TYPE_CHECKING:
    from speakerkit.data.lists import Utterance


def raw(
    data_dir: Annotated[Path, typer.Argument(help="Kaldi directory with wav.scp and utt2spk.")],
    out_list: Annotated[Path, typer.Argument(help="raw.list to write: one JSON object a line.")],
    vad: Annotated[Path | None, typer.Option(help="Speech to keep: lines `segment utterance start end`.")] = None,
    allow_pipes: AllowPipes = False,
) -> None:
    """List recordings one by one (raw.list)."""
    from dataclasses import replace

    from speakerkit.data.lists import read_data_dir, read_vad, write_utterance_list
    from speakerkit.errors import DataError

    utterances = read_data_dir(data_dir, allow_pipes)
    if vad is not None:
        speech = read_vad(vad)
        utterances = [
            replace(utterance, vad=speech[utterance.key]) for utterance in utterances if utterance.key in speech
        ]
        if not utterances:
            raise DataError(vad, f"names no utterance of {data_dir}", "check the two belong together")
    write_utterance_list(out_list, utterances)
    typer.echo(f"{len(utterances)} recordings", err=True)
    typer.echo(out_list)


def shards(
    data_dir: Annotated[Path, typer.Argument(help="Kaldi directory, or a raw.list (whose vad segments are cut out).")],
    out_dir: Annotated[Path, typer.Argument(help="Folder for the tars and their shard.list.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Recordings in one tar.")] = 1000,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the bytes do not depend on it.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 42,
    prefix: Annotated[str, typer.Option(help="Tars are PREFIX_000000000.tar and so on.")] = "shards",
    shuffle: Annotated[bool, typer.Option(help="Spread speakers over the tars.")] = True,
    allow_pipes: AllowPipes = False,
) -> None:
    """Pack recordings into tar shards (shard.list)."""
    from speakerkit.data.shards import write_shards

    paths = write_shards(
        _utterances(data_dir, allow_pipes),
        out_dir,
        prefix=prefix,
        per_shard=per_shard,
        shuffle=shuffle,
        seed=seed,
        workers=workers,
        allow_pipes=allow_pipes,
    )
    typer.echo(f"{len(paths)} shards", err=True)
    typer.echo(out_dir / "shard.list")


def _utterances(source: Path, allow_pipes: bool) -> list[Utterance]:
    from speakerkit.data.lists import read_data_dir, read_utterance_list

    return read_utterance_list(source, allow_pipes) if source.is_file() else read_data_dir(source, allow_pipes)


def lmdb(
    scp_or_dir: Annotated[Path, typer.Argument(help="wav.scp, Kaldi directory, or folder of noises or responses.")],
    out: Annotated[Path, typer.Argument(help="LMDB folder to write.")],
    allow_pipes: AllowPipes = False,
) -> None:
    """Pack noises or room responses into an LMDB store."""
    from speakerkit.data.stores import audio_files, write_lmdb

    files, types = audio_files(scp_or_dir, allow_pipes)
    write_lmdb(files, out, types=types, allow_pipes=allow_pipes)
    typer.echo(f"{len(files)} recordings", err=True)
    typer.echo(out)


def augmentations(as_json: Json = False) -> None:
    """List the augmentations that a configuration can name, with their parameters."""
    import json

    from speakerkit.data.augment import list_augmentations

    listed = list_augmentations()
    if as_json:
        rows = [
            {
                "name": each.name,
                "doc": each.doc,
                "needs": each.needs,
                "parameters": {
                    name: {"type": kind, "default": default} for name, (kind, default) in each.parameters.items()
                },
            }
            for each in listed
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    for each in listed:
        typer.echo(f"{each.name}: {each.doc}" + (f" Reads {each.needs}." if each.needs else ""))
        for name, (_, default) in each.parameters.items():
            typer.echo(f"  {name}: {json.dumps(default)}")


def holdout(
    data_dir: Annotated[Path, typer.Argument(help="Kaldi directory to train on.")],
    out_dir: Annotated[Path, typer.Argument(help="Gets train.list, valid.list and valid.trials.")],
    speakers: Annotated[int, typer.Option(min=1, help="Speakers of whom one utterance is held out.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 42,
    allow_pipes: AllowPipes = False,
) -> None:
    """Cut a training directory into raw lists to train on and to watch the training by."""
    from speakerkit.data.holdout import hold_out, write_holdout
    from speakerkit.data.lists import read_data_dir

    cut = hold_out(read_data_dir(data_dir, allow_pipes), speakers, seed)
    write_holdout(cut, out_dir)
    if not cut.valid:
        typer.echo(f"{data_dir}: no speaker has three utterances, so none is held out", err=True)
    typer.echo(f"{out_dir}: {len(cut.train)} to train on, {len(cut.valid)} held out, {len(cut.trials)} trials")
