"""``speakerkit report``: one web page of a test set."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from speakerkit.cli.metrics import AreRatios, Replicates, ScoreFiles, Seed, Speakers, read_systems, replicate


def report(
    scores: ScoreFiles,
    out: Annotated[Path, typer.Option(help="Page to write, as .html.")],
    llr: AreRatios = False,
    bootstrap: Replicates = None,
    utt2spk: Speakers = None,
    seed: Seed = 0,
    scp: Annotated[Path | None, typer.Option(help="Recordings to link and to play: lines `key path`.")] = None,
    utt2dur: Annotated[Path | None, typer.Option(help="Their durations in seconds.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="False accepts, and false rejects, to list of each system.")] = 20,
    title_label: Annotated[str, typer.Option(help="Heading of the page, such as the test set.")] = "",
    date: Annotated[str, typer.Option(help="To stand on the page, which has no date of itself.")] = "",
) -> None:
    """One HTML page of a test set: figures, plots, and the worst errors with their recordings.

    Of several score files, all of the same trials, the difference to the first is shown.
    """
    from speakerkit.data.lists import read_durations, read_table
    from speakerkit.verification.report import Recordings, measure, write_report

    if out.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{str(out)!r} does not end in .html", param_hint="--out")
    recordings = Recordings(
        {} if scp is None else read_table(scp),
        {} if utt2dur is None else read_durations(utt2dur),
        None if utt2spk is None else read_table(utt2spk),
        str(scp),
    )
    named = read_systems(scores)
    results = measure(named, recordings, llr=llr)
    drawn = None if bootstrap is None else replicate(named, bootstrap, recordings.speakers, seed, llr)
    notes = {"Command": _command(), **({"Date": date} if date else {})}
    if drawn:
        notes["Seed"] = str(seed)
    write_report(out, named, results, recordings, drawn=drawn, worst=worst, title=title_label, notes=notes)
    typer.echo(f"{out}: report on {len(next(iter(named.values())))} trials", err=True)


def _command() -> str:
    """What was typed, but for the page's name, so that the page is the same under any."""
    words = sys.argv[1:]
    kept = [
        word
        for word, before in zip(words, ["", *words], strict=False)
        if "--out" not in (word, before) and not word.startswith("--out=")
    ]
    return shlex.join(["speakerkit", *kept])
