"""``speakerkit score der``: error rates of diarizations against references."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from speakerkit.cli.options import Json

if TYPE_CHECKING:
    from speakerkit.diarization.der import Convention, DiarizationScore, ErrorSpan

logger = logging.getLogger("speakerkit.diarization")

Collar = Annotated[
    float, typer.Option(min=0.0, help="Seconds on each side of every start and end in the reference not to score.")
]
Median = Annotated[
    int, typer.Option(min=0, help="Median filter on the hypothesis, in frames of 10 ms (odd; 11 is usual).")
]


def der(
    reference: Annotated[Path, typer.Argument(help="Turns as they are: a file, or a folder of RTTMs.")],
    hypothesis: Annotated[Path, typer.Argument(help="Turns as they were found.")],
    uem: Annotated[Path | None, typer.Option(help="Regions to score: 'recording channel start end' a line.")] = None,
    collar: Collar = 0.0,
    overlap: Annotated[bool, typer.Option(help="Score where several speak in the reference.")] = True,
    median: Median = 0,
    extent: Annotated[
        str, typer.Option(help="Without a UEM, score what 'both' speak of (dscore), or the 'reference' (md-eval).")
    ] = "both",
    missing_as_silence: Annotated[
        bool, typer.Option("--missing-as-silence", help="A recording that HYPOTHESIS lacks has nobody speaking.")
    ] = False,
    conventions: Annotated[
        bool, typer.Option("--conventions", help="DER by either meaning of the collar, and with and without overlap.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="List the spans that cost the most.")] = False,
    worst: Annotated[int, typer.Option(min=1, help="How many of them.")] = 20,
    as_json: Json = False,
) -> None:
    """DER (missed speech, false alarms, confusion) and JER: by recording, by number of speakers, and pooled.

    --collar 0.25 leaves out 0.25 s on each side, as md-eval, dscore and spy-der do; pyannote.metrics means the width
    of both sides together. JER has no collar and counts overlaps, whatever is asked.
    """
    from speakerkit.diarization.der import Convention, score_diarization
    from speakerkit.diarization.formats import read_turns, read_uem

    wanted = Convention(collar, overlap, median, cast("Any", extent))
    references, hypotheses = read_turns(reference), read_turns(hypothesis)
    regions = None if uem is None else read_uem(uem)

    def score(convention: Convention, explain: bool = False) -> DiarizationScore:
        return score_diarization(
            references, hypotheses, regions, convention, missing_as_silence=missing_as_silence, explain=explain
        )

    result = score(wanted, explain)
    _warn(result)
    others = {name: score(convention) for name, convention in _conventions(wanted).items()} if conventions else {}
    if as_json:
        typer.echo(json.dumps(_report(result, others, worst, explain), indent=2, ensure_ascii=False, allow_nan=False))
        return
    typer.echo(result.table())
    if others:
        typer.echo(f"\n{_table(others)}")
    if explain:
        typer.echo(f"\n{_spans(result, worst)}")


def _conventions(wanted: Convention) -> dict[str, Convention]:
    collar = wanted.collar or 0.25
    sizes = {
        "no collar": 0.0,
        f"{collar:g} s on each side (md-eval)": collar,
        f"{collar:g} s for both sides (pyannote.metrics)": collar / 2,
    }
    return {
        f"{name}, {'with' if overlap else 'without'} overlap": replace(wanted, collar=size, overlap=overlap)
        for name, size in sizes.items()
        for overlap in (True, False)
    }


def _warn(result: DiarizationScore) -> None:
    from speakerkit.diarization.der import some

    for names, what in (
        (result.missing, "recordings are missing in the hypothesis, and count as silence"),
        (result.extra, "recordings are in the hypothesis but not in the reference, and are not scored"),
        (result.outside, "recordings of the reference are not in the UEM, and are not scored"),
    ):
        if names:
            logger.warning("%d %s: %s", len(names), what, some(names))


def _report(
    result: DiarizationScore, others: Mapping[str, DiarizationScore], worst: int, explain: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    report = result.to_dict()
    if others:
        report["conventions"] = {name: {"errors": each.errors.to_dict()} for name, each in others.items()}
    if explain:
        report["worst"] = [asdict(span) for span in result.worst(worst)]
    return report


def _table(others: Mapping[str, DiarizationScore]) -> str:
    from speakerkit.tables import text_table

    rows = [["all, by other conventions", "speech s", "DER %"]]
    for name, each in others.items():
        rate = each.errors.der
        rows.append([name, f"{each.errors.speech:.2f}", "-" if rate is None else f"{100 * rate:.2f}"])
    return text_table(rows)


def _spans(result: DiarizationScore, worst: int) -> str:
    from speakerkit.tables import text_table

    mapping = {each.recording: each.mapping for each in result.recordings}
    spans = result.worst(worst)
    if not spans:
        return "no errors"
    rows = [["recording", "start", "end", "costs s", "error"]]
    rows += [
        [
            span.recording,
            f"{span.start:.3f}",
            f"{span.end:.3f}",
            f"{span.seconds:.3f}",
            _said(span, mapping[span.recording]),
        ]
        for span in spans
    ]
    return text_table(rows)


def _said(span: ErrorSpan, mapping: Mapping[str, str]) -> str:
    heard = [f"{label} ({mapping[label]})" if label in mapping else f"{label} (nobody)" for label in span.hypothesis]
    if span.kind == "confusion":
        return f"confusion: {_joined(span.reference)} taken for {_joined(heard)}"
    return f"{span.kind}: {_joined(span.reference if span.kind == 'missed' else heard)}"


def _joined(names: Sequence[str]) -> str:
    return " and ".join(names)
