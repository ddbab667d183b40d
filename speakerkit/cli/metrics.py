"""``speakerkit metrics``: error rates of score files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from speakerkit.cli.options import Json


def metrics(
    scores: Annotated[list[Path], typer.Argument(help="Score files: 'enrol test score target|nontarget' a line.")],
    as_json: Json = False,
    det: Annotated[Path | None, typer.Option(help="Draw the DET curves into this .png or .svg.")] = None,
    title_label: Annotated[str, typer.Option(help="Heading of table and picture, such as the test set.")] = "",
) -> None:
    """EER and minDCF (target prior 0.01 and 0.05, unit costs, normalised) of each score file."""
    from speakerkit.verification.metrics import evaluate, metrics_table
    from speakerkit.verification.plots import plot_det
    from speakerkit.verification.trials import read_scores

    named = {name: read_scores(path) for name, path in _names(scores).items()}
    results = {name: evaluate(read) for name, read in named.items()}
    if det is not None:
        plot_det(named, det, title_label)
    if as_json:
        systems = {name: asdict(result) for name, result in results.items()}
        typer.echo(json.dumps({"title": title_label, "scores": systems}, indent=2, ensure_ascii=False))
    else:
        heading = f"{title_label}\n\n" if title_label else ""
        typer.echo(heading + metrics_table(results))


def _names(paths: list[Path]) -> dict[str, Path]:
    """A short name for each file: its stem where stems differ, else its path."""
    if len({path.stem for path in paths}) == len(paths):
        return {path.stem: path for path in paths}
    return {str(path): path for path in paths}
