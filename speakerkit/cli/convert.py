"""``speakerkit convert``: turns from one format into another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from speakerkit.diarization.turns import Diarization


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="File of turns, or a folder of them.")],
    out: Annotated[str, typer.Argument(help="File to write, '-' for stdout, or (with --to) 'FOLDER/' for one each.")],
    source_format: Annotated[
        str | None, typer.Option("--from", help="rttm, json, csv, textgrid, audacity, lab, srt or vtt; else by suffix.")
    ] = None,
    out_format: Annotated[str | None, typer.Option("--to", help="The same, or uem; else by suffix.")] = None,
    recording: Annotated[
        str | None, typer.Option(help="The one to take; where IN names none, what it is called.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.001, max=1e7, help="Of the recording in seconds, where IN does not say it.")
    ] = None,
) -> None:
    """Convert who spoke when between RTTM, JSON, CSV, TextGrid, Audacity labels, LAB, SRT and WebVTT.

    Times are rounded to milliseconds. To .uem is written how long each recording lasts.
    """
    from speakerkit.diarization.formats import format_of, read_turns, to_text, write_text
    from speakerkit.diarization.formats.text import file_name

    found = read_turns(source, source_format)
    if recording is not None:
        found = {recording: _chosen(found, recording, source)}
    if duration is not None:
        if len(found) > 1:
            raise typer.BadParameter(
                f"{source} holds {len(found)} recordings: choose one with --recording", param_hint="--duration"
            )
        found = {key: replace(each, duration=duration) for key, each in found.items()}
    if out_format is not None and (out.endswith("/") or Path(out).is_dir()):
        suffix = format_of(out, out_format).suffix
        for key, each in found.items():
            write_text(Path(out) / (file_name(key) + suffix), to_text([each], out_format))
        typer.echo(f"{out}: {len(found)} files", err=True)
        return
    text = _text(found, out, out_format)
    if out == "-":
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    turns = sum(len(each.turns) for each in found.values())
    typer.echo(f"{out}: {turns} turns, {len(found)} recordings", err=True)


def _text(found: Mapping[str, Diarization], out: str, name: str | None) -> str:
    from speakerkit.diarization.formats import format_of, to_text, write_uem

    if name == "uem" or (name is None and Path(out).suffix.lower() == ".uem"):
        return write_uem({each.recording: [(0.0, _seconds(each))] for each in found.values()})
    return to_text(found.values(), format_of(out, name).name)


def _seconds(diarization: Diarization) -> float:
    """How long it lasts, which only some formats say."""
    from speakerkit.errors import DataError

    if diarization.duration is None:
        raise DataError(diarization.recording, "does not say how long it lasts", "give --duration")
    return diarization.duration


def _chosen(found: Mapping[str, Diarization], recording: str, source: Path) -> Diarization:
    from speakerkit.diarization.formats.text import stem
    from speakerkit.errors import DataError

    if recording in found:
        return found[recording]
    unnamed = len(found) == 1 and next(iter(found)) == stem(source)
    if not unnamed:
        known = ", ".join(repr(key[:50]) for key in list(found)[:5])
        raise DataError(source, f"has no recording {recording[:200]!r}", f"it has {known}")
    return replace(next(iter(found.values())), recording=recording)
