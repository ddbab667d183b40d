"""``speakerkit similarity``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from speakerkit.cli.options import (
    ChannelOption,
    Device,
    Json,
    Model,
    ShortAudio,
    check_channel,
    check_short,
    open_model,
)


def similarity(
    first: Annotated[Path, typer.Argument(help="A recording.")],
    second: Annotated[Path, typer.Argument(help="Another recording.")],
    model: Model,
    short: ShortAudio = "error",
    channel: ChannelOption = "mix",
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Decide by this cosine instead of the model's.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Cosine of two recordings in [-1, 1]; a decision only where a threshold is known."""
    short_audio, picked = check_short(short), check_channel(channel)
    embedder = open_model(model, device)
    cosine = embedder.similarity(first, second, channel=picked, short=short_audio)
    known = (threshold, "--threshold") if threshold is not None else embedder.bundle.threshold()
    result = {
        "cosine": round(cosine, 6),
        "threshold": known[0] if known else None,
        "threshold_source": known[1] if known else None,
        "same_speaker": cosine >= known[0] if known else None,
    }
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(f"cosine {cosine:.4f}")
    if known is None:
        typer.echo("uncalibrated: no threshold is known for this model, so there is no decision")
    else:
        typer.echo(f"threshold {known[0]:.4f} ({known[1]}): {'same' if result['same_speaker'] else 'other'} speaker")
