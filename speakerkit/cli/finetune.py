"""``speakerkit finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speakerkit.cli.options import AllowPipes
from speakerkit.cli.train import STOPPED, require_torch


def finetune(
    init: Annotated[
        Path, typer.Option(help="Model to start from, as for embed; its front-end and embedding size stay.")
    ],
    data: Annotated[Path, typer.Option(help="Kaldi directory with wav.scp and utt2spk, or a raw list.")],
    out: Annotated[Path, typer.Option(help="Experiment folder; the new model is its `bundle`.")] = Path("exp/finetune"),
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, 500 by default.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate, 1e-4 by default; ten times it for the head.")
    ] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX", help="Part that stays as it is, as in backbone.layer1.")
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Learning rate of each block of the backbone over that of the next one.")
    ] = None,
    trials: Annotated[
        Path | None, typer.Option(help="Trials to measure by, over utterances of --data; these are not trained on.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file whose sections replace the default ones.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in --set data.batch_size=16.")
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine (one a GPU).")] = 1,
    allow_pipes: AllowPipes = False,
) -> None:
    """Adapt a model to other recordings: a new head for their speakers, EER before and after, and a new bundle.

    The same command again goes on where it stopped.
    """
    require_torch()
    from speakerkit.training.finetune import Options, finetune, plan_finetuning
    from speakerkit.zoo.store import open_name

    options = Options(config, overrides or [], steps, lr, freeze or [], layer_decay, trials, allow_pipes)
    done = finetune(plan_finetuning(open_name(init), data, out, options), nproc)
    if done is None:
        raise typer.Exit(STOPPED)
    for line in done.to_lines():
        typer.echo(line)
