"""``speakerkit average``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def average(
    exp_dir: Annotated[Path, typer.Argument(help="Experiment folder that `train` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Bundle to write; EXP_DIR/bundle by default.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Newest checkpoints; trainer.average by default.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The one best in validation instead.")] = False,
    ema: Annotated[
        bool | None, typer.Option("--ema/--no-ema", help="Moving averages; by default where the run kept them.")
    ] = None,
) -> None:
    """Average checkpoints into a model bundle."""
    from speakerkit.errors import MissingExtraError
    from speakerkit.extraction.bundle import ExtractionBundle

    try:
        from speakerkit.training.publish import publish
    except ImportError:
        raise MissingExtraError("averaging checkpoints", "train") from None

    bundle = publish(exp_dir, out or exp_dir / "bundle", last=last, best=best, ema=ema)
    if isinstance(bundle, Path):
        typer.echo(f"{bundle}: a model that diarizes")
        return
    if isinstance(bundle, ExtractionBundle):
        typer.echo(f"{bundle.path}: {bundle.config.model.name}, extracts at {bundle.config.sample_rate} Hz")
        return
    typer.echo(f"{bundle.path}: {bundle.config.model.name}, embeddings of {bundle.config.embedding_size}")
