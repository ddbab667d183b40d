"""``speakerkit metrics``: error rates, costs and plots of score files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speakerkit.cli.options import Json

if TYPE_CHECKING:
    from speakerkit.intervals import Interval
    from speakerkit.verification.bootstrap import Bootstrap
    from speakerkit.verification.trials import Scores


ScoreFiles = Annotated[list[Path], typer.Argument(help="Score files: 'enrol test score target|nontarget' a line.")]
AreRatios = Annotated[
    bool, typer.Option("--llr", help="Scores are log-likelihood ratios (natural): actDCF and Cllr too.")
]
Replicates = Annotated[
    int | None, typer.Option(min=2, help="95 % intervals from this many draws of the speakers; 1000 are usual.")
]
Speakers = Annotated[
    Path | None, typer.Option(help="Speakers of the ids, for --bootstrap; else what is in front of / - _ in them.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the draws.")]


def metrics(
    scores: ScoreFiles,
    as_json: Json = False,
    llr: AreRatios = False,
    bootstrap: Replicates = None,
    utt2spk: Speakers = None,
    seed: Seed = 0,
    det: Annotated[Path | None, typer.Option(help="Draw the DET curves into this .png or .svg.")] = None,
    roc: Annotated[Path | None, typer.Option(help="Draw the ROC curves.")] = None,
    histogram: Annotated[Path | None, typer.Option(help="Draw the densities of target and nontarget scores.")] = None,
    reliability: Annotated[Path | None, typer.Option(help="Draw what ratios promise and keep; needs --llr.")] = None,
    title_label: Annotated[str, typer.Option(help="Heading of table and picture, such as the test set.")] = "",
) -> None:
    """EER, minDCF (target prior 0.01 and 0.05, unit costs, normalised) and minCllr of each score file."""
    from speakerkit.data.lists import read_table
    from speakerkit.verification.metrics import evaluate, metrics_table
    from speakerkit.verification.plots import plot_det, plot_histogram, plot_reliability, plot_roc

    if reliability is not None and not llr:
        raise typer.BadParameter("it is a plot of log-likelihood ratios: give --llr", param_hint="--reliability")
    if histogram is not None and len(scores) > 1:
        raise typer.BadParameter("it takes one score file", param_hint="--histogram")
    named = read_systems(scores)
    results = {name: evaluate(read, llr=llr) for name, read in named.items()}
    speakers = None if utt2spk is None else read_table(utt2spk)
    drawn = {} if bootstrap is None else replicate(named, bootstrap, speakers, seed, llr)
    for path, plot in ((det, plot_det), (roc, plot_roc), (reliability, plot_reliability)):
        if path is not None:
            plot(named, path, title_label)
    if histogram is not None:
        plot_histogram(next(iter(named.values())), histogram, title_label)
    if as_json:
        systems = {name: asdict(result) for name, result in results.items()}
        report: dict[str, Any] = {"title": title_label, "scores": systems}
        if drawn:
            report["bootstrap"] = _intervals(drawn, seed)
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    heading = f"{title_label}\n\n" if title_label else ""
    typer.echo(heading + metrics_table(results))
    if drawn:
        typer.echo(f"\n{_interval_table(drawn, seed)}")


def read_systems(paths: list[Path]) -> dict[str, Scores]:
    """Scores by a short name for each file: its stem where stems differ, else its path."""
    from speakerkit.errors import one_line
    from speakerkit.verification.trials import read_scores

    stems = {path.stem for path in paths}
    return {one_line(path.stem if len(stems) == len(paths) else str(path)): read_scores(path) for path in paths}


def replicate(
    named: dict[str, Scores], replicates: int, speakers: Mapping[str, str] | None, seed: int, llr: bool
) -> dict[str, Bootstrap]:
    """Bootstrap each system under one progress bar; warns where single trials had to be drawn."""
    from tqdm import tqdm

    from speakerkit.verification.bootstrap import bootstrap

    hidden = not sys.stderr.isatty()
    drawn = {}
    with tqdm(total=replicates * len(named), unit="replicate", desc="bootstrap", disable=hidden) as bar:
        for name, scores in named.items():
            drawn[name] = bootstrap(
                scores, replicates, speaker_of=speakers, seed=seed, llr=llr, progress=lambda: bar.update()
            )
    if any(result.unit == "trials" for result in drawn.values()):
        typer.echo(
            "speakerkit: WARNING: no speakers are known, so single trials are drawn and intervals come out too narrow; "
            "give --utt2spk",
            err=True,
        )
    return drawn


def _differences(drawn: dict[str, Bootstrap]) -> dict[str, Bootstrap]:
    """The systems that can be held against the first: all others, where all scored one list."""
    first = next(iter(drawn.values()))
    rest = dict(list(drawn.items())[1:])
    return rest if all(other.drawn_from == first.drawn_from for other in rest.values()) else {}


def _intervals(drawn: dict[str, Bootstrap], seed: int) -> dict[str, Any]:
    name, first = next(iter(drawn.items()))
    rest = _differences(drawn)
    return {
        "level": 0.95,
        "seed": seed,
        "scores": {
            system: {
                "unit": result.unit,
                "units": result.units,
                "replicates": len(result.replicates["eer"]),
                **{figure: list(asdict(result.interval(figure)).values()) for figure in result.replicates},
            }
            for system, result in drawn.items()
        },
        "differences": {
            f"{system} - {name}": {
                figure: list(asdict(result.difference(first, figure)).values()) for figure in result.replicates
            }
            for system, result in rest.items()
        },
    }


def _interval_table(drawn: dict[str, Bootstrap], seed: int) -> str:
    from speakerkit.tables import text_table
    from speakerkit.verification.metrics import FIGURES

    name, first = next(iter(drawn.items()))
    rows = [["95 % interval", *(FIGURES[figure][0] for figure in first.replicates), "drawn"]]
    for system, result in drawn.items():
        rows.append([system, *(_cell(result.interval(figure), figure) for figure in first.replicates), _units(result)])
    for system, result in _differences(drawn).items():
        cells = [_cell(result.difference(first, figure), figure) for figure in first.replicates]
        rows.append([f"{system} - {name}", *cells, _units(result)])
    return f"{text_table(rows)}\n{len(first.replicates['eer'])} replicates, seed {seed}"


def _cell(interval: Interval, figure: str) -> str:
    from speakerkit.verification.metrics import figure_text

    return f"{figure_text(figure, interval.low)} to {figure_text(figure, interval.high)}"


def _units(result: Bootstrap) -> str:
    return f"{result.units} {result.unit}"
