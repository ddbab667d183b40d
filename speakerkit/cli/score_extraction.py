"""``speakerkit score extraction``: how near extracted voices are to the voices alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speakerkit.cli.options import Json

if TYPE_CHECKING:
    from speakerkit.data.ark import Embeddings
    from speakerkit.extraction.scores import ExtractionScore
    from speakerkit.extraction.scoring import Item

Reference = Annotated[
    Path, typer.Argument(help="Directory of mixtures: wav.scp, ref.scp, enroll.scp, utt2spk, reco2dur, rttm.")
]
Estimates = Annotated[Path, typer.Argument(help="Extracted voices: folder of MIXTURE-SPEAKER.wav, or a scp.")]
Metrics = Annotated[str, typer.Option(help="Of si-sdr, sdr, stoi, estoi and pesq, with commas; or 'all'.")]
EstimateVectors = Annotated[
    Path | None, typer.Option("--embeddings", help="Embeddings of the estimates: count swaps by cosine too.")
]
EnrolmentVectors = Annotated[
    Path | None, typer.Option("--enrol-embeddings", help="Embeddings of enroll.scp, of the same model.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]


def score_extraction(
    reference: Reference,
    estimates: Estimates,
    metrics: Metrics = "all",
    embeddings: EstimateVectors = None,
    enrol_embeddings: EnrolmentVectors = None,
    bootstrap: Annotated[
        int | None, typer.Option(min=2, help="95 % intervals from this many draws of the target speakers.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    workers: Workers = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores.json, scores.tsv, table.txt and box plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """SI-SDR, SDR (BSSEval v3), STOI, ESTOI and PESQ of estimates and mixtures; swaps; power where the target is quiet.

    Pooled, and by overlap, genders (a spk2gender beside the lists) and number of voices. Exit code 3 where some
    estimates are missing or cannot be used: they are counted, and named in the scores.
    """
    from speakerkit.errors import PartialFailure
    from speakerkit.extraction.scoring import read_items

    if out is not None:
        from speakerkit.pictures import require_matplotlib

        require_matplotlib("--out, which draws box plots,")
        out.mkdir(parents=True, exist_ok=True)  # before long work
    items = read_items(reference)
    result = run_scoring(items, estimates, metrics, embeddings, enrol_embeddings, bootstrap, seed, workers)
    if out is not None:
        _write(result, out)
    typer.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False) if as_json else result.table())
    if result.errors:
        first = result.errors[0]
        fault = f"{len(result.errors)} of {len(items)} cannot be scored, {first.key!r} first"
        raise PartialFailure(estimates, fault, first.error)


def run_scoring(
    items: list[Item],
    estimates: Path,
    metrics: str,
    embeddings: Path | None = None,
    enrol_embeddings: Path | None = None,
    replicates: int | None = None,
    seed: int = 0,
    workers: int = 1,
) -> ExtractionScore:
    """What the options of the command line ask for."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.extraction.scores import METRICS
    from speakerkit.extraction.scoring import read_estimates, score_extraction

    def vectors(path: Path | None) -> Embeddings | None:
        return None if path is None else read_embeddings(path)

    return score_extraction(
        items,
        read_estimates(estimates),
        METRICS if metrics == "all" else [name.strip() for name in metrics.split(",")],
        embeddings=vectors(embeddings),
        voices=vectors(enrol_embeddings),
        replicates=replicates or 0,
        seed=seed,
        workers=workers,
    )


def _write(result: ExtractionScore, out: Path) -> None:
    from speakerkit.extraction.plots import plot_improvements
    from speakerkit.extraction.scores import METRICS
    from speakerkit.files import write_json, write_lines

    write_json(out / "scores.json", result.to_dict())
    write_lines(out / "scores.tsv", _rows(result))
    write_lines(out / "table.txt", [result.table()])
    for name in result.figures():
        if name.replace("_", "-") in METRICS and result.summary(name).improvement:
            plot_improvements(result, out / f"{name}.svg", name)


def _rows(result: ExtractionScore) -> list[str]:
    """A line an item, failures and all."""
    figures = result.figures()
    heads = [f"{name}_{side}" for name in figures for side in ("mixture", "estimate")]
    rows = ["\t".join(["key", "speaker", "seconds", "overlap", "genders", *heads, "nearest", "failures"])]
    for item in result.items:
        known: list[Any] = [item.key, item.speaker, item.seconds, item.overlap, item.genders]
        for name in figures:
            each = item.measured.get(name)
            known += [None, None] if each is None else [each.mixture, each.estimate]
        said = [item.error] if item.error else [f"{name}: {why}" for name, why in item.failures.items()]
        cells = ["" if value is None else str(value) for value in [*known, item.nearest, "; ".join(said)]]
        rows.append("\t".join(cell.replace("\t", " ") for cell in cells))
    return rows
