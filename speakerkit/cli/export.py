"""``speakerkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[Path, typer.Argument(help="Model bundle folder; gets model.onnx.")],
) -> None:
    """Write model.onnx (`feats (B,T,F) -> embs (B,D)`) into a bundle, compared with torch before it counts."""
    from speakerkit.errors import MissingExtraError

    try:
        from speakerkit.export.bundle import export_bundle
    except ImportError:
        raise MissingExtraError("export", "train") from None

    parity = export_bundle(model)
    typer.echo(f"{model / 'model.onnx'}: largest difference to torch {parity.max_abs_diff:.2e}, over")
    for row in parity.rows:
        typer.echo(f"  batch {row.batch}, {row.frames} frames: {row.max_abs_diff:.2e}")
