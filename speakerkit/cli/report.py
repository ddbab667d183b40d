"""``speakerkit report``: web pages of results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from speakerkit.cli.metrics import AreRatios, Replicates, ScoreFiles, Seed, Speakers, read_systems, replicate
from speakerkit.cli.score_extraction import Estimates, Metrics, Reference, Workers, run_scoring

if TYPE_CHECKING:
    from speakerkit.diarization.turns import Diarization

Page = Annotated[Path, typer.Option("--out", help="Page to write, as .html.")]
Date = Annotated[str, typer.Option("--date", help="To stand on the page, which has no date of itself.")]


class _Pages(TyperGroup):
    """``report SCORES...`` is ``report trials SCORES...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["trials", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Pages,
    help="One HTML page: of a test set's trials (the default), of who speaks in a recording, or of extracted voices.",
    no_args_is_help=True,
)


@app.command()
def trials(
    scores: ScoreFiles,
    out: Page,
    llr: AreRatios = False,
    bootstrap: Replicates = None,
    utt2spk: Speakers = None,
    seed: Seed = 0,
    scp: Annotated[Path | None, typer.Option(help="Recordings to link and to play: lines `key path`.")] = None,
    utt2dur: Annotated[Path | None, typer.Option(help="Their durations in seconds.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="False accepts, and false rejects, to list of each system.")] = 20,
    title_label: Annotated[str, typer.Option(help="Heading of the page, such as the test set.")] = "",
    date: Date = "",
) -> None:
    """A test set: figures, plots, and the worst errors with their recordings.

    Of several score files, all of the same trials, the difference to the first is shown.
    """
    from speakerkit.data.lists import read_durations, read_table
    from speakerkit.verification.report import Recordings, measure, write_report

    _require_html(out)
    recordings = Recordings(
        {} if scp is None else read_table(scp),
        {} if utt2dur is None else read_durations(utt2dur),
        None if utt2spk is None else read_table(utt2spk),
        str(scp),
    )
    named = read_systems(scores)
    results = measure(named, recordings, llr=llr)
    drawn = None if bootstrap is None else replicate(named, bootstrap, recordings.speakers, seed, llr)
    notes = _notes(date)
    if drawn:
        notes["Seed"] = str(seed)
    write_report(out, named, results, recordings, drawn=drawn, worst=worst, title=title_label, notes=notes)
    typer.echo(f"{out}: report on {len(next(iter(named.values())))} trials", err=True)


@app.command()
def diarization(
    turns: Annotated[
        Path, typer.Argument(metavar="TURNS", help="File of turns: .rttm, .json (with voices), or others.")
    ],
    out: Page,
    audio: Annotated[Path | None, typer.Option(help="The recording, to play.")] = None,
    embed_audio: Annotated[
        bool, typer.Option("--embed-audio", help="Put it into the page, up to 64 MB, instead of a link to it.")
    ] = False,
    recording: Annotated[str | None, typer.Option(help="Which one, where TURNS has several.")] = None,
    title_label: Annotated[str, typer.Option(help="Heading of the page; else the recording.")] = "",
    date: Date = "",
) -> None:
    """A recording: its speakers' turns to see, to play, and to name; the page saves them as RTTM again."""
    from speakerkit.diarization.formats import read_turns
    from speakerkit.diarization.report import write_report

    _require_html(out)
    found = _one(read_turns(turns), recording, turns)
    write_report(out, found, audio=audio, embed_audio=embed_audio, title=title_label, notes=_notes(date))
    typer.echo(f"{out}: report on {len(found.turns)} turns", err=True)


@app.command()
def extraction(
    reference: Reference,
    estimates: Estimates,
    out: Page,
    scores: Annotated[
        Path | None, typer.Option(help="What `score extraction --json` found, instead of scoring here.")
    ] = None,
    metrics: Metrics = "si-sdr,sdr",
    worst: Annotated[int, typer.Option(min=0, help="Estimates to show, the worst first.")] = 20,
    workers: Workers = 1,
    title_label: Annotated[str, typer.Option(help="Heading of the page, such as the test set.")] = "",
    date: Date = "",
) -> None:
    """Extracted voices: figures, box plots, and the worst estimates with spectrograms and sound, all in one file."""
    from speakerkit.extraction.report import write_report
    from speakerkit.extraction.scores import read_scores
    from speakerkit.extraction.scoring import read_estimates, read_items
    from speakerkit.pictures import require_matplotlib

    _require_html(out)
    require_matplotlib("report")
    items = read_items(reference)
    found = run_scoring(items, estimates, metrics, workers=workers) if scores is None else read_scores(scores)
    write_report(out, found, items, read_estimates(estimates), worst=worst, title=title_label, notes=_notes(date))
    typer.echo(f"{out}: report on {len(found.items)} voices", err=True)


def _one(found: Mapping[str, Diarization], recording: str | None, source: Path) -> Diarization:
    """The recording that is asked for, or the only one."""
    from speakerkit.errors import DataError

    key = next(iter(found)) if recording is None and len(found) == 1 else recording
    if key is not None and key in found:
        return found[key]
    fault = f"holds {len(found)} recordings" if recording is None else f"has no recording {recording[:200]!r}"
    known = ", ".join(repr(key[:50]) for key in list(found)[:5])
    raise DataError(source, fault, f"--recording can be {known}")


def _require_html(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{str(out)!r} does not end in .html", param_hint="--out")


def _notes(date: str) -> dict[str, str]:
    return {"Command": _command(), **({"Date": date} if date else {})}


def _command() -> str:
    """What was typed, but for the page's name, so that the page is the same under any."""
    words = sys.argv[1:]
    kept = [
        word
        for word, before in zip(words, ["", *words], strict=False)
        if "--out" not in (word, before) and not word.startswith("--out=")
    ]
    return shlex.join(["speakerkit", *kept])
