"""``speakerkit score``: embeddings and trials to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def score() -> None:
    """Score verification trials."""


@app.command()
def cosine(
    embeddings: Annotated[Path, typer.Argument(help="Embeddings: .scp, .ark, .npz, .npy or .jsonl.")],
    trials: Annotated[Path, typer.Argument(help="Trials: 'enrol test target|nontarget' a line, or without the label.")],
    out: Annotated[Path, typer.Argument(help="Score file to write: the trials with a score before the label.")],
    mean: Annotated[
        Path | None, typer.Option(help="Mean to subtract first: a .npy vector, or embeddings to take it of.")
    ] = None,
    enrol: Annotated[
        Path | None, typer.Option(help="Embeddings of the enrolment side, where they are in another file.")
    ] = None,
) -> None:
    """Cosine of the two embeddings of each trial, in [-1, 1]."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.verification.cosine import read_mean, require_one_model, score_cosine
    from speakerkit.verification.trials import read_trials, write_scores

    require_one_model(*(path for path in (embeddings, mean, enrol) if path is not None))
    scores = score_cosine(
        read_embeddings(embeddings),
        read_trials(trials),
        mean=None if mean is None else read_mean(mean),
        enrol_embeddings=None if enrol is None else read_embeddings(enrol),
    )
    write_scores(out, scores)
    typer.echo(f"{out}: {len(scores)} scores", err=True)
