"""``speakerkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from speakerkit.export.onnx import Parity, ParityRow


def export(
    model: Annotated[Path, typer.Argument(help="Embedding bundle or extraction model; gets model.onnx.")],
) -> None:
    """Write model.onnx into a folder, compared with torch before it counts.

    Of an embedding model: feats (B,T,F) to embs (B,D). Of an extraction model: mixture (B,S) and voices (B,K,D) to
    waveform (B,K,S), and enrol.onnx (enrolment (N,S) and lengths (N) to voices (N,D)) where it enrols by itself.
    """
    from speakerkit.errors import MissingExtraError
    from speakerkit.extraction.bundle import is_extractor

    if is_extractor(model):
        _export_extractor(model)
        return

    try:
        from speakerkit.export.bundle import export_bundle
    except ImportError:
        raise MissingExtraError("export", "train") from None

    parity = export_bundle(model)
    typer.echo(f"{model / 'model.onnx'}: largest difference to torch {_shown(parity)}, over")
    for row in parity.rows:
        typer.echo(f"  batch {row.batch}, {row.frames} frames: {_shown(row)}")


def _export_extractor(model: Path) -> None:
    from speakerkit.errors import MissingExtraError

    try:
        from speakerkit.export.extraction import export_extractor
    except ImportError:
        raise MissingExtraError("export", "train") from None

    for row in export_extractor(model):
        voices = f" with {row.voices} voices" if row.voices else ""
        typer.echo(f"{model / row.graph}: {row.decibels:.0f} dB near torch at {row.shape}{voices}")


def _shown(found: Parity | ParityRow) -> str:
    return f"absolute {found.max_abs_diff:.2e}, relative {found.relative_diff:.2e}"
