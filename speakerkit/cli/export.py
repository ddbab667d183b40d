"""``speakerkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from speakerkit.export.onnx import Parity, ParityRow


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
    typer.echo(f"{model / 'model.onnx'}: largest difference to torch {_shown(parity)}, over")
    for row in parity.rows:
        typer.echo(f"  batch {row.batch}, {row.frames} frames: {_shown(row)}")


def _shown(found: Parity | ParityRow) -> str:
    return f"absolute {found.max_abs_diff:.2e}, relative {found.relative_diff:.2e}"
