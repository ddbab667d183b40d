"""``speakerkit train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

STOPPED = 130  # what shells give for an interrupt: a recipe must not go on with a model that is half trained


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in --set optim.lr=0.05.")
    ] = None,
    resume: Annotated[
        str, typer.Option(help="auto goes on from the newest checkpoint, none refuses one, or the path of one.")
    ] = "auto",
    stop_after: Annotated[int | None, typer.Option(min=1, help="Save and end after this step.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine (one a GPU).")] = 1,
) -> None:
    """Train a model; the same command again goes on where it stopped."""
    require_torch()
    from speakerkit.training.experiment import read_experiment, run_experiment

    experiment = read_experiment(config, overrides or [])
    if nproc > 1:
        from speakerkit.training.launch import launch

        result = launch(nproc, config, overrides or [], resume, stop_after)
    else:
        result = run_experiment(config, overrides or [], resume, stop_after)
    if result is None or result.stopped:
        raise typer.Exit(STOPPED)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{experiment.exp_dir}: step {result.step} of {result.steps}, checkpoints in {result.checkpoints}")


def require_torch() -> None:
    """Refuse to train without torch."""
    from speakerkit.errors import MissingExtraError

    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtraError("training", "train") from None
