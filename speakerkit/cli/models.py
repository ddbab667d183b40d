"""``speakerkit models``: public models by name; nothing is downloaded unless ``fetch`` asks for it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speakerkit.cli.options import Json

if TYPE_CHECKING:
    from speakerkit.zoo.registry import ModelCard

app = typer.Typer(help="Public models: list, show, fetch, verify.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name or alias, as `models list` shows them.")]


@app.command("list")
def list_models(
    pattern: Annotated[str | None, typer.Argument(metavar="[GLOB]", help="Only these: 'resnet*', '*cnceleb*'.")] = None,
    as_json: Json = False,
) -> None:
    """Registered models, what they may be used for, and which are here. Nothing is downloaded."""
    from speakerkit.errors import ConfigError
    from speakerkit.zoo.registry import matching
    from speakerkit.zoo.store import fetched_models

    models, here = matching(pattern), fetched_models()
    if as_json:
        typer.echo(json.dumps([_record(name, card) for name, card in models.items()], indent=2))
        return
    if not models:
        raise ConfigError(f"pattern {pattern!r}", "matches no registered model", "see `speakerkit models list`")
    rows = [("name", "layout", "MB", "EER %", "licence", "commercial", "here")]
    for name, card in models.items():
        size = "?" if card.megabytes is None else f"{card.megabytes:.0f}"
        scoring = " AS-norm" if card.eer_conditions.startswith("cosine with AS-norm") else ""
        eer = next((f"{value:.2f} {test_set}{scoring}" for test_set, value in card.eer.items()), "?")
        rows.append((name, card.layout, size, eer, card.license or "?", _yes(card.commercial_use), _yes(name in here)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """All that is known of a model, its licence and commercial use included, and how to use it."""
    from speakerkit.zoo.registry import find_model

    name, card = find_model(name)
    record = _record(name, card)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    files = record.pop("files")
    for key, value in record.items():
        typer.echo(f"{key}: {_shown(value)}")
    typer.echo("files:" if files else "files: unknown")
    for file in files:
        size = file["size"] or (f"about {file['about_mb']:g} MB" if file["about_mb"] else None)
        typer.echo(f"  {file['name']}{' (archive)' if file['unpack'] else ''}: {file['url']}")
        typer.echo(f"    size {_shown(size)}, sha256 {_shown(file['sha256'])}")


@app.command()
def fetch(
    name: Name,
    out: Annotated[Path | None, typer.Option(help="Folder to make; default: under SPEAKERKIT_HOME.")] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Base address in place of scheme and host; default: SPEAKERKIT_MIRROR.")
    ] = None,
) -> None:
    """Download a model, resuming what broke off, and check it; its folder goes to stdout."""
    from speakerkit.zoo import store
    from speakerkit.zoo.registry import find_model

    name, card = find_model(name)
    fetched = store.fetch(name, out, mirror)
    typer.echo(str(fetched.path))
    if not fetched.downloaded:
        typer.echo("it was here already, and is whole", err=True)
    usable = fetched.path
    if card.layout in store.IMPORT_KINDS:
        usable = fetched.path / store.IMPORTED
        _import(card, fetched.path)
    typer.echo(f"licence: {_shown(card.license)}; commercial use: {_yes(card.commercial_use, 'unknown')}", err=True)
    typer.echo(f"use it with --model {name if out is None else usable}", err=True)


def _import(card: ModelCard, folder: Path) -> None:
    """Make a bundle of fetched files; where that cannot be done here and now, say how and why."""
    from speakerkit.errors import SpeakerKitError
    from speakerkit.zoo import store

    if store.is_imported(folder):
        return
    new = folder / f".{store.IMPORTED}.new"
    shutil.rmtree(new, ignore_errors=True)
    try:
        from speakerkit.embedding.importers import import_model

        import_model(folder, new, kind=store.IMPORT_KINDS[card.layout], licence=card.license)
        shutil.rmtree(folder / store.IMPORTED, ignore_errors=True)
        new.replace(folder / store.IMPORTED)
    except (SpeakerKitError, ImportError) as error:
        typer.echo(f"not imported yet ({error}); then run `{store.import_command(card, folder)}`", err=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME|DIR]", help="Default: every fetched model.")] = None,
    as_json: Json = False,
) -> None:
    """Hash fetched files anew and compare with what was fetched and with what is registered."""
    from speakerkit.errors import BundleError, PartialFailure
    from speakerkit.zoo import store
    from speakerkit.zoo.registry import find_model

    if name is None:
        folders = list(store.fetched_models().values())
    elif Path(name).is_dir():
        folders = [Path(name)]
    else:
        known, _ = find_model(name)
        folders = [store.model_folder(known)]
        if known not in store.fetched_models():
            raise BundleError(name, f"has not been fetched to {folders[0]}", f"run `{store.fetch_command(known)}`")
    report: list[dict[str, Any]] = []
    faults: list[tuple[Path, store.FileState]] = []
    for folder in folders:
        states = store.check(folder)
        bad = [state for state in states if state.state != "ok"]
        faults += [(folder / state.name, state) for state in bad[:1]]
        files = [dataclasses.asdict(state) for state in states]
        report.append(
            {"folder": str(folder), "name": store.read_manifest(folder)["name"], "ok": not bad, "files": files}
        )
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    elif not report:
        typer.echo(f"no models below {store.models_home()}", err=True)
    for row in [] if as_json else report:
        typer.echo(f"{row['folder']}: {'ok' if row['ok'] else 'damaged'}")
        for file in row["files"]:
            typer.echo(f"  {file['state']}: {file['name']} {file['found'] or '-'}")
    if faults:
        path, state = faults[0]
        kind = BundleError if len(faults) == len(folders) else PartialFailure
        raise kind(
            path,
            f"is {state.state} (SHA-256 {state.found or 'of nothing'}, {state.expected} is expected)",
            "fetch the model again, which replaces it",
        )


def _record(name: str, card: ModelCard) -> dict[str, Any]:
    from speakerkit.zoo import store

    folder = store.model_folder(name)
    here = name in store.fetched_models()
    command = f"speakerkit embed --model {name} a.wav"
    if not here:
        command = store.fetch_command(name)
    elif card.layout in store.IMPORT_KINDS and not store.is_imported(folder):
        command = store.import_command(card, folder)
    return {"name": name, **dataclasses.asdict(card), "folder": str(folder), "here": here, "command": command}


def _yes(value: bool | None, unknown: str = "?") -> str:
    return unknown if value is None else "yes" if value else "no"


def _shown(value: Any) -> str:
    if value in (None, "", [], {}):
        return "unknown"
    if isinstance(value, bool):
        return _yes(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {each:g}" for key, each in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
