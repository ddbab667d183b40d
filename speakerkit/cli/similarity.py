"""``speakerkit similarity``."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    """Cosine of two recordings in [-1, 1], and its log-likelihood ratio and a decision where the model is calibrated.

    The decision is by the cosine; a positive ratio (natural logarithm) speaks for one speaker.
    """
    from speakerkit.verification.voiceprints.decision import verify as decide

    short_audio, picked = check_short(short), check_channel(channel)
    embedder = open_model(model, device)
    result = decide(embedder.bundle, embedder.similarity(first, second, channel=picked, short=short_audio), threshold)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    typer.echo(f"cosine {result.cosine:.4f}")
    typer.echo("LLR uncalibrated" if result.llr is None else f"LLR {result.llr:.2f}")
    if result.threshold is None:
        typer.echo("uncalibrated: no threshold is known for this model, so there is no decision")
    else:
        answer = "same" if result.decision == "same" else "other"
        typer.echo(f"threshold {result.threshold:.4f} ({result.threshold_source}): {answer} speaker")
