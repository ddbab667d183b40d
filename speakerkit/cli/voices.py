"""``speakerkit voices``: what is enrolled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from speakerkit.cli.options import Json

if TYPE_CHECKING:
    from speakerkit.verification.voiceprints.search import Kind
    from speakerkit.verification.voiceprints.store import Enrolment, Match, Voice

app = typer.Typer(no_args_is_help=True)

Database = Annotated[
    str,
    typer.Option(
        "--db", help="Database of voices: a SQLite file, or postgresql://user@host/name.", envvar="SPEAKERKIT_VOICES"
    ),
]
MatchOption = Annotated[
    str, typer.Option("--match", help="Compare with the mean of a voice's recordings, or the nearest of its exemplars.")
]


@app.callback()
def voices() -> None:
    """List, change, export and import enrolled voices."""


@app.command("list")
def list_voices(db: Database, as_json: Json = False) -> None:
    """Names of the voices, with their recordings, seconds of audio, and the day of the first."""
    from speakerkit.verification.voiceprints.store import open_store

    with open_store(db) as store:
        found = store.voices()
        stamp = store.stamp()
    if as_json:
        model = None if stamp is None else asdict(stamp)
        typer.echo(json.dumps({"model": model, "voices": [asdict(voice) for voice in found]}, ensure_ascii=False))
        return
    width = max((len(voice.name) for voice in found), default=0)
    for voice in found:
        typer.echo(f"{voice.name:{width}}  {summary(voice)}  since {voice.created[:10]}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A voice.")], db: Database, as_json: Json = False) -> None:
    """The recordings of a voice and the model that made its vectors."""
    from speakerkit.verification.voiceprints.store import open_store

    with open_store(db) as store:
        voice, stamp, recordings = store.voice(name), store.stamp(), store.enrolments(name)
    if as_json:
        model = None if stamp is None else asdict(stamp)
        report = {**asdict(voice), "model": model, "enrolments": [_told(item) for item in recordings]}
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    typer.echo(f"{voice.name}: {summary(voice)}; model {stamp}")
    for item in recordings:
        typer.echo(f"{item.source}  {item.seconds:.1f} s  {item.created}  sha256 {item.sha256[:12]}")


@app.command()
def remove(names: Annotated[list[str], typer.Argument(help="Voices to forget.")], db: Database) -> None:
    """Forget voices and all their recordings; where one of them is not there, none is forgotten."""
    from speakerkit.verification.voiceprints.store import open_store

    with open_store(db) as store:
        store.remove(*names)
    for name in names:
        typer.echo(f"{name}: removed")


@app.command()
def rename(
    old: Annotated[str, typer.Argument(help="A voice.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    db: Database,
) -> None:
    """Give a voice another name."""
    from speakerkit.verification.voiceprints.store import open_store

    with open_store(db) as store:
        store.rename(old, new)
    typer.echo(f"{old}: renamed to {new}")


@app.command("export")
def export_(
    out: Annotated[str, typer.Argument(help="x.npy, x.npz, x.jsonl or x.scp (with x.ark), or npy:x and so on.")],
    db: Database,
    vectors: Annotated[
        str, typer.Option(help="mean: one vector a voice; exemplars: one a recording, from which nothing is lost.")
    ] = "mean",
) -> None:
    """Write voiceprints of length one: their inner product is the cosine."""
    from speakerkit.embedding.extract import output_of
    from speakerkit.verification.voiceprints.exchange import export_voices
    from speakerkit.verification.voiceprints.store import open_store

    path, form = output_of(out)
    with open_store(db) as store:
        written = export_voices(store, path, form, check_match(vectors, "--vectors"))
        typer.echo(f"{written}: {len(store)} voices")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An export, or embeddings: .npy, .npz, .jsonl, .scp or .ark.")],
    db: Database,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model that made them, where STEM.model.json does not tell.")
    ] = None,
    utt2spk: Annotated[Path | None, typer.Option(help="Voice of each key; else a key is the name of a voice.")] = None,
) -> None:
    """Add voiceprints or embeddings from a file; what is there already is passed over."""
    from speakerkit.bundle import read_bundle
    from speakerkit.data.lists import read_table
    from speakerkit.verification.voiceprints.exchange import read_voices
    from speakerkit.verification.voiceprints.store import ModelStamp, open_store
    from speakerkit.zoo.store import open_name

    stamp = None if model is None else ModelStamp.of(read_bundle(open_name(model)))
    speakers = None if utt2spk is None else read_table(utt2spk)
    read = read_voices(file, stamp=stamp, speakers=speakers)
    with open_store(db, create=True) as store:
        added = read.add_to(store)
    new, known = sum(item.new for item in added), sum(len(item.known) for item in added)
    typer.echo(f"{len(added)} voices: {new} recordings added, {known} were there")


@app.command()
def index(
    db: Database,
    match: MatchOption = "mean",
    kind: Annotated[
        str | None,
        typer.Option(help="flat (all are compared), ivf or hnsw (a part of them). Default: by their number."),
    ] = None,
) -> None:
    """Build an index for `identify` among more than 100 000 voices; it stays good while voices come and go."""
    from speakerkit.verification.voiceprints.postgres import PostgresStore
    from speakerkit.verification.voiceprints.search import build_index
    from speakerkit.verification.voiceprints.store import open_store

    if kind not in (None, "flat", "ivf", "hnsw"):
        raise typer.BadParameter(f"{kind!r} is none of flat, ivf, hnsw", param_hint="--kind")
    matched = check_match(match)
    with open_store(db) as store:
        if isinstance(store, PostgresStore):
            store.build_index(matched)
            typer.echo(f"{store.location}: indexed by the server")
        else:
            typer.echo(f"{build_index(store, matched, cast('Kind | None', kind))}: built")


def check_match(value: str, option: str = "--match") -> Match:
    """The value of ``--match``."""
    if value not in ("mean", "exemplars"):
        raise typer.BadParameter(f"{value!r} is neither 'mean' nor 'exemplars'", param_hint=option)
    return cast("Match", value)


def _told(item: Enrolment) -> dict[str, object]:
    """A recording without its vector."""
    return {name: value for name, value in vars(item).items() if name != "vector"}


def summary(voice: Voice) -> str:
    """How much of a voice there is, in words."""
    speech = f" ({voice.speech:.1f} s without pauses)" if voice.speech else ""
    return f"{voice.recordings} recording{'s' * (voice.recordings != 1)}, {voice.seconds:.1f} s{speech}"
