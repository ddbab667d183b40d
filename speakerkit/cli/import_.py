"""``speakerkit import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[Path, typer.Argument(help="Published model: folder, checkpoint, or .onnx of feats -> embs.")],
    out: Annotated[Path, typer.Argument(help="Bundle folder to write.")],
    kind: Annotated[
        str | None,
        typer.Option(help="wespeaker, onnx, 3dspeaker, speechbrain or taoruijie; by default what it looks like."),
    ] = None,
    window: Annotated[str | None, typer.Option(help="Window that its files leave open: hamming or povey.")] = None,
    scale: Annotated[str | None, typer.Option(help="Scale that its files leave open: int16 or unit.")] = None,
    num_mels: Annotated[int | None, typer.Option(min=1, help="Mels that its files leave open.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights; else what their README.md says.")] = None,
) -> None:
    """Make a bundle of a model that another toolkit published. Nothing is written unless every tensor fits."""
    from speakerkit.embedding.importers import Wishes, import_model

    imported = import_model(source, out, kind=kind, wishes=Wishes(window, scale, num_mels), licence=licence)
    for line in imported.to_lines():
        typer.echo(line)
